//! Models whose branches are chosen by the value of an input, such as a sampling rate or a flag: they are prepared for
//! each value when it is first fed, with the branches that it chooses.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::engine::{EngineError, Observer, Request, Session};
use onnx_quant_ir::{DataType, Model, Tensor, ValueId};

use super::NAME;

/// Sessions that are kept for different values.
const KEPT: usize = 8;

type Slot = Arc<OnceLock<Result<Arc<dyn Session>, EngineError>>>;

/// The places in the feed of inputs of one integer or bool that the condition of an `If` of the main graph is
/// computed from.
pub(super) fn switches(model: &Model, request: &Request) -> Vec<usize> {
    let mut seen: HashSet<ValueId> = HashSet::new();
    let nodes = model.main().nodes.iter();
    let mut open: Vec<ValueId> = nodes
        .filter(|&&n| model.node(n).is("If"))
        .filter_map(|&n| model.input(n, 0))
        .collect();
    while let Some(v) = open.pop() {
        let fresh = seen.insert(v);
        if let Some((node, _)) = model.producer(v).filter(|_| fresh) {
            let n = model.node(node);
            // Shapes are known without the value.
            if !n.is("Shape") && !n.is("Size") {
                open.extend(model.inputs(node).into_iter().flatten());
            }
        }
    }
    let is_switch = |(name, dtype, dims): &(String, DataType, Vec<usize>)| {
        let discrete = dtype.is_integer() || *dtype == DataType::Bool;
        let one = dims.iter().product::<usize>() == 1;
        discrete && one && seen.iter().any(|&v| model.value(v).name == *name)
    };
    let feed = request.feed.iter().enumerate();
    feed.filter(|(_, f)| is_switch(f)).map(|(i, _)| i).collect()
}

/// A session for each value of the switches.
pub(super) struct SwitchedSession {
    pub(super) model: Model,
    pub(super) request: Request,
    pub(super) switches: Vec<usize>,
    /// The most recently used last.
    pub(super) slots: Mutex<Vec<(Vec<Vec<u8>>, Slot)>>,
}

impl SwitchedSession {
    fn slot(&self, key: Vec<Vec<u8>>) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = match slots.iter().position(|(k, _)| *k == key) {
            Some(at) => slots.remove(at),
            None => {
                if slots.len() >= KEPT {
                    slots.remove(0);
                }
                (key, Slot::default())
            }
        };
        let slot = entry.1.clone();
        slots.push(entry);
        slot
    }
}

impl Session for SwitchedSession {
    fn run(
        &self,
        feed: &[Tensor],
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<Tensor>, EngineError> {
        let mut values = BTreeMap::new();
        let mut key = Vec::new();
        for &i in &self.switches {
            let tensor = feed.get(i).ok_or_else(|| {
                EngineError::Feed(format!("{} tensors are fed, too few", feed.len()))
            })?;
            let bytes = tensor.bytes().map_err(|e| EngineError::Run {
                engine: NAME,
                reason: e.to_string(),
            })?;
            key.push(bytes.into_owned());
            values.insert(self.request.feed[i].0.clone(), tensor.clone());
        }
        let slot = self.slot(key);
        let prepare = || super::prepare_fixed(&self.model, &self.request, values);
        slot.get_or_init(prepare).clone()?.run(feed, observer)
    }
}

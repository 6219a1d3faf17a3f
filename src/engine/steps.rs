//! Models with control flow, run step by step: the operators between `If`, `Loop` and `Scan` nodes are models of their
//! own, and so is each body. A runtime prepares them for the shapes that appear and runs them; what stands between them
//! is done here, by the standard.
//!
//! Watched values inside bodies are seen that way, at each turn of a loop. A body that contains control flow is run in
//! steps again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use onnx_quant_ir::engine::{Engine, EngineError, Observed, Observer, Request, Session};
use onnx_quant_ir::{Model, NodeId, Tensor, ValueId};

mod control;
mod part;
mod stack;
#[cfg(test)]
mod tests;

use control::Control;
use part::Part;

/// Whether the node is one that is run here.
pub(super) fn is_control(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    ["If", "Loop", "Scan"].iter().any(|op| n.is(op))
}

/// The values of bodies that have one of these keys (graph path and name).
pub(super) fn ids_in_bodies(model: &Model, keys: &[String]) -> BTreeMap<String, ValueId> {
    if model.graph_ids().len() < 2 || keys.is_empty() {
        return BTreeMap::new();
    }
    let keys: BTreeSet<&String> = keys.iter().collect();
    let values = model.all_values().into_iter();
    let inner = values.filter(|&v| model.value(v).graph != Model::MAIN);
    let named = inner.map(|v| (model.value_key(v), v));
    named.filter(|(key, _)| keys.contains(key)).collect()
}

/// A model and what is wanted of it.
pub(super) struct Program {
    /// Its inputs are those that are fed.
    pub(super) model: Model,
    pub(super) request: Request,
    /// For each input of the model its place in the feed.
    pub(super) inputs: Vec<usize>,
    /// Values of any graph, by their places among the watched ones.
    pub(super) watched: Vec<(usize, ValueId)>,
}

/// Tensors by the values that they are of.
type Values = HashMap<ValueId, Tensor>;

enum Step {
    Part(Part),
    Control(Box<Control>),
}

/// A model whose steps are prepared when they are first run.
pub(super) struct StepSession {
    name: &'static str,
    request: Request,
    inputs: Vec<(ValueId, usize)>,
    outputs: Vec<ValueId>,
    constants: Values,
    /// Values that no part computes, by id: inputs, constants and results of control flow.
    watched: BTreeMap<ValueId, Vec<usize>>,
    steps: Vec<Step>,
}

impl StepSession {
    /// Cuts a model into steps.
    ///
    /// # Errors
    /// Control flow of another form than the standard's.
    pub(super) fn new(engine: Arc<dyn Engine>, program: Program) -> Result<Self, EngineError> {
        let Program {
            mut model,
            request,
            inputs,
            watched,
        } = program;
        let name = engine.name();
        model.sort().map_err(|e| EngineError::Prepare {
            engine: name,
            reason: e.to_string(),
        })?;
        let levels = levels(&model);
        let deepest = levels.values().max().copied().unwrap_or(0);
        let mut steps = Vec::new();
        let mut computed = BTreeSet::new();
        let main = model.main().nodes.clone();
        let of_level = |level: usize, control: bool| -> BTreeSet<NodeId> {
            let mut found = BTreeSet::new();
            let here = |n: &&NodeId| levels[*n] == level && is_control(&model, **n) == control;
            found.extend(main.iter().filter(here).copied());
            found
        };
        for level in 0..=deepest {
            let nodes = of_level(level, false);
            let results = nodes.iter().flat_map(|&n| model.outputs(n)).flatten();
            let results: BTreeSet<ValueId> = results.collect();
            let seen = watched.iter().filter(|(_, v)| results.contains(v));
            let seen: Vec<(usize, ValueId)> = seen.copied().collect();
            let wanted = leaving(&model, &nodes, &results);
            steps
                .extend(Part::of(&engine, &model, &nodes, wanted, &seen, &request).map(Step::Part));
            computed.extend(results);
            for node in of_level(level, true) {
                let control = Control::new(&engine, &model, node, &watched, &request)?;
                steps.push(Step::Control(Box::new(control)));
            }
        }
        let mut direct: BTreeMap<ValueId, Vec<usize>> = BTreeMap::new();
        for (place, value) in watched {
            if model.value(value).graph == Model::MAIN && !computed.contains(&value) {
                direct.entry(value).or_default().push(place);
            }
        }
        let constants = model.all_values().into_iter();
        let constants = constants.filter_map(|v| Some((v, model.constant(v)?.clone())));
        let ids = model.main().inputs.iter().copied();
        Ok(Self {
            name,
            request,
            inputs: ids.zip(inputs).collect(),
            outputs: model.main().outputs.clone(),
            constants: constants.collect(),
            watched: direct,
            steps,
        })
    }

    fn hand_out(
        &self,
        value: ValueId,
        tensor: &Tensor,
        observer: Option<Observer<'_>>,
    ) -> Result<(), EngineError> {
        let (Some(places), Some(observer)) = (self.watched.get(&value), observer) else {
            return Ok(());
        };
        let integers = |_| Ok(tensor.to_i64()?.into_iter().map(|x| x as f32).collect());
        let data: Result<Vec<f32>, onnx_quant_ir::TensorError> = tensor.to_f32().or_else(integers);
        let data = data.map_err(|e| self.fail(e.to_string()))?;
        let dims: Vec<usize> = tensor.dims().iter().map(|&d| d as usize).collect();
        for &index in places {
            observer(Observed {
                index,
                dims: &dims,
                data: &data,
            });
        }
        Ok(())
    }

    fn fail(&self, reason: impl Into<String>) -> EngineError {
        EngineError::Run {
            engine: self.name,
            reason: reason.into(),
        }
    }
}

impl Session for StepSession {
    fn run(
        &self,
        feed: &[Tensor],
        mut observer: Option<Observer<'_>>,
    ) -> Result<Vec<Tensor>, EngineError> {
        if feed.len() != self.request.feed.len() {
            return Err(EngineError::Feed(format!(
                "{} tensors are fed, but the session was prepared for {}",
                feed.len(),
                self.request.feed.len()
            )));
        }
        let mut values = self.constants.clone();
        let fed = self.inputs.iter();
        values.extend(fed.map(|&(value, place)| (value, feed[place].clone())));
        for (&value, tensor) in self.watched.keys().filter_map(|v| values.get_key_value(v)) {
            self.hand_out(value, tensor, reborrow(&mut observer))?;
        }
        for step in &self.steps {
            match step {
                Step::Part(part) => {
                    let found = part.run(&[&values], reborrow(&mut observer))?;
                    values.extend(found);
                }
                Step::Control(control) => {
                    let found = control.run(&values, reborrow(&mut observer));
                    for (value, tensor) in found.map_err(|e| e.of(self.name, &control.key))? {
                        self.hand_out(value, &tensor, reborrow(&mut observer))?;
                        values.insert(value, tensor);
                    }
                }
            }
        }
        let output = |v: &ValueId| values.get(v).cloned().ok_or(*v);
        let outputs: Result<Vec<Tensor>, ValueId> = self.outputs.iter().map(output).collect();
        outputs.map_err(|_| self.fail("an output was not computed"))
    }
}

/// An observer for one call more.
fn reborrow<'b>(observer: &'b mut Option<Observer<'_>>) -> Option<Observer<'b>> {
    match observer {
        Some(observer) => Some(&mut **observer),
        None => None,
    }
}

/// For each node of the main graph the number of control-flow nodes that must have run before it.
fn levels(model: &Model) -> BTreeMap<NodeId, usize> {
    let mut levels: BTreeMap<NodeId, usize> = BTreeMap::new();
    for &node in &model.main().nodes {
        let mut read: Vec<ValueId> = model.inputs(node).into_iter().flatten().collect();
        read.extend(model.captured_by(node));
        let makers = read
            .into_iter()
            .filter_map(|v| Some(model.producer(v)?.0))
            .filter_map(|n| Some((n, *levels.get(&n)?)));
        let after = makers.map(|(n, level)| level + usize::from(is_control(model, n)));
        let level = after.max().unwrap_or(0);
        levels.insert(node, level);
    }
    levels
}

/// The results of some nodes that others use, or that are outputs.
fn leaving(model: &Model, nodes: &BTreeSet<NodeId>, results: &BTreeSet<ValueId>) -> Vec<ValueId> {
    let outside = |v: &ValueId| {
        let uses = model.consumers(*v);
        model.value(*v).is_output()
            || uses.iter().any(|(n, _)| !nodes.contains(n))
            || !model.captures(*v).is_empty()
    };
    results.iter().copied().filter(outside).collect()
}

//! `If`, `Loop` and `Scan`, by the standard.

use std::ops::Range;
use std::sync::Arc;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::engine::{Engine, EngineError, Observer, Request};
use onnx_quant_ir::{DataType, GraphId, Model, NodeId, Tensor, ValueId};

use super::part::Body;
use super::{Values, reborrow, stack};

/// A control-flow node.
pub(super) struct Control {
    /// Graph path and name.
    pub(super) key: String,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<Option<ValueId>>,
    kind: Kind,
}

enum Kind {
    If {
        then: Body,
        other: Body,
    },
    Loop {
        body: Body,
        results: Vec<Empty>,
        /// The shapes of the number of the turn and of the condition: none, or one of length 1.
        heads: [Vec<i64>; 2],
    },
    Scan {
        body: Body,
        results: Vec<Empty>,
        axes: ScanAxes,
    },
}

/// What a stack of no slices looks like: the declared type and shape of a slice, with unknown sizes as 0.
struct Empty {
    dtype: DataType,
    dims: Vec<i64>,
}

impl Empty {
    fn of(model: &Model, value: ValueId) -> Self {
        let v = model.value(value);
        let shape = v.shape().unwrap_or_default().into_iter();
        Self {
            dtype: v.dtype().unwrap_or(DataType::Float),
            dims: shape.map(|d| d.unwrap_or(0).max(0)).collect(),
        }
    }
}

/// Along which axes a `Scan` cuts and stacks, and in which direction: one entry an input or result.
struct ScanAxes {
    inputs: Vec<(i64, bool)>,
    outputs: Vec<(i64, bool)>,
}

impl ScanAxes {
    fn of(model: &Model, node: NodeId, results: usize) -> Self {
        let n = model.node(node);
        let scanned = usize::try_from(n.attr_i("num_scan_inputs").unwrap_or(1)).unwrap_or(1);
        let read = |count: usize, axes: &str, directions: &str| {
            let at = |name: &str, i: usize| n.attr_ints(name).and_then(|v| v.get(i).copied());
            let entry = |i| (at(axes, i).unwrap_or(0), at(directions, i) == Some(1));
            (0..count).map(entry).collect()
        };
        Self {
            inputs: read(scanned, "scan_input_axes", "scan_input_directions"),
            outputs: read(results, "scan_output_axes", "scan_output_directions"),
        }
    }
}

/// Why a node fails.
pub(super) enum Failure {
    /// A part of it does.
    Inner(EngineError),
    /// It is not as the standard has it.
    Own(String),
}

impl Failure {
    /// The error of the node with this key.
    pub(super) fn of(self, engine: &'static str, key: &str) -> EngineError {
        match self {
            Self::Inner(e) => e,
            Self::Own(reason) => EngineError::Run {
                engine,
                reason: format!("`{key}`: {reason}"),
            },
        }
    }
}

impl From<EngineError> for Failure {
    fn from(e: EngineError) -> Self {
        Self::Inner(e)
    }
}

impl From<String> for Failure {
    fn from(reason: String) -> Self {
        Self::Own(reason)
    }
}

impl Control {
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        model: &Model,
        node: NodeId,
        watched: &[(usize, ValueId)],
        request: &Request,
    ) -> Result<Self, EngineError> {
        let n = model.node(node);
        let key = model.node_key(node);
        let fail = |reason: String| EngineError::Prepare {
            engine: engine.name(),
            reason: format!("`{key}`: {reason}"),
        };
        let graph = |attr: &str| {
            let found = n.subgraph(attr);
            found.ok_or_else(|| fail(format!("{} without the attribute `{attr}`", n.op_type())))
        };
        let body = |g: GraphId| Body::new(engine, model, (node, g), watched, request);
        let inputs = model.inputs(node);
        let results = |g: GraphId, states: usize| -> Vec<Empty> {
            let values = model.graph(g).outputs.iter().skip(states);
            values.map(|&v| Empty::of(model, v)).collect()
        };
        let kind = match n.op_type() {
            "If" => Kind::If {
                then: body(graph("then_branch")?),
                other: body(graph("else_branch")?),
            },
            "Loop" => {
                let g = graph("body")?;
                let carried = inputs.len().saturating_sub(2);
                let body = body(g);
                if body.inputs.len() != carried + 2 || body.outputs.len() < carried + 1 {
                    let (i, o) = (body.inputs.len(), body.outputs.len());
                    return Err(fail(format!(
                        "its body has {i} inputs and {o} outputs for {carried} carried values"
                    )));
                }
                let results = results(g, carried + 1);
                let rank = |slot: usize| {
                    model
                        .value(body.inputs[slot])
                        .shape()
                        .map_or(0, |s| s.len())
                };
                let heads = [0, 1].map(|slot| vec![1; rank(slot)]);
                Kind::Loop {
                    body,
                    results,
                    heads,
                }
            }
            _ => {
                if model.opset("").is_some_and(|v| v < 9) {
                    return Err(fail("Scan of opset 8 is not supported".to_owned()));
                }
                let g = graph("body")?;
                let scanned = ScanAxes::of(model, node, 0).inputs.len();
                let states = inputs.len().checked_sub(scanned);
                let body = body(g);
                let fits =
                    |s: &usize| body.outputs.len() >= *s && body.inputs.len() == inputs.len();
                let states = states.filter(fits).ok_or_else(|| {
                    fail("its body does not have the inputs and outputs of the node".to_owned())
                })?;
                let results = results(g, states);
                let axes = ScanAxes::of(model, node, results.len());
                Kind::Scan {
                    body,
                    results,
                    axes,
                }
            }
        };
        Ok(Self {
            inputs,
            outputs: model.outputs(node),
            kind,
            key,
        })
    }

    /// Runs the node: its results.
    pub(super) fn run(
        &self,
        values: &Values,
        mut observer: Option<Observer<'_>>,
    ) -> Result<Vec<(ValueId, Tensor)>, Failure> {
        let given = |slot: usize| match self.inputs.get(slot) {
            Some(Some(v)) => values.get(v).map(Some).ok_or("an input was not computed"),
            _ => Ok(None),
        };
        let needed = |slot: usize| -> Result<Tensor, Failure> {
            let found = given(slot).map_err(str::to_owned)?.cloned();
            Ok(found.ok_or_else(|| format!("its input {slot} is missing"))?)
        };
        let needed_all =
            |slots: Range<usize>| -> Result<Vec<Tensor>, Failure> { slots.map(needed).collect() };
        let found = match &self.kind {
            Kind::If { then, other } => {
                let taken = if truth(&needed(0)?)? { then } else { other };
                taken.run(values, Vec::new(), observer)?
            }
            Kind::Loop {
                body,
                results,
                heads,
            } => {
                let limit = given(0).map_err(str::to_owned)?.map(number).transpose()?;
                let start = given(1).map_err(str::to_owned)?.map(truth).transpose()?;
                let mut go = start.unwrap_or(true);
                let mut carried: Vec<Tensor> = needed_all(2..self.inputs.len())?;
                let mut stacks: Vec<Vec<Tensor>> = results.iter().map(|_| Vec::new()).collect();
                let mut turn = 0i64;
                while go && limit.is_none_or(|n| turn < n) {
                    let mut fed = vec![
                        Tensor::from_i64(&heads[0], &[turn]),
                        Tensor::from_raw(DataType::Bool, &heads[1], vec![1u8]),
                    ];
                    fed.append(&mut carried);
                    let mut found = body.run(values, fed, reborrow(&mut observer))?.into_iter();
                    go = found
                        .next()
                        .as_ref()
                        .map(truth)
                        .transpose()?
                        .unwrap_or(true);
                    carried = found.by_ref().take(self.inputs.len() - 2).collect();
                    stacks.iter_mut().zip(found).for_each(|(s, t)| s.push(t));
                    turn += 1;
                }
                for (slices, empty) in stacks.iter().zip(results) {
                    carried.push(stacked(slices, empty, (0, false))?);
                }
                carried
            }
            Kind::Scan {
                body,
                results,
                axes,
            } => {
                let states = self.inputs.len() - axes.inputs.len();
                let mut carried: Vec<Tensor> = needed_all(0..states)?;
                let scanned: Vec<Tensor> = needed_all(states..self.inputs.len())?;
                let mut turns = None;
                for (tensor, (axis, _)) in scanned.iter().zip(&axes.inputs) {
                    let length = stack::length(tensor, *axis)?;
                    if *turns.get_or_insert(length) != length {
                        let reason = "the sequences that it scans differ in length";
                        return Err(Failure::Own(reason.to_owned()));
                    }
                }
                let turns = turns.unwrap_or(0);
                let mut stacks: Vec<Vec<Tensor>> = results.iter().map(|_| Vec::new()).collect();
                for turn in 0..turns {
                    for (tensor, &(axis, backward)) in scanned.iter().zip(&axes.inputs) {
                        let at = if backward { turns - 1 - turn } else { turn };
                        carried.push(stack::slice(tensor, axis, at)?);
                    }
                    let fed = std::mem::take(&mut carried);
                    let mut found = body.run(values, fed, reborrow(&mut observer))?.into_iter();
                    carried = found.by_ref().take(states).collect();
                    stacks.iter_mut().zip(found).for_each(|(s, t)| s.push(t));
                }
                for ((slices, empty), &axis) in stacks.iter_mut().zip(results).zip(&axes.outputs) {
                    if axis.1 {
                        slices.reverse();
                    }
                    carried.push(stacked(slices, empty, axis)?);
                }
                carried
            }
        };
        let named = self.outputs.iter().zip(found);
        Ok(named.filter_map(|(v, t)| Some(((*v)?, t))).collect())
    }
}

/// The results of all turns on one new axis.
fn stacked(slices: &[Tensor], empty: &Empty, (axis, _): (i64, bool)) -> Result<Tensor, String> {
    if slices.is_empty() {
        let mut dims = empty.dims.clone();
        let at = if axis < 0 {
            axis + dims.len() as i64 + 1
        } else {
            axis
        };
        dims.insert(usize::try_from(at).unwrap_or(0).min(dims.len()), 0);
        return Ok(Tensor::from_raw(empty.dtype, &dims, Vec::new()));
    }
    stack::stack(slices, axis)
}

/// A condition of one element.
fn truth(tensor: &Tensor) -> Result<bool, String> {
    number(tensor).map(|n| n != 0)
}

fn number(tensor: &Tensor) -> Result<i64, String> {
    match tensor.to_i64().as_deref() {
        Ok([n]) => Ok(*n),
        _ => Err(format!(
            "{} {:?} stands where one number is needed",
            tensor.dtype().short_name(),
            tensor.dims()
        )),
    }
}

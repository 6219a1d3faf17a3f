//! Makes of a model what tract is given: a copy (weights shared) that is concrete for one feed.
//!
//! In order: local functions and operators that the standard has dropped are replaced; inputs get the shapes of the feed; watched values are marked; the model is specialized; an `Observe`
//! operator is put behind each watched value; Q/DQ are lowered; what tract lacks is written with what it has.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::engine::{EngineError, Request};
use onnx_quant_ir::pass::{Manager, Pass, PassContext};
use onnx_quant_ir::{DataType, Model, NodeSpec, Tensor, ValueId, save};
use onnx_quant_passes::expand_nbits::ExpandNbits;
use onnx_quant_passes::expand_qoperator::ExpandQoperator;
use onnx_quant_passes::inline_functions::InlineFunctions;
use onnx_quant_passes::lift_constants::LiftConstants;
use onnx_quant_passes::lower_codebook::LowerCodebook;
use onnx_quant_passes::lower_qdq::{EXEC_DOMAIN, LowerQdq};
use onnx_quant_passes::specialize::{ConcreteInputs, Specialize};
use onnx_quant_passes::upgrade_opset::UpgradeOpset;
use onnx_quant_proto::{
    ModelProto, TensorShapeProto, TypeProto, tensor_shape_proto::Dimension,
    tensor_shape_proto::dimension, type_proto,
};

use super::NAME;
use super::ops::OBSERVE;
use crate::engine::steps::{self, Program};

mod rewrite;

/// A watched value that is the same in every run.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ConstantObservation {
    pub(super) index: usize,
    pub(super) dims: Vec<usize>,
    pub(super) data: Vec<f32>,
}

/// What tract is given.
pub(super) struct Lowered {
    pub(super) model: Model,
    pub(super) proto: ModelProto,
    /// For each input of the lowered model its place in the feed.
    pub(super) inputs: Vec<usize>,
    /// For each output of the model its declared type.
    pub(super) outputs: Vec<Option<DataType>>,
    pub(super) constants: Vec<ConstantObservation>,
    /// The node that stands behind each name in the lowered model.
    pub(super) names: BTreeMap<String, NodeOrigin>,
}

/// How errors speak of a node of the lowered model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeOrigin {
    pub(super) op: String,
    pub(super) key: String,
}

/// The failure of a step that is not one operator's fault.
fn prepare(reason: impl ToString) -> EngineError {
    EngineError::Prepare {
        engine: NAME,
        reason: reason.to_string(),
    }
}

/// A model that is concrete for one request, with its own operators.
#[derive(Clone)]
pub(super) struct Concrete {
    pub(super) model: Model,
    /// For each input of the model its place in the feed.
    pub(super) inputs: Vec<usize>,
    /// For each output of the model its declared type.
    outputs: Vec<Option<DataType>>,
    constants: Vec<ConstantObservation>,
    /// Names of watched values that are outputs only so that passes keep them.
    marked: BTreeSet<String>,
    /// Watched values that stood in bodies before branches were taken, by their places in the request.
    inner: BTreeMap<usize, ValueId>,
}

impl Concrete {
    /// Makes a model concrete for one request; `values` are inputs that every run feeds the same value.
    pub(super) fn of(
        model: &Model,
        request: &Request,
        values: BTreeMap<String, Tensor>,
    ) -> Result<Self, EngineError> {
        let mut m = model.clone();
        let declared = |&v: &ValueId| model.value(v).dtype();
        let outputs = model.main().outputs.iter().map(declared).collect();
        modernize(&mut m)?;
        let inputs = bind_feed(&mut m, request)?;
        run(&LowerCodebook, &mut m, &mut PassContext::default())?;
        let mut constants = Vec::new();
        let (marked, inner) = mark_watched(&mut m, request, &mut constants)?;
        specialize(&mut m, request, values)?;
        Ok(Self {
            model: m,
            inputs,
            outputs,
            constants,
            marked,
            inner,
        })
    }

    /// Whether values are watched that still stand in bodies.
    pub(super) fn watches_bodies(&self) -> bool {
        let m = &self.model;
        let inside = |&v: &ValueId| still_computed(m, v) && m.value(v).graph != Model::MAIN;
        self.inner.values().any(inside)
    }

    /// The model to be run in steps.
    pub(super) fn program(mut self, request: &Request) -> Program {
        let ids = ids_by_name(&self.model);
        let names = request.observe.iter().enumerate();
        let place = |(i, name): (usize, &String)| match self.inner.get(&i) {
            Some(&v) => still_computed(&self.model, v).then_some((i, v)),
            None => Some((i, *ids.get(name)?)),
        };
        let watched = names.filter_map(place).collect();
        // They were outputs so that passes keep them.
        for value in self.marked.iter().filter_map(|name| ids.get(name)) {
            self.model.remove_graph_output(*value);
        }
        Program {
            model: self.model,
            request: request.clone(),
            inputs: self.inputs,
            watched,
        }
    }

    /// What tract is given.
    pub(super) fn lower(self, request: &Request) -> Result<Lowered, EngineError> {
        let Self {
            model: mut m,
            inputs,
            outputs,
            mut constants,
            marked,
            inner,
        } = self;
        insert_observers(&mut m, request, &marked, &inner, &mut constants)?;
        run(&LowerQdq, &mut m, &mut PassContext::default())?;
        rewrite::rewrite(&mut m)?;
        m.sort().map_err(prepare)?;
        let names = name_nodes(&mut m);
        let mut proto = save::inlined(&m).map_err(prepare)?;
        rewrite::raw_initializers(&m, &mut proto).map_err(prepare)?;
        Ok(Lowered {
            model: m,
            proto,
            inputs,
            outputs,
            constants,
            names,
        })
    }
}

/// Replaces what only passes can: local functions, integer operators, and `Upsample`, which later versions lack.
fn modernize(m: &mut Model) -> Result<(), EngineError> {
    let mut cx = PassContext::default();
    if !m.header.functions.is_empty() {
        run(&InlineFunctions, m, &mut cx)?;
    }
    run(&ExpandQoperator, m, &mut cx)?;
    run(&ExpandNbits, m, &mut cx)?;
    if m.all_nodes().iter().any(|&n| m.node(n).is("Upsample")) {
        run(&LiftConstants, m, &mut cx)?;
        run(&UpgradeOpset, m, &mut cx)?;
    }
    Ok(())
}

fn run(pass: &dyn Pass, model: &mut Model, cx: &mut PassContext) -> Result<(), EngineError> {
    Manager::default()
        .run(pass, BTreeMap::new(), model, cx)
        .map(drop)
        .map_err(prepare)
}

/// Folds everything that concrete shapes, and values where they are known, decide.
fn specialize(
    model: &mut Model,
    request: &Request,
    values: BTreeMap<String, Tensor>,
) -> Result<(), EngineError> {
    let feed = request.feed.iter().cloned();
    let shapes = feed.map(|(name, dtype, dims)| (name, (dtype, dims)));
    let mut cx = PassContext::default();
    cx.insert(ConcreteInputs {
        shapes: shapes.collect(),
        values,
    });
    run(&Specialize, model, &mut cx)
}

/// Gives the inputs the types and shapes of the feed; an input with a default that is not fed becomes a constant.
/// Returns for each remaining input its place in the feed.
fn bind_feed(m: &mut Model, request: &Request) -> Result<Vec<usize>, EngineError> {
    let mut places = Vec::new();
    let known: Vec<String> = m
        .main()
        .inputs
        .iter()
        .map(|&v| m.value(v).name.clone())
        .collect();
    for (i, (name, ..)) in request.feed.iter().enumerate() {
        if !known.contains(name) {
            return Err(EngineError::Feed(format!(
                "the model has no input `{name}`; its inputs are {}",
                known.join(", ")
            )));
        }
        if request.feed[..i].iter().any(|(other, ..)| other == name) {
            return Err(EngineError::Feed(format!("input `{name}` is fed twice")));
        }
    }
    for id in m.main().inputs.clone() {
        let name = m.value(id).name.clone();
        let Some(place) = request.feed.iter().position(|(n, ..)| *n == name) else {
            if m.value(id).init.is_none() {
                return Err(EngineError::Feed(format!("input `{name}` is not fed")));
            }
            m.remove_graph_input(id);
            continue;
        };
        let (_, dtype, dims) = &request.feed[place];
        check_input(m, id, *dtype, dims)?;
        if m.value_mut(id).init.take().is_some() {
            m.graph_mut(Model::MAIN).initializers.retain(|&v| v != id);
        }
        if let Some(info) = &mut m.value_mut(id).input_info {
            info.r#type = Some(tensor_type(*dtype, dims));
        }
        places.push(place);
    }
    Ok(places)
}

fn check_input(m: &Model, id: ValueId, dtype: DataType, dims: &[usize]) -> Result<(), EngineError> {
    let v = m.value(id);
    let fail = |what: String| Err(EngineError::Feed(format!("input `{}` {what}", v.name)));
    if let Some(declared) = v.dtype().filter(|&d| d != dtype) {
        return fail(format!(
            "is of type {}, not {}",
            declared.short_name(),
            dtype.short_name()
        ));
    }
    let Some(shape) = v.shape().filter(|_| v.init.is_none()) else {
        return Ok(());
    };
    let fits = shape.len() == dims.len()
        && shape
            .iter()
            .zip(dims)
            .all(|(s, &d)| s.is_none_or(|s| s < 0 || s as usize == d));
    if !fits {
        let text: Vec<String> = shape
            .iter()
            .map(|d| d.map_or("?".to_owned(), |d| d.to_string()))
            .collect();
        return fail(format!("has shape [{}], not {dims:?}", text.join(", ")));
    }
    Ok(())
}

fn tensor_type(dtype: DataType, dims: &[usize]) -> TypeProto {
    let dim = dims
        .iter()
        .map(|&d| Dimension {
            value: Some(dimension::Value::DimValue(d as i64)),
            ..Dimension::default()
        })
        .collect();
    TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(dtype as i32),
            shape: Some(TensorShapeProto { dim }),
        })),
        ..TypeProto::default()
    }
}

/// Names of values that were made outputs, and values of bodies by their places in the request.
type Marked = (BTreeSet<String>, BTreeMap<usize, ValueId>);

/// Makes the watched values of the main graph that are computed outputs, so that every pass keeps them, and reads those
/// that are constant.
fn mark_watched(
    m: &mut Model,
    request: &Request,
    constants: &mut Vec<ConstantObservation>,
) -> Result<Marked, EngineError> {
    let mut marked = BTreeSet::new();
    let mut inner = BTreeMap::new();
    let ids = ids_by_name(m);
    let bodies = steps::ids_in_bodies(m, &request.observe);
    for (index, name) in request.observe.iter().enumerate() {
        let inside = bodies.get(name).copied();
        let found = ids.get(name).copied().or(inside);
        let id = found.ok_or_else(|| {
            EngineError::Feed(format!(
                "the model has no value `{name}` that could be watched"
            ))
        })?;
        if let Some(t) = m.constant(id) {
            constants.push(read_constant(index, name, t)?);
        } else if m.value(id).graph != Model::MAIN {
            inner.insert(index, id);
        } else if !m.value(id).is_output() && !m.value(id).is_input() {
            let ty = m.value(id).ty().cloned();
            m.make_graph_output(id, ty);
            marked.insert(name.clone());
        }
    }
    Ok((marked, inner))
}

/// Whether a value of a body is still there after the model was specialized, and no constant. Its id may have been given
/// to another value then, but that is always a constant.
fn still_computed(m: &Model, id: ValueId) -> bool {
    m.has_value(id) && m.value(id).init.is_none()
}

fn ids_by_name(m: &Model) -> BTreeMap<String, ValueId> {
    let values = m.values_by_name(Model::MAIN).into_iter();
    values.map(|(n, id)| (n.to_owned(), id)).collect()
}

fn read_constant(index: usize, name: &str, t: &Tensor) -> Result<ConstantObservation, EngineError> {
    let integers = |_| {
        t.to_i64()
            .map(|v| v.into_iter().map(|x| x as f32).collect())
    };
    let data = t.to_f32().or_else(integers);
    Ok(ConstantObservation {
        index,
        dims: t.dims().iter().map(|&d| d as usize).collect(),
        data: data.map_err(|e| prepare(format!("`{name}`: {e}")))?,
    })
}

/// Puts an `Observe` behind every watched value that is computed, and reads those that have become constant.
fn insert_observers(
    m: &mut Model,
    request: &Request,
    marked: &BTreeSet<String>,
    inner: &BTreeMap<usize, ValueId>,
    constants: &mut Vec<ConstantObservation>,
) -> Result<(), EngineError> {
    let known: BTreeSet<usize> = constants.iter().map(|c| c.index).collect();
    let mut names = m.names();
    let ids = ids_by_name(m);
    for (index, name) in request.observe.iter().enumerate() {
        if known.contains(&index) {
            continue;
        }
        let id = match (inner.get(&index), ids.get(name)) {
            // Of a branch that has taken the place of its node; one that is not taken has no values.
            (Some(&id), _) if still_computed(m, id) && m.value(id).graph == Model::MAIN => id,
            (Some(_), _) => continue,
            (None, Some(&id)) => id,
            (None, None) => return Err(prepare(format!("the watched value `{name}` was lost"))),
        };
        if let Some(t) = m.constant(id) {
            constants.push(read_constant(index, name, t)?);
            continue;
        }
        insert_observer(m, id, index, &names.fresh(&format!("{name}_watched")));
    }
    for name in marked {
        if let Some(&id) = ids.get(name) {
            m.remove_graph_output(id);
            // A value that nothing uses is computed only where it is an output.
            if m.is_unused(id) && !m.is_constant(id) {
                m.make_graph_output(id, None);
            }
        }
    }
    Ok(())
}

fn insert_observer(m: &mut Model, id: ValueId, index: usize, name: &str) {
    let raw = m.add_value(Model::MAIN, name);
    if let Some((producer, slot)) = m.producer(id) {
        m.set_output(producer, slot, Some(raw));
    } else {
        let info = m.value_mut(id).input_info.take();
        m.value_mut(raw).input_info = info;
        for slot in &mut m.graph_mut(Model::MAIN).inputs {
            if *slot == id {
                *slot = raw;
            }
        }
    }
    let spec = NodeSpec::new(OBSERVE)
        .domain(EXEC_DOMAIN)
        .name(name)
        .attr_i("index", index as i64);
    m.add_node(Model::MAIN, spec, &[Some(raw)], &[Some(id)]);
}

/// Gives every node a name of its own, which is how tract's errors speak of it. Inputs and constants are nodes of
/// tract too, with the names of their values.
fn name_nodes(m: &mut Model) -> BTreeMap<String, NodeOrigin> {
    let mut names = BTreeMap::new();
    let values = m.all_values().into_iter().map(|v| m.value(v));
    let taken: BTreeSet<String> = values
        .filter(|v| v.is_input() || v.init.is_some())
        .map(|v| v.name.clone())
        .collect();
    for id in m.all_nodes() {
        let key = m.node_key(id);
        let label = m.node_label(id);
        let mut name = label.clone();
        let mut i = 1;
        while names.contains_key(&name) || taken.contains(&name) {
            name = format!("{label}#{i}");
            i += 1;
        }
        let node = m.node_mut(id);
        node.proto.name = Some(name.clone());
        let op = node.op_type().to_owned();
        names.insert(name, NodeOrigin { op, key });
    }
    names
}

//! **What it does.** Makes a model concrete for one set of input shapes, for execution only: the inputs get the given
//! types and shapes, everything that these shapes decide becomes a constant, an `If` whose condition is decided gives
//! way to the branch taken, and what nothing needs any more goes. Declared types of inner values and symbolic output
//! shapes are dropped, since they may contradict the concrete ones.
//!
//! **Before → After.**
//! ```text
//! x: [batch, 64]                            x: [8, 64]
//! s = Shape(x); d = Gather(s, 0)            shape = {8, -1}
//! shape = Concat(d, {-1})            →      y = Reshape(x, shape)
//! y = Reshape(x, shape)
//! z = If(Equal(d, 1)) {Squeeze(y)} {y}      z = Identity(y)
//! ```
//!
//! **When it does not fire.** A constant over 1 MiB is left to be computed; loops stay, with their bodies simplified; an
//! `If` stays where data decides it. Inputs for which no shape is given keep their declared one.
//!
//! **Invariants kept.** Names and order of inputs and outputs. An input whose value is given stays in the signature and
//! is used by nothing. An initializer that is also an input and is not fed becomes a constant and leaves the signature.
//! For the given shapes and values every output is what it was.
//!
//! **Opset notes.** All versions: axes, pads, splits and the like are read from attributes or inputs, wherever they stand.
//!
//! **References.** ONNX standard, "Shape inference" and operators `If`, `Shape`, `Reshape`; NumPy broadcasting.

use std::collections::{BTreeMap, HashSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::proto::tensor_shape_proto::{Dimension, dimension};
use onnx_quant_ir::proto::{TensorShapeProto, TypeProto, type_proto};
use onnx_quant_ir::{DataType, GraphId, Model, NodeId, NodeSpec, Tensor, ValueId};

use crate::infer::{self, Fact, Facts, Options, Shapes};

static INFO: PassInfo = PassInfo {
    name: "specialize",
    summary: "Makes a model concrete for given input shapes (for execution only)",
    source: include_str!("specialize.rs"),
    // Outputs are kept for the given shapes and values only.
    exact: false,
};

/// What the model is specialized for; put into the [`PassContext`].
#[derive(Debug, Clone, Default)]
pub struct ConcreteInputs {
    /// Type and shape of each fed graph input, by name.
    pub shapes: Shapes,
    /// Values of graph inputs that are the same in every run (a sampling rate, a flag), by name.
    pub values: BTreeMap<String, Tensor>,
}

impl ConcreteInputs {
    /// Only shapes.
    pub fn new(shapes: Shapes) -> Self {
        Self {
            shapes,
            values: BTreeMap::new(),
        }
    }

    /// Reads an option of the pipeline text: `8x64` is a shape, `:16000` the value of an integer scalar.
    fn read_option(&mut self, name: &str, dtype: DataType, text: &str) -> Result<(), PassError> {
        let fail = || {
            let message = format!("`{text}` for input `{name}` is neither `8x64` nor `:16000`");
            PassError::new(INFO.name, message)
        };
        if let Some(number) = text.strip_prefix(':') {
            let n: i64 = number.parse().map_err(|_| fail())?;
            let value = match dtype {
                DataType::Int32 => Tensor::from_i32(&[], &[i32::try_from(n).map_err(|_| fail())?]),
                DataType::Bool => Tensor::from_raw(dtype, &[], vec![u8::from(n != 0)]),
                DataType::Int64 => Tensor::from_i64(&[], &[n]),
                _ => return Err(fail()),
            };
            self.values.insert(name.to_owned(), value);
            return Ok(());
        }
        let sizes = text.split('x').filter(|s| !s.is_empty());
        let dims = sizes
            .map(str::parse)
            .collect::<Result<Vec<usize>, _>>()
            .map_err(|_| fail())?;
        self.shapes.insert(name.to_owned(), (dtype, dims));
        Ok(())
    }
}

/// The pass.
pub struct Specialize;

impl Pass for Specialize {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut inputs = cx.get::<ConcreteInputs>().cloned().unwrap_or_default();
        for &v in &model.main().inputs {
            let value = model.value(v);
            if let Some(text) = cx.option(&value.name) {
                let dtype = value.dtype().unwrap_or(DataType::Float);
                inputs.read_option(&value.name, dtype, text)?;
            }
        }
        if inputs.shapes.is_empty() && inputs.values.is_empty() {
            cx.need::<ConcreteInputs>()?;
        }
        Ok(Changed::from(specialize(model, &inputs)?))
    }
}

/// Makes a model concrete for the given inputs, and says whether that changed anything. The nodes of the result are in
/// order.
///
/// # Errors
/// A given name that is no input of the model, a shape of another rank than declared, a cyclic graph.
pub fn specialize(model: &mut Model, inputs: &ConcreteInputs) -> Result<bool, PassError> {
    let fail = |message: String| PassError::new(INFO.name, message);
    check(model, inputs)?;
    let mut changed = fix_signature(model, inputs);
    model.sort().map_err(|e| fail(e.to_string()))?;
    let options = Options {
        values: inputs.values.clone(),
        use_value_info: false,
        ..Options::default()
    };
    let facts = infer::infer(model, &inputs.shapes, &options);
    changed |= take_branches(model, &facts);
    let keep = live(model, &facts);
    changed |= sweep(model, &keep);
    changed |= store_constants(model, &facts, &keep);
    changed |= declare_outputs(model, &facts);
    model.sort().map_err(|e| fail(e.to_string()))?;
    Ok(changed)
}

fn check(model: &Model, inputs: &ConcreteInputs) -> Result<(), PassError> {
    let names = inputs.shapes.keys().chain(inputs.values.keys());
    for name in names {
        let found = model
            .main()
            .inputs
            .iter()
            .find(|&&v| model.value(v).name == *name);
        let Some(&v) = found else {
            let message = format!("`{name}` is no input of the model");
            return Err(PassError::new(INFO.name, message));
        };
        let declared = model.value(v).shape();
        let given = inputs.shapes.get(name).map(|(_, dims)| dims);
        if let (Some(declared), Some(given)) = (declared, given)
            && declared.len() != given.len()
        {
            let message = format!(
                "input `{name}` has rank {} and was given the shape {given:?}",
                declared.len()
            );
            return Err(PassError::new(INFO.name, message));
        }
    }
    Ok(())
}

/// Gives the inputs their concrete types, makes unfed defaults constants, drops declared types of inner values.
fn fix_signature(model: &mut Model, inputs: &ConcreteInputs) -> bool {
    let mut changed = false;
    let mut defaults = HashSet::new();
    for v in model.main().inputs.clone() {
        let value = model.value_mut(v);
        let given = inputs.shapes.get(&value.name);
        if let (Some((dtype, dims)), Some(info)) = (given, &mut value.input_info) {
            let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
            let ty = Some(tensor_type(*dtype, Some(&dims)));
            changed |= info.r#type != ty;
            info.r#type = ty;
        } else if value.init.is_some() {
            value.input_info = None;
            defaults.insert(v);
        }
    }
    let main = model.graph_mut(Model::MAIN);
    main.inputs.retain(|v| !defaults.contains(v));
    changed |= !defaults.is_empty();
    for graph in model.graph_ids() {
        for v in std::mem::take(&mut model.graph_mut(graph).value_info) {
            model.value_mut(v).value_info = None;
            changed = true;
        }
        model.graph_mut(graph).header.value_info.clear();
    }
    changed
}

fn tensor_type(dtype: DataType, dims: Option<&[i64]>) -> TypeProto {
    let dim = |&d: &i64| Dimension {
        value: Some(dimension::Value::DimValue(d)),
        ..Dimension::default()
    };
    TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(dtype as i32),
            shape: dims.map(|d| TensorShapeProto {
                dim: d.iter().map(dim).collect(),
            }),
        })),
        ..TypeProto::default()
    }
}

/// Replaces each `If` whose condition is known by the branch taken; the ids of values stay, so the facts stay true.
fn take_branches(model: &mut Model, facts: &Facts) -> bool {
    let mut taken = Vec::new();
    for node in ifs(model) {
        let condition = model.input(node, 0).and_then(|v| facts.get(v));
        let branch = match condition.and_then(infer::condition_of) {
            Some(true) => "then_branch",
            Some(false) => "else_branch",
            None => continue,
        };
        if let Some(graph) = model.node(node).subgraph(branch) {
            taken.push((node, graph));
        }
    }
    for (old, new) in model.splice_subgraphs(&taken) {
        stand_in(model, old, new);
    }
    !taken.is_empty()
}

/// All `If` nodes, those of outer graphs before those inside them.
fn ifs(model: &Model) -> Vec<NodeId> {
    let mut graphs = vec![Model::MAIN];
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(&g) = graphs.get(at) {
        at += 1;
        for &n in &model.graph(g).nodes {
            let node = model.node(n);
            graphs.extend(node.subgraphs.iter().map(|(_, g)| *g));
            if node.is("If") {
                found.push(n);
            }
        }
    }
    found
}

/// Lets a branch's result stand where the output of the `If` stood.
fn stand_in(model: &mut Model, old: ValueId, new: ValueId) {
    let home = model.value(old).graph;
    if !model.replace_value(old, new) {
        model.add_node(home, NodeSpec::new("Identity"), &[Some(new)], &[Some(old)]);
    }
}

/// What is still needed once constants need no producer.
struct Live {
    nodes: HashSet<NodeId>,
    values: HashSet<ValueId>,
    /// Values that become initializers.
    constants: Vec<ValueId>,
}

fn live(model: &Model, facts: &Facts) -> Live {
    let mut keep = Live {
        nodes: HashSet::new(),
        values: HashSet::new(),
        constants: Vec::new(),
    };
    let mut open: Vec<ValueId> = model.main().outputs.clone();
    while let Some(v) = open.pop() {
        if !keep.values.insert(v) {
            continue;
        }
        let value = model.value(v);
        if value.is_constant() {
            continue;
        }
        if facts.value(v).is_some() && !value.sparse_init && !is_copy(model, v) {
            keep.constants.push(v);
            continue;
        }
        let Some((node, _)) = model.producer(v) else {
            continue;
        };
        if !keep.nodes.insert(node) {
            continue;
        }
        open.extend(model.inputs(node).into_iter().flatten());
        for (_, graph) in &model.node(node).subgraphs {
            open.extend(&model.graph(*graph).outputs);
        }
    }
    keep
}

/// Whether the value is an output that is the `Identity` of a constant already.
fn is_copy(model: &Model, v: ValueId) -> bool {
    model.value(v).is_output()
        && model.producer(v).is_some_and(|(n, _)| {
            model.node(n).is("Identity") && model.input_constant(n, 0).is_some()
        })
}

/// Removes the nodes and values that are not needed. Outputs of a node that stays are kept, used or not.
fn sweep(model: &mut Model, keep: &Live) -> bool {
    let graphs: Vec<GraphId> = model
        .graph_ids()
        .into_iter()
        .filter(|&g| match &model.graph(g).parent {
            Some((owner, _)) => keep.nodes.contains(owner),
            None => true,
        })
        .collect();
    let dead: HashSet<NodeId> = graphs
        .into_iter()
        .flat_map(|g| model.graph(g).nodes.iter().copied())
        .filter(|n| !keep.nodes.contains(n))
        .collect();
    model.remove_nodes(&dead);
    let unused: HashSet<ValueId> = model
        .all_values()
        .into_iter()
        .filter(|&v| {
            let value = model.value(v);
            !keep.values.contains(&v)
                && !value.is_input()
                && !value.sparse_init
                && model.producer(v).is_none()
        })
        .collect();
    model.remove_values(&unused);
    !dead.is_empty() || !unused.is_empty()
}

/// Makes the known values that are needed initializers. Where the value has a place in a signature or comes from a
/// node that stays, its users read an initializer of another name, and an output is an `Identity` of that.
fn store_constants(model: &mut Model, facts: &Facts, keep: &Live) -> bool {
    let mut changed = false;
    let mut names = None;
    for &v in &keep.constants {
        let Some(tensor) = facts.value(v).cloned() else {
            continue;
        };
        let value = model.value(v);
        let (input, output) = (value.is_input(), value.is_output());
        let produced = model.producer(v).is_some();
        if !(input || output || produced) {
            model.set_initializer(v, tensor);
            changed = true;
            continue;
        }
        let copied = output && !input && !produced;
        if !copied && model.consumers(v).is_empty() {
            continue;
        }
        changed = true;
        let (graph, wanted) = (value.graph, format!("{}_constant", value.name));
        let name = names.get_or_insert_with(|| model.names()).fresh(&wanted);
        let constant = model.add_initializer(graph, &name, tensor);
        model.replace_uses(v, constant);
        if copied {
            let spec = NodeSpec::new("Identity");
            model.add_node(graph, spec, &[Some(constant)], &[Some(v)]);
        }
    }
    changed
}

/// The outputs' types as they are now known; shapes that are not fully known are left out.
fn declare_outputs(model: &mut Model, facts: &Facts) -> bool {
    let mut changed = false;
    for graph in model.graph_ids() {
        for v in model.graph(graph).outputs.clone() {
            let fact = facts.get(v).cloned().unwrap_or_default();
            let value = model.value_mut(v);
            let dtype = fact.dtype.or_else(|| value.dtype());
            if let (Some(info), Some(dtype)) = (&mut value.output_info, dtype) {
                let shape = Fact::known_shape(&fact);
                let ty = Some(tensor_type(dtype, shape.as_deref()));
                changed |= info.r#type != ty;
                info.r#type = ty;
            }
        }
    }
    changed
}

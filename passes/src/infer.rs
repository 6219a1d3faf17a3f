//! Shapes, types and constants of every value, propagated through the model.
//!
//! With the shapes of all fed inputs given, nearly every value of a convolutional network or a transformer gets a
//! full shape, and the integer chains that exporters write to compute shapes become constants. Without them the
//! declared shapes are the start and symbolic dimensions are carried along by name. Contradictions are not reported:
//! where rules and declarations disagree, the rule wins, and what no rule knows is unknown.

mod conv;
mod elementwise;
mod fact;
mod layout;
mod misc;
mod norm;
mod pick;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, GraphId, Model, Node, NodeId, Tensor, ValueId};

pub use fact::{Dim, Fact};

use crate::eval;

/// Type and shape of each fed graph input, by name.
pub type Shapes = BTreeMap<String, (DataType, Vec<usize>)>;

/// How far the propagation goes.
#[derive(Debug, Clone)]
pub struct Options {
    /// Largest constant, in bytes, that is computed. Initializers of any size are known.
    pub max_bytes: usize,
    /// Values of graph inputs that are known, by name.
    pub values: BTreeMap<String, Tensor>,
    /// Graph inputs that have an initializer and no given shape hold that initializer.
    pub defaults_are_constant: bool,
    /// Fill in the shapes of inner values that no rule knows from what the file declares.
    pub use_value_info: bool,
    /// Leave constants unknown that another runtime may round differently (`Exp`, float sums, matrix products …).
    pub exact: bool,
    /// Walk the branches that a known condition does not take, too.
    pub all_branches: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 20,
            values: BTreeMap::new(),
            defaults_are_constant: false,
            use_value_info: true,
            exact: true,
            all_branches: false,
        }
    }
}

/// What is known of the values of a model.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    map: HashMap<ValueId, Fact>,
}

impl Facts {
    /// What is known of a value; `None` where it was never reached.
    pub fn get(&self, value: ValueId) -> Option<&Fact> {
        self.map.get(&value)
    }

    /// The full shape of a value, where it is known.
    pub fn dims(&self, value: ValueId) -> Option<Vec<i64>> {
        self.get(value)?.known_shape()
    }

    /// The constant behind a value.
    pub fn value(&self, value: ValueId) -> Option<&Tensor> {
        self.get(value)?.value.as_ref()
    }
}

/// Propagates shapes, types and constants through all graphs of a model, in program order (`Model::sort` keeps it).
///
/// `inputs` gives type and shape of the fed graph inputs and may be empty.
pub fn infer(model: &Model, inputs: &Shapes, options: &Options) -> Facts {
    let mut walk = Inference {
        model,
        inputs,
        options,
        opset: model.opset("").unwrap_or(1),
        facts: HashMap::new(),
    };
    walk.graph(Model::MAIN);
    Facts { map: walk.facts }
}

/// [`infer`] from what the model declares, in all branches, for a model whose nodes may stand in any order. Nothing is
/// known of a cyclic one.
pub fn infer_declared(model: &Model, use_value_info: bool) -> Facts {
    let options = Options {
        use_value_info,
        all_branches: true,
        ..Options::default()
    };
    // Ids are the same in a clone.
    let mut sorted = model.clone();
    match sorted.sort() {
        Ok(()) => infer(&sorted, &Shapes::new(), &options),
        Err(_) => Facts::default(),
    }
}

/// One operator and what is known of its inputs.
struct Op<'a> {
    node: &'a Node,
    opset: i64,
    inputs: Vec<Option<Fact>>,
}

impl Op<'_> {
    fn input(&self, slot: usize) -> Option<&Fact> {
        self.inputs.get(slot)?.as_ref()
    }

    fn shape(&self, slot: usize) -> Option<&[Dim]> {
        self.input(slot)?.shape.as_deref()
    }

    fn dtype(&self, slot: usize) -> Option<DataType> {
        self.input(slot)?.dtype
    }

    /// Constant integers of an input, or of the attribute that held them in older versions.
    fn ints_or(&self, slot: usize, attr: &str) -> Ints {
        match self.input(slot) {
            Some(f) => f.ints().map_or(Ints::Unknown, Ints::Known),
            None => self
                .node
                .attr_ints(attr)
                .map_or(Ints::Missing, |v| Ints::Known(v.to_vec())),
        }
    }
}

/// Integers that steer an operator.
enum Ints {
    /// Neither input nor attribute.
    Missing,
    /// Computed at run time.
    Unknown,
    /// Constant.
    Known(Vec<i64>),
}

struct Inference<'a> {
    model: &'a Model,
    inputs: &'a Shapes,
    options: &'a Options,
    opset: i64,
    facts: HashMap<ValueId, Fact>,
}

impl Inference<'_> {
    fn graph(&mut self, graph: GraphId) {
        let g = self.model.graph(graph);
        for &v in &g.inputs {
            let fact = self.input_fact(v, graph == Model::MAIN);
            self.facts.entry(v).or_insert(fact);
        }
        for &v in &g.initializers {
            let value = self.model.value(v);
            if let (None, Some(t)) = (&value.input_info, &value.init) {
                self.facts.insert(v, Fact::constant(t.clone()));
            }
        }
        for &n in &g.nodes {
            self.node(n);
        }
    }

    fn input_fact(&self, v: ValueId, main: bool) -> Fact {
        let value = self.model.value(v);
        let mut fact = Fact::declared(value);
        if !main {
            // The shapes of a loop's inputs may change from turn to turn, whatever the file says.
            fact.shape = None;
            return fact;
        }
        if let Some(t) = self.options.values.get(&value.name) {
            return Fact::constant(t.clone());
        }
        match (self.inputs.get(&value.name), &value.init) {
            (Some((dtype, dims)), _) => {
                fact.dtype = Some(*dtype);
                fact.shape = Some(dims.iter().map(|&d| Dim::Known(d as i64)).collect());
            }
            (None, Some(t)) if self.options.defaults_are_constant => {
                return Fact::constant(t.clone());
            }
            _ => {}
        }
        fact
    }

    fn node(&mut self, id: NodeId) {
        let node = self.model.node(id);
        let outputs = self.model.outputs(id);
        let mut found = match (node.is("If"), node.subgraphs.is_empty()) {
            (true, _) => self.branches(id, node),
            (false, false) => self.bodies(id, node),
            (false, true) => self.operator(id, node),
        };
        found.resize(outputs.len().max(found.len()), Fact::default());
        for (slot, fact) in outputs.into_iter().zip(found) {
            if let Some(v) = slot {
                let fact = self.with_declared(v, fact);
                self.facts.insert(v, fact);
            }
        }
    }

    fn operator(&self, id: NodeId, node: &Node) -> Vec<Fact> {
        let mut slots = self.model.inputs(id);
        while matches!(slots.last(), Some(None)) {
            slots.pop();
        }
        let inputs: Vec<Option<Fact>> = slots
            .iter()
            .map(|s| s.map(|v| self.facts.get(&v).cloned().unwrap_or_default()))
            .collect();
        if let Some(values) = self.evaluated(node, &inputs) {
            return values.into_iter().map(Fact::constant).collect();
        }
        if !node.domain().is_empty() {
            return Vec::new();
        }
        let op = Op {
            node,
            opset: self.opset,
            inputs,
        };
        rule(&op).unwrap_or_default()
    }

    /// The outputs of an operator whose inputs are all constants.
    fn evaluated(&self, node: &Node, inputs: &[Option<Fact>]) -> Option<Vec<Tensor>> {
        if self.options.exact && eval::rounds_freely(node.op_type()) {
            let float = |f: &Fact| f.dtype.is_none_or(DataType::is_float);
            if inputs.first().is_none_or(|f| f.as_ref().is_none_or(float)) {
                return None;
            }
        }
        let mut given = Vec::with_capacity(inputs.len());
        let mut bytes = 0usize;
        for slot in inputs {
            given.push(match slot {
                None => None,
                Some(f) => Some(f.value.as_ref()?),
            });
        }
        // Operators that pick a part read large tables cheaply; arithmetic does not.
        if !matches!(node.op_type(), "Gather" | "Slice" | "Shape" | "Size") {
            for t in given.iter().flatten() {
                bytes = bytes.saturating_add(t.byte_len().unwrap_or(0));
            }
        }
        if bytes > self.options.max_bytes.max(1) {
            return None;
        }
        eval::evaluate(node, self.opset, &given, self.options.max_bytes).ok()
    }

    /// An `If`: the branch taken where the condition is known, what both branches agree on otherwise.
    fn branches(&mut self, id: NodeId, node: &Node) -> Vec<Fact> {
        let condition = self.model.input(id, 0).and_then(|v| self.facts.get(&v));
        let taken = condition.and_then(condition_of);
        let mut results: Vec<Vec<Fact>> = Vec::new();
        for (attr, graph) in &node.subgraphs {
            let idle = taken.is_some_and(|t| (attr == "then_branch") != t);
            if self.options.all_branches || !idle {
                self.graph(*graph);
            }
            if idle {
                continue;
            }
            let outputs = &self.model.graph(*graph).outputs;
            results.push(
                outputs
                    .iter()
                    .map(|v| self.facts.get(v).cloned().unwrap_or_default())
                    .collect(),
            );
        }
        let mut results = results.into_iter();
        let first = results.next().unwrap_or_default();
        results.fold(first, |acc, other| {
            acc.iter().zip(&other).map(|(a, b)| a.merge(b)).collect()
        })
    }

    /// Loops and unknown control flow: the bodies are walked with nothing known of what they are given.
    fn bodies(&mut self, id: NodeId, node: &Node) -> Vec<Fact> {
        for (_, graph) in &node.subgraphs {
            self.graph(*graph);
        }
        if !node.is("Loop") {
            return Vec::new();
        }
        let types = self.model.inputs(id).into_iter().skip(2).map(|v| Fact {
            dtype: v.and_then(|v| self.facts.get(&v)?.dtype),
            ..Fact::default()
        });
        types.collect()
    }

    fn with_declared(&self, v: ValueId, mut fact: Fact) -> Fact {
        let value = self.model.value(v);
        if fact.dtype.is_none() {
            fact.dtype = value.dtype();
        }
        if fact.shape.is_none() && self.options.use_value_info {
            fact.shape = Fact::declared(value).shape;
        }
        fact
    }
}

/// The condition of an `If`, where it is known.
pub(crate) fn condition_of(fact: &Fact) -> Option<bool> {
    match fact.value.as_ref()?.to_i64().ok()?.as_slice() {
        [x] => Some(*x != 0),
        _ => None,
    }
}

/// The rule of the operator: one fact an output; `None` where nothing is known.
fn rule(op: &Op<'_>) -> Option<Vec<Fact>> {
    let name = op.node.op_type();
    elementwise::rule(op, name)
        .or_else(|| layout::rule(op, name))
        .or_else(|| conv::rule(op, name))
        .or_else(|| norm::rule(op, name))
        .or_else(|| pick::rule(op, name))
        .or_else(|| misc::rule(op, name))
}

/// The type that an attribute names by number.
fn type_attr(op: &Op<'_>, attr: &str) -> Option<DataType> {
    DataType::from_number(i32::try_from(op.node.attr_i(attr)?).ok()?)
}

//! Removes operators that hand their input on unchanged.
//!
//! **What it does.** Lets the users of the output use the input instead, and removes the node. Operators that are taken
//! for an identity: `Identity`; `Dropout` in inference; `Cast` to the type its input has; `Transpose` with the identity
//! permutation; `Reshape` and `Flatten` to the shape their input has; `Concat`, `Sum`, `Mean`, `Max` and `Min` of one
//! input. Types and shapes are the declared ones and those that follow from them.
//!
//! **Before → After.** `a = Identity(x); y = Relu(a)` → `y = Relu(x)`. Where the output is a graph output, the value
//! that takes its place takes its name too.
//!
//! **When it does not fire.** Between a graph input, an initializer or a value of an outer graph and a graph output, and
//! between two graph outputs: the node is what makes them two. `Dropout` whose mask is used, or that trains. `Cast`,
//! `Transpose`, `Reshape` and `Flatten` of which it is not certain that they change nothing.
//!
//! **Invariants kept.** Signature, every output bit for bit, names of what stays (but for a value that becomes a graph
//! output in the place of the removed one).
//!
//! **Opset notes.** `Dropout` before 7 says by `is_test` whether it trains, from 12 on by an input, and in between never.
//!
//! **References.** ONNX standard, the operators named; ir-py `passes/common/identity_elimination.py` (the rules for
//! graph inputs and outputs).

use std::collections::HashSet;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, NodeId, ValueId};

use crate::infer::{self, Facts};

/// Removes operators that hand their input on unchanged.
#[derive(Debug, Clone, Copy, Default)]
pub struct RemoveIdentity;

static INFO: PassInfo = PassInfo {
    name: "remove_identity",
    summary: "Removes Identity, inference Dropout, and casts, transposes and reshapes that change nothing",
    source: include_str!("remove_identity.rs"),
    exact: true,
};

/// What a node is, seen from here.
enum Verdict {
    /// An identity.
    Same,
    /// Not an identity, and no wonder.
    Other,
    /// An operator that often is an identity, and why this one is not.
    Not(&'static str),
}

impl Pass for RemoveIdentity {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let (mut nodes, mut values) = (HashSet::new(), HashSet::new());
        let known = Known::of(model);
        for node in model.all_nodes() {
            match verdict(model, &known, node) {
                Verdict::Other => continue,
                Verdict::Not(why) => {
                    cx.skip(model, node, why);
                    continue;
                }
                Verdict::Same => {}
            }
            let (Some(x), Some(y)) = (model.input(node, 0), model.output(node, 0)) else {
                continue;
            };
            let inner = !model.value(y).is_output();
            let ty = model.value(y).ty().cloned();
            if !model.replace_value(y, x) {
                cx.skip(model, node, "it joins two values of the signature");
                continue;
            }
            if let Some(ty) = ty.filter(|_| inner && model.value(x).ty().is_none())
                && model.value(x).init.is_none()
            {
                model.set_value_info(x, ty);
            }
            nodes.insert(node);
            values.extend(model.outputs(node).into_iter().flatten());
        }
        model.remove_nodes(&nodes);
        model.remove_values(&values);
        Ok((!nodes.is_empty()).into())
    }
}

/// What follows from the declared types of the graph inputs, as it was before anything was removed.
struct Known(Facts);

impl Known {
    /// Nothing is inferred for a model without an operator that asks for it.
    fn of(model: &Model) -> Self {
        let asks = |n: NodeId| {
            let op = model.node(n).op_type();
            matches!(op, "Cast" | "Transpose" | "Reshape" | "Flatten")
        };
        if model.all_nodes().into_iter().any(asks) {
            Self(infer::infer_declared(model, false))
        } else {
            Self(Facts::default())
        }
    }

    fn dtype(&self, model: &Model, v: ValueId) -> Option<DataType> {
        model
            .value(v)
            .dtype()
            .or_else(|| self.0.get(v).and_then(|f| f.dtype))
    }

    fn rank(&self, model: &Model, v: ValueId) -> Option<usize> {
        let inferred = || self.0.get(v).and_then(|f| f.shape.as_ref()).map(Vec::len);
        model.value(v).shape().map(|s| s.len()).or_else(inferred)
    }

    /// Whether both values certainly have the same shape.
    fn same_shape(&self, a: ValueId, b: ValueId) -> bool {
        let shape = |v| self.0.get(v).and_then(|f| f.shape.as_deref());
        match (shape(a), shape(b)) {
            (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.same(b)),
            _ => false,
        }
    }
}

fn verdict(model: &Model, known: &Known, node: NodeId) -> Verdict {
    let n = model.node(node);
    if !n.domain().is_empty() {
        return Verdict::Other;
    }
    let same = match n.op_type() {
        "Identity" => true,
        "Dropout" => return dropout(model, node),
        "Cast" => cast(model, known, node),
        "Transpose" => transpose(model, known, node),
        "Reshape" => keeps_shape(model, known, node) || reshape(model, node),
        "Flatten" => keeps_shape(model, known, node),
        "Concat" | "Sum" | "Mean" | "Max" | "Min" => n.input_count == 1,
        _ => false,
    };
    if same { Verdict::Same } else { Verdict::Other }
}

fn dropout(model: &Model, node: NodeId) -> Verdict {
    let n = model.node(node);
    let mask = model.output(node, 1);
    if mask.is_some_and(|m| !model.is_unused(m)) {
        return Verdict::Not("its mask is used");
    }
    if model.opset("").is_some_and(|v| v < 7) && n.attr_i("is_test") != Some(1) {
        return Verdict::Not("it drops values: is_test is not set");
    }
    let Some(training) = model.input(node, 2) else {
        return Verdict::Same;
    };
    match model.constant(training).and_then(|t| t.scalar_i64()) {
        Some(0) => Verdict::Same,
        Some(_) => Verdict::Not("it drops values: training_mode is set"),
        None => Verdict::Not("training_mode is not a constant"),
    }
}

fn cast(model: &Model, known: &Known, node: NodeId) -> bool {
    let from = model.input(node, 0).and_then(|x| known.dtype(model, x));
    let to = model.node(node).attr_i("to");
    from.is_some_and(|d| to == Some(d as i64))
}

fn transpose(model: &Model, known: &Known, node: NodeId) -> bool {
    match model.node(node).attr_ints("perm") {
        Some(perm) if !perm.is_empty() => perm.iter().zip(0..).all(|(&p, i)| p == i),
        _ => {
            let rank = model.input(node, 0).and_then(|x| known.rank(model, x));
            rank.is_some_and(|r| r < 2)
        }
    }
}

fn keeps_shape(model: &Model, known: &Known, node: NodeId) -> bool {
    match (model.input(node, 0), model.output(node, 0)) {
        (Some(x), Some(y)) => known.same_shape(x, y),
        _ => false,
    }
}

/// Every entry of the target stands for the dimension that is there: equal, a copy (0), or the one that is inferred.
fn reshape(model: &Model, node: NodeId) -> bool {
    let target = model.input_constant(node, 1).and_then(|t| t.to_i64().ok());
    let (Some(target), Some(x)) = (target, model.input(node, 0)) else {
        return false;
    };
    let Some(dims) = model.value(x).shape() else {
        return false;
    };
    let copies = model.node(node).attr_i("allowzero") != Some(1);
    let inferred = target.iter().filter(|&&t| t == -1).count();
    dims.len() == target.len()
        && inferred < 2
        && !dims.contains(&Some(0))
        && dims
            .iter()
            .zip(&target)
            .all(|(&d, &t)| t == -1 || (t == 0 && copies) || (t != 0 && d == Some(t)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing::{body, empty, input, ops, output, run, signature};
    use onnx_quant_ir::{DataType, NodeSpec, Tensor};

    fn one(spec: NodeSpec, extra: &[Tensor], dims: &[i64]) -> (Changed, Vec<String>) {
        let mut m = empty(17);
        let mut ids = vec![input(&mut m, "x", dims)];
        for (i, t) in extra.iter().enumerate() {
            ids.push(m.add_initializer(Model::MAIN, &format!("p{i}"), t.clone()));
        }
        let a = m.add_op(Model::MAIN, spec, &ids, "a");
        let y = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[a], "y");
        output(&mut m, y);
        let before = signature(&m);
        let (changed, skips) = run(&RemoveIdentity, &mut m);
        assert_eq!(signature(&m), before);
        assert_eq!(ops(&m).len(), if changed == Changed::Yes { 1 } else { 2 });
        (changed, skips)
    }

    fn shape(dims: &[i64]) -> Tensor {
        Tensor::from_i64(&[dims.len() as i64], dims)
    }

    #[test]
    fn removes_what_changes_nothing() {
        let to = |d: DataType| NodeSpec::new("Cast").attr_i("to", d as i64);
        let perm = |p: &[i64]| NodeSpec::new("Transpose").attr_ints("perm", p);
        let reshape = || NodeSpec::new("Reshape");
        let training = |b: u8| Tensor::from_raw(DataType::Bool, &[], vec![b]);
        let ratio = Tensor::from_f32(&[], &[0.5]);
        let cases = [
            (NodeSpec::new("Identity"), vec![], true),
            (NodeSpec::new("Dropout"), vec![], true),
            (
                NodeSpec::new("Dropout"),
                vec![ratio.clone(), training(0)],
                true,
            ),
            (NodeSpec::new("Dropout"), vec![ratio, training(1)], false),
            (to(DataType::Float), vec![], true),
            (to(DataType::Float16), vec![], false),
            (perm(&[0, 1]), vec![], true),
            (perm(&[1, 0]), vec![], false),
            (NodeSpec::new("Transpose"), vec![], false),
            (reshape(), vec![shape(&[2, 3])], true),
            (reshape(), vec![shape(&[0, -1])], true),
            (reshape(), vec![shape(&[3, 2])], false),
            (reshape(), vec![shape(&[-1])], false),
            (NodeSpec::new("Concat").attr_i("axis", 0), vec![], true),
            (NodeSpec::new("Max"), vec![], true),
        ];
        for (i, (spec, extra, fires)) in cases.into_iter().enumerate() {
            let (changed, _) = one(spec, &extra, &[2, 3]);
            assert_eq!(changed == Changed::Yes, fires, "case {i}");
        }
        assert_eq!(one(reshape(), &[shape(&[0, 3])], &[-1, 3]).0, Changed::Yes);
        assert_eq!(one(reshape(), &[shape(&[4, 3])], &[-1, 3]).0, Changed::No);
    }

    #[test]
    fn a_dropout_says_why_it_stays() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let (y, mask) = (
            m.add_value(Model::MAIN, "y"),
            m.add_value(Model::MAIN, "mask"),
        );
        m.add_node(
            Model::MAIN,
            NodeSpec::new("Dropout").name("drop"),
            &[Some(x)],
            &[Some(y), Some(mask)],
        );
        let z = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[y], "z");
        output(&mut m, z);
        output(&mut m, mask);
        let (changed, skips) = run(&RemoveIdentity, &mut m);
        assert_eq!(changed, Changed::No);
        assert_eq!(skips, ["drop: its mask is used"]);
    }

    #[test]
    fn a_graph_output_keeps_its_name() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let a = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[x], "a");
        let b = m.add_op(Model::MAIN, NodeSpec::new("Identity"), &[a], "b");
        let y = m.add_op(Model::MAIN, NodeSpec::new("Identity"), &[b], "y");
        m.add_op(Model::MAIN, NodeSpec::new("Neg"), &[y], "z");
        output(&mut m, y);
        assert_eq!(run(&RemoveIdentity, &mut m), (Changed::Yes, vec![]));
        assert_eq!(ops(&m), ["Relu", "Neg"]);
        assert_eq!(signature(&m)[0].1, ["y"]);
        let relu = m.producer(m.find_value("y").unwrap()).unwrap().0;
        assert_eq!(m.node(relu).op_type(), "Relu");
    }

    #[test]
    fn stays_between_values_of_the_signature() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let y = m.add_op(Model::MAIN, NodeSpec::new("Identity"), &[x], "y");
        output(&mut m, y);
        let a = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[x], "a");
        output(&mut m, a);
        let b = m.add_op(Model::MAIN, NodeSpec::new("Identity"), &[a], "b");
        output(&mut m, b);
        let (changed, skips) = run(&RemoveIdentity, &mut m);
        assert_eq!(changed, Changed::No);
        assert_eq!(skips.len(), 2);
    }

    #[test]
    fn works_inside_bodies_and_keeps_what_a_body_returns_from_outside() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let c = input(&mut m, "c", &[]);
        let a = m.add_op(Model::MAIN, NodeSpec::new("Identity"), &[x], "a");
        let y = m.add_value(Model::MAIN, "y");
        let branch = m.add_node(Model::MAIN, NodeSpec::new("If"), &[Some(c)], &[Some(y)]);
        output(&mut m, y);
        body(&mut m, branch, "then_branch", |m, g| {
            let i = m.add_op(g, NodeSpec::new("Identity"), &[a], "i");
            let r = m.add_op(g, NodeSpec::new("Neg"), &[i], "r");
            m.make_graph_output(r, None);
        });
        body(&mut m, branch, "else_branch", |m, g| {
            let i = m.add_op(g, NodeSpec::new("Identity"), &[a], "e");
            m.make_graph_output(i, None);
        });
        let (changed, skips) = run(&RemoveIdentity, &mut m);
        assert_eq!(changed, Changed::Yes);
        assert_eq!(ops(&m), ["If", "Neg", "Identity"]);
        assert_eq!(skips.len(), 1);
    }

    #[test]
    fn what_follows_from_the_inputs_is_known_without_declarations() {
        let source = |target: &str| {
            format!(
                "<ir_version: 8, opset_import: [\"\" : 17]>
main (float[N,3,4] x) => (float[A,B,C] y, float[A,B] z) <int64 zero = {{0}}, int64[2] rest = {{{target}}}, int64[1] axes = {{0}}>
{{
  a = Relu (x)
  b = Cast <to = 1> (a)
  s = Shape (b)
  n = Gather (s, zero)
  n1 = Unsqueeze (n, axes)
  t = Concat <axis = 0> (n1, rest)
  y = Reshape (b, t)
  m = ReduceMax <axes = [2], keepdims = 0> (a)
  f = Flatten (m)
  z = Neg (f)
}}"
            )
        };
        let mut m = onnx_quant_ir::text::parse(&source("3, 4")).unwrap();
        let shapes = ["Shape", "Gather", "Unsqueeze", "Concat"];
        assert_eq!(run(&RemoveIdentity, &mut m).0, Changed::Yes);
        assert_eq!(
            ops(&m),
            [&["Relu"], &shapes[..], &["ReduceMax", "Neg"]].concat()
        );
        assert_eq!(signature(&m)[0].1, ["y", "z"]);
        let mut m = onnx_quant_ir::text::parse(&source("4, 3")).unwrap();
        run(&RemoveIdentity, &mut m);
        assert!(ops(&m).contains(&"Reshape".to_owned()));
    }
}

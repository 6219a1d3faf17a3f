//! Turns `Constant` nodes into initializers.
//!
//! **What it does.** The tensor of a `Constant` node becomes an initializer of the same name in the same graph, bodies
//! of control-flow nodes included, so that later passes find every constant in one place. All forms of the attribute
//! are read: `value`, `value_float(s)` (FP32), `value_int(s)` (INT64), `value_string(s)` (STRING).
//!
//! **Before → After.** `c = Constant<value_float = 2.0>(); y = Mul(x, c)` → `y = Mul(x, c)` with the initializer `c`.
//!
//! **When it does not fire.** The constant is an output of its graph (runtimes differ on outputs that no node makes);
//! `sparse_value`; a tensor whose data does not fit its shape is an error.
//!
//! **Invariants kept.** Signature, names, every output bit for bit.
//!
//! **Opset notes.** `sparse_value` since 11, the short forms since 12. Before IR version 4 every initializer had to be
//! a graph input as well, so the IR version is raised to 4.
//!
//! **References.** ONNX standard, operator `Constant`; IR specification, section "Graphs".

use std::collections::HashSet;

use bytes::Bytes;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::proto::{AttributeProto, TensorProto};
use onnx_quant_ir::{DataType, Model, NodeId, Tensor};

/// Turns `Constant` nodes into initializers.
#[derive(Debug, Clone, Copy, Default)]
pub struct LiftConstants;

static INFO: PassInfo = PassInfo {
    name: "lift_constants",
    summary: "Turns Constant nodes into initializers",
    source: include_str!("lift_constants.rs"),
    exact: true,
};

impl Pass for LiftConstants {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut lifted = HashSet::new();
        for node in model.all_nodes() {
            if !model.node(node).is("Constant") {
                continue;
            }
            let Some(out) = model.output(node, 0) else {
                continue;
            };
            if model.value(out).is_output() {
                cx.skip(model, node, "its value is an output of the graph");
                continue;
            }
            match tensor(model, node)? {
                Some(t) => {
                    model.set_initializer(out, t);
                    lifted.insert(node);
                }
                None => cx.skip(model, node, "its value is a sparse tensor"),
            }
        }
        model.remove_nodes(&lifted);
        if !lifted.is_empty() && model.header.ir_version() < 4 {
            model.header.ir_version = Some(4);
        }
        Ok((!lifted.is_empty()).into())
    }
}

/// The tensor of a `Constant` node; `None` where it is sparse.
fn tensor(model: &Model, node: NodeId) -> Result<Option<Tensor>, PassError> {
    let fail = |what: String| {
        let label = model.node_key(node);
        PassError::new(INFO.name, format!("Constant `{label}`: {what}"))
    };
    let values = model.node(node).proto.attribute.iter();
    let mut values = values.filter(|a| a.name() == "sparse_value" || a.name().starts_with("value"));
    let (Some(a), None) = (values.next(), values.next()) else {
        return Err(fail("it needs exactly one value attribute".to_owned()));
    };
    if a.name() == "sparse_value" {
        return Ok(None);
    }
    let tensor = from_attribute(a)
        .ok_or_else(|| fail(format!("attribute `{}` holds no value", a.name())))?;
    tensor.validate().map_err(|e| fail(e.to_string()))?;
    Ok(Some(tensor))
}

fn from_attribute(a: &AttributeProto) -> Option<Tensor> {
    Some(match a.name() {
        "value" => Tensor::from_proto(TensorProto {
            name: None,
            ..a.t.clone()?
        }),
        "value_float" => Tensor::from_f32(&[], &[a.f?]),
        "value_floats" => Tensor::from_f32(&[a.floats.len() as i64], &a.floats),
        "value_int" => Tensor::from_i64(&[], &[a.i?]),
        "value_ints" => Tensor::from_i64(&[a.ints.len() as i64], &a.ints),
        "value_string" => strings(&[], vec![a.s.clone()?]),
        "value_strings" => strings(&[a.strings.len() as i64], a.strings.clone()),
        _ => return None,
    })
}

fn strings(dims: &[i64], data: Vec<Bytes>) -> Tensor {
    Tensor::from_proto(TensorProto {
        dims: dims.to_vec(),
        data_type: Some(DataType::String as i32),
        string_data: data,
        ..TensorProto::default()
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::testing::{body, empty, input, ops, output, run, try_run};
    use onnx_quant_ir::node::{attr_f, attr_i, attr_ints, attr_s, attr_tensor};
    use onnx_quant_ir::{NodeSpec, ValueId};

    fn constant(m: &mut Model, attr: AttributeProto, name: &str) -> ValueId {
        m.add_op(Model::MAIN, NodeSpec::new("Constant").attr(attr), &[], name)
    }

    #[test]
    fn lifts_every_form() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let floats = AttributeProto {
            floats: vec![1.0, 2.0],
            ..attr_f("value_floats", 0.0)
        };
        let texts = AttributeProto {
            strings: vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")],
            ..attr_s("value_strings", "")
        };
        let t = Tensor::from_f32(&[2], &[3.0, 4.0]).proto().clone();
        let attrs = vec![
            attr_f("value_float", 1.5),
            floats,
            attr_i("value_int", 7),
            attr_ints("value_ints", &[1, 2, 3]),
            attr_s("value_string", "a"),
            texts,
            attr_tensor("value", t),
        ];
        let mut ids = vec![x];
        for (i, a) in attrs.into_iter().enumerate() {
            ids.push(constant(&mut m, a, &format!("c{i}")));
        }
        let y = m.add_op(Model::MAIN, NodeSpec::new("All").domain("d"), &ids, "y");
        output(&mut m, y);
        assert_eq!(run(&LiftConstants, &mut m), (Changed::Yes, vec![]));
        assert_eq!(ops(&m), ["All"]);
        let c = |i: usize| m.constant(m.find_value(&format!("c{i}")).unwrap()).unwrap();
        assert_eq!(c(0).to_f32().unwrap(), [1.5]);
        assert_eq!(c(1).to_f32().unwrap(), [1.0, 2.0]);
        assert_eq!(c(2).scalar_i64(), Some(7));
        assert_eq!(c(3).to_i64().unwrap(), [1, 2, 3]);
        assert_eq!(c(4).proto().string_data[0], "a");
        assert_eq!(c(5).dims(), [2]);
        assert_eq!(c(6).to_f32().unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn lifts_inside_a_body_and_keeps_what_the_graph_returns() {
        let mut m = empty(17);
        let x = input(&mut m, "x", &[2]);
        let c = constant(&mut m, attr_f("value_float", 1.0), "c");
        output(&mut m, c);
        let y = m.add_value(Model::MAIN, "y");
        let branch = m.add_node(Model::MAIN, NodeSpec::new("If"), &[Some(x)], &[Some(y)]);
        output(&mut m, y);
        body(&mut m, branch, "then_branch", |m, g| {
            let spec = NodeSpec::new("Constant").attr(attr_f("value_float", 2.0));
            let k = m.add_op(g, spec, &[], "k");
            let r = m.add_op(g, NodeSpec::new("Mul"), &[x, k], "r");
            m.make_graph_output(r, None);
        });
        let (changed, skips) = run(&LiftConstants, &mut m);
        assert_eq!(changed, Changed::Yes);
        assert_eq!(ops(&m), ["Constant", "If", "Mul"]);
        assert_eq!(skips, ["c: its value is an output of the graph"]);
    }

    #[test]
    fn refuses_sparse_and_broken_values() {
        let mut m = empty(17);
        let sparse = AttributeProto {
            name: Some("sparse_value".to_owned()),
            ..AttributeProto::default()
        };
        let c = constant(&mut m, sparse, "c");
        let y = m.add_op(Model::MAIN, NodeSpec::new("Relu"), &[c], "y");
        output(&mut m, y);
        let (changed, skips) = run(&LiftConstants, &mut m);
        assert_eq!(changed, Changed::No);
        assert_eq!(skips, ["c: its value is a sparse tensor"]);

        let bad = Tensor::from_raw(DataType::Float, &[3], vec![0u8; 4]);
        let bad = attr_tensor("value", bad.proto().clone());
        let d = constant(&mut m, bad, "d");
        m.set_input(m.producer(y).unwrap().0, 0, Some(d));
        let e = try_run(&LiftConstants, &[], &mut m, &mut PassContext::default()).unwrap_err();
        assert!(e.to_string().contains("Constant `d`"), "{e}");
    }
}

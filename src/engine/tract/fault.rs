//! Says which node tract cannot run, why, and what the user can do: before tract is asked where that is known, and
//! from tract's own messages where it is not.

use std::collections::BTreeMap;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::engine::EngineError;
use onnx_quant_ir::{DataType, Model, NodeId};
use onnx_quant_passes::lower_qdq::EXEC_DOMAIN;

use super::lower::NodeOrigin;
use super::{NAME, convert};

const ADVICE: &str = "what you can do: simplify the model with its exporter or another tool so that the operator is \
                      gone (constant folding, fixed input shapes), cut the part of the model that needs it off, or \
                      quantize without calibration data (weights only), which runs nothing";

fn unsupported(op: &str, node: &str, reason: impl Into<String>) -> EngineError {
    EngineError::Unsupported {
        engine: NAME,
        op: op.to_owned(),
        node: node.to_owned(),
        reason: reason.into(),
        advice: ADVICE.to_owned(),
    }
}

/// Refuses the operators that tract does not have, and those that it is known to compute wrongly.
pub(super) fn refuse(m: &Model, known: &dyn Fn(&str) -> bool) -> Result<(), EngineError> {
    for node in m.all_nodes() {
        let n = m.node(node);
        let foreign = foreign_type(m, node).map(DataTypeExt::short_name);
        let reason = match n.domain() {
            _ if !known(n.op_type()) => Some("it does not implement this operator".to_owned()),
            _ if foreign.is_some() => foreign.map(|t| format!("it has no values of type {t}")),
            "" => wrong_in_tract(m, node).map(str::to_owned),
            "com.microsoft" | EXEC_DOMAIN => None,
            "ai.onnx.ml" => None,
            other => Some(format!("the domain `{other}` is not known")),
        };
        if let Some(reason) = reason {
            return Err(unsupported(n.op_type(), &m.node_key(node), reason));
        }
    }
    Ok(())
}

/// The type of an input or output of the node that tract does not have.
fn foreign_type(m: &Model, node: NodeId) -> Option<DataType> {
    let values = m.inputs(node).into_iter().chain(m.outputs(node));
    values
        .flatten()
        .filter_map(|v| m.value(v).dtype())
        .find(|&t| t != DataType::String && convert::datum_type(t).is_none())
}

/// Why tract computes this node wrongly without saying so, where it does.
fn wrong_in_tract(m: &Model, node: NodeId) -> Option<&'static str> {
    let n = m.node(node);
    match n.op_type() {
        "GRU" | "LSTM" | "RNN" if n.attr_s("direction") == Some("reverse") => {
            Some("it runs a reversed sequence with its own lengths wrongly")
        }
        "Celu" => {
            let dtype = m.input(node, 0).and_then(|v| m.value(v).dtype());
            (dtype == Some(DataType::Float16)).then_some("it computes Celu of FP16 wrongly")
        }
        "BitShift" => {
            let bits = m.input(node, 0).and_then(|v| m.value(v).dtype());
            let bits = bits.and_then(DataTypeExt::bits)?;
            let amounts = m.input_constant(node, 1).and_then(|t| t.to_i64().ok());
            let fits = |a: &i64| (0..bits as i64).contains(a);
            let safe = amounts.is_some_and(|a| a.iter().all(fits));
            (!safe).then_some("it shifts by a negative or too large amount wrongly")
        }
        "Swish" if n.attr_f("alpha").is_some_and(|a| a != 1.0) => {
            Some("it ignores the attribute `alpha`")
        }
        "SpaceToDepth" if n.attr_s("mode") == Some("CRD") => {
            Some("it ignores the attribute `mode`")
        }
        "Attention" => {
            let window = |name: &str| n.attr_i(name).is_some_and(|w| w >= 0);
            let causal_with_past = n.attr_i("is_causal") == Some(1) && m.input(node, 4).is_some();
            (causal_with_past || window("left_window_size") || window("right_window_size"))
                .then_some("it ignores windows, and computes causal attention with a past wrongly")
        }
        _ => None,
    }
}

/// Finds the node that tract's messages (from the outside in) speak of.
pub(super) fn explain(names: &BTreeMap<String, NodeOrigin>, messages: &[String]) -> EngineError {
    let reason = reason(messages);
    let by_message = messages
        .iter()
        .flat_map(|text| candidates(text))
        .find_map(|name| origin(names, name));
    match by_message {
        Some(node) => unsupported(&node.op, &node.key, reason),
        None => EngineError::Prepare {
            engine: NAME,
            reason,
        },
    }
}

/// The outermost and the innermost message; what lies between repeats them.
fn reason(messages: &[String]) -> String {
    let line = |text: &String| text.lines().next().unwrap_or_default().trim().to_owned();
    match messages {
        [] => "no reason was given".to_owned(),
        [only] => line(only),
        [first, .., last] => format!("{}: {}", line(first), line(last)),
    }
}

/// The words of a message that may be the name of a node: what stands in quotes, and what follows `Building node`.
fn candidates(text: &str) -> impl Iterator<Item = &str> {
    let quoted = text.split('"').skip(1).step_by(2);
    let ticked = text.split('`').skip(1).step_by(2);
    let built = text
        .strip_prefix("Building node ")
        .and_then(|rest| rest.rsplit_once(" ("))
        .map(|(name, _)| name);
    built.into_iter().chain(quoted).chain(ticked)
}

/// The node of this name, or the one that a part `NAME.part` belongs to.
fn origin<'a>(names: &'a BTreeMap<String, NodeOrigin>, name: &str) -> Option<&'a NodeOrigin> {
    let mut name = name;
    loop {
        if let Some(found) = names.get(name) {
            return Some(found);
        }
        name = name.rsplit_once('.')?.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> BTreeMap<String, NodeOrigin> {
        let node = |name: &str, op: &str| {
            let origin = NodeOrigin {
                op: op.to_owned(),
                key: format!("key of {name}"),
            };
            (name.to_owned(), origin)
        };
        BTreeMap::from([node("a/Conv", "Conv"), node("b.c", "Loop")])
    }

    #[test]
    fn nodes_are_found_in_messages() {
        let explain = |messages: &[&str]| {
            let messages: Vec<String> = messages.iter().map(|s| (*s).to_owned()).collect();
            explain(&names(), &messages)
        };
        let found = explain(&["Failed analyse for node #7 \"b.c\" Loop", "middle", "cause"]);
        let EngineError::Unsupported {
            op, node, reason, ..
        } = found
        else {
            panic!("{found:?}");
        };
        assert_eq!((op.as_str(), node.as_str()), ("Loop", "key of b.c"));
        assert_eq!(reason, "Failed analyse for node #7 \"b.c\" Loop: cause");
        let part = explain(&["wiring", "at node #3 \"a/Conv.bias.x\" Add"]);
        assert!(matches!(part, EngineError::Unsupported { op, .. } if op == "Conv"));
        let built = explain(&["Building node a/Conv (Conv)", "no such attribute"]);
        assert!(matches!(built, EngineError::Unsupported { op, .. } if op == "Conv"));
        assert!(matches!(
            explain(&["who \"knows\""]),
            EngineError::Prepare { .. }
        ));
        assert!(matches!(explain(&[]), EngineError::Prepare { .. }));
    }
}

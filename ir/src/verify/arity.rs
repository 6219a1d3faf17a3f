//! Rule S08: the numbers of inputs and outputs.

use super::Findings;
use crate::model::{Model, NodeId};

/// The least and the most.
type Range = (usize, usize);

/// Operators with their numbers of inputs and outputs: least and most.
const ARITY: &[(&str, Range, Range)] = &[
    ("Add", (2, 2), (1, 1)),
    ("AveragePool", (1, 1), (1, 1)),
    ("BatchNormalization", (5, 5), (1, 5)),
    ("Cast", (1, 1), (1, 1)),
    ("Clip", (1, 3), (1, 1)),
    ("Concat", (1, usize::MAX), (1, 1)),
    ("Constant", (0, 0), (1, 1)),
    ("Conv", (2, 3), (1, 1)),
    ("ConvTranspose", (2, 3), (1, 1)),
    ("DequantizeLinear", (2, 3), (1, 1)),
    ("Div", (2, 2), (1, 1)),
    ("Flatten", (1, 1), (1, 1)),
    ("Gather", (2, 2), (1, 1)),
    ("Gemm", (2, 3), (1, 1)),
    ("GlobalAveragePool", (1, 1), (1, 1)),
    ("Identity", (1, 1), (1, 1)),
    ("If", (1, 1), (1, usize::MAX)),
    ("MatMul", (2, 2), (1, 1)),
    ("MaxPool", (1, 1), (1, 2)),
    ("Mul", (2, 2), (1, 1)),
    ("QuantizeLinear", (2, 3), (1, 1)),
    ("Relu", (1, 1), (1, 1)),
    ("Reshape", (1, 2), (1, 1)),
    ("Sigmoid", (1, 1), (1, 1)),
    ("Softmax", (1, 1), (1, 1)),
    ("Squeeze", (1, 2), (1, 1)),
    ("Sub", (2, 2), (1, 1)),
    ("Transpose", (1, 1), (1, 1)),
    ("Unsqueeze", (1, 2), (1, 1)),
];

pub(super) fn check(model: &Model, n: NodeId, found: &mut Findings) {
    let node = model.node(n);
    let Some((_, inputs, outputs)) = ARITY.iter().find(|a| node.is(a.0)) else {
        return;
    };
    let slots = [
        ("inputs", model.inputs(n), inputs),
        ("outputs", model.outputs(n), outputs),
    ];
    for (what, slots, &(least, most)) in slots {
        let last = slots.iter().rposition(Option::is_some).map_or(0, |i| i + 1);
        if last > most || slots.len() < least || slots.iter().take(least).any(Option::is_none) {
            let most = if most == usize::MAX {
                "any".to_owned()
            } else {
                most.to_string()
            };
            let message = format!(
                "{} has {last} {what}, but takes {least} to {most}",
                node.op_type()
            );
            found.add("S08", model.node_key(n), message);
        }
    }
}

//! The graph of a model with the form in which each operator runs.

use std::collections::BTreeMap;

use onnx_quant_ir::{Model, ValueId};
use onnx_quant_passes::plan::{NodePlan, Precision, PrecisionPlan};

use super::figures::{Picture, Vertex};
use super::words::{FLOAT, FOLLOWS, label};

/// Inputs, operators and outputs of the main graph in program order. What computes from constants alone is left out, and
/// so are the bodies of control flow, which is told.
pub(crate) fn picture(model: &Model, plan: &PrecisionPlan) -> Picture {
    let mut made = Picture::default();
    // By value: the vertex that makes it.
    let mut makers: BTreeMap<ValueId, usize> = BTreeMap::new();
    for &input in &model.main().inputs {
        if model.is_constant(input) {
            continue;
        }
        makers.insert(input, made.nodes.len());
        made.nodes.push(port(model, input, "input"));
    }
    let nodes: BTreeMap<&str, &NodePlan> = plan.nodes.iter().map(|n| (n.key.as_str(), n)).collect();
    for &node in &model.main().nodes {
        let mut read: Vec<ValueId> = model.inputs(node).into_iter().flatten().collect();
        read.extend(model.captured_by(node));
        let sources: Vec<usize> = read.iter().filter_map(|v| makers.get(v)).copied().collect();
        let random = read.is_empty() && !model.node(node).is("Constant");
        if sources.is_empty() && !random {
            continue;
        }
        let to = made.nodes.len();
        made.edges
            .extend(sources.into_iter().map(|from| (from, to)));
        for value in model.outputs(node).into_iter().flatten() {
            makers.insert(value, to);
        }
        let key = model.node_key(node);
        let planned = nodes.get(key.as_str());
        made.nodes.push(Vertex {
            op: model.node(node).op_type().to_owned(),
            format: planned.map_or(FLOAT.to_owned(), |p| format(p)),
            reason: planned.map_or(String::new(), |p| p.reason.clone()),
            name: key,
        });
    }
    for &output in &model.main().outputs {
        if let Some(&from) = makers.get(&output) {
            made.edges.push((from, made.nodes.len()));
        }
        made.nodes.push(port(model, output, "output"));
    }
    made.edges.sort_unstable();
    made.edges.dedup();
    let inner = model.all_nodes().len() - model.main().nodes.len();
    if inner > 0 {
        made.left_out.push(format!(
            "{inner} operators in the bodies of If, Loop and Scan"
        ));
    }
    made
}

fn port(model: &Model, value: ValueId, op: &str) -> Vertex {
    Vertex {
        name: model.value_key(value),
        op: op.to_owned(),
        ..Vertex::default()
    }
}

/// Formats of a node's weights and of the activations that it reads.
fn format(planned: &NodePlan) -> String {
    let weights = planned.weights.map(|f| f.to_string());
    let activations = planned.activations.map(|f| f.base.to_string());
    match planned.precision {
        Precision::Float => FLOAT.to_owned(),
        Precision::Follows => FOLLOWS.to_owned(),
        Precision::WeightOnly => label(weights.as_deref(), None),
        Precision::Integer => label(weights.as_deref(), activations.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use onnx_quant_ir::text;

    use super::*;

    #[test]
    fn edges_join_what_is_computed_and_constants_are_left_out() {
        let source = "main (float[4] x) => (float[4] y) < float[4] W = random(1) >
{
  [neg] w = Neg (W)
  [add] a = Add (x, w)
  [relu] b = Relu (a)
  [mul] y = Mul (a, b)
}
";
        let model = text::parse(source).map_err(|e| e.to_string());
        let made = model.map(|m| picture(&m, &PrecisionPlan::default()));
        let made = made.unwrap_or_default();
        let names: Vec<String> = made
            .nodes
            .iter()
            .map(|n| format!("{} {}", n.op, n.name))
            .collect();
        assert_eq!(
            names,
            ["input x", "Add add", "Relu relu", "Mul mul", "output y"]
        );
        assert_eq!(made.edges, [(0, 1), (1, 2), (1, 3), (2, 3), (3, 4)]);
    }
}

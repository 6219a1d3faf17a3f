//! Which values are observed while the model runs on calibration data, so that statistics are gathered once and serve
//! all choices that come later.
//!
//! [`points`] are those that a quantizer stands on for any target, scheme and sign of the codes; [`all_points`] are also
//! those that stay in float by the rules and could be forced with `--include`: the inputs and the results of every
//! operator that some runtime quantizes. Values that are no floats are left out.
//!
//! The inputs of linear operators also keep the extremes of each channel of the axis that is summed over: what scales
//! weights against activations needs them.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::{DataType, Model, NodeId, ValueId};
use onnx_quant_numerics::format::{Base, Format, Granularity, Scheme};
use rayon::prelude::*;

use crate::assign_precision::wanted_statistics;
use crate::infer::{self, Facts};
use crate::ops;
use crate::settings::QuantSettings;
use crate::target::TARGETS;

/// A value that is observed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Point {
    /// Its key (graph path and name).
    pub key: String,
    /// Axes whose channels keep their own extremes; from the end where negative.
    pub axes: Vec<i64>,
}

impl Point {
    /// A value without channels.
    pub fn plain(key: impl Into<String>) -> Self {
        Point {
            key: key.into(),
            axes: Vec::new(),
        }
    }
}

/// The values that a quantizer stands on by the rules of any target, and those that `settings` ask for, in the order of
/// their keys.
///
/// # Errors
/// A selection that names nothing.
pub fn points(model: &Model, settings: &QuantSettings) -> Result<Vec<Point>, String> {
    let mut keys: BTreeSet<String> = wanted_statistics(model, settings)?.into_iter().collect();
    let mut combinations = Vec::new();
    for target in TARGETS {
        for scheme in [Scheme::Asymmetric, Scheme::Symmetric] {
            for base in [Base::UINT8, Base::INT8] {
                combinations.push((target.name, scheme, base));
            }
        }
    }
    let found: Vec<Vec<String>> = combinations
        .into_par_iter()
        .map(|(target, activation_scheme, base)| {
            let activations = Format {
                base,
                granularity: Some(Granularity::Tensor),
            };
            let settings = QuantSettings {
                target,
                activation_scheme,
                activations: Some(activations),
                ..QuantSettings::default()
            };
            // A combination that a target does not offer places nothing.
            wanted_statistics(model, &settings).unwrap_or_default()
        })
        .collect();
    keys.extend(found.into_iter().flatten());
    Ok(with_axes(model, keys))
}

/// Every value that some runtime can be made to quantize, in the order of their keys.
pub fn all_points(model: &Model) -> Vec<Point> {
    let facts = infer::infer_declared(model, true);
    let mut keys = BTreeSet::new();
    for node in model.all_nodes() {
        if !is_quantizable(model, node) {
            continue;
        }
        let (inputs, outputs) = (model.inputs(node), model.outputs(node));
        let values = inputs.iter().chain(&outputs).flatten().copied();
        let observable = values.filter(|&v| is_observable(model, &facts, v));
        keys.extend(observable.map(|v| model.value_key(v)));
    }
    with_axes(model, keys)
}

fn with_axes(model: &Model, keys: BTreeSet<String>) -> Vec<Point> {
    let mut axes: BTreeMap<String, BTreeSet<i64>> = BTreeMap::new();
    for node in model.all_nodes() {
        for (slot, axis) in summed_axes(model, node) {
            if let Some(value) = model.input(node, slot) {
                axes.entry(model.value_key(value)).or_default().insert(axis);
            }
        }
    }
    let mut point = |key: String| Point {
        axes: axes.remove(&key).unwrap_or_default().into_iter().collect(),
        key,
    };
    keys.into_iter().map(&mut point).collect()
}

/// A value that the engine hands out.
#[derive(Debug, Clone, PartialEq)]
pub struct Watched {
    /// Its place among the points.
    pub point: usize,
    /// Another point, whose statistics follow.
    pub clamped: Option<Clamped>,
}

/// A value that is `min(max(x, 0), upper)` of another one: a Relu, or a Clip from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Clamped {
    /// Its place among the points.
    pub point: usize,
    /// The upper bound; infinite for a Relu.
    pub upper: f32,
}

/// What must be handed out so that the statistics of all points are known: values behind a Relu or a Clip follow from
/// the value before it, if that is a point too.
pub fn plan(model: &Model, points: &[Point]) -> Vec<Watched> {
    let ids: BTreeMap<String, ValueId> = (model.all_values().into_iter())
        .map(|v| (model.value_key(v), v))
        .collect();
    let places: BTreeMap<&str, usize> = (points.iter().enumerate())
        .map(|(i, p)| (p.key.as_str(), i))
        .collect();
    let clamped = |point: &Point| {
        let (node, _) = model.producer(*ids.get(point.key.as_str())?)?;
        let before = model.input(node, 0)?;
        if model.value(before).graph != model.node(node).graph {
            // Not each run of the one is a run of the other.
            return None;
        }
        let (low, upper) = ops::clamp_bounds(model, node)?;
        let legacy = ["min", "max"]
            .iter()
            .any(|a| model.node(node).attr(a).is_some());
        let source = places.get(model.value_key(before).as_str())?;
        (low == 0.0 && upper >= 0.0 && !legacy).then_some((*source, upper))
    };
    let sources: Vec<Option<(usize, f32)>> = points.iter().map(clamped).collect();
    let mut plan: Vec<Watched> = Vec::new();
    let mut followers: BTreeMap<usize, Clamped> = BTreeMap::new();
    let mut follows = vec![false; points.len()];
    for (point, source) in sources.iter().enumerate() {
        let Some((source, upper)) = *source else {
            continue;
        };
        if sources[source].is_none() && !followers.contains_key(&source) {
            followers.insert(source, Clamped { point, upper });
            follows[point] = true;
        }
    }
    for point in (0..points.len()).filter(|&p| !follows[p]) {
        let clamped = followers.remove(&point);
        plan.push(Watched { point, clamped });
    }
    plan
}

/// Whether some runtime quantizes the operator, or moves quantized values through it.
fn is_quantizable(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    if !n.domain().is_empty() {
        return n.domain() == "com.microsoft" && matches!(n.op_type(), "Gelu" | "FastGelu");
    }
    ops::is_preserving(model, node)
        || ops::clamp_bounds(model, node).is_some()
        || matches!(
            n.op_type(),
            "Conv"
                | "Add"
                | "Mul"
                | "Concat"
                | "AveragePool"
                | "GlobalAveragePool"
                | "LeakyRelu"
                | "Sigmoid"
                | "Softmax"
                | "ConvTranspose"
                | "Gemm"
                | "MatMul"
                | "Sub"
                | "Div"
                | "Min"
                | "Max"
                | "Where"
                | "Pad"
                | "MaxPool"
                | "Resize"
                | "ReduceMean"
                | "ReduceMax"
                | "ReduceMin"
                | "BatchNormalization"
                | "InstanceNormalization"
                | "LayerNormalization"
                | "PRelu"
                | "HardSigmoid"
                | "HardSwish"
                | "Elu"
                | "Gelu"
                | "Tanh"
                | "LSTM"
                | "GRU"
                | "RNN"
        )
}

fn is_observable(model: &Model, facts: &Facts, value: ValueId) -> bool {
    let v = model.value(value);
    if v.init.is_some() && !v.is_input() {
        return false;
    }
    if facts.value(value).is_some() {
        return false;
    }
    let dtype = facts.get(value).and_then(|f| f.dtype).or_else(|| v.dtype());
    let float = [
        DataType::Float,
        DataType::Float16,
        DataType::Bfloat16,
        DataType::Double,
    ];
    dtype.is_none_or(|d| float.contains(&d))
}

/// For each input of a linear operator its slot and the axis that is summed over.
fn summed_axes(model: &Model, node: NodeId) -> Vec<(usize, i64)> {
    let n = model.node(node);
    if !n.domain().is_empty() {
        return Vec::new();
    }
    let transposed = |name: &str| n.attr_i(name).unwrap_or(0) != 0;
    match n.op_type() {
        "Conv" | "ConvTranspose" => vec![(0, 1)],
        "Gemm" => vec![
            (0, if transposed("transA") { 0 } else { 1 }),
            (1, if transposed("transB") { 1 } else { 0 }),
        ],
        "MatMul" => vec![(0, -1), (1, -2)],
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn model() -> Model {
        let text = r#"<ir_version: 8, opset_import: ["" : 21]>
            test (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}> {
                a = MatMul(x, w)
                b = Relu(a)
                s = Shape(b)
                c = Erf(b)
                d = Reshape(c, s)
                e = Exp(d)
                y = Sqrt(e)
            }"#;
        onnx_quant_ir::text::parse(text).unwrap()
    }

    #[test]
    fn floats_around_operators_that_some_runtime_quantizes() {
        let found = all_points(&model()).into_iter().map(|p| (p.key, p.axes));
        let expected = [
            ("a", vec![]),
            ("b", vec![]),
            ("c", vec![]),
            ("d", vec![]),
            ("x", vec![-1]),
        ];
        let expected = expected.map(|(k, axes)| (k.to_owned(), axes));
        assert_eq!(found.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn values_behind_a_clamp_follow_from_those_before_it() {
        let text = r#"<ir_version: 8, opset_import: ["" : 21]>
            test (float[N, 4] x) => (float[N, 4] y) <float low = {0}, float high = {6}, float one = {1}> {
                a = Erf(x)
                b = Relu(a)
                c = Clip(a, low, high)
                d = Clip(b, low, high)
                e = Clip(d, one, high)
                f = Clip(e, low, high)
                y = Relu(f)
            }"#;
        let model = onnx_quant_ir::text::parse(text).unwrap();
        let points: Vec<Point> = ["a", "b", "c", "d", "e", "f", "y"].map(Point::plain).into();
        let found = plan(&model, &points).into_iter();
        let follows = |c: Clamped| (points[c.point].key.as_str(), c.upper);
        let found: Vec<_> = found
            .map(|w| (points[w.point].key.as_str(), w.clamped.map(follows)))
            .collect();
        // One follows each value that is handed out; `e` is clamped from 1.
        let expected = [
            ("a", Some(("b", f32::INFINITY))),
            ("c", None),
            ("d", None),
            ("e", Some(("f", 6.0))),
            ("y", None),
        ];
        assert_eq!(found, expected);
        let alone = plan(&model, &[Point::plain("b")]);
        assert_eq!(
            alone,
            [Watched {
                point: 0,
                clamped: None
            }]
        );
    }

    #[test]
    fn what_any_target_places_is_among_all() {
        let model = model();
        let found = points(&model, &QuantSettings::default()).unwrap();
        let all = all_points(&model);
        assert!(found.iter().all(|p| all.contains(p)), "{found:?}");
        assert!(
            found.iter().any(|p| p.key == "x" && p.axes == [-1]),
            "{found:?}"
        );
    }
}

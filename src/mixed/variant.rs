//! One layer alone, stored in a format: what the passes make of it, so that what is measured is what will be written.

use std::collections::BTreeMap;

use onnx_quant_ir::Model;
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::Format;
use onnx_quant_passes::layers::{Choice, LayerRule, Pinned};
use onnx_quant_passes::ops;
use onnx_quant_passes::plan::{ActivationPlan, Precision, PrecisionPlan};
use onnx_quant_passes::settings::{FloatSettings, QuantSettings, Selection};
use onnx_quant_passes::target::{TargetName, cannot_run};

use crate::error::Error;
use crate::extend::Stage;
use crate::pipeline::{Run, Watch};

/// The scale of the activation that a layer reads, for one format.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Input {
    /// The format.
    pub(super) format: Format,
    /// Scale and zero point.
    pub(super) params: QParams,
}

/// A layer in a format.
pub(super) struct Variant {
    /// The model of one layer.
    pub(super) model: Model,
    /// Bytes of everything that is stored for it.
    pub(super) bytes: u64,
}

/// Bytes of the constants of a model.
pub(super) fn stored(model: &Model) -> u64 {
    let values = model.all_values().into_iter();
    let sizes = values.filter_map(|v| model.value(v).init.as_ref()?.byte_len().ok());
    sizes.sum::<usize>() as u64
}

/// The layer with weights in a format (`None`: float), and the activation that it reads rounded to another.
///
/// # Errors
/// Why the layer cannot have the format, for the target.
pub(super) fn make(
    layer: &Model,
    settings: &QuantSettings,
    weights: Option<Format>,
    input: Option<Input>,
) -> Result<Variant, String> {
    let formats = weights.into_iter().chain(input.map(|i| i.format));
    if let Some(why) = formats
        .filter_map(|f| cannot_run(settings.target, f))
        .next()
    {
        return Err(why);
    }
    if let (Some(_), Some(input)) = (weights, input) {
        executes(layer, settings, weights, input)?;
    }
    let own = QuantSettings {
        weights: open(weights),
        activations: None,
        selection: Selection::default(),
        layers: vec![rule(layer, weights, None)],
        ranges: BTreeMap::new(),
        dynamic: false,
        qoperator: false,
        floats: FloatSettings::default(),
        ..settings.clone()
    };
    let mut model = layer.clone();
    let mut run = planned(&mut model, own.clone())?;
    // Some targets take such weights with quantized activations alone, which the layer has: by others' rules they are
    // stored all the same.
    let stored_alone = (run.cx.get::<PrecisionPlan>()).is_some_and(|p| stands(p, weights).is_ok());
    if weights.is_some() && input.is_some() && !stored_alone {
        let target = TargetName::Generic;
        model = layer.clone();
        run = planned(&mut model, QuantSettings { target, ..own })?;
    }
    let plan = run
        .cx
        .get_mut::<PrecisionPlan>()
        .ok_or("no plan was made")?;
    if weights.is_some() {
        stands(plan, weights)?;
    }
    if let Some(input) = input {
        let (value, float) = activation(layer).ok_or("it reads no float activation")?;
        let pair = ActivationPlan {
            format: input.format,
            params: Some(input.params),
            float,
            readers: None,
        };
        plan.activations.insert(layer.value_key(value), pair);
    }
    run.stage(Stage::Rewrite, &mut model)
        .map_err(|e| e.to_string())?;
    if let Some(plan) = run.cx.get::<PrecisionPlan>()
        && weights.is_some()
    {
        stands(plan, weights)?;
    }
    let bytes = stored(&model);
    Ok(Variant { model, bytes })
}

/// What the settings say where a rule for the layer says more: blocks longer than the reduction axis are refused for a
/// model, and are channels in a layer.
fn open(weights: Option<Format>) -> Option<Format> {
    weights.map(|f| Format {
        granularity: None,
        ..f
    })
}

fn rule(layer: &Model, weights: Option<Format>, activations: Option<Format>) -> LayerRule {
    let node = layer.main().nodes.first();
    LayerRule {
        pattern: node.map(|&n| layer.node_key(n)).unwrap_or_default(),
        weights: weights.map(Choice::Format),
        activations: activations.map(Choice::Format),
        ..LayerRule::default()
    }
}

fn planned(model: &mut Model, settings: QuantSettings) -> Result<Run, String> {
    let mut run = Run::new(Watch::default()).map_err(|e| e.to_string())?;
    run.cx.insert(settings);
    run.stage(Stage::Plan, model)
        .map_err(|e: Error| e.to_string())?;
    Ok(run)
}

/// Whether the plan stores the layer's weights so; the plan's reason where not.
fn stands(plan: &PrecisionPlan, weights: Option<Format>) -> Result<(), String> {
    let Some(node) = plan.nodes.first() else {
        return Err("the layer is gone".to_owned());
    };
    match node.precision {
        Precision::Integer | Precision::WeightOnly if node.weights == weights => Ok(()),
        _ => Err(node.reason.clone()),
    }
}

/// Whether the target runs the layer with both in few bits.
fn executes(
    layer: &Model,
    settings: &QuantSettings,
    weights: Option<Format>,
    input: Input,
) -> Result<(), String> {
    let main = layer.main();
    let signature = main.inputs.iter().chain(&main.outputs);
    let ranges = signature.map(|&v| (layer.value_key(v), Pinned::Range(-1.0, 1.0)));
    let own = QuantSettings {
        weights: open(weights),
        activations: Some(input.format),
        selection: Selection::default(),
        layers: vec![rule(layer, weights, Some(input.format))],
        ranges: ranges.collect(),
        dynamic: false,
        qoperator: false,
        floats: FloatSettings::default(),
        ..settings.clone()
    };
    let mut model = layer.clone();
    let run = planned(&mut model, own)?;
    let plan = run.cx.get::<PrecisionPlan>().ok_or("no plan was made")?;
    stands(plan, weights)?;
    match plan.nodes.first() {
        Some(n) if n.activations.is_some() => Ok(()),
        Some(n) => Err(n.reason.clone()),
        None => Err("the layer is gone".to_owned()),
    }
}

/// The activation of a layer alone, with its float type.
pub(super) fn activation(
    layer: &Model,
) -> Option<(onnx_quant_ir::ValueId, onnx_quant_ir::DataType)> {
    let &node = layer.main().nodes.first()?;
    let linear = ops::linear(layer, node)?.ok()?;
    let value = layer.input(node, linear.activation)?;
    let weight = layer.input(node, linear.weight)?;
    Some((value, layer.value(weight).dtype()?))
}

//! Decides for every node in what form it runs, and for every activation and weight how it is stored.
//!
//! # What it does
//! Makes the [`PrecisionPlan`] from the settings and the calibration. Conv, Gemm and MatMul with a constant weight run
//! in integers. Add, Mul, Concat, pooling, Sigmoid and Softmax do only between integer operators: a kernel gains there,
//! and elsewhere the extra rounding costs accuracy for nothing. Operators that move values (Reshape, MaxPool …) follow
//! their input. A Relu or Clip behind an integer operator is taken in. A layer whose activation does not bear the
//! format, by the statistics, keeps its activation in float and its weight in few bits; the plan says which and why.
//!
//! # Before → After
//! The graph is not changed.
//!
//! # When it does not fire
//! Every node that stays in float stands in the plan with its reason.
//!
//! # Invariants kept
//! The same model, settings and statistics give the same plan.
//!
//! # Opset notes
//! None.
//!
//! # References
//! onnxruntime, QDQ transformers (node units); Jacob et al. 2018, section 3.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, Model, NodeId, ValueId};
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::{Base, Format, Granularity};
use rayon::prelude::*;

use crate::calibration::Calibration;
use crate::codebook_weights::is_indexed;
use crate::layers::LayerChoices;
use crate::ops;
use crate::plan::{ActivationPlan, BlockAxis, NodePlan, Precision, PrecisionPlan, WeightPlan};
use crate::qdq::Versions;
use crate::settings::{QuantSettings, Selector};

mod bearing;
mod formats;
mod groups;
mod guess;
mod placement;
mod residual;
mod storage;

use placement::{Mode, Placement, Quantized};

/// See the head of this file.
pub struct AssignPrecision;

static INFO: PassInfo = PassInfo {
    name: "assign_precision",
    summary: "Decides for every node in what form it runs, and for every tensor how it is stored",
    source: include_str!("assign_precision.rs"),
    exact: true,
};

impl Pass for AssignPrecision {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let settings = cx.need::<QuantSettings>()?.clone();
        let plan = assign(model, &settings, cx.get::<Calibration>())
            .map_err(|e| PassError::new(INFO.name, e))?;
        let mut notes = storage::runtime_notes(&plan, &settings);
        if let Some(calibration) = cx.get::<Calibration>() {
            notes.extend(unreached(model, calibration));
        }
        for note in notes {
            cx.note(note);
        }
        cx.insert(plan);
        cx.insert(Versions::of(model));
        Ok(Changed::No)
    }
}

/// The keys of the values whose statistics the settings need, in a fixed order: those that would be quantized, but for
/// the ones whose range is given.
///
/// # Errors
/// A selection or a rule that names nothing.
pub fn wanted_statistics(model: &Model, settings: &QuantSettings) -> Result<Vec<String>, String> {
    let plan = assign(model, settings, None)?;
    let choices = LayerChoices::new(settings, model)?;
    let values = model.all_values().into_iter();
    let pinned: BTreeSet<String> = values
        .filter(|&v| choices.pinned(v).is_some())
        .map(|v| model.value_key(v))
        .collect();
    let unknown = |key: &String| !pinned.contains(key);
    Ok(plan.activations.into_keys().filter(unknown).collect())
}

fn assign(
    model: &Model,
    settings: &QuantSettings,
    calibration: Option<&Calibration>,
) -> Result<PrecisionPlan, String> {
    let selector = Selector::new(&settings.selection, model).map_err(|e| e.to_string())?;
    let choices = LayerChoices::new(settings, model)?;
    takes_activations(settings)?;
    let mut placement = Placement::new(model, settings, &selector, &choices);
    let mut found = BTreeMap::new();
    let mut quantized = placement.settle();
    let mut params = BTreeMap::new();
    let nothing = Calibration::default();
    let pins =
        !settings.ranges.is_empty() || settings.layers.iter().any(|r| r.input_range.is_some());
    let calibration = calibration.or(pins.then_some(&nothing));
    while let Some(calibration) = calibration {
        let given = (settings, &choices, calibration);
        while !bear(model, given, &mut placement, &quantized, &mut found) {
            quantized = placement.settle();
        }
        let good = found
            .iter()
            .filter_map(|(&v, (_, p))| Some((v, *p.as_ref().ok()?)));
        params = good.collect();
        let formats = formats::activation_formats(model, &placement, &quantized);
        let floats = float_types(model, &placement);
        let types = (&formats, &floats);
        match groups::unify(&placement, &quantized, calibration, types, &mut params) {
            Ok(()) => break,
            Err((nodes, reason)) => {
                for node in nodes {
                    placement.modes.insert(node, Mode::Float(reason.clone()));
                }
                quantized = placement.settle();
            }
        }
    }
    let floats = float_types(model, &placement);
    let formats = formats::activation_formats(model, &placement, &quantized);
    let weights = weight_plans(model, &choices, &placement);
    storage::blocks_fit(model, settings, &weights)?;
    Ok(PrecisionPlan {
        nodes: model
            .all_nodes()
            .into_iter()
            .map(|n| node_plan(model, &placement, &quantized, n))
            .collect(),
        activations: activation_plans(model, &quantized, &formats, &params, &floats),
        weights,
    })
}

/// A note for each body of control flow with values to be observed that no sample runs; for nested ones the outermost.
fn unreached(model: &Model, calibration: &Calibration) -> Vec<String> {
    let mut idle: Vec<String> = Vec::new();
    for graph in model.graph_ids().into_iter().skip(1) {
        let path = model.graph_path(graph) + "/";
        let inside = calibration
            .values
            .iter()
            .filter(|(key, _)| key.starts_with(&path));
        let stats: Vec<_> = inside.map(|(_, stats)| stats).collect();
        let known = idle.iter().any(|outer| path.starts_with(outer));
        if !known && !stats.is_empty() && stats.iter().all(|s| s.is_empty()) {
            idle.push(path);
        }
    }
    let note = |path: &String| {
        let path = path.trim_end_matches('/');
        format!("no calibration sample runs the body `{path}`: what it computes stays in float")
    };
    idle.iter().map(note).collect()
}

/// Refuses activations for which the target has no kernel.
fn takes_activations(settings: &QuantSettings) -> Result<(), String> {
    let target = settings.target.rules();
    match settings.activations {
        Some(f) if storage::eight_bits(f) && !target.activations.contains(&f.base) => {
            Err(format!("{} takes no {} activations", target.title, f.base))
        }
        _ => Ok(()),
    }
}

/// By value: the formats that it was looked at in, and its parameters or the reason why it has none.
type Found = BTreeMap<ValueId, ((Base, DataType), Result<QParams, String>)>;

/// Finds the parameters of every quantized value; those in `found` are not looked for again. `false` where a value
/// does not bear its format: operators were taken out.
fn bear(
    model: &Model,
    (settings, choices, calibration): (&QuantSettings, &LayerChoices, &Calibration),
    placement: &mut Placement<'_>,
    quantized: &Quantized,
    found: &mut Found,
) -> bool {
    let formats = formats::activation_formats(model, placement, quantized);
    let floats = float_types(model, placement);
    let float_of = |value: &ValueId| floats.get(value).copied().unwrap_or(DataType::Float);
    let values: Vec<(ValueId, (Base, DataType))> = quantized
        .keys()
        .filter_map(|v| Some((*v, (formats.get(v)?.base, float_of(v)))))
        .collect();
    let missing: Vec<(ValueId, (Base, DataType))> = values
        .iter()
        .filter(|(v, wanted)| found.get(v).is_none_or(|(was, _)| was != wanted))
        .copied()
        .collect();
    let placed = &*placement;
    found.par_extend(missing.into_par_iter().map(|(value, formats)| {
        let consumers = model.consumers(value);
        let force = consumers.iter().any(|(n, _)| placed.forced(*n));
        let pinned = choices.pinned(value);
        let params = bearing::parameters(
            model,
            value,
            formats,
            settings,
            (calibration, pinned),
            force || pinned.is_some(),
        );
        (value, (formats, params))
    }));
    let mut all_bear = true;
    for (value, _) in values {
        if let Some((_, Err(reason))) = found.get(&value) {
            all_bear &= !placement.bar(value, quantized, reason);
        }
    }
    all_bear
}

/// The float type of the values around integer operators: that of the weights.
fn float_types(model: &Model, placement: &Placement<'_>) -> BTreeMap<ValueId, DataType> {
    let mut types = BTreeMap::new();
    for node in model.all_nodes() {
        let known = match (&placement.modes[&node], placement.linears.get(&node)) {
            (Mode::Integer, Some(linear)) => {
                let weight = model.input(node, linear.weight);
                let dtype = weight.and_then(|w| model.value(w).dtype());
                if let (Some(d), Some(x)) = (dtype, model.input(node, linear.activation)) {
                    types.insert(x, d);
                }
                dtype
            }
            (Mode::Supporting | Mode::Preserving | Mode::Merged | Mode::Inputs(_), _) => placement
                .data_slots(node)
                .filter_map(|slot| model.input(node, slot))
                .find_map(|v| types.get(&v).copied()),
            _ => None,
        };
        if let Some(d) = known {
            for v in model.outputs(node).into_iter().flatten() {
                types.insert(v, d);
            }
        }
    }
    types
}

fn activation_plans(
    model: &Model,
    quantized: &Quantized,
    formats: &BTreeMap<ValueId, Format>,
    params: &BTreeMap<ValueId, QParams>,
    floats: &BTreeMap<ValueId, DataType>,
) -> BTreeMap<String, ActivationPlan> {
    quantized
        .iter()
        .filter_map(|(&value, readers)| {
            let format = *formats.get(&value)?;
            let plan = ActivationPlan {
                format,
                params: params.get(&value).copied(),
                float: floats.get(&value).copied().unwrap_or(DataType::Float),
                readers: readers
                    .as_ref()
                    .map(|r| r.iter().map(|&n| model.node_key(n)).collect()),
            };
            Some((model.value_key(value), plan))
        })
        .collect()
}

fn weight_plans(
    model: &Model,
    choices: &LayerChoices,
    placement: &Placement<'_>,
) -> Vec<WeightPlan> {
    let mut plans: Vec<WeightPlan> = Vec::new();
    for node in model.all_nodes() {
        if !matches!(placement.modes[&node], Mode::Integer | Mode::WeightOnly(_)) {
            continue;
        }
        let choice = choices.of(node);
        let Some(format) = choice.weights else {
            continue;
        };
        for (slot, axis, blocks, gathered) in weight_slots(model, placement, node) {
            let Some(value) = model.input(node, slot) else {
                continue;
            };
            let key = model.value_key(value);
            // Indices are unpacked before rows are looked up: an embedding shares its table with other readers.
            let gathered = gathered && !is_indexed(format.base);
            let format = storage::stored_format(model, value, format, axis, blocks);
            let axis = axis.filter(|_| format.granularity != Some(Granularity::Tensor));
            let in_blocks = matches!(
                format.granularity,
                Some(Granularity::Block(_) | Granularity::Vsq(_))
            );
            let blocks = blocks.filter(|_| in_blocks);
            let reader = (model.node_key(node), slot);
            // With `session.x64quantprecision=1` onnxruntime rewrites the int8 weight of each operator to uint8 in place,
            // and does not load a model in which two operators read the same one.
            let integer = matches!(placement.modes[&node], Mode::Integer);
            let shared = gathered || !integer || !format.base.info().signed;
            let form = (format, axis, blocks, gathered);
            let same = plans.iter_mut().find(|p| {
                shared && p.key == key && (p.format, p.axis, p.blocks, p.gathered) == form
            });
            match same {
                Some(p) => {
                    p.readers.insert(reader);
                }
                None => plans.push(WeightPlan {
                    key,
                    format,
                    axis,
                    blocks,
                    readers: BTreeSet::from([reader]),
                    gathered,
                }),
            }
        }
    }
    plans
}

/// A weight of a node: input slot, axis of the channels, axis of the blocks, and whether rows are gathered.
type WeightSlot = (usize, Option<usize>, Option<BlockAxis>, bool);

/// The weights of a node.
fn weight_slots(model: &Model, placement: &Placement<'_>, node: NodeId) -> Vec<WeightSlot> {
    if let Some(linear) = placement.linears.get(&node) {
        return vec![(linear.weight, linear.axis, Some(linear.blocks), false)];
    }
    let recurrent = ops::recurrent(model, node);
    if recurrent.is_empty() {
        return vec![(0, Some(1), Some(BlockAxis::Axis(1)), true)];
    }
    recurrent
        .into_iter()
        .map(|slot| (slot, Some(1), Some(BlockAxis::Axis(2)), false))
        .collect()
}

fn node_plan(
    model: &Model,
    placement: &Placement<'_>,
    quantized: &Quantized,
    node: NodeId,
) -> NodePlan {
    let moved = |slot: Option<ValueId>| slot.is_some_and(|v| quantized.contains_key(&v));
    let (precision, reason) = match &placement.modes[&node] {
        Mode::Integer if placement.settings.dynamic => (
            Precision::Integer,
            "its activation is quantized at run time".to_owned(),
        ),
        Mode::Integer | Mode::Supporting => (Precision::Integer, String::new()),
        Mode::Inputs(slots) => {
            let reason = match slots.len() {
                1 => format!("its input {} is quantized", slots[0]),
                _ => String::new(),
            };
            (Precision::Integer, reason)
        }
        Mode::WeightOnly(why) => (Precision::WeightOnly, why.clone()),
        Mode::Preserving if moved(model.output(node, 0)) && moved(model.input(node, 0)) => {
            (Precision::Follows, "moves quantized values".to_owned())
        }
        Mode::Preserving if placement.is_transparent(node, quantized) => (
            Precision::Follows,
            "the runtime lets codes pass through it".to_owned(),
        ),
        Mode::Preserving => (
            Precision::Float,
            "moves values that are in float".to_owned(),
        ),
        Mode::Merged => {
            let into = placement.merged_into(node);
            let into = into.map_or_else(String::new, |n| model.node_label(n));
            (Precision::Follows, format!("taken into `{into}`"))
        }
        Mode::Float(why) => (Precision::Float, why.clone()),
    };
    let stored = matches!(precision, Precision::Integer | Precision::WeightOnly)
        && !matches!(placement.modes[&node], Mode::Supporting);
    let reads = match &placement.modes[&node] {
        Mode::Integer | Mode::Supporting => true,
        Mode::Preserving => precision == Precision::Follows,
        _ => false,
    };
    NodePlan {
        key: model.node_key(node),
        op_type: model.node(node).op_type().to_owned(),
        precision,
        reason,
        weights: placement.choice(node).weights.filter(|_| stored),
        activations: placement.wanted_format(node).filter(|_| reads),
    }
}

//! In what form weights are stored, and what the runtime does not run of what was asked for.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::{Model, ValueId};
use onnx_quant_numerics::format::{Base, Format, Granularity};

use crate::plan::{BlockAxis, PrecisionPlan, WeightPlan};
use crate::settings::QuantSettings;
use crate::target::{Use, cannot_run};

/// Whether a format is one of those that integer kernels are made for.
pub(super) fn eight_bits(format: Format) -> bool {
    matches!(format.base, Base::INT8 | Base::UINT8)
}

/// What the runtime does not run as it was asked for.
pub(super) fn runtime_notes(plan: &PrecisionPlan, settings: &QuantSettings) -> BTreeSet<String> {
    let title = settings.target.rules().title;
    let weights = plan.weights.iter().map(|w| w.format);
    let activations = plan.activations.values().map(|a| a.format);
    let instead = match settings.storage.emulate {
        true => "; --emulate writes it with basic operators",
        false => ", or give --emulate for an equivalent graph of basic operators",
    };
    let unknown = |f: Format| Some(format!("{f}: {}{instead}", cannot_run(settings.target, f)?));
    let all = weights.clone().chain(activations.clone());
    let mut notes: BTreeSet<String> = all.filter_map(unknown).collect();
    let has_kernels = |f: Format| {
        let rule = settings.target.rules().format(f.base);
        eight_bits(f) || rule.is_some_and(|r| r.used == Use::Both)
    };
    for f in activations.filter(|f| !has_kernels(*f)) {
        notes.insert(format!(
            "{title} has no integer kernels for {} activations: it runs float operators between the pairs",
            f.base
        ));
    }
    notes
}

/// Refuses blocks that are longer than the reduction axis of every weight: they would be channels under another name.
pub(super) fn blocks_fit(
    model: &Model,
    settings: &QuantSettings,
    weights: &[WeightPlan],
) -> Result<(), String> {
    let asked = settings.weights.filter(|f| f.base.own_block().is_none());
    let (Some(format), false) = (asked, weights.is_empty()) else {
        return Ok(());
    };
    let none = |w: &WeightPlan| w.format.base == format.base && w.blocks.is_none();
    let (Some(Granularity::Block(n)), true) = (format.granularity, weights.iter().all(none)) else {
        return Ok(());
    };
    let keys = model
        .all_values()
        .into_iter()
        .map(|v| (model.value_key(v), v));
    let values: BTreeMap<String, ValueId> = keys.collect();
    let length = |w: &WeightPlan| {
        let dims = model.constant(*values.get(&w.key)?)?.dims();
        Some(dims.iter().product::<i64>() / dims.get(w.axis?)?.max(&1))
    };
    let longest = weights.iter().filter_map(length).max().unwrap_or(0);
    Err(format!(
        "--weights {format}: a block of {n} does not fit, the longest reduction axis of the weights has {longest} values; \
         use a smaller block, or {}:channel",
        format.base
    ))
}

/// The format that a weight is stored in, its granularity written out. A block that holds a whole channel is a channel.
pub(super) fn stored_format(
    model: &Model,
    value: ValueId,
    format: Format,
    axis: Option<usize>,
    blocks: Option<BlockAxis>,
) -> Format {
    let granularity = format.weight_granularity();
    let dims = model.constant(value).map_or(&[][..], |t| t.dims());
    let product = |dims: &[i64]| dims.iter().product::<i64>();
    let one_block = match (granularity, axis, blocks) {
        (Granularity::Block(n), Some(channel), Some(BlockAxis::Axis(at))) => {
            let length = dims.get(at).copied().unwrap_or(0);
            let rest = product(dims) / dims.get(channel).copied().unwrap_or(1).max(1);
            length <= i64::from(n) && length == rest
        }
        (Granularity::Block(n), Some(0), Some(BlockAxis::From(1))) => {
            product(dims.get(1..).unwrap_or(&[])) <= i64::from(n)
        }
        _ => false,
    };
    let granularity = match format.base.own_block() {
        None if one_block => Granularity::Channel,
        _ => granularity,
    };
    Format {
        granularity: Some(granularity),
        ..format
    }
}

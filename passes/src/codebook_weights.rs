//! Stores the weights of the plan as packed indices: k-means codebooks, binary and ternary weights.
//!
//! # What it does
//! A weight whose format is `kmeansN`, `binary` or `ternary` is clustered, for the tensor, for each output channel or for
//! each block along the reduction axis. Its indices are packed without gaps, and operators of the standard unpack them and
//! look them up, so that any runtime reads the file.
//!
//! # Before → After
//! `W (f32) → Conv` becomes
//! `W_packed (u8) → BitShift → BitwiseAnd → Cast → Reshape → Gather (W_codebook) → Conv`. With a codebook for each group
//! an Add in front of the Gather picks the group's; binary and ternary weights are multiplied by `W_alpha` behind it.
//!
//! # When it does not fire
//! On a weight with values that are not finite, or without values: its layers stay in float, and the plan says so
//! afterwards.
//!
//! # Invariants kept
//! The signature. Readers that the plan does not name keep the float weight.
//!
//! # Opset notes
//! BitwiseAnd needs opset 18.
//!
//! # References
//! Han et al., *Deep compression*, 2016, section 3; Rastegari et al., *XNOR-Net*, 2016; Li et al., *Ternary weight
//! networks*, 2016.

use std::collections::BTreeMap;

use half::f16;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::spill::release;
use onnx_quant_ir::{DataType, Model, NodeId, ValueId};
use onnx_quant_numerics::binary::{self, Rounding};
use onnx_quant_numerics::format::{Base, Granularity};
use onnx_quant_numerics::groups::{GroupKind, Groups};
use onnx_quant_numerics::kmeans::{self, Init};
use onnx_quant_numerics::ternary::{self, Threshold};
use rayon::prelude::*;

use crate::codebook::{Indexed, Table, Writer};
use crate::overrides::WeightOverrides;
use crate::plan::{BlockAxis, Precision, PrecisionPlan, WeightPlan};
use crate::settings::QuantSettings;

/// See the head of this file.
pub struct CodebookWeights;

static INFO: PassInfo = PassInfo {
    name: "codebook_weights",
    summary: "Stores the weights of the plan as packed indices: k-means codebooks, binary and ternary weights",
    source: include_str!("codebook_weights.rs"),
    exact: false,
};

/// Weights that are encoded at the same time.
const TOGETHER: usize = 8;

/// How binary and ternary weights are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SignStorage {
    /// In 1 and 2 bits of bytes, unpacked by basic operators.
    #[default]
    Packed,
    /// As INT2 behind a DequantizeLinear.
    Int2,
    /// As INT4 behind a DequantizeLinear.
    Int4,
}

/// How codebooks, signs and thresholds are chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CodebookSettings {
    /// Where the search for codebooks starts.
    pub init: Init,
    /// Seed of random starts.
    pub seed: u64,
    /// How the signs of binary weights are chosen.
    pub rounding: Rounding,
    /// How the threshold of ternary weights is chosen.
    pub threshold: Threshold,
    /// How signs are stored.
    pub signs: SignStorage,
}

impl CodebookSettings {
    /// Whether a format is stored as packed indices: the others stand behind a DequantizeLinear.
    pub fn packs(&self, base: Base) -> bool {
        match base {
            Base::Binary | Base::Ternary => self.signs == SignStorage::Packed,
            other => is_indexed(other),
        }
    }
}

/// For weights by their keys: how much the error of each value counts in a codebook. Where nothing is known all count the
/// same. Put into the [`PassContext`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance(pub BTreeMap<String, Vec<f32>>);

/// Whether a format is a codebook or signs.
pub fn is_indexed(base: Base) -> bool {
    matches!(base, Base::Kmeans(_) | Base::Binary | Base::Ternary)
}

impl Pass for CodebookWeights {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let plan = cx.need::<PrecisionPlan>()?.clone();
        let settings = cx.need::<QuantSettings>()?.codebook;
        let importance = cx.get::<Importance>().cloned().unwrap_or_default();
        let chosen = cx.get::<WeightOverrides>().cloned().unwrap_or_default();
        let by_key: BTreeMap<String, ValueId> = model
            .all_values()
            .into_iter()
            .map(|v| (model.value_key(v), v))
            .collect();
        let forms: Vec<(&WeightPlan, ValueId)> = plan
            .weights
            .iter()
            .filter(|form| settings.packs(form.format.base))
            .filter_map(|form| Some((form, *by_key.get(&form.key)?)))
            .filter(|(form, value)| !readers(model, *value, form).is_empty())
            .collect();
        let mut names = model.names();
        let mut writer = Writer::new(&mut names);
        let mut changed = false;
        // A few at a time: the codes of a weight take a byte each until they are packed.
        for forms in forms.chunks(TOGETHER) {
            release();
            let coded: Vec<Result<Coded, String>> = forms
                .par_iter()
                .map(|(form, value)| {
                    let importance = importance.0.get(&form.key).map(Vec::as_slice);
                    let chosen = chosen.0.get(&form.key).map(|c| c.values.as_slice());
                    encode(model, *value, form, (importance, chosen), &settings)
                })
                .collect();
            for ((form, value), coded) in forms.iter().zip(coded) {
                let written = coded.and_then(|c| write(model, &mut writer, (form, *value), &c));
                match written {
                    Ok(()) => changed = true,
                    Err(reason) => {
                        stays_in_float(cx, form, &reason);
                        cx.skip_subject(form.key.clone(), reason);
                    }
                }
            }
        }
        Ok(changed.into())
    }
}

/// Writes a weight and lets its readers read it.
fn write(
    model: &mut Model,
    writer: &mut Writer<'_>,
    (form, value): (&WeightPlan, ValueId),
    coded: &Coded,
) -> Result<(), String> {
    let v = model.value(value);
    let (graph, stem) = (v.graph, v.name.clone());
    let real = writer.write(model, graph, &stem, &coded.indexed())?;
    for (node, slot) in readers(model, value, form) {
        model.set_input(node, slot, Some(real));
    }
    Ok(())
}

/// Corrects the plan for the readers of a weight that cannot be stored as indices.
fn stays_in_float(cx: &mut PassContext, form: &WeightPlan, reason: &str) {
    let Some(plan) = cx.get_mut::<PrecisionPlan>() else {
        return;
    };
    let reads = |key: &String| form.readers.iter().any(|(reader, _)| reader == key);
    for node in plan.nodes.iter_mut().filter(|n| reads(&n.key)) {
        node.precision = Precision::Float;
        node.reason = format!("its weight `{}` cannot be quantized: {reason}", form.key);
    }
}

fn readers(model: &Model, value: ValueId, form: &WeightPlan) -> Vec<(NodeId, usize)> {
    model
        .consumers(value)
        .into_iter()
        .filter(|(n, slot)| form.readers.contains(&(model.node_key(*n), *slot)))
        .collect()
}

/// A weight as indices.
pub(crate) struct Coded {
    dims: Vec<i64>,
    pub(crate) groups: Groups,
    bits: u32,
    /// The index of each value.
    pub(crate) codes: Vec<u8>,
    /// What indices mean, where all groups share it.
    pub(crate) levels: Option<&'static [f32]>,
    /// Codebooks, or scales where there are levels.
    pub(crate) entries: Vec<f32>,
    float: DataType,
}

impl Coded {
    fn indexed(&self) -> Indexed<'_> {
        Indexed {
            dims: &self.dims,
            groups: self.groups,
            bits: self.bits,
            codes: &self.codes,
            table: match self.levels {
                Some(levels) => Table::Scaled {
                    levels,
                    scales: &self.entries,
                },
                None => Table::Codebooks(&self.entries),
            },
            float: self.float,
        }
    }

    /// What the indices of a group mean.
    pub(crate) fn table(&self, group: usize) -> impl Iterator<Item = f32> + '_ {
        let own = match self.levels {
            Some(_) => &self.entries[group..=group],
            None => &self.entries[group << self.bits..(group + 1) << self.bits],
        };
        let levels = self.levels.unwrap_or(&[1.0]).iter();
        levels.flat_map(move |level| own.iter().map(move |x| level * x))
    }

    /// Takes the indices that are nearest to some values.
    fn choose(&mut self, values: &[f32]) {
        let tables: Vec<Vec<f32>> = (0..self.groups.count())
            .map(|group| self.table(group).collect())
            .collect();
        let nearest = |(at, &x): (usize, &f32)| {
            let table = tables[self.groups.group_of(at)].iter().enumerate();
            let found = table.min_by(|(_, a), (_, b)| (*a - x).abs().total_cmp(&(*b - x).abs()));
            found.map_or(0, |(code, _)| code as u8)
        };
        self.codes = values.par_iter().enumerate().map(nearest).collect();
    }
}

/// The groups that a plan asks for.
pub fn groups(dims: &[usize], form: &WeightPlan) -> Groups {
    let product = |dims: &[usize]| dims.iter().product::<usize>();
    let at = |axis: usize, kind| Groups {
        outer: product(&dims[..axis]),
        len: dims[axis],
        inner: product(&dims[axis + 1..]),
        kind,
    };
    match (form.granularity(), form.axis, form.blocks) {
        (Granularity::Block(n), _, Some(BlockAxis::Axis(axis))) if axis < dims.len() => {
            at(axis, GroupKind::Block(n as usize))
        }
        (Granularity::Block(n), _, Some(BlockAxis::From(axis))) if axis <= dims.len() => Groups {
            outer: product(&dims[..axis]),
            len: product(&dims[axis..]),
            inner: 1,
            kind: GroupKind::Block(n as usize),
        },
        (Granularity::Channel, Some(axis), _) if axis < dims.len() => at(axis, GroupKind::Channel),
        _ => Groups::tensor(product(dims)),
    }
}

/// The indices of a weight: those of its own values, or of others that were chosen for it from its codebooks.
pub(crate) fn encode(
    model: &Model,
    value: ValueId,
    form: &WeightPlan,
    (importance, chosen): (Option<&[f32]>, Option<&[f32]>),
    settings: &CodebookSettings,
) -> Result<Coded, String> {
    let tensor = model.constant(value).ok_or("is not a constant")?;
    let data = tensor.to_f32().map_err(|e| e.to_string())?;
    if data.is_empty() {
        return Err("has no values".to_owned());
    }
    if let Some(at) = data.iter().position(|x| !x.is_finite()) {
        return Err(format!("value {at} is not finite"));
    }
    let shape: Vec<usize> = tensor.dims().iter().map(|&d| d as usize).collect();
    let float = tensor.dtype();
    let groups = groups(&shape, form);
    let mut coded = Coded {
        dims: tensor.dims().to_vec(),
        groups,
        bits: form.format.base.info().bits,
        codes: Vec::new(),
        levels: None,
        entries: Vec::new(),
        float,
    };
    match form.format.base {
        Base::Kmeans(bits) => {
            let importance = importance.filter(|i| i.len() == data.len());
            codebooks(&mut coded, u32::from(bits), &data, importance, settings)?;
        }
        Base::Binary => binary_weights(&mut coded, &data, settings.rounding),
        Base::Ternary => ternary_weights(&mut coded, &data, settings.threshold)?,
        other => return Err(format!("the format {other} has no codebook")),
    }
    match chosen {
        Some(chosen) if chosen.len() != data.len() => {
            return Err("the values that were chosen for it have another shape".to_owned());
        }
        Some(chosen) => coded.choose(chosen),
        None => {}
    }
    Ok(coded)
}

fn codebooks(
    coded: &mut Coded,
    bits: u32,
    data: &[f32],
    importance: Option<&[f32]>,
    settings: &CodebookSettings,
) -> Result<(), String> {
    coded.bits = bits;
    let groups = coded.groups;
    let options = kmeans::Options {
        clusters: 1 << bits,
        init: settings.init,
        seed: settings.seed,
        half: coded.float == DataType::Float16,
        groups: groups.count(),
    };
    let weights = importance.map(|i| groups.map(i, |_, w| w.to_vec()));
    let found = groups.map(data, |group, values| {
        let w = weights.as_ref().map(|w| w[group].as_slice());
        // A group of which nothing matters is clustered as if all did.
        let w = w.filter(|w| w.iter().any(|&x| x > 0.0));
        kmeans::kmeans(values, w, &options)
    });
    let mut parts = Vec::with_capacity(found.len());
    for clusters in found {
        let clusters = clusters.map_err(|e| e.to_string())?;
        coded.entries.extend(clusters.codebook);
        parts.push(clusters.codes);
    }
    coded.codes = groups.scatter(&parts);
    Ok(())
}

/// A scale as it is stored.
fn stored(scale: f32, float: DataType) -> f32 {
    match float {
        DataType::Float16 => f16::from_f32(scale.min(f16::MAX.to_f32())).to_f32(),
        _ => scale,
    }
}

fn binary_weights(coded: &mut Coded, data: &[f32], rounding: Rounding) {
    coded.bits = 1;
    coded.levels = Some(&[-1.0, 1.0]);
    let float = coded.float;
    coded.entries = coded
        .groups
        .map(data, |_, values| stored(binary::alpha(values), float));
    coded.codes = data
        .par_iter()
        .enumerate()
        .map(|(at, &r)| binary::code(r, rounding, at as u64))
        .collect();
}

fn ternary_weights(coded: &mut Coded, data: &[f32], threshold: Threshold) -> Result<(), String> {
    coded.bits = 2;
    coded.levels = Some(&[-1.0, 0.0, 1.0]);
    let float = coded.float;
    let found = coded.groups.map(data, |_, values| {
        let t = ternary::ternary(values, threshold)?;
        let codes: Vec<u8> = values.iter().map(|&r| t.code(r)).collect();
        Ok((stored(t.alpha, float), codes))
    });
    let mut parts = Vec::with_capacity(found.len());
    for group in found {
        let (alpha, codes) = group.map_err(|e: ternary::NotFinite| e.to_string())?;
        coded.entries.push(alpha);
        parts.push(codes);
    }
    coded.codes = coded.groups.scatter(&parts);
    Ok(())
}

//! Random data for a dry run, and the order of samples that are shuffled.
//!
//! Floats are nearly normal (the sum of twelve uniform numbers, less six), integers are valid indices of the constants
//! that they select from, masks are all one. The numbers of a sample depend on the seed and the sample's index only.

use std::collections::BTreeMap;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Model};

use super::dataset::Made;
use super::error::DataError;
use super::fill::{Fills, put_float, put_integer};
use super::items::{ItemLayout, Items};
use super::signature::{Input, Signature};

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Debug, Clone)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`, which is not 0.
    fn below(&mut self, bound: u64) -> u64 {
        // The high half of a product: the bias is bound / 2^64.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn normal(&mut self) -> f64 {
        let unit = |x: u64| (x >> 11) as f64 / (1u64 << 53) as f64;
        (0..12).map(|_| unit(self.next())).sum::<f64>() - 6.0
    }
}

/// The numbers below `count` in random order (Fisher and Yates).
pub(super) fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    let mut random = Random::new(seed);
    for i in (1..count).rev() {
        let j = random.below(i as u64 + 1) as usize;
        order.swap(i, j);
    }
    order
}

#[derive(Debug)]
struct RandomItems {
    samples: usize,
    seed: u64,
    inputs: Vec<RandomInput>,
}

#[derive(Debug)]
struct RandomInput {
    dtype: DataType,
    dims: Vec<usize>,
    /// Integers are below this; `None` for a mask, which is all one.
    bound: Option<u64>,
}

impl Items for RandomItems {
    fn len(&self) -> usize {
        self.samples
    }

    fn dims(&self, _: usize) -> Vec<Vec<usize>> {
        self.inputs.iter().map(|i| i.dims.clone()).collect()
    }

    fn read(&self, index: usize, out: &mut [Vec<u8>]) -> Result<(), DataError> {
        let mut random = Random::new(self.seed);
        let mut random = Random::new(random.next() ^ index as u64);
        for (input, out) in self.inputs.iter().zip(out) {
            for _ in 0..input.dims.iter().product() {
                if input.dtype.is_float() {
                    put_float(random.normal(), input.dtype, out)
                } else {
                    let value = input.bound.map_or(1, |b| random.below(b) as i64);
                    put_integer(value, input.dtype, out)
                }
                .map_err(DataError::Spec)?;
            }
        }
        Ok(())
    }
}

/// Sizes for axes that the model leaves free.
#[derive(Debug, Clone, Copy)]
pub(super) struct FreeSizes {
    /// Height and width of the two inner axes of an input with four.
    pub(super) image: Option<(usize, usize)>,
    /// Any other axis.
    pub(super) window: Option<usize>,
}

/// `samples` random samples for all inputs that are not filled.
pub(super) fn made(
    model: &Model,
    signature: &Signature,
    fills: &Fills,
    samples: usize,
    seed: u64,
    free: FreeSizes,
) -> Result<Made, DataError> {
    let bounds = bounds(model);
    let open: Vec<usize> = (0..signature.inputs.len())
        .filter(|&i| !signature.inputs[i].optional && fills.0[i].is_none())
        .collect();
    let given: Vec<&Input> = open.iter().map(|&i| &signature.inputs[i]).collect();
    let layout = layout(&given);
    let counted = matches!(layout, ItemLayout::Samples { .. });
    let mut sizes = Sizes {
        free,
        symbols: BTreeMap::new(),
        guessed: Vec::new(),
    };
    let mut inputs = Vec::new();
    for input in &given {
        if !(input.dtype.is_float() || input.dtype.is_integer() || input.dtype == DataType::Bool) {
            return Err(DataError::Spec(format!(
                "random:N cannot fill the input `{}` of {}",
                input.name,
                input.dtype.short_name()
            )));
        }
        let Some(rank) = input.rank() else {
            return Err(DataError::Spec(format!(
                "random:N: the model does not say the rank of the input `{}`; give real data, or --input {}=VALUE",
                input.name, input.name
            )));
        };
        let skip = usize::from(counted && rank > 0);
        let dims = (skip..rank).map(|axis| sizes.of(input, axis)).collect();
        let mask = input.name.to_ascii_lowercase().contains("mask");
        let bound = bounds.get(&input.name).copied().unwrap_or(2);
        inputs.push(RandomInput {
            dtype: input.dtype,
            dims,
            bound: (!mask).then_some(bound),
        });
    }
    let guessed = sizes.guessed;
    let mut notes = vec![format!(
        "RANDOM DATA ({samples} samples, seed {seed}): a dry run; ranges and measures say nothing about real data"
    )];
    if !guessed.is_empty() {
        notes.push(format!(
            "random data: sizes that the model leaves free: {}",
            guessed.join(", ")
        ));
    }
    let items = RandomItems {
        samples,
        seed,
        inputs,
    };
    Ok(Made {
        items: Box::new(items),
        layout,
        given: open,
        notes,
        classes: None,
        skipped: 0,
    })
}

/// Whether axis 0 counts samples in all inputs.
fn layout(given: &[&Input]) -> ItemLayout {
    let counted: Vec<&&Input> = given.iter().filter(|i| i.rank() != Some(0)).collect();
    let mut fixed: Vec<usize> = counted.iter().filter_map(|i| i.fixed(0)).collect();
    let all_fixed = fixed.len() == counted.len();
    fixed.dedup();
    let firsts = || counted.iter().filter_map(|i| i.symbols.first()?.as_deref());
    let inner = |s: &str| {
        let later = counted.iter().flat_map(|i| i.symbols.iter().skip(1));
        later.flatten().any(|other| other == s)
    };
    if counted.is_empty() || firsts().any(inner) || fixed.len() > 1 {
        return ItemLayout::Feeds;
    }
    match fixed.first() {
        None => ItemLayout::Samples { piece: None },
        Some(&n) if all_fixed => ItemLayout::Samples { piece: Some(n) },
        Some(_) => ItemLayout::Feeds,
    }
}

/// The sizes of axes, free ones guessed.
struct Sizes {
    free: FreeSizes,
    symbols: BTreeMap<String, usize>,
    guessed: Vec<String>,
}

impl Sizes {
    fn of(&mut self, input: &Input, axis: usize) -> usize {
        if let Some(size) = input.fixed(axis) {
            return size;
        }
        let symbol = input.symbols.get(axis).cloned().flatten();
        if let Some(&size) = symbol.as_ref().and_then(|s| self.symbols.get(s)) {
            return size;
        }
        let rank = input.rank().unwrap_or(0);
        let (height, width) = self.free.image.unwrap_or((224, 224));
        let channels_last = input.fixed(rank.saturating_sub(1)).is_some();
        let size = match (rank, axis) {
            (_, 0) => 1,
            (4, 1) if channels_last => height,
            (4, 2) if channels_last => width,
            (4, 1) => 3,
            (4, 2) => height,
            (4, _) => width,
            _ => self.free.window.unwrap_or(32),
        };
        if let Some(symbol) = symbol {
            self.symbols.insert(symbol, size);
        }
        self.guessed
            .push(format!("axis {axis} of `{}` = {size}", input.name));
        size
    }
}

/// For each input that selects from a constant by Gather, possibly behind a Cast: how much there is to select from.
fn bounds(model: &Model) -> BTreeMap<String, u64> {
    let mut bounds = BTreeMap::new();
    for &node in &model.main().nodes {
        if !model.node(node).is("Gather") {
            continue;
        }
        let (Some(constant), Some(indices)) = (model.input_constant(node, 0), model.input(node, 1))
        else {
            continue;
        };
        let axis = model.node(node).attr_i("axis").unwrap_or(0);
        let rank = constant.dims().len() as i64;
        let axis = if axis < 0 { axis + rank } else { axis };
        let size = usize::try_from(axis)
            .ok()
            .and_then(|a| constant.dims().get(a));
        let Some(size) = size.and_then(|&d| u64::try_from(d).ok()).filter(|&d| d > 0) else {
            continue;
        };
        let mut source = indices;
        while let Some((producer, _)) = model.producer(source) {
            match model.input(producer, 0) {
                Some(input) if model.node(producer).is("Cast") => source = input,
                _ => break,
            }
        }
        let name = model.value(source).name.clone();
        let bound = bounds.entry(name).or_insert(size);
        *bound = size.min(*bound);
    }
    bounds
}

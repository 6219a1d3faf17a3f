//! What the axes of the arrays mean: which is the sample axis, and whether every size is one the model takes.

use std::collections::BTreeMap;
use std::path::Path;

use onnx_quant_ir::dtype::DataTypeExt;

use super::array::Array;
use super::error::{DataError, SymbolUse};
use super::npy::numpy_type;
use super::signature::Input;
use super::source::Found;

/// How the arrays of a chunk are cut into runs of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Axis 0 of array and input counts samples; `piece` is the size that the model fixes it to.
    Samples { piece: Option<usize> },
    /// Arrays have one axis more than their inputs; each index of it is a run.
    Feeds,
    /// The arrays are one run as they are.
    Whole,
}

/// A chunk whose arrays fit the model.
#[derive(Debug, Clone)]
pub(super) struct Chunk {
    /// One for each fed input.
    pub(super) arrays: Vec<Array>,
    /// Arrays without a sample axis, which every run of the chunk is fed with: scalars for scalar inputs.
    pub(super) shared: Vec<bool>,
    pub(super) layout: Layout,
    /// Number of samples (complete feeds count as one each).
    pub(super) samples: usize,
}

impl Chunk {
    /// Checks one chunk against the inputs that are fed.
    pub(super) fn new(found: Found, fed: &[&Input]) -> Result<Self, DataError> {
        let path = found.path;
        let arrays: Vec<Array> = found.arrays.into_iter().flatten().collect();
        let pairs = || arrays.iter().zip(fed.iter().copied());
        for (array, input) in pairs() {
            check_type(array, input)?;
        }
        let layout = if found.whole {
            for (array, input) in pairs() {
                check_rank(array, input, 0)?;
            }
            Layout::Whole
        } else {
            infer(&path, &arrays, fed)?
        };
        let shared: Vec<bool> = arrays
            .iter()
            .map(|a| layout != Layout::Whole && a.dims.is_empty())
            .collect();
        for (array, input) in pairs() {
            check_dims(array, input, layout)?;
        }
        check_symbols(&path, &arrays, fed, layout)?;
        let samples = match layout {
            Layout::Whole => 1,
            _ => count(&arrays, &shared)?,
        };
        Ok(Self {
            arrays,
            shared,
            layout,
            samples,
        })
    }

    /// Whether a batch may hold samples of both chunks.
    pub(super) fn continues(&self, before: &Self) -> bool {
        let same = |(a, b): (&Array, &Array)| a.dims[1..] == b.dims[1..];
        matches!(self.layout, Layout::Samples { .. })
            && self.layout == before.layout
            && !self.shared.iter().chain(&before.shared).any(|&s| s)
            && self.arrays.iter().zip(&before.arrays).all(same)
    }

    /// The shape of one input in a batch of `n` samples.
    pub(super) fn batch_dims(&self, input: usize, n: usize) -> Vec<usize> {
        let dims = &self.arrays[input].dims;
        match self.layout {
            Layout::Samples { .. } if !self.shared[input] => {
                let mut dims = dims.clone();
                dims[0] = n;
                dims
            }
            Layout::Feeds if !self.shared[input] => dims[1..].to_vec(),
            _ => dims.clone(),
        }
    }
}

pub(super) fn check_type(array: &Array, input: &Input) -> Result<(), DataError> {
    if array.dtype == input.dtype {
        return Ok(());
    }
    let hint = match numpy_type(input.dtype) {
        Some(name) => format!("; convert it with arr.astype({name})"),
        None => "; numpy has no such type: give it as TensorProto files (input_0.pb)".to_owned(),
    };
    Err(DataError::Type {
        origin: array.origin.clone(),
        found: array.dtype.short_name(),
        expected: input.dtype.short_name(),
        hint,
    })
}

fn check_rank(array: &Array, input: &Input, more: usize) -> Result<(), DataError> {
    let found = array.dims.len();
    match input.rank() {
        Some(rank) if found != rank && found != rank + more => Err(DataError::Rank {
            origin: array.origin.clone(),
            found: array.dims.clone(),
            expected: input.to_string(),
            hint: if more > 0 && found + 1 == rank {
                "; if it is one sample, give it its sample axis: arr[None]".to_owned()
            } else {
                String::new()
            },
        }),
        _ => Ok(()),
    }
}

fn infer(path: &Path, arrays: &[Array], fed: &[&Input]) -> Result<Layout, DataError> {
    let (mut feeds, mut plain) = (None, None);
    for (array, input) in arrays.iter().zip(fed) {
        check_rank(array, input, 1)?;
        match input.rank() {
            Some(rank) if array.dims.len() == rank + 1 => feeds = feeds.or(Some(array)),
            Some(rank) if rank > 0 => plain = plain.or(Some(array)),
            _ => {}
        }
    }
    match (feeds, plain) {
        (Some(feeds), Some(other)) => Err(DataError::MixedRanks {
            feeds: feeds.origin.clone(),
            other: other.origin.clone(),
        }),
        (Some(_), None) => Ok(Layout::Feeds),
        _ if arrays.iter().all(|a| a.dims.is_empty()) => Ok(Layout::Whole),
        _ => Ok(Layout::Samples {
            piece: piece(path, fed)?,
        }),
    }
}

/// The size that the model fixes the sample axis to.
pub(super) fn piece(path: &Path, fed: &[&Input]) -> Result<Option<usize>, DataError> {
    let mut fixed = fed.iter().filter_map(|i| Some((i, i.fixed(0)?)));
    let Some((first, size)) = fixed.next() else {
        return Ok(None);
    };
    match fixed.find(|(_, n)| *n != size) {
        None => Ok(Some(size)),
        Some((other, n)) => Err(DataError::NoSampleAxis {
            path: path.to_owned(),
            reason: format!(
                "the model fixes axis 0 of the input `{}` to {size} and that of `{}` to {n}, so it is not the sample axis of both",
                first.name, other.name
            ),
        }),
    }
}

fn check_dims(array: &Array, input: &Input, layout: Layout) -> Result<(), DataError> {
    let offset = usize::from(layout == Layout::Feeds && !array.dims.is_empty());
    let first = match layout {
        Layout::Samples { .. } => 1,
        _ => offset,
    };
    for (axis, &found) in array.dims.iter().enumerate().skip(first) {
        if input.fixed(axis - offset).is_some_and(|d| d != found) {
            return Err(DataError::Dim {
                origin: array.origin.clone(),
                axis,
                found,
                dims: array.dims.clone(),
                expected: input.to_string(),
            });
        }
    }
    Ok(())
}

fn check_symbols(
    path: &Path,
    arrays: &[Array],
    fed: &[&Input],
    layout: Layout,
) -> Result<(), DataError> {
    let by_samples = matches!(layout, Layout::Samples { .. });
    let offset = usize::from(layout == Layout::Feeds);
    // `None` stands for the size of the batch.
    let mut sizes: BTreeMap<&str, (Option<usize>, &Input, usize)> = BTreeMap::new();
    for (array, &input) in arrays.iter().zip(fed) {
        for (axis, symbol) in input.symbols.iter().enumerate() {
            let Some(symbol) = symbol.as_deref() else {
                continue;
            };
            let size = array.dims.get(axis + offset).copied();
            let size = size.filter(|_| !by_samples || axis > 0);
            let (known, first, first_axis) = *sizes.entry(symbol).or_insert((size, input, axis));
            match (known, size) {
                (a, b) if a == b => {}
                (Some(known), Some(size)) => {
                    let at = |input: &Input, axis, size| SymbolUse {
                        input: input.name.clone(),
                        axis,
                        size,
                    };
                    return Err(DataError::Symbol {
                        path: path.to_owned(),
                        symbol: symbol.to_owned(),
                        uses: Box::new([at(first, first_axis, known), at(input, axis, size)]),
                    });
                }
                _ => {
                    return Err(DataError::NoSampleAxis {
                        path: path.to_owned(),
                        reason: format!(
                            "the dimension `{symbol}` is axis {first_axis} of the input `{}` and axis {axis} of `{}`, so axis 0 is not the sample axis of both",
                            first.name, input.name
                        ),
                    });
                }
            }
        }
    }
    Ok(())
}

fn count(arrays: &[Array], shared: &[bool]) -> Result<usize, DataError> {
    let mut counted = arrays.iter().zip(shared).filter(|(_, s)| !**s);
    let Some((first, _)) = counted.next() else {
        return Ok(1);
    };
    let samples = first.dims[0];
    if let Some((other, _)) = counted.find(|(a, _)| a.dims[0] != samples) {
        return Err(DataError::SampleCount {
            origin: other.origin.clone(),
            found: other.dims[0],
            other: first.origin.clone(),
            expected: samples,
        });
    }
    match samples {
        0 => Err(DataError::NoSamples(first.origin.clone())),
        n => Ok(n),
    }
}

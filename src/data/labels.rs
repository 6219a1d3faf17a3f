//! Labels: the class of each sample, or the target id of each position.

use std::path::Path;
use std::sync::Arc;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor};

use super::archive::{self, Place};
use super::array::Array;
use super::error::{DataError, Names, Origin};

/// Class numbers of shape `[samples]` or `[samples, positions]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    origin: Origin,
    ids: Vec<i64>,
    samples: usize,
    positions: Option<usize>,
}

impl Labels {
    /// Reads labels from an `.npy`, or from an `.npz` that holds a single array; of any integer type.
    ///
    /// # Errors
    /// What is wrong with the file, or why it holds no class numbers.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let path: Arc<Path> = path.into();
        let array = find(&path)?;
        let origin = array.origin.clone();
        if !array.dtype.is_integer() {
            let hint = match array.dtype {
                DataType::Bool => "; convert them with labels.astype(\"int64\")",
                t if t.is_float() && array.dims.len() == 2 => {
                    "; for probabilities or one-hot rows use labels.argmax(-1)"
                }
                _ => "; for class numbers in a float array use labels.astype(\"int64\")",
            };
            let found = array.dtype.short_name();
            return Err(DataError::LabelType {
                origin,
                found,
                hint,
            });
        }
        let (samples, positions) = match array.dims[..] {
            [0, ..] => return Err(DataError::NoSamples(origin)),
            [n] => (n, None),
            [n, t] if t > 0 => (n, Some(t)),
            _ => {
                let found = array.dims;
                return Err(DataError::LabelShape { origin, found });
            }
        };
        let mut bytes = Vec::new();
        array.read(&mut array.open()?, array.size(), 0, &mut bytes)?;
        if array.dtype == DataType::Uint64 {
            let values = bytes.as_chunks::<8>().0.iter();
            let large = values.map(|&b| u64::from_le_bytes(b));
            if let Some(value) = large.into_iter().find(|&v| i64::try_from(v).is_err()) {
                return Err(DataError::LabelValue { origin, value });
            }
        }
        let dims: Vec<i64> = array.dims.iter().map(|&d| d as i64).collect();
        let ids = Tensor::from_raw(array.dtype, &dims, bytes)
            .to_i64()
            .map_err(|e| DataError::Damaged {
                origin: origin.clone(),
                reason: e.to_string(),
            })?;
        Ok(Self {
            origin,
            ids,
            samples,
            positions,
        })
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.samples
    }

    /// Never true: labels without samples do not open.
    pub fn is_empty(&self) -> bool {
        self.samples == 0
    }

    /// Positions of a sample; `None` for one label a sample.
    pub fn positions(&self) -> Option<usize> {
        self.positions
    }

    /// All labels, row by row.
    pub fn ids(&self) -> &[i64] {
        &self.ids
    }

    /// The labels of `samples` samples from `first` on, row by row; shorter where there are not so many.
    pub fn range(&self, first: usize, samples: usize) -> &[i64] {
        let width = self.positions.unwrap_or(1);
        let start = first.saturating_mul(width).min(self.ids.len());
        let end = start.saturating_add(samples.saturating_mul(width));
        &self.ids[start..end.min(self.ids.len())]
    }

    /// Whether there are as many as the data has samples.
    ///
    /// # Errors
    /// [`DataError::LabelCount`].
    pub fn check(&self, samples: usize) -> Result<(), DataError> {
        if self.samples == samples {
            return Ok(());
        }
        Err(DataError::LabelCount {
            origin: self.origin.clone(),
            found: self.samples,
            samples,
        })
    }
}

fn find(path: &Arc<Path>) -> Result<Array, DataError> {
    let extension = path.extension().and_then(|e| e.to_str());
    let origin = |array: Option<String>| Origin {
        path: Arc::clone(path),
        array,
    };
    match extension.map(str::to_ascii_lowercase).as_deref() {
        Some("npy") => Array::npy(origin(None), Place::file(path)?),
        Some("npz") => {
            let mut entries = archive::entries(path)?;
            match (entries.pop(), entries.is_empty()) {
                (Some((name, place)), true) => Array::npy(origin(Some(name)), place),
                (last, _) => {
                    let names = entries.iter().chain(&last).map(|(n, _)| n);
                    Err(DataError::LabelArchive {
                        path: path.to_path_buf(),
                        found: Names::new(names),
                    })
                }
            }
        }
        _ if !path.exists() => Err(DataError::NotFound(path.to_path_buf())),
        _ => Err(DataError::UnknownKind(path.to_path_buf())),
    }
}

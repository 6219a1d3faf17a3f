//! Labels: the class of each sample, or the target id of each position.

use std::path::Path;
use std::sync::Arc;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor};

use super::archive::{self, Place};
use super::array::Array;
use super::csv;
use super::dataset::DataSet;
use super::error::{DataError, Names, Origin};
use super::source;

/// What stands in the place of a file of labels where a text itself has them: the token after each token.
const NEXT_TOKEN: &str = "next-token";

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

    /// The labels of the samples that are used: of a file, else those that the data itself gives.
    ///
    /// A file is an `.npy` or `.npz` with a label for each sample of the whole data, or for folders of images and
    /// recordings a `.csv` with a file and its class on each line. `next-token` stands for the tokens that follow those
    /// of a text that is cut into windows.
    ///
    /// # Errors
    /// As [`Self::open`]; labels that do not match the data.
    pub fn of(path: Option<&Path>, data: &DataSet) -> Result<Option<Self>, DataError> {
        let Some(path) = path else {
            return Ok(data.classes().map(|(path, ids)| Self::classes(path, ids)));
        };
        if path == Path::new(NEXT_TOKEN) && !path.exists() {
            return Self::next_tokens(data).map(Some);
        }
        if source::extension(path).as_deref() == Some("csv") {
            let ids = csv::classes(path, data)?;
            return Ok(Some(Self::classes(path.into(), ids)));
        }
        let labels = Self::open(path)?;
        labels.check(data.source_len())?;
        let mut chosen = labels.clone();
        chosen.samples = data.len();
        chosen.ids.clear();
        for place in 0..data.len() {
            chosen.ids.extend(labels.range(data.source_index(place), 1));
        }
        Ok(Some(chosen))
    }

    fn next_tokens(data: &DataSet) -> Result<Self, DataError> {
        let rows = data.next_tokens().ok_or_else(|| {
            DataError::Spec(format!(
                "--labels {NEXT_TOKEN} is for a text that is cut into windows (--tokenizer and --window), and {} is none",
                data.root().display()
            ))
        })??;
        Ok(Self {
            origin: Origin {
                path: data.root().into(),
                array: None,
            },
            samples: rows.len(),
            positions: rows.first().map(Vec::len),
            ids: rows.concat(),
        })
    }

    fn classes(path: Arc<Path>, ids: Vec<i64>) -> Self {
        Self {
            origin: Origin { path, array: None },
            samples: ids.len(),
            ids,
            positions: None,
        }
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

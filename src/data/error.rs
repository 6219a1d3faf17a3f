//! What can be wrong with calibration or evaluation data: one clear sentence each, with the file and the array.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The place that an array was read from: a file, and the array's name where the file holds several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub path: Arc<Path>,
    /// The name inside the file; `None` where the file is the array.
    pub array: Option<String>,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match &self.array {
            Some(a) => write!(f, ": array `{a}`"),
            None => Ok(()),
        }
    }
}

/// Why data cannot be fed to a model.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No file or folder of that name.
    #[error("{} does not exist", .0.display())]
    NotFound(PathBuf),
    /// The system refused.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of a kind that is no data.
    #[error("{} is no data file: give an .npz, .npy or .safetensors, a folder of them or of images or .wav files, a folder test_data_set_*, a text with --tokenizer, or random:N", .0.display())]
    UnknownKind(PathBuf),
    /// A folder without data.
    #[error("the folder {} holds no .npz, .npy, .safetensors or input_*.pb file, no image and no .wav", .0.display())]
    EmptyFolder(PathBuf),
    /// Data that ends early or does not decode.
    #[error("{origin} is damaged: {reason}")]
    Damaged {
        /// The array or file.
        origin: Origin,
        /// What does not fit.
        reason: String,
    },
    /// An element type that no input can have.
    #[error("{origin}: {descr} is not a type that a model can be fed with; numbers and bool are")]
    Unsupported {
        /// The array.
        origin: Origin,
        /// The type as the file writes it.
        descr: String,
    },
    /// An array that is no input of the model.
    #[error(
        "{origin} is not an input of the model, whose inputs are {inputs}; the data holds {found}{hint}"
    )]
    UnknownArray {
        /// The array.
        origin: Origin,
        /// The names of the inputs.
        inputs: Names,
        /// The names of the arrays.
        found: Names,
        /// Advice that ends the sentence, or nothing.
        hint: String,
    },
    /// An input without an array.
    #[error("{}: no array for the input `{input}`; the data holds {found}", path.display())]
    MissingInput {
        /// The file or folder.
        path: PathBuf,
        /// The input.
        input: String,
        /// The names of the arrays.
        found: Names,
    },
    /// An input with a default that some files of a folder feed and others do not.
    #[error("{}: the input `{input}` has a default in the model: either all files must feed it, or none", path.display())]
    Uneven {
        /// The first file that differs from those before it.
        path: PathBuf,
        /// The input.
        input: String,
    },
    /// Two files or arrays for one input.
    #[error("{origin} is a second array for the input `{input}`")]
    Twice {
        /// The array.
        origin: Origin,
        /// The input.
        input: String,
    },
    /// A file without array names for a model that needs them.
    #[error(
        "{origin} does not say which input it is for, and the model has several ({inputs}): use an .npz, or a folder with a NAME.npy for each"
    )]
    Nameless {
        /// The file.
        origin: Origin,
        /// The names of the inputs.
        inputs: Names,
    },
    /// An array of another rank than its input.
    #[error("{origin} has shape {found:?}, but the input is {expected}{hint}")]
    Rank {
        /// The array.
        origin: Origin,
        /// Its shape.
        found: Vec<usize>,
        /// The declared shape of the input.
        expected: String,
        /// Advice that ends the sentence, or nothing.
        hint: String,
    },
    /// Some arrays hold complete feeds (one axis more than their input) and others do not.
    #[error(
        "{feeds} has one axis more than its input (complete feeds), but {other} has not: either all arrays hold complete feeds, or none"
    )]
    MixedRanks {
        /// An array with one axis more.
        feeds: Origin,
        /// An array of its input's own rank.
        other: Origin,
    },
    /// A dimension that the model fixes to another size.
    #[error(
        "{origin} has size {found} on axis {axis} (shape {dims:?}), but the input is {expected}"
    )]
    Dim {
        /// The array.
        origin: Origin,
        /// The axis of the array, counted from 0.
        axis: usize,
        /// Its size.
        found: usize,
        /// The array's shape.
        dims: Vec<usize>,
        /// The declared shape of the input.
        expected: String,
    },
    /// An element type that is not the input's.
    #[error("{origin} holds {found}, but the input takes {expected}{hint}")]
    Type {
        /// The array.
        origin: Origin,
        /// Its type.
        found: &'static str,
        /// The input's type.
        expected: &'static str,
        /// How to convert.
        hint: String,
    },
    /// An array without samples.
    #[error("{0} holds no samples: its first axis has length 0")]
    NoSamples(Origin),
    /// Arrays of different numbers of samples.
    #[error(
        "{origin} holds {found} samples, but {other} holds {expected}; where axis 0 does not count samples, give all arrays one axis more that does"
    )]
    SampleCount {
        /// The array.
        origin: Origin,
        /// Its samples.
        found: usize,
        /// The array before it.
        other: Origin,
        /// Its samples.
        expected: usize,
    },
    /// A float that is not finite.
    #[error("{origin} holds {value} in sample {sample} (counted from 0)")]
    NotFinite {
        /// The array.
        origin: Origin,
        /// Index on the sample axis of this array; 0 where it has none.
        sample: usize,
        /// NaN or an infinity.
        value: &'static str,
    },
    /// A symbolic dimension with two sizes.
    #[error("the dimension `{symbol}` is {} but {} ({})", uses[0], uses[1], path.display())]
    Symbol {
        /// The file or folder.
        path: PathBuf,
        /// The symbol.
        symbol: String,
        /// Where it has which size.
        uses: Box<[SymbolUse; 2]>,
    },
    /// Axis 0 cannot be the sample axis of all inputs.
    #[error("{}: {reason}: give complete feeds, that is arrays with one axis more than their inputs, each index of it one run of the model", path.display())]
    NoSampleAxis {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A sample that does not fit into memory.
    #[error("{origin}: one batch needs {bytes} bytes, which cannot be had")]
    TooLarge {
        /// The array.
        origin: Origin,
        /// What it needs.
        bytes: usize,
    },
    /// An input of the model that no array can feed.
    #[error("the input `{input}` of the model is {found}, which cannot be fed from arrays")]
    Input {
        /// The input.
        input: String,
        /// What it is.
        found: String,
    },
    /// A model without inputs.
    #[error("the model has no inputs: there is nothing to feed")]
    NoInputs,
    /// Labels of a type that is no class number.
    #[error("{origin} holds {found}, but labels are class numbers of an integer type{hint}")]
    LabelType {
        /// The array.
        origin: Origin,
        /// Its type.
        found: &'static str,
        /// Advice that ends the sentence, or nothing.
        hint: &'static str,
    },
    /// An archive of labels with several arrays, or none.
    #[error("{} must hold the labels as its single array, but holds {found}", path.display())]
    LabelArchive {
        /// The file.
        path: PathBuf,
        /// The names of the arrays.
        found: Names,
    },
    /// Labels of a wrong shape.
    #[error("{origin} has shape {found:?}, but labels are [samples] or [samples, positions]")]
    LabelShape {
        /// The array.
        origin: Origin,
        /// Its shape.
        found: Vec<usize>,
    },
    /// A label beyond the 64-bit signed range.
    #[error("{origin} holds {value}, which is no class number")]
    LabelValue {
        /// The array.
        origin: Origin,
        /// The value.
        value: u64,
    },
    /// Options that do not fit the data or the model.
    #[error("{0}")]
    Spec(String),
    /// A file that cannot be used as a sample.
    #[error("{}: {reason}", path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Labels in another number than the samples.
    #[error("{origin} holds {found} labels, but the data holds {samples} samples")]
    LabelCount {
        /// The array.
        origin: Origin,
        /// The labels.
        found: usize,
        /// The samples.
        samples: usize,
    },
}

impl DataError {
    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound(path),
            _ => Self::Io { path, source },
        }
    }
}

/// One size of a symbolic dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SymbolUse {
    /// The input.
    pub input: String,
    /// The axis of the input, counted from 0.
    pub axis: usize,
    /// The size there.
    pub size: usize,
}

impl fmt::Display for SymbolUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, axis, size } = self;
        write!(f, "{size} on axis {axis} of the input `{input}`")
    }
}

/// Names for a message: `a`, `b`, `c`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(pub Vec<String>);

impl Names {
    pub(super) fn new<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> Self {
        Self(names.into_iter().map(|n| n.as_ref().to_owned()).collect())
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no array");
        }
        for (i, name) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}`{name}`")?;
        }
        Ok(())
    }
}

/// `; did you mean …?` where a name is close, else nothing.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = known
        .into_iter()
        .map(|n| (strsim::damerau_levenshtein(n, name), n))
        .min();
    match near {
        Some((distance, n)) if distance <= 1 + n.len() / 4 => format!("; did you mean `{n}`?"),
        _ => String::new(),
    }
}

//! Recordings (`.wav`), cut into windows: each window is a sample of values from -1 to 1.

use std::path::{Path, PathBuf};

use hound::{SampleFormat, WavReader, WavSpec};
use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Model};

use super::dataset::Made;
use super::error::DataError;
use super::files;
use super::fill::{Fills, listed, put_float};
use super::items::{ItemLayout, Items};
use super::signature::{Input, Signature};
use super::spec::DataSpec;

#[derive(Debug)]
struct AudioItems {
    files: Vec<Recording>,
    samples: usize,
    window: usize,
    /// The shape of a window.
    dims: Vec<usize>,
    dtype: DataType,
}

#[derive(Debug)]
struct Recording {
    path: PathBuf,
    /// The number of its first window.
    first: usize,
    /// Values in the file.
    length: usize,
}

/// The windows of all recordings for the one input that takes them.
pub(super) fn made(
    spec: &DataSpec,
    model: &Model,
    signature: &Signature,
    fills: &Fills,
) -> Result<Made, DataError> {
    let place = input_of(spec, signature, fills)?;
    let input = &signature.inputs[place];
    let window = window(spec, input)?;
    let mut found = files::find(&spec.path, &["wav"])?;
    let mut notes: Vec<String> = found.note(&spec.path, "recordings").into_iter().collect();
    let mut rate = spec.rate.map(|r| (r, None));
    let (mut files, mut good, mut bad) = (Vec::new(), Vec::new(), Vec::new());
    let (mut samples, mut short, mut windows) = (0, 0, Vec::new());
    for path in std::mem::take(&mut found.paths) {
        let length = match length(&path, &mut rate) {
            Ok(length) => length,
            Err(e) if spec.skip_bad => {
                bad.push(e.to_string());
                continue;
            }
            Err(e) => return Err(e),
        };
        short += usize::from(length < window);
        let count = (length / window).max(1);
        files.push(Recording {
            path: path.clone(),
            first: samples,
            length,
        });
        good.push(path);
        windows.push(count);
        samples += count;
    }
    if files.is_empty() {
        return Err(DataError::Spec(format!(
            "{}: not one of its recordings can be used, the first: {}",
            spec.path.display(),
            bad.first().map_or("", String::as_str)
        )));
    }
    if let Some(first) = bad.first() {
        notes.push(format!(
            "SKIPPED {} of {} recordings, the first: {first}",
            bad.len(),
            bad.len() + files.len()
        ));
    }
    if short > 0 {
        notes.push(format!(
            "{short} recordings are shorter than a window of {window} and are filled up with silence"
        ));
    }
    found.paths = good;
    let (classes, note) = found.classes(&spec.path, model);
    notes.extend(note);
    let classes = classes.map(|mut c| {
        let spread = c
            .ids
            .iter()
            .zip(&windows)
            .flat_map(|(&id, &n)| std::iter::repeat_n(id, n));
        c.ids = spread.collect();
        c
    });
    let (layout, dims) = match input.rank() {
        Some(1) => (ItemLayout::Feeds, vec![window]),
        Some(3) if input.fixed(2) == Some(1) && input.fixed(1) != Some(1) => {
            (samples_of(input), vec![window, 1])
        }
        Some(3) => (samples_of(input), vec![1, window]),
        _ => (samples_of(input), vec![window]),
    };
    let items = AudioItems {
        files,
        samples,
        window,
        dims,
        dtype: input.dtype,
    };
    Ok(Made {
        items: Box::new(items),
        layout,
        given: vec![place],
        notes,
        classes,
        skipped: bad.len(),
    })
}

fn samples_of(input: &Input) -> ItemLayout {
    ItemLayout::Samples {
        piece: input.fixed(0),
    }
}

fn input_of(spec: &DataSpec, signature: &Signature, fills: &Fills) -> Result<usize, DataError> {
    let fits = |&i: &usize| {
        let input = &signature.inputs[i];
        let open = fills.0[i].is_none() && !input.optional;
        open && input.dtype.is_float() && matches!(input.rank(), Some(1..=3))
    };
    let places: Vec<usize> = (0..signature.inputs.len()).filter(fits).collect();
    match places[..] {
        [place] => Ok(place),
        [] => Err(DataError::Spec(format!(
            "{}: recordings are for an input of floats with one to three axes, but the model's inputs are {}",
            spec.path.display(),
            signature
                .inputs
                .iter()
                .map(|i| format!("`{}` {i}", i.name))
                .collect::<Vec<_>>()
                .join(", ")
        ))),
        _ => Err(DataError::Spec(format!(
            "{}: the inputs {} all could take the recordings; give the others with --input NAME=VALUE",
            spec.path.display(),
            listed(places.iter().map(|&i| &signature.inputs[i]))
        ))),
    }
}

fn window(spec: &DataSpec, input: &Input) -> Result<usize, DataError> {
    let rank = input.rank().unwrap_or(1);
    let last = match (rank, input.fixed(2)) {
        (3, Some(1)) if input.fixed(1) != Some(1) => input.fixed(1),
        _ => input.fixed(rank - 1),
    };
    match (spec.window, last) {
        (Some(0), _) => Err(DataError::Spec("--window must be 1 or more".to_owned())),
        (Some(given), Some(fixed)) if given != fixed => Err(DataError::Spec(format!(
            "--window {given}: the input `{}` is {input}",
            input.name
        ))),
        (given, fixed) => given.or(fixed).ok_or_else(|| {
            DataError::Spec(format!(
                "{}: give the number of values in a sample with --window; the input `{}` is {input}",
                spec.path.display(),
                input.name
            ))
        }),
    }
}

/// The number of values of a recording, whose rate must be that of the others.
fn length(path: &Path, rate: &mut Option<(u32, Option<PathBuf>)>) -> Result<usize, DataError> {
    let reader = open(path)?;
    let WavSpec {
        channels,
        sample_rate,
        ..
    } = reader.spec();
    let bad = |reason: String| DataError::Bad {
        path: path.to_owned(),
        reason,
    };
    if channels != 1 {
        return Err(bad(format!(
            "the recording has {channels} channels, but a model is fed one; mix them first"
        )));
    }
    match rate {
        Some((wanted, first)) if *wanted != sample_rate => {
            let from = first
                .as_ref()
                .map_or("--rate".to_owned(), |p| p.display().to_string());
            return Err(bad(format!(
                "the recording has {sample_rate} samples a second, but {from} has {wanted}; bring it to that rate first"
            )));
        }
        Some(_) => {}
        None => *rate = Some((sample_rate, Some(path.to_owned()))),
    }
    match reader.duration() {
        0 => Err(bad("the recording is empty".to_owned())),
        n => Ok(n as usize),
    }
}

fn open(path: &Path) -> Result<WavReader<std::io::BufReader<std::fs::File>>, DataError> {
    WavReader::open(path).map_err(|e| match e {
        hound::Error::IoError(e) if e.kind() == std::io::ErrorKind::NotFound => {
            DataError::io(path, e)
        }
        e => unreadable(path, &e.to_string()),
    })
}

fn unreadable(path: &Path, reason: &str) -> DataError {
    DataError::Bad {
        path: path.to_owned(),
        reason: format!(
            "the recording cannot be read ({reason}); --skip-bad leaves such files out"
        ),
    }
}

impl AudioItems {
    fn at(&self, index: usize) -> (&Recording, usize) {
        let after = self.files.partition_point(|f| f.first <= index);
        let file = &self.files[after.saturating_sub(1)];
        (file, (index - file.first) * self.window)
    }
}

impl Items for AudioItems {
    fn len(&self) -> usize {
        self.samples
    }

    fn dims(&self, _: usize) -> Vec<Vec<usize>> {
        vec![self.dims.clone()]
    }

    fn read(&self, index: usize, out: &mut [Vec<u8>]) -> Result<(), DataError> {
        let (file, start) = self.at(index);
        let fail = |e: hound::Error| unreadable(&file.path, &e.to_string());
        let mut reader = open(&file.path)?;
        let spec = reader.spec();
        let start = u32::try_from(start).map_err(|_| unreadable(&file.path, "it is too long"))?;
        reader
            .seek(start)
            .map_err(|e| fail(hound::Error::IoError(e)))?;
        let count = self.window.min(file.length - start as usize);
        let mut values: Vec<f64> = Vec::with_capacity(self.window);
        match spec.sample_format {
            SampleFormat::Float => {
                for v in reader.samples::<f32>().take(count) {
                    values.push(f64::from(v.map_err(fail)?));
                }
            }
            SampleFormat::Int => {
                let unit = f64::from(1_u32 << (spec.bits_per_sample - 1));
                for v in reader.samples::<i32>().take(count) {
                    values.push(f64::from(v.map_err(fail)?) / unit);
                }
            }
        }
        if values.len() < count {
            return Err(unreadable(&file.path, "it ends early"));
        }
        if let Some(bad) = values.iter().position(|v| !v.is_finite()) {
            return Err(unreadable(
                &file.path,
                &format!("value {} is not finite", start as usize + bad),
            ));
        }
        values.resize(self.window, 0.0);
        let mut put = |v: f64| put_float(v, self.dtype, &mut out[0]);
        values
            .into_iter()
            .try_for_each(&mut put)
            .map_err(DataError::Spec)
    }

    fn file(&self, index: usize) -> Option<&Path> {
        Some(&self.at(index).0.path)
    }

    fn is_costly(&self) -> bool {
        true
    }
}

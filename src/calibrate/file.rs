//! Calibration as a file: gathered by one process, by shards, or by a run that was interrupted and goes on.
//!
//! While a run gathers, what it has stands in a checkpoint beside the output, which replaces the one before it in one
//! step; it vanishes when the output is there. So at any moment each file is complete or absent.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{Model, save};
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::observation::{self, Point};
use onnx_quant_passes::settings::QuantSettings;
use sha2::{Digest, Sha256};

use super::{batch_size, gather, shard};
use crate::data::{DataSet, DataSpec};
use crate::error::Error;
use crate::stages::{Loaded, Normalized};

/// Time between two checkpoints.
const INTERVAL: Duration = Duration::from_secs(5);

/// What is to be gathered.
#[derive(Debug, Clone)]
pub struct FileJob {
    /// The float model.
    pub model: PathBuf,
    /// Calibration data.
    pub data: DataSpec,
    /// Inputs with a default that stay inputs.
    pub keep_inputs: Vec<String>,
    /// Observe every value that could be forced into integers, not only those that the rules of a target quantize.
    pub all_values: bool,
    /// One part of the data: shard `k` of `n`, counted from 1.
    pub shard: Option<(usize, usize)>,
    /// Go on from the checkpoint, if there is one.
    pub resume: bool,
    /// Where the statistics go.
    pub output: PathBuf,
}

/// What was gathered.
#[derive(Debug)]
pub struct Gathered {
    /// The statistics that were written.
    pub calibration: Calibration,
    /// Samples that the checkpoint had already.
    pub resumed: usize,
}

/// The checkpoint of an output: its name with `.part` appended.
pub fn checkpoint(output: &Path) -> PathBuf {
    let mut name = OsString::from(output);
    name.push(".part");
    PathBuf::from(name)
}

/// Gathers the statistics of a model and writes them.
///
/// # Errors
/// A model or data that cannot be used, a checkpoint of something else, or a file that cannot be written.
pub fn calibrate_to_file(job: &FileJob, engine: &Arc<dyn Engine>) -> Result<Gathered, Error> {
    let normalized = Loaded::open(&job.model)?
        .keep_inputs(job.keep_inputs.clone())
        .normalize()?;
    let digest = save::digest(normalized.float())?;
    let data = job.data.open(normalized.model())?;
    let points = points(&normalized, job.all_values)?;
    let batches = match job.shard {
        Some((k, n)) => shard(&data, k, n),
        None => 0..super::batch_count(&data),
    };
    let mut start = Calibration::new(digest, data.len());
    start.engine = engine.name().to_owned();
    start.data = first_batch(&data)?;
    start.notes = data.notes();
    start.notes.sort();
    start.notes.dedup();
    let path = checkpoint(&job.output);
    let known = match job.resume && path.exists() {
        true => resume(&path, &start, &points, &data, &batches)?,
        false => start,
    };
    let resumed = known.samples;
    let mut last: Option<Instant> = None;
    let mut keep = |c: &Calibration| {
        if last.is_some_and(|at| at.elapsed() < INTERVAL) {
            return Ok(());
        }
        write(c, &path)?;
        last = Some(Instant::now());
        Ok(())
    };
    let model = normalized.model();
    let mut calibration = gather(model, engine, &data, &points, batches, known, &mut keep)?;
    for p in &points {
        // A shard without samples has the values of the others.
        let stats = calibration.values.entry(p.key.clone());
        stats.or_insert_with(|| onnx_quant_numerics::stats::TensorStats::new(&p.axes));
    }
    write(&calibration, &job.output)?;
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::usage(format!(
            "the statistics are complete, but the checkpoint {} cannot be removed: {e}",
            path.display()
        ))),
        _ => Ok(Gathered {
            calibration,
            resumed,
        }),
    }
}

fn points(normalized: &Normalized, all: bool) -> Result<Vec<Point>, Error> {
    let model: &Model = normalized.model();
    let settings = QuantSettings::default();
    let mut points = observation::points(model, &settings).map_err(Error::Usage)?;
    if all {
        points.extend(observation::all_points(model));
        points.sort();
        points.dedup();
    }
    Ok(points)
}

/// A digest of the first batch, by which parts of other data are told apart.
fn first_batch(data: &DataSet) -> Result<String, Error> {
    let size = batch_size(data.len());
    // No batch is read ahead.
    let Some(batch) = data.clone().limit(size).batches(size).next() else {
        return Ok(String::new());
    };
    let mut hash = Sha256::new();
    for tensor in &batch?.tensors {
        for &d in tensor.dims() {
            hash.update(d.to_le_bytes());
        }
        let bytes = tensor
            .bytes()
            .map_err(|e| Error::usage(format!("the data cannot be read: {e}")))?;
        hash.update(&bytes);
    }
    let text = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    Ok(text)
}

/// The statistics of a checkpoint, which must be of the beginning of the same work.
fn resume(
    path: &Path,
    start: &Calibration,
    points: &[Point],
    data: &DataSet,
    batches: &Range<usize>,
) -> Result<Calibration, Error> {
    let known = read(path)?;
    let fail = |what: &str| {
        Err(Error::usage(format!(
            "--resume: the checkpoint {} {what}: remove it, or run without --resume to start anew",
            path.display()
        )))
    };
    if known.model != start.model {
        return fail("belongs to another model");
    }
    if let Err(e) = known.check_engine(&start.engine) {
        return fail(&e.to_string());
    }
    if (known.of, &known.data, &known.notes) != (start.of, &start.data, &start.notes) {
        return fail("belongs to other data");
    }
    if !known.values.keys().eq(points.iter().map(|p| &p.key)) {
        return fail("was made with other options: other values were observed");
    }
    let size = batch_size(data.len());
    let steps = data.batches(size).take(batches.end).skip(batches.start);
    let first = steps
        .map(|b| b.map(|b| b.first_sample))
        .next()
        .transpose()?;
    let begins = known.parts.first().map(|part| part.0);
    if known.parts.len() > 1 || begins != first {
        return fail("is of another shard");
    }
    Ok(known)
}

/// Writes statistics, all or nothing.
///
/// # Errors
/// What the file system says.
pub fn write(calibration: &Calibration, path: &Path) -> Result<(), Error> {
    Ok(save::write_atomically(path, |f| calibration.write(f))?)
}

/// Reads statistics.
///
/// # Errors
/// A file that cannot be read, or holds something else.
pub fn read(path: &Path) -> Result<Calibration, Error> {
    let named = |e: &dyn std::fmt::Display| Error::usage(format!("{} {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| named(&format!("cannot be read: {e}")))?;
    Calibration::read(&bytes).map_err(|e| named(&e))
}

/// Merges the statistics of several files, in any order, with the same result as of one run over all.
///
/// # Errors
/// A file that is none, or that does not belong to the others.
pub fn merge(paths: &[PathBuf]) -> Result<Calibration, Error> {
    let mut all: Option<Calibration> = None;
    for path in paths {
        let part = read(path)?;
        match &mut all {
            None => all = Some(part),
            Some(all) => all
                .merge(&part)
                .map_err(|e| Error::usage(format!("{} {e}", path.display())))?,
        }
    }
    all.ok_or_else(|| Error::usage("--merge needs files"))
}

/// Reads statistics for a model and refuses those of another one.
///
/// # Errors
/// As [`read`]; another model; no samples.
pub fn read_for(path: &Path, float: &Model) -> Result<Calibration, Error> {
    let calibration = read(path)?;
    calibration
        .check_model(&save::digest(float)?)
        .map_err(|e| Error::usage(format!("{} {e}", path.display())))?;
    if calibration.samples == 0 {
        return Err(Error::usage(format!(
            "{} holds no samples: merge it with the other shards first",
            path.display()
        )));
    }
    Ok(calibration)
}

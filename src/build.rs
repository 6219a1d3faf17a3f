//! Quantization in build scripts: a float model in the repository, a quantized one in the program.
//!
//! In `build.rs`:
//! ```no_run
//! fn main() -> Result<(), onnx_quant::build::BuildError> {
//!     onnx_quant::build::Quantize::new("models/net.onnx")
//!         .calibration("models/calib.npz")
//!         .evaluation("models/eval.npz")
//!         .max_drop(0.01)
//!         .emit()
//!         .map(|_| ())
//! }
//! ```
//! and in the program, with the crate as a dependency too or with the file that `emit` names:
//! ```ignore
//! mod net {
//!     include!(concat!(env!("OUT_DIR"), "/net.rs"));
//! }
//! ```
//! The same is written by [`include_model!`](crate::include_model). The module has `BYTES`, and `INPUTS` and `OUTPUTS` with names, types and shapes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::save::{self, ExternalData};
use onnx_quant_ir::{Model, load};
use onnx_quant_passes::settings::QuantSettings;

use crate::data::DataSpec;
use crate::engine::TractEngine;
use crate::error::Error;
use crate::quantize::{Job, Quantized, quantize};

mod cache;
mod code;

/// Why a build fails.
pub enum BuildError {
    /// What the library says.
    Failed(Box<Error>),
    /// More is lost than is allowed.
    Budget {
        /// The model.
        model: PathBuf,
        /// The metric.
        metric: String,
        /// Of the float model and of the quantized one.
        values: (f64, f64),
        /// What is lost.
        drop: f64,
        /// What is allowed.
        max_drop: f64,
        /// The values that lose most.
        worst: Vec<String>,
        /// Where the whole report is.
        report: PathBuf,
    },
}

impl std::error::Error for BuildError {}

impl From<Error> for BuildError {
    fn from(e: Error) -> Self {
        Self::Failed(Box::new(e))
    }
}

impl std::fmt::Display for BuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Failed(e) => write!(f, "{e}"),
            Self::Budget {
                model,
                metric,
                values: (a, b),
                drop,
                max_drop,
                worst,
                report,
            } => write!(
                f,
                "{} loses too much when it is quantized: {metric} {a:.4} → {b:.4}, a drop of {:.2} % where {:.2} % is allowed.\n\
                 Values that lose most: {}\nReport: {}\n\
                 Allow more (max_drop), leave layers in float (exclude), or give more calibration data.",
                model.display(),
                drop * 100.0,
                max_drop * 100.0,
                if worst.is_empty() {
                    "none is known by name".to_owned()
                } else {
                    worst.join(", ")
                },
                report.display()
            ),
        }
    }
}

/// A build script that ends with an error prints it in this form: the message is for people.
impl std::fmt::Debug for BuildError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// What [`Quantize::emit`] wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Emitted {
    /// The quantized model.
    pub model: PathBuf,
    /// The report, JSON.
    pub report: PathBuf,
    /// The module with bytes, names and shapes, Rust.
    pub module: PathBuf,
    /// Nothing had changed: the files are those of an earlier build.
    pub cached: bool,
}

/// A model that is quantized when the crate is built. Relative paths start from the folder of the crate.
#[derive(Debug, Clone)]
pub struct Quantize {
    model: PathBuf,
    calibration: Option<DataSpec>,
    evaluation: Option<DataSpec>,
    labels: Option<PathBuf>,
    max_drop: Option<f64>,
    settings: QuantSettings,
    config: Option<PathBuf>,
    #[cfg(feature = "config")]
    profile: Option<String>,
    name: Option<String>,
    out_dir: Option<PathBuf>,
    cache_dir: Option<PathBuf>,
}

impl Quantize {
    /// The float model.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            calibration: None,
            evaluation: None,
            labels: None,
            max_drop: None,
            settings: QuantSettings::default(),
            config: None,
            #[cfg(feature = "config")]
            profile: None,
            name: None,
            out_dir: None,
            cache_dir: None,
        }
    }

    /// Data that ranges are learnt from; without it only weights are quantized.
    pub fn calibration(mut self, data: impl Into<DataSpec>) -> Self {
        self.calibration = Some(data.into());
        self
    }

    /// Data that both models are run on and compared.
    pub fn evaluation(mut self, data: impl Into<DataSpec>) -> Self {
        self.evaluation = Some(data.into());
        self
    }

    /// Labels of the evaluation data.
    pub fn labels(mut self, file: impl Into<PathBuf>) -> Self {
        self.labels = Some(file.into());
        self
    }

    /// The most that may be lost, 0.01 for one point. Without evaluation data the calibration data is used for it.
    pub fn max_drop(mut self, drop: f64) -> Self {
        self.max_drop = Some(drop);
        self
    }

    /// Formats, ranges, nodes. A configuration file takes their place.
    pub fn settings(mut self, settings: QuantSettings) -> Self {
        self.settings = settings;
        self
    }

    /// A configuration file; what is given here wins over its keys.
    #[cfg(feature = "config")]
    pub fn config(mut self, file: impl Into<PathBuf>) -> Self {
        self.config = Some(file.into());
        self
    }

    /// The profile of the configuration.
    #[cfg(feature = "config")]
    pub fn profile(mut self, name: &str) -> Self {
        self.profile = Some(name.to_owned());
        self
    }

    /// The name of the files and of the module: by default that of the model's file.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Where files go, in place of `OUT_DIR`.
    pub fn out_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.out_dir = Some(folder.into());
        self
    }

    /// Keeps what was made in this folder too, which `cargo clean` does not empty: give a folder outside `target`.
    pub fn cache_dir(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(folder.into());
        self
    }

    /// Quantizes, writes `NAME.onnx`, `NAME.json` and `NAME.rs`, and tells Cargo which files the build depends on. Does
    /// nothing where none of them has changed.
    ///
    /// # Errors
    /// A file that is missing or broken; a budget that is exceeded.
    #[expect(
        clippy::result_large_err,
        reason = "a build fails once, and says all that it knows"
    )]
    pub fn emit(&self) -> Result<Emitted, BuildError> {
        self.emit_to(&mut std::io::stdout().lock())
    }

    /// [`emit`](Self::emit) with the lines for Cargo going elsewhere.
    ///
    /// # Errors
    /// As `emit`.
    #[expect(
        clippy::result_large_err,
        reason = "a build fails once, and says all that it knows"
    )]
    pub fn emit_to(&self, cargo: &mut dyn std::io::Write) -> Result<Emitted, BuildError> {
        let out = match (&self.out_dir, std::env::var_os("OUT_DIR")) {
            (Some(folder), _) => folder.clone(),
            (None, Some(folder)) => PathBuf::from(folder),
            (None, None) => {
                return Err(Error::usage(
                    "OUT_DIR is not set: call emit() in a build script, or give out_dir",
                )
                .into());
            }
        };
        let name = self.module_name()?;
        let job = self.job()?;
        let mut inputs = self.inputs(&job);
        let mut depends = |path: &Path| {
            let _ = writeln!(cargo, "cargo::rerun-if-changed={}", path.display());
        };
        inputs.iter().for_each(|p| depends(p));
        if let Some(missing) = inputs.iter().find(|f| !f.exists()) {
            let folder = std::env::current_dir().unwrap_or_default();
            return Err(Error::usage(format!(
                "{} does not exist (looked for from {})",
                missing.display(),
                folder.display()
            ))
            .into());
        }
        let external = external_files(&self.model)?;
        external.iter().for_each(|p| depends(p));
        inputs.extend(external);
        let emitted = Emitted {
            model: out.join(format!("{name}.onnx")),
            report: out.join(format!("{name}.json")),
            module: out.join(format!("{name}.rs")),
            cached: true,
        };
        let key = cache::key(&format!("{job:?}"), &inputs, &emitted)?;
        if cache::holds(&emitted, &key) || self.restore(&emitted, &key, &inputs)? {
            return Ok(emitted);
        }
        let engine: Arc<dyn Engine> = Arc::new(TractEngine);
        let done = quantize(&job, &engine, &mut |_| {})?;
        self.write(&emitted, &done)?;
        if !done.budget_holds() {
            let _ = fs::remove_file(&emitted.model);
            return Err(over_budget(&job, &emitted, &done));
        }
        cache::seal(&emitted, &key, &inputs)?;
        if let Some(folder) = &self.cache_dir {
            cache::keep(&emitted, folder, &key)?;
        }
        Ok(Emitted {
            cached: false,
            ..emitted
        })
    }

    /// The name of the files: letters, digits and `_`.
    fn module_name(&self) -> Result<String, Error> {
        let stem = self.model.file_stem().map(|s| s.to_string_lossy());
        let name = self
            .name
            .clone()
            .or(stem.map(|s| s.into_owned()))
            .unwrap_or_default();
        let name: String = name
            .chars()
            .map(|c| {
                if c.is_alphanumeric() || c == '_' {
                    c
                } else {
                    '_'
                }
            })
            .collect();
        if name.is_empty() {
            let model = self.model.display();
            return Err(Error::usage(format!("`{model}` is no file name")));
        }
        Ok(name)
    }

    #[cfg(feature = "config")]
    fn job(&self) -> Result<Job, Error> {
        let mut job = match &self.config {
            Some(config) => crate::cli::job_of(&self.model, config, self.profile.as_deref())
                .map_err(Error::Usage)?,
            None => self.plain_job(),
        };
        self.override_job(&mut job);
        Ok(job)
    }

    #[cfg(not(feature = "config"))]
    fn job(&self) -> Result<Job, Error> {
        let mut job = self.plain_job();
        self.override_job(&mut job);
        Ok(job)
    }

    fn plain_job(&self) -> Job {
        Job {
            model: self.model.clone(),
            settings: self.settings.clone(),
            ..Job::default()
        }
    }

    /// What is given here wins.
    fn override_job(&self, job: &mut Job) {
        let set = |mine: &Option<DataSpec>, theirs: &mut Option<DataSpec>| {
            if mine.is_some() {
                theirs.clone_from(mine);
            }
        };
        set(&self.calibration, &mut job.calibration);
        set(&self.evaluation, &mut job.evaluation);
        job.labels = self.labels.clone().or(job.labels.take());
        job.max_drop = self.max_drop.or(job.max_drop);
        if job.max_drop.is_some() && job.evaluation.is_none() && job.metric.is_none() {
            job.evaluation.clone_from(&job.calibration);
        }
    }

    /// The files that the result depends on, but for external data.
    fn inputs(&self, job: &Job) -> Vec<PathBuf> {
        let mut files = vec![self.model.clone()];
        files.extend(self.config.clone());
        for data in [&job.calibration, &job.evaluation].into_iter().flatten() {
            if !data.path.to_string_lossy().starts_with("random:") {
                files.push(data.path.clone());
            }
            files.extend(data.tokenizer.clone());
        }
        files.extend(job.labels.clone());
        files.extend(job.statistics.clone());
        files.extend(job.encodings.clone());
        files.sort();
        files.dedup();
        files
    }

    fn restore(&self, emitted: &Emitted, key: &str, inputs: &[PathBuf]) -> Result<bool, Error> {
        match &self.cache_dir {
            Some(folder) => cache::restore(emitted, folder, key, inputs),
            None => Ok(false),
        }
    }

    fn write(&self, emitted: &Emitted, done: &Quantized) -> Result<(), Error> {
        cache::unseal(emitted);
        save::save(&done.model, &emitted.model, ExternalData::Auto)?;
        let report = serde_json::to_string_pretty(&done.report)
            .map_err(|e| Error::usage(format!("the report cannot be written: {e}")))?;
        save::write_atomically(&emitted.report, |f| f.write_all(report.as_bytes()))?;
        let module = code::module(&done.model, &emitted.model);
        save::write_atomically(&emitted.module, |f| f.write_all(module.as_bytes()))?;
        Ok(())
    }
}

/// The files of external data that a model names.
fn external_files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let model: Model = load::load(path)?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut files: Vec<PathBuf> = model
        .all_values()
        .into_iter()
        .filter_map(|v| model.value(v).init.as_ref())
        .filter(|t| t.is_external())
        .flat_map(|t| &t.proto().external_data)
        .filter(|p| p.key() == "location")
        .map(|p| folder.join(p.value()))
        .collect();
    files.sort();
    files.dedup();
    Ok(files)
}

fn over_budget(job: &Job, emitted: &Emitted, done: &Quantized) -> BuildError {
    let check = done.report.check.as_ref();
    let worst = check.map_or_else(Vec::new, |c| {
        c.layers.iter().take(5).map(|l| l.value.clone()).collect()
    });
    let nan = f64::NAN;
    BuildError::Budget {
        model: job.model.clone(),
        metric: check.map_or_else(String::new, |c| c.task.metric.clone()),
        values: check.map_or((nan, nan), |c| (c.task.reference, c.task.candidate)),
        drop: check.map_or(nan, |c| c.task.drop),
        max_drop: job.max_drop.unwrap_or(nan),
        worst,
        report: emitted.report.clone(),
    }
}

/// Includes the module that [`build::Quantize::emit`](Quantize::emit) wrote under this name: `BYTES`, the model itself;
/// `INPUTS` and `OUTPUTS`, each port with its name, type and shape.
///
/// The macro is no part of what is compiled in: a program that does not depend on this crate at run time writes
/// `include!(concat!(env!("OUT_DIR"), "/net.rs"))` for the same.
#[macro_export]
macro_rules! include_model {
    ($name:literal) => {
        include!(concat!(env!("OUT_DIR"), "/", $name, ".rs"));
    };
}

//! Metrics of the user: a closure over a model file or over outputs, or an external command.

use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::save::{self, ExternalData};
use onnx_quant_ir::{Model, Tensor};

use crate::calibrate::windows;
use crate::check::Task;
use crate::data::{DataSet, Labels};
use crate::error::Error;
use crate::prepared::Prepared;

/// What stands for the path of the model in a command.
const PLACE: &str = "{model}";

/// The outputs of a model for one batch of samples.
#[derive(Debug)]
pub struct Scored<'a> {
    /// The outputs in the order of the model's signature. In the last batch of a model with a fixed batch, rows after
    /// the first [`samples`](Self::samples) repeat the last sample.
    pub outputs: &'a [Tensor],
    /// Their names.
    pub names: &'a [String],
    /// The first sample of the batch.
    pub first_sample: usize,
    /// The number of samples.
    pub samples: usize,
    /// The labels of these samples, where there are labels.
    pub labels: Option<&'a [i64]>,
}

type OfModel = dyn Fn(&Path) -> Result<f64, String> + Send + Sync;
type OfOutputs = dyn Fn(&Scored<'_>) -> Result<f64, String> + Send + Sync;

#[derive(Clone)]
enum Kind {
    Model(Arc<OfModel>),
    Outputs(Arc<OfOutputs>),
    Command(String),
}

/// A number that judges a model, from outside this crate.
///
/// ```
/// use onnx_quant::metric::Metric;
///
/// let size = Metric::of_model("kilobytes", |file| {
///     let bytes = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
///     Ok(bytes as f64 / 1e3)
/// })
/// .lower_is_better();
/// assert_eq!(size.name(), "kilobytes");
/// assert!(Metric::command("python eval.py").is_err()); // `{model}` is missing
/// # Metric::command("python eval.py {model}")?;
/// # Ok::<(), onnx_quant::Error>(())
/// ```
#[derive(Clone)]
pub struct Metric {
    name: String,
    lower_is_better: bool,
    kind: Kind,
}

impl Metric {
    /// A closure that gets the path of a model file.
    pub fn of_model(
        name: &str,
        judge: impl Fn(&Path) -> Result<f64, String> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, Kind::Model(Arc::new(judge)))
    }

    /// A closure that gets the outputs of a batch and gives the mean score of its samples. The metric is the mean over
    /// all samples of the evaluation data.
    pub fn of_outputs(
        name: &str,
        score: impl Fn(&Scored<'_>) -> Result<f64, String> + Send + Sync + 'static,
    ) -> Self {
        Self::new(name, Kind::Outputs(Arc::new(score)))
    }

    /// A command of the shell; `{model}` becomes the path of a model file, quoted. The last line that it prints is the
    /// number.
    ///
    /// # Errors
    /// A command without `{model}`.
    pub fn command(command: &str) -> Result<Self, Error> {
        if !command.contains(PLACE) {
            return Err(Error::usage(format!(
                "--metric-command `{command}` does not say where the model goes: write {PLACE}, as in `python eval.py {PLACE}`"
            )));
        }
        Ok(Self::new("metric", Kind::Command(command.to_owned())))
    }

    fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.to_owned(),
            lower_is_better: false,
            kind,
        }
    }

    /// A smaller number is better (a perplexity, an error). The drop is then the relative rise, `b / a − 1`; else it is
    /// the difference `a − b`.
    pub fn lower_is_better(mut self) -> Self {
        self.lower_is_better = true;
        self
    }

    /// Another name for reports.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The name in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it needs evaluation data of the caller: a closure over outputs does, the others bring their own.
    pub fn needs_data(&self) -> bool {
        matches!(self.kind, Kind::Outputs(_))
    }

    /// Judges two models. `reference_file` saves writing the first one where it has a file.
    ///
    /// # Errors
    /// What the closure or command says, and numbers that are none.
    pub fn compare(
        &self,
        (reference, reference_file): (&Model, Option<&Path>),
        candidate: &Model,
        engine: &Arc<dyn Engine>,
        data: Option<(&DataSet, Option<&Labels>)>,
    ) -> Result<Task, Error> {
        let a = self.judge(reference, reference_file, engine, data)?;
        let b = self.judge(candidate, None, engine, data)?;
        Ok(Task {
            interval: None,
            metric: self.name.clone(),
            reference: a,
            candidate: b,
            drop: if self.lower_is_better {
                b / a - 1.0
            } else {
                a - b
            },
            top5: None,
        })
    }

    fn judge(
        &self,
        model: &Model,
        file: Option<&Path>,
        engine: &Arc<dyn Engine>,
        data: Option<(&DataSet, Option<&Labels>)>,
    ) -> Result<f64, Error> {
        let number = match &self.kind {
            Kind::Outputs(score) => {
                let (data, labels) = data.ok_or_else(|| {
                    Error::usage(format!(
                        "the metric `{}` judges outputs, and there is no evaluation data to run",
                        self.name
                    ))
                })?;
                self.over_outputs(score.as_ref(), model, engine, data, labels)?
            }
            kind => {
                let folder = tempfile::Builder::new().prefix("onnx-quant-").tempdir();
                let folder = folder
                    .map_err(|e| Error::usage(format!("cannot make a temporary folder: {e}")))?;
                let path = match file {
                    Some(path) => path.to_owned(),
                    None => {
                        let path = folder.path().join("model.onnx");
                        save::save(model, &path, ExternalData::Auto)?;
                        path
                    }
                };
                match kind {
                    Kind::Model(judge) => judge(&path).map_err(|e| self.failed(&e))?,
                    Kind::Command(command) => run(command, &path)?,
                    Kind::Outputs(_) => f64::NAN,
                }
            }
        };
        if number.is_finite() {
            Ok(number)
        } else {
            Err(self.failed(&format!("it gives {number}")))
        }
    }

    fn failed(&self, why: &str) -> Error {
        Error::usage(format!("the metric `{}` failed: {why}", self.name))
    }

    fn over_outputs(
        &self,
        score: &OfOutputs,
        model: &Model,
        engine: &Arc<dyn Engine>,
        data: &DataSet,
        labels: Option<&Labels>,
    ) -> Result<f64, Error> {
        let outputs = &model.main().outputs;
        let names: Vec<String> = outputs
            .iter()
            .map(|&v| model.value(v).name.clone())
            .collect();
        let prepared = Prepared::new(engine, model, Vec::new());
        let (mut sum, mut samples) = (0.0, 0usize);
        for window in windows(data, rayon::current_num_threads()) {
            for batch in window? {
                let outputs = prepared.run(data, &batch, None)?;
                let scored = Scored {
                    outputs: &outputs,
                    names: &names,
                    first_sample: batch.first_sample,
                    samples: batch.samples,
                    labels: labels.map(|l| l.range(batch.first_sample, batch.samples)),
                };
                sum += score(&scored).map_err(|e| self.failed(&e))? * batch.samples as f64;
                samples += batch.samples;
            }
        }
        Ok(sum / samples.max(1) as f64)
    }
}

impl fmt::Debug for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metric")
            .field("name", &self.name)
            .field("lower_is_better", &self.lower_is_better)
            .finish_non_exhaustive()
    }
}

/// Runs a command with the model's path in its place and reads the last line.
fn run(command: &str, model: &Path) -> Result<f64, Error> {
    let path = model.display().to_string();
    let fail = |why: String| Error::usage(format!("--metric-command `{command}`: {why}"));
    let mut shell = if cfg!(windows) {
        let mut shell = Command::new("cmd");
        shell.args(["/C", &command.replace(PLACE, &format!("\"{path}\""))]);
        shell
    } else {
        let quoted = format!("'{}'", path.replace('\'', r"'\''"));
        let mut shell = Command::new("sh");
        shell.args(["-c", &command.replace(PLACE, &quoted)]);
        shell
    };
    let out = shell
        .output()
        .map_err(|e| fail(format!("cannot be started: {e}")))?;
    let last = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
        lines.next_back().unwrap_or("").to_owned()
    };
    if !out.status.success() {
        return Err(fail(format!(
            "ended with {} on {path}: {}",
            out.status,
            last(&out.stderr)
        )));
    }
    let line = last(&out.stdout);
    line.parse::<f64>().map_err(|_| {
        fail(format!(
            "its last line must be a number, and is `{line}` on {path}"
        ))
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[cfg(unix)]
    #[test]
    fn the_last_line_of_a_command_is_the_number() {
        let path = Path::new("it's a model.onnx");
        let number = run("echo for {model}; printf '0.75\\n\\n'", path);
        assert_eq!(number.unwrap(), 0.75);
        let error = run("echo {model}", path).unwrap_err().to_string();
        assert!(error.contains("is `it's a model.onnx`"), "{error}");
        let error = run("echo no such file >&2; exit 3 {model}", path)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("3") && error.contains("no such file"),
            "{error}"
        );
    }
}

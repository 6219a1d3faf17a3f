//! The stages of the pipeline as types: `Loaded → Normalized → Calibrated → Planned → Rewritten → Checked`.
//!
//! Each stage is made from the one before it, so that no step can be left out or done twice. What a stage holds can be
//! read, and where it makes sense changed, before the next one is made. [`quantize`](crate::quantize::quantize) walks
//! the whole way.
//!
//! ```
//! use std::sync::Arc;
//! use onnx_quant::data::{DataSet, Signature};
//! use onnx_quant::engine::TractEngine;
//! use onnx_quant::ir::engine::Engine;
//! use onnx_quant::passes::settings::QuantSettings;
//! use onnx_quant::quantize::Evaluation;
//! use onnx_quant::stages::Loaded;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let demo = onnx_quant::demo::write(folder.path())?;
//! let engine: Arc<dyn Engine> = Arc::new(TractEngine);
//!
//! let normalized = Loaded::open(&demo.model)?.normalize()?;
//! let data = DataSet::open(&demo.calibration, &Signature::of(normalized.model())?)?;
//! let planned = normalized
//!     .calibrate(QuantSettings::default(), &data.limit(16), &engine)?
//!     .plan()?;
//! let rewritten = planned.rewrite()?;
//! let evaluation =
//!     Evaluation::from_files(rewritten.float(), &demo.evaluation, Some(&demo.labels))?;
//! let checked = rewritten.check(&engine, Some(&evaluation), None)?;
//! assert!(checked.check().task.drop < 0.02);
//! # Ok(())
//! # }
//! ```

mod compare;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::save::{self, ExternalData, Written};
use onnx_quant_ir::{Model, load};
use onnx_quant_passes::assign_precision::wanted_statistics;
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::codebook_weights::Importance;
use onnx_quant_passes::freeze_initializers::KeepInputs;
use onnx_quant_passes::normals::ChannelNormals;
use onnx_quant_passes::observation;
use onnx_quant_passes::plan::{Precision, PrecisionPlan};
use onnx_quant_passes::settings::QuantSettings;

use crate::calibrate::auto;
use crate::check::CheckReport;
use crate::data::DataSet;
use crate::error::Error;
use crate::extend::{Extensions, Stage};
use crate::metadata::{self, Metadata};
use crate::metric::Metric;
use crate::observe;
use crate::optimize;
use crate::pipeline::{self, Run, Watch};
use crate::quantize::{Evaluation, file_size};

pub use compare::compare;

/// What is said where there is no calibration data.
pub(crate) const NO_DATA: &str = "no calibration data: only weights are quantized, activations stay in float; give --calib for integer kernels";

/// What every stage hands on: the float model and where it is from, the run of passes, and what the user should know.
pub(crate) struct Carried {
    pub(crate) path: Option<PathBuf>,
    pub(crate) float: Model,
    pub(crate) float_bytes: u64,
    pub(crate) run: Run,
    pub(crate) notes: Vec<String>,
}

/// A float model as it was read.
///
/// ```
/// use onnx_quant::stages::Loaded;
/// # let folder = tempfile::tempdir()?;
/// let demo = onnx_quant::demo::write(folder.path())?;
/// let loaded = Loaded::open(&demo.model)?;
/// assert_eq!(loaded.model().opset(""), Some(17));
/// assert!(Loaded::open(&demo.labels).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Loaded {
    path: Option<PathBuf>,
    model: Model,
    bytes: u64,
    watch: Watch,
    extensions: Extensions,
    keep_inputs: Vec<String>,
}

impl Loaded {
    /// Reads a model; its weights are mapped, not copied.
    ///
    /// # Errors
    /// What is wrong with the file; a model that is quantized already.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let model = load::load(path)?;
        pipeline::refuse_quantized(&model, path)?;
        let bytes = file_size(&model, path);
        Ok(Self {
            path: Some(path.to_owned()),
            bytes,
            ..Self::from(model)
        })
    }

    /// How the passes are watched.
    pub fn watch(mut self, watch: Watch) -> Self {
        self.watch = watch;
        self
    }

    /// Passes and observers of the user.
    pub fn extensions(mut self, extensions: Extensions) -> Self {
        self.extensions = extensions;
        self
    }

    /// Inputs with a default value that stay inputs; the others become constants.
    pub fn keep_inputs(mut self, names: Vec<String>) -> Self {
        self.keep_inputs = names;
        self
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Brings the model into the form that quantization works on: opset 21, constants folded, BatchNormalization gone.
    ///
    /// # Errors
    /// A pass that refuses the model, with its reason; a watch of a pass that does not exist.
    pub fn normalize(self) -> Result<Normalized, Error> {
        let mut run = Run::extended(self.watch, self.extensions)?;
        run.cx
            .insert(KeepInputs(self.keep_inputs.into_iter().collect()));
        let mut model = self.model.clone();
        run.stage(Stage::Normalize, &mut model)?;
        Ok(Normalized {
            model,
            carried: Carried {
                path: self.path,
                float: self.model,
                float_bytes: self.bytes,
                run,
                notes: Vec::new(),
            },
        })
    }
}

impl From<Model> for Loaded {
    /// A float model from memory.
    fn from(model: Model) -> Self {
        let bytes = size_of(&model).unwrap_or(0);
        Self {
            path: None,
            model,
            bytes,
            watch: Watch::default(),
            extensions: Extensions::default(),
            keep_inputs: Vec::new(),
        }
    }
}

/// A float model in the form that quantization works on.
///
/// ```
/// use onnx_quant::passes::settings::QuantSettings;
/// use onnx_quant::stages::Loaded;
/// # let folder = tempfile::tempdir()?;
/// let demo = onnx_quant::demo::write(folder.path())?;
/// let normalized = Loaded::open(&demo.model)?.normalize()?;
/// assert_eq!(normalized.model().opset(""), Some(21));
/// // The values whose ranges a calibration has to find:
/// assert!(normalized.wanted(&QuantSettings::default())?.len() > 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Normalized {
    pub(crate) model: Model,
    pub(crate) carried: Carried,
}

impl Normalized {
    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The model as it was read.
    pub fn float(&self) -> &Model {
        &self.carried.float
    }

    /// The keys of the values whose statistics the settings need.
    ///
    /// # Errors
    /// A selection that names nothing.
    pub fn wanted(&self, settings: &QuantSettings) -> Result<Vec<String>, Error> {
        wanted_statistics(&self.model, settings).map_err(Error::Usage)
    }

    /// Runs the model on data and gathers the statistics of its activations; observers of the user see the same data.
    /// Where the settings ask for the calibrator `auto`, they then hold the one that it chose ([`mod@auto`]).
    ///
    /// # Errors
    /// Data that does not fit, or a model that the engine cannot run.
    pub fn calibrate(
        mut self,
        mut settings: QuantSettings,
        data: &DataSet,
        engine: &Arc<dyn Engine>,
    ) -> Result<Calibrated, Error> {
        let wanted = self.wanted(&settings)?;
        let points = observation::points(&self.model, &settings).map_err(Error::Usage)?;
        let (calibration, tried) =
            auto::calibrate(&self.model, &mut settings, engine, data, &points)?;
        let notes = &mut self.carried.notes;
        notes.extend(tried.map(|t| t.to_string()));
        notes.extend(data.notes());
        if calibration.samples < data.len() {
            notes.push(format!(
                "{} of {} calibration samples were not used: they fill less than half of the model's fixed batch",
                data.len() - calibration.samples,
                data.len()
            ));
        }
        self.observed(settings, calibration, data, engine, &wanted)
    }

    /// Lets the observers of the user choose ranges on the same data.
    fn observed(
        self,
        settings: QuantSettings,
        mut calibration: Calibration,
        data: &DataSet,
        engine: &Arc<dyn Engine>,
        wanted: &[String],
    ) -> Result<Calibrated, Error> {
        let observers = self.carried.run.extensions().observers();
        let ranges = observe::ranges(&self.model, engine, data, wanted, observers)?;
        calibration.ranges.extend(ranges);
        Ok(self.calibrated(settings, calibration))
    }

    /// Changes the float model so that it quantizes better, as far as the options ask for it and it pays on the data.
    ///
    /// # Errors
    /// Data that does not fit, or a model that the engine cannot run.
    pub fn recover(
        &mut self,
        settings: &QuantSettings,
        data: Option<&DataSet>,
        engine: &Arc<dyn Engine>,
        options: &optimize::Options,
    ) -> Result<(), Error> {
        let cx = &mut self.carried.run.cx;
        optimize::prepare(&mut self.model, settings, data, engine, options, cx)
    }

    /// Takes statistics that were gathered before.
    pub fn calibrated(mut self, settings: QuantSettings, calibration: Calibration) -> Calibrated {
        self.carried.run.cx.insert(calibration);
        Calibrated {
            model: self.model,
            carried: self.carried,
            settings,
        }
    }

    /// Goes on without statistics: activations stay in float, which a note says.
    pub fn without_data(mut self, mut settings: QuantSettings) -> Calibrated {
        if settings.activations.take().is_some() {
            self.carried.notes.push(NO_DATA.to_owned());
        }
        Calibrated {
            model: self.model,
            carried: self.carried,
            settings,
        }
    }
}

/// A float model with the statistics of its activations, or without any.
///
/// ```
/// use onnx_quant::passes::settings::QuantSettings;
/// use onnx_quant::stages::Loaded;
/// # let folder = tempfile::tempdir()?;
/// let demo = onnx_quant::demo::write(folder.path())?;
/// let calibrated = Loaded::open(&demo.model)?.normalize()?.without_data(QuantSettings::default());
/// assert!(calibrated.calibration().is_none());
/// assert!(calibrated.settings().activations.is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Calibrated {
    pub(crate) model: Model,
    pub(crate) carried: Carried,
    pub(crate) settings: QuantSettings,
}

impl Calibrated {
    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The statistics.
    pub fn calibration(&self) -> Option<&Calibration> {
        self.carried.run.cx.get()
    }

    /// The statistics, to be changed.
    pub fn calibration_mut(&mut self) -> Option<&mut Calibration> {
        self.carried.run.cx.get_mut()
    }

    /// The settings.
    pub fn settings(&self) -> &QuantSettings {
        &self.settings
    }

    /// Decides for every node in what form it runs.
    ///
    /// # Errors
    /// A pass that refuses.
    pub fn plan(mut self) -> Result<Planned, Error> {
        self.carried.run.cx.insert(self.settings.clone());
        self.carried.run.stage(Stage::Plan, &mut self.model)?;
        Ok(Planned {
            model: self.model,
            carried: self.carried,
            settings: self.settings,
        })
    }
}

/// A float model with the plan of its quantization, which can be read and changed.
///
/// ```
/// use onnx_quant::passes::plan::Precision;
/// use onnx_quant::passes::settings::QuantSettings;
/// use onnx_quant::stages::Loaded;
/// # let folder = tempfile::tempdir()?;
/// let demo = onnx_quant::demo::write(folder.path())?;
/// let planned = Loaded::open(&demo.model)?
///     .normalize()?
///     .without_data(QuantSettings::default())
///     .plan()?;
/// assert!(planned.plan().count(Precision::WeightOnly) > 5);
/// assert_eq!(planned.plan().count(Precision::Integer), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Planned {
    pub(crate) model: Model,
    pub(crate) carried: Carried,
    pub(crate) settings: QuantSettings,
}

impl Planned {
    /// The model, still in float.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The plan; empty where [`Watch::pass_limit`] ended the run before it was made.
    pub fn plan(&self) -> PrecisionPlan {
        self.carried.run.cx.get().cloned().unwrap_or_default()
    }

    /// The plan, to be changed before it is carried out.
    pub fn plan_mut(&mut self) -> Option<&mut PrecisionPlan> {
        self.carried.run.cx.get_mut()
    }

    /// Chooses weights and biases by what layers compute on data, or scales of weights where there is none;
    /// [`Planned::rewrite`] stores them.
    ///
    /// # Errors
    /// Data that does not fit, or a model that the engine cannot run.
    pub fn optimize(
        &mut self,
        data: Option<&DataSet>,
        engine: &Arc<dyn Engine>,
        options: &optimize::Options,
    ) -> Result<optimize::Outcome, Error> {
        let Carried { run, notes, .. } = &mut self.carried;
        if let Some(plan) = run.cx.get_mut::<PrecisionPlan>() {
            notes.extend(optimize::widen_tables(plan, &self.settings, options));
        }
        let plan = self.plan();
        let cx = &self.carried.run.cx;
        let (normals, importance) = (ChannelNormals::default(), Importance::default());
        let known = optimize::Known {
            data,
            normals: cx.get().unwrap_or(&normals),
            importance: cx.get().unwrap_or(&importance),
        };
        let outcome =
            optimize::optimize(&self.model, &plan, &self.settings, known, engine, options)?;
        let Carried { run, notes, .. } = &mut self.carried;
        notes.extend(outcome.store(&mut run.cx));
        Ok(outcome)
    }

    /// What the model will say of itself.
    fn metadata(&self, plan: &PrecisionPlan) -> Metadata {
        let source = self.carried.path.as_deref();
        Metadata {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            source: source
                .and_then(|p| metadata::file_digest(p).ok())
                .unwrap_or_default(),
            plan: metadata::summary(plan),
            command: String::new(),
        }
    }

    /// Carries the plan out. The model says in its metadata what it was made from; see [`Metadata`].
    ///
    /// # Errors
    /// A pass that refuses.
    pub fn rewrite(mut self) -> Result<Rewritten, Error> {
        self.carried.run.stage(Stage::Rewrite, &mut self.model)?;
        pipeline::name_producer(&mut self.model);
        let plan = self.plan();
        self.metadata(&plan).write(&mut self.model);
        let Carried { run, notes, .. } = &mut self.carried;
        notes.extend(
            run.cx
                .notes
                .iter()
                .map(|n| format!("{}: {}", n.pass, n.message)),
        );
        if plan.count(Precision::Integer) + plan.count(Precision::WeightOnly) == 0 {
            notes.push(
                "nothing could be quantized: every node stays in float, for the reasons in the plan"
                    .to_owned(),
            );
        }
        Ok(Rewritten {
            model: self.model,
            carried: self.carried,
            settings: self.settings,
        })
    }
}

/// A quantized model.
///
/// ```
/// use onnx_quant::ir::save::ExternalData;
/// use onnx_quant::passes::settings::QuantSettings;
/// use onnx_quant::stages::Loaded;
/// # let folder = tempfile::tempdir()?;
/// let demo = onnx_quant::demo::write(folder.path())?;
/// let rewritten = Loaded::open(&demo.model)?
///     .normalize()?
///     .without_data(QuantSettings::default())
///     .plan()?
///     .rewrite()?;
/// assert!(rewritten.size()? * 2 < rewritten.float_size());
/// rewritten.save(&folder.path().join("small.onnx"), ExternalData::Auto)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Rewritten {
    pub(crate) model: Model,
    pub(crate) carried: Carried,
    pub(crate) settings: QuantSettings,
}

impl Rewritten {
    /// The quantized model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The float model as it was read.
    pub fn float(&self) -> &Model {
        &self.carried.float
    }

    /// What was decided for every node.
    pub fn plan(&self) -> PrecisionPlan {
        self.carried.run.cx.get().cloned().unwrap_or_default()
    }

    /// What the user should know.
    pub fn notes(&self) -> &[String] {
        &self.carried.notes
    }

    /// Bytes of the quantized model in one file.
    ///
    /// # Errors
    /// External data that cannot be read.
    pub fn size(&self) -> Result<u64, Error> {
        size_of(&self.model)
    }

    /// Bytes of the float model, external data included.
    pub fn float_size(&self) -> u64 {
        self.carried.float_bytes
    }

    /// Writes the model; it appears under its name when it is complete.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, path: &Path, external: ExternalData) -> Result<Written, Error> {
        Ok(save::save(&self.model, path, external)?)
    }

    /// Runs the float model and the quantized model on data and compares them. A metric of the user takes the place of
    /// the one that labels and outputs suggest; one that brings its own data needs no `evaluation`.
    ///
    /// # Errors
    /// Neither data nor a metric; a model that cannot be run; a metric that fails.
    pub fn check(
        self,
        engine: &Arc<dyn Engine>,
        evaluation: Option<&Evaluation>,
        metric: Option<&Metric>,
    ) -> Result<Checked, Error> {
        let (float, file) = (&self.carried.float, self.carried.path.as_deref());
        let layers = self.carried.run.cx.get::<optimize::Recovered>();
        let models = compare::Models {
            reference: (float, file),
            layers: layers.map_or(float, |r| &r.0),
            candidate: &self.model,
        };
        let check = models.compare(engine, evaluation, metric)?;
        Ok(Checked {
            rewritten: self,
            check,
        })
    }
}

/// A quantized model that was compared with its float model; the example of the [module](self) makes one.
pub struct Checked {
    pub(crate) rewritten: Rewritten,
    pub(crate) check: CheckReport,
}

impl Checked {
    /// The comparison.
    pub fn check(&self) -> &CheckReport {
        &self.check
    }

    /// The quantized model and what it was made from.
    pub fn rewritten(&self) -> &Rewritten {
        &self.rewritten
    }

    /// Whether no more is lost than is allowed.
    pub fn holds(&self, max_drop: f64) -> bool {
        self.check.task.drop <= max_drop
    }
}

/// Bytes that the model's file would take, external data included.
pub(crate) fn size_of(model: &Model) -> Result<u64, Error> {
    use onnx_quant_ir::proto::Message;
    Ok(save::inlined(model)?.encoded_len() as u64)
}

//! The order of the passes, and how a run of them is watched.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::pass::{Changed, Manager, Pass, PassContext, PassRecord, Skip, Violation};
use onnx_quant_ir::text::{self, Print};
use onnx_quant_ir::verify;
use onnx_quant_passes::{codebook, registry};

use crate::error::Error;
use crate::extend::{Extensions, Point, Stage};

/// The passes that bring a model into the form that quantization works on.
pub const NORMALIZE: &[&str] = &[
    "freeze_initializers",
    "inline_functions",
    "lift_constants",
    "upgrade_opset",
    "remove_identity",
    "fold_constants",
    "fold_batchnorm",
    "fuse_gemm",
    "merge_constants",
    "strip_debug_info",
    "drop_unused",
    "unique_names",
];

/// The passes of accuracy recovery that change the float model before it is calibrated, where they are asked for.
pub const RECOVER: &[&str] = &[
    "equalize_layers",
    "absorb_biases",
    "split_channels",
    "smooth_activations",
];

/// The passes that quantize, after calibration.
pub const REWRITE: &[&str] = &[
    "assign_precision",
    "split_shared_weights",
    "correct_bias",
    "insert_qdq",
    "share_qdq_parameters",
    "codebook_weights",
    "quantize_weights",
    "quantize_bias",
    "quantize_dynamic",
    "remove_redundant_qdq",
    "matmul_nbits",
    "emulate_formats",
    "lower_qoperator",
    "cast_floats",
    "drop_unused",
];

/// The last pass of the plan stage.
const PLANS: &str = "assign_precision";

/// Where in [`REWRITE`] the plan stage ends.
fn end_of_plan() -> usize {
    let at = REWRITE.iter().position(|p| *p == PLANS);
    at.map_or(0, |i| i + 1)
}

/// The passes of [`REWRITE`] that make the plan.
pub fn plan_passes() -> &'static [&'static str] {
    &REWRITE[..end_of_plan()]
}

/// The passes of [`REWRITE`] that carry the plan out.
pub fn rewrite_passes() -> &'static [&'static str] {
    &REWRITE[end_of_plan()..]
}

/// How a run is watched.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    /// Passes before which the model is printed.
    pub dump_before: Vec<String>,
    /// Passes after which the model is printed.
    pub dump_after: Vec<String>,
    /// Check the model after each pass that changed it.
    pub verify_each: bool,
    /// Stop after this many passes.
    pub pass_limit: Option<usize>,
}

/// A run of passes over one model: what they share, and what they did.
#[derive(Default)]
pub struct Run {
    /// Data, skips and notes.
    pub cx: PassContext,
    /// What was done.
    pub records: Vec<PassRecord>,
    watch: Watch,
    extensions: Extensions,
}

/// One pass of a pipeline, with its options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The pass.
    pub pass: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

impl Run {
    /// A run that is watched.
    ///
    /// # Errors
    /// A dump of a pass that does not exist.
    pub fn new(watch: Watch) -> Result<Self, Error> {
        Self::extended(watch, Extensions::default())
    }

    /// A run that is watched, with the passes of a user at their points.
    ///
    /// # Errors
    /// A dump of a pass that does not exist.
    pub fn extended(watch: Watch, extensions: Extensions) -> Result<Self, Error> {
        for name in watch.dump_before.iter().chain(&watch.dump_after) {
            if !extensions.has_pass(name) {
                find(name)?;
            }
        }
        Ok(Self {
            watch,
            extensions,
            ..Self::default()
        })
    }

    /// What the user added.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// Runs the passes of a stage, and those of the user around it.
    ///
    /// # Errors
    /// The refusal of a pass.
    pub fn stage(&mut self, stage: Stage, model: &mut Model) -> Result<(), Error> {
        let names = match stage {
            Stage::Normalize => NORMALIZE,
            Stage::Plan => plan_passes(),
            Stage::Rewrite => rewrite_passes(),
        };
        let mut list: Vec<Planned> = self.users(&Point::BeforeStage(stage));
        for name in names {
            list.extend(self.step(&Step {
                pass: (*name).to_owned(),
                options: BTreeMap::new(),
            })?);
        }
        list.extend(self.users(&Point::AfterStage(stage)));
        self.execute(list, model)
    }

    /// Runs passes by name.
    ///
    /// # Errors
    /// The refusal of a pass.
    pub fn passes(&mut self, names: &[&str], model: &mut Model) -> Result<(), Error> {
        let steps: Vec<Step> = names
            .iter()
            .map(|n| Step {
                pass: (*n).to_owned(),
                options: BTreeMap::new(),
            })
            .collect();
        self.steps(&steps, model)
    }

    /// Runs the steps of a pipeline.
    ///
    /// # Errors
    /// An unknown pass, or the refusal of one.
    pub fn steps(&mut self, steps: &[Step], model: &mut Model) -> Result<(), Error> {
        for step in steps {
            let list = self.step(step)?;
            self.execute(list, model)?;
        }
        Ok(())
    }

    /// A step with the passes of the user around it.
    fn step(&self, step: &Step) -> Result<Vec<Planned>, Error> {
        let built_in = Planned {
            pass: Which::BuiltIn(find(&step.pass)?),
            options: step.options.clone(),
        };
        let mut list = self.users(&Point::Before(step.pass.clone()));
        list.push(built_in);
        list.extend(self.users(&Point::After(step.pass.clone())));
        Ok(list)
    }

    fn users(&self, point: &Point) -> Vec<Planned> {
        let planned = |p: &Arc<dyn Pass>| Planned {
            pass: Which::User(Arc::clone(p)),
            options: BTreeMap::new(),
        };
        self.extensions.at(point).iter().map(planned).collect()
    }

    fn execute(&mut self, list: Vec<Planned>, model: &mut Model) -> Result<(), Error> {
        let Self {
            cx, records, watch, ..
        } = self;
        let dump = |when: &'static str, names: &[String]| {
            let names = names.to_vec();
            move |pass: &str, model: &Model| {
                if names.iter().any(|n| n == pass) {
                    eprintln!("// {when} {pass}\n{}", text::print(model, Print::Summary));
                }
            }
        };
        let mut manager = Manager {
            before: Some(Box::new(dump("before", &watch.dump_before))),
            after: Some(Box::new(dump("after", &watch.dump_after))),
            verifier: watch
                .verify_each
                .then_some(verify_for_pass as fn(&Model) -> _),
            limit: watch.pass_limit,
            records: std::mem::take(records),
        };
        let mut result = Ok(Changed::No);
        for Planned { pass, options } in list {
            let pass = match &pass {
                Which::BuiltIn(p) => *p,
                Which::User(p) => p.as_ref(),
            };
            let said = cx.skips.len();
            result = manager.run(pass, options, model, cx);
            tell(pass.info().name, manager.records.last(), &cx.skips[said..]);
            if result.is_err() {
                break;
            }
        }
        *records = std::mem::take(&mut manager.records);
        result.map(|_| ()).map_err(Error::from)
    }
}

/// Logs what a pass did, and what it left alone.
fn tell(name: &str, record: Option<&PassRecord>, skips: &[Skip]) {
    for s in skips {
        tracing::debug!("{name}: leaves {}: {}", s.subject, s.reason);
    }
    if let Some(r) = record.filter(|r| r.pass == name) {
        let changed = match r.changed {
            Changed::Yes => "changed",
            Changed::No => "no change",
        };
        let time = r.elapsed.as_secs_f64() * 1e3;
        tracing::info!("{name}: {changed}, {time:.1} ms");
    }
}

/// A pass that is about to run.
struct Planned {
    pass: Which,
    options: BTreeMap<String, String>,
}

/// Whose pass it is.
enum Which {
    BuiltIn(&'static dyn Pass),
    User(Arc<dyn Pass>),
}

fn verify_for_pass(model: &Model) -> Result<(), Violation> {
    verify::verify_for_pass(model)
}

/// A pass by its name.
///
/// # Errors
/// There is none; a near name is suggested.
pub fn find(name: &str) -> Result<&'static dyn Pass, Error> {
    registry::find(name).ok_or_else(|| {
        let all = registry::all();
        let near = all
            .iter()
            .map(|p| p.info().name)
            .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)))
            .unwrap_or_default();
        Error::usage(format!(
            "there is no pass `{name}`; did you mean `{near}`? `onnx-quant passes` lists them"
        ))
    })
}

/// Reads a pipeline: `fold_constants,upgrade_opset{to=21}`. Options are separated by `;` or `,`.
///
/// # Errors
/// What cannot be read, and passes that do not exist.
pub fn parse(text: &str) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest.find([',', '{']).unwrap_or(rest.len());
        let name = rest[..end].trim();
        find(name)?;
        let mut options = BTreeMap::new();
        rest = &rest[end..];
        if let Some(inner) = rest.strip_prefix('{') {
            let close = inner.find('}').ok_or_else(|| {
                Error::usage(format!("pipeline: `{{` after `{name}` is not closed"))
            })?;
            for pair in inner[..close]
                .split([';', ','])
                .filter(|p| !p.trim().is_empty())
            {
                let (key, value) = pair.split_once('=').ok_or_else(|| {
                    Error::usage(format!(
                        "pipeline: option `{pair}` of `{name}` is not KEY=VALUE"
                    ))
                })?;
                options.insert(key.trim().to_owned(), value.trim().to_owned());
            }
            rest = inner[close + 1..].trim_start();
            if !rest.is_empty() && !rest.starts_with(',') {
                return Err(Error::usage(format!(
                    "pipeline: `,` is missing before `{rest}`"
                )));
            }
        }
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        steps.push(Step {
            pass: name.to_owned(),
            options,
        });
    }
    Ok(steps)
}

/// Writes this program's name and version into the model's header.
pub(crate) fn name_producer(model: &mut Model) {
    model.header.producer_name = Some("onnx-quant".to_owned());
    model.header.producer_version = Some(env!("CARGO_PKG_VERSION").to_owned());
}

/// Why a model counts as quantized already, where it does.
pub fn already_quantized(model: &Model) -> Option<String> {
    let is_quantized = |op: &str| {
        matches!(
            op,
            "QuantizeLinear"
                | "DequantizeLinear"
                | "DynamicQuantizeLinear"
                | "ConvInteger"
                | "MatMulInteger"
                | "MatMulNBits"
                | "QGemm"
                | "QAttention"
        ) || op.starts_with("QLinear")
    };
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in model.all_nodes() {
        let op = model.node(node).op_type();
        if is_quantized(op) {
            *counts.entry(op.to_owned()).or_default() += 1;
        }
    }
    for weight in codebook::read::find(model) {
        *counts
            .entry(format!("{} weights", weight.format()))
            .or_default() += 1;
    }
    if counts.is_empty() {
        return None;
    }
    let list: Vec<String> = counts.iter().map(|(op, n)| format!("{n} {op}")).collect();
    Some(list.join(", "))
}

/// Refuses a model that is quantized already, and says what can be done.
///
/// # Errors
/// Always where the model holds quantized operators.
pub fn refuse_quantized(model: &Model, path: &Path) -> Result<(), Error> {
    match already_quantized(model) {
        None => Ok(()),
        Some(found) => Err(Error::usage(format!(
            "{} is already quantized ({found}); quantize the float model it was made from. \
             `onnx-quant inspect` shows how it is quantized, `onnx-quant check` compares it with the float model",
            path.display()
        ))),
    }
}

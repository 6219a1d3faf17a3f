//! The precision plan as a file: TOML that people read and edit, and from which the same model is made again.
//!
//! A plan names every operator that is quantized, in whatever form, and every activation with its scale. What it does
//! not name stays in float. It carries the digest of its model, and refuses every other.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};

use onnx_quant_ir::Model;
use onnx_quant_numerics::affine::{QOptions, QParams, code_range};
use onnx_quant_numerics::format::Base;
use onnx_quant_passes::layers::{Choice, LayerRule, Pinned};
use onnx_quant_passes::plan::{NodePlan, PrecisionPlan};
use onnx_quant_passes::settings::QuantSettings;
use onnx_quant_passes::target::cannot_run;
use serde::Deserialize;
use toml::Spanned;

use super::settings_text::SettingsText;
use crate::error::Error;
use crate::optimize;

/// The version of the file's layout.
const VERSION: i64 = 1;

/// A plan that was read from a file.
#[derive(Debug, Clone)]
pub struct PlanFile {
    path: PathBuf,
    text: String,
    document: Document,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: Spanned<i64>,
    model: ModelSection,
    #[serde(default)]
    settings: SettingsText,
    #[serde(default)]
    optimize: Option<OptimizeSection>,
    #[serde(default)]
    layer: Vec<LayerSection>,
    #[serde(default)]
    activation: Vec<ActivationSection>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelSection {
    #[serde(default)]
    file: Option<String>,
    digest: Spanned<String>,
}

/// How accuracy was recovered, so that it is done again.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct OptimizeSection {
    methods: Spanned<String>,
    #[serde(default)]
    seed: u64,
    #[serde(default)]
    iterations: Option<usize>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct LayerSection {
    name: Spanned<String>,
    #[expect(dead_code, reason = "for people who read the file")]
    #[serde(default)]
    op: Option<String>,
    #[serde(default)]
    weights: Option<Spanned<String>>,
    #[serde(default)]
    activations: Option<Spanned<String>>,
    #[serde(default)]
    reason: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActivationSection {
    value: Spanned<String>,
    #[serde(default)]
    format: Option<Spanned<String>>,
    #[serde(default)]
    scale: Option<Spanned<f64>>,
    #[serde(default)]
    zero_point: Option<i64>,
    #[serde(default)]
    range: Option<Spanned<[f64; 2]>>,
}

impl PlanFile {
    /// Reads a plan.
    ///
    /// # Errors
    /// A file that cannot be read, or is no plan: with the line.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::usage(format!("the plan {} cannot be read: {e}", path.display()))
        })?;
        let document: Document = toml::from_str(&text).map_err(|e| {
            let line = e.span().map_or(1, |s| line_of(&text, s.start));
            Error::usage(format!("{}:{line}: {}", path.display(), e.message()))
        })?;
        let plan = Self {
            path: path.to_owned(),
            text,
            document,
        };
        let version = &plan.document.version;
        if *version.get_ref() != VERSION {
            let message = format!(
                "plans of version {} are not known, only {VERSION}",
                version.get_ref()
            );
            return Err(plan.at(version.span(), &message));
        }
        Ok(plan)
    }

    /// Refuses a model for which the plan was not made.
    ///
    /// # Errors
    /// Another model, or one that cannot be read.
    pub fn check_model(&self, model: &Model) -> Result<(), Error> {
        let wanted = &self.document.model.digest;
        let found = onnx_quant_ir::save::digest(model)?;
        if *wanted.get_ref() == found {
            return Ok(());
        }
        let named = self.document.model.file.as_ref();
        let named = named.map_or_else(String::new, |f| format!(" ({f})"));
        let given = model
            .path
            .as_ref()
            .map_or_else(String::new, |p| format!(" {}", p.display()));
        Err(self.at(
            wanted.span(),
            &format!(
                "the plan was made for another model{named}: its digest is {}, that of{given} is {found}",
                wanted.get_ref()
            ),
        ))
    }

    /// The settings that carry the plan out.
    ///
    /// # Errors
    /// Formats, schemes and ranges that are none, each with its line.
    pub fn settings(&self) -> Result<QuantSettings, Error> {
        let given = self.document.settings.settings();
        let mut settings = given.map_err(|wrong| {
            let line = self.line_of_setting(wrong.key);
            Error::usage(format!("{}:{line}: {}", self.path.display(), wrong.message))
        })?;
        for layer in &self.document.layer {
            settings.layers.push(self.rule(layer)?);
        }
        for activation in &self.document.activation {
            let pinned = self.pinned(activation, &settings)?;
            let key = activation.value.get_ref().clone();
            if let Some(pinned) = pinned
                && settings.ranges.insert(key, pinned).is_some()
            {
                return Err(self.at(
                    activation.value.span(),
                    "this activation stands in the plan twice",
                ));
            }
        }
        Ok(settings)
    }

    /// How the accuracy of the plan's model was recovered, in the memory of `given`; `given` where it was not.
    ///
    /// # Errors
    /// Methods that are none, with the line.
    pub fn optimize(&self, given: &optimize::Options) -> Result<optimize::Options, Error> {
        let Some(section) = &self.document.optimize else {
            return Ok(given.clone());
        };
        let methods = &section.methods;
        let parsed = methods.get_ref().parse();
        Ok(optimize::Options {
            methods: parsed.map_err(|e: String| self.at(methods.span(), &e))?,
            seed: section.seed,
            iterations: section.iterations.unwrap_or(given.iterations),
            memory: given.memory,
        })
    }

    /// Refuses formats that the target has no operators for, unless they are written with basic ones.
    ///
    /// # Errors
    /// The first, with its line.
    pub fn check_target(&self, settings: &QuantSettings) -> Result<(), Error> {
        if settings.storage.emulate {
            return Ok(());
        }
        for layer in &self.document.layer {
            for given in layer.weights.iter().chain(&layer.activations) {
                let format = self.choice(given)?.format();
                if let Some(why) = format.and_then(|f| cannot_run(settings.target, f)) {
                    return Err(self.at(given.span(), &format!("{}: {why}", given.get_ref())));
                }
            }
        }
        Ok(())
    }

    fn rule(&self, layer: &LayerSection) -> Result<LayerRule, Error> {
        let choice = |c: &Option<Spanned<String>>| match c {
            None => Ok(Choice::Float),
            Some(c) => self.choice(c),
        };
        let activations = choice(&layer.activations)?;
        Ok(LayerRule {
            pattern: layer.name.get_ref().clone(),
            weights: Some(choice(&layer.weights)?),
            activations: Some(activations),
            force: activations != Choice::Float,
            reason: layer.reason.clone().filter(|r| !r.is_empty()),
            origin: Some(self.place(layer.name.span())),
            ..LayerRule::default()
        })
    }

    fn pinned(
        &self,
        activation: &ActivationSection,
        settings: &QuantSettings,
    ) -> Result<Option<Pinned>, Error> {
        if let Some(range) = &activation.range {
            let [min, max] = *range.get_ref();
            let (min, max) = (min as f32, max as f32);
            if !(min.is_finite() && max.is_finite() && min <= max) {
                let message = "a range is two finite numbers, the smaller first";
                return Err(self.at(range.span(), message));
            }
            return Ok(Some(Pinned::Range(min, max)));
        }
        let Some(scale) = &activation.scale else {
            return Ok(None);
        };
        let base: Base = match &activation.format {
            Some(text) => self.base(text)?,
            None => {
                let message = "a scale needs the `format` that it belongs to";
                return Err(self.at(scale.span(), message));
            }
        };
        let options = QOptions {
            narrow: false,
            reduce_range: settings.reduce_range,
        };
        let (qmin, qmax) = code_range(base, options);
        let value = *scale.get_ref() as f32;
        if !(value.is_finite() && value > 0.0) {
            return Err(self.at(scale.span(), "a scale is a finite number above zero"));
        }
        let zero_point = activation.zero_point.unwrap_or(0);
        let in_range = (i64::from(qmin)..=i64::from(qmax)).contains(&zero_point);
        let zero_point = i32::try_from(zero_point).ok().filter(|_| in_range);
        let zero_point = zero_point.ok_or_else(|| {
            let message = format!("the zero point must be from {qmin} to {qmax}");
            self.at(activation.value.span(), &message)
        })?;
        Ok(Some(Pinned::Params(QParams {
            scale: value,
            zero_point,
            qmin,
            qmax,
        })))
    }

    fn choice(&self, text: &Spanned<String>) -> Result<Choice, Error> {
        text.get_ref()
            .parse()
            .map_err(|e: String| self.at(text.span(), &e))
    }

    fn base(&self, text: &Spanned<String>) -> Result<Base, Error> {
        match self.choice(text)? {
            Choice::Format(f) => Ok(f.base),
            Choice::Float => Err(self.at(text.span(), "a scale belongs to a number format")),
        }
    }

    fn line_of_setting(&self, key: &str) -> usize {
        let mut lines = self.text.lines().map(str::trim).enumerate();
        let mut inside = lines.by_ref().skip_while(|(_, l)| *l != "[settings]");
        let named = |l: &str| {
            l.strip_prefix(key)
                .is_some_and(|r| r.trim().starts_with('='))
        };
        inside.find(|(_, l)| named(l)).map_or(1, |(at, _)| at + 1)
    }

    fn place(&self, span: Range<usize>) -> String {
        format!(
            "{}:{}",
            self.path.display(),
            line_of(&self.text, span.start)
        )
    }

    fn at(&self, span: Range<usize>, message: &str) -> Error {
        Error::usage(format!("{}: {message}", self.place(span)))
    }

    /// Refuses a plan that was not carried out as it stands: a scale that is open without calibration data, weights that
    /// cannot be stored so.
    ///
    /// # Errors
    /// The first activation without a scale, or the first layer that got another format, with its line.
    pub fn check_done(&self, plan: &PrecisionPlan) -> Result<(), Error> {
        let open = plan.activations.iter().find(|(_, a)| a.params.is_none());
        if let Some((key, _)) = open {
            return Err(Error::usage(format!(
                "{}: the plan gives no scale for the activation `{key}`: add an [[activation]] with `range = [MIN, MAX]`, or give --calib",
                self.path.display()
            )));
        }
        for layer in &self.document.layer {
            let (Some(given), Some(node)) = (&layer.weights, plan.node(layer.name.get_ref()))
            else {
                continue;
            };
            if self.choice(given)?.format() != node.weights {
                let reason = match node.reason.as_str() {
                    "" => "the layer holds no weights",
                    reason => reason,
                };
                let (name, format) = (layer.name.get_ref(), given.get_ref());
                let message = format!("`{name}` cannot be stored as {format}: {reason}");
                return Err(self.at(given.span(), &message));
            }
        }
        Ok(())
    }
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at.min(text.len())]
        .iter()
        .filter(|b| **b == b'\n')
        .count()
        + 1
}

/// Writes the plan of a model as text.
///
/// # Errors
/// A model whose file cannot be read any more.
pub fn write(
    model: &Model,
    settings: &QuantSettings,
    plan: &PrecisionPlan,
    optimize: &optimize::Options,
    remarks: &BTreeMap<String, String>,
) -> Result<String, Error> {
    let mut out = String::from(
        "# A precision plan: what becomes of each layer. `onnx-quant quantize MODEL --plan FILE` carries it out.\n\
         # Formats can be changed (\"none\" is float), and `scale` and `zero_point` replaced by `range = [MIN, MAX]`.\n\
         # What is not named stays in float.\n",
    );
    let _ = writeln!(out, "version = {VERSION}\n\n[model]");
    if let Some(name) = model.path.as_ref().and_then(|p| p.file_name()) {
        let _ = writeln!(out, "file = {}", quoted(&name.to_string_lossy()));
    }
    let _ = writeln!(
        out,
        "digest = {}",
        quoted(&onnx_quant_ir::save::digest(model)?)
    );
    let _ = writeln!(out, "\n[settings]");
    let text = toml::to_string(&SettingsText::of(settings));
    out.push_str(&text.map_err(|e| Error::usage(e.to_string()))?);
    if !optimize.methods.is_empty() {
        let _ = writeln!(
            out,
            "\n[optimize]  # done again with --plan, on the same --calib data\nmethods = {}\nseed = {}\niterations = {}",
            quoted(&optimize.methods.to_string()),
            optimize.seed,
            optimize.iterations
        );
    }
    for node in &plan.nodes {
        layer(&mut out, node, remarks);
    }
    for (key, a) in &plan.activations {
        let _ = writeln!(out, "\n[[activation]]\nvalue = {}", quoted(key));
        let _ = writeln!(out, "format = {}", quoted(&a.format.to_string()));
        if let Some(p) = a.params {
            let (low, high) = p.real_range();
            let _ = writeln!(out, "scale = {}  # {low} to {high}", number(p.scale));
            let _ = writeln!(out, "zero_point = {}", p.zero_point);
        }
    }
    Ok(out)
}

fn layer(out: &mut String, node: &NodePlan, remarks: &BTreeMap<String, String>) {
    if node.weights.is_none() && node.activations.is_none() {
        return;
    }
    let _ = writeln!(out, "\n[[layer]]\nname = {}", quoted(&node.key));
    let _ = writeln!(out, "op = {}", quoted(&node.op_type));
    if let Some(w) = node.weights {
        let _ = writeln!(out, "weights = {}", quoted(&w.to_string()));
    }
    let activations = node
        .activations
        .map_or("none".to_owned(), |f| f.to_string());
    let _ = writeln!(out, "activations = {}", quoted(&activations));
    let reason = match (remarks.get(&node.key), node.reason.as_str()) {
        (Some(r), "") => r.clone(),
        (Some(r), own) if r != own => format!("{own}; {r}"),
        (_, own) => own.to_owned(),
    };
    if !reason.is_empty() {
        let _ = writeln!(out, "reason = {}", quoted(&reason));
    }
}

/// A scale as the shortest text that is read back as the same number, also by way of double precision.
fn number(x: f32) -> String {
    let short = format!("{x:?}");
    let same = short.parse::<f64>().is_ok_and(|y| y as f32 == x);
    if same {
        short
    } else {
        format!("{:?}", f64::from(x))
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests;

//! Measures how much the model's outputs suffer from each format at each layer, the rest in float.
//!
//! The float model runs once and what passes between its pieces is kept; for each layer and format the layer alone is
//! run as the passes would store it, and then what depends on it. All formats are tried on the first samples; those that
//! cost so little that they cannot matter, and those that are hopeless, are not run on the others.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::Engine;
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::Format;
use onnx_quant_passes::calibration::Calibration;
use onnx_quant_passes::layers::LayerRule;
use onnx_quant_passes::plan::{Precision, PrecisionPlan};
use onnx_quant_passes::settings::{QuantSettings, Selection};

use super::candidates::Candidate;
use super::layers::{self, Site};
use super::loss::LossKind;
use super::measure::Measuring;
use super::sensitivity::{Layer, Measured, Sensitivity, VERSION};
use super::settings_text::Given;
use super::sums::Trial;
use crate::data::{DataSet, DataSpec, Labels};
use crate::error::Error;
use crate::extend::Stage;
use crate::pipeline::{Run, Watch};

/// What is to be measured.
#[derive(Debug, Clone)]
pub struct Analysis {
    /// Formats of weights to be tried.
    pub weights: Vec<Format>,
    /// Formats of activations to be tried.
    pub activations: Vec<Format>,
    /// Schemes, ranges, target, and which nodes.
    pub settings: QuantSettings,
    /// Samples to look at.
    pub samples: usize,
    /// Bytes that kept values may take.
    pub memory: usize,
    /// The loss; chosen by outputs and labels where absent.
    pub loss: Option<LossKind>,
    /// Run every format on every sample.
    pub thorough: bool,
    /// Signal-to-noise ratio at the layer's own output below which a format is not run further, in dB.
    pub prefilter: Option<f64>,
    /// The formats as they were asked for.
    pub candidates: Vec<Candidate>,
    /// Measure times too.
    pub latency: bool,
    /// The file that the result will be written to: unfinished work is kept beside it.
    pub output: Option<PathBuf>,
    /// Go on where an interrupted analysis ended.
    pub resume: bool,
}

/// What is analysed.
pub struct Subject<'a> {
    /// The model as it was read.
    pub float: &'a Model,
    /// The normalized model.
    pub model: &'a Model,
    /// Its file.
    pub path: String,
    /// Statistics of its activations.
    pub calibration: Option<&'a Calibration>,
    /// Data to run.
    pub data: &'a DataSet,
    /// Labels of that data.
    pub labels: Option<&'a Labels>,
    /// Digests of model and data.
    pub digests: (String, Vec<String>),
    /// Where the evaluation data lies.
    pub evaluation: Option<DataSpec>,
    /// Where its labels lie.
    pub label_file: Option<PathBuf>,
}

/// Parameters by value key and format.
pub(super) type Params = BTreeMap<String, BTreeMap<Format, QParams>>;

/// Measures.
///
/// # Errors
/// Data that does not fit, a model that cannot be run in pieces, formats that the target does not take.
pub fn analyze(
    subject: &Subject<'_>,
    analysis: &Analysis,
    engine: &Arc<dyn Engine>,
    say: &mut dyn FnMut(String),
) -> Result<Sensitivity, Error> {
    let layers::Found {
        sites,
        others: unmeasured,
        between,
    } = layers::find(subject.model, &analysis.settings)?;
    if sites.is_empty() {
        return Err(Error::usage(
            "the model has no layer whose weights could be quantized: there is nothing to analyse",
        ));
    }
    let (params, floats) = parameters(subject, analysis)?;
    let trials = trials(&sites, analysis, &params);
    let measuring = Measuring {
        subject,
        analysis,
        engine,
        sites: &sites,
        trials: &trials,
    };
    let found = measuring.run(say)?;
    let mut result = Sensitivity {
        version: VERSION,
        tool: concat!("onnx-quant ", env!("CARGO_PKG_VERSION")).to_owned(),
        model: subject.path.clone(),
        model_digest: subject.digests.0.clone(),
        data_digests: subject.digests.1.clone(),
        loss: found.kind,
        samples: found.samples,
        candidates: analysis
            .candidates
            .iter()
            .map(ToString::to_string)
            .collect(),
        given: Given::of(&analysis.settings),
        activations: analysis.activations.first().map(ToString::to_string),
        float_bytes: onnx_quant_ir::save::to_bytes(subject.model)?.len() as u64,
        layers: Vec::new(),
        unmeasured,
        accumulated: found.accumulated,
        interactions: found.interactions,
        ranges: ranges(&params),
        between,
        floats,
        evaluation: subject.evaluation.clone(),
        labels: subject.label_file.clone(),
    };
    for (site, layer) in sites.iter().zip(found.layers) {
        if !layer.there {
            let reason =
                "is decided by the shapes of the inputs: it gets the format of the settings";
            result
                .unmeasured
                .insert(site.key.clone(), reason.to_owned());
            continue;
        }
        let formats: Vec<Measured> = layer.formats;
        result.layers.push(Layer {
            name: site.key.clone(),
            op: site.op.clone(),
            input: site.input.clone(),
            stream: site.stream.clone(),
            tensors: site.tensors.clone(),
            weights: site.weights,
            macs: layer.macs,
            float_bytes: layer.float_bytes,
            float_micros: layer.float_micros,
            formats,
        });
    }
    Ok(result)
}

/// The trials of every layer: weights alone, the activation alone, both.
fn trials(sites: &[Site], analysis: &Analysis, params: &Params) -> Vec<Vec<Trial>> {
    let of = |site: &Site| {
        let known = site.input.as_ref().and_then(|key| params.get(key));
        let inputs: Vec<(Format, QParams)> = analysis
            .activations
            .iter()
            .filter_map(|f| Some((*f, *known?.get(f)?)))
            .collect();
        let weights = analysis.weights.iter().map(|&w| Trial {
            weights: Some(w),
            input: None,
        });
        let alone = inputs.iter().map(|&i| Trial {
            weights: None,
            input: Some(i),
        });
        let both = analysis.weights.iter().flat_map(|&w| {
            let inputs = inputs.iter();
            inputs.map(move |&i| Trial {
                weights: Some(w),
                input: Some(i),
            })
        });
        weights.chain(alone).chain(both).collect()
    };
    sites.iter().map(of).collect()
}

/// By format and node: why an operator between layers stays in float.
type Floats = BTreeMap<String, BTreeMap<String, String>>;

/// Scale and zero point of every activation in every format, as a quantization of everything would choose them; and the
/// operators between layers that stay in float where all layers are quantized.
fn parameters(subject: &Subject<'_>, analysis: &Analysis) -> Result<(Params, Floats), Error> {
    let (mut params, mut floats) = (Params::new(), Floats::new());
    let Some(calibration) = subject.calibration else {
        return Ok((params, floats));
    };
    for &format in &analysis.activations {
        let plan = |settings: QuantSettings| -> Result<PrecisionPlan, Error> {
            let mut run = Run::new(Watch::default())?;
            run.cx.insert(settings);
            run.cx.insert(calibration.clone());
            run.stage(Stage::Plan, &mut subject.model.clone())?;
            Ok(run.cx.get::<PrecisionPlan>().cloned().unwrap_or_default())
        };
        for (key, a) in plan(everything(&analysis.settings, format))?.activations {
            if let Some(p) = a.params {
                params.entry(key).or_default().insert(format, p);
            }
        }
        let uniform = QuantSettings {
            activations: Some(format),
            ..analysis.settings.clone()
        };
        let stay = plan(uniform)?.nodes.into_iter();
        let stay = stay.filter(|n| n.precision == Precision::Float);
        floats.insert(
            format.to_string(),
            stay.map(|n| (n.key, n.reason)).collect(),
        );
    }
    Ok((params, floats))
}

/// Settings that quantize whatever can be.
pub fn everything(settings: &QuantSettings, activations: Format) -> QuantSettings {
    QuantSettings {
        activations: Some(activations),
        selection: Selection {
            include: Vec::new(),
            exclude: settings.selection.exclude.clone(),
        },
        layers: std::iter::once(LayerRule {
            pattern: "*".to_owned(),
            force: true,
            ..LayerRule::default()
        })
        .chain(settings.layers.iter().cloned())
        .collect(),
        ..settings.clone()
    }
}

fn ranges(params: &Params) -> BTreeMap<String, BTreeMap<String, (f64, i32)>> {
    let text = |by: &BTreeMap<Format, QParams>| {
        by.iter()
            .map(|(f, p)| (f.to_string(), (f64::from(p.scale), p.zero_point)))
            .collect()
    };
    params
        .iter()
        .map(|(key, by)| (key.clone(), text(by)))
        .collect()
}

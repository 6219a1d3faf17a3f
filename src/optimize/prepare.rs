//! Methods that change the float model before it is calibrated.

use std::sync::Arc;

use onnx_quant_ir::Model;
use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::pass::{Changed, Note, PassContext};
use onnx_quant_passes::normals::ChannelNormals;
use onnx_quant_passes::settings::QuantSettings;

use super::methods::Method;
use super::{Options, absorb, smooth, trial};
use crate::data::DataSet;
use crate::error::Error;
use crate::pipeline::{Run, Watch};

/// The float model with what such methods made of it; put into the [`PassContext`].
pub(crate) struct Recovered(pub(crate) Model);

/// Equalizes and smooths a normalized model, as far as it is asked for and pays: with data each method is undone if the
/// quantized model's outputs become worse on samples that its calibration did not see. What is said goes into `cx`.
///
/// # Errors
/// A model that cannot be run, or data that does not fit.
pub fn prepare(
    model: &mut Model,
    settings: &QuantSettings,
    data: Option<&DataSet>,
    engine: &Arc<dyn Engine>,
    options: &Options,
    cx: &mut PassContext,
) -> Result<(), Error> {
    let mut settings = settings.clone();
    if data.is_none() {
        settings.activations = None;
    }
    let float = model.clone();
    // What the last trial found for the model as it is.
    let mut known: Option<f64> = None;
    for (method, pass) in [
        (Method::Equalize, "equalize_layers"),
        (Method::AbsorbBiases, "absorb_biases"),
        (Method::SplitChannels, "split_channels"),
        (Method::Smooth, "smooth_activations"),
    ] {
        if !options.methods.has(method) {
            continue;
        }
        let mut run = Run::new(Watch::default())?;
        if method == Method::Smooth {
            let Some(data) = data else { continue };
            let (factors, sites) = smooth::search(model, &settings, data, engine, options.seed)?;
            let chosen = factors.0.len();
            say(
                cx,
                format!("smooth: factors pay for {chosen} of {sites} activations"),
            );
            run.cx.insert(factors);
        }
        if let (Method::AbsorbBiases, Some(data)) = (method, data) {
            run.cx.insert(absorb::least_values(model, data, engine)?);
        }
        if let Some(normals) = cx.get::<ChannelNormals>() {
            run.cx.insert(normals.clone());
        }
        let mut changed = model.clone();
        run.passes(&[pass], &mut changed)?;
        let acted = run.records.iter().any(|r| r.changed == Changed::Yes);
        cx.skips.append(&mut run.cx.skips);
        cx.notes.append(&mut run.cx.notes);
        if !acted {
            say(cx, format!("{method}: nothing to do"));
            continue;
        }
        if let Some(data) = data {
            let before = match known {
                Some(x) => x,
                None => trial::sqnr(&float, model, &settings, data, engine)?,
            };
            let after = trial::sqnr(&float, &changed, &settings, data, engine)?;
            known = Some(before.max(after));
            if after <= before {
                say(
                    cx,
                    format!(
                        "{method} was undone: with plain rounding the outputs had {after:.1} dB with it and {before:.1} dB without on held-out samples"
                    ),
                );
                continue;
            }
            say(
                cx,
                format!(
                    "{method}: with plain rounding the outputs have {after:.1} dB instead of {before:.1} dB on held-out samples"
                ),
            );
        }
        *model = changed;
        cx.insert(Recovered(model.clone()));
        if let Some(normals) = run.cx.take::<ChannelNormals>() {
            cx.insert(normals);
        }
    }
    Ok(())
}

fn say(cx: &mut PassContext, message: String) {
    cx.notes.push(Note {
        pass: "optimize".to_owned(),
        message,
    });
}

//! Encodings: scales and offsets of a quantized model as the JSON that AIMET and other tools read and write.
//!
//! The form is AIMET's, version 0.6.1: `activation_encodings` and `param_encodings` by name, each a list with one entry,
//! or one for each channel. An entry has `bitwidth`, `dtype` (`int`), `is_symmetric` (`"True"` or `"False"`), `min`,
//! `max`, `scale` and `offset`; the real value of a code `q` counted from the least one is `scale × (q + offset)`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use onnx_quant_ir::{DataType, Model, Tensor};
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::{Base, Granularity};
use onnx_quant_passes::overrides::{WeightOverride, WeightOverrides};
use onnx_quant_passes::plan::{PrecisionPlan, WeightPlan};
use onnx_quant_passes::qdq::{self, Qdq};
use serde_json::{Value, json};

use crate::error::Error;
use crate::stages::{Carried, Planned};

/// The encodings of a quantized model. Weights are found under the names of their codes.
pub fn export(model: &Model) -> Value {
    let (mut activations, mut params) = (BTreeMap::new(), BTreeMap::new());
    for node in model.all_nodes() {
        if let Some(q) = qdq::quantize(model, node) {
            let name = model.value(q.input).name.clone();
            if let Some(list) = entries(model, &q) {
                activations.insert(name, list);
            }
        } else if let Some(d) = qdq::dequantize(model, node)
            && model.constant(d.input).is_some()
        {
            let name = model.value(d.input).name.clone();
            let name = name.strip_suffix("_quantized").unwrap_or(&name).to_owned();
            if let Some(list) = entries(model, &d) {
                params.insert(name, list);
            }
        }
    }
    json!({
        "version": "0.6.1",
        "activation_encodings": activations,
        "param_encodings": params,
    })
}

/// Least code and number of bits of a storage type.
fn codes(dtype: DataType) -> Option<(i64, u32)> {
    Some(match dtype {
        DataType::Uint8 => (0, 8),
        DataType::Int8 => (-128, 8),
        DataType::Uint16 => (0, 16),
        DataType::Int16 => (-32768, 16),
        DataType::Int32 => (-(1 << 31), 32),
        DataType::Uint4 => (0, 4),
        DataType::Int4 => (-8, 4),
        _ => return None,
    })
}

/// The entries of a conversion with constant parameters, one for each scale; none for blocks and floats.
fn entries(model: &Model, q: &Qdq) -> Option<Vec<Value>> {
    if q.block_size != 0 {
        return None;
    }
    let scales = model.constant(q.scale)?.to_f32().ok()?;
    let zero = q.zero_point.and_then(|z| model.constant(z));
    let dtype = zero
        .or_else(|| model.constant(q.input))
        .map_or(DataType::Uint8, Tensor::dtype);
    let (least, bits) = codes(dtype)?;
    let zeros = match zero {
        Some(z) => z.to_i64().ok()?,
        None => vec![0],
    };
    let symmetric = least < 0 && zeros.iter().all(|z| *z == 0);
    let one = |(i, scale): (usize, &f32)| {
        let zero = zeros.get(i).or(zeros.first()).copied().unwrap_or(0);
        let scale = f64::from(*scale);
        let offset = least - zero;
        let steps = ((1u64 << bits) - 1) as f64;
        json!({
            "bitwidth": bits,
            "dtype": "int",
            "is_symmetric": if symmetric { "True" } else { "False" },
            "scale": scale,
            "offset": offset,
            "min": scale * offset as f64,
            "max": scale * (offset as f64 + steps),
        })
    };
    Some(scales.iter().enumerate().map(one).collect())
}

/// An encodings file that was read: activations and parameters by name.
///
/// Both forms of AIMET are taken: version 0.6.1, a map of names to lists with an entry for each channel (`bitwidth`,
/// `min`, `max`, `scale`, `offset`), and version 1.0.0, a list of entries with a `name` and lists (`bw`, `scale`,
/// `offset`). Floats (`dtype` `float`) are left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encodings {
    path: PathBuf,
    activations: BTreeMap<String, Vec<Entry>>,
    parameters: BTreeMap<String, Vec<Entry>>,
}

/// Scale and offset of a tensor or a channel: real values are `scale × (q + offset)`, with `q` from 0 to `2^bits - 1`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    bits: u32,
    scale: f64,
    offset: f64,
    symmetric: bool,
}

impl Entry {
    fn range(&self) -> (f32, f32) {
        let steps = f64::from(self.bits).exp2() - 1.0;
        let low = self.scale * self.offset;
        (low as f32, (low + self.scale * steps) as f32)
    }
}

impl Encodings {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that is no encodings file, with the entry at fault.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let fail = |what: String| Error::usage(format!("{}: {what}", path.display()));
        let text = std::fs::read(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
        let value: Value =
            serde_json::from_slice(&text).map_err(|e| fail(format!("is no JSON: {e}")))?;
        let section = |key: &str| match value.get(key) {
            None => Ok(BTreeMap::new()),
            Some(section) => entries_of(section).map_err(|e| fail(format!("`{key}`: {e}"))),
        };
        let known = ["activation_encodings", "param_encodings"];
        if !known.iter().any(|key| value.get(key).is_some()) {
            return Err(fail(
                "has neither `activation_encodings` nor `param_encodings`".to_owned(),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            activations: section(known[0])?,
            parameters: section(known[1])?,
        })
    }

    /// The ranges of the activations that are values of a model, for [`Calibration::ranges`]; a note of the others.
    ///
    /// # Errors
    /// A file of which nothing belongs to the model, or an activation with several encodings.
    ///
    /// [`Calibration::ranges`]: onnx_quant_passes::calibration::Calibration::ranges
    pub fn ranges(&self, model: &Model, notes: &mut Vec<String>) -> Result<Ranges, Error> {
        let known = model.values_by_name(Model::MAIN);
        let is_known = |name: &String| known.contains_key(name.as_str());
        if !self
            .activations
            .keys()
            .chain(self.parameters.keys())
            .any(is_known)
        {
            return Err(Error::usage(format!(
                "{}: none of its {} activations and {} parameters is a value of this model",
                self.path.display(),
                self.activations.len(),
                self.parameters.len()
            )));
        }
        let mut ranges = Ranges::new();
        let mut unknown = Vec::new();
        for (name, list) in &self.activations {
            match list.as_slice() {
                _ if !is_known(name) => unknown.push(name.as_str()),
                [entry] => {
                    ranges.insert(name.clone(), entry.range());
                }
                _ => {
                    return Err(Error::usage(format!(
                        "{}: the activation `{name}` has {} encodings; activations are quantized per tensor",
                        self.path.display(),
                        list.len()
                    )));
                }
            }
        }
        self.note(
            "activations",
            "are no values of the normalized model",
            &unknown,
            notes,
        );
        Ok(ranges)
    }

    /// The weights of a plan with the scales of the file, where the plan has the format of the encoding; a note of the
    /// others, which get scales of our own.
    pub fn weights(
        &self,
        model: &Model,
        plan: &PrecisionPlan,
        notes: &mut Vec<String>,
    ) -> WeightOverrides {
        let values = model.values_by_name(Model::MAIN);
        let mut taken = WeightOverrides::default();
        for form in &plan.weights {
            let (Some(entries), Some(&value)) = (
                self.parameters.get(&form.key),
                values.get(form.key.as_str()),
            ) else {
                continue;
            };
            let Some(tensor) = model.constant(value) else {
                continue;
            };
            if let (Some(params), Ok(values)) = (params_of(form, tensor, entries), tensor.to_f32())
            {
                let chosen = WeightOverride {
                    values: values.to_vec(),
                    params: Some(params),
                };
                taken.0.insert(form.key.clone(), chosen);
            }
        }
        let other: Vec<&str> = self.parameters.keys().map(String::as_str).collect();
        let other: Vec<&str> = other
            .into_iter()
            .filter(|k| !taken.0.contains_key(*k))
            .collect();
        self.note(
            "parameters",
            "are no weights that are quantized with as many bits and scales",
            &other,
            notes,
        );
        taken
    }

    fn note(&self, what: &str, why: &str, names: &[&str], notes: &mut Vec<String>) {
        if names.is_empty() {
            return;
        }
        let some = names.iter().take(5).map(|n| format!("`{n}`"));
        let some = some.collect::<Vec<_>>().join(", ");
        let more = if names.len() > 5 { ", …" } else { "" };
        notes.push(format!(
            "{}: {} of its {what} {why}: {some}{more}",
            self.path.display(),
            names.len()
        ));
    }
}

impl Planned {
    /// Takes the scales of weights from encodings of another tool, where the plan has the same formats; what does not
    /// fit is noted. Weights that [`Planned::optimize`] chose keep what was chosen.
    pub fn import_weights(&mut self, encodings: &Encodings) {
        let plan = self.plan();
        let Carried { run, notes, .. } = &mut self.carried;
        let mut weights = encodings.weights(&self.model, &plan, notes);
        if let Some(chosen) = run.cx.take::<WeightOverrides>() {
            weights.0.extend(chosen.0);
        }
        run.cx.insert(weights);
    }
}

/// Lowest and highest real value by value key.
pub type Ranges = BTreeMap<String, (f32, f32)>;

/// The parameters of a weight in the form that the plan has; none where bits or the number of scales differ.
fn params_of(form: &WeightPlan, tensor: &Tensor, entries: &[Entry]) -> Option<Vec<QParams>> {
    let bits = match form.format.base {
        Base::Int(bits) | Base::Uint(bits) => u32::from(bits),
        _ => return None,
    };
    let signed = matches!(form.format.base, Base::Int(_));
    let least = if signed { -(1 << (bits - 1)) } else { 0 };
    let most = least + ((1 << bits) - 1);
    let scales = match (form.granularity(), form.axis) {
        (Granularity::Channel, Some(axis)) => *tensor.dims().get(axis)? as usize,
        (Granularity::Channel | Granularity::Tensor, _) => 1,
        _ => return None,
    };
    if entries.len() != scales || entries.iter().any(|e| e.bits != bits) {
        return None;
    }
    let one = |e: &Entry| {
        let zero = match e.symmetric {
            true => f64::from(least + (1 << (bits - 1))),
            false => f64::from(least) - e.offset,
        };
        let narrow = e.symmetric && signed;
        let valid = (f64::from(least)..=f64::from(most)).contains(&zero);
        valid.then_some(QParams {
            scale: e.scale as f32,
            zero_point: zero as i32,
            qmin: if narrow { least + 1 } else { least },
            qmax: most,
        })
    };
    entries.iter().map(one).collect()
}

fn entries_of(section: &Value) -> Result<BTreeMap<String, Vec<Entry>>, String> {
    let mut all = BTreeMap::new();
    let mut put = |name: &str, list: Result<Option<Vec<Entry>>, String>| {
        if let Some(list) = list.map_err(|e| format!("`{name}` {e}"))? {
            all.insert(name.to_owned(), list);
        }
        Ok::<(), String>(())
    };
    match section {
        Value::Object(map) => {
            for (name, list) in map {
                let list = list.as_array().ok_or(format!("`{name}` is no list"))?;
                let entries = list.iter().map(first_form).collect();
                put(name, entries)?;
            }
        }
        Value::Array(list) => {
            for entry in list {
                let name = entry.get("name").and_then(Value::as_str);
                put(name.ok_or("an entry has no `name`")?, second_form(entry))?;
            }
        }
        _ => return Err("is neither a map nor a list".to_owned()),
    }
    Ok(all)
}

fn is_float(entry: &Value) -> bool {
    let dtype = entry.get("dtype").and_then(Value::as_str);
    dtype.is_some_and(|d| d.eq_ignore_ascii_case("float"))
}

fn number(entry: &Value, key: &str) -> Option<f64> {
    entry.get(key).and_then(Value::as_f64)
}

/// Version 0.6.1; none for floats.
fn first_form(entry: &Value) -> Result<Option<Entry>, String> {
    if is_float(entry) {
        return Ok(None);
    }
    let bits = number(entry, "bitwidth").ok_or("has no `bitwidth`")?;
    let steps = bits.exp2() - 1.0;
    let (scale, offset) = match (number(entry, "scale"), number(entry, "offset")) {
        (Some(scale), Some(offset)) => (scale, offset),
        _ => match (number(entry, "min"), number(entry, "max")) {
            (Some(low), Some(high)) if low < high => {
                let scale = (high - low) / steps;
                (scale, (low / scale).round())
            }
            _ => return Err("has neither `scale` and `offset` nor `min` and `max`".to_owned()),
        },
    };
    let symmetric = match entry.get("is_symmetric") {
        Some(Value::String(s)) => s.eq_ignore_ascii_case("true"),
        Some(Value::Bool(b)) => *b,
        _ => false,
    };
    checked(bits, scale, offset, symmetric).map(Some)
}

/// Version 1.0.0; none for floats.
fn second_form(entry: &Value) -> Result<Option<Vec<Entry>>, String> {
    if is_float(entry) {
        return Ok(None);
    }
    let list = |key: &str| -> Result<Vec<f64>, String> {
        let list = entry.get(key).and_then(Value::as_array);
        let list = list.ok_or(format!("has no list `{key}`"))?;
        let list: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
        list.ok_or(format!("has no numbers in `{key}`"))
    };
    let bits = number(entry, "bw").ok_or("has no `bw`")?;
    let (scales, offsets) = (list("scale")?, list("offset")?);
    if scales.len() != offsets.len() {
        return Err("has another number of scales than of offsets".to_owned());
    }
    let symmetric = entry.get("is_sym").and_then(Value::as_bool) == Some(true);
    let pairs = scales.iter().zip(&offsets);
    let entries: Result<_, _> = pairs
        .map(|(s, o)| checked(bits, *s, *o, symmetric))
        .collect();
    entries.map(Some)
}

fn checked(bits: f64, scale: f64, offset: f64, symmetric: bool) -> Result<Entry, String> {
    if !(1.0..=32.0).contains(&bits) || bits.fract() != 0.0 {
        return Err(format!("has {bits} bits"));
    }
    if !(scale as f32).is_normal() || scale < 0.0 {
        return Err(format!(
            "has the scale {scale}, which is no positive number"
        ));
    }
    if offset.fract() != 0.0 {
        return Err(format!("has the offset {offset}, which is no whole number"));
    }
    Ok(Entry {
        bits: bits as u32,
        scale,
        offset,
        symmetric,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(text: &str) -> Result<Encodings, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("e.json");
        std::fs::write(&path, text).unwrap();
        Encodings::read(&path)
    }

    #[test]
    fn both_versions_say_the_same() {
        let first = read(
            r#"{"activation_encodings": {"x": [{"bitwidth": 8, "dtype": "int", "is_symmetric": "False", "scale": 0.5, "offset": -10, "min": -5.0, "max": 122.5}]},
                "param_encodings": {"w": [{"bitwidth": 8, "dtype": "int", "is_symmetric": "True", "min": -1.28, "max": 1.27}], "f": [{"bitwidth": 16, "dtype": "float"}]}}"#,
        )
        .unwrap();
        let second = read(
            r#"{"version": "1.0.0",
                "activation_encodings": [{"name": "x", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": false, "scale": [0.5], "offset": [-10]}],
                "param_encodings": [{"name": "w", "enc_type": "PER_TENSOR", "dtype": "INT", "bw": 8, "is_sym": true, "scale": [0.01], "offset": [-128]}, {"name": "f", "dtype": "FLOAT", "bw": 16}]}"#,
        )
        .unwrap();
        assert_eq!(first.activations, second.activations);
        assert_eq!(first.activations["x"][0].range(), (-5.0, 122.5));
        let (a, b) = (first.parameters["w"][0], second.parameters["w"][0]);
        assert_eq!((a.offset, a.symmetric), (b.offset, b.symmetric));
        assert!((a.scale - b.scale).abs() < 1e-9);
        assert_eq!(first.parameters.len(), 1, "floats are left out");
    }

    #[test]
    fn what_is_no_encoding_is_refused() {
        for (text, words) in [
            ("[]", "neither"),
            ("{", "no JSON"),
            (r#"{"param_encodings": 1}"#, "neither a map nor a list"),
            (
                r#"{"param_encodings": {"w": [{}]}}"#,
                "`w` has no `bitwidth`",
            ),
            (r#"{"param_encodings": [{"bw": 8}]}"#, "no `name`"),
            (
                r#"{"param_encodings": [{"name": "w", "bw": 8, "scale": [0.0], "offset": [0]}]}"#,
                "no positive number",
            ),
            (
                r#"{"param_encodings": [{"name": "w", "bw": 8, "scale": [1.0], "offset": []}]}"#,
                "another number",
            ),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}

//! Inputs that the data does not give: values from the command line or the configuration, and empty caches of decoders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor};
use serde::{Deserialize, Serialize};

use super::archive::Place;
use super::array::Array;
use super::error::{DataError, Origin, nearest};
use super::npy::item_size;
use super::signature::{Input, Signature};

/// The value of an input that the data does not give: a number, a truth value, a list (of lists) of them, or the path
/// of an `.npy` file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InputValue {
    /// `true` or `false`.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// Any other number.
    Float(f64),
    /// A list, all of whose entries have the same shape.
    List(Vec<InputValue>),
    /// An `.npy` file of the input's own type.
    File(PathBuf),
}

impl InputValue {
    /// Reads `name=value`.
    ///
    /// # Errors
    /// Text without a name, and lists that do not parse.
    pub fn parse_pair(text: &str) -> Result<(String, Self), String> {
        let (name, value) = text
            .split_once('=')
            .filter(|(n, v)| !n.is_empty() && !v.is_empty())
            .ok_or("give NAME=VALUE, where VALUE is a number, a list as [1,2], or the path of an .npy file")?;
        let parsed = serde_json::from_str::<Self>(value);
        let value = match parsed {
            Ok(Self::File(_)) | Err(_) if value.starts_with('[') => {
                return Err(format!("`{value}` is no list of numbers such as [1,2]"));
            }
            Ok(v) => v,
            Err(_) => Self::File(PathBuf::from(value)),
        };
        Ok((name.to_owned(), value))
    }
}

/// How an input is fed that the data does not give.
#[derive(Debug, Clone)]
pub(super) enum Fill {
    /// This value, repeated along axes where it has size 1.
    Value(Tensor),
    /// A cache of length zero.
    EmptyCache,
}

/// The fill of each input of a signature, `None` where the data must give it.
#[derive(Debug, Clone)]
pub(super) struct Fills(pub(super) Vec<Option<Fill>>);

impl Fills {
    /// Values that were given, and caches that are known by their names.
    pub(super) fn new(
        values: &BTreeMap<String, InputValue>,
        signature: &Signature,
    ) -> Result<Self, DataError> {
        let names: Vec<&str> = signature.inputs.iter().map(|i| i.name.as_str()).collect();
        for name in values.keys() {
            if !names.contains(&name.as_str()) {
                let inputs = signature.inputs.iter().map(|i| format!("`{}`", i.name));
                return Err(DataError::Spec(format!(
                    "--input {name}: the model has no such input{}; its inputs are {}",
                    nearest(name, names.iter().copied()),
                    inputs.collect::<Vec<_>>().join(", ")
                )));
            }
        }
        let fill = |input: &Input| match values.get(&input.name) {
            Some(v) => tensor(v, input).map(|t| Some(Fill::Value(t))),
            None => Ok(is_cache(input).then_some(Fill::EmptyCache)),
        };
        signature
            .inputs
            .iter()
            .map(fill)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The signature that the data is matched with: what is filled is optional there.
    pub(super) fn relaxed(&self, signature: &Signature) -> Signature {
        let mut relaxed = signature.clone();
        for (input, fill) in relaxed.inputs.iter_mut().zip(&self.0) {
            input.optional |= fill.is_some();
        }
        relaxed
    }

    /// Refuses values for inputs that the data gives, and caches that the data gives in part.
    pub(super) fn check(
        &self,
        signature: &Signature,
        given: &[bool],
        path: &Path,
    ) -> Result<(), DataError> {
        let mut pairs = signature.inputs.iter().zip(&self.0).zip(given);
        let both = pairs.find(|((_, fill), given)| **given && matches!(fill, Some(Fill::Value(_))));
        match both {
            Some(((input, _), _)) => Err(DataError::Spec(format!(
                "--input {}: {} gives that input already; leave one of them out",
                input.name,
                path.display()
            ))),
            None => Ok(()),
        }
    }

    /// What the user should know.
    pub(super) fn notes(&self, signature: &Signature, given: &[bool]) -> Option<String> {
        let caches: Vec<&str> = signature
            .inputs
            .iter()
            .zip(&self.0)
            .zip(given)
            .filter(|((_, fill), given)| matches!(fill, Some(Fill::EmptyCache)) && !**given)
            .map(|((input, _), _)| input.name.as_str())
            .collect();
        let first = caches.first()?;
        Some(match caches.len() {
            1 => format!("the cache `{first}` is not in the data and is fed with length zero"),
            n => format!(
                "the {n} caches `{first}` … are not in the data and are fed with length zero"
            ),
        })
    }
}

/// A key or value cache as exporters name them, with one free axis beside the batch: that of past positions.
fn is_cache(input: &Input) -> bool {
    let name = input.name.to_ascii_lowercase();
    let named = name.contains("past_key_values")
        || (name.starts_with("past") && (name.contains("key") || name.contains("value")));
    let Some(dims) = &input.dims else {
        return false;
    };
    named && input.dtype.is_float() && dims.iter().skip(1).filter(|d| d.is_none()).count() == 1
}

impl Fill {
    /// The shape for a run. `rows` is the size of the batch, `sizes` are those of the symbols that the data fixes.
    pub(super) fn dims(
        &self,
        input: &Input,
        rows: Option<usize>,
        sizes: &BTreeMap<&str, usize>,
    ) -> Result<Vec<usize>, DataError> {
        let value = match self {
            Self::Value(t) => t
                .dims()
                .iter()
                .map(|&d| usize::try_from(d).unwrap_or(0))
                .collect(),
            Self::EmptyCache => Vec::new(),
        };
        let Some(rank) = input.rank() else {
            return Ok(value);
        };
        let refuse = || {
            DataError::Spec(format!(
                "--input {}: a value of shape {value:?} does not fit the input, which is {input}",
                input.name
            ))
        };
        let lead = rank.checked_sub(value.len()).ok_or_else(refuse)?;
        let mut dims = Vec::with_capacity(rank);
        for axis in 0..rank {
            let own = axis.checked_sub(lead).map(|a| value[a]);
            let symbol = input.symbols.get(axis).and_then(Option::as_deref);
            let known = input.fixed(axis).or_else(|| sizes.get(symbol?).copied());
            let spread = own.is_none_or(|o| o == 1);
            let size = known.or_else(|| rows.filter(|_| axis == 0 && spread));
            let size = size.unwrap_or(match self {
                Self::Value(_) => own.unwrap_or(1),
                Self::EmptyCache => 0,
            });
            if !spread && own != Some(size) {
                return Err(refuse());
            }
            dims.push(size);
        }
        Ok(dims)
    }

    /// The tensor for a run.
    pub(super) fn tensor(&self, input: &Input, dims: &[usize]) -> Result<Tensor, DataError> {
        let signed: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        let (value, from) = match self {
            Self::EmptyCache => return Ok(Tensor::from_raw(input.dtype, &signed, Vec::new())),
            Self::Value(t) => (t, t.dims()),
        };
        let bytes = value
            .bytes()
            .map_err(|e| DataError::Spec(format!("--input {}: {e}", input.name)))?;
        let from: Vec<usize> = from
            .iter()
            .map(|&d| usize::try_from(d).unwrap_or(0))
            .collect();
        let spread = broadcast(&bytes, &from, dims, item_size(input.dtype));
        Ok(Tensor::from_raw(input.dtype, &signed, spread))
    }
}

/// Repeats a row-major array along axes where it has size 1, as numpy does; missing axes are leading ones.
fn broadcast(bytes: &[u8], from: &[usize], to: &[usize], item: usize) -> Vec<u8> {
    let lead = to.len().saturating_sub(from.len());
    let mut strides = vec![0; to.len()];
    let mut step = item;
    for axis in (0..from.len()).rev() {
        strides[lead + axis] = if from[axis] == 1 { 0 } else { step };
        step *= from[axis];
    }
    let count: usize = to.iter().product();
    let mut out = Vec::with_capacity(count * item);
    for index in 0..count {
        let (mut rest, mut at) = (index, 0);
        for axis in (0..to.len()).rev() {
            at += rest % to[axis] * strides[axis];
            rest /= to[axis];
        }
        out.extend_from_slice(&bytes[at..at + item]);
    }
    out
}

/// A value in the type of its input.
fn tensor(value: &InputValue, input: &Input) -> Result<Tensor, DataError> {
    let refuse = |reason: String| DataError::Spec(format!("--input {}: {reason}", input.name));
    if let InputValue::File(path) = value {
        return read(path, input);
    }
    let mut dims = Vec::new();
    let mut at = value;
    while let InputValue::List(entries) = at {
        dims.push(entries.len() as i64);
        match entries.first() {
            Some(first) => at = first,
            None => break,
        }
    }
    let mut flat = Vec::new();
    flatten(value, &dims, &mut flat).map_err(refuse)?;
    let exact = input.dtype.is_integer() || input.dtype == DataType::Bool;
    let mut bytes = Vec::new();
    for v in flat {
        if exact {
            let v = match v {
                InputValue::Int(i) => *i,
                InputValue::Bool(b) => i64::from(*b),
                _ => {
                    return Err(refuse(format!(
                        "the input takes {}, give integers",
                        input.dtype.short_name()
                    )));
                }
            };
            put_integer(v, input.dtype, &mut bytes).map_err(refuse)?;
        } else {
            let v = match v {
                InputValue::Float(f) => *f,
                InputValue::Int(i) => *i as f64,
                InputValue::Bool(b) => f64::from(u8::from(*b)),
                _ => return Err(refuse("a list may hold numbers only".to_owned())),
            };
            put_float(v, input.dtype, &mut bytes).map_err(refuse)?;
        }
    }
    let tensor = Tensor::from_raw(input.dtype, &dims, bytes);
    // A shape that can never fit is told before the work begins.
    Fill::Value(tensor.clone())
        .dims(input, None, &BTreeMap::new())
        .map(|_| tensor)
}

fn flatten<'a>(
    value: &'a InputValue,
    dims: &[i64],
    out: &mut Vec<&'a InputValue>,
) -> Result<(), String> {
    match (value, dims.split_first()) {
        (InputValue::List(entries), Some((&n, rest))) if entries.len() as i64 == n => {
            entries.iter().try_for_each(|e| flatten(e, rest, out))
        }
        (InputValue::List(_), _) | (_, Some(_)) => {
            Err("the rows of the list have different lengths".to_owned())
        }
        (InputValue::File(_), None) => Err("a list may hold numbers only".to_owned()),
        (v, None) => {
            out.push(v);
            Ok(())
        }
    }
}

/// Appends an integer in the given type.
pub(super) fn put_integer(v: i64, dtype: DataType, out: &mut Vec<u8>) -> Result<(), String> {
    let range = || format!("{v} is out of the range of {}", dtype.short_name());
    match dtype {
        DataType::Bool if v == 0 || v == 1 => out.push(v as u8),
        DataType::Int8 => out.extend(i8::try_from(v).map_err(|_| range())?.to_le_bytes()),
        DataType::Int16 => out.extend(i16::try_from(v).map_err(|_| range())?.to_le_bytes()),
        DataType::Int32 => out.extend(i32::try_from(v).map_err(|_| range())?.to_le_bytes()),
        DataType::Int64 => out.extend(v.to_le_bytes()),
        DataType::Uint8 => out.extend(u8::try_from(v).map_err(|_| range())?.to_le_bytes()),
        DataType::Uint16 => out.extend(u16::try_from(v).map_err(|_| range())?.to_le_bytes()),
        DataType::Uint32 => out.extend(u32::try_from(v).map_err(|_| range())?.to_le_bytes()),
        DataType::Uint64 => out.extend(u64::try_from(v).map_err(|_| range())?.to_le_bytes()),
        DataType::Bool => return Err(range()),
        _ => {
            return Err(format!(
                "an input of {} cannot be given integers",
                dtype.short_name()
            ));
        }
    }
    Ok(())
}

/// Appends a number in the given float type.
pub(super) fn put_float(v: f64, dtype: DataType, out: &mut Vec<u8>) -> Result<(), String> {
    match dtype {
        DataType::Float => out.extend((v as f32).to_le_bytes()),
        DataType::Double => out.extend(v.to_le_bytes()),
        DataType::Float16 => out.extend(half::f16::from_f64(v).to_le_bytes()),
        DataType::Bfloat16 => out.extend(half::bf16::from_f64(v).to_le_bytes()),
        _ => {
            return Err(format!(
                "an input of {} cannot be given numbers",
                dtype.short_name()
            ));
        }
    }
    Ok(())
}

fn read(path: &Path, input: &Input) -> Result<Tensor, DataError> {
    if !path.exists() {
        return Err(DataError::Spec(format!(
            "--input {}: `{}` is neither a number, nor a list, nor a file",
            input.name,
            path.display()
        )));
    }
    let origin = Origin {
        path: Arc::from(path),
        array: None,
    };
    let array = Array::npy(origin, Place::file(&Arc::from(path))?)?;
    super::layout::check_type(&array, input)?;
    let mut bytes = Vec::new();
    array.read(&mut array.open()?, array.size(), 0, &mut bytes)?;
    let dims: Vec<i64> = array.dims.iter().map(|&d| d as i64).collect();
    let tensor = Tensor::from_raw(array.dtype, &dims, bytes);
    Fill::Value(tensor.clone())
        .dims(input, None, &BTreeMap::new())
        .map(|_| tensor)
}

/// The sizes of the symbols that given inputs fix by their shapes.
pub(super) fn symbol_sizes<'a>(
    shapes: impl IntoIterator<Item = (&'a Input, &'a [usize])>,
) -> BTreeMap<&'a str, usize> {
    let mut sizes = BTreeMap::new();
    for (input, dims) in shapes {
        for (symbol, &size) in input.symbols.iter().zip(dims) {
            if let Some(symbol) = symbol {
                sizes.entry(symbol.as_str()).or_insert(size);
            }
        }
    }
    sizes
}

/// Names of the inputs that a kind of data feeds, for a message.
pub(super) fn listed<'a>(inputs: impl IntoIterator<Item = &'a Input>) -> String {
    let names: BTreeSet<String> = inputs
        .into_iter()
        .map(|i| format!("`{}`", i.name))
        .collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

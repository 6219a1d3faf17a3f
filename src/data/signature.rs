//! What a model asks to be fed with.

use std::fmt;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::proto::{TypeProto, tensor_shape_proto::dimension, type_proto};
use onnx_quant_ir::{DataType, Model};

use super::error::{DataError, Names};

/// One input of the main graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DataType,
    /// Its shape, `None` where an axis is free; `None` as a whole where no rank is declared.
    pub dims: Option<Vec<Option<i64>>>,
    /// The name of each free axis, one entry an axis; axes of the same name have the same size.
    pub symbols: Vec<Option<String>>,
    /// An initializer of the same name stands in for a missing array.
    pub optional: bool,
}

impl Input {
    /// The number of axes, where it is declared.
    pub fn rank(&self) -> Option<usize> {
        self.dims.as_ref().map(Vec::len)
    }

    /// The declared size of an axis, where it is fixed.
    pub fn fixed(&self, axis: usize) -> Option<usize> {
        let dim = *self.dims.as_ref()?.get(axis)?;
        usize::try_from(dim?).ok()
    }
}

impl fmt::Display for Input {
    /// `f32 [batch, 3, ?, ?]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.dtype.short_name())?;
        let Some(dims) = &self.dims else {
            return f.write_str("of any rank");
        };
        f.write_str("[")?;
        for (i, dim) in dims.iter().enumerate() {
            if i > 0 {
                f.write_str(", ")?;
            }
            match (dim, self.symbols.get(i).and_then(Option::as_deref)) {
                (Some(d), _) => write!(f, "{d}")?,
                (None, Some(s)) => f.write_str(s)?,
                (None, None) => f.write_str("?")?,
            }
        }
        f.write_str("]")
    }
}

/// The inputs of a model's main graph, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signature {
    /// The inputs.
    pub inputs: Vec<Input>,
}

impl Signature {
    /// Reads the signature of a model. A declared size below 1 counts as free: exporters write 0 and -1 for unknown.
    ///
    /// # Errors
    /// [`DataError::Input`] for an input that is no tensor, or a tensor of strings; [`DataError::NoInputs`].
    pub fn of(model: &Model) -> Result<Self, DataError> {
        let mut inputs = Vec::new();
        for &id in &model.main().inputs {
            let value = model.value(id);
            let refuse = |found: String| DataError::Input {
                input: value.name.clone(),
                found,
            };
            let ty = value.input_info.as_ref().and_then(|i| i.r#type.as_ref());
            let (dtype, dims) = tensor_type(ty).map_err(refuse)?;
            let (dims, symbols) = match dims {
                Some(axes) => {
                    let (d, s) = axes.into_iter().unzip();
                    (Some(d), s)
                }
                None => (None, Vec::new()),
            };
            inputs.push(Input {
                name: value.name.clone(),
                dtype,
                dims,
                symbols,
                optional: value.init.is_some() || value.sparse_init,
            });
        }
        if inputs.is_empty() {
            return Err(DataError::NoInputs);
        }
        Ok(Self { inputs })
    }

    /// The inputs that the data must hold.
    pub fn required(&self) -> impl Iterator<Item = &Input> {
        self.inputs.iter().filter(|i| !i.optional)
    }

    /// The place of an input.
    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.inputs.iter().position(|i| i.name == name)
    }

    /// The one input that an array without a name can be for.
    pub(super) fn single(&self) -> Option<usize> {
        let mut required = (0..self.inputs.len()).filter(|&i| !self.inputs[i].optional);
        match (required.next(), required.next(), self.inputs.len()) {
            (Some(i), None, _) => Some(i),
            (None, _, 1) => Some(0),
            _ => None,
        }
    }

    /// The names of the inputs for a message; optional ones only where there are no others.
    pub(super) fn names(&self) -> Names {
        let required = Names::new(self.required().map(|i| &i.name));
        if required.0.is_empty() {
            return Names::new(self.inputs.iter().map(|i| &i.name));
        }
        required
    }
}

type Axes = Vec<(Option<i64>, Option<String>)>;

/// Type and shape of a declared tensor, or what the declaration is instead.
fn tensor_type(ty: Option<&TypeProto>) -> Result<(DataType, Option<Axes>), String> {
    let tensor = match ty.and_then(|t| t.value.as_ref()) {
        Some(type_proto::Value::TensorType(t)) => t,
        Some(type_proto::Value::SequenceType(_)) => return Err("a sequence".to_owned()),
        Some(type_proto::Value::MapType(_)) => return Err("a map".to_owned()),
        Some(type_proto::Value::OptionalType(_)) => return Err("an optional".to_owned()),
        Some(type_proto::Value::SparseTensorType(_)) => return Err("a sparse tensor".to_owned()),
        _ => return Err("of no declared type".to_owned()),
    };
    let dtype = match DataType::from_number(tensor.elem_type()) {
        Some(DataType::String) => return Err("a tensor of strings".to_owned()),
        Some(t) => t,
        None => return Err("a tensor of no declared element type".to_owned()),
    };
    let dims = tensor.shape.as_ref().map(|shape| {
        let axis = |d: &onnx_quant_ir::proto::tensor_shape_proto::Dimension| match &d.value {
            Some(dimension::Value::DimValue(v)) if *v > 0 => (Some(*v), None),
            Some(dimension::Value::DimParam(s)) if names_a_size(s) => (None, Some(s.clone())),
            _ => (None, None),
        };
        shape.dim.iter().map(axis).collect()
    });
    Ok((dtype, dims))
}

/// Exporters write `?`, `-1` or `None` for axes that have nothing to do with each other.
fn names_a_size(symbol: &str) -> bool {
    symbol.starts_with(|c: char| c.is_alphabetic() || c == '_') && symbol != "None"
}

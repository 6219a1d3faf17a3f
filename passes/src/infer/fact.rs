//! What is known of one value.

use std::sync::Arc;

use onnx_quant_ir::proto::{tensor_shape_proto::dimension, type_proto};
use onnx_quant_ir::{DataType, Tensor, Value};

/// Longest partly known list of integers that is tracked.
const MAX_LIST: usize = 64;

/// One dimension of a shape, or one integer of a list that shapes are computed from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A number.
    Known(i64),
    /// The same number wherever this name stands.
    Symbol(Arc<str>),
    /// Any number.
    Unknown,
}

impl Dim {
    /// The number, where it is known.
    pub fn known(&self) -> Option<i64> {
        match self {
            Self::Known(n) => Some(*n),
            _ => None,
        }
    }

    /// Whether both are certainly the same number.
    pub fn same(&self, other: &Self) -> bool {
        *self != Self::Unknown && self == other
    }

    /// What holds of a number that is either this or that.
    pub(super) fn merge(&self, other: &Self) -> Self {
        if self.same(other) {
            self.clone()
        } else {
            Self::Unknown
        }
    }

    /// The dimension of a broadcast (NumPy's rule).
    pub(super) fn broadcast(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Known(1), d) | (d, Self::Known(1)) => d.clone(),
            (a, b) if a == b => a.clone(),
            (Self::Known(_), Self::Known(_)) => Self::Unknown,
            (Self::Known(n), _) | (_, Self::Known(n)) => Self::Known(*n),
            _ => Self::Unknown,
        }
    }

    /// A function of the number.
    pub(super) fn map(&self, f: impl FnOnce(i64) -> Option<i64>) -> Self {
        self.known().and_then(f).map_or(Self::Unknown, Self::Known)
    }

    /// The sum.
    pub(super) fn add(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Known(0), d) | (d, Self::Known(0)) => d.clone(),
            (a, Self::Known(b)) => a.map(|a| a.checked_add(*b)),
            _ => Self::Unknown,
        }
    }

    /// The product.
    pub(super) fn mul(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::Known(1), d) | (d, Self::Known(1)) => d.clone(),
            (Self::Known(0), _) | (_, Self::Known(0)) => Self::Known(0),
            (a, Self::Known(b)) => a.map(|a| a.checked_mul(*b)),
            _ => Self::Unknown,
        }
    }
}

/// The product of dimensions.
pub(super) fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::Known(1), |n, d| n.mul(d))
}

/// What is known of one value.
#[derive(Debug, Clone, Default)]
pub struct Fact {
    /// The element type.
    pub dtype: Option<DataType>,
    /// One entry an axis; `None` where not even the rank is known.
    pub shape: Option<Vec<Dim>>,
    /// The constant.
    pub value: Option<Tensor>,
    /// The elements of an integer scalar or list that is known in part.
    pub list: Option<Vec<Dim>>,
}

impl Fact {
    /// A constant.
    pub fn constant(value: Tensor) -> Self {
        Self {
            dtype: Some(value.dtype()),
            shape: Some(value.dims().iter().map(|&d| Dim::Known(d)).collect()),
            value: Some(value),
            list: None,
        }
    }

    /// A value of which type and shape may be known.
    pub fn new(dtype: Option<DataType>, shape: Option<Vec<Dim>>) -> Self {
        Self {
            dtype,
            shape,
            value: None,
            list: None,
        }
    }

    /// An integer list (or, for `scalar`, a single integer), as a constant where all of it is known.
    pub(super) fn of_list(dtype: DataType, list: Vec<Dim>, scalar: bool) -> Self {
        let shape: Vec<i64> = if scalar {
            vec![]
        } else {
            vec![list.len() as i64]
        };
        let known: Option<Vec<i64>> = list.iter().map(Dim::known).collect();
        match (known, dtype) {
            (Some(v), DataType::Int64) => Self::constant(Tensor::from_i64(&shape, &v)),
            _ => Self {
                dtype: Some(dtype),
                shape: Some(shape.into_iter().map(Dim::Known).collect()),
                value: None,
                list: (list.len() <= MAX_LIST).then_some(list),
            },
        }
    }

    /// The declared type and shape of a value, symbols by name. Negative dimensions count as unknown:
    /// exporters write -1 for "any".
    pub fn declared(value: &Value) -> Self {
        let shape = match value.ty().and_then(|t| t.value.as_ref()) {
            Some(type_proto::Value::TensorType(t)) => t.shape.as_ref().map(|s| {
                s.dim
                    .iter()
                    .map(|d| match &d.value {
                        Some(dimension::Value::DimValue(n)) if *n >= 0 => Dim::Known(*n),
                        Some(dimension::Value::DimParam(s)) if !s.is_empty() => {
                            Dim::Symbol(Arc::from(s.as_str()))
                        }
                        _ => Dim::Unknown,
                    })
                    .collect()
            }),
            _ => None,
        };
        Self::new(value.dtype(), shape)
    }

    /// The shape, where every dimension is known.
    pub fn known_shape(&self) -> Option<Vec<i64>> {
        self.shape.as_ref()?.iter().map(Dim::known).collect()
    }

    /// The elements of a constant of integers.
    pub fn ints(&self) -> Option<Vec<i64>> {
        self.value.as_ref()?.to_i64().ok()
    }

    /// The elements of an integer scalar or list, in so far as they are known.
    pub(super) fn elements(&self) -> Option<Vec<Dim>> {
        if self.shape.as_ref().is_some_and(|s| s.len() > 1) {
            return None;
        }
        match &self.value {
            Some(t) if t.element_count().is_ok_and(|n| n <= MAX_LIST) => {
                Some(t.to_i64().ok()?.into_iter().map(Dim::Known).collect())
            }
            Some(_) => None,
            None => self.list.clone(),
        }
    }

    /// What holds of a value that is either this or that.
    pub(super) fn merge(&self, other: &Self) -> Self {
        let shape = match (&self.shape, &other.shape) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                Some(a.iter().zip(b).map(|(a, b)| a.merge(b)).collect())
            }
            _ => None,
        };
        let value = match (&self.value, &other.value) {
            (Some(a), Some(b))
                if a.dtype() == b.dtype()
                    && a.dims() == b.dims()
                    && matches!((a.bytes(), b.bytes()), (Ok(x), Ok(y)) if x == y) =>
            {
                Some(a.clone())
            }
            _ => None,
        };
        Self {
            dtype: self.dtype.filter(|_| self.dtype == other.dtype),
            shape,
            value,
            list: None,
        }
    }
}

/// NumPy's broadcast of two shapes.
pub(super) fn broadcast(a: &[Dim], b: &[Dim]) -> Vec<Dim> {
    let rank = a.len().max(b.len());
    let one = Dim::Known(1);
    let at = |s: &[Dim], i: usize| -> Dim {
        (i + s.len())
            .checked_sub(rank)
            .map_or(one.clone(), |j| s[j].clone())
    };
    (0..rank).map(|i| at(a, i).broadcast(&at(b, i))).collect()
}

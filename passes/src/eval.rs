//! The reference evaluator: one ONNX operator on constant tensors.
//!
//! It covers what occurs in shape computations and constant subgraphs of real exports, not whole networks. Integers
//! wrap at the width of their type; `f16` and `bf16` are computed in `f32` and rounded once. Where the standard leaves
//! a result open (integer division by zero, a float outside the integer range), the evaluator refuses, so that the
//! runtime's own answer stays.

mod arith;
mod array;
mod bits;
mod create;
mod layout;
mod linear;
mod reduce;
mod select;
pub(crate) mod shape;

#[cfg(test)]
mod tests;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Node, Tensor, TensorError};

pub(crate) use array::Nums;

/// Why an operator cannot be evaluated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    /// The evaluator has no rule for the operator, for one of its forms, or for the element type.
    #[error("`{op}` is not evaluated: {reason}")]
    Unsupported {
        /// The operator.
        op: String,
        /// What is not supported.
        reason: String,
    },
    /// The inputs or attributes contradict the standard, or the standard leaves the result open.
    #[error("`{op}` cannot be evaluated: {reason}")]
    Invalid {
        /// The operator.
        op: String,
        /// What is wrong.
        reason: String,
    },
    /// The result would take more memory than the caller allows.
    #[error("the result of `{op}` would pass the limit of {limit} bytes")]
    TooLarge {
        /// The operator.
        op: String,
        /// The caller's limit in bytes.
        limit: usize,
    },
    /// An input tensor is damaged.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Evaluates one operator of the standard's own domain.
///
/// `inputs` holds one entry an input slot, `None` where an optional input is missing; `opset` is the version of the
/// standard's operator set; no output may take more than `limit` bytes. The outputs come in order of their slots.
///
/// # Errors
/// [`EvalError`]; never panics, whatever the tensors hold.
pub fn evaluate(
    node: &Node,
    opset: i64,
    inputs: &[Option<&Tensor>],
    limit: usize,
) -> Result<Vec<Tensor>, EvalError> {
    let cx = Ctx {
        node,
        inputs,
        limit,
    };
    if !node.domain().is_empty() {
        return Err(cx.unsupported("the domain is not the standard's"));
    }
    if opset < 7 && cx.node.attr_i("broadcast").unwrap_or(0) != 0 {
        return Err(cx.unsupported("one-sided broadcasting of opsets before 7"));
    }
    let op = node.op_type();
    let mut found = layout::evaluate(&cx, op);
    for family in [
        bits::evaluate,
        select::evaluate,
        create::evaluate,
        reduce::evaluate,
        linear::evaluate,
        arith::evaluate,
    ] {
        if found.is_some() {
            break;
        }
        found = family(&cx, op);
    }
    match found {
        Some(result) => result,
        None => Err(cx.unsupported("there is no rule for it")),
    }
}

/// Whether two runtimes may differ in the last bit of the operator's float results: the order of a sum and the rounding
/// of a transcendental function are their own affair.
pub fn rounds_freely(op: &str) -> bool {
    matches!(
        op,
        "Cos"
            | "CumSum"
            | "Erf"
            | "Exp"
            | "Gemm"
            | "Log"
            | "MatMul"
            | "Mean"
            | "Pow"
            | "ReduceMean"
            | "ReduceProd"
            | "ReduceSum"
            | "Sigmoid"
            | "Sin"
            | "Sum"
            | "Tanh"
    )
}

/// What a family of operators gives: `None` where the operator is not one of the family.
type Outcome = Option<Result<Vec<Tensor>, EvalError>>;

/// An operator and its inputs.
struct Ctx<'a> {
    node: &'a Node,
    inputs: &'a [Option<&'a Tensor>],
    limit: usize,
}

impl<'a> Ctx<'a> {
    fn unsupported(&self, reason: impl Into<String>) -> EvalError {
        EvalError::Unsupported {
            op: self.node.op_type().to_owned(),
            reason: reason.into(),
        }
    }

    fn invalid(&self, reason: impl Into<String>) -> EvalError {
        EvalError::Invalid {
            op: self.node.op_type().to_owned(),
            reason: reason.into(),
        }
    }

    fn opt(&self, slot: usize) -> Option<&'a Tensor> {
        self.inputs.get(slot).copied().flatten()
    }

    fn input(&self, slot: usize) -> Result<&'a Tensor, EvalError> {
        self.opt(slot)
            .ok_or_else(|| self.invalid(format!("input {slot} is missing")))
    }

    fn nums(&self, slot: usize) -> Result<Nums, EvalError> {
        Nums::read(self.input(slot)?).map_err(|e| self.explain(e))
    }

    /// Integers of an input that the standard also allowed as an attribute; `None` where neither is there.
    fn ints_or(&self, slot: usize, attr: &str) -> Result<Option<Vec<i64>>, EvalError> {
        match self.opt(slot) {
            Some(t) => Ok(Some(t.to_i64()?)),
            None => Ok(self.node.attr_ints(attr).map(<[i64]>::to_vec)),
        }
    }

    /// The axis attribute as an index below `rank`.
    fn axis(&self, default: i64, rank: usize) -> Result<usize, EvalError> {
        let axis = self.node.attr_i("axis").unwrap_or(default);
        shape::axis(axis, rank)
            .ok_or_else(|| self.invalid(format!("axis {axis} is outside rank {rank}")))
    }

    /// Checks the size of a result and returns its number of elements.
    fn room(&self, dtype: DataType, dims: &[usize]) -> Result<usize, EvalError> {
        let size = dtype.bits().unwrap_or(8).div_ceil(8);
        dims.iter()
            .try_fold(1usize, |n, &d| n.checked_mul(d))
            .filter(|n| n.checked_mul(size).is_some_and(|b| b <= self.limit))
            .ok_or_else(|| EvalError::TooLarge {
                op: self.node.op_type().to_owned(),
                limit: self.limit,
            })
    }

    /// Numbers as a tensor of the given type.
    fn store(&self, nums: &Nums, dtype: DataType, dims: &[usize]) -> Result<Tensor, EvalError> {
        nums.write(dtype, dims).map_err(|e| self.explain(e))
    }

    /// Puts the operator's name into an error that was made without it.
    fn explain(&self, e: array::NumError) -> EvalError {
        match e {
            array::NumError::Type(t) => {
                self.unsupported(format!("elements of type {}", t.short_name()))
            }
            array::NumError::Range => {
                self.invalid("a number lies outside the range of the result's type")
            }
            array::NumError::Tensor(e) => EvalError::Tensor(e),
        }
    }
}

/// The shape of a tensor as indices. No product of some of the dimensions overflows, whatever others are zero.
fn dims_of(t: &Tensor) -> Result<Vec<usize>, EvalError> {
    t.element_count()?;
    t.dims()
        .iter()
        .try_fold(1isize, |n, &d| n.checked_mul((d as isize).max(1)))
        .ok_or_else(|| TensorError::Shape(t.dims().to_vec()))?;
    Ok(t.dims().iter().map(|&d| d as usize).collect())
}

/// The shape as the file stores it.
fn stored(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|&d| d as i64).collect()
}

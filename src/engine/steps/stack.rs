//! Slices of tensors and stacks of them.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor};

/// The bytes of an element.
fn width(dtype: DataType) -> Result<usize, String> {
    let bits = dtype.bits().filter(|b| b % 8 == 0);
    let width = bits.map(|b| b / 8);
    width.ok_or_else(|| format!("tensors of {} cannot be cut or stacked", dtype.short_name()))
}

/// An axis of `rank`, which counts from the end where it is negative.
fn position(axis: i64, rank: usize) -> Result<usize, String> {
    let at = if axis < 0 { axis + rank as i64 } else { axis };
    let fits = usize::try_from(at).ok().filter(|&a| a < rank);
    fits.ok_or_else(|| format!("a tensor of rank {rank} has no axis {axis}"))
}

/// The length of an axis.
pub(super) fn length(tensor: &Tensor, axis: i64) -> Result<usize, String> {
    let at = position(axis, tensor.dims().len())?;
    Ok(tensor.dims()[at] as usize)
}

/// The part of a tensor with one index on an axis, without that axis.
pub(super) fn slice(tensor: &Tensor, axis: i64, index: usize) -> Result<Tensor, String> {
    let at = position(axis, tensor.dims().len())?;
    let mut dims = tensor.dims().to_vec();
    let size = dims.remove(at) as usize;
    let bytes = tensor.bytes().map_err(|e| e.to_string())?;
    let inner: usize = dims[at..].iter().map(|&d| d as usize).product();
    let run = inner * width(tensor.dtype())?;
    let rows = bytes.chunks(run.max(1)).skip(index).step_by(size.max(1));
    let data: Vec<u8> = rows.flatten().copied().collect();
    Ok(Tensor::from_raw(tensor.dtype(), &dims, data))
}

/// The tensor whose slices along a new axis are these.
pub(super) fn stack(slices: &[Tensor], axis: i64) -> Result<Tensor, String> {
    let first = slices.first().ok_or("nothing to stack")?;
    let at = position(axis, first.dims().len() + 1)?;
    if let Some(other) = slices.iter().find(|t| t.dims() != first.dims()) {
        let (a, b) = (first.dims(), other.dims());
        return Err(format!(
            "its turns give tensors of shapes {a:?} and {b:?}, which do not stack"
        ));
    }
    let inner: usize = first.dims()[at..].iter().map(|&d| d as usize).product();
    let outer: usize = first.dims()[..at].iter().map(|&d| d as usize).product();
    let run = inner * width(first.dtype())?;
    let bytes: Result<Vec<_>, _> = slices.iter().map(Tensor::bytes).collect();
    let bytes = bytes.map_err(|e| e.to_string())?;
    let mut data = Vec::with_capacity(run * outer * slices.len());
    for row in 0..outer {
        for part in &bytes {
            data.extend_from_slice(&part[row * run..(row + 1) * run]);
        }
    }
    let mut dims = first.dims().to_vec();
    dims.insert(at, slices.len() as i64);
    Ok(Tensor::from_raw(first.dtype(), &dims, data))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn slices_stack_to_the_whole() {
        let data: Vec<f32> = (0..24u8).map(f32::from).collect();
        let whole = Tensor::from_f32(&[2, 3, 4], &data);
        for axis in [0, 1, 2, -1, -2, -3] {
            let size = length(&whole, axis).unwrap();
            let parts: Vec<Tensor> = (0..size).map(|i| slice(&whole, axis, i).unwrap()).collect();
            let again = stack(&parts, axis).unwrap();
            assert_eq!(again.dims(), whole.dims(), "axis {axis}");
            assert_eq!(again.to_f32().unwrap(), data, "axis {axis}");
        }
        let middle = slice(&whole, 1, 2).unwrap();
        assert_eq!(middle.dims(), [2, 4]);
        assert_eq!(
            middle.to_f32().unwrap(),
            [8.0, 9.0, 10.0, 11.0, 20.0, 21.0, 22.0, 23.0]
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let a = Tensor::from_f32(&[1], &[1.0]);
        let b = Tensor::from_f32(&[2], &[1.0, 2.0]);
        assert!(
            stack(&[a.clone(), b], 0)
                .unwrap_err()
                .contains("[1] and [2]")
        );
        assert!(slice(&a, 1, 0).unwrap_err().contains("no axis 1"));
        assert!(stack(&[], 0).is_err());
    }
}

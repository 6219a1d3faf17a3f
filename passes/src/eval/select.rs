//! Operators that pick elements by index, or put them there.

use onnx_quant_ir::Tensor;

use super::array::{Raw, Walk};
use super::{Ctx, EvalError, Outcome, dims_of, shape, stored};

pub(super) fn evaluate(cx: &Ctx<'_>, op: &str) -> Outcome {
    let result = match op {
        "Gather" => gather(cx),
        "GatherElements" => gather_elements(cx),
        "GatherND" => gather_nd(cx),
        "ScatterND" => scatter_nd(cx),
        "ScatterElements" | "Scatter" => scatter_elements(cx),
        "NonZero" => non_zero(cx),
        _ => return None,
    };
    Some(result.map(|t| vec![t]))
}

/// The indices of an input, with negative ones counted from the end of an axis of `dim` elements.
fn indices(cx: &Ctx<'_>, slot: usize, dim: usize) -> Result<Vec<usize>, EvalError> {
    cx.input(slot)?
        .to_i64()?
        .into_iter()
        .map(|i| index(cx, i, dim))
        .collect()
}

fn index(cx: &Ctx<'_>, i: i64, dim: usize) -> Result<usize, EvalError> {
    shape::axis(i, dim).ok_or_else(|| cx.invalid(format!("index {i} is outside 0..{dim}")))
}

fn gather(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    let axis = cx.axis(0, x.dims.len())?;
    let list = indices(cx, 1, x.dims[axis])?;
    let mut dims = x.dims[..axis].to_vec();
    dims.extend(dims_of(cx.input(1)?)?);
    dims.extend(&x.dims[axis + 1..]);
    cx.room(x.dtype, &dims)?;
    let outer: usize = x.dims[..axis].iter().product();
    let block = x.dims[axis + 1..].iter().product();
    let blocks = (0..outer).flat_map(|o| list.iter().map(move |&i| (o, i)));
    Ok(x.pick(&dims, block, blocks.map(|(o, i)| o * x.dims[axis] + i)))
}

/// Element numbers in `x` for an index tensor of the same rank that replaces the coordinate of one axis.
fn element_positions(
    cx: &Ctx<'_>,
    dims: &[usize],
    axis: usize,
    list: &[usize],
    index_dims: &[usize],
) -> Result<Vec<usize>, EvalError> {
    let fits = index_dims.len() == dims.len()
        && (0..dims.len()).all(|i| i == axis || index_dims[i] <= dims[i]);
    if !fits {
        return Err(cx.invalid("the indices do not fit the data"));
    }
    let mut strides = shape::strides(dims);
    let along = std::mem::replace(&mut strides[axis], 0) as usize;
    Ok(Walk::new(index_dims, &strides, 0)
        .zip(list)
        .map(|(at, &i)| at + i * along)
        .collect())
}

fn gather_elements(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    let axis = cx.axis(0, x.dims.len())?;
    let list = indices(cx, 1, x.dims[axis])?;
    let dims = dims_of(cx.input(1)?)?;
    let at = element_positions(cx, &x.dims, axis, &list, &dims)?;
    cx.room(x.dtype, &dims)?;
    Ok(x.pick(&dims, 1, at.into_iter()))
}

/// Block numbers for index tuples along the last axis of `index_dims`; `batch` leading axes are shared.
fn tuple_positions(
    cx: &Ctx<'_>,
    dims: &[usize],
    batch: usize,
    index_dims: &[usize],
) -> Result<(Vec<usize>, usize), EvalError> {
    let depth = match index_dims.last() {
        Some(&d) if d + batch <= dims.len() && batch < index_dims.len() => d,
        _ => return Err(cx.invalid("the index tuples do not fit the data")),
    };
    if dims[..batch] != index_dims[..batch] {
        return Err(cx.invalid("the batch axes of data and indices differ"));
    }
    let list = cx.input(1)?.to_i64()?;
    let tuples: usize = index_dims[..index_dims.len() - 1].iter().product();
    let batches: usize = dims[..batch].iter().product();
    let each = tuples.checked_div(batches).unwrap_or(0).max(1);
    let mut at = Vec::with_capacity(tuples);
    for t in 0..tuples {
        let mut block = t / each;
        for j in 0..depth {
            let dim = dims[batch + j];
            block = block * dim + index(cx, list[t * depth + j], dim)?;
        }
        at.push(block);
    }
    Ok((at, depth))
}

fn gather_nd(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    let index_dims = dims_of(cx.input(1)?)?;
    let batch = usize::try_from(cx.node.attr_i("batch_dims").unwrap_or(0))
        .ok()
        .filter(|&b| b < x.dims.len())
        .ok_or_else(|| cx.invalid("batch_dims is outside the rank"))?;
    let (at, depth) = tuple_positions(cx, &x.dims, batch, &index_dims)?;
    let inner = &x.dims[batch + depth..];
    let mut dims = index_dims[..index_dims.len() - 1].to_vec();
    dims.extend(inner);
    cx.room(x.dtype, &dims)?;
    Ok(x.pick(&dims, inner.iter().product(), at.into_iter()))
}

fn plain_scatter(cx: &Ctx<'_>) -> Result<(), EvalError> {
    match cx.node.attr_s("reduction") {
        None | Some("none") => Ok(()),
        Some(r) => Err(cx.unsupported(format!("reduction {r}"))),
    }
}

/// Writes blocks of the updates over blocks of the data.
fn scatter(x: &Raw<'_>, updates: &Raw<'_>, block: usize, at: &[usize]) -> Tensor {
    let bytes = block * x.size;
    let mut out = x.data.to_vec();
    for (k, &i) in at.iter().enumerate() {
        out[i * bytes..(i + 1) * bytes].copy_from_slice(&updates.data[k * bytes..(k + 1) * bytes]);
    }
    Tensor::from_raw(x.dtype, &stored(&x.dims), out)
}

fn scatter_nd(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    plain_scatter(cx)?;
    let (x, updates) = (Raw::read(cx, 0)?, Raw::read(cx, 2)?);
    cx.room(x.dtype, &x.dims)?;
    let index_dims = dims_of(cx.input(1)?)?;
    let (at, depth) = tuple_positions(cx, &x.dims, 0, &index_dims)?;
    let block: usize = x.dims[depth..].iter().product();
    if updates.dtype != x.dtype || updates.data.len() != at.len() * block * x.size {
        return Err(cx.invalid("the updates do not fit the indices"));
    }
    Ok(scatter(&x, &updates, block, &at))
}

fn scatter_elements(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    plain_scatter(cx)?;
    let (x, updates) = (Raw::read(cx, 0)?, Raw::read(cx, 2)?);
    cx.room(x.dtype, &x.dims)?;
    let axis = cx.axis(0, x.dims.len())?;
    let list = indices(cx, 1, x.dims[axis])?;
    let index_dims = dims_of(cx.input(1)?)?;
    if updates.dtype != x.dtype || updates.dims != index_dims {
        return Err(cx.invalid("the updates do not fit the indices"));
    }
    let at = element_positions(cx, &x.dims, axis, &list, &index_dims)?;
    Ok(scatter(&x, &updates, 1, &at))
}

fn non_zero(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let dims = dims_of(cx.input(0)?)?;
    let hits: Vec<usize> = match cx.nums(0)? {
        super::Nums::Int(v) => positions(&v, |x| x != 0),
        super::Nums::F32(v) => positions(&v, |x| x != 0.0),
        super::Nums::F64(v) => positions(&v, |x| x != 0.0),
    };
    cx.room(onnx_quant_ir::DataType::Int64, &[dims.len(), hits.len()])?;
    let strides = shape::strides(&dims);
    let mut out = Vec::with_capacity(dims.len() * hits.len());
    for (&d, &s) in dims.iter().zip(&strides) {
        out.extend(hits.iter().map(|&h| (h / s as usize % d) as i64));
    }
    Ok(Tensor::from_i64(
        &[dims.len() as i64, hits.len() as i64],
        &out,
    ))
}

fn positions<T: Copy>(v: &[T], test: impl Fn(T) -> bool) -> Vec<usize> {
    (0..v.len()).filter(|&i| test(v[i])).collect()
}

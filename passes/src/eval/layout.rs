//! Operators that give the same elements another shape or order.

use onnx_quant_ir::{DataType, Tensor};

use super::array::{Raw, broadcast_strides};
use super::{Ctx, EvalError, Outcome, dims_of, shape, stored};

pub(super) fn evaluate(cx: &Ctx<'_>, op: &str) -> Outcome {
    let one = |r: Result<Tensor, EvalError>| Some(r.map(|t| vec![t]));
    match op {
        "Identity" => one(cx.input(0).cloned()),
        "Shape" => one(shape_of(cx)),
        "Size" => one(size_of(cx)),
        "Reshape" => one(reshape(cx)),
        "Flatten" => one(flatten(cx)),
        "Squeeze" => one(squeeze(cx)),
        "Unsqueeze" => one(unsqueeze(cx)),
        "Transpose" => one(transpose(cx)),
        "Expand" => one(expand(cx)),
        "Tile" => one(tile(cx)),
        "Slice" => one(slice(cx)),
        "Concat" => one(concat(cx)),
        "Split" => Some(split(cx)),
        _ => None,
    }
}

fn shape_of(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let dims = cx.input(0)?.dims();
    let rank = dims.len() as i64;
    let at = |x: i64| if x < 0 { x.saturating_add(rank) } else { x }.clamp(0, rank) as usize;
    let (start, end) = (
        at(cx.node.attr_i("start").unwrap_or(0)),
        at(cx.node.attr_i("end").unwrap_or(rank)),
    );
    let part = dims.get(start..end).unwrap_or(&[]);
    Ok(Tensor::from_i64(&[part.len() as i64], part))
}

fn size_of(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let n = cx.input(0)?.element_count()?;
    Ok(Tensor::from_i64(&[], &[n as i64]))
}

/// The same elements under another shape, of any type.
fn reshaped(t: &Tensor, dims: &[usize]) -> Result<Tensor, EvalError> {
    if t.dtype() == DataType::String {
        let mut proto = t.proto().clone();
        proto.dims = stored(dims);
        return Ok(Tensor::from_proto(proto));
    }
    Ok(Tensor::from_raw(
        t.dtype(),
        &stored(dims),
        t.shared_bytes()?,
    ))
}

fn reshape(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let spec = cx
        .ints_or(1, "shape")?
        .ok_or_else(|| cx.invalid("no shape is given"))?;
    let allow_zero = cx.node.attr_i("allowzero") == Some(1);
    let dims = shape::reshape(&dims_of(t)?, &spec, allow_zero)
        .ok_or_else(|| cx.invalid(format!("{:?} does not fit {spec:?}", t.dims())))?;
    reshaped(t, &dims)
}

fn flatten(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dims = dims_of(t)?;
    let axis = cx.node.attr_i("axis").unwrap_or(1);
    let axis = shape::axis(axis, dims.len() + 1)
        .filter(|_| axis >= 0)
        .or_else(|| shape::axis(axis, dims.len()))
        .ok_or_else(|| cx.invalid(format!("axis {axis} is outside the rank")))?;
    let (a, b) = dims.split_at(axis);
    reshaped(t, &[a.iter().product(), b.iter().product()])
}

fn squeeze(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dims = dims_of(t)?;
    let drop = match cx.ints_or(1, "axes")? {
        Some(list) => shape::axes(&list, dims.len())
            .filter(|l| l.iter().all(|&a| dims[a] == 1))
            .ok_or_else(|| cx.invalid(format!("axes {list:?} of {dims:?} are not all 1")))?,
        None => (0..dims.len()).filter(|&i| dims[i] == 1).collect(),
    };
    let kept: Vec<usize> = (0..dims.len())
        .filter(|i| !drop.contains(i))
        .map(|i| dims[i])
        .collect();
    reshaped(t, &kept)
}

fn unsqueeze(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dims = dims_of(t)?;
    let list = cx
        .ints_or(1, "axes")?
        .ok_or_else(|| cx.invalid("no axes are given"))?;
    let rank = dims.len() + list.len();
    let new = shape::axes(&list, rank)
        .ok_or_else(|| cx.invalid(format!("axes {list:?} do not fit rank {rank}")))?;
    let mut old = dims.into_iter();
    let out: Vec<usize> = (0..rank)
        .map(|i| {
            if new.contains(&i) {
                1
            } else {
                old.next().unwrap_or(1)
            }
        })
        .collect();
    reshaped(t, &out)
}

fn transpose(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    let rank = x.dims.len();
    let perm = match cx.node.attr_ints("perm") {
        Some(p) => shape::axes(p, rank)
            .filter(|p| p.len() == rank)
            .ok_or_else(|| cx.invalid(format!("perm {p:?} is no permutation of {rank} axes")))?,
        None => (0..rank).rev().collect(),
    };
    let own = shape::strides(&x.dims);
    let dims: Vec<usize> = perm.iter().map(|&p| x.dims[p]).collect();
    let strides: Vec<isize> = perm.iter().map(|&p| own[p]).collect();
    cx.room(x.dtype, &dims)?;
    Ok(x.view(&dims, &strides, 0))
}

fn expand(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    let spec = cx.input(1)?.to_i64()?;
    let dims = spec
        .iter()
        .map(|&d| usize::try_from(d).ok())
        .collect::<Option<Vec<_>>>()
        .and_then(|s| shape::broadcast(&x.dims, &s))
        .ok_or_else(|| cx.invalid(format!("{:?} does not broadcast to {spec:?}", x.dims)))?;
    cx.room(x.dtype, &dims)?;
    Ok(x.view(&dims, &broadcast_strides(&x.dims, &dims), 0))
}

fn tile(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    let repeats = cx.input(1)?.to_i64()?;
    if repeats.len() != x.dims.len() || repeats.iter().any(|&r| r < 0) {
        return Err(cx.invalid(format!("repeats {repeats:?} do not fit {:?}", x.dims)));
    }
    let own = shape::strides(&x.dims);
    let (mut wide, mut strides, mut dims) = (Vec::new(), Vec::new(), Vec::new());
    for (i, &r) in repeats.iter().enumerate() {
        let r = r as usize;
        wide.extend([r, x.dims[i]]);
        strides.extend([0, own[i]]);
        dims.push(r.saturating_mul(x.dims[i]));
    }
    cx.room(x.dtype, &dims)?;
    let t = x.view(&wide, &strides, 0);
    reshaped(&t, &dims)
}

fn slice(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    let need = |v: Option<Vec<i64>>, what| v.ok_or_else(|| cx.invalid(format!("no {what}")));
    let starts = need(cx.ints_or(1, "starts")?, "starts")?;
    let ends = need(cx.ints_or(2, "ends")?, "ends")?;
    let axes = match cx.ints_or(3, "axes")? {
        Some(list) => shape::axes(&list, x.dims.len())
            .ok_or_else(|| cx.invalid(format!("axes {list:?} are outside the rank")))?,
        None => (0..starts.len()).collect(),
    };
    let steps = match cx.opt(4) {
        Some(t) => t.to_i64()?,
        None => vec![1; starts.len()],
    };
    let fits = |n: usize| n == starts.len();
    if !(fits(ends.len()) && fits(axes.len()) && fits(steps.len())) || starts.len() > x.dims.len() {
        return Err(cx.invalid("starts, ends, axes and steps differ in length"));
    }
    let mut strides = shape::strides(&x.dims);
    let mut dims = x.dims.clone();
    let mut offset = 0isize;
    for (i, &axis) in axes.iter().enumerate() {
        let (first, count) = shape::slice(starts[i], ends[i], steps[i], x.dims[axis] as i64)
            .ok_or_else(|| cx.invalid("a step is zero"))?;
        if count > 0 {
            offset += first as isize * strides[axis];
        }
        if count > 1 {
            strides[axis] *= steps[i] as isize;
        }
        dims[axis] = count as usize;
    }
    Ok(x.view(&dims, &strides, offset))
}

fn concat(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let parts = (0..cx.inputs.len())
        .map(|i| Raw::read(cx, i))
        .collect::<Result<Vec<_>, _>>()?;
    let first = parts
        .first()
        .ok_or_else(|| cx.invalid("it has no inputs"))?;
    let axis = cx.axis(1, first.dims.len())?;
    let mut dims = first.dims.clone();
    dims[axis] = 0;
    for p in &parts {
        let fits = p.dtype == first.dtype
            && p.dims.len() == dims.len()
            && (0..dims.len()).all(|i| i == axis || p.dims[i] == dims[i]);
        if !fits {
            return Err(cx.invalid("the inputs differ in type or shape"));
        }
        dims[axis] += p.dims[axis];
    }
    let count = cx.room(first.dtype, &dims)?;
    let outer: usize = dims[..axis].iter().product();
    let mut out = Vec::with_capacity(count * first.size);
    for o in 0..outer {
        for p in &parts {
            let block = p.data.len() / outer;
            out.extend_from_slice(&p.data[o * block..(o + 1) * block]);
        }
    }
    Ok(Tensor::from_raw(first.dtype, &stored(&dims), out))
}

fn split(cx: &Ctx<'_>) -> Result<Vec<Tensor>, EvalError> {
    let x = Raw::read(cx, 0)?;
    let axis = cx.axis(0, x.dims.len())?;
    let dim = x.dims[axis] as i64;
    let sizes = match cx.ints_or(1, "split")? {
        Some(s) => s,
        None => {
            let parts = cx.node.attr_i("num_outputs");
            shape::split_evenly(dim, parts.unwrap_or(cx.node.output_count as i64))
                .ok_or_else(|| cx.invalid("the number of parts is not positive"))?
        }
    };
    let fits = sizes.iter().all(|&s| s >= 0)
        && sizes.iter().try_fold(0i64, |n, &s| n.checked_add(s)) == Some(dim);
    if !fits {
        return Err(cx.invalid(format!("parts {sizes:?} do not sum to {dim}")));
    }
    let strides = shape::strides(&x.dims);
    let mut offset = 0;
    Ok(sizes
        .into_iter()
        .map(|s| {
            let mut dims = x.dims.clone();
            dims[axis] = s as usize;
            let part = x.view(&dims, &strides, offset);
            offset += s as isize * strides[axis];
            part
        })
        .collect())
}

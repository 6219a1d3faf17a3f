//! Operators that make tensors: constants, ranges, padding, triangles, one-hot codes.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Tensor};

use super::array::{Nums, Raw};
use super::{Ctx, EvalError, Outcome, dims_of, shape, stored};

pub(super) fn evaluate(cx: &Ctx<'_>, op: &str) -> Outcome {
    let result = match op {
        "Constant" => constant(cx),
        "ConstantOfShape" => constant_of_shape(cx),
        "Range" => range(cx),
        "Pad" => pad(cx),
        "Trilu" => trilu(cx),
        "OneHot" => one_hot(cx),
        "EyeLike" => eye_like(cx),
        _ => return None,
    };
    Some(result.map(|t| vec![t]))
}

fn constant(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let n = cx.node;
    if let Some(t) = n.attr_tensor("value") {
        t.validate()?;
        return Ok(t);
    }
    if let Some(x) = n.attr_f("value_float") {
        return Ok(Tensor::from_f32(&[], &[x]));
    }
    if let Some(x) = n.attr_i("value_int") {
        return Ok(Tensor::from_i64(&[], &[x]));
    }
    if let Some(v) = n.attr_floats("value_floats") {
        return Ok(Tensor::from_f32(&[v.len() as i64], v));
    }
    if let Some(v) = n.attr_ints("value_ints") {
        return Ok(Tensor::from_i64(&[v.len() as i64], v));
    }
    Err(cx.unsupported("a sparse, string or missing value"))
}

/// Sizes from an input of integers.
fn sizes(cx: &Ctx<'_>, slot: usize) -> Result<Vec<usize>, EvalError> {
    let list = cx.input(slot)?.to_i64()?;
    list.iter()
        .map(|&d| usize::try_from(d).ok())
        .collect::<Option<_>>()
        .ok_or_else(|| cx.invalid(format!("{list:?} holds a negative size")))
}

fn constant_of_shape(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let dims = sizes(cx, 0)?;
    let value = cx
        .node
        .attr_tensor("value")
        .unwrap_or_else(|| Tensor::from_f32(&[1], &[0.0]));
    let element = value.bytes()?;
    let count = cx.room(value.dtype(), &dims)?;
    if value.element_count()? != 1 || value.dtype().bits().is_none_or(|b| b % 8 != 0) {
        return Err(cx.unsupported("a value of another form than one whole-byte element"));
    }
    Ok(Tensor::from_raw(
        value.dtype(),
        &stored(&dims),
        element.repeat(count),
    ))
}

/// `max(ceil((limit − start) / delta), 0)` elements `start + i·delta` (ONNX `Range`).
fn range(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let dtype = cx.input(0)?.dtype();
    let all = (cx.nums(0)?, cx.nums(1)?, cx.nums(2)?);
    let zero = || cx.invalid("the step is zero or not finite");
    let size = |n: f64| -> Result<usize, EvalError> {
        if !n.is_finite() {
            return Err(zero());
        }
        cx.room(dtype, &[n.max(0.0) as usize])
    };
    let nums = match all {
        (Nums::Int(a), Nums::Int(b), Nums::Int(d)) => {
            let (&[a], &[b], &[d]) = (&a[..], &b[..], &d[..]) else {
                return Err(cx.invalid("an input is no scalar"));
            };
            let whole = (b - a).checked_div(d).ok_or_else(zero)?;
            let n = whole + i128::from((b - a) % d != 0 && ((b - a) < 0) == (d < 0));
            let n = cx.room(dtype, &[usize::try_from(n.max(0)).unwrap_or(usize::MAX)])?;
            Nums::Int((0..n as i128).map(|i| a + i * d).collect())
        }
        (Nums::F32(a), Nums::F32(b), Nums::F32(d)) => {
            let (&[a], &[b], &[d]) = (&a[..], &b[..], &d[..]) else {
                return Err(cx.invalid("an input is no scalar"));
            };
            let n = size(f64::from(((b - a) / d).ceil()))?;
            Nums::F32((0..n).map(|i| a + i as f32 * d).collect())
        }
        (Nums::F64(a), Nums::F64(b), Nums::F64(d)) => {
            let (&[a], &[b], &[d]) = (&a[..], &b[..], &d[..]) else {
                return Err(cx.invalid("an input is no scalar"));
            };
            let n = size(((b - a) / d).ceil())?;
            Nums::F64((0..n).map(|i| a + i as f64 * d).collect())
        }
        _ => return Err(cx.invalid("the inputs differ in type")),
    };
    let n = match &nums {
        Nums::Int(v) => v.len(),
        Nums::F32(v) => v.len(),
        Nums::F64(v) => v.len(),
    };
    cx.store(&nums, dtype, &[n])
}

fn pad(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    if !matches!(cx.node.attr_s("mode"), None | Some("constant")) {
        return Err(cx.unsupported("another mode than constant"));
    }
    let x = Raw::read(cx, 0)?;
    let rank = x.dims.len();
    let pads = cx
        .ints_or(1, "pads")?
        .ok_or_else(|| cx.invalid("no pads are given"))?;
    let axes = match cx.opt(3) {
        Some(t) => shape::axes(&t.to_i64()?, rank),
        None => Some((0..rank).collect()),
    }
    .filter(|a| a.len() * 2 == pads.len())
    .ok_or_else(|| cx.invalid("pads and axes do not fit the rank"))?;
    let fill = match cx.opt(2) {
        Some(t) if t.dtype() == x.dtype && t.element_count()? == 1 => t.bytes()?.into_owned(),
        Some(_) => return Err(cx.invalid("the value is no scalar of the data's type")),
        None => {
            let value = Nums::F32(vec![cx.node.attr_f("value").unwrap_or(0.0)]);
            cx.store(&value, x.dtype, &[])?.bytes()?.into_owned()
        }
    };
    let mut before = vec![0i64; rank];
    let mut dims = x.dims.clone();
    for (i, &a) in axes.iter().enumerate() {
        before[a] = pads[i];
        dims[a] = i64::try_from(x.dims[a])
            .ok()
            .and_then(|d| d.checked_add(pads[i])?.checked_add(pads[i + axes.len()]))
            .and_then(|d| usize::try_from(d).ok())
            .ok_or_else(|| cx.invalid("the pads cut more than there is"))?;
    }
    let count = cx.room(x.dtype, &dims)?;
    let mut out = Vec::with_capacity(count * x.size);
    let mut index = vec![0usize; rank];
    let strides = shape::strides(&x.dims);
    for _ in 0..count {
        let mut from = Some(0usize);
        for a in 0..rank {
            let i = (index[a] as i64).wrapping_sub(before[a]);
            from = from
                .filter(|_| (0..x.dims[a] as i64).contains(&i))
                .map(|f| f + i as usize * strides[a] as usize);
        }
        match from {
            Some(f) => out.extend_from_slice(&x.data[f * x.size..(f + 1) * x.size]),
            None => out.extend_from_slice(&fill),
        }
        for a in (0..rank).rev() {
            index[a] += 1;
            if index[a] < dims[a] {
                break;
            }
            index[a] = 0;
        }
    }
    Ok(Tensor::from_raw(x.dtype, &stored(&dims), out))
}

fn trilu(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let x = Raw::read(cx, 0)?;
    let &[.., rows, cols] = &x.dims[..] else {
        return Err(cx.invalid("the rank is below 2"));
    };
    let k = match cx.opt(1) {
        Some(t) => t
            .scalar_i64()
            .ok_or_else(|| cx.invalid("the diagonal is no scalar"))?,
        None => 0,
    };
    let upper = cx.node.attr_i("upper").unwrap_or(1) != 0;
    cx.room(x.dtype, &x.dims)?;
    let mut out = x.data.to_vec();
    for (i, element) in out.chunks_exact_mut(x.size).enumerate() {
        let (row, col) = (
            (i / cols.max(1) % rows.max(1)) as i64,
            (i % cols.max(1)) as i64,
        );
        let edge = row.saturating_add(k);
        let keep = if upper { col >= edge } else { col <= edge };
        if !keep {
            element.fill(0);
        }
    }
    Ok(Tensor::from_raw(x.dtype, &stored(&x.dims), out))
}

fn one_hot(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let whole = |slot: usize| -> Result<Vec<i128>, EvalError> {
        match cx.nums(slot)? {
            Nums::Int(v) => Ok(v),
            _ => Err(cx.unsupported("float indices or depth")),
        }
    };
    let (hot, depth, values) = (whole(0)?, whole(1)?, Raw::read(cx, 2)?);
    let depth = match depth[..] {
        [d] => usize::try_from(d)
            .ok()
            .filter(|&d| d <= isize::MAX as usize),
        _ => None,
    }
    .ok_or_else(|| cx.invalid("the depth is no positive scalar"))?;
    if values.dims != [2] {
        return Err(cx.invalid("the values are not two"));
    }
    let mut dims = dims_of(cx.input(0)?)?;
    let axis = cx.axis(-1, dims.len() + 1)?;
    let inner: usize = dims[axis..].iter().product();
    dims.insert(axis, depth);
    let count = cx.room(values.dtype, &dims)?;
    let picks = (0..count).map(|i| {
        let (code, rest) = (i / inner.max(1) % depth.max(1), i % inner.max(1));
        let at = hot[i / (inner * depth).max(1) * inner + rest];
        let at = if at < 0 { at + depth as i128 } else { at };
        usize::from(at == code as i128)
    });
    Ok(values.pick(&dims, 1, picks))
}

fn eye_like(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let t = cx.input(0)?;
    let dtype = match cx.node.attr_i("dtype") {
        Some(n) => i32::try_from(n)
            .ok()
            .and_then(DataType::from_number)
            .ok_or_else(|| cx.invalid("the type is not one of the standard's"))?,
        None => t.dtype(),
    };
    let dims = dims_of(t)?;
    let &[rows, cols] = &dims[..] else {
        return Err(cx.invalid("the rank is not 2"));
    };
    cx.room(dtype, &dims)?;
    let k = cx.node.attr_i("k").unwrap_or(0);
    let ones = (0..rows * cols).map(|i| {
        let (row, col) = ((i / cols) as i64, (i % cols) as i64);
        i128::from(col == row.saturating_add(k))
    });
    cx.store(&Nums::Int(ones.collect()), dtype, &dims)
}

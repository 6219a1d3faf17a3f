//! Small matrix products. Sums are taken in `f64` and rounded once.

use onnx_quant_ir::Tensor;

use super::array::{Nums, Walk, broadcast_strides};
use super::{Ctx, EvalError, Outcome, dims_of, shape};

/// Multiply-adds that one evaluation may take; more is left to the runtime.
const MAX_WORK: usize = 1 << 26;

pub(super) fn evaluate(cx: &Ctx<'_>, op: &str) -> Outcome {
    let result = match op {
        "MatMul" => matmul(cx),
        "Gemm" => gemm(cx),
        _ => return None,
    };
    Some(result.map(|t| vec![t]))
}

fn floats(cx: &Ctx<'_>, slot: usize) -> Result<Vec<f32>, EvalError> {
    match cx.nums(slot)? {
        Nums::F32(v) => Ok(v),
        _ => Err(cx.unsupported("other types than f32, f16 and bf16")),
    }
}

fn work(cx: &Ctx<'_>, sizes: &[usize]) -> Result<(), EvalError> {
    let n = sizes.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
    match n {
        Some(n) if n <= MAX_WORK => Ok(()),
        _ => Err(cx.unsupported("a product of this size")),
    }
}

fn matmul(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let dtype = cx.input(0)?.dtype();
    let (mut ad, mut bd) = (dims_of(cx.input(0)?)?, dims_of(cx.input(1)?)?);
    if ad.is_empty() || bd.is_empty() {
        return Err(cx.invalid("an input is a scalar"));
    }
    let (row, col) = (ad.len() == 1, bd.len() == 1);
    if row {
        ad.insert(0, 1);
    }
    if col {
        bd.push(1);
    }
    let ((ab, am), (bb, bm)) = (ad.split_at(ad.len() - 2), bd.split_at(bd.len() - 2));
    let (m, k, n) = (am[0], am[1], bm[1]);
    let batch = shape::broadcast(ab, bb)
        .filter(|_| bm[0] == k)
        .ok_or_else(|| cx.invalid(format!("{ad:?} and {bd:?} do not fit")))?;
    let mut dims = batch.clone();
    if !row {
        dims.push(m);
    }
    if !col {
        dims.push(n);
    }
    let count = cx.room(dtype, &dims)?;
    work(cx, &[count, k])?;
    let (a, b) = (floats(cx, 0)?, floats(cx, 1)?);
    let (sa, sb) = (broadcast_strides(ab, &batch), broadcast_strides(bb, &batch));
    let mut out = Vec::with_capacity(count);
    for (i, j) in Walk::new(&batch, &sa, 0).zip(Walk::new(&batch, &sb, 0)) {
        let (a, b) = (&a[i * m * k..][..m * k], &b[j * k * n..][..k * n]);
        for r in 0..m {
            for c in 0..n {
                let sum: f64 = (0..k)
                    .map(|x| f64::from(a[r * k + x]) * f64::from(b[x * n + c]))
                    .fold(0.0, |s, x| s + x);
                out.push(sum as f32);
            }
        }
    }
    cx.store(&Nums::F32(out), dtype, &dims)
}

fn gemm(cx: &Ctx<'_>) -> Result<Tensor, EvalError> {
    let dtype = cx.input(0)?.dtype();
    let (ad, bd) = (dims_of(cx.input(0)?)?, dims_of(cx.input(1)?)?);
    let (&[a0, a1], &[b0, b1]) = (&ad[..], &bd[..]) else {
        return Err(cx.invalid("an input is no matrix"));
    };
    let flag = |name| cx.node.attr_i(name).unwrap_or(0) != 0;
    let (ta, tb) = (flag("transA"), flag("transB"));
    let (m, k) = if ta { (a1, a0) } else { (a0, a1) };
    let (kb, n) = if tb { (b1, b0) } else { (b0, b1) };
    if k != kb {
        return Err(cx.invalid(format!("{ad:?} and {bd:?} do not fit")));
    }
    let count = cx.room(dtype, &[m, n])?;
    work(cx, &[count, k])?;
    let (a, b) = (floats(cx, 0)?, floats(cx, 1)?);
    let alpha = f64::from(cx.node.attr_f("alpha").unwrap_or(1.0));
    let beta = f64::from(cx.node.attr_f("beta").unwrap_or(1.0));
    let added: Vec<f64> = match cx.opt(2) {
        Some(c) => {
            let cd = dims_of(c)?;
            if shape::broadcast(&cd, &[m, n]).as_deref() != Some(&[m, n]) {
                return Err(cx.invalid("the third input does not broadcast"));
            }
            let c = floats(cx, 2)?;
            Walk::new(&[m, n], &broadcast_strides(&cd, &[m, n]), 0)
                .map(|i| beta * f64::from(c[i]))
                .collect()
        }
        None => vec![0.0; count],
    };
    let mut out = Vec::with_capacity(count);
    for r in 0..m {
        for c in 0..n {
            let sum: f64 = (0..k)
                .map(|x| {
                    let a = a[if ta { x * m + r } else { r * k + x }];
                    let b = b[if tb { c * k + x } else { x * n + c }];
                    f64::from(a) * f64::from(b)
                })
                .fold(0.0, |s, x| s + x);
            out.push((alpha * sum + added[r * n + c]) as f32);
        }
    }
    cx.store(&Nums::F32(out), dtype, &[m, n])
}

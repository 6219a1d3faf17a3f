//! Shape formulas that the evaluator and the inference share.

/// An axis in `-rank..rank` as an index; `None` outside.
pub(crate) fn axis(axis: i64, rank: usize) -> Option<usize> {
    let rank = rank as i64;
    let a = if axis < 0 {
        axis.checked_add(rank)?
    } else {
        axis
    };
    (0..rank).contains(&a).then_some(a as usize)
}

/// Several axes as indices; `None` where one is outside or stands twice.
pub(crate) fn axes(list: &[i64], rank: usize) -> Option<Vec<usize>> {
    let mut seen = vec![false; rank];
    list.iter()
        .map(|&a| {
            let a = axis(a, rank)?;
            (!std::mem::replace(&mut seen[a], true)).then_some(a)
        })
        .collect()
}

/// NumPy's broadcast of two shapes; `None` where they do not fit.
pub(crate) fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |s: &[usize], i: usize| (i + s.len()).checked_sub(rank).map_or(1, |j| s[j]);
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}

/// Row-major strides, in elements.
pub(crate) fn strides(dims: &[usize]) -> Vec<isize> {
    let mut out = vec![1isize; dims.len()];
    for i in (1..dims.len()).rev() {
        out[i - 1] = out[i] * dims[i].max(1) as isize;
    }
    out
}

/// First index and number of elements of a slice along an axis (ONNX `Slice`, section "start, end clamping").
/// `None` for a step of zero.
pub(crate) fn slice(start: i64, end: i64, step: i64, dim: i64) -> Option<(i64, i64)> {
    if step == 0 || dim < 0 {
        return None;
    }
    let wrap = |x: i64| if x < 0 { x.saturating_add(dim) } else { x };
    let (low, high) = if step > 0 { (0, dim) } else { (-1, dim - 1) };
    let start = wrap(start).clamp(if step > 0 { 0 } else { -1 }, high);
    let end = wrap(end).clamp(low, if step > 0 { dim } else { dim - 1 });
    let span = if step > 0 { end - start } else { start - end };
    let step = step.unsigned_abs().min(i64::MAX as u64) as i64;
    let count = if span <= 0 { 0 } else { (span - 1) / step + 1 };
    Some((start, count))
}

/// The result of a `Reshape` of known sizes; `None` where the sizes do not fit.
pub(crate) fn reshape(dims: &[usize], spec: &[i64], allow_zero: bool) -> Option<Vec<usize>> {
    let total = dims.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    let mut out = Vec::with_capacity(spec.len());
    let mut open = None;
    for (i, &s) in spec.iter().enumerate() {
        out.push(match s {
            0 if !allow_zero => *dims.get(i)?,
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            s => usize::try_from(s).ok()?,
        });
    }
    let known = out.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    if let Some(i) = open {
        if known == 0 || !total.is_multiple_of(known) {
            return None;
        }
        out[i] = total / known;
        return Some(out);
    }
    (known == total).then_some(out)
}

/// The sizes of the parts of a `Split` into `parts` of nearly equal size (the last one smaller); `None` for none.
pub(crate) fn split_evenly(dim: i64, parts: i64) -> Option<Vec<i64>> {
    if parts <= 0 || dim < 0 || parts > 1 << 16 {
        return None;
    }
    let size = dim / parts + i64::from(dim % parts != 0);
    let mut left = dim;
    Some(
        (0..parts)
            .map(|_| {
                let s = size.min(left);
                left -= s;
                s
            })
            .collect(),
    )
}

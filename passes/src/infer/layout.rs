//! Operators that change the shape but not the elements, and those that compute shapes.

use onnx_quant_ir::DataType;

use super::fact::{Dim, Fact, product};
use super::{Ints, Op};
use crate::eval::shape as formula;

pub(super) fn rule(op: &Op<'_>, name: &str) -> Option<Vec<Fact>> {
    let fact = match name {
        "Shape" => shape_of(op),
        "Size" => size_of(op),
        "Reshape" => reshape(op),
        "Flatten" => Fact::new(op.dtype(0), flatten(op)),
        "Squeeze" => same_elements(op, squeeze(op)),
        "Unsqueeze" => same_elements(op, unsqueeze(op)),
        "Transpose" => Fact::new(op.dtype(0), transpose(op)),
        "Expand" => Fact::new(op.dtype(0), expand(op)),
        "Tile" => Fact::new(op.dtype(0), tile(op)),
        "Slice" => slice(op),
        "Concat" => concat(op),
        "Split" => return Some(split(op)),
        "Pad" => Fact::new(op.dtype(0), pad(op)),
        _ => return None,
    };
    Some(vec![fact])
}

fn unknown(rank: usize) -> Vec<Dim> {
    vec![Dim::Unknown; rank]
}

/// A shape that keeps the row-major elements, and so the list of a scalar or list.
fn same_elements(op: &Op<'_>, shape: Option<Vec<Dim>>) -> Fact {
    let list = match &shape {
        Some(s) if s.len() <= 1 => op.input(0).and_then(Fact::elements),
        _ => None,
    };
    Fact {
        list,
        ..Fact::new(op.dtype(0), shape)
    }
}

fn shape_of(op: &Op<'_>) -> Fact {
    let Some(dims) = op.shape(0) else {
        return Fact::new(Some(DataType::Int64), Some(unknown(1)));
    };
    let rank = dims.len() as i64;
    let at = |x: i64| if x < 0 { x.saturating_add(rank) } else { x }.clamp(0, rank) as usize;
    let start = at(op.node.attr_i("start").unwrap_or(0));
    let end = at(op.node.attr_i("end").unwrap_or(rank));
    let part = dims.get(start..end).unwrap_or(&[]).to_vec();
    Fact::of_list(DataType::Int64, part, false)
}

fn size_of(op: &Op<'_>) -> Fact {
    let n = op.shape(0).map_or(Dim::Unknown, product);
    Fact::of_list(DataType::Int64, vec![n], true)
}

fn reshape(op: &Op<'_>) -> Fact {
    let spec = match op.input(1) {
        Some(f) => f.elements(),
        None => op
            .node
            .attr_ints("shape")
            .map(|v| v.iter().map(|&d| Dim::Known(d)).collect()),
    };
    let shape = match (spec, op.shape(1)) {
        (Some(spec), _) => Some(reshaped(op, &spec)),
        (None, Some([Dim::Known(n)])) => usize::try_from(*n).ok().filter(|&n| n < 64).map(unknown),
        _ => None,
    };
    same_elements(op, shape)
}

fn reshaped(op: &Op<'_>, spec: &[Dim]) -> Vec<Dim> {
    let allow_zero = op.node.attr_i("allowzero") == Some(1);
    let input = op.shape(0);
    let mut open = Vec::new();
    let mut out: Vec<Dim> = spec
        .iter()
        .enumerate()
        .map(|(i, d)| match d {
            Dim::Known(0) if !allow_zero => input
                .and_then(|s| s.get(i).cloned())
                .unwrap_or(Dim::Unknown),
            Dim::Known(n) if *n < 0 => Dim::Unknown,
            d => d.clone(),
        })
        .collect();
    for (i, d) in out.iter().enumerate() {
        if *d == Dim::Unknown {
            open.push(i);
        }
    }
    if let (Some(input), &[at]) = (input, &open[..]) {
        let rest: Vec<Dim> = (0..out.len())
            .filter(|&i| i != at)
            .map(|i| out[i].clone())
            .collect();
        out[at] = quotient(input, &rest);
    }
    out
}

/// The product of `all` divided by the product of `part`; symbols that stand in both cancel.
fn quotient(all: &[Dim], part: &[Dim]) -> Dim {
    let mut symbols: Vec<&Dim> = Vec::new();
    let (mut above, mut below) = (Some(1i64), Some(1i64));
    for d in all {
        match d {
            Dim::Known(n) => above = above.and_then(|a| a.checked_mul(*n)),
            Dim::Symbol(_) => symbols.push(d),
            Dim::Unknown => return Dim::Unknown,
        }
    }
    for d in part {
        match d {
            Dim::Known(n) => below = below.and_then(|b| b.checked_mul(*n)),
            _ => match symbols.iter().position(|s| s.same(d)) {
                Some(i) => drop(symbols.remove(i)),
                None => return Dim::Unknown,
            },
        }
    }
    let (Some(above), Some(below)) = (above, below) else {
        return Dim::Unknown;
    };
    match symbols[..] {
        _ if below == 0 || above.checked_rem(below) != Some(0) => Dim::Unknown,
        [] => above.checked_div(below).map_or(Dim::Unknown, Dim::Known),
        [one] if above == below => one.clone(),
        _ => Dim::Unknown,
    }
}

fn flatten(op: &Op<'_>) -> Option<Vec<Dim>> {
    let Some(dims) = op.shape(0) else {
        return Some(unknown(2));
    };
    let axis = op.node.attr_i("axis").unwrap_or(1);
    let axis = if axis == dims.len() as i64 {
        dims.len()
    } else {
        formula::axis(axis, dims.len())?
    };
    let (a, b) = dims.split_at(axis);
    Some(vec![product(a), product(b)])
}

fn squeeze(op: &Op<'_>) -> Option<Vec<Dim>> {
    let dims = op.shape(0)?;
    let drop = match op.ints_or(1, "axes") {
        Ints::Known(list) => formula::axes(&list, dims.len())?,
        Ints::Unknown => return None,
        Ints::Missing => {
            let known: Option<Vec<i64>> = dims.iter().map(Dim::known).collect();
            let known = known?;
            (0..known.len()).filter(|&i| known[i] == 1).collect()
        }
    };
    Some(
        (0..dims.len())
            .filter(|i| !drop.contains(i))
            .map(|i| dims[i].clone())
            .collect(),
    )
}

fn unsqueeze(op: &Op<'_>) -> Option<Vec<Dim>> {
    let dims = op.shape(0)?;
    let Ints::Known(list) = op.ints_or(1, "axes") else {
        return None;
    };
    let rank = dims.len() + list.len();
    let new = formula::axes(&list, rank)?;
    let mut old = dims.iter().cloned();
    (0..rank)
        .map(|i| {
            if new.contains(&i) {
                Some(Dim::Known(1))
            } else {
                old.next()
            }
        })
        .collect()
}

fn transpose(op: &Op<'_>) -> Option<Vec<Dim>> {
    let dims = op.shape(0)?;
    let perm = match op.node.attr_ints("perm") {
        Some(p) => formula::axes(p, dims.len()).filter(|p| p.len() == dims.len())?,
        None => (0..dims.len()).rev().collect(),
    };
    Some(perm.into_iter().map(|p| dims[p].clone()).collect())
}

fn expand(op: &Op<'_>) -> Option<Vec<Dim>> {
    let dims = op.shape(0)?;
    if let Some(spec) = op.input(1)?.elements() {
        return Some(super::fact::broadcast(dims, &spec));
    }
    match op.shape(1)? {
        [Dim::Known(n)] => {
            let n = usize::try_from(*n).ok().filter(|&n| n < 64)?;
            Some(super::fact::broadcast(dims, &unknown(n)))
        }
        _ => None,
    }
}

fn tile(op: &Op<'_>) -> Option<Vec<Dim>> {
    let dims = op.shape(0)?;
    match op.input(1)?.elements() {
        Some(r) if r.len() == dims.len() => {
            Some(dims.iter().zip(&r).map(|(d, r)| d.mul(r)).collect())
        }
        _ => Some(unknown(dims.len())),
    }
}

fn slice(op: &Op<'_>) -> Fact {
    let Some(dims) = op.shape(0) else {
        return Fact::new(op.dtype(0), None);
    };
    let open = || Fact::new(op.dtype(0), Some(unknown(dims.len())));
    let axes = match op.ints_or(3, "axes") {
        Ints::Known(list) => formula::axes(&list, dims.len()),
        Ints::Unknown => None,
        Ints::Missing => Some((0..dims.len()).collect()),
    };
    let Some(axes) = axes else {
        return open();
    };
    let part = |slot: usize, attr: &str| match op.ints_or(slot, attr) {
        Ints::Known(v) => Some(v),
        _ => None,
    };
    let (starts, ends) = (part(1, "starts"), part(2, "ends"));
    let count = starts
        .as_ref()
        .or(ends.as_ref())
        .map_or(axes.len(), Vec::len);
    let steps = match op.ints_or(4, "") {
        Ints::Known(v) => Some(v),
        Ints::Missing => Some(vec![1; count]),
        Ints::Unknown => None,
    };
    let mut out = dims.to_vec();
    for &axis in axes.iter().take(count) {
        out[axis] = Dim::Unknown;
    }
    let (Some(starts), Some(ends), Some(steps)) = (starts, ends, steps) else {
        return Fact::new(op.dtype(0), Some(out));
    };
    for (i, &axis) in axes.iter().enumerate().take(count) {
        let (Some(&s), Some(&e), Some(&step)) = (starts.get(i), ends.get(i), steps.get(i)) else {
            return open();
        };
        let whole = s == 0 && step == 1 && e >= i64::from(i32::MAX);
        out[axis] = if whole {
            dims[axis].clone()
        } else {
            dims[axis].map(|d| formula::slice(s, e, step, d).map(|(_, n)| n))
        };
    }
    let mut fact = Fact::new(op.dtype(0), Some(out));
    if let (Some(list), [s], [e], [step]) = (
        op.input(0).and_then(Fact::elements),
        &starts[..],
        &ends[..],
        &steps[..],
    ) && dims.len() == 1
        && let Some((first, n)) = formula::slice(*s, *e, *step, list.len() as i64)
        && let Some(dtype) = op.dtype(0)
    {
        let picked = (0..n)
            .filter_map(|k| list.get(usize::try_from(first + k * step).ok()?).cloned())
            .collect();
        fact = Fact::of_list(dtype, picked, false);
    }
    fact
}

fn concat(op: &Op<'_>) -> Fact {
    let dtype = op.dtype(0);
    let shapes: Vec<&[Dim]> = (0..op.inputs.len()).filter_map(|i| op.shape(i)).collect();
    let Some(first) = shapes.first() else {
        return Fact::new(dtype, None);
    };
    let axis = formula::axis(op.node.attr_i("axis").unwrap_or(1), first.len());
    let Some(axis) = axis.filter(|_| shapes.iter().all(|s| s.len() == first.len())) else {
        return Fact::new(dtype, None);
    };
    let mut out = first.to_vec();
    for (i, d) in out.iter_mut().enumerate() {
        let column = shapes.iter().map(|s| &s[i]);
        *d = if i != axis {
            column
                .clone()
                .find(|d| d.known().is_some())
                .or_else(|| column.clone().find(|d| **d != Dim::Unknown))
                .cloned()
                .unwrap_or(Dim::Unknown)
        } else if shapes.len() == op.inputs.len() {
            column.fold(Dim::Known(0), |n, d| n.add(d))
        } else {
            Dim::Unknown
        };
    }
    let lists: Option<Vec<Vec<Dim>>> = (0..op.inputs.len()).map(|i| list_part(op, i)).collect();
    match (lists, dtype, first.len()) {
        (Some(lists), Some(t @ (DataType::Int64 | DataType::Int32)), 1) => {
            Fact::of_list(t, lists.concat(), false)
        }
        _ => Fact::new(dtype, Some(out)),
    }
}

/// The elements of a list, unknown ones where only its length is known.
fn list_part(op: &Op<'_>, slot: usize) -> Option<Vec<Dim>> {
    op.input(slot)?
        .elements()
        .or_else(|| match op.shape(slot)? {
            [Dim::Known(n)] => usize::try_from(*n).ok().filter(|&n| n < 64).map(unknown),
            _ => None,
        })
}

fn split(op: &Op<'_>) -> Vec<Fact> {
    let count = op.node.output_count;
    let Some(dims) = op.shape(0) else {
        return vec![Fact::new(op.dtype(0), None); count];
    };
    let part = |d: Dim, axis: usize| {
        let mut out = dims.to_vec();
        out[axis] = d;
        Fact::new(op.dtype(0), Some(out))
    };
    let Some(axis) = formula::axis(op.node.attr_i("axis").unwrap_or(0), dims.len()) else {
        return vec![Fact::new(op.dtype(0), None); count];
    };
    let sizes = match op.ints_or(1, "split") {
        Ints::Known(v) => Some(v),
        Ints::Unknown => None,
        Ints::Missing => dims[axis].known().and_then(|d| {
            let parts = op.node.attr_i("num_outputs").unwrap_or(count as i64);
            formula::split_evenly(d, parts)
        }),
    };
    (0..count)
        .map(|i| {
            let size = sizes.as_ref().and_then(|s| s.get(i));
            part(size.map_or(Dim::Unknown, |&n| Dim::Known(n)), axis)
        })
        .collect()
}

fn pad(op: &Op<'_>) -> Option<Vec<Dim>> {
    let dims = op.shape(0)?;
    let mut out = dims.to_vec();
    let axes = match op.ints_or(3, "") {
        Ints::Known(list) => formula::axes(&list, dims.len()),
        Ints::Missing => Some((0..dims.len()).collect()),
        Ints::Unknown => None,
    };
    let pads = match op.ints_or(1, "pads") {
        Ints::Known(p) => Some(p),
        _ => None,
    };
    let (Some(axes), Some(pads)) = (axes, pads) else {
        return Some(unknown(dims.len()));
    };
    if pads.len() != axes.len() * 2 {
        return None;
    }
    for (i, &a) in axes.iter().enumerate() {
        let both = pads[i].checked_add(pads[i + axes.len()])?;
        out[a] = out[a].add(&Dim::Known(both));
    }
    Some(out)
}

//! Gathering, reducing and searching.

use onnx_quant_ir::DataType;

use super::fact::{Dim, Fact};
use super::{Ints, Op};
use crate::eval::shape as formula;

pub(super) fn rule(op: &Op<'_>, name: &str) -> Option<Vec<Fact>> {
    let dtype = op.dtype(0);
    Some(match name {
        "Gather" => vec![gather(op)],
        "GatherElements" => vec![Fact::new(dtype, op.shape(1).map(<[Dim]>::to_vec))],
        "GatherND" => vec![Fact::new(dtype, gather_nd(op))],
        "ReduceSum" | "ReduceProd" | "ReduceMax" | "ReduceMin" | "ReduceMean" | "ReduceL1"
        | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceSumSquare" => {
            vec![Fact::new(dtype, reduce(op))]
        }
        "ArgMax" | "ArgMin" => vec![Fact::new(Some(DataType::Int64), arg(op))],
        "TopK" => top_k(op),
        _ => return None,
    })
}

fn gather(op: &Op<'_>) -> Fact {
    let dtype = op.dtype(0);
    let (Some(x), Some(i)) = (op.shape(0), op.shape(1)) else {
        return Fact::new(dtype, None);
    };
    let Some(axis) = formula::axis(op.node.attr_i("axis").unwrap_or(0), x.len()) else {
        return Fact::new(dtype, None);
    };
    if let (1, 0 | 1, Some(t), Some(list), Some(at)) = (
        x.len(),
        i.len(),
        dtype,
        op.input(0).and_then(Fact::elements),
        op.input(1).and_then(Fact::ints),
    ) {
        let picked: Option<Vec<Dim>> = at
            .iter()
            .map(|&k| formula::axis(k, list.len()).map(|k| list[k].clone()))
            .collect();
        if let Some(picked) = picked {
            return Fact::of_list(t, picked, i.is_empty());
        }
    }
    let shape = [&x[..axis], i, &x[axis + 1..]].concat();
    Fact::new(dtype, Some(shape))
}

fn gather_nd(op: &Op<'_>) -> Option<Vec<Dim>> {
    let (x, i) = (op.shape(0)?, op.shape(1)?);
    let batch = usize::try_from(op.node.attr_i("batch_dims").unwrap_or(0)).ok()?;
    let depth = usize::try_from(i.last()?.known()?).ok()?;
    let inner = x.get(batch.checked_add(depth)?..)?;
    Some([&i[..i.len() - 1], inner].concat())
}

fn reduced(op: &Op<'_>, x: &[Dim], axes: &[usize]) -> Vec<Dim> {
    let keep = op.node.attr_i("keepdims").unwrap_or(1) != 0;
    (0..x.len())
        .filter(|i| keep || !axes.contains(i))
        .map(|i| {
            if axes.contains(&i) {
                Dim::Known(1)
            } else {
                x[i].clone()
            }
        })
        .collect()
}

fn reduce(op: &Op<'_>) -> Option<Vec<Dim>> {
    let list = match op.ints_or(1, "axes") {
        Ints::Known(list) => list,
        Ints::Missing => Vec::new(),
        Ints::Unknown => {
            let keep = op.node.attr_i("keepdims").unwrap_or(1) != 0;
            return op
                .shape(0)
                .filter(|_| keep)
                .map(|s| vec![Dim::Unknown; s.len()]);
        }
    };
    let keep = op.node.attr_i("keepdims").unwrap_or(1) != 0;
    if list.is_empty() {
        if op.node.attr_i("noop_with_empty_axes") == Some(1) {
            return op.shape(0).map(<[Dim]>::to_vec);
        }
        if !keep {
            return Some(vec![]);
        }
        return op.shape(0).map(|s| vec![Dim::Known(1); s.len()]);
    }
    let x = op.shape(0)?;
    let axes = formula::axes(&list, x.len())?;
    Some(reduced(op, x, &axes))
}

fn arg(op: &Op<'_>) -> Option<Vec<Dim>> {
    let x = op.shape(0)?;
    let axis = formula::axis(op.node.attr_i("axis").unwrap_or(0), x.len())?;
    Some(reduced(op, x, &[axis]))
}

fn top_k(op: &Op<'_>) -> Vec<Fact> {
    let k = match op.input(1) {
        Some(f) => f
            .elements()
            .and_then(|v| v.first().cloned())
            .unwrap_or(Dim::Unknown),
        None => op.node.attr_i("k").map_or(Dim::Unknown, Dim::Known),
    };
    let shape = op.shape(0).and_then(|x| {
        let axis = formula::axis(op.node.attr_i("axis").unwrap_or(-1), x.len())?;
        let mut x = x.to_vec();
        x[axis] = k;
        Some(x)
    });
    vec![
        Fact::new(op.dtype(0), shape.clone()),
        Fact::new(Some(DataType::Int64), shape),
    ]
}

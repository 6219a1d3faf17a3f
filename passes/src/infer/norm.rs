//! Matrix products, normalizations, recurrent layers, attention, Einsum.

use std::collections::BTreeMap;

use onnx_quant_ir::DataType;

use super::fact::{Dim, Fact, broadcast};
use super::{Op, type_attr};
use crate::eval::shape as formula;

pub(super) fn rule(op: &Op<'_>, name: &str) -> Option<Vec<Fact>> {
    let dtype = op.dtype(0);
    Some(match name {
        "MatMul" => vec![Fact::new(dtype, matmul(op.shape(0), op.shape(1)))],
        "MatMulInteger" => vec![Fact::new(
            Some(DataType::Int32),
            matmul(op.shape(0), op.shape(1)),
        )],
        "QLinearMatMul" => vec![Fact::new(op.dtype(7), matmul(op.shape(0), op.shape(3)))],
        "Gemm" => vec![Fact::new(dtype, gemm(op))],
        "BatchNormalization" => {
            let mut facts = vec![Fact::new(dtype, op.shape(0).map(<[Dim]>::to_vec))];
            let other = Fact::new(op.dtype(3), op.shape(3).map(<[Dim]>::to_vec));
            facts.resize(op.node.output_count.max(1), other);
            facts
        }
        "LayerNormalization" | "RMSNormalization" => normalization(op),
        "LSTM" | "GRU" | "RNN" => recurrent(op, name),
        "Einsum" => vec![Fact::new(dtype, einsum(op))],
        "Attention" => attention(op),
        _ => return None,
    })
}

fn matmul(a: Option<&[Dim]>, b: Option<&[Dim]>) -> Option<Vec<Dim>> {
    let (a, b) = (a?, b?);
    let (ab, m) = match a {
        [] => return None,
        [_] => (&[][..], None),
        [batch @ .., m, _] => (batch, Some(m.clone())),
    };
    let (bb, n) = match b {
        [] => return None,
        [_] => (&[][..], None),
        [batch @ .., _, n] => (batch, Some(n.clone())),
    };
    let mut out = broadcast(ab, bb);
    out.extend(m);
    out.extend(n);
    Some(out)
}

fn gemm(op: &Op<'_>) -> Option<Vec<Dim>> {
    let side = |slot: usize, attr: &str, axis: usize| {
        let flipped = op.node.attr_i(attr).unwrap_or(0) != 0;
        match op.shape(slot) {
            Some(s) => s
                .get(if flipped { 1 - axis } else { axis })
                .cloned()
                .unwrap_or(Dim::Unknown),
            None => Dim::Unknown,
        }
    };
    Some(vec![side(0, "transA", 0), side(1, "transB", 1)])
}

fn normalization(op: &Op<'_>) -> Vec<Fact> {
    let shape = op.shape(0).map(<[Dim]>::to_vec);
    let axis = op.node.attr_i("axis").unwrap_or(-1);
    let reduced = shape.as_ref().and_then(|s| {
        let axis = formula::axis(axis, s.len())?;
        let mut s = s.clone();
        s.iter_mut().skip(axis).for_each(|d| *d = Dim::Known(1));
        Some(s)
    });
    let stash = type_attr(op, "stash_type").or(Some(DataType::Float));
    let side = Fact::new(stash, reduced);
    vec![Fact::new(op.dtype(0), shape), side.clone(), side]
}

/// ONNX `LSTM`, `GRU`, `RNN`: Y, Y_h and, for LSTM, Y_c.
fn recurrent(op: &Op<'_>, name: &str) -> Vec<Fact> {
    let axis = |slot: usize, i: usize| {
        op.shape(slot)
            .and_then(|s| s.get(i).cloned())
            .unwrap_or(Dim::Unknown)
    };
    let hidden = match op.node.attr_i("hidden_size") {
        Some(h) => Dim::Known(h),
        None => axis(2, 2),
    };
    let directions = match op.node.attr_s("direction") {
        Some("bidirectional") => Dim::Known(2),
        _ => Dim::Known(1),
    };
    let (y, last) = if op.node.attr_i("layout") == Some(1) {
        let (batch, steps) = (axis(0, 0), axis(0, 1));
        (
            vec![batch.clone(), steps, directions.clone(), hidden.clone()],
            vec![batch, directions, hidden],
        )
    } else {
        let (steps, batch) = (axis(0, 0), axis(0, 1));
        (
            vec![steps, directions.clone(), batch.clone(), hidden.clone()],
            vec![directions, batch, hidden],
        )
    };
    let mut facts = vec![
        Fact::new(op.dtype(0), Some(y)),
        Fact::new(op.dtype(0), Some(last.clone())),
    ];
    if name == "LSTM" {
        facts.push(Fact::new(op.dtype(0), Some(last)));
    }
    facts
}

/// NumPy's Einsum notation with at most one ellipsis a term; dimensions of one letter broadcast.
fn einsum(op: &Op<'_>) -> Option<Vec<Dim>> {
    let equation: String = op
        .node
        .attr_s("equation")?
        .chars()
        .filter(|c| !c.is_whitespace())
        .collect();
    let (left, right) = match equation.split_once("->") {
        Some((l, r)) => (l, Some(r.to_owned())),
        None => (equation.as_str(), None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != op.inputs.len() {
        return None;
    }
    let mut letters: BTreeMap<char, Dim> = BTreeMap::new();
    let mut batch: Vec<Dim> = Vec::new();
    for (slot, term) in terms.iter().enumerate() {
        let shape = op.shape(slot)?;
        let (head, tail) = match term.split_once("...") {
            Some((h, t)) => {
                let middle = shape.len().checked_sub(h.len() + t.len())?;
                batch = broadcast(&batch, &shape[h.len()..h.len() + middle]);
                (h, t)
            }
            None if term.len() == shape.len() => (*term, ""),
            None => return None,
        };
        let ends = shape[..head.len()]
            .iter()
            .chain(&shape[shape.len() - tail.len()..]);
        for (c, d) in head.chars().chain(tail.chars()).zip(ends) {
            let old = letters.get(&c).cloned().unwrap_or(Dim::Known(1));
            letters.insert(c, old.broadcast(d));
        }
    }
    let right = right.unwrap_or_else(|| {
        let once = letters
            .keys()
            .filter(|&&c| left.matches(c).count() == 1)
            .collect::<String>();
        let dots = if left.contains("...") { "..." } else { "" };
        format!("{dots}{once}")
    });
    let mut out = Vec::new();
    let (head, tail) = match right.split_once("...") {
        Some((h, t)) => (h, Some(t)),
        None => (right.as_str(), None),
    };
    for c in head.chars() {
        out.push(letters.get(&c)?.clone());
    }
    if let Some(tail) = tail {
        out.extend(batch);
        for c in tail.chars() {
            out.push(letters.get(&c)?.clone());
        }
    }
    Some(out)
}

/// ONNX `Attention` (opset 23): Y, present key, present value, and the product of queries and keys.
fn attention(op: &Op<'_>) -> Vec<Fact> {
    let heads = |name: &str| op.node.attr_i(name).map_or(Dim::Unknown, Dim::Known);
    let axis = |slot: usize, i: usize| {
        op.shape(slot)
            .and_then(|s| s.get(i).cloned())
            .unwrap_or(Dim::Unknown)
    };
    let per_head = |d: Dim, heads: &Dim| match heads {
        Dim::Known(h) => d.map(|d| d.checked_div(*h)),
        _ => Dim::Unknown,
    };
    let Some(rank) = op.shape(0).map(<[Dim]>::len) else {
        return vec![Fact::new(op.dtype(0), None)];
    };
    let (batch, steps, keys, q_heads, kv_heads, key_size, value_size) = if rank == 4 {
        let (q, kv) = (axis(0, 1), axis(1, 1));
        (
            axis(0, 0),
            axis(0, 2),
            axis(1, 2),
            q,
            kv,
            axis(1, 3),
            axis(2, 3),
        )
    } else {
        let (q, kv) = (heads("q_num_heads"), heads("kv_num_heads"));
        let key_size = per_head(axis(1, 2), &kv);
        let value_size = per_head(axis(2, 2), &kv);
        (
            axis(0, 0),
            axis(0, 1),
            axis(1, 1),
            q,
            kv,
            key_size,
            value_size,
        )
    };
    let total = match op.input(4) {
        Some(_) => axis(4, 2).add(&keys),
        None => keys,
    };
    let y = if rank == 4 {
        vec![
            batch.clone(),
            q_heads.clone(),
            steps.clone(),
            value_size.clone(),
        ]
    } else {
        vec![batch.clone(), steps.clone(), q_heads.mul(&value_size)]
    };
    let present = |size: Dim| {
        let shape = vec![batch.clone(), kv_heads.clone(), total.clone(), size];
        Fact::new(op.dtype(1), Some(shape))
    };
    vec![
        Fact::new(op.dtype(0), Some(y)),
        present(key_size),
        present(value_size),
        Fact::new(
            op.dtype(0),
            Some(vec![batch.clone(), q_heads, steps, total.clone()]),
        ),
    ]
}

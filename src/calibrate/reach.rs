//! How far the contexts of the calibration data reach. A model with a cache is fed its own past: contexts grow, up to the
//! length of the model's table of positions. What stands at positions that no sample has may be larger than all that was
//! seen, and no sample can tell.

use std::collections::HashSet;
use std::sync::Arc;

use onnx_quant_ir::engine::Engine;
use onnx_quant_ir::{Model, Tensor, ValueId};

use crate::data::{Batch, DataSet};
use crate::error::Error;
use crate::optimize::flow::Flow;
use crate::optimize::store::Budget;

/// Positions that the data does not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The name of the table of positions.
    pub table: String,
    /// Its rows.
    pub rows: usize,
    /// Rows up to the last that a sample looks up.
    pub seen: usize,
}

impl std::fmt::Display for Reach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { table, rows, seen } = self;
        write!(
            f,
            "the calibration data has contexts of up to {seen} of the {rows} positions in `{table}`, and with its cache the model meets longer ones"
        )
    }
}

/// The first table of positions of a model with a cache that the data does not reach the end of.
pub(super) fn short(model: &Model, engine: &Arc<dyn Engine>, data: &DataSet) -> Option<Reach> {
    if !has_cache(model) {
        return None;
    }
    let tables = tables(model);
    let indices: Vec<ValueId> = tables.iter().map(|t| t.1).collect();
    let mut seen = vec![0; tables.len()];
    let flow = Flow::new(engine, data, &Budget::new(0));
    let last = |_: &Batch, looked_up: Vec<Tensor>| -> Result<Vec<usize>, Error> {
        let each = looked_up.iter().zip(&tables);
        Ok(each.map(|(t, table)| reached(t, table.2)).collect())
    };
    // Where the indices alone cannot be computed nothing is known of them.
    flow.run(model, &indices, last, |found| {
        seen.iter_mut().zip(found).for_each(|(s, f)| *s = f.max(*s));
        Ok(())
    })
    .ok()?;
    let mut all = tables.into_iter().zip(seen);
    let short = all.find(|((_, _, rows), seen)| *seen > 0 && seen < rows);
    short.map(|((table, _, rows), seen)| Reach {
        table: model.value(table).name.clone(),
        rows,
        seen,
    })
}

/// Rows up to the last that is looked up.
fn reached(indices: &Tensor, rows: usize) -> usize {
    let indices = indices.to_i64().unwrap_or_default().into_iter();
    // Indices below 0 count from the end.
    let row = |i: i64| if i < 0 { i + rows as i64 } else { i };
    let last = indices.map(row).max();
    last.and_then(|l| usize::try_from(l + 1).ok()).unwrap_or(0)
}

/// Whether an output of the model holds one of its inputs with something behind it.
fn has_cache(model: &Model) -> bool {
    let grown = |&output: &ValueId| {
        model.producer(output).is_some_and(|(node, slot)| {
            let grows = match model.node(node).op_type() {
                "Concat" => true,
                "Attention" | "GroupQueryAttention" | "MultiHeadAttention" => slot > 0,
                _ => false,
            };
            let mut read = model.inputs(node).into_iter().flatten();
            grows && read.any(|v| model.value(v).is_input())
        })
    };
    model.main().outputs.iter().any(grown)
}

/// Tables of positions, each with its indices and its rows.
fn tables(model: &Model) -> Vec<(ValueId, ValueId, usize)> {
    let mut found = Vec::new();
    for &node in &model.main().nodes {
        let gather = model.node(node);
        if gather.op_type() != "Gather" || gather.attr_i("axis").unwrap_or(0) != 0 {
            continue;
        }
        let (Some(table), Some(indices)) = (model.input(node, 0), model.input(node, 1)) else {
            continue;
        };
        let Some(rows) = model.constant(table).filter(|t| t.dims().len() == 2) else {
            continue;
        };
        if counts_positions(model, indices) {
            found.push((table, indices, rows.dims()[0] as usize));
        }
    }
    found
}

/// Whether indices are made of positions, masks, sizes and comparisons alone, and not of the values of tokens.
fn counts_positions(model: &Model, indices: ValueId) -> bool {
    let (mut seen, mut open) = (HashSet::new(), vec![indices]);
    let mut made = false;
    while let Some(value) = open.pop() {
        if model.constant(value).is_some() || !seen.insert(value) {
            continue;
        }
        if model.value(value).is_input() {
            let name = model.value(value).name.to_lowercase();
            if !["position", "mask"].iter().any(|w| name.contains(w)) {
                return false;
            }
            made = true;
        } else if let Some((node, _)) = model.producer(value) {
            match model.node(node).op_type() {
                "Shape" | "Size" | "Equal" | "Less" | "LessOrEqual" | "Greater"
                | "GreaterOrEqual" => made = true,
                _ => open.extend(model.inputs(node).into_iter().flatten()),
            }
        }
    }
    made
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use onnx_quant_ir::text;

    use super::*;

    #[test]
    fn tables_are_those_of_positions_and_not_of_tokens() {
        let of = |nodes: &str| {
            let source = format!(
                r#"<ir_version: 8, opset_import: ["" : 17]>
                main (int64[N,S] ids, int64[N,S] position_ids, float[N,P,4] past) => (float[N,T,4] present, float[N,S,4] y)
                <float[9,4] W = random(1), float[5,4] V = random(2), int64 ONE = {{1}}, int64[1] A = {{0}}>
                {{ {nodes} }}"#
            );
            let model = text::parse(&source).unwrap();
            let rows: Vec<usize> = tables(&model).iter().map(|t| t.2).collect();
            (has_cache(&model), rows)
        };
        let tokens = "c = Cast <to = 7> (ids) e = Gather (W, c)";
        let decoder =
            "p = Gather (V, position_ids) y = Add (e, p) present = Concat <axis = 1> (past, y)";
        assert_eq!(of(&format!("{tokens} {decoder}")), (true, vec![5]));
        let computed =
            "s = Sub (position_ids, ONE) u = Unsqueeze (s, A) q = Squeeze (u, A) p = Gather (V, q)";
        let encoder = "y = Add (e, p) present = Add (past, y)";
        assert_eq!(
            of(&format!("{tokens} {computed} {encoder}")),
            (false, vec![5])
        );
        // Token ids that are changed are no positions; where they stand is.
        let clipped = "m = Min (ids, ONE) e = Gather (W, m)";
        let counted =
            "g = Greater (ids, ONE) n = Cast <to = 7> (g) q = CumSum (n, ONE) p = Gather (V, q)";
        assert_eq!(
            of(&format!("{clipped} {counted} {encoder}")),
            (false, vec![5])
        );
    }

    #[test]
    fn the_last_row_counts_and_negative_indices_count_from_the_end() {
        assert_eq!(reached(&Tensor::from_i64(&[2], &[3, 1]), 8), 4);
        assert_eq!(reached(&Tensor::from_i64(&[2], &[-1, 1]), 8), 8);
        assert_eq!(reached(&Tensor::from_i64(&[0], &[]), 8), 0);
    }
}

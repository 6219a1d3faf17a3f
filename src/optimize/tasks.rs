//! The weights of a plan that can be optimised, with their uses and their grids.

use std::collections::BTreeMap;

use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::format::{Family, Granularity};
use onnx_quant_numerics::optimize::grid::Grid;
use onnx_quant_passes::layer::{Matrix, Unit};
use onnx_quant_passes::ops;
use onnx_quant_passes::plan::{PrecisionPlan, WeightPlan};
use onnx_quant_passes::quantize_weights::WeightGrid;

/// One weight of the plan that can be optimised.
pub(super) struct Task {
    pub(super) form: WeightPlan,
    pub(super) value: ValueId,
    pub(super) matrix: Matrix,
    /// Uses, with the slot of the activation.
    pub(super) units: Vec<(Unit, usize)>,
    /// Place of the first use in program order.
    pub(super) place: usize,
    /// Scales may be chosen one by one.
    pub(super) free: bool,
}

/// How a task is called in notes.
pub(super) fn label(model: &Model, task: &Task) -> String {
    model.node_key(task.units[0].0.node)
}

/// The weights of a plan that can be optimised, in program order; what cannot be goes into `skips`.
pub(super) fn tasks(
    model: &Model,
    quantized: &Model,
    plan: &PrecisionPlan,
    skips: &mut Vec<(String, String)>,
) -> Vec<Task> {
    let places: BTreeMap<NodeId, usize> = model
        .main()
        .nodes
        .iter()
        .enumerate()
        .map(|(i, &n)| (n, i))
        .collect();
    let by_key: BTreeMap<String, ValueId> = quantized
        .all_values()
        .into_iter()
        .map(|v| (quantized.value_key(v), v))
        .collect();
    let by_node: BTreeMap<String, NodeId> = model
        .all_nodes()
        .into_iter()
        .map(|n| (model.node_key(n), n))
        .collect();
    let mut tasks = Vec::new();
    for form in &plan.weights {
        let task = || -> Result<Task, String> {
            if form.gathered {
                return Err("its rows are looked up, not multiplied".to_owned());
            }
            let value = *by_key.get(&form.key).ok_or("its weight is gone")?;
            let mut units = Vec::new();
            let mut matrix = None;
            for (reader, _) in &form.readers {
                let node = *by_node.get(reader).ok_or("its node is gone")?;
                if !places.contains_key(&node) {
                    return Err(
                        "it stands in the body of a control-flow operator, whose layers are not learned".to_owned(),
                    );
                }
                let own = Matrix::of(model, node)?;
                if matrix.get_or_insert_with(|| own.clone()) != &own {
                    return Err("its weight is read in different ways".to_owned());
                }
                let linear = ops::linear(model, node).and_then(Result::ok);
                let activation = linear.ok_or("is no linear operator")?.activation;
                units.push((
                    Unit::of(model, node).ok_or("its output is not taken")?,
                    activation,
                ));
            }
            units.sort_by_key(|(u, _)| places[&u.node]);
            let place = units.first().map(|(u, _)| places[&u.node]);
            Ok(Task {
                form: form.clone(),
                value,
                matrix: matrix.ok_or("nothing reads it")?,
                place: place.ok_or("nothing reads it")?,
                free: form.format.base.info().family == Family::Integer
                    && !matches!(form.granularity(), Granularity::Vsq(_)),
                units,
            })
        };
        match task() {
            Ok(t) => tasks.push(t),
            Err(why) => {
                let reader = form.readers.first().map_or(&form.key, |(r, _)| r);
                skips.push((reader.clone(), why));
            }
        }
    }
    tasks.sort_by_key(|t| t.place);
    tasks
}

/// The grid of a weight as a matrix, and for each of its entries the group that it is stored with.
pub(super) fn grid(matrix: &Matrix, own: &WeightGrid) -> Result<(Grid, Vec<usize>), String> {
    let group = |row: usize, col: usize| own.grouping.group_of(matrix.place(row, col));
    // Neighbouring columns of a group are a block; where these are not alike, every column is one.
    let mut block = (1..matrix.cols)
        .find(|&c| group(0, c) != group(0, 0))
        .unwrap_or(matrix.cols);
    let alike = |block: usize| {
        (0..matrix.rows)
            .all(|row| (0..matrix.cols).all(|c| group(row, c) == group(row, c - c % block)))
    };
    if !alike(block) {
        block = 1;
    }
    let mut entries = Vec::with_capacity(matrix.rows * matrix.cols.div_ceil(block));
    for row in 0..matrix.rows {
        entries.extend((0..matrix.cols).step_by(block).map(|c| group(row, c)));
    }
    if entries.iter().any(|&e| e >= own.scales.len()) {
        return Err("its scales do not belong to its values".to_owned());
    }
    let grid = Grid {
        cols: matrix.cols,
        block,
        scales: entries.iter().map(|&e| own.scales[e]).collect(),
        zeros: entries.iter().map(|&e| own.zeros[e]).collect(),
        levels: own.levels.clone(),
    };
    Ok((grid, entries))
}

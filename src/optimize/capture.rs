//! What a layer is judged by: sampled rows of its inputs, in the quantized model and in the float model, and the float
//! model's result.

use onnx_quant_ir::{Model, Tensor, ValueId};
use onnx_quant_numerics::optimize::patches::Geometry;
use onnx_quant_numerics::optimize::random::Random;
use onnx_quant_passes::layer::{Matrix, Unit, geometry};

use super::flow::Flow;
use crate::data::{Batch, DataSet};
use crate::error::Error;

/// Bytes that the sampled rows of a layer may take.
const BYTES: usize = 192 << 20;
/// The most rows of a layer.
const ROWS: usize = 16384;
/// One sample in this many is held out to judge by.
const HELD_OUT: usize = 4;

/// Sampled rows.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows {
    /// Inputs as the quantized layers before give them, for each group `[count, cols]`.
    pub(super) inputs: Vec<Vec<f32>>,
    /// The same of the float model.
    pub(super) float: Vec<Vec<f32>>,
    /// The float model's result behind activation and residual, `[count, rows]`.
    pub(super) targets: Vec<f32>,
    /// What the residual connection adds in the quantized model, `[count, rows]`; empty where there is none.
    pub(super) residual: Vec<f32>,
    /// Rows.
    pub(super) count: usize,
}

impl Rows {
    fn empty(matrix: &Matrix) -> Self {
        Self {
            inputs: vec![Vec::new(); matrix.groups],
            float: vec![Vec::new(); matrix.groups],
            ..Self::default()
        }
    }

    fn append(&mut self, mut other: Self) {
        for (mine, theirs) in self.inputs.iter_mut().zip(&mut other.inputs) {
            mine.append(theirs);
        }
        for (mine, theirs) in self.float.iter_mut().zip(&mut other.float) {
            mine.append(theirs);
        }
        self.targets.append(&mut other.targets);
        self.residual.append(&mut other.residual);
        self.count += other.count;
    }

    /// Puts the rows in random order.
    fn shuffle(&mut self, matrix: &Matrix, random: &mut Random) {
        let mut order: Vec<usize> = (0..self.count).collect();
        random.shuffle(&mut order);
        let turn = |data: &mut Vec<f32>, width: usize| {
            let row = |&r: &usize| data[r * width..(r + 1) * width].iter().copied();
            *data = order.iter().flat_map(row).collect();
        };
        self.inputs
            .iter_mut()
            .chain(&mut self.float)
            .for_each(|x| turn(x, matrix.cols));
        turn(&mut self.targets, matrix.rows);
        if !self.residual.is_empty() {
            turn(&mut self.residual, matrix.rows);
        }
    }
}

/// Rows to learn from and rows to judge by.
#[derive(Debug, Clone)]
pub(super) struct Samples {
    pub(super) train: Rows,
    pub(super) held: Rows,
}

/// The values that one use of a weight is judged by.
struct Wanted {
    float: Vec<ValueId>,
    quantized: Vec<ValueId>,
}

fn wanted(float: &Model, quantized: &Model, unit: &Unit, activation: usize) -> Option<Wanted> {
    let mut seen = vec![quantized.input(unit.node, activation)?];
    if let Some((add, slot)) = unit.residual {
        seen.push(quantized.input(add, slot)?);
    }
    Some(Wanted {
        float: vec![float.input(unit.node, activation)?, unit.end],
        quantized: seen,
    })
}

/// One model and its flow.
pub(super) struct Side<'a, 'b> {
    pub(super) model: &'b Model,
    pub(super) flow: &'b Flow<'a>,
}

/// Samples rows of a layer with one or more uses.
///
/// # Errors
/// A part of a model that cannot be run; `Ok(Err)` where the layer cannot be sampled, and why.
pub(super) fn capture(
    float: &Side<'_, '_>,
    quantized: &Side<'_, '_>,
    units: &[(Unit, usize)],
    matrix: &Matrix,
    data: &DataSet,
    (seed, key): (u64, &str),
) -> Result<Result<Samples, String>, Error> {
    let width = 2 * matrix.cols * matrix.groups + 2 * matrix.rows;
    let budget = (BYTES / (4 * width)).clamp(64, ROWS) / units.len();
    let per_sample = budget.div_ceil(data.len().max(1)).max(1);
    let mut samples = Samples {
        train: Rows::empty(matrix),
        held: Rows::empty(matrix),
    };
    let mut fault = None;
    for (unit, activation) in units {
        let Some(wanted) = wanted(float.model, quantized.model, unit, *activation) else {
            return Ok(Err("an input is missing".to_owned()));
        };
        // The float side first: it says which rows are taken.
        let pick = |batch: &Batch, exact: Vec<Tensor>| {
            let random = Random::named(seed ^ (batch.index as u64) << 20, key);
            Ok(Picked::new(
                float.model,
                (unit, matrix),
                batch,
                &exact,
                (per_sample, random),
            ))
        };
        let mut picked: Vec<Picked> = Vec::new();
        float.flow.run(float.model, &wanted.float, pick, |p| {
            match p {
                Ok(p) => picked.push(p),
                Err(why) => fault = Some(why),
            }
            Ok(())
        })?;
        if fault.is_some() {
            break;
        }
        let complete =
            |batch: &Batch, seen: Vec<Tensor>| Ok(picked[batch.index].seen(matrix, &seen));
        let mut parts = Vec::new();
        quantized
            .flow
            .run(quantized.model, &wanted.quantized, complete, |seen| {
                parts.push(seen);
                Ok(())
            })?;
        for (mut picked, seen) in picked.into_iter().zip(parts) {
            match seen {
                Ok(seen) => {
                    picked.add(seen);
                    samples.train.append(picked.train);
                    samples.held.append(picked.held);
                }
                Err(why) => fault = Some(why),
            }
        }
    }
    if let Some(why) = fault {
        return Ok(Err(why));
    }
    if samples.train.count == 0 {
        return Ok(Err("no calibration sample reaches it".to_owned()));
    }
    samples.train.shuffle(matrix, &mut Random::named(seed, key));
    Ok(Ok(samples))
}

/// Which rows of a batch are taken, and what the float model has there.
struct Picked {
    /// Samples, or the whole batch where its first axis is something else.
    blocks: usize,
    /// Rows of a sample.
    positions: usize,
    conv: Option<Geometry>,
    /// For each block that is taken: its number, whether it is held out, and its rows.
    chosen: Vec<(usize, bool, Vec<usize>)>,
    train: Rows,
    held: Rows,
}

/// What the quantized model has there, for the rows to learn from and those held out: inputs by group, and residuals.
type Seen = [(Vec<Vec<f32>>, Vec<f32>); 2];

fn values(t: &Tensor) -> Result<Vec<f32>, String> {
    t.to_f32().map_err(|e| e.to_string())
}

fn sizes(t: &Tensor) -> Vec<usize> {
    t.dims().iter().map(|&d| d as usize).collect()
}

impl Picked {
    fn new(
        model: &Model,
        (unit, matrix): (&Unit, &Matrix),
        batch: &Batch,
        exact: &[Tensor],
        (per_sample, mut random): (usize, Random),
    ) -> Result<Self, String> {
        let (x_dims, t_dims) = (sizes(&exact[0]), sizes(&exact[1]));
        let (x, t) = (values(&exact[0])?, values(&exact[1])?);
        let fed = batch.samples + batch.padded;
        let conv = geometry(model, unit.node, &x_dims, &t_dims);
        let (blocks, positions) = match &conv {
            Some(g) => (x_dims[0], g.positions()),
            None if x.len() % matrix.cols == 0 => {
                let rows = x.len() / matrix.cols;
                let blocks = if x_dims.first() == Some(&fed) { fed } else { 1 };
                (blocks, rows / blocks.max(1))
            }
            None => return Err("its input has another shape than its weight".to_owned()),
        };
        if t.len() != blocks * positions * matrix.rows {
            return Err("its output has another shape than its weight".to_owned());
        }
        // Samples behind the valid ones repeat the last.
        let valid = if blocks == fed { batch.samples } else { blocks };
        let count = per_sample * if blocks == fed { 1 } else { batch.samples };
        let chosen = (0..valid)
            .map(|block| {
                let rows = match count < positions {
                    true => (0..count).map(|_| random.below(positions)).collect(),
                    false => (0..positions).collect(),
                };
                let held = (batch.first_sample + block) % HELD_OUT == HELD_OUT - 1;
                (block, held, rows)
            })
            .collect();
        let mut picked = Self {
            blocks,
            positions,
            conv,
            chosen,
            train: Rows::empty(matrix),
            held: Rows::empty(matrix),
        };
        let [learn, judge] = picked.inputs(matrix, &x);
        let [targets, held_targets] = picked.outputs(matrix, &t);
        picked.train.float = learn;
        picked.held.float = judge;
        picked.train.count = targets.len() / matrix.rows;
        picked.held.count = held_targets.len() / matrix.rows;
        picked.train.targets = targets;
        picked.held.targets = held_targets;
        Ok(picked)
    }

    fn seen(&self, matrix: &Matrix, seen: &[Tensor]) -> Result<Seen, String> {
        let [learn, judge] = self.inputs(matrix, &values(&seen[0])?);
        let Some(residual) = seen.get(1) else {
            return Ok([(learn, Vec::new()), (judge, Vec::new())]);
        };
        let residual = values(residual)?;
        if residual.len() != self.blocks * self.positions * matrix.rows {
            return Err("its residual connection is stretched to the layer's shape".to_owned());
        }
        let [own, held] = self.outputs(matrix, &residual);
        Ok([(learn, own), (judge, held)])
    }

    fn add(&mut self, seen: Seen) {
        let [(inputs, residual), (held, held_residual)] = seen;
        self.train.inputs = inputs;
        self.train.residual = residual;
        self.held.inputs = held;
        self.held.residual = held_residual;
    }

    /// The chosen rows of a layer's input, by group.
    fn inputs(&self, matrix: &Matrix, x: &[f32]) -> [Vec<Vec<f32>>; 2] {
        let mut out = [
            vec![Vec::new(); matrix.groups],
            vec![Vec::new(); matrix.groups],
        ];
        let size = x.len() / self.blocks.max(1);
        for (block, held, rows) in &self.chosen {
            let out = &mut out[usize::from(*held)];
            let sample = &x[block * size..(block + 1) * size];
            match &self.conv {
                Some(g) => g.gather(sample, rows, out),
                None => {
                    for &r in rows {
                        out[0].extend_from_slice(&sample[r * matrix.cols..(r + 1) * matrix.cols]);
                    }
                }
            }
        }
        out
    }

    /// The chosen rows of a tensor in the shape of the layer's output.
    fn outputs(&self, matrix: &Matrix, t: &[f32]) -> [Vec<f32>; 2] {
        let mut out = [Vec::new(), Vec::new()];
        for (block, held, rows) in &self.chosen {
            let out = &mut out[usize::from(*held)];
            for &r in rows {
                if self.conv.is_some() {
                    let at = |m: usize| (block * matrix.rows + m) * self.positions + r;
                    out.extend((0..matrix.rows).map(|m| t[at(m)]));
                } else {
                    let at = (block * self.positions + r) * matrix.rows;
                    out.extend_from_slice(&t[at..at + matrix.rows]);
                }
            }
        }
        out
    }
}

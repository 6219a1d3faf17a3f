//! What a layer is judged by: sampled rows of its inputs, in the quantized model and in the float model, and the float
//! model's result.

use onnx_quant_ir::{Model, Tensor, ValueId};
use onnx_quant_numerics::optimize::patches::Geometry;
use onnx_quant_numerics::optimize::random::Random;
use onnx_quant_passes::layer::{Matrix, Unit, geometry};

use super::flow::Flow;
use super::padding::Padding;
use super::store::{Budget, Floats, Put, Scratch, Sealed};
use crate::data::{Batch, DataSet};
use crate::error::Error;

/// Bytes that the sampled rows of a layer may take.
const BYTES: usize = 192 << 20;
/// The most rows of a layer.
const ROWS: usize = 16384;
/// One sample in this many is held out to judge by.
const HELD_OUT: usize = 4;

/// Sampled rows.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// Inputs as the quantized layers before give them, for each group `[count, cols]`.
    pub(super) inputs: Vec<Floats>,
    /// The same of the float model.
    pub(super) float: Vec<Floats>,
    /// The float model's result behind activation and residual, `[count, rows]`.
    pub(super) targets: Floats,
    /// What the residual connection adds in the quantized model, `[count, rows]`; empty where there is none.
    pub(super) residual: Floats,
    /// Rows.
    pub(super) count: usize,
}

/// Rows to learn from and rows to judge by.
#[derive(Debug)]
pub(super) struct Samples {
    pub(super) train: Rows,
    pub(super) held: Rows,
}

/// Rows of one of these matrices, as batch after batch brings them.
#[derive(Default)]
struct Pieces(Vec<(usize, Put)>);

impl Pieces {
    /// Puts the rows of a batch away, those of each group.
    fn push(
        &mut self,
        scratch: &mut Scratch,
        groups: &[Vec<f32>],
        width: usize,
    ) -> Result<(), Error> {
        let count: usize = groups.iter().map(Vec::len).sum();
        let put = scratch.floats(count, groups.iter().map(Vec::as_slice))?;
        let rows = count / (width * groups.len()).max(1);
        self.0.push((rows, put));
        Ok(())
    }

    fn rows(&self) -> usize {
        self.0.iter().map(|(rows, _)| rows).sum()
    }

    /// The rows of each of `groups` in another order.
    fn arrange(
        self,
        (pieces, scratch): (&Sealed, &mut Scratch),
        (groups, width): (usize, usize),
        order: &[usize],
    ) -> Result<Vec<Put>, Error> {
        let parts: Vec<(usize, Floats)> = self
            .0
            .iter()
            .map(|(n, put)| (*n, pieces.floats(put)))
            .collect();
        drop(self);
        let each = (0..groups).map(|g| {
            let mut rows: Vec<&[f32]> = Vec::with_capacity(order.len());
            for (n, all) in &parts {
                rows.extend(all[g * n * width..(g + 1) * n * width].chunks_exact(width));
            }
            scratch.floats(order.len() * width, order.iter().map(|&r| rows[r]))
        });
        let done = each.collect();
        pieces.release();
        done
    }
}

/// The matrices of [`Rows`] while they come.
#[derive(Default)]
struct Coming {
    inputs: Pieces,
    float: Pieces,
    targets: Pieces,
    residual: Pieces,
}

/// The matrices of [`Rows`] where they were put.
struct Arranged {
    inputs: Vec<Put>,
    float: Vec<Put>,
    targets: Vec<Put>,
    residual: Vec<Put>,
    count: usize,
}

impl Coming {
    /// Puts the rows in order, at random where there is a seed.
    fn arrange(
        self,
        matrix: &Matrix,
        (pieces, scratch): (&Sealed, &mut Scratch),
        random: Option<Random>,
    ) -> Result<Arranged, Error> {
        let count = self.targets.rows();
        let mut order: Vec<usize> = (0..count).collect();
        if let Some(mut random) = random {
            random.shuffle(&mut order);
        }
        let (inner, outer) = ((matrix.groups, matrix.cols), (1, matrix.rows));
        let mut arrange = |matrix: Pieces, form| {
            let order = if matrix.rows() == 0 { &[][..] } else { &order };
            matrix.arrange((pieces, &mut *scratch), form, order)
        };
        Ok(Arranged {
            inputs: arrange(self.inputs, inner)?,
            float: arrange(self.float, inner)?,
            targets: arrange(self.targets, outer)?,
            residual: arrange(self.residual, outer)?,
            count,
        })
    }
}

impl Arranged {
    fn read(&self, sealed: &Sealed) -> Rows {
        let each = |puts: &[Put]| puts.iter().map(|p| sealed.floats(p)).collect();
        let one = |puts: &[Put]| puts.first().map(|p| sealed.floats(p)).unwrap_or_default();
        Rows {
            inputs: each(&self.inputs),
            float: each(&self.float),
            targets: one(&self.targets),
            residual: one(&self.residual),
            count: self.count,
        }
    }
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

/// Samples rows of a layer with one or more uses, of the float model and of the quantized one; none of padding.
///
/// # Errors
/// A part of a model that cannot be run; `Ok(Err)` where the layer cannot be sampled, and why.
pub(super) fn capture(
    [float, quantized]: [Side<'_, '_>; 2],
    (units, matrix): (&[(Unit, usize)], &Matrix),
    (data, padding): (&DataSet, &Padding),
    (seed, key): (u64, &str),
    budget: &Budget,
) -> Result<Result<Samples, String>, Error> {
    let width = 2 * matrix.cols * matrix.groups + 2 * matrix.rows;
    let rows = (BYTES / (4 * width)).clamp(64, ROWS) / units.len();
    let per_sample = rows.div_ceil(data.len().max(1)).max(1);
    let mut scratch = Scratch::new(budget);
    // Rows to learn from, and those that are held out.
    let mut coming = [Coming::default(), Coming::default()];
    let mut fault = None;
    for (unit, activation) in units {
        let Some(wanted) = wanted(float.model, quantized.model, unit, *activation) else {
            return Ok(Err("an input is missing".to_owned()));
        };
        // The float side first: it says which rows are taken.
        let pick = |batch: &Batch, exact: Vec<Tensor>| {
            let random = Random::named(seed ^ (batch.index as u64) << 20, key);
            let of = (float.model, unit, matrix);
            Ok(Picked::new(
                of,
                (batch, padding),
                &exact,
                (per_sample, random),
            ))
        };
        let mut picked: Vec<Picked> = Vec::new();
        float.flow.run(float.model, &wanted.float, pick, |p| {
            match p {
                Ok((p, parts)) => {
                    picked.push(p);
                    for (coming, (inputs, targets)) in coming.iter_mut().zip(parts) {
                        coming.float.push(&mut scratch, &inputs, matrix.cols)?;
                        coming.targets.push(&mut scratch, &[targets], matrix.rows)?;
                    }
                }
                Err(why) => fault = Some(why),
            }
            Ok(())
        })?;
        if fault.is_some() {
            break;
        }
        let complete =
            |batch: &Batch, seen: Vec<Tensor>| Ok(picked[batch.index].seen(matrix, &seen));
        let keep = |seen: Result<[Seen; 2], String>| {
            match seen {
                Ok(parts) => {
                    for (coming, (inputs, residual)) in coming.iter_mut().zip(parts) {
                        coming.inputs.push(&mut scratch, &inputs, matrix.cols)?;
                        coming
                            .residual
                            .push(&mut scratch, &[residual], matrix.rows)?;
                    }
                }
                Err(why) => fault = Some(why),
            }
            Ok(())
        };
        quantized
            .flow
            .run(quantized.model, &wanted.quantized, complete, keep)?;
    }
    if let Some(why) = fault {
        return Ok(Err(why));
    }
    if coming[0].targets.rows() == 0 {
        return Ok(Err("no calibration sample reaches it".to_owned()));
    }
    let pieces = scratch.seal()?;
    let mut scratch = Scratch::new(budget);
    let [train, held] = coming;
    let random = Some(Random::named(seed, key));
    let train = train.arrange(matrix, (&pieces, &mut scratch), random)?;
    let held = held.arrange(matrix, (&pieces, &mut scratch), None)?;
    drop(pieces);
    let sealed = scratch.seal()?;
    Ok(Ok(Samples {
        train: train.read(&sealed),
        held: held.read(&sealed),
    }))
}

/// Which rows of a batch are taken.
struct Picked {
    /// Samples, or the whole batch where its first axis is something else.
    blocks: usize,
    /// Rows of a sample.
    positions: usize,
    conv: Option<Geometry>,
    /// For each block that is taken: its number, whether it is held out, and its rows.
    chosen: Vec<(usize, bool, Vec<usize>)>,
}

/// Rows of inputs by group, and of results or residuals.
type Seen = (Vec<Vec<f32>>, Vec<f32>);

fn values(t: &Tensor) -> Result<Vec<f32>, String> {
    t.to_f32().map_err(|e| e.to_string())
}

fn sizes(t: &Tensor) -> Vec<usize> {
    t.dims().iter().map(|&d| d as usize).collect()
}

impl Picked {
    /// Picks rows, and takes them of the float model's values for what is learned from and for what is held out.
    fn new(
        (model, unit, matrix): (&Model, &Unit, &Matrix),
        (batch, padding): (&Batch, &Padding),
        exact: &[Tensor],
        (per_sample, mut random): (usize, Random),
    ) -> Result<(Self, [Seen; 2]), String> {
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
                let sample = batch.first_sample + block;
                let all = match conv.is_none() && blocks == fed {
                    true => padding.positions(sample, positions),
                    false => (0..positions).collect(),
                };
                let rows = match count < all.len() {
                    true => (0..count).map(|_| all[random.below(all.len())]).collect(),
                    false => all,
                };
                let held = sample % HELD_OUT == HELD_OUT - 1;
                (block, held, rows)
            })
            .collect();
        let picked = Self {
            blocks,
            positions,
            conv,
            chosen,
        };
        let [learn, judge] = picked.inputs(matrix, &x);
        let [targets, held_targets] = picked.outputs(matrix, &t);
        Ok((picked, [(learn, targets), (judge, held_targets)]))
    }

    /// The same rows of what the quantized model has there.
    fn seen(&self, matrix: &Matrix, seen: &[Tensor]) -> Result<[Seen; 2], String> {
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

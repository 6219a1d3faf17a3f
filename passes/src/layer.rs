//! Linear operators as matrix products, for methods that choose weights by a layer's output: where an element of the
//! weight stands in the matrix, which inputs a row reads, and what follows the product.

use onnx_quant_ir::{Model, NodeId, Tensor, ValueId};
use onnx_quant_numerics::optimize::adaround::Activation;
use onnx_quant_numerics::optimize::patches::Geometry;

use crate::ops;

/// A weight read as a matrix `[rows, cols]`: output channels by the inputs of their sums. The rows of a group read the
/// same inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Matrix {
    /// Output channels.
    pub rows: usize,
    /// Inputs of a sum.
    pub cols: usize,
    /// Groups of rows that read different inputs.
    pub groups: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The tensor is the matrix.
    Rows,
    /// The tensor is the transposed matrix.
    Columns,
    /// `[channels, rows / groups, taps]`.
    Transposed { taps: usize },
}

impl Matrix {
    /// The matrix behind the weight of a linear operator.
    ///
    /// # Errors
    /// Why the weight is not one matrix.
    pub fn of(model: &Model, node: NodeId) -> Result<Self, String> {
        let linear = match ops::linear(model, node) {
            Some(Ok(l)) => l,
            Some(Err(why)) => return Err(why),
            None => return Err("is no linear operator".to_owned()),
        };
        let n = model.node(node);
        let weight = model
            .input_constant(node, linear.weight)
            .ok_or("its weight is not a constant")?;
        let dims: Vec<usize> = weight.dims().iter().map(|&d| d as usize).collect();
        let groups = n.attr_i("group").unwrap_or(1).max(1) as usize;
        let product = |d: &[usize]| d.iter().product::<usize>();
        match (n.op_type(), dims.as_slice()) {
            ("Conv", [m, rest @ ..]) => Ok(Self {
                rows: *m,
                cols: product(rest),
                groups,
                kind: Kind::Rows,
            }),
            ("ConvTranspose", [c, m, kernel @ ..]) => Ok(Self {
                rows: m * groups,
                cols: c / groups * product(kernel),
                groups,
                kind: Kind::Transposed {
                    taps: product(kernel),
                },
            }),
            ("Gemm", [a, b]) if n.attr_i("transA").unwrap_or(0) == 0 => {
                let turned = n.attr_i("transB").unwrap_or(0) != 0;
                let (rows, cols) = if turned { (*a, *b) } else { (*b, *a) };
                Ok(Self {
                    rows,
                    cols,
                    groups: 1,
                    kind: if turned { Kind::Rows } else { Kind::Columns },
                })
            }
            ("Gemm", _) => Err("its input is transposed".to_owned()),
            ("MatMul", [k, n]) if linear.weight == 1 => Ok(Self {
                rows: *n,
                cols: *k,
                groups: 1,
                kind: Kind::Columns,
            }),
            ("MatMul", _) if linear.weight == 0 => {
                Err("its weight stands on the left of the product".to_owned())
            }
            (_, dims) => Err(format!(
                "its weight has {} dimensions: it is not one matrix",
                dims.len()
            )),
        }
        .and_then(|m| match m.rows * m.cols > 0 && m.rows % m.groups == 0 {
            true => Ok(m),
            false => Err("its weight is empty".to_owned()),
        })
    }

    /// Rows of a group.
    pub fn group_rows(&self) -> usize {
        self.rows / self.groups
    }

    /// The place in the tensor of an element of the matrix.
    pub fn place(&self, row: usize, col: usize) -> usize {
        match self.kind {
            Kind::Rows => row * self.cols + col,
            Kind::Columns => col * self.rows + row,
            Kind::Transposed { taps } => {
                let per_group = self.group_rows();
                let (g, j) = (row / per_group, row % per_group);
                let channels = self.cols / taps;
                let channel = g * channels + col / taps;
                (channel * per_group + j) * taps + col % taps
            }
        }
    }

    /// The matrix, row by row, of a tensor's elements.
    pub fn gather<T: Copy>(&self, tensor: &[T]) -> Vec<T> {
        let row = |r: usize| (0..self.cols).map(move |c| tensor[self.place(r, c)]);
        (0..self.rows).flat_map(row).collect()
    }

    /// The tensor's elements of a matrix.
    pub fn scatter<T: Copy + Default>(&self, matrix: &[T]) -> Vec<T> {
        let mut out = vec![T::default(); matrix.len()];
        for r in 0..self.rows {
            for c in 0..self.cols {
                out[self.place(r, c)] = matrix[r * self.cols + c];
            }
        }
        out
    }

    /// Input channels, where `taps` columns read the same.
    pub fn inputs(&self, taps: usize) -> usize {
        self.cols / taps.max(1) * self.groups
    }

    /// What each row sums up to where every input channel is a constant: the answer to a shift, or to a mean. `None` where
    /// there are not as many constants as input channels.
    pub fn constant_response(&self, weights: &[f32], channels: &[f64]) -> Option<Vec<f64>> {
        let per_group = channels.len() / self.groups;
        let fits = per_group > 0
            && channels.len().is_multiple_of(self.groups)
            && self.cols.is_multiple_of(per_group);
        let taps = self.cols.checked_div(per_group).filter(|_| fits)?;
        let row = |(row, w): (usize, &[f32])| -> f64 {
            let own = &channels[row / self.group_rows() * per_group..][..per_group];
            let sums = w.chunks_exact(taps).zip(own);
            sums.map(|(w, c)| w.iter().map(|&w| f64::from(w)).sum::<f64>() * c)
                .sum()
        };
        Some(
            weights
                .chunks_exact(self.cols)
                .enumerate()
                .map(row)
                .collect(),
        )
    }

    /// Columns that read the same input channel: the taps of the kernel.
    pub fn taps(&self, model: &Model, node: NodeId) -> usize {
        let n = model.node(node);
        match n.op_type() {
            "Conv" | "ConvTranspose" => model
                .input_constant(node, 1)
                .map_or(1, |w| w.dims()[2..].iter().product::<i64>() as usize),
            _ => 1,
        }
    }
}

/// Where a Conv or ConvTranspose reads, for one shape of its input and output `[N, C, …]`; `None` for other operators.
pub fn geometry(
    model: &Model,
    node: NodeId,
    input: &[usize],
    output: &[usize],
) -> Option<Geometry> {
    let n = model.node(node);
    let transposed = match n.op_type() {
        "Conv" => false,
        "ConvTranspose" => true,
        _ => return None,
    };
    let weight = model.input_constant(node, 1)?;
    let kernel: Vec<usize> = weight
        .dims()
        .get(2..)?
        .iter()
        .map(|&d| d as usize)
        .collect();
    let dims = kernel.len();
    if input.len() != dims + 2 || output.len() != dims + 2 {
        return None;
    }
    let list = |name: &str| -> Option<Vec<usize>> {
        let given = n.attr_ints(name)?;
        (given.len() == dims).then(|| given.iter().map(|&x| x.max(1) as usize).collect())
    };
    let strides = list("strides").unwrap_or_else(|| vec![1; dims]);
    let dilations = list("dilations").unwrap_or_else(|| vec![1; dims]);
    let auto = n.attr_s("auto_pad").unwrap_or("NOTSET");
    let explicit = n.attr_ints("pads").filter(|p| p.len() == 2 * dims);
    let fixed = transposed && n.attr_ints("output_shape").is_some();
    let extra = n.attr_ints("output_padding");
    let pads = (0..dims)
        .map(|d| {
            let (i, o) = (input[d + 2], output[d + 2]);
            let reach = (kernel[d] - 1) * dilations[d] + 1;
            let total = if transposed {
                let extra = extra.and_then(|e| e.get(d)).map_or(0, |&e| e as usize);
                (i.saturating_sub(1) * strides[d] + extra + reach).saturating_sub(o)
            } else {
                (o.saturating_sub(1) * strides[d] + reach).saturating_sub(i)
            };
            match auto {
                "SAME_UPPER" => total / 2,
                "SAME_LOWER" => total - total / 2,
                "VALID" if !fixed => 0,
                _ if fixed => total - total / 2,
                _ => explicit.map_or(0, |p| p[d].max(0) as usize),
            }
        })
        .collect();
    Some(Geometry {
        channels: input[1],
        groups: n.attr_i("group").unwrap_or(1).max(1) as usize,
        input: input[2..].to_vec(),
        output: output[2..].to_vec(),
        kernel,
        strides,
        dilations,
        pads,
        transposed,
    })
}

/// What follows a linear operator, up to where its result has another use.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// The linear operator.
    pub node: NodeId,
    /// The constant that is added: the node and slot it stands in.
    pub bias: Option<(NodeId, usize)>,
    /// The residual connection: the Add and the slot of the other operand.
    pub residual: Option<(NodeId, usize)>,
    /// The activation at the end: one for all output channels, or one for each.
    pub activations: Vec<Activation>,
    /// The value behind all of it.
    pub end: ValueId,
}

impl Unit {
    /// The unit that begins with a linear operator; `None` where its output is not taken.
    pub fn of(model: &Model, node: NodeId) -> Option<Self> {
        let own_bias = match model.node(node).op_type() {
            "Conv" | "ConvTranspose" | "Gemm" => model.input(node, 2).map(|_| (node, 2)),
            _ => None,
        };
        let mut unit = Self {
            node,
            bias: own_bias,
            residual: None,
            activations: vec![Activation::NONE],
            end: model.output(node, 0)?,
        };
        while let Some(next) = single_reader(model, unit.end) {
            let n = model.node(next);
            if let Some(activations) = activations(model, next, node) {
                unit.end = model.output(next, 0)?;
                unit.activations = activations;
                break;
            }
            if !n.is("Add") || unit.residual.is_some() {
                break;
            }
            let Some(slot) = (0..2).find(|&s| model.input(next, s) != Some(unit.end)) else {
                break;
            };
            match model.input(next, slot) {
                Some(c) if model.constant(c).is_some() => {
                    let rows = Matrix::of(model, node).map_or(0, |m| m.rows);
                    let flat = model
                        .constant(c)
                        .and_then(|t| flat_bias(model, node, t, rows));
                    if unit.bias.is_some() || flat.is_none() {
                        break;
                    }
                    unit.bias = Some((next, slot));
                }
                Some(_) => unit.residual = Some((next, slot)),
                None => break,
            }
            unit.end = model.output(next, 0)?;
        }
        Some(unit)
    }

    /// The bias as one value for each row; zeros where there is none.
    pub fn bias_values(&self, model: &Model, rows: usize) -> Option<Vec<f32>> {
        let Some((node, slot)) = self.bias else {
            return Some(vec![0.0; rows]);
        };
        let tensor = model.input_constant(node, slot)?;
        flat_bias(model, self.node, tensor, rows)
    }
}

/// A constant with one value for each output channel, or one for all.
fn flat_bias(model: &Model, node: NodeId, tensor: &Tensor, rows: usize) -> Option<Vec<f32>> {
    let n = model.node(node);
    let beta = match n.op_type() {
        "Gemm" => n.attr_f("beta").unwrap_or(1.0),
        _ => 1.0,
    };
    let values = spread(model, node, tensor, rows)?;
    Some(values.into_iter().map(|x| x * beta).collect())
}

/// The value for each output channel of a constant that stands behind a linear operator.
fn spread(model: &Model, node: NodeId, tensor: &Tensor, rows: usize) -> Option<Vec<f32>> {
    let n = model.node(node);
    let values = tensor.to_f32().ok()?;
    if values.len() == 1 {
        return Some(vec![values[0]; rows]);
    }
    // The channels are the last axis of a matrix product and the second of a convolution.
    let last = matches!(n.op_type(), "Gemm" | "MatMul") || tensor.dims().len() == 1;
    let fits = match last {
        true => tensor.dims().last() == Some(&(rows as i64)),
        false => tensor.dims().iter().filter(|&&d| d != 1).count() == 1,
    };
    (fits && values.len() == rows).then_some(values)
}

fn single_reader(model: &Model, value: ValueId) -> Option<NodeId> {
    let v = model.value(value);
    let graph = model.graph(v.graph);
    if graph.outputs.contains(&value) || !model.captures(value).is_empty() {
        return None;
    }
    match model.consumers(value).as_slice() {
        [(node, _)] => Some(*node),
        _ => None,
    }
}

/// What an operator behind a linear one does to its output channels: one for all, or one for each.
pub fn activations(model: &Model, node: NodeId, linear: NodeId) -> Option<Vec<Activation>> {
    if let Some((low, high)) = ops::clamp_bounds(model, node) {
        return (low <= high).then(|| vec![Activation::Clamp { low, high }]);
    }
    let n = model.node(node);
    if n.is("LeakyRelu") {
        let slope = n.attr_f("alpha").unwrap_or(0.01);
        return Some(vec![Activation::Leaky { slope }]);
    }
    if !n.is("PRelu") {
        return None;
    }
    let rows = Matrix::of(model, linear).ok()?.rows;
    let slopes = spread(model, linear, model.input_constant(node, 1)?, rows)?;
    let leaky = |slope| Activation::Leaky { slope };
    Some(slopes.into_iter().map(leaky).collect())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn matrix(rows: usize, cols: usize, groups: usize, kind: Kind) -> Matrix {
        Matrix {
            rows,
            cols,
            groups,
            kind,
        }
    }

    #[test]
    fn places_are_a_permutation_and_scatter_undoes_gather() {
        for m in [
            matrix(4, 6, 2, Kind::Rows),
            matrix(4, 6, 1, Kind::Columns),
            matrix(6, 4, 3, Kind::Transposed { taps: 2 }),
        ] {
            let tensor: Vec<i32> = (0..(m.rows * m.cols) as i32).collect();
            let gathered = m.gather(&tensor);
            assert_eq!(m.scatter(&gathered), tensor);
        }
        // [channels 2, rows of the group 3, taps 2], one group: row 1 reads channel 0 at 2, 3 and channel 1 at 8, 9.
        let m = matrix(3, 4, 1, Kind::Transposed { taps: 2 });
        let tensor: Vec<usize> = (0..12).collect();
        assert_eq!(m.gather(&tensor)[4..8], [2, 3, 8, 9]);
    }

    #[test]
    fn units_end_where_another_use_begins() {
        let text = "main (float[1,2,4,4] X) => (float[1,2,4,4] Y, float[1,2,4,4] Z)
<
  float[2,2,1,1] W = {1, 2, 3, 4},
  float[2] B = {1, 2}
>
{
  [a] A = Conv (X, W, B)
  [b] R = Relu (A)
  [c] C = Conv (R, W, B)
  [d] S = Add (R, C)
  [e] Y = Relu (S)
  [f] Z = Conv (Y, W)
}";
        let model = onnx_quant_ir::text::parse(text).unwrap();
        let by_name = |name: &str| {
            let mut nodes = model.all_nodes().into_iter();
            nodes.find(|&n| model.node(n).name() == name).unwrap()
        };
        let name = |v: ValueId| model.value(v).name.clone();
        let first = Unit::of(&model, by_name("a")).unwrap();
        assert_eq!(name(first.end), "R");
        assert_eq!(first.bias_values(&model, 2).unwrap(), [1.0, 2.0]);
        let second = Unit::of(&model, by_name("c")).unwrap();
        assert_eq!(
            (name(second.end), second.residual),
            ("Y".to_owned(), Some((by_name("d"), 0)))
        );
        let relu = Activation::Clamp {
            low: 0.0,
            high: f32::INFINITY,
        };
        assert_eq!(second.activations, [relu]);
        let third = Unit::of(&model, by_name("f")).unwrap();
        assert_eq!(
            (third.bias, third.residual, name(third.end)),
            (None, None, "Z".to_owned())
        );
    }
}

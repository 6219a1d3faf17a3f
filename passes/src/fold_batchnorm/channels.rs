//! Where the output channels lie in a weight, and the FP64 arithmetic on them.

use half::{bf16, f16};
use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Model, NodeId, Tensor};

/// Which output channel an element of a weight belongs to: the weight is read as
/// `[groups, outer, channels, inner]`, and the channel is `group · channels + index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    groups: usize,
    outer: usize,
    channels: usize,
    inner: usize,
    /// Rank of the operator's output; the channels are its axis 1. 1 for a bias.
    rank: usize,
}

impl Layout {
    /// The layout of a bias: `[N]` or anything that stretches to `[1, N]`.
    pub(super) fn row() -> Self {
        Self {
            groups: 1,
            outer: 1,
            channels: 1,
            inner: 1,
            rank: 2,
        }
    }

    /// The layout of a linear operator's weight that has `n` output channels on axis 1 of its output.
    pub(super) fn of(model: &Model, node: NodeId, n: usize) -> Result<Self, String> {
        let op = model.node(node);
        let weight = model
            .input_constant(node, 1)
            .ok_or_else(|| format!("the weight of {} is not a constant", op.op_type()))?;
        let dims: Vec<usize> = weight
            .dims()
            .iter()
            .filter_map(|&d| usize::try_from(d).ok())
            .collect();
        let spread = |d: &[usize]| d.iter().product::<usize>();
        let layout = |groups, outer, channels, inner, rank| Self {
            groups,
            outer,
            channels,
            inner,
            rank,
        };
        let found = match (op.op_type(), dims.as_slice()) {
            ("Conv", [m, rest @ ..]) if rest.len() >= 2 => {
                layout(1, 1, *m, spread(rest), dims.len())
            }
            ("ConvTranspose", [c, m, rest @ ..]) if !rest.is_empty() => {
                let g = usize::try_from(op.attr_i("group").unwrap_or(1)).unwrap_or(0);
                if g == 0 || c % g != 0 {
                    return Err("its group does not divide the channels".to_owned());
                }
                layout(g, c / g, *m, spread(rest), dims.len())
            }
            ("Gemm", [rows, cols]) => match op.attr_i("transB").unwrap_or(0) {
                0 => layout(1, *rows, *cols, 1, 2),
                _ => layout(1, 1, *rows, *cols, 2),
            },
            ("MatMul", [rows, cols]) => {
                if rank_of_output(model, node) != Some(2) {
                    return Err("the product is not known to be a matrix".to_owned());
                }
                layout(1, *rows, *cols, 1, 2)
            }
            (op, dims) => return Err(format!("the weight of {op} has the shape {dims:?}")),
        };
        if found.groups * found.channels != n {
            return Err(format!(
                "the operator before it has {} output channels, not {n}",
                found.groups * found.channels
            ));
        }
        Ok(found)
    }

    /// A constant that is added to the operator's output, as one value for each channel.
    pub(super) fn per_channel(&self, t: &Tensor, n: usize, what: &str) -> Result<Vec<f64>, String> {
        let dims = t.dims();
        let values = to_f64(t)?;
        if values.len() == 1 && dims.len() <= self.rank {
            return Ok(vec![values[0]; n]);
        }
        // Broadcasting aligns at the end: axis 1 of the output is axis `len + 1 − rank` of the constant.
        let axis = (dims.len() + 1).checked_sub(self.rank);
        let fits = axis.is_some_and(|axis| {
            dims.len() <= self.rank
                && dims
                    .iter()
                    .enumerate()
                    .all(|(i, &d)| d == if i == axis { n as i64 } else { 1 })
        });
        if fits {
            Ok(values)
        } else {
            Err(format!("{what} is not one value for each channel"))
        }
    }
}

/// The rank of a MatMul's output, from its own declaration or from its left input's.
fn rank_of_output(model: &Model, node: NodeId) -> Option<usize> {
    let declared = |v| model.value(v).shape().map(|s| s.len());
    let made = |v| {
        let (n, _) = model.producer(v)?;
        let n = model.node(n);
        (n.is("Flatten") || n.is("Gemm")).then_some(2)
    };
    model.output(node, 0).and_then(declared).or_else(|| {
        model
            .input(node, 0)
            .and_then(|x| declared(x).or_else(|| made(x)))
    })
}

/// The elements of a float tensor in FP64, exactly.
pub(super) fn to_f64(t: &Tensor) -> Result<Vec<f64>, String> {
    if t.dtype() == DataType::Double {
        let bytes = t.bytes().map_err(|e| e.to_string())?;
        let chunks = bytes.as_chunks::<8>().0.iter();
        return Ok(chunks.map(|&b| f64::from_le_bytes(b)).collect());
    }
    let values = t.to_f32().map_err(|e| e.to_string())?;
    Ok(values.into_iter().map(f64::from).collect())
}

/// A float tensor, each element rounded once from FP64.
pub(super) fn from_f64(dtype: DataType, dims: &[i64], data: &[f64]) -> Result<Tensor, String> {
    let mut bytes = Vec::with_capacity(data.len() * 8);
    for &x in data {
        push(dtype, x, &mut bytes)?;
    }
    Ok(Tensor::from_raw(dtype, dims, bytes))
}

/// `weight · a`, channel by channel, in the weight's own type.
pub(super) fn scale_weight(weight: &Tensor, layout: &Layout, a: &[f64]) -> Result<Tensor, String> {
    let values = to_f64(weight)?;
    let Layout {
        outer,
        channels,
        inner,
        ..
    } = *layout;
    let mut bytes = Vec::with_capacity(values.len() * 4);
    for (i, x) in values.into_iter().enumerate() {
        let row = i / inner;
        let channel = row / channels / outer * channels + row % channels;
        push(weight.dtype(), x * a[channel], &mut bytes)?;
    }
    Ok(Tensor::from_raw(weight.dtype(), weight.dims(), bytes))
}

fn push(dtype: DataType, x: f64, out: &mut Vec<u8>) -> Result<(), String> {
    let finite = match dtype {
        DataType::Float => {
            out.extend((x as f32).to_le_bytes());
            (x as f32).is_finite()
        }
        DataType::Double => {
            out.extend(x.to_le_bytes());
            x.is_finite()
        }
        DataType::Float16 => {
            out.extend(f16::from_f64(x).to_le_bytes());
            f16::from_f64(x).is_finite()
        }
        DataType::Bfloat16 => {
            out.extend(bf16::from_f64(x).to_le_bytes());
            bf16::from_f64(x).is_finite()
        }
        other => return Err(format!("a weight of type {}", other.short_name())),
    };
    if finite {
        Ok(())
    } else {
        Err(format!(
            "a folded value is not finite in {}",
            dtype.short_name()
        ))
    }
}

//! Windows over space: convolutions, pooling, resizing, rearrangement of depth and space.

use onnx_quant_ir::DataType;

use super::Op;
use super::fact::{Dim, Fact};
use crate::eval::shape as formula;

pub(super) fn rule(op: &Op<'_>, name: &str) -> Option<Vec<Fact>> {
    let dtype = op.dtype(0);
    Some(match name {
        "Conv" => vec![Fact::new(dtype, conv(op, op.shape(1)))],
        "ConvInteger" => vec![Fact::new(Some(DataType::Int32), conv(op, op.shape(1)))],
        "QLinearConv" => vec![Fact::new(op.dtype(7), conv(op, op.shape(3)))],
        "ConvTranspose" => vec![Fact::new(dtype, conv_transpose(op))],
        "AveragePool" | "LpPool" => vec![Fact::new(dtype, pool(op))],
        "MaxPool" => {
            let shape = pool(op);
            vec![
                Fact::new(dtype, shape.clone()),
                Fact::new(Some(DataType::Int64), shape),
            ]
        }
        "GlobalAveragePool" | "GlobalMaxPool" | "GlobalLpPool" => {
            vec![Fact::new(dtype, global_pool(op))]
        }
        "Resize" | "Upsample" => vec![Fact::new(dtype, resize(op, name))],
        "DepthToSpace" => vec![Fact::new(dtype, depth_to_space(op))],
        "SpaceToDepth" => vec![Fact::new(dtype, space_to_depth(op))],
        "GridSample" => vec![Fact::new(dtype, grid_sample(op))],
        _ => return None,
    })
}

/// The window attributes of a convolution or pooling, one entry a spatial axis.
struct Window {
    kernel: Vec<Option<i64>>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Vec<i64>,
    auto: Auto,
}

#[derive(Clone, Copy, PartialEq)]
enum Auto {
    No,
    Valid,
    Same,
}

impl Window {
    fn read(op: &Op<'_>, kernel: Vec<Option<i64>>) -> Option<Self> {
        let n = kernel.len();
        let list = |name: &str, len: usize, default: i64| -> Option<Vec<i64>> {
            match op.node.attr_ints(name) {
                Some([]) => Some(vec![default; len]),
                Some(v) => (v.len() == len).then(|| v.to_vec()),
                None => Some(vec![default; len]),
            }
        };
        let auto = match op.node.attr_s("auto_pad") {
            Some("SAME_UPPER" | "SAME_LOWER") => Auto::Same,
            Some("VALID") => Auto::Valid,
            _ => Auto::No,
        };
        Some(Self {
            kernel,
            strides: list("strides", n, 1)?,
            dilations: list("dilations", n, 1)?,
            pads: list("pads", 2 * n, 0)?,
            auto,
        })
    }

    /// Number of window positions along a spatial axis of `size` elements (ONNX `Conv`, `MaxPool`: output shape).
    fn positions(&self, i: usize, size: &Dim, ceil: bool) -> Dim {
        let (stride, n) = (self.strides[i], self.kernel.len());
        if stride <= 0 {
            return Dim::Unknown;
        }
        if self.auto == Auto::Same {
            return size.map(|s| Some((s.checked_add(stride - 1)?) / stride));
        }
        let Some(kernel) = self.kernel[i] else {
            return Dim::Unknown;
        };
        let (before, after) = match self.auto {
            Auto::No => (self.pads[i], self.pads[i + n]),
            _ => (0, 0),
        };
        size.map(|s| {
            let reach = kernel
                .checked_sub(1)?
                .checked_mul(self.dilations[i])?
                .checked_add(1)?;
            let room = s
                .checked_add(before)?
                .checked_add(after)?
                .checked_sub(reach)?;
            if room < 0 {
                return None;
            }
            let mut steps = room / stride + 1;
            if ceil && room % stride != 0 {
                steps += 1;
                // A window that would start in the padding behind the data does not count.
                if (steps - 1).checked_mul(stride)? >= s.checked_add(before)? {
                    steps -= 1;
                }
            }
            Some(steps)
        })
    }
}

/// The kernel's size from the attribute, else from the weights' shape.
fn kernel(op: &Op<'_>, weights: Option<&[Dim]>, n: usize) -> Vec<Option<i64>> {
    match op.node.attr_ints("kernel_shape") {
        Some(k) if k.len() == n => k.iter().map(|&k| Some(k)).collect(),
        _ => (0..n)
            .map(|i| weights.and_then(|w| w.get(i + 2)?.known()))
            .collect(),
    }
}

fn conv(op: &Op<'_>, weights: Option<&[Dim]>) -> Option<Vec<Dim>> {
    let x = op.shape(0)?;
    let n = x.len().checked_sub(2)?;
    let window = Window::read(op, kernel(op, weights, n))?;
    let maps = weights.and_then(|w| w.first().cloned());
    let mut out = vec![x[0].clone(), maps.unwrap_or(Dim::Unknown)];
    out.extend((0..n).map(|i| window.positions(i, &x[i + 2], false)));
    Some(out)
}

fn conv_transpose(op: &Op<'_>) -> Option<Vec<Dim>> {
    let x = op.shape(0)?;
    let n = x.len().checked_sub(2)?;
    let weights = op.shape(1);
    let window = Window::read(op, kernel(op, weights, n))?;
    let groups = op.node.attr_i("group").unwrap_or(1);
    let maps = weights.and_then(|w| w.get(1).cloned());
    let mut out = vec![
        x[0].clone(),
        maps.map_or(Dim::Unknown, |m| m.mul(&Dim::Known(groups))),
    ];
    let fixed = op.node.attr_ints("output_shape").filter(|s| s.len() == n);
    let extra = op.node.attr_ints("output_padding").filter(|s| s.len() == n);
    for i in 0..n {
        let stride = window.strides[i];
        out.push(match (fixed, window.auto) {
            (Some(s), _) => Dim::Known(s[i]),
            (None, Auto::Same) => x[i + 2].map(|s| s.checked_mul(stride)),
            (None, auto) => x[i + 2].map(|s| {
                let reach = window.kernel[i]?
                    .checked_sub(1)?
                    .checked_mul(window.dilations[i])?
                    .checked_add(1)?;
                let pads = match auto {
                    Auto::No => window.pads[i].checked_add(window.pads[i + n])?,
                    _ => 0,
                };
                let grown = s.checked_sub(1)?.checked_mul(stride)?.checked_add(reach)?;
                grown
                    .checked_add(extra.map_or(0, |e| e[i]))?
                    .checked_sub(pads)
            }),
        });
    }
    Some(out)
}

fn pool(op: &Op<'_>) -> Option<Vec<Dim>> {
    let x = op.shape(0)?;
    let n = x.len().checked_sub(2)?;
    let window = Window::read(op, kernel(op, None, n))?;
    let ceil = op.node.attr_i("ceil_mode") == Some(1);
    let mut out = x[..2].to_vec();
    out.extend((0..n).map(|i| window.positions(i, &x[i + 2], ceil)));
    Some(out)
}

fn global_pool(op: &Op<'_>) -> Option<Vec<Dim>> {
    let mut out = op.shape(0)?.to_vec();
    out.iter_mut().skip(2).for_each(|d| *d = Dim::Known(1));
    Some(out)
}

fn resize(op: &Op<'_>, name: &str) -> Option<Vec<Dim>> {
    let x = op.shape(0)?;
    let given = |slot: usize| {
        op.input(slot)
            .filter(|f| f.shape.as_deref() != Some(&[Dim::Known(0)]))
    };
    let slot = if name == "Resize" && op.opset >= 11 {
        2
    } else {
        1
    };
    let axes = match op.node.attr_ints("axes") {
        Some(list) => formula::axes(list, x.len())?,
        None => (0..x.len()).collect(),
    };
    let mut out = x.to_vec();
    let stretch = matches!(
        op.node.attr_s("keep_aspect_ratio_policy"),
        None | Some("stretch")
    );
    for (i, &a) in axes.iter().enumerate() {
        out[a] = if !stretch {
            Dim::Unknown
        } else if let Some(sizes) = given(3).filter(|_| slot == 2) {
            let sizes = sizes.elements();
            sizes
                .and_then(|s| s.get(i).cloned())
                .unwrap_or(Dim::Unknown)
        } else {
            let scales = match given(slot) {
                Some(f) => f.value.as_ref().and_then(|t| t.to_f32().ok()),
                None => op.node.attr_floats("scales").map(<[f32]>::to_vec),
            };
            match scales.and_then(|s| s.get(i).copied()) {
                Some(1.0) => x[a].clone(),
                Some(s) => x[a].map(|d| Some((d as f32 * s).floor() as i64)),
                None => Dim::Unknown,
            }
        };
    }
    Some(out)
}

fn depth_to_space(op: &Op<'_>) -> Option<Vec<Dim>> {
    let [n, c, h, w] = op.shape(0)? else {
        return None;
    };
    let b = op
        .node
        .attr_i("blocksize")
        .filter(|&b| b > 0 && b < 1 << 20)?;
    let grow = |d: &Dim| d.mul(&Dim::Known(b));
    Some(vec![
        n.clone(),
        c.map(|c| c.checked_div(b * b)),
        grow(h),
        grow(w),
    ])
}

fn space_to_depth(op: &Op<'_>) -> Option<Vec<Dim>> {
    let [n, c, h, w] = op.shape(0)? else {
        return None;
    };
    let b = op
        .node
        .attr_i("blocksize")
        .filter(|&b| b > 0 && b < 1 << 20)?;
    let shrink = |d: &Dim| d.map(|d| d.checked_div(b));
    Some(vec![
        n.clone(),
        c.mul(&Dim::Known(b * b)),
        shrink(h),
        shrink(w),
    ])
}

fn grid_sample(op: &Op<'_>) -> Option<Vec<Dim>> {
    let (x, grid) = (op.shape(0)?, op.shape(1)?);
    let mut out = x.get(..2)?.to_vec();
    out.extend_from_slice(grid.get(1..grid.len().checked_sub(1)?)?);
    Some(out)
}

//! Moves the part of a bias that a Relu lets through in any case into the bias behind.
//!
//! # What it does
//! High-bias absorption. Where a channel before a Relu never falls below `c > 0`, `Relu(y) = Relu(y − c) + c`: `c` is taken
//! from the bias before and `W c` added to that behind. Equalization makes biases large, and with them the range of the
//! activation; without what is absorbed the range is small again. `c` is the least value that was seen on calibration
//! data ([`LeastValues`]), or the mean less three standard deviations where BatchNormalization states them.
//!
//! # Before → After
//! `Conv(W₂, Relu(Conv(W₁, x) + b₁)) + b₂` becomes `Conv(W₂, Relu(Conv(W₁, x) + b₁ − c)) + b₂ + W₂ c`.
//!
//! # When it does not fire
//! Where nothing is known of the channels or none stays above 0; where the value before the Relu has another reader; where a
//! reader behind is not linear in a constant weight, pads (the padding would have to be `−c`), or has no bias to add to.
//!
//! # Invariants kept
//! Signature and names. The net computes the same, up to rounding, wherever no channel falls below its `c`.
//!
//! # Opset notes
//! None.
//!
//! # References
//! Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, 2019, section 4.1.3.

use std::collections::BTreeMap;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::optimize::equalize::absorbed;

use crate::layer::{Matrix, Unit};
use crate::normals::ChannelNormals;
use crate::{correct_bias, ops};

/// The least value of each channel, by the key of the value before the Relu.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LeastValues(pub BTreeMap<String, Vec<f64>>);

/// A Relu with linear operators around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// The linear operator before.
    pub maker: NodeId,
    /// Its result with the bias, which the Relu reads.
    pub value: ValueId,
    /// The linear operators behind.
    pub readers: Vec<NodeId>,
    /// Channels.
    pub channels: usize,
    /// The axis of the channels; `None` for the last.
    pub axis: Option<usize>,
}

/// See the head of this file.
pub struct AbsorbBiases;

static INFO: PassInfo = PassInfo {
    name: "absorb_biases",
    summary: "Moves the part of a bias that a Relu lets through in any case into the bias behind",
    source: include_str!("absorb_biases.rs"),
    exact: false,
};

impl Pass for AbsorbBiases {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let least = cx.take::<LeastValues>();
        let mut done = 0;
        for node in model.all_nodes() {
            let site = match site(model, node) {
                None => continue,
                Some(Ok(site)) => site,
                Some(Err(why)) => {
                    cx.skip(model, node, why);
                    continue;
                }
            };
            let key = model.value_key(site.value);
            let normals = cx.get::<ChannelNormals>().and_then(|n| n.0.get(&key));
            let amounts: Vec<f64> = match (least.as_ref().and_then(|l| l.0.get(&key)), normals) {
                (Some(least), _) => least.iter().map(|x| x.max(0.0)).collect(),
                (None, Some(normals)) => {
                    let parts = normals.iter().map(|n| (n.mean, n.deviation));
                    let (means, deviations): (Vec<f64>, Vec<f64>) = parts.unzip();
                    absorbed(&means, &deviations)
                }
                (None, None) => {
                    cx.skip(model, node, "nothing is known of its channels");
                    continue;
                }
            };
            if amounts.iter().all(|&c| c == 0.0) {
                continue;
            }
            match absorb(model, &site, &amounts) {
                Ok(()) => done += 1,
                Err(why) => {
                    cx.skip(model, node, why);
                    continue;
                }
            }
            if let Some(normals) = cx
                .get_mut::<ChannelNormals>()
                .and_then(|n| n.0.get_mut(&key))
            {
                normals
                    .iter_mut()
                    .zip(&amounts)
                    .for_each(|(n, c)| n.mean -= c);
            }
        }
        if done > 0 {
            cx.note(format!("the biases before {done} Relu were absorbed"));
        }
        Ok((done > 0).into())
    }
}

/// The operators around a Relu; `None` for other operators and where no linear operator is before it.
///
/// # Errors
/// Why its bias cannot be absorbed.
pub fn site(model: &Model, relu: NodeId) -> Option<Result<Site, String>> {
    if ops::clamp_bounds(model, relu) != Some((0.0, f32::INFINITY)) {
        return None;
    }
    let value = model.input(relu, 0)?;
    let (before, _) = model.producer(value)?;
    // The linear operator itself, or the Add that holds its bias.
    let makers = std::iter::once(before)
        .chain((0..2).filter_map(|slot| Some(model.producer(model.input(before, slot)?)?.0)));
    let maker = makers
        .filter(|&n| Matrix::of(model, n).is_ok())
        .find(|&n| Unit::of(model, n).is_some_and(|u| ends_before(model, &u, value)))?;
    Some(around(model, relu, maker, value))
}

/// Whether the unit, as far as its bias, gives this value.
fn ends_before(model: &Model, unit: &Unit, value: ValueId) -> bool {
    let owner = unit.bias.map_or(unit.node, |(owner, _)| owner);
    unit.residual.is_none() && model.output(owner, 0) == Some(value)
}

fn around(model: &Model, relu: NodeId, maker: NodeId, value: ValueId) -> Result<Site, String> {
    let matrix = Matrix::of(model, maker)?;
    let result = model.output(relu, 0).ok_or("its output is not taken")?;
    let inner = |v: ValueId| {
        let own = model.value(v);
        !own.is_output()
            && !model.graph(own.graph).outputs.contains(&v)
            && model.captures(v).is_empty()
    };
    if !inner(value) || model.consumers(value).len() != 1 {
        return Err("the value before it has another reader".to_owned());
    }
    if !inner(result) {
        return Err("its result is an output of the graph or read inside a subgraph".to_owned());
    }
    if let Some(why) = correct_bias::obstacle(model, maker) {
        return Err(format!("`{}` before it {why}", model.node_label(maker)));
    }
    let conv = model.node(maker).op_type().starts_with("Conv");
    let mut readers = Vec::new();
    for (node, slot) in model.consumers(result) {
        let label = model.node_label(node);
        let linear = match ops::linear(model, node) {
            Some(Ok(linear)) if linear.activation == slot => linear,
            _ => {
                return Err(format!(
                    "`{label}` behind it is not linear in a constant weight"
                ));
            }
        };
        let n = model.node(node);
        let same_axis = match n.op_type() {
            "Conv" => conv && !pads(model, node),
            "Gemm" | "MatMul" => !conv && linear.weight == 1,
            _ => false,
        };
        if !same_axis {
            return Err(format!(
                "`{label}` behind it pads, or sums over another axis"
            ));
        }
        if let Some(why) = correct_bias::obstacle(model, node) {
            return Err(format!("`{label}` behind it {why}"));
        }
        let own = Matrix::of(model, node)?;
        if own.inputs(own.taps(model, node)) != matrix.rows {
            return Err(format!("`{label}` behind it reads other channels"));
        }
        readers.push(node);
    }
    if readers.is_empty() {
        return Err("nothing reads it".to_owned());
    }
    let channels = matrix.rows;
    let axis = conv.then_some(1);
    Ok(Site {
        maker,
        value,
        readers,
        channels,
        axis,
    })
}

/// Whether a convolution reads values beside its input.
fn pads(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    let explicit = n
        .attr_ints("pads")
        .is_some_and(|p| p.iter().any(|&x| x != 0));
    let point = Matrix::of(model, node).is_ok_and(|m| m.taps(model, node) == 1);
    match n.attr_s("auto_pad").unwrap_or("NOTSET") {
        "NOTSET" => explicit,
        "VALID" => false,
        _ => !point,
    }
}

fn absorb(model: &mut Model, site: &Site, amounts: &[f64]) -> Result<(), String> {
    if amounts.len() != site.channels || amounts.iter().any(|c| !c.is_finite()) {
        return Err("what is known of its channels does not fit them".to_owned());
    }
    let mut changes = Vec::new();
    for &reader in &site.readers {
        let matrix = Matrix::of(model, reader)?;
        let weight = model
            .input_constant(reader, 1)
            .ok_or("its weight is not a constant")?;
        let weights = matrix.gather(&weight.to_f32().map_err(|e| e.to_string())?);
        let moved = matrix.constant_response(&weights, amounts);
        let moved = moved.ok_or("its weight reads other channels")?;
        changes.push((reader, moved.iter().map(|&x| x as f32).collect::<Vec<_>>()));
    }
    changes.push((site.maker, amounts.iter().map(|&c| -c as f32).collect()));
    for (node, delta) in changes {
        correct_bias::apply(model, node, &delta)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::normals::Normal;

    const NET: &str = "main (float[1,1,2,2] X) => (float[1,1,2,2] Y)
<
  float[2,1,1,1] W1 = {1, 2},
  float[2] B1 = {10, -1},
  float[1,2,1,1] W2 = {0.5, 4},
  float[1] B2 = {1}
>
{
  [a] A = Conv (X, W1, B1)
  [b] R = Relu (A)
  [c] Y = Conv (R, W2, B2)
}";

    fn biases(model: &Model) -> (Vec<f32>, Vec<f32>) {
        let read = |name: &str| {
            let value = model.find_value(name).unwrap();
            model.constant(value).unwrap().to_f32().unwrap()
        };
        (read("B1"), read("B2"))
    }

    #[test]
    fn what_never_falls_below_0_is_absorbed() {
        let mut model = onnx_quant_ir::text::parse(NET).unwrap();
        let mut cx = PassContext::default();
        // Without knowledge it says so.
        assert_eq!(AbsorbBiases.run(&mut model, &mut cx).unwrap(), Changed::No);
        assert!(
            cx.skips[0].reason.contains("nothing is known"),
            "{:?}",
            cx.skips
        );
        let least = BTreeMap::from([("A".to_owned(), vec![8.0, -3.0])]);
        cx.insert(LeastValues(least));
        assert_eq!(AbsorbBiases.run(&mut model, &mut cx).unwrap(), Changed::Yes);
        assert_eq!(biases(&model), (vec![2.0, -1.0], vec![5.0]));
        let mut model = onnx_quant_ir::text::parse(NET).unwrap();
        let normal = |mean, deviation| Normal { mean, deviation };
        let known = vec![normal(10.0, 2.0), normal(-1.0, 1.0)];
        cx.insert(ChannelNormals(BTreeMap::from([("A".to_owned(), known)])));
        assert_eq!(AbsorbBiases.run(&mut model, &mut cx).unwrap(), Changed::Yes);
        assert_eq!(biases(&model), (vec![6.0, -1.0], vec![3.0]));
        // What is absorbed is not absorbed again.
        assert_eq!(AbsorbBiases.run(&mut model, &mut cx).unwrap(), Changed::No);
    }

    #[test]
    fn padding_stands_in_the_way() {
        let padded = NET
            .replace(
                "float[1,2,1,1] W2 = {0.5, 4}",
                "float[1,2,3,3] W2 = random(1)",
            )
            .replace("Conv (R, W2, B2)", "Conv<pads = [1, 1, 1, 1]> (R, W2, B2)");
        let Ok(mut model) = onnx_quant_ir::text::parse(&padded) else {
            panic!("{padded}");
        };
        let mut cx = PassContext::default();
        let least = BTreeMap::from([("A".to_owned(), vec![8.0, 0.0])]);
        cx.insert(LeastValues(least));
        assert_eq!(AbsorbBiases.run(&mut model, &mut cx).unwrap(), Changed::No);
        assert!(cx.skips[0].reason.contains("pads"), "{:?}", cx.skips);
    }
}

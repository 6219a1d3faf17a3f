//! Mean and standard deviation of channels, as BatchNormalization's parameters say: behind it a channel has mean `B` and
//! standard deviation `|scale|`, if the model sees what it was trained on. No data is needed.
//!
//! Source: Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, 2019, section 4.2.1.

use std::collections::BTreeMap;

use onnx_quant_ir::{Model, ValueId};
use onnx_quant_numerics::optimize::equalize::clamped_normal;

use crate::ops;

/// Mean and standard deviation of a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normal {
    /// The mean.
    pub mean: f64,
    /// The standard deviation, not below 0.
    pub deviation: f64,
}

/// What is known of the channels (axis 1) of values, by the key of the value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChannelNormals(pub BTreeMap<String, Vec<Normal>>);

/// The most operators that are followed back from a value.
const DEPTH: usize = 64;

impl ChannelNormals {
    /// The channels of a value: known, or followed through activations, additions and poolings.
    ///
    /// # Errors
    /// The operator behind which nothing is known.
    pub fn of(&self, model: &Model, value: ValueId) -> Result<Vec<Normal>, String> {
        self.followed(model, value, DEPTH)
    }

    fn followed(&self, model: &Model, value: ValueId, depth: usize) -> Result<Vec<Normal>, String> {
        if let Some(known) = self.0.get(&model.value_key(value)) {
            return Ok(known.clone());
        }
        let name = &model.value(value).name;
        let unknown =
            |why: &str| format!("no BatchNormalization says how `{name}` is distributed: {why}");
        let (node, _) = model
            .producer(value)
            .ok_or_else(|| unknown("it is an input of the graph"))?;
        let n = model.node(node);
        if depth == 0 || !n.domain().is_empty() {
            return Err(unknown(&format!("it comes from {}", n.op_type())));
        }
        let input = |slot: usize| {
            let value = model
                .input(node, slot)
                .ok_or_else(|| unknown("an input is missing"))?;
            self.followed(model, value, depth - 1)
        };
        if let Some((low, high)) = ops::clamp_bounds(model, node) {
            let (low, high) = (f64::from(low), f64::from(high));
            let clamp = |x: Normal| {
                let (mean, deviation) = clamped_normal(x.mean, x.deviation, low, high);
                Normal { mean, deviation }
            };
            return Ok(input(0)?.into_iter().map(clamp).collect());
        }
        match n.op_type() {
            "Add" => {
                let (a, b) = (input(0)?, input(1)?);
                if a.len() != b.len() {
                    return Err(unknown("an Add stretches an operand"));
                }
                let sum = |(x, y): (&Normal, &Normal)| Normal {
                    mean: x.mean + y.mean,
                    deviation: x.deviation.hypot(y.deviation),
                };
                Ok(a.iter().zip(&b).map(sum).collect())
            }
            "Identity" | "Dropout" | "AveragePool" | "GlobalAveragePool" => input(0),
            op => Err(unknown(&format!("it comes from {op}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn statistics_are_followed_through_activations_and_sums() {
        let model = onnx_quant_ir::text::parse(
            "main (float[1,1,4,4] X) => (float[1,1,4,4] S, float[1,1,4,4] T)
<
  float[1,1,1,1] W = {1}
>
{
  [a] A = Conv (X, W)
  [b] R = Relu (A)
  [c] C = Conv (R, W)
  [d] S = Add (R, C)
  [e] T = Sigmoid (S)
}",
        )
        .unwrap();
        let value = |name: &str| model.find_value(name).unwrap();
        let normal = |mean, deviation| Normal { mean, deviation };
        let known = ChannelNormals(BTreeMap::from([
            (model.value_key(value("A")), vec![normal(0.0, 1.0)]),
            (model.value_key(value("C")), vec![normal(3.0, 0.5)]),
        ]));
        let relu = known.of(&model, value("R")).unwrap()[0];
        assert!((relu.mean - 0.398_942).abs() < 1e-5 && (relu.deviation - 0.583_819).abs() < 1e-5);
        let sum = known.of(&model, value("S")).unwrap()[0];
        assert!((sum.mean - 3.398_942).abs() < 1e-5);
        assert!((sum.deviation - relu.deviation.hypot(0.5)).abs() < 1e-9);
        assert!(
            known
                .of(&model, value("T"))
                .unwrap_err()
                .contains("Sigmoid")
        );
        assert!(
            known
                .of(&model, value("X"))
                .unwrap_err()
                .contains("input of the graph")
        );
    }
}

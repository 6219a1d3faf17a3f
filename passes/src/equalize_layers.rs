//! Moves the size of channels from one weight to the next, so that all channels of a tensor are of like size.
//!
//! # What it does
//! Cross-layer equalization. A channel that a Conv, ConvTranspose, Gemm or MatMul makes may be divided by `s` if all that
//! reads it multiplies its weight for that channel by `s`: Relu, LeakyRelu, PRelu, poolings and whatever moves values lie
//! between without harm. `s` is chosen so that the channel is as large in the weights before as in those behind. What
//! is added together (residual connections) shares its factors; a depthwise weight gives and takes. The net computes the
//! same, and one scale for a tensor serves all its channels.
//!
//! # Before → After
//! `Conv(W₂, Relu(Conv(W₁, x) + b))` becomes `Conv(W₂·S, Relu(Conv(S⁻¹·W₁, x) + S⁻¹·b))`.
//!
//! # When it does not fire
//! Where a value of the group is an input or output of the graph, is read by an operator that does not let factors
//! through; where channels cannot be followed (shapes that are not known); where the channels are of like size already. A
//! Clip with a bound other than 0 (Relu6) gets bounds for each channel, as Max and Min (Relu for a lower bound of 0); since
//! that costs an operator, only where the sizes are apart by a factor of 4.
//!
//! # Invariants kept
//! Signature and names. The net computes the same up to the rounding of scaled weights. Weights and biases with other
//! readers stay, and these uses get copies. On its own result the pass finds nothing more to do.
//!
//! # Opset notes
//! Constants are copied; nothing depends on the opset.
//!
//! # References
//! Nagel et al., *Data-Free Quantization Through Weight Equalization and Bias Correction*, 2019, section 4.1. Meller et
//! al., *Same, Same But Different*, 2019.

use onnx_quant_ir::Model;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};

pub(crate) mod channels;
mod sides;
mod solve;
#[cfg(test)]
mod tests;

/// See the head of this file.
pub struct EqualizeLayers;

static INFO: PassInfo = PassInfo {
    name: "equalize_layers",
    summary: "Moves the size of channels from one weight to the next, so that all channels are of like size",
    source: include_str!("equalize_layers.rs"),
    exact: false,
};

impl Pass for EqualizeLayers {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let groups = channels::groups(model);
        for blocked in &groups.blocked {
            cx.skip_subject(blocked.subject.clone(), blocked.reason.clone());
        }
        let done = solve::equalize(model, &groups.free, cx.get_mut());
        if done > 0 {
            cx.note(format!("{done} groups of channels were equalized"));
        }
        Ok((done > 0).into())
    }
}

//! The network: what the demo's compiler gets to see of a modern convolutional net, in about 65,000 parameters.
//!
//! Stem, two stages of a depthwise-separable convolution that halves the size and a residual block that keeps it, global
//! average pool, a dense hidden layer and a dense classifier.

use crate::conv::Conv;
use crate::layers::{Activation, BatchNorm, Gemm, Layer, Op};
use crate::render::CLASSES;
use crate::rng::Rng;

/// Channels after the stem and after each stage.
const WIDTHS: [usize; 3] = [16, 32, 96];
/// Width of the dense hidden layer.
const HIDDEN: usize = 384;
/// The upper limit of the activation inside a block.
const CAP: f32 = 6.0;

/// The network with random weights.
pub fn network(rng: &mut Rng) -> Vec<Layer> {
    let mut layers = Vec::new();
    let [stem, ..] = WIDTHS;
    convolution(&mut layers, "stem", Conv::new([1, stem], 3, 1, 1, rng));
    layers.push(relu("stem.relu", None));
    for (stage, widths) in WIDTHS.windows(2).enumerate() {
        let (inputs, outputs) = (widths[0], widths[1]);
        let down = format!("stage{}.down", stage + 1);
        separable(&mut layers, &down, [inputs, outputs], 2, rng);
        layers.push(relu(format!("{down}.relu"), None));
        let block = format!("stage{}.block", stage + 1);
        let mut inner = Vec::new();
        separable(&mut inner, &block, [outputs, outputs], 1, rng);
        layers.push(layer(format!("{block}.add"), Op::Residual(inner)));
        layers.push(relu(format!("{block}.relu"), None));
    }
    let last = WIDTHS[WIDTHS.len() - 1];
    layers.push(layer("head.pool", Op::GlobalAveragePool([0; 4])));
    layers.push(layer("head.flatten", Op::Flatten));
    layers.push(layer("head.hidden", Op::Gemm(Gemm::new(last, HIDDEN, rng))));
    layers.push(relu("head.hidden.relu", None));
    let classifier = Gemm::new(HIDDEN, CLASSES, rng);
    layers.push(layer("head.classifier", Op::Gemm(classifier)));
    layers
}

fn layer(name: impl Into<String>, op: Op) -> Layer {
    let name = name.into();
    Layer { name, op }
}

fn relu(name: impl Into<String>, cap: Option<f32>) -> Layer {
    layer(name, Op::Activation(Activation::new(cap)))
}

/// A convolution and its normalization.
fn convolution(layers: &mut Vec<Layer>, name: &str, conv: Conv) {
    let channels = conv.weight.dims[0];
    layers.push(layer(format!("{name}.conv"), Op::Conv(conv)));
    let norm = BatchNorm::new(channels);
    layers.push(layer(format!("{name}.norm"), Op::BatchNorm(norm)));
}

/// A 3×3 convolution of each channel by itself, then a 1×1 convolution across channels (Howard et al. 2017), the first
/// with a limited activation, the second with none.
fn separable(
    layers: &mut Vec<Layer>,
    name: &str,
    channels: [usize; 2],
    stride: usize,
    rng: &mut Rng,
) {
    let [inputs, _] = channels;
    let depthwise = Conv::new([inputs, inputs], 3, stride, inputs, rng);
    convolution(layers, &format!("{name}.depthwise"), depthwise);
    layers.push(relu(format!("{name}.depthwise.clip"), Some(CAP)));
    let pointwise = Conv::new(channels, 1, 1, 1, rng);
    convolution(layers, &format!("{name}.pointwise"), pointwise);
}

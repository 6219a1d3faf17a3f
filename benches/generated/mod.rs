//! A net of dense layers with weights from a linear congruential sequence, large enough for its bytes to count.

use std::fs::File;
use std::path::Path;

use onnx_quant::ir::save::{self, ExternalData};
use onnx_quant::ir::{Model, NodeSpec, Tensor, text};
use onnx_quant::run::{Output, write_npz};

use super::Case;

/// Width of each layer: 4 MiB of weights.
const WIDTH: usize = 1024;
const LAYERS: usize = 25;
const SAMPLES: usize = 512;

/// Writes the model and samples for it.
pub(super) fn case(folder: &Path, name: &'static str) -> Case {
    let case = Case {
        name,
        model: folder.join("generated.onnx"),
        data: folder.join("generated.npz"),
    };
    save::save(&model(), &case.model, ExternalData::Auto).expect("the model is written");
    let samples = Output {
        name: "x".to_owned(),
        descr: "<f4",
        dims: vec![SAMPLES, WIDTH],
        bytes: uniform(SAMPLES * WIDTH, 7)
            .flat_map(f32::to_le_bytes)
            .collect(),
    };
    let mut file = File::create(&case.data).expect("the data is written");
    write_npz(&[samples], &mut file).expect("the data is written");
    case
}

fn model() -> Model {
    let frame = format!(
        "<ir_version: 10, opset_import: [\"\" : 21]>\nmain (float[N,{WIDTH}] x) => (float[N,{WIDTH}] y)\n{{\n  y = Identity (x)\n}}\n"
    );
    let mut model = text::parse(&frame).expect("the frame can be read");
    let identity = model.main().nodes[0];
    let mut last = model.main().inputs[0];
    // Keeps the variance through MatMul and Relu (He et al., 2015).
    let gain = (6.0 / WIDTH as f32).sqrt();
    let dims = [WIDTH as i64; 2];
    for layer in 0..LAYERS {
        let weights: Vec<f32> = uniform(WIDTH * WIDTH, layer as u64)
            .map(|x| x * gain)
            .collect();
        let tensor = Tensor::from_f32(&dims, &weights);
        let w = model.add_initializer(Model::MAIN, &format!("w{layer}"), tensor);
        let product = NodeSpec::new("MatMul");
        let product = model.add_op(Model::MAIN, product, &[last, w], &format!("p{layer}"));
        let relu = NodeSpec::new("Relu");
        last = model.add_op(Model::MAIN, relu, &[product], &format!("r{layer}"));
    }
    model.set_input(identity, 0, Some(last));
    model.sort().expect("the net has no cycle");
    model
}

/// Numbers from −1 to 1.
fn uniform(count: usize, seed: u64) -> impl Iterator<Item = f32> {
    let step = |state: &u64| {
        Some(
            state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407),
        )
    };
    std::iter::successors(Some(seed), step)
        .skip(4)
        .take(count)
        .map(|state| (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
}

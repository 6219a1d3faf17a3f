//! A program that carries a quantized model and runs it with tract.

use onnx_quant::engine::TractEngine;
use onnx_quant::ir::engine::{Engine, Request};
use onnx_quant::ir::{DataType, Tensor, load};

mod net {
    onnx_quant::include_model!("net");
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [input] = &net::INPUTS;
    println!("model: {} bytes", net::BYTES.len());
    println!("input: {} {} {:?}", input.name, input.dtype, input.shape);
    for output in &net::OUTPUTS {
        println!("output: {} {} {:?}", output.name, output.dtype, output.shape);
    }

    // One grey image; a free axis is the batch.
    let shape: Vec<usize> = input.shape.iter().map(|d| d.unwrap_or(1)).collect();
    let dims: Vec<i64> = shape.iter().map(|&d| d as i64).collect();
    let image = Tensor::from_f32(&dims, &vec![0.5; shape.iter().product()]);

    let model = load::load_static(net::BYTES)?;
    let request = Request {
        feed: vec![(input.name.to_owned(), DataType::Float, shape)],
        ..Request::default()
    };
    let scores = TractEngine.prepare(&model, &request)?.run(&[image], None)?;
    let scores = scores[0].to_f32()?;
    let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
    println!("class {} of {}", best.unwrap_or(0), scores.len());
    Ok(())
}

//! Each layer's backward pass against the slopes that its forward pass really has.

use crate::conv::Conv;
use crate::layers::{Activation, BatchNorm, Gemm, Layer, Mode, Op, backward, forward, params};
use crate::rng::Rng;
use crate::tensor::Tensor;

/// Half the distance between the two points that a slope is taken over.
const STEP: f32 = 1.0 / 64.0;
/// More samples than one chunk of the convolution's weight gradient; height and width differ.
const SHAPE: [usize; 4] = [9, 4, 5, 6];

fn random(shape: [usize; 4], rng: &mut Rng) -> Tensor {
    let mut tensor = Tensor::zeros(shape);
    // Odd multiples of 1/16: no step crosses a whole number, where an activation may have a kink.
    tensor
        .data
        .fill_with(|| (rng.uniform(-16.0, 16.0).floor() * 2.0 + 1.0) / 16.0);
    tensor
}

/// A loss that is linear in the output, with fixed random factors.
fn loss(layers: &mut [Layer], x: &Tensor, factors: &Tensor) -> f64 {
    let y = forward(layers, x.clone(), Mode::Training);
    let terms = y.data.iter().zip(&factors.data);
    terms.map(|(y, f)| f64::from(*y) * f64::from(*f)).sum()
}

/// Moves one number both ways and returns the slope of the loss.
fn slope(mut loss_at: impl FnMut(f32) -> f64) -> f32 {
    ((loss_at(STEP) - loss_at(-STEP)) / (2.0 * f64::from(STEP))) as f32
}

#[track_caller]
fn assert_close(what: &str, analytic: f32, numeric: f32) {
    let allowed = 5e-3 * (1.0 + numeric.abs());
    assert!(
        (analytic - numeric).abs() < allowed,
        "{what}: backward gives {analytic}, the slope is {numeric}"
    );
}

/// Compares the gradients of the input and of every parameter.
#[track_caller]
fn check(ops: Vec<Op>, shape: [usize; 4]) {
    let mut rng = Rng::new(7, 0);
    let named = ops.into_iter().map(|op| Layer {
        name: String::new(),
        op,
    });
    let mut layers: Vec<Layer> = named.collect();
    let x = random(shape, &mut rng);
    let y = forward(&mut layers, x.clone(), Mode::Training);
    let factors = random(y.shape, &mut rng);
    let dx = backward(&mut layers, factors.clone());
    assert_eq!(dx.shape, x.shape);

    for i in (0..x.data.len()).step_by(3) {
        let numeric = slope(|step| {
            let mut moved = x.clone();
            moved.data[i] += step;
            loss(&mut layers, &moved, &factors)
        });
        assert_close(&format!("input {i}"), dx.data[i], numeric);
    }
    let grads: Vec<Vec<f32>> = params(&mut layers)
        .iter()
        .map(|param| param.grad.clone())
        .collect();
    for (p, grad) in grads.iter().enumerate() {
        for (i, analytic) in grad.iter().enumerate() {
            let kept = params(&mut layers)[p].value[i];
            let numeric = slope(|step| {
                params(&mut layers)[p].value[i] = kept + step;
                loss(&mut layers, &x, &factors)
            });
            params(&mut layers)[p].value[i] = kept;
            assert_close(&format!("parameter {p}, element {i}"), *analytic, numeric);
        }
    }
}

fn conv(channels: [usize; 2], kernel: usize, stride: usize, groups: usize) -> Op {
    let mut rng = Rng::new(8, 0);
    Op::Conv(Conv::new(channels, kernel, stride, groups, &mut rng))
}

/// A normalization whose parameters are not those of the identity.
fn norm(channels: usize) -> Op {
    let mut norm = BatchNorm::new(channels);
    for c in 0..channels {
        norm.scale.value[c] = 0.5 + 0.25 * c as f32;
        norm.bias.value[c] = 0.25 * c as f32 - 0.5;
    }
    Op::BatchNorm(norm)
}

#[test]
fn dense_convolution() {
    check(vec![conv([4, 6], 3, 1, 1)], SHAPE);
    check(vec![conv([4, 6], 3, 2, 1)], SHAPE);
}

#[test]
fn depthwise_and_grouped_convolution() {
    check(vec![conv([4, 4], 3, 1, 4)], SHAPE);
    check(vec![conv([4, 4], 3, 2, 4)], SHAPE);
    check(vec![conv([4, 6], 3, 1, 2)], SHAPE);
}

#[test]
fn pointwise_convolution() {
    check(vec![conv([4, 6], 1, 1, 1)], SHAPE);
    check(vec![conv([4, 6], 1, 2, 1)], SHAPE);
}

#[test]
fn batch_normalization() {
    check(vec![norm(4)], SHAPE);
}

#[test]
fn activations() {
    check(vec![Op::Activation(Activation::new(None))], SHAPE);
    check(vec![Op::Activation(Activation::new(Some(1.0)))], SHAPE);
}

#[test]
fn pooling_flattening_and_dense_layers() {
    let gemm = Gemm::new(4, 7, &mut Rng::new(8, 0));
    let pool = Op::GlobalAveragePool([0; 4]);
    check(vec![pool, Op::Flatten, Op::Gemm(gemm)], SHAPE);
    let gemm = Gemm::new(4, 7, &mut Rng::new(8, 0));
    check(vec![Op::Gemm(gemm)], [5, 4, 1, 1]);
}

#[test]
fn residual_block() {
    let inner = [conv([4, 4], 3, 1, 4), norm(4)].map(|op| Layer {
        name: String::new(),
        op,
    });
    check(vec![Op::Residual(inner.into()), norm(4)], SHAPE);
}

#[test]
fn convolution_agrees_with_its_definition() {
    let mut rng = Rng::new(9, 0);
    let x = random(SHAPE, &mut rng);
    let [samples, channels, h, w] = SHAPE;
    for (stride, groups) in [(1, 1), (2, 1), (1, 2), (2, 4)] {
        let mut conv = Conv::new([channels, 8], 3, stride, groups, &mut rng);
        let y = conv.forward(x.clone());
        let [_, _, out_h, out_w] = y.shape;
        assert_eq!([out_h, out_w], [h.div_ceil(stride), w.div_ceil(stride)]);
        let (inputs, outputs) = (channels / groups, 8 / groups);
        for (i, got) in y.data.iter().enumerate() {
            let (ox, oy) = (i % out_w, i / out_w % out_h);
            let (o, n) = (i / out_w / out_h % 8, i / out_w / out_h / 8);
            let mut want = 0.0f64;
            for (tap, weight) in conv.weight.value[o * inputs * 9..][..inputs * 9]
                .iter()
                .enumerate()
            {
                let c = o / outputs * inputs + tap / 9;
                let (row, column) = (oy * stride + tap / 3 % 3, ox * stride + tap % 3);
                if (1..=h).contains(&row) && (1..=w).contains(&column) {
                    let at = ((n * channels + c) * h + row - 1) * w + column - 1;
                    want += f64::from(x.data[at]) * f64::from(*weight);
                }
            }
            assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
        }
        assert_eq!(samples, y.shape[0]);
    }
}

#[test]
fn gathered_statistics_are_those_of_the_batches() {
    let x = random(SHAPE, &mut Rng::new(10, 0));
    let mut op = norm(4);
    let trained = (0..200)
        .map(|_| op.forward(x.clone(), Mode::Training))
        .last()
        .expect("200 passes");
    let inferred = op.forward(x, Mode::Inference);
    for (a, b) in trained.data.iter().zip(&inferred.data) {
        assert!((a - b).abs() < 0.01, "{a} {b}");
    }
}

//! Speed of the inner loops, in values per second: `cargo bench -p onnx-quant-numerics`.

use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use onnx_quant_numerics::affine::{QOptions, QParams, choose_qparams};
use onnx_quant_numerics::channel::{
    Layout, channel_ranges, fake_quant_per_channel, quantize_per_channel,
};
use onnx_quant_numerics::entropy::{Coder, encode};
use onnx_quant_numerics::format::{Base, Scheme};
use onnx_quant_numerics::histogram::Histogram;
use onnx_quant_numerics::kmeans;
use onnx_quant_numerics::knapsack::{Choice, least_loss};
use onnx_quant_numerics::metrics::Compare;
use onnx_quant_numerics::minmax::min_max;
use onnx_quant_numerics::observer::{Calibrator, range};
use onnx_quant_numerics::optimize::adaround::{self, Activation};
use onnx_quant_numerics::optimize::block::ops::{Binary, Op, Unary};
use onnx_quant_numerics::optimize::block::{Block, Data, Layer, Learning, Spread, Step, Value};
use onnx_quant_numerics::optimize::gptq::{Options, gptq};
use onnx_quant_numerics::optimize::grid::Grid;
use onnx_quant_numerics::optimize::matrix::Gram;
use onnx_quant_numerics::optimize::patches::Geometry;
use onnx_quant_numerics::quantize::{fake_quant, quantize_i8};
use onnx_quant_numerics::stats::{Samples, TensorStats};

fn main() {
    divan::main();
}

/// Sums of four uniform values, near to normal; negative ones become zero where `relu`.
fn values(len: usize, relu: bool) -> Vec<f32> {
    let mut state = 1u32;
    let mut uniform = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut value = || uniform() + uniform() + uniform() + uniform();
    (0..len)
        .map(|_| if relu { value().max(0.0) } else { value() })
        .collect()
}

const WEIGHTS: [Layout; 3] = [
    Layout {
        outer: 1,
        channels: 1024,
        inner: 1024,
    },
    Layout {
        outer: 1024,
        channels: 1024,
        inner: 1,
    },
    Layout {
        outer: 1,
        channels: 116_508,
        inner: 9,
    },
];

#[divan::bench(args = WEIGHTS)]
fn quantize_i8_per_channel(bencher: Bencher, layout: &Layout) {
    let data = values(layout.outer * layout.channels * layout.inner, false);
    let params: Vec<QParams> = channel_ranges(&data, *layout)
        .into_iter()
        .flatten()
        .flat_map(|(min, max)| {
            let options = QOptions {
                narrow: true,
                reduce_range: false,
            };
            choose_qparams(min, max, Base::INT8, Scheme::Symmetric, options)
        })
        .collect();
    bencher
        .counter(ItemsCount::new(data.len()))
        .bench(|| quantize_per_channel(black_box(&data), *layout, &params, Base::INT8));
}

#[divan::bench(args = WEIGHTS)]
fn ranges_per_channel(bencher: Bencher, layout: &Layout) {
    let data = values(layout.outer * layout.channels * layout.inner, false);
    bencher
        .counter(ItemsCount::new(data.len()))
        .bench(|| channel_ranges(black_box(&data), *layout));
}

#[divan::bench(args = WEIGHTS)]
fn fake_quantize_per_channel(bencher: Bencher, layout: &Layout) {
    let mut data = values(layout.outer * layout.channels * layout.inner, false);
    let params = vec![QParams::for_type(0.01, 3, Base::INT8); layout.channels];
    bencher
        .counter(ItemsCount::new(data.len()))
        .bench_local(|| fake_quant_per_channel(black_box(&mut data), *layout, &params));
}

const LENGTHS: [usize; 3] = [1 << 10, 1 << 15, 1 << 20];

#[divan::bench(args = LENGTHS)]
fn quantize_i8_per_tensor(bencher: Bencher, len: usize) {
    let data = values(len, false);
    let mut out = vec![0; len];
    bencher.counter(ItemsCount::new(len)).bench_local(|| {
        quantize_i8(black_box(&data), 0.01, 3, &mut out);
        black_box(&out);
    });
}

#[divan::bench(args = LENGTHS)]
fn fake_quantize(bencher: Bencher, len: usize) {
    let mut data = values(len, false);
    let params = QParams::for_type(0.01, 128, Base::UINT8);
    bencher
        .counter(ItemsCount::new(len))
        .bench_local(|| fake_quant(black_box(&mut data), &params));
}

#[divan::bench(args = LENGTHS)]
fn extremes(bencher: Bencher, len: usize) {
    let data = values(len, false);
    bencher
        .counter(ItemsCount::new(len))
        .bench(|| min_max(black_box(&data)));
}

#[divan::bench(args = LENGTHS, consts = [false, true])]
fn histogram_observe<const RELU: bool>(bencher: Bencher, len: usize) {
    let data = values(len, RELU);
    let mut histogram = Histogram::new();
    bencher
        .counter(ItemsCount::new(len))
        .bench_local(|| histogram.observe(black_box(&data)));
}

#[divan::bench(args = LENGTHS)]
fn compare(bencher: Bencher, len: usize) {
    let data = values(len, false);
    let mut compare = Compare::default();
    bencher
        .counter(ItemsCount::new(len))
        .bench_local(|| compare.add(black_box(&data), &data));
}

/// All statistics of a tensor of eight samples with 16 channels, as calibration gathers them.
#[divan::bench(args = LENGTHS, consts = [false, true])]
fn statistics_observe<const RELU: bool>(bencher: Bencher, len: usize) {
    let data = values(len, RELU);
    let mut stats = TensorStats::new(&[1]);
    let samples = Samples {
        first: 0,
        count: 8,
        padded: 0,
    };
    let dims = [8, 16, len / 128];
    bencher
        .counter(ItemsCount::new(len))
        .bench_local(|| stats.observe(samples, &dims, black_box(&data)));
}

/// A thousand tensors, one after the other.
#[divan::bench(args = ["kl", "mse"], sample_count = 3)]
fn thousand_searches(bencher: Bencher, name: &str) {
    let tensors: Vec<Histogram> = (0..1000u16)
        .map(|i| {
            let mut histogram = Histogram::new();
            let scale = 1.0 + f32::from(i) / 500.0;
            let data = values(1 << 12, i % 2 == 0);
            histogram.observe(&data.iter().map(|x| x * scale).collect::<Vec<_>>());
            histogram
        })
        .collect();
    let calibrator: Option<Calibrator> = name.parse().ok();
    bencher.bench(|| {
        let ranges = tensors.iter().map(|h| calibrator.map(|c| range(h, c)));
        ranges.filter(|r| r.is_some()).count()
    });
}

#[divan::bench(args = ["minmax", "percentile:99.99", "kl", "mse"])]
fn calibrators(bencher: Bencher, name: &str) {
    let mut histogram = Histogram::new();
    histogram.observe(&values(1 << 20, false));
    let calibrator: Option<Calibrator> = name.parse().ok();
    bencher.bench(|| calibrator.map(|calibrator| range(black_box(&histogram), calibrator)));
}

#[divan::bench(args = [512, 4096], sample_count = 1, sample_size = 1)]
fn gptq_square(bencher: Bencher, size: usize) {
    let weights = values(size * size, false);
    let inputs = values(size * 512, false);
    let mut gram = Gram::new(size, size);
    gram.add(&inputs, &inputs);
    let params = QParams::for_type(0.3, 0, Base::INT4);
    let grid = Grid::per_tensor(size, size, &params);
    bencher.bench(|| gptq(black_box(&weights), &gram, &grid, &Options::default()).is_ok());
}

#[divan::bench(args = [4, 8], sample_count = 3)]
fn kmeans_of_16m(bencher: Bencher, bits: u32) {
    let data = values(1 << 24, false);
    let options = kmeans::Options::of_bits(bits);
    bencher
        .counter(ItemsCount::new(data.len()))
        .bench_local(|| kmeans::kmeans(black_box(&data), None, &options));
}

#[divan::bench(args = [Coder::Huffman, Coder::Range])]
fn entropy_code(bencher: Bencher, coder: &Coder) {
    let codes = kmeans::kmeans(&values(1 << 16, false), None, &kmeans::Options::of_bits(4))
        .map(|c| c.codes)
        .unwrap_or_default();
    bencher
        .counter(ItemsCount::new(codes.len()))
        .bench_local(|| encode(black_box(&codes), *coder));
}

/// A choice among eight formats for each of 1000 layers, within the bytes of 4 bits a weight.
#[divan::bench]
fn least_loss_of_1000_layers(bencher: Bencher) {
    let noise = values(1000, false);
    let class = |x: &f32| {
        let weights = 1000.0 + f64::from(x.abs()) * 1e6;
        let choice = |bits: u32| Choice {
            cost: (weights * f64::from(bits) / 8.0) as u64 + 64,
            loss: f64::from(x.abs() * 256.0).exp2().min(1e9) * (-1.4 * f64::from(bits)).exp(),
        };
        [2, 3, 4, 5, 6, 8, 16, 32].map(choice).to_vec()
    };
    let classes: Vec<Vec<Choice>> = noise.iter().map(class).collect();
    let budget = classes.iter().map(|c| c[2].cost).sum();
    bencher.bench(|| least_loss(black_box(&classes), budget));
}

/// Steps of learning that a run of [`block_gradient`] takes.
const LEARNED: usize = 10;
/// Samples in each.
const BATCH: usize = 16;

/// A layer of a block, rounded to 4 bits: a convolution 3×3 of images of this side, or a product with a row for each token.
fn layer(rows: usize, cols: usize, side: Option<usize>, tokens: usize) -> Layer {
    let width = cols * if side.is_some() { 9 } else { 1 };
    let params = QParams::for_type(0.02, 0, Base::INT4);
    Layer {
        weights: values(rows * width, false)
            .iter()
            .map(|w| w * 0.1)
            .collect(),
        bias: vec![0.0; rows],
        grid: Grid::per_tensor(rows, width, &params),
        groups: 1,
        geometry: side.map(|side| Geometry {
            channels: cols,
            groups: 1,
            input: vec![side, side],
            output: vec![side, side],
            kernel: vec![3, 3],
            strides: vec![1, 1],
            dilations: vec![1, 1],
            pads: vec![1, 1],
            transposed: false,
        }),
        tokens,
        free_scales: false,
        free_bias: false,
    }
}

/// Two layers with a function between, and the input added: of 16 samples of `size` elements.
fn residual(layers: [Layer; 2], function: Step, size: usize) -> Block {
    let linear = |layer, input, output| Step::Linear {
        layer,
        input,
        output,
    };
    let sum = Step::Apply {
        op: Op::Binary {
            kind: Binary::Add,
            spreads: [Spread::Same, Spread::Same],
            size,
        },
        inputs: vec![3, 0],
        output: 4,
    };
    Block {
        steps: vec![linear(0, 0, 1), function, linear(1, 2, 3), sum],
        layers: layers.into(),
        inputs: vec![0],
        output: 4,
        values: 5,
        ..Block::default()
    }
}

/// Ten steps of a block: forward, backward, and the rounding's own; the names say channels and side of an image, or
/// the sizes of a transformer's two layers behind each other with 128 tokens.
#[divan::bench(args = ["conv 16 x 32", "conv 32 x 16", "conv 64 x 8", "mlp 384 x 1536"], sample_count = 3)]
fn block_gradient(bencher: Bencher, name: &str) {
    let conv = |channels: usize, side: usize| {
        let relu = Step::Activate {
            input: 1,
            output: 2,
            activations: vec![Activation::Clamp {
                low: 0.0,
                high: f32::INFINITY,
            }],
            run: side * side,
        };
        let layer = || layer(channels, channels, Some(side), 0);
        let size = channels * side * side;
        (residual([layer(), layer()], relu, size), size)
    };
    let (block, size) = match name {
        "conv 16 x 32" => conv(16, 32),
        "conv 32 x 16" => conv(32, 16),
        "conv 64 x 8" => conv(64, 8),
        _ => {
            let gelu = Step::Apply {
                op: Op::Unary(Unary::Gelu),
                inputs: vec![1],
                output: 2,
            };
            let layers = [layer(1536, 384, None, 128), layer(384, 1536, None, 128)];
            (residual(layers, gelu, 128 * 384), 128 * 384)
        }
    };
    let samples = |scale: f32| -> Vec<Value> {
        let all: Vec<f32> = values(BATCH * size, false);
        let each = all.chunks(size);
        let each = each.map(|x| x.iter().map(|x| x * scale).collect::<Vec<f32>>());
        each.map(|x| -> Value { Arc::new(x) }).collect()
    };
    let data = Data {
        inputs: samples(1.0).into_iter().map(|x| vec![x]).collect(),
        float: Vec::new(),
        targets: samples(0.5),
        hidden: Vec::new(),
    };
    let learning = Learning {
        rounding: adaround::Options {
            iterations: LEARNED,
            batch: BATCH,
            ..adaround::Options::default()
        },
        steps: false,
        drop: false,
        seed: 0,
    };
    bencher.bench_local(|| block.reconstruct(black_box(&data), &learning));
}

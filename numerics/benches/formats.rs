//! Speed of quantizing weights, format by format, against copying them: `cargo bench -p onnx-quant-numerics --bench formats`.
//! Ranges and codes of a tensor of 1 GB, 8192 channels; `FORMAT_BENCH_MB` takes another size.

use std::sync::LazyLock;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use onnx_quant_numerics::affine::QOptions;
use onnx_quant_numerics::encode::{code_floats, code_integers};
use onnx_quant_numerics::format::{Base, Scheme};
use onnx_quant_numerics::grouping::Grouping;
use onnx_quant_numerics::scaling::{ScaleKind, WeightCalibrator, WeightQuantizer};
use rayon::prelude::*;

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

const ROWS: usize = 8192;

static DATA: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let given = std::env::var("FORMAT_BENCH_MB").ok();
    let megabytes = given.and_then(|m| m.parse().ok()).unwrap_or(1024usize);
    let columns = (megabytes << 18) / ROWS;
    let value = |i: usize| {
        let mixed = (i as u32).wrapping_mul(2_654_435_761);
        (mixed >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..ROWS * columns).into_par_iter().map(value).collect()
});

fn grouping(name: &str) -> Option<Grouping> {
    let shape = [ROWS, DATA.len() / ROWS];
    match name {
        "channel" => Grouping::channels(&shape, 0).ok(),
        _ => Grouping::blocks(&shape, 1, 32).ok(),
    }
}

/// The yardstick: each thread copies its part.
fn copy(out: &mut [f32]) {
    let parts = out.par_chunks_mut(1 << 20).zip(DATA.par_chunks(1 << 20));
    parts.for_each(|(to, from)| to.copy_from_slice(black_box(from)));
}

/// Into memory that was written before.
#[divan::bench(sample_count = 5)]
fn memcpy(bencher: Bencher) {
    let mut out = vec![0f32; DATA.len()];
    copy(&mut out);
    bencher
        .counter(BytesCount::of_slice(DATA.as_slice()))
        .bench_local(|| copy(&mut out));
}

/// Into a new tensor, as codes are: the system hands out its pages while it is written.
#[divan::bench(sample_count = 5)]
fn memcpy_new(bencher: Bencher) {
    bencher
        .counter(BytesCount::of_slice(DATA.as_slice()))
        .bench_local(|| {
            let mut out = vec![0f32; DATA.len()];
            copy(&mut out);
            out
        });
}

#[divan::bench(args = [(8, "channel"), (8, "block"), (4, "channel"), (4, "block")], sample_count = 5)]
fn integer(bencher: Bencher, (bits, groups): (u8, &str)) {
    let base = Base::Int(bits);
    let how = WeightQuantizer {
        base,
        scheme: Scheme::Symmetric,
        options: QOptions::default(),
        calibrator: WeightCalibrator::MinMax,
        scale: ScaleKind::default(),
    };
    let Some(grouping) = grouping(groups) else {
        return;
    };
    bencher
        .counter(BytesCount::of_slice(DATA.as_slice()))
        .bench_local(|| {
            let data = black_box(DATA.as_slice());
            code_integers(data, grouping, &how)
        });
}

#[divan::bench(args = [("fp8e4m3", "channel"), ("fp8e4m3", "block"), ("fp4e2m1", "block")], sample_count = 5)]
fn float(bencher: Bencher, (name, groups): (&str, &str)) {
    let element = name.parse::<Base>().ok().and_then(Base::element);
    let (Some(element), Some(grouping)) = (element, grouping(groups)) else {
        return;
    };
    let kind = ScaleKind::default();
    bencher
        .counter(BytesCount::of_slice(DATA.as_slice()))
        .bench_local(|| {
            let data = black_box(DATA.as_slice());
            code_floats(data, grouping, element, WeightCalibrator::MinMax, kind)
        });
}

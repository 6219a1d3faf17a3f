//! How long the stages of the main job take, with the bare forward passes of the calibration samples as the yardstick.
//!
//! `cargo bench` runs all; `RAYON_NUM_THREADS=1 cargo bench -- quantize forward` compares two on one thread. The
//! models are `resnet8-cifar` of the zoo, where that folder stands beside the repository, and a generated net of
//! 100 MB. What was measured is in the README of this folder.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use divan::Bencher;
use onnx_quant::calibrate::{BATCH, calibrate};
use onnx_quant::data::{Batch, DataSet, DataSpec, Signature};
use onnx_quant::engine::TractEngine;
use onnx_quant::ir::engine::{Engine, Request};
use onnx_quant::ir::save::{self, ExternalData};
use onnx_quant::ir::{Model, load};
use onnx_quant::optimize::Options;
use onnx_quant::passes::observation;
use onnx_quant::passes::settings::QuantSettings;
use onnx_quant::pipeline::{NORMALIZE, Run};
use onnx_quant::quantize::{Job, quantize};
use rayon::prelude::*;

mod generated;

/// A model file with its calibration data.
struct Case {
    name: &'static str,
    model: PathBuf,
    data: PathBuf,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Case {
    fn load(&self) -> Model {
        load::load(&self.model).expect("the model loads")
    }

    fn normalized(&self) -> Model {
        let mut model = self.load();
        normalized(&mut model);
        model
    }

    fn samples(&self, model: &Model) -> DataSet {
        let signature = Signature::of(model).expect("the model has a signature");
        DataSet::open(&self.data, &signature).expect("the data fits the model")
    }
}

static FOLDER: LazyLock<tempfile::TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));

static CASES: LazyLock<Vec<Case>> = LazyLock::new(|| {
    let mut cases = vec![generated::case(FOLDER.path(), "100 MB")];
    cases.extend(of_the_zoo("resnet8-cifar"));
    cases
});

static RECOVERED: LazyLock<Option<Case>> = LazyLock::new(|| of_the_zoo("mobilenetv2-cifar"));

fn of_the_zoo(name: &'static str) -> Option<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/zoo")
        .join(name);
    if !folder.exists() {
        eprintln!("SKIPPED: {name}, {} is absent", folder.display());
        return None;
    }
    Some(Case {
        name,
        model: folder.join("model.onnx"),
        data: folder.join("calib.npz"),
    })
}

fn cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter()
}

fn engine() -> Arc<dyn Engine> {
    Arc::new(TractEngine)
}

fn normalized(model: &mut Model) {
    let done = Run::default().passes(NORMALIZE, model);
    done.expect("the model can be normalized");
}

fn main() {
    divan::main();
}

#[divan::bench(args = cases())]
fn a_load(case: &Case) -> Model {
    case.load()
}

#[divan::bench(args = cases())]
fn b_save(bencher: Bencher<'_, '_>, case: &Case) {
    let model = case.load();
    let path = FOLDER.path().join("saved.onnx");
    bencher.bench(|| save::save(&model, &path, ExternalData::Auto));
}

#[divan::bench(args = cases())]
fn c_normalize(bencher: Bencher<'_, '_>, case: &Case) {
    let model = case.load();
    bencher.with_inputs(|| model.clone()).bench_refs(normalized);
}

/// The yardstick: the float model on all calibration samples, nothing watched, prepared before.
#[divan::bench(args = cases(), sample_count = 5)]
fn d_forward(bencher: Bencher<'_, '_>, case: &Case) {
    let model = case.normalized();
    let data = case.samples(&model);
    let batches: Vec<Batch> = data
        .batches(BATCH)
        .map(|b| b.expect("the data can be read"))
        .collect();
    let prepare = |batch: &Batch| {
        let request = Request {
            feed: data.shapes_of(batch),
            ..Request::default()
        };
        let session = engine().prepare(&model, &request);
        session.expect("the model runs")
    };
    let (first, last) = (prepare(&batches[0]), prepare(&batches[batches.len() - 1]));
    bencher.bench(|| {
        batches.par_iter().for_each(|b| {
            let full = b.samples == batches[0].samples;
            let session = if full { &first } else { &last };
            session.run(&b.tensors, None).expect("the model runs");
        });
    });
}

#[divan::bench(args = cases(), sample_count = 5)]
fn e_calibrate(bencher: Bencher<'_, '_>, case: &Case) {
    let model = case.normalized();
    let data = case.samples(&model);
    let points = observation::points(&model, &QuantSettings::default()).expect("it names nothing");
    bencher.bench(|| calibrate(&model, &engine(), &data, &points).expect("the model runs"));
}

#[divan::bench(args = cases(), sample_count = 5)]
fn f_quantize_weights(bencher: Bencher<'_, '_>, case: &Case) {
    bench_quantize(bencher, case, None);
}

/// All but the writing of the file.
#[divan::bench(args = cases(), sample_count = 5)]
fn g_quantize(bencher: Bencher<'_, '_>, case: &Case) {
    bench_quantize(bencher, case, Some(case.data.as_path().into()));
}

/// Accuracy recovery of a depthwise net, on all its calibration samples; one run takes minutes.
#[divan::bench(args = recovered(), sample_count = 1, sample_size = 1)]
fn h_optimize_best(bencher: Bencher<'_, '_>, case: &Case) {
    let optimize = Options {
        methods: "best".parse().expect("it is a preset"),
        ..Options::default()
    };
    let job = Job {
        model: case.model.clone(),
        calibration: Some(case.data.as_path().into()),
        optimize,
        ..Job::default()
    };
    bencher.bench(|| quantize(&job, &engine(), &mut |_| ()).expect("the model is quantized"));
}

/// `mobilenetv2-cifar` of the zoo.
fn recovered() -> impl Iterator<Item = &'static Case> {
    RECOVERED.iter()
}

fn bench_quantize(bencher: Bencher<'_, '_>, case: &Case, calibration: Option<DataSpec>) {
    let job = Job {
        model: case.model.clone(),
        calibration,
        ..Job::default()
    };
    bencher.bench(|| quantize(&job, &engine(), &mut |_| ()).expect("the model is quantized"));
}

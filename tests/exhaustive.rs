//! The choice of formats against all choices there are: eight layers in three formats, 6561 models, each built and run.
#![cfg(feature = "cli")]
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use onnx_quant::data::{DataSet, DataSpec};
use onnx_quant::engine::TractEngine;
use onnx_quant::ir::engine::Engine;
use onnx_quant::ir::{Model, save, text};
use onnx_quant::metadata;
use onnx_quant::mixed::assign::{Assignment, Budget, Cost, Problem};
use onnx_quant::mixed::auto::{self, Measure};
use onnx_quant::mixed::candidates::Candidate;
use onnx_quant::mixed::judge::Judge;
use onnx_quant::mixed::loss::LossKind;
use onnx_quant::mixed::search::{Builder, Rater, within};
use onnx_quant::numerics::metrics::KlDivergence;
use onnx_quant::quantize::Job;
use onnx_quant::run::{Output, run, write_npz};
use onnx_quant::stages::Loaded;
use rayon::prelude::*;

const LAYERS: usize = 8;
const SAMPLES: usize = 64;

/// Dense layers of several widths with Relu between them.
fn net() -> Model {
    let widths = [12, 24, 16, 32, 20, 12, 28, 16, 6];
    let (mut weights, mut nodes) = (Vec::new(), String::new());
    for (i, w) in widths.windows(2).enumerate() {
        weights.push(format!(
            "  float[{},{}] W{i} = random({})",
            w[0],
            w[1],
            i + 1
        ));
        let input = if i == 0 {
            "x".to_owned()
        } else {
            format!("r{}", i - 1)
        };
        if i + 1 == LAYERS {
            let _ = writeln!(nodes, "  [dense_{i}] y = MatMul ({input}, W{i})");
        } else {
            let _ = writeln!(nodes, "  [dense_{i}] h{i} = MatMul ({input}, W{i})");
            let _ = writeln!(nodes, "  [relu_{i}] r{i} = Relu (h{i})");
        }
    }
    let source = format!(
        "main (float[N,12] x) => (float[N,6] y)\n<\n{}\n>\n{{\n{nodes}}}\n",
        weights.join(",\n")
    );
    text::parse(&source).unwrap()
}

fn write_samples(path: &Path) {
    let mut state = 7u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let x = Output {
        name: "x".to_owned(),
        descr: "<f4",
        dims: vec![SAMPLES, 12],
        bytes: (0..SAMPLES * 12)
            .flat_map(|_| next().to_le_bytes())
            .collect(),
    };
    write_npz(&[x], &mut File::create(path).unwrap()).unwrap();
}

/// The logits of all samples.
fn logits(model: &Model, engine: &Arc<dyn Engine>, data: &DataSet) -> Vec<f32> {
    let outputs = run(model, engine, data).unwrap();
    let bytes = outputs[0].bytes.as_chunks::<4>().0;
    bytes.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// Every assignment of formats to layers.
fn all(problem: &Problem, any: &Assignment) -> Vec<Assignment> {
    let mut all = vec![any.clone()];
    for (layer, (_, _, formats)) in problem.layers.iter().enumerate() {
        let with = |a: &Assignment| {
            let picks = 0..formats.len();
            picks
                .map(|p| problem.with(a, layer, p).unwrap())
                .collect::<Vec<_>>()
        };
        all = all.iter().flat_map(with).collect();
    }
    all
}

#[test]
fn the_plan_is_the_best_of_all_that_there_are() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("net.onnx");
    let calib = folder.path().join("calib.npz");
    save::save(&net(), &model, save::ExternalData::Auto).unwrap();
    write_samples(&calib);

    let engine: Arc<dyn Engine> = Arc::new(TractEngine);
    let job = Job {
        model: model.clone(),
        calibration: Some(DataSpec::from(calib)),
        ..Job::default()
    };
    let candidates: Vec<Candidate> = ["int8/none", "int4/none"]
        .map(|c| c.parse().unwrap())
        .into();
    let measure = Measure {
        candidates: candidates.clone(),
        samples: SAMPLES,
        memory: 1 << 30,
        loss: Some(LossKind::Kl),
        thorough: true,
        prefilter: None,
        latency: false,
        output: None,
        resume: false,
    };
    let ready = auto::ready(&job, &candidates, &engine, &mut |_| {}).unwrap();
    let found = auto::sensitivities(&job, &ready, &measure, &engine, &mut |_| {}).unwrap();
    let problem = Problem::new(&found, &candidates, &[], Cost::Bytes).unwrap();
    assert_eq!(problem.layers.len(), LAYERS);

    let (front, complete) = problem.front();
    assert!(complete);
    let all = all(&problem, &front[0]);
    assert_eq!(all.len(), 3usize.pow(LAYERS as u32));

    let normalized = Loaded::open(&model).unwrap().normalize().unwrap();
    let builder = Builder {
        model: normalized.model(),
        source: metadata::file_digest(&model).unwrap(),
        base: &job.settings,
        problem: &problem,
    };
    let data = job
        .calibration
        .as_ref()
        .unwrap()
        .open(ready.float())
        .unwrap();
    let float = logits(ready.float(), &engine, &data);
    let measured = |a: &Assignment| {
        let mut kl = KlDivergence::default();
        let own = logits(&builder.build(a).unwrap().model, &engine, &data);
        kl.add(&float, &own, 6).unwrap();
        kl.mean().unwrap()
    };
    let losses: Vec<f64> = all.par_iter().map(measured).collect();

    let least = |limit: u64, loss: &dyn Fn(usize) -> f64| {
        let fits = (0..all.len()).filter(|&i| all[i].bytes <= limit);
        fits.map(loss).fold(f64::INFINITY, f64::min)
    };
    let rater = Rater {
        judge: Judge::new(&engine, ready.float(), &data, None, 0.95),
        kind: LossKind::Kl,
    };
    for limit in front.iter().step_by(3).map(|a| a.bytes) {
        // The solver is exact for the sum of the losses,
        let plan = problem.solve(limit).unwrap();
        let best = least(limit, &|i| all[i].loss);
        let same = (plan.loss - best).abs() <= 1e-12 * best.max(1e-9);
        assert!(same, "{limit} bytes: {} and {best}", plan.loss);
        // and the model that is made is as good as the best that there is.
        let budget = Budget::AvgBits(limit as f64 * 8.0 / problem.weights() as f64 + 1e-9);
        let built = within(&builder, budget, Some(&rater), &mut |_| {}).unwrap();
        let of = |a: &Assignment| losses[all.iter().position(|b| a.picks == b.picks).unwrap()];
        let (own, best) = (of(&built.assignment), least(limit, &|i| losses[i]));
        assert!(built.assignment.bytes <= limit);
        assert!(own <= 1.05 * best, "{limit} bytes: {own} and {best}");
    }
}

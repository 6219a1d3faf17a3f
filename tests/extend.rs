//! Passes, observers and metrics of a user, from outside the crate; and what the stages refuse.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use onnx_quant::engine::TractEngine;
use onnx_quant::extend::{Extensions, Point};
use onnx_quant::ir::Model;
use onnx_quant::ir::engine::Engine;
use onnx_quant::ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant::metric::Metric;
use onnx_quant::quantize::{Job, quantize};

#[path = "../examples/extend.rs"]
#[expect(dead_code, reason = "main is not run")]
mod example;

#[test]
fn the_example_runs() {
    let folder = tempfile::tempdir().unwrap();
    let found = example::run(folder.path()).unwrap();
    let note = |n: &String| n.starts_with("drop_documentation: ");
    assert!(found.notes.iter().any(note), "{:?}", found.notes);
    let [mine, usual] = found.scales;
    assert!(mine > 0.0 && usual > 0.0 && mine != usual, "{mine} {usual}");
    let (float, quantized) = found.confidence;
    assert!((0.9..1.0).contains(&float), "{float}");
    assert!((float - quantized).abs() < 0.05, "{float} {quantized}");
}

/// Refuses every model.
struct Refuse;

static INFO: PassInfo = PassInfo {
    name: "refuse",
    summary: "Refuses",
    source: "",
    exact: true,
};

impl Pass for Refuse {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, _cx: &mut PassContext) -> Result<Changed, PassError> {
        let pairs = model.all_nodes().len();
        Err(PassError::new(INFO.name, format!("{pairs} nodes")))
    }
}

fn demo_job(folder: &std::path::Path) -> Job {
    let demo = onnx_quant::demo::write(folder).unwrap();
    Job {
        model: demo.model,
        ..Job::default()
    }
}

#[test]
fn a_pass_runs_at_its_point_and_may_refuse() {
    let folder = tempfile::tempdir().unwrap();
    let engine: Arc<dyn Engine> = Arc::new(TractEngine);
    let refused = |point: &str| {
        let mut job = demo_job(folder.path());
        let mut mine = Extensions::default();
        mine.pass(point.parse().unwrap(), Refuse).unwrap();
        job.extensions = mine;
        match quantize(&job, &engine, &mut |_| {}) {
            Err(e) => e.to_string(),
            Ok(_) => panic!("{point}: the pass did not run"),
        }
    };
    let before = refused("before:normalize");
    let after = refused("after:rewrite");
    assert!(before.starts_with("refuse: ") && after.starts_with("refuse: "));
    assert_ne!(before, after, "the same graph at both ends");
    assert_eq!(refused("before:insert_qdq"), refused("after:plan"));
    for (bad, words) in [
        ("after:insert_qqd", "did you mean `insert_qdq`"),
        ("after:specialize", "no part of the pipeline"),
        ("insert_qdq", "before:NAME"),
    ] {
        let error = bad.parse::<Point>().unwrap_err().to_string();
        assert!(error.contains(words), "{bad}: {error}");
    }
}

#[test]
fn a_metric_over_files_needs_no_data_and_decides_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    let engine: Arc<dyn Engine> = Arc::new(TractEngine);
    let size = Metric::of_model("bytes", |file| {
        let bytes = std::fs::metadata(file).map_err(|e| e.to_string())?.len();
        Ok(bytes as f64)
    });
    let mut job = demo_job(folder.path());
    job.metric = Some(size);
    job.max_drop = Some(0.01);
    let done = quantize(&job, &engine, &mut |_| {}).unwrap();
    let task = &done.report.check.as_ref().unwrap().task;
    assert_eq!(task.metric, "bytes");
    let file = std::fs::metadata(&job.model).unwrap().len();
    assert_eq!(task.reference, file as f64);
    assert!(task.candidate < task.reference / 2.0);
    assert!(!done.budget_holds(), "the drop is {}", task.drop);

    job.metric = Some(Metric::of_model("broken", |_| Err("no licence".to_owned())));
    let Err(e) = quantize(&job, &engine, &mut |_| {}) else {
        panic!("the metric failed")
    };
    assert_eq!(e.to_string(), "the metric `broken` failed: no licence");
}

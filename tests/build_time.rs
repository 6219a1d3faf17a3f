//! Build scripts and snapshot tests, as a user's crate uses them.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use onnx_quant::build::{BuildError, Emitted, Quantize};
use onnx_quant::demo::{self, Demo};

struct Crate {
    folder: tempfile::TempDir,
    demo: Demo,
}

impl Crate {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let demo = demo::write(folder.path()).unwrap();
        Self { folder, demo }
    }

    fn out(&self) -> PathBuf {
        let out = self.folder.path().join("out");
        std::fs::create_dir_all(&out).unwrap();
        out
    }

    fn quantize(&self) -> Quantize {
        Quantize::new(&self.demo.model)
            .calibration(self.demo.calibration.clone())
            .out_dir(self.out())
            .name("net")
    }
}

fn emit(quantize: &Quantize) -> (Result<Emitted, BuildError>, String) {
    let mut lines = Vec::new();
    let done = quantize.emit_to(&mut lines);
    (done, String::from_utf8(lines).unwrap())
}

fn touch(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_second_build_does_nothing() {
    let krate = Crate::new();
    let quantize = krate.quantize();
    let (first, lines) = emit(&quantize);
    let first = first.unwrap();
    assert!(!first.cached);
    for path in [&krate.demo.model, &krate.demo.calibration] {
        let line = format!("cargo::rerun-if-changed={}\n", path.display());
        assert!(lines.contains(&line), "{line}\n{lines}");
    }
    let module = std::fs::read_to_string(&first.module).unwrap();
    for words in [
        "pub static BYTES: &[u8]",
        "pub static INPUTS: [Port; 1]",
        "dtype: \"f32\"",
        "Some(24)",
    ] {
        assert!(module.contains(words), "{words}\n{module}");
    }
    let bytes = std::fs::read(&first.model).unwrap();
    let start = Instant::now();
    assert!(emit(&quantize).0.unwrap().cached);
    assert!(
        start.elapsed() < Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
    touch(&krate.demo.calibration);
    assert!(emit(&quantize).0.unwrap().cached, "the content is the same");
    std::fs::write(&first.model, b"broken").unwrap();
    assert!(!emit(&quantize).0.unwrap().cached, "what was made is gone");
    assert_eq!(std::fs::read(&first.model).unwrap(), bytes);
    let other = krate.quantize().max_drop(0.5);
    assert!(!emit(&other).0.unwrap().cached, "another setting");
}

#[test]
fn a_cache_outlives_the_build_folder() {
    let krate = Crate::new();
    let quantize = krate
        .quantize()
        .cache_dir(krate.folder.path().join("cache"));
    let first = emit(&quantize).0.unwrap();
    let bytes = std::fs::read(&first.model).unwrap();
    std::fs::remove_dir_all(krate.out()).unwrap();
    krate.out();
    let again = emit(&quantize).0.unwrap();
    assert!(again.cached);
    assert_eq!(std::fs::read(&again.model).unwrap(), bytes);
}

#[test]
fn a_build_breaks_with_a_message() {
    let krate = Crate::new();
    let message = |q: &Quantize| emit(q).0.unwrap_err().to_string();
    let tight =
        krate
            .quantize()
            .max_drop(0.0)
            .settings(onnx_quant::passes::settings::QuantSettings {
                min_activation_sqnr: -100.0,
                calibrator: "percentile:20".parse().unwrap(),
                ..Default::default()
            });
    let text = message(&tight);
    for words in [
        "loses too much",
        "is allowed",
        "Values that lose most: ",
        "net.json",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    assert!(!krate.out().join("net.onnx").exists());
    let whole = std::fs::read(&krate.demo.model).unwrap();
    std::fs::write(&krate.demo.model, &whole[..whole.len() / 2]).unwrap();
    let text = message(&krate.quantize());
    assert!(text.contains("model.onnx"), "{text}");
    std::fs::remove_file(&krate.demo.calibration).unwrap();
    let text = message(&krate.quantize());
    assert!(text.contains("calib.npz does not exist"), "{text}");
}

#[cfg(feature = "config")]
#[test]
fn a_configuration_is_in_force() {
    let krate = Crate::new();
    let config = krate.folder.path().join("onnx-quant.toml");
    std::fs::write(
        &config,
        "calib = \"calib.npz\"\nexclude = [\"Gemm\"]\n[profile.all]\nexclude = []\n",
    )
    .unwrap();
    let plan = |q: Quantize| {
        let done = emit(&q.config(&config)).0.unwrap();
        std::fs::read_to_string(done.report).unwrap()
    };
    assert!(plan(krate.quantize()).contains("excluded by `Gemm`"));
    assert!(!plan(krate.quantize().profile("all")).contains("excluded by"));
    std::fs::write(&config, "calibb = 1\n").unwrap();
    let text = emit(&krate.quantize().config(&config))
        .0
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("onnx-quant.toml:1: there is no key `calibb`"),
        "{text}"
    );
}

#[cfg(feature = "testing")]
mod snapshots {
    use super::*;
    use onnx_quant::testing::{Config, snapshot};

    /// The model with one weight changed.
    fn perturb(path: &Path, weight: &str) {
        use onnx_quant::ir::{Tensor, load, save};
        let mut model = load::load(path).unwrap();
        let value = model.values_by_name(onnx_quant::ir::Model::MAIN)[weight];
        let old = model.value(value).init.clone().unwrap();
        let mut data = old.to_f32().unwrap();
        data.iter_mut().for_each(|x| *x *= 1.02);
        model.value_mut(value).init = Some(Tensor::from_f32(old.dims(), &data));
        let bytes = save::to_bytes(&model).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_snapshot_is_stable_and_names_the_layer_that_changed() {
        let krate = Crate::new();
        let Demo {
            model, calibration, ..
        } = &krate.demo;
        let config = Config::default();
        let before = snapshot(model, calibration, &config).unwrap();
        assert_eq!(before, snapshot(model, calibration, &config).unwrap());
        let loaded = onnx_quant::ir::load::load(model).unwrap();
        let gemm = loaded
            .main()
            .nodes
            .iter()
            .find(|&&n| loaded.node(n).is("Gemm"));
        let gemm = *gemm.unwrap();
        let weight = loaded.value(loaded.input(gemm, 1).unwrap()).name.clone();
        let layer = loaded.node_key(gemm);
        perturb(model, &weight);
        let after = snapshot(model, calibration, &config).unwrap();
        let changed: Vec<&str> = after.lines().filter(|l| !before.contains(l)).collect();
        assert!(!changed.is_empty());
        assert!(changed.iter().any(|l| l.starts_with(&layer)), "{changed:?}");
        let first = changed.iter().find(|l| !l.contains("Relu"));
        assert!(first.is_some_and(|l| l.starts_with(&layer)), "{changed:?}");
        assert!(changed.len() < before.lines().count() / 2, "{changed:?}");
    }
}

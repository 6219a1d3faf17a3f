//! The program from end to end, on a small net and on the demo.

use super::sandbox::{Sandbox, noise, run_in};
use serde_json::Value;

fn number(v: &Value, path: &str) -> f64 {
    let found = v.pointer(path).and_then(Value::as_f64);
    found.unwrap_or_else(|| panic!("no number at {path} in {v:#}"))
}

fn text<'a>(v: &'a Value, path: &str) -> &'a str {
    let found = v.pointer(path).and_then(Value::as_str);
    found.unwrap_or_else(|| panic!("no text at {path} in {v:#}"))
}

fn list<'a>(v: &'a Value, path: &str) -> &'a Vec<Value> {
    let found = v.pointer(path).and_then(Value::as_array);
    found.unwrap_or_else(|| panic!("no list at {path} in {v:#}"))
}

#[test]
fn the_demo_does_the_whole_job() {
    let dir = Sandbox::new();
    let answer = dir.line("demo --out demo --json").ends(0).json();
    assert!(number(&answer, "/check/task/reference") >= 0.95);
    assert!(number(&answer, "/check/task/drop") <= 0.01);
    assert!(number(&answer, "/size/after_bytes") < 0.4 * number(&answer, "/size/before_bytes"));
    assert_eq!(
        answer.pointer("/budget/held").and_then(Value::as_bool),
        Some(true)
    );
    for file in [
        "model.onnx",
        "calib.npz",
        "eval.npz",
        "labels.npy",
        "model.int8.onnx",
        "report.json",
    ] {
        assert!(dir.path("demo").join(file).is_file(), "{file}");
    }
    let said = dir.line("demo --out demo").ends(0);
    assert!(
        said.stderr.contains("onnx-quant quantize"),
        "{}",
        said.stderr
    );
    assert!(
        said.stdout.contains("top-1 on 512 samples"),
        "{}",
        said.stdout
    );
}

#[test]
fn quantize_writes_a_model_and_says_what_became_of_every_node() {
    let dir = Sandbox::with_net();
    let answer = dir
        .line("quantize net.onnx --calib calib.npz -o q.onnx --report report.json --json --verify-each")
        .ends(0)
        .json();
    let report: Value = serde_json::from_slice(&dir.read("report.json")).unwrap();
    assert_eq!(answer, report);
    assert_eq!(number(&answer, "/calibration_samples"), 16.0);
    let nodes = list(&answer, "/nodes");
    assert_eq!(nodes.len(), 7);
    for n in nodes {
        let integer = n["precision"] == "integer";
        let reason = n["reason"].as_str().unwrap_or("");
        assert!(integer || !reason.is_empty(), "no reason: {n}");
        let weighted = ["Conv", "Gemm"].contains(&n["op"].as_str().unwrap());
        assert!(integer || !weighted, "not in integers: {n}");
    }
    assert_eq!(list(&answer, "/weights").len(), 3);
    assert_eq!(
        number(&answer, "/size/after_bytes") as usize,
        dir.read("q.onnx").len()
    );
    let inspected = dir.line("inspect q.onnx --json").ends(0).json();
    assert_eq!(number(&inspected, "/opsets/ai.onnx"), 21.0);
    assert_eq!(text(&inspected, "/inputs/0/name"), "x");
    assert_eq!(text(&inspected, "/outputs/0/name"), "y");
    let weights = list(&inspected, "/quantization/weights");
    let int8 = weights.iter().filter(|w| w["dtype"] == "i8").count();
    assert_eq!(int8, 3);
    assert!(!list(&inspected, "/quantization/activations").is_empty());
}

#[test]
fn without_calibration_data_only_weights_are_quantized_and_the_program_says_so() {
    let dir = Sandbox::with_net();
    let ran = dir.line("quantize net.onnx -o q.onnx").ends(0);
    assert!(ran.stderr.contains("no calibration data"), "{}", ran.stderr);
    let inspected = dir.line("inspect q.onnx --json").ends(0).json();
    assert!(!list(&inspected, "/quantization/weights").is_empty());
    assert!(list(&inspected, "/quantization/activations").is_empty());
}

#[test]
fn the_same_bytes_for_any_number_of_threads() {
    let dir = Sandbox::with_net();
    for threads in ["1", "2", "3"] {
        let out = format!("{threads}.onnx");
        dir.line(&format!(
            "quantize net.onnx --calib calib.npz --eval eval.npz -o {out} --threads {threads} --report {threads}.json"
        ))
        .ends(0);
        assert_eq!(dir.read(&out), dir.read("1.onnx"));
        let report = |name: &str| {
            let mut v: Value = serde_json::from_slice(&dir.read(name)).unwrap();
            v["output"] = Value::Null;
            v
        };
        assert_eq!(report(&format!("{threads}.json")), report("1.json"));
    }
}

#[test]
fn formats_and_schemes_reach_the_file() {
    let dir = Sandbox::with_net();
    dir.line("quantize net.onnx --calib calib.npz -o q.onnx --weights int8:tensor --activations int8 --activation-scheme symmetric --calibrator percentile:99.99 --reduce-range")
        .ends(0);
    let q = dir.line("inspect q.onnx --json").ends(0).json();
    for w in list(&q, "/quantization/weights") {
        if w["dtype"] == "i8" {
            assert_eq!(w["scales"], 1, "{w}");
        }
    }
    for a in list(&q, "/quantization/activations") {
        assert_eq!(
            (&a["dtype"], &a["zero_point"]),
            (&"i8".into(), &0.into()),
            "{a}"
        );
    }
    dir.line("quantize net.onnx --calib calib.npz -o w.onnx --activations none")
        .ends(0);
    let w = dir.line("inspect w.onnx --json").ends(0).json();
    assert!(list(&w, "/quantization/activations").is_empty());
}

#[test]
fn excluded_nodes_stay_in_float() {
    let dir = Sandbox::with_net();
    let precision = |answer: &Value, node: &str| {
        let nodes = list(answer, "/nodes");
        let found = nodes.iter().find(|n| n["node"] == node).unwrap();
        found["precision"].as_str().unwrap().to_owned()
    };
    let by_name = dir
        .line("quantize net.onnx --calib calib.npz -o a.onnx --exclude conv_* --json")
        .ends(0)
        .json();
    assert_eq!(precision(&by_name, "conv_1"), "float");
    assert_eq!(precision(&by_name, "dense"), "integer");
    let by_type = dir
        .line("quantize net.onnx --calib calib.npz -o b.onnx --include Conv --json")
        .ends(0)
        .json();
    assert_eq!(precision(&by_type, "conv_1"), "integer");
    assert_eq!(precision(&by_type, "dense"), "float");
}

#[test]
fn check_compares_any_two_models() {
    let dir = Sandbox::with_net();
    let same = dir
        .line("check net.onnx net.onnx --eval eval.npz --max-drop 0% --json")
        .ends(0)
        .json();
    assert_eq!(number(&same, "/task/drop"), 0.0);
    assert_eq!(same["outputs"][0]["sqnr_db"], Value::Null);
    assert_eq!(number(&same, "/outputs/0/max_abs_error"), 0.0);
    dir.line("quantize net.onnx --calib calib.npz -o q.onnx")
        .ends(0);
    let labels: Vec<i64> = (0..24).map(|i| i % 4).collect();
    dir.labels("labels.npy", &labels);
    let answer = dir
        .line("check net.onnx q.onnx --eval eval.npz --labels labels.npy --json")
        .ends(0)
        .json();
    assert_eq!(number(&answer, "/samples"), 24.0);
    assert_eq!(text(&answer, "/task/metric"), "top-1");
    let sqnr = number(&answer, "/outputs/0/sqnr_db");
    assert!((20.0..80.0).contains(&sqnr), "{sqnr} dB");
    let layers = list(&answer, "/layers");
    assert!(!layers.is_empty());
    let db: Vec<f64> = layers
        .iter()
        .filter_map(|l| l["sqnr_db"].as_f64())
        .collect();
    assert!(db.is_sorted(), "worst first: {db:?}");
    let shown = dir.line("check net.onnx q.onnx --eval eval.npz").ends(0);
    assert!(
        shown.stdout.contains("layers, worst first"),
        "{}",
        shown.stdout
    );
}

/// A net that cannot bear one scale for its input: a feature that nothing needs is a million times larger than the
/// two that decide.
pub(super) fn fragile() -> Sandbox {
    let dir = Sandbox::new();
    dir.model(
        "net.onnx",
        "main (float[N,3] x) => (float[N,2] y)
<
  float[3,2] W = {1, 0, 0, 1, 0, 0}
>
{
  [dense] y = MatMul (x, W)
}
",
    );
    let mut data = noise(64 * 3, 7);
    for row in data.chunks_mut(3) {
        row[2] *= 1e6;
    }
    dir.npz("data.npz", &[("x", &[64, 3], &data)]);
    dir
}

pub(super) const FRAGILE: &str =
    "quantize net.onnx --calib data.npz --eval data.npz --min-activation-sqnr=-1000 -o q.onnx";

#[test]
fn a_budget_that_is_exceeded_writes_nothing_and_ends_with_1() {
    let dir = fragile();
    let ran = dir.line(&format!("{FRAGILE} --max-drop 1%")).ends(1);
    assert!(ran.stdout.contains("EXCEEDED"), "{}", ran.stdout);
    assert!(ran.stdout.contains("lose most"), "{}", ran.stdout);
    assert_eq!(dir.names(), ["data.npz", "net.onnx"]);
    let answer = dir
        .line(&format!("{FRAGILE} --max-drop 1% --json --report r.json"))
        .ends(1)
        .json();
    assert_eq!(answer["output"], Value::Null);
    assert!(text(&answer, "/not_written").contains("--force"));
    assert!(dir.has("r.json") && !dir.has("q.onnx"));
}

#[test]
fn force_writes_the_model_and_keeps_the_exit_code() {
    let dir = fragile();
    dir.line(&format!("{FRAGILE} --max-drop 1% --force"))
        .ends(1);
    assert!(dir.has("q.onnx"));
    dir.line("check net.onnx q.onnx --eval data.npz --max-drop 1%")
        .ends(1);
    dir.line("check net.onnx q.onnx --eval data.npz --max-drop 100%")
        .ends(0);
}

#[test]
fn a_layer_whose_input_would_lose_too_much_keeps_it_in_float() {
    let dir = Sandbox::with_net();
    let answer = dir
        .line("quantize net.onnx --calib calib.npz --min-activation-sqnr 1000 -o q.onnx --json")
        .ends(0)
        .json();
    for n in list(&answer, "/nodes") {
        assert_ne!(n["precision"], "integer", "{n}");
        assert!(!n["reason"].as_str().unwrap_or("").is_empty(), "{n}");
    }
}

#[test]
fn run_writes_outputs_that_can_be_fed_again() {
    let dir = Sandbox::with_net();
    let answer = dir
        .line("run net.onnx --data eval.npz -o out.npz --json")
        .ends(0)
        .json();
    assert_eq!(answer["outputs"][0]["name"], "y");
    assert_eq!(answer["outputs"][0]["shape"], serde_json::json!([24, 4]));
    dir.model(
        "next.onnx",
        "main (float[N,4] y) => (float[N,4] z)\n{\n  z = Relu (y)\n}\n",
    );
    let next = dir
        .line("run next.onnx --data out.npz -o next.npz --limit 5 --json")
        .ends(0)
        .json();
    assert_eq!(next["outputs"][0]["shape"], serde_json::json!([5, 4]));
}

#[test]
fn run_drops_padding_and_stacks_complete_feeds() {
    let dir = Sandbox::new();
    dir.model(
        "pair.onnx",
        "main (float[2,3] x) => (float[2,3] y)\n{\n  y = Neg (x)\n}\n",
    );
    let shape = |answer: &Value| answer["outputs"][0]["shape"].clone();
    dir.npz("five.npz", &[("x", &[5, 3], &noise(15, 1))]);
    let answer = dir
        .line("run pair.onnx --data five.npz -o out.npz --json")
        .ends(0)
        .json();
    assert_eq!(shape(&answer), serde_json::json!([5, 3]));
    assert!(text(&answer, "/notes/0").contains("2 samples at a time"));
    dir.npz("feeds.npz", &[("x", &[4, 2, 3], &noise(24, 1))]);
    let answer = dir
        .line("run pair.onnx --data feeds.npz -o out.npz --json")
        .ends(0)
        .json();
    assert_eq!(shape(&answer), serde_json::json!([4, 2, 3]));
    dir.line("check pair.onnx pair.onnx --eval feeds.npz --max-drop 0")
        .ends(0);
}

#[test]
fn inspect_counts() {
    let dir = Sandbox::with_net();
    let answer = dir.line("inspect net.onnx --json").ends(0).json();
    assert_eq!(number(&answer, "/nodes"), 7.0);
    assert_eq!(number(&answer, "/operators/Conv"), 2.0);
    assert_eq!(
        number(&answer, "/parameters"),
        (72 + 8 + 576 + 32 + 4) as f64
    );
    assert_eq!(
        answer["inputs"][0]["shape"],
        serde_json::json!(["N", "1", "8", "8"])
    );
    assert_eq!(answer["quantization"], Value::Null);
    let shown = dir.line("inspect net.onnx").ends(0);
    assert!(
        shown.stdout.contains("x: f32[N, 1, 8, 8]"),
        "{}",
        shown.stdout
    );
}

#[test]
fn diff_shows_what_changed() {
    let dir = Sandbox::with_net();
    dir.line("quantize net.onnx --calib calib.npz -o q.onnx")
        .ends(0);
    let shown = dir.line("diff net.onnx q.onnx").ends(0);
    assert!(shown.stdout.contains("QuantizeLinear"), "{}", shown.stdout);
    dir.line("diff net.onnx q.onnx --json").ends(0).json();
    let same = dir.line("diff net.onnx net.onnx").ends(0);
    assert!(!same.stdout.contains("Conv"), "{}", same.stdout);
}

#[test]
fn passes_are_listed_and_explained() {
    let dir = Sandbox::new();
    let rows = dir.line("passes --json").ends(0).json();
    assert!(rows.as_array().unwrap().len() > 10);
    let shown = dir.line("passes").ends(0);
    assert!(shown.stdout.contains("drop_unused"));
    let explained = dir.line("passes --explain drop_unused").ends(0);
    assert!(explained.stdout.contains("When it does not fire"));
    let json = dir
        .line("passes --explain drop_unused --json")
        .ends(0)
        .json();
    assert!(text(&json, "/0/explanation").contains("Before"));
    dir.line("passes --explain drop_unusd")
        .refuses(&["drop_unusd", "did you mean `drop_unused`"]);
}

#[test]
fn rewrite_runs_chosen_passes() {
    let dir = Sandbox::with_net();
    dir.run(&["rewrite", "net.onnx", "--pipeline", "", "-o", "same.onnx"])
        .ends(0);
    assert_eq!(dir.read("same.onnx"), dir.read("net.onnx"));
    let answer = dir
        .line("rewrite net.onnx -o normal.onnx --verify-each --json")
        .ends(0)
        .json();
    assert!(list(&answer, "/passes").len() > 5);
    dir.line("check net.onnx normal.onnx --eval eval.npz --max-drop 0")
        .ends(0);
    dir.line("rewrite net.onnx --pipeline upgrade_opset{to=21},nonsense -o n.onnx")
        .refuses(&["nonsense", "onnx-quant passes"]);
}

#[test]
fn external_data_is_written_beside_the_model() {
    let dir = Sandbox::with_net();
    dir.line("rewrite net.onnx --pipeline lift_constants -o e.onnx --external-data")
        .ends(0);
    let found = dir.line("inspect e.onnx --json").ends(0).json();
    assert!(number(&found, "/external_bytes") >= 576.0 * 4.0);
    assert!(dir.has("e.onnx.data"), "{:?}", dir.names());
    dir.line("check net.onnx e.onnx --eval eval.npz --max-drop 0")
        .ends(0);
}

#[test]
fn the_passes_can_be_watched() {
    let dir = Sandbox::with_net();
    let ran = dir
        .line("quantize net.onnx --calib calib.npz -o q.onnx --dump-before insert_qdq --dump-after insert_qdq --time-passes")
        .ends(0);
    for words in [
        "// before insert_qdq",
        "// after insert_qdq",
        " ms  insert_qdq",
    ] {
        assert!(ran.stderr.contains(words), "{words}\n{}", ran.stderr);
    }
    dir.line("quantize net.onnx -o r.onnx --dump-after insert_qqd")
        .refuses(&["insert_qqd", "did you mean `insert_qdq`"]);
    let limited = dir
        .line("rewrite net.onnx -o r.onnx --pass-limit 2 --json")
        .ends(0)
        .json();
    assert_eq!(list(&limited, "/passes").len(), 2);
}

#[test]
fn help_and_version_end_with_0_and_wrong_usage_with_2() {
    let dir = Sandbox::new();
    for line in [
        "--help",
        "--version",
        "quantize --help",
        "check --help",
        "run --help",
        "help inspect",
    ] {
        dir.line(line).ends(0);
    }
    for line in [
        "",
        "nonsense",
        "quantize",
        "quantize a.onnx",
        "check a.onnx",
        "inspect a.onnx --nonsense",
        "inspect a.onnx --threads 0",
        "quantize a.onnx -o b.onnx --weights int17",
        "quantize a.onnx -o b.onnx --weights float16",
        "quantize a.onnx -o b.onnx --activations int8:channel",
        "quantize a.onnx -o b.onnx --calibrator best",
        "quantize a.onnx -o b.onnx --weight-scheme skewed",
        "quantize a.onnx -o b.onnx --eval e.npz --max-drop 200%",
        "quantize a.onnx -o b.onnx --eval e.npz --max-drop much",
    ] {
        dir.line(line).ends(2);
    }
    assert!(dir.names().is_empty());
}

#[test]
fn the_program_does_not_depend_on_its_folder() {
    let dir = Sandbox::with_net();
    let other = Sandbox::new();
    let path = |name: &str| dir.path(name).display().to_string();
    let args = [
        "quantize",
        &path("net.onnx"),
        "--calib",
        &path("calib.npz"),
        "-o",
        "q.onnx",
    ];
    run_in(&other.path(""), &args).ends(0);
    assert_eq!(other.names(), ["q.onnx"]);
}

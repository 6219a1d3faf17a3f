//! Plans, sensitivities, and the choice of formats under a budget, through the program.

use serde_json::Value;

use super::sandbox::{Sandbox, noise};

/// A residual branch, a Concat, a tensor that two layers share, and a branch beside it all.
const TIED: &str = "main (float[N,4,6,6] x) => (float[N,5] y)
<
  float[4,4,3,3] W1 = random(1),
  float[4,4,3,3] W2 = random(2),
  float[4,4,1,1] W3 = random(3),
  float[12,5] W4 = random(4)
>
{
  [conv_1] a = Conv <pads = [1, 1, 1, 1]> (x, W1)
  [relu_1] b = Relu (a)
  [conv_2] c = Conv <pads = [1, 1, 1, 1]> (b, W2)
  [add] d = Add (b, c)
  [shared_1] e = Conv (d, W3)
  [shared_2] f = Conv (b, W3)
  [concat] g = Concat <axis = 1> (d, e, f)
  [pool] h = GlobalAveragePool (g)
  [flat] i = Flatten (h)
  [dense] y = Gemm (i, W4)
}
";

fn tied() -> Sandbox {
    let dir = Sandbox::new();
    dir.model("net.onnx", TIED);
    dir.npz("calib.npz", &[("x", &[16, 4, 6, 6], &noise(16 * 144, 1))]);
    dir.npz("eval.npz", &[("x", &[400, 4, 6, 6], &noise(400 * 144, 2))]);
    dir
}

fn json(dir: &Sandbox, name: &str) -> Value {
    serde_json::from_slice(&dir.read(name)).unwrap()
}

fn plan(dir: &Sandbox, name: &str) -> toml::Table {
    String::from_utf8(dir.read(name)).unwrap().parse().unwrap()
}

/// The `[[layer]]` of a plan with this name.
fn layer<'a>(plan: &'a toml::Table, name: &str) -> Option<&'a toml::Value> {
    let all = plan.get("layer")?.as_array()?;
    all.iter()
        .find(|l| l.get("name").and_then(toml::Value::as_str) == Some(name))
}

fn weights<'a>(plan: &'a toml::Table, name: &str) -> Option<&'a str> {
    layer(plan, name)?.get("weights")?.as_str()
}

#[test]
fn a_plan_makes_the_same_bytes_again() {
    let dir = tied();
    for (options, name) in [
        ("", "plain"),
        ("--target tract", "tract"),
        (
            "--weights int4:block16 --activations none --scale-type fp16 --weight-calibrator minmax",
            "blocks",
        ),
        (
            "--weights kmeans3 --activations none --kmeans-init density --seed 3",
            "codebook",
        ),
        (
            "--weights binary --activations none --binary stochastic --seed 5",
            "signs",
        ),
        ("--exclude conv_2 --reduce-range --scale-kind pow2", "pow2"),
    ] {
        let made = format!(
            "quantize net.onnx --calib calib.npz {options} --save-plan {name}.toml -o {name}.onnx"
        );
        dir.line(&made).ends(0);
        let calib = if name == "codebook" {
            "--calib calib.npz"
        } else {
            ""
        };
        dir.line(&format!(
            "quantize net.onnx --plan {name}.toml {calib} -o again.onnx"
        ))
        .ends(0);
        assert_eq!(
            dir.read("again.onnx"),
            dir.read(&format!("{name}.onnx")),
            "{name}"
        );
    }
}

#[test]
fn a_plan_is_edited_and_its_errors_name_the_line() {
    let dir = tied();
    dir.line("quantize net.onnx --calib calib.npz --save-plan p.toml -o q.onnx")
        .ends(0);
    let text = String::from_utf8(dir.read("p.toml")).unwrap();
    assert!(text.contains("reason") || text.contains("scale"), "{text}");
    let at = text.find("name = \"dense\"").unwrap();
    let edited = format!(
        "{}{}",
        &text[..at],
        text[at..].replacen("int8:channel", "int4:channel", 1)
    );
    dir.write("int4.toml", edited.as_bytes());
    let report = dir
        .line("quantize net.onnx --plan int4.toml -o e.onnx --json")
        .ends(0)
        .json();
    let dense = report["weights"].as_array().unwrap().iter();
    let dense: Vec<&Value> = dense.filter(|w| w["weight"] == "W4").collect();
    assert!(
        dense[0]["format"].as_str().unwrap().starts_with("int4"),
        "{dense:?}"
    );
    // What the target has no operators for is refused where it stands.
    let line = edited[..edited.find("int4:channel").unwrap()]
        .matches('\n')
        .count()
        + 1;
    dir.write(
        "fp6.toml",
        edited.replace("int4:channel", "fp6e3m2").as_bytes(),
    );
    dir.line("quantize net.onnx --plan fp6.toml -o e.onnx")
        .refuses(&[&format!("fp6.toml:{line}"), "opset 28", "nearest"]);
    dir.model("other.onnx", &TIED.replace("random(4)", "random(9)"));
    dir.line("quantize other.onnx --plan p.toml -o e.onnx")
        .refuses(&["p.toml:", "another model"]);
}

#[test]
fn an_analysis_says_what_each_format_costs_and_loses() {
    let dir = tied();
    let line = "analyze net.onnx --calib calib.npz --eval eval.npz --candidates int8:channel,int4:channel/uint8,fp6e3m2,fp16 -o s.json --json";
    let said = dir.line(line).ends(0).json();
    let s = json(&dir, "s.json");
    assert_eq!(said, s);
    assert_eq!(s["loss"], "kl");
    let layers = s["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 5);
    for l in layers {
        let of = |w: Option<&str>, a: Option<&str>| {
            let found = l["formats"].as_array().unwrap().iter();
            let mut found =
                found.filter(|m| m["weights"].as_str() == w && m["activations"].as_str() == a);
            found
                .next()
                .unwrap_or_else(|| panic!("no {w:?}/{a:?} in {l:#}"))
                .clone()
        };
        let loss = |v: &Value| v["loss"].as_f64().unwrap();
        let (eight, four) = (
            of(Some("int8:channel"), None),
            of(Some("int4:channel"), None),
        );
        assert!(loss(&eight) < loss(&four), "{l:#}");
        let bytes = |v: &Value| v["bytes"].as_u64().unwrap();
        assert!(bytes(&four) < bytes(&eight) && bytes(&eight) < l["float_bytes"].as_u64().unwrap());
        // Activations apart, and together with weights.
        assert!(loss(&of(None, Some("uint8"))) > 0.0);
        assert!(loss(&of(Some("int4:channel"), Some("uint8"))) > 0.0);
        // What the runtime has no operators for cannot be chosen.
        let six = of(Some("fp6e3m2"), None);
        assert!(
            six["loss"].is_null() && six["remark"].as_str().unwrap().contains("opset 28"),
            "{six:#}"
        );
        let half = of(Some("fp16"), None);
        assert!(loss(&half) < loss(&eight), "{l:#}");
        assert!(l["stream"].is_string());
    }
    let stream = |n: usize| layers[n]["stream"].as_str().unwrap();
    // conv_1 reads the input; conv_2, the shared layers and the dense one read the residual stream.
    assert_ne!(stream(0), stream(1));
    assert!((2..5).all(|n| stream(n) == stream(1)), "{layers:#?}");
    assert_eq!(layers[2]["tensors"], layers[3]["tensors"]);
    let accumulated = s["accumulated"].as_array().unwrap();
    assert!(accumulated.len() >= 5, "{accumulated:?}");
    assert!(!s["interactions"].as_array().unwrap().is_empty());
}

#[test]
fn the_same_plan_for_any_number_of_threads_and_after_an_interruption() {
    let dir = tied();
    let analyze = |out: &str, more: &str| {
        let line = format!(
            "analyze net.onnx --calib calib.npz --eval eval.npz --candidates int8,int4/uint8 -o {out} {more}"
        );
        dir.line(&line)
    };
    analyze("one.json", "--threads 1").ends(0);
    analyze("two.json", "--threads 2").ends(0);
    assert_eq!(dir.read("one.json"), dir.read("two.json"));
    for n in ["one", "two"] {
        let line = format!("assign --sensitivity {n}.json --max-drop 20% -o {n}.toml");
        dir.line(&line).ends(0);
    }
    assert_eq!(dir.read("one.toml"), dir.read("two.toml"));
    let resumed = analyze("three.json", "--resume").ends(0);
    assert_eq!(dir.read("three.json"), dir.read("one.json"));
    assert!(resumed.stderr.contains("0 tasks"), "{}", resumed.stderr);
    assert!(!dir.has("three.json.partial"));
}

/// Kills an analysis as soon as it has finished a task, and goes on.
#[test]
fn an_analysis_that_is_killed_goes_on_and_ends_with_the_same_bytes() {
    let dir = tied();
    let line = "analyze net.onnx --calib calib.npz --eval eval.npz --threads 1 --candidates int8,int4,int3,int2,int4/uint8";
    dir.line(&format!("{line} -o whole.json")).ends(0);
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_onnx-quant"))
        .current_dir(dir.path("."))
        .args(line.split(' ').chain(["-o", "killed.json"]))
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let finished = || match dir.has("killed.json.partial") {
        true => dir
            .read("killed.json.partial")
            .split(|&b| b == b'\n')
            .count(),
        false => 0,
    };
    // The head, a task, and what follows the end of its line.
    while finished() < 3 {
        assert!(
            child.try_wait().unwrap().is_none(),
            "it ended before it could be killed"
        );
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!dir.has("killed.json"));
    let ran = dir.line(&format!("{line} --resume -o killed.json")).ends(0);
    assert!(!ran.stderr.contains(" 0 tasks"), "{}", ran.stderr);
    assert_eq!(dir.read("killed.json"), dir.read("whole.json"));
}

#[test]
fn budgets_hold_and_name_the_least_where_they_cannot() {
    let dir = tied();
    let analyze = "analyze net.onnx --calib calib.npz --candidates int8:channel,int4:channel,int2:channel -o s.json";
    dir.line(analyze).ends(0);
    for (limit, bits) in [
        ("--avg-bits 8.9", 8.9),
        ("--avg-bits 6", 6.0),
        ("--avg-bits 4.8", 4.8),
    ] {
        let line = format!("assign --sensitivity s.json {limit} -o p.toml --json");
        let said = dir.line(&line).ends(0).json();
        let chosen = said["front"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["chosen"] == true)
            .unwrap();
        let weights = 144.0 + 144.0 + 16.0 + 60.0;
        let have = chosen["bytes"].as_f64().unwrap() * 8.0 / weights;
        assert!(have <= bits, "{have} of {bits}");
        dir.line("quantize net.onnx --plan p.toml -o q.onnx")
            .ends(0);
    }
    let small = dir
        .line("assign --sensitivity s.json --max-size 4200 -o p.toml --json")
        .ends(0)
        .json();
    dir.line("quantize net.onnx --plan p.toml -o q.onnx")
        .ends(0);
    let bytes = dir.read("q.onnx").len() as u64;
    assert!(bytes <= 4200 && small["bytes"] == bytes, "{bytes} {small}");
    for (limit, words) in [
        ("--avg-bits 0.5", ["the least is", "--candidates"]),
        (
            "--max-size 100B",
            ["the smallest model has", "--candidates"],
        ),
        ("--max-bops 10", ["bit operations", "the least is"]),
    ] {
        let line = format!("assign --sensitivity s.json {limit} -o p.toml");
        dir.line(&line).refuses(&words);
    }
    let line = "assign --sensitivity s.json --max-bops 500000 -o p.toml --json";
    let said = dir.line(line).ends(0).json();
    assert!(said["bops"].as_u64().unwrap() <= 500_000, "{said}");
    dir.line("assign --sensitivity s.json -o p.toml")
        .refuses(&["--max-drop", "--max-size"]);
}

#[test]
fn tied_layers_agree_and_pinned_layers_stay() {
    let dir = tied();
    dir.line("analyze net.onnx --calib calib.npz --candidates int8/uint8,int8/uint16,int4/uint8,int4/uint16 -o s.json")
        .ends(0);
    for bits in ["8.9", "8", "6.3"] {
        dir.line(&format!(
            "assign --sensitivity s.json --avg-bits {bits} -o p.toml"
        ))
        .ends(0);
        let p = plan(&dir, "p.toml");
        assert_eq!(weights(&p, "shared_1"), weights(&p, "shared_2"), "{p}");
        let formats = ["conv_2", "add", "shared_1", "shared_2", "concat", "dense"].map(|n| {
            let own = layer(&p, n)
                .and_then(|l| l.get("activations"))
                .and_then(toml::Value::as_str);
            own.filter(|a| *a != "none").map(str::to_owned)
        });
        let mut known: Vec<String> = formats.into_iter().flatten().collect();
        known.dedup();
        assert!(known.len() <= 1, "{known:?}\n{p}");
        dir.line("quantize net.onnx --plan p.toml -o q.onnx")
            .ends(0);
    }
    dir.line("assign --sensitivity s.json --avg-bits 14 --pin conv_2=int4/uint8 --pin dense=fp32 -o p.toml")
        .ends(0);
    let p = plan(&dir, "p.toml");
    assert_eq!(
        (weights(&p, "conv_2"), weights(&p, "dense")),
        (Some("int4"), None),
        "{p}"
    );
    for (pin, words) in [
        ("nothing.*=int8", ["names no layer", "nothing.*"]),
        ("conv_2=int3", ["was not measured", "conv_2"]),
    ] {
        dir.line(&format!(
            "assign --sensitivity s.json --avg-bits 8 --pin {pin} -o p.toml"
        ))
        .refuses(&words);
    }
}

#[test]
fn a_drop_is_held_with_confidence_or_refused_with_reasons() {
    let dir = tied();
    let run = |drop: &str, more: &str| {
        dir.line(&format!(
            "quantize net.onnx --auto --calib calib.npz --eval eval.npz --max-drop {drop} {more} --candidates int8,int4 -o q.onnx --save-plan q.toml --json"
        ))
    };
    let held = run("10%", "").ends(0).json();
    let budget = &held["budget"];
    assert!(
        budget["held"] == true && budget["drop"].as_f64().unwrap() <= 0.1,
        "{budget}"
    );
    let check = dir
        .line("check net.onnx q.onnx --eval eval.npz --json")
        .ends(0)
        .json();
    assert!(check["task"]["drop"].as_f64().unwrap() <= 0.1, "{check}");
    dir.line("quantize net.onnx --plan q.toml -o again.onnx")
        .ends(0);
    assert_eq!(dir.read("again.onnx"), dir.read("q.onnx"));
    // With 400 samples a drop of nothing cannot be proved.
    std::fs::remove_file(dir.path("q.onnx")).unwrap();
    let refused = run("0%", "").ends(1);
    let why = refused.json()["not_written"].as_str().unwrap().to_owned();
    for words in ["no plan holds", "the best has", "95 %", "400 samples"] {
        assert!(why.contains(words), "{words} in {why}");
    }
    assert!(!dir.has("q.onnx"));
    // A smaller confidence allows a model that is no larger.
    let size = |c: &str| {
        run("10%", &format!("--confidence {c}")).ends(0).json()["size"]["after_bytes"]
            .as_u64()
            .unwrap()
    };
    assert!(size("0.5") <= size("0.99"));
}

#[test]
fn a_node_left_in_float_gets_no_needless_pairs() {
    let dir = tied();
    dir.line("analyze net.onnx --calib calib.npz --candidates int8/uint8 -o s.json")
        .ends(0);
    dir.line("assign --sensitivity s.json --avg-bits 30 --pin conv_1=int8/uint8 --pin conv_2=fp32 --pin shared_1=int8/uint8 --pin dense=int8/uint8 -o p.toml")
        .ends(0);
    dir.line("quantize net.onnx --plan p.toml -o q.onnx")
        .ends(0);
    let model = onnx_quant::ir::load::load(&dir.path("q.onnx")).unwrap();
    for node in model.all_nodes() {
        if model.node(node).op_type() != "QuantizeLinear" {
            continue;
        }
        // Every pair is read by an operator that runs in integers, not by the float convolution.
        let pair = model.consumers(model.output(node, 0).unwrap());
        for (dequantize, _) in pair {
            assert_eq!(model.node(dequantize).op_type(), "DequantizeLinear");
            let readers = model.consumers(model.output(dequantize, 0).unwrap());
            let floats = readers
                .iter()
                .filter(|(n, _)| model.node_key(*n) == "conv_2");
            assert!(
                readers.len() > floats.count(),
                "a pair for the float layer alone"
            );
        }
    }
    dir.line("check net.onnx q.onnx --eval eval.npz").ends(0);
}

#[test]
fn a_target_that_takes_weights_with_activations_alone_has_both() {
    let dir = Sandbox::new();
    dir.line("demo --out d -q").ends(0);
    dir.line("analyze d/model.onnx --calib d/calib.npz --samples 32 --target tensorrt -o s.json")
        .ends(0);
    let found = json(&dir, "s.json");
    let layers = found["layers"].as_array().unwrap();
    let measured = |both: bool| {
        let formats = layers.iter().flat_map(|l| l["formats"].as_array().unwrap());
        let of = formats.filter(|f| f["weights"].is_string());
        of.filter(|f| f["activations"].is_string() == both && f["loss"].is_number())
            .count()
    };
    assert!(measured(true) > layers.len() / 2, "{found}");
    assert_eq!(measured(false), 0);
    dir.line("quantize d/model.onnx --calib d/calib.npz --samples 32 --target tensorrt --auto --sensitivity s.json --avg-bits 12 -o q.onnx")
        .ends(0);
}

#[test]
fn a_budget_below_8_bits_is_held_without_a_list_of_formats() {
    let dir = Sandbox::new();
    dir.line("demo --out d -q").ends(0);
    dir.line("quantize d/model.onnx --calib d/calib.npz --samples 32 --activations none --auto --avg-bits 6 -o q.onnx --save-plan p.toml")
        .ends(0);
    let p = plan(&dir, "p.toml");
    let own = p["layer"].as_array().unwrap().iter();
    let formats: Vec<&str> = own.filter_map(|l| l.get("weights")?.as_str()).collect();
    assert!(formats.iter().any(|f| f.starts_with("int4:block")), "{p}");
    assert!(formats.contains(&"int8:channel"), "{p}");
}

#[test]
fn options_that_need_each_other_say_so() {
    let dir = Sandbox::with_net();
    dir.line("quantize net.onnx --max-size 1kB -o q.onnx")
        .refuses(&["--max-size needs --auto"]);
    dir.line("quantize net.onnx --auto --max-drop 1% -o q.onnx")
        .refuses(&["--calib or --eval"]);
    dir.line("quantize net.onnx --auto --calib calib.npz --max-drop 1% -o q.onnx")
        .refuses(&["--max-drop needs --eval"]);
    dir.line("analyze net.onnx -o s.json")
        .refuses(&["--calib or --eval"]);
    dir.line("analyze none.onnx --calib calib.npz -o s.json")
        .refuses(&["none.onnx does not exist"]);
    dir.write("s.json", b"{}");
    dir.line("assign net.onnx --sensitivity s.json --avg-bits 4 -o p.toml")
        .refuses(&["s.json", "no sensitivities"]);
    dir.line("quantize net.onnx --auto --plan p.toml -o q.onnx")
        .ends(2);
}

#[test]
fn a_plan_knows_how_accuracy_was_recovered() {
    let dir = tied();
    let weights = "--weights int4 --optimize adaround,bias-correction --calib calib.npz";
    dir.line(&format!(
        "quantize net.onnx {weights} -o a.onnx --save-plan p.toml"
    ))
    .ends(0);
    let made = plan(&dir, "p.toml");
    let optimize = made["optimize"].as_table().unwrap();
    assert_eq!(
        optimize["methods"].as_str(),
        Some("adaround,bias-correction")
    );
    dir.line("quantize net.onnx --plan p.toml --calib calib.npz -o b.onnx")
        .ends(0);
    assert!(dir.read("a.onnx") == dir.read("b.onnx"));
    let text = String::from_utf8(dir.read("p.toml")).unwrap();
    dir.write("q.toml", text.replace("adaround,", "adarond,").as_bytes());
    dir.line("quantize net.onnx --plan q.toml --calib calib.npz -o c.onnx")
        .refuses(&["q.toml:", "adarond", "did you mean `adaround`"]);
}

#[test]
fn what_is_recovered_after_the_choice_is_judged_with_its_interval() {
    let dir = tied();
    let auto = "quantize net.onnx --auto --avg-bits 7 --candidates int8/uint8,int4/uint8 --calib calib.npz --eval eval.npz";
    let ran = dir
        .line(&format!("{auto} --optimize fast -o a.onnx --json"))
        .ends(0);
    let chosen = &ran.json()["chosen"];
    let of = |key: &str| chosen[key].as_f64().unwrap();
    assert!(
        of("lower") <= of("drop") && of("drop") <= of("upper"),
        "{chosen}"
    );
    let checked = dir
        .line("check net.onnx a.onnx --eval eval.npz --json")
        .ends(0)
        .json();
    assert_eq!(
        of("candidate"),
        checked["task"]["candidate"].as_f64().unwrap()
    );
}

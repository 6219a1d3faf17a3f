//! Configuration files: `init`, what is in force and where it is from, mistakes, the schema.

use super::sandbox::Sandbox;
use serde_json::Value;

#[test]
fn init_then_quantize_with_no_other_argument() {
    let dir = Sandbox::with_net();
    let said = dir.line("init net.onnx").ends(0);
    for words in [
        "channels first (NCHW)",
        "calib = \"calib.npz\"  # 16 samples",
        "eval = \"eval.npz\"  # 24 samples",
        "# [[layer]]",
    ] {
        assert!(said.stdout.contains(words), "{words}\n{}", said.stdout);
    }
    let ran = dir.line("quantize").ends(0);
    assert!(ran.stdout.contains("on 24 samples"), "{}", ran.stdout);
    assert!(dir.has("net.int8.onnx") && dir.has("net.int8.json"));
    dir.line("init net.onnx")
        .refuses(&["onnx-quant.toml exists already", "--force"]);
    dir.line("init net.onnx --force").ends(0);
    dir.line("init net.int8.onnx -o other.toml")
        .refuses(&["already quantized"]);
    assert!(!dir.has("other.toml"));
}

#[test]
fn init_sees_what_a_model_is() {
    let dir = Sandbox::new();
    dir.model(
        "lm.onnx",
        "main (int64[1,T] input_ids, float[1,4,P,8] past_key_0) => (float[1,4,P,8] y)
{
  y = Relu (past_key_0)
}
",
    );
    dir.npz("calib.npz", &[("z", &[1], &[1.0])]);
    let text = dir.line("init lm.onnx").ends(0).stdout;
    for words in [
        "batch is fixed to 1",
        "1 inputs look like a key/value cache",
        "token ids",
        "Some axes are free",
        "# calib = \"calib.npz\"  # does not fit",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
}

const FILE: &str = "model = \"net.onnx\"
output = \"q.onnx\"
calib = \"calib.npz\"
seed = 7
exclude = [\"conv_1\", \"Flatten\"]
reduce-range = true

[profile.plain]
reduce-range = false
exclude = []

[check]
eval = \"eval.npz\"
layers = 2
";

fn rows(text: &str) -> Vec<(String, String)> {
    let split = |l: &str| {
        let (value, from) = l.rsplit_once("  # ")?;
        Some((value.trim_end().to_owned(), from.to_owned()))
    };
    text.lines().filter_map(split).collect()
}

#[test]
fn every_value_says_where_it_is_from() {
    let dir = Sandbox::with_net();
    dir.write("onnx-quant.toml", FILE.as_bytes());
    let has = |text: &str, value: &str, from: &str| {
        let found = rows(text);
        let wanted = (value.to_owned(), from.to_owned());
        assert!(found.contains(&wanted), "{wanted:?}\n{text}");
    };
    let text = dir
        .line("quantize --print-config --calibrator minmax")
        .ends(0)
        .stdout;
    has(&text, "calibrator = \"minmax\"", "command line");
    has(&text, "seed = 7", "onnx-quant.toml:4");
    has(
        &text,
        "exclude = [\"conv_1\", \"Flatten\"]",
        "onnx-quant.toml:5",
    );
    has(&text, "reduce-range = true", "onnx-quant.toml:6");
    has(&text, "min-activation-sqnr = 26", "default");
    assert!(!dir.has("q.onnx"), "it does nothing else");
    let text = dir
        .line("quantize --print-config --profile plain")
        .ends(0)
        .stdout;
    has(
        &text,
        "reduce-range = false",
        "onnx-quant.toml:9, profile plain",
    );
    let json = dir.line("quantize --print-config --json").ends(0).json();
    assert_eq!(json["seed"]["from"], "onnx-quant.toml:4");

    let report = dir.line("quantize --json").ends(0).json();
    assert_eq!(report["settings"]["reduce_range"], true);
    let node = report["nodes"].as_array().unwrap().iter();
    let conv = node.clone().find(|n| n["node"] == "conv_1").unwrap();
    assert_eq!(conv["reason"], "excluded by `conv_1`");
    let checked = dir.line("check net.onnx q.onnx").ends(0).stdout;
    assert!(checked.contains("(2 of "), "{checked}");
}

#[test]
fn a_file_elsewhere_is_found_beside_the_model_or_named() {
    let dir = Sandbox::with_net();
    std::fs::create_dir(dir.path("sub")).unwrap();
    for name in ["net.onnx", "calib.npz"] {
        std::fs::rename(dir.path(name), dir.path("sub").join(name)).unwrap();
    }
    dir.write("sub/onnx-quant.toml", FILE.as_bytes());
    dir.line("quantize sub/net.onnx").ends(0);
    assert!(dir.has("sub/q.onnx"), "paths start from the file's folder");
    dir.line("quantize --config sub/onnx-quant.toml -o r.onnx")
        .ends(0);
    assert!(dir.has("r.onnx"));
    dir.line("quantize sub/net.onnx -o s.onnx --no-config")
        .ends(0);
    assert_ne!(dir.read("r.onnx"), dir.read("s.onnx"), "without the data");
}

#[test]
fn mistakes_name_the_line() {
    let dir = Sandbox::with_net();
    for (line, words) in [
        (
            "calb = 1",
            "c.toml:2: there is no key `calb`; did you mean `calib`?",
        ),
        (
            "weights = \"int99\"",
            "c.toml:2: invalid value 'int99' for '--weights",
        ),
        (
            "reduce-range = 1",
            "c.toml:2: `reduce-range` is true or false, not a number",
        ),
        (
            "calib = [\"a\", \"b\"]",
            "c.toml:2: `calib` takes a string or a number, not a list",
        ),
        ("calib = ", "c.toml:2: "),
        ("profile = 3", "c.toml:2: `profile` takes tables"),
        (
            "[profile.a]\nsed = 1",
            "c.toml:3: there is no key `sed`; did you mean `seed`?",
        ),
        (
            "[check]\nevel = \"x\"",
            "c.toml:3: there is no key `evel`; did you mean `eval`?",
        ),
    ] {
        dir.write(
            "c.toml",
            format!("output = \"q.onnx\"\n{line}\n").as_bytes(),
        );
        dir.line("quantize net.onnx --config c.toml")
            .refuses(&[words]);
    }
    dir.write("c.toml", b"[profile.small]\nseed = 1\n");
    dir.line("quantize net.onnx -o q.onnx --config c.toml --profile big")
        .refuses(&["has no profile `big`", "small"]);
    dir.line("quantize net.onnx -o q.onnx --profile big")
        .refuses(&["--profile big needs a configuration"]);
    dir.line("quantize net.onnx -o q.onnx --config none.toml")
        .refuses(&["cannot read none.toml"]);
    assert!(!dir.has("q.onnx"));
}

#[test]
fn the_schema_lists_every_key() {
    let dir = Sandbox::new();
    let schema = dir.line("config --schema").ends(0);
    let schema: Value = schema.json();
    assert_eq!(schema["properties"]["reduce-range"]["type"], "boolean");
    assert_eq!(schema["additionalProperties"], false);
    let properties = schema["$defs"]["options"]["properties"].as_object();
    let properties = properties.unwrap();
    let wrong: Vec<&String> = properties.keys().filter(|k| k.contains('_')).collect();
    assert!(wrong.is_empty(), "no keys of TOML files: {wrong:?}");
    assert!(properties.contains_key("calib") && !properties.contains_key("help"));
}

#[test]
fn quiet_and_verbose() {
    let dir = Sandbox::with_net();
    let quiet = dir.line("quantize net.onnx -o q.onnx -q").ends(0);
    assert_eq!(quiet.stderr, "");
    let loud = dir.line("quantize net.onnx -o q.onnx -v").ends(0);
    assert!(loud.stderr.contains("fold_constants: "), "{}", loud.stderr);
    assert!(!loud.stderr.contains('\u{1b}'), "no colours in a pipe");
    dir.line("quantize net.onnx -o q.onnx -q -v").ends(2);
}

#[test]
fn layers_have_rules() {
    let dir = Sandbox::with_net();
    dir.write(
        "onnx-quant.toml",
        b"calib = \"calib.npz\"\n[[layer]]\nmatch = \"conv_1\"\nweights = \"none\"\n[[layer]]\nmatch = \"Gemm\"\nweights = \"int8:tensor\"\n",
    );
    let report = dir
        .line("quantize net.onnx -o q.onnx --json")
        .ends(0)
        .json();
    let node = |name: &str| {
        let mut nodes = report["nodes"].as_array().unwrap().iter();
        nodes.find(|n| n["node"] == name).unwrap().clone()
    };
    assert_eq!(node("conv_1")["precision"], "float");
    assert_eq!(node("conv_2")["precision"], "integer");
    let weights = report["weights"].as_array().unwrap();
    let dense = weights.iter().find(|w| w["weight"] == "W3").unwrap();
    assert!(dense["axis"].is_null(), "{dense}");
    dir.write(
        "onnx-quant.toml",
        b"[[layer]]\nmatch = \"conv_9\"\nweights = \"none\"\n",
    );
    dir.line("quantize net.onnx -o q.onnx")
        .refuses(&["onnx-quant.toml:2", "conv_9"]);
    dir.run(&[
        "quantize",
        "net.onnx",
        "-o",
        "q.onnx",
        "--no-config",
        "--layer",
        "{ mach = \"a\" }",
    ])
    .refuses(&["did you mean `match`?"]);
}

#[test]
fn a_model_says_how_it_was_made() {
    let dir = Sandbox::with_net();
    dir.line("quantize net.onnx --calib calib.npz -o q.onnx --reduce-range --threads 1")
        .ends(0);
    let text = dir.line("inspect q.onnx").ends(0).stdout;
    assert!(
        text.contains("command  onnx-quant quantize --reduce-range\n"),
        "{text}"
    );
    let said = dir.line("inspect q.onnx --json").ends(0).json();
    let said = &said["metadata"];
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"));
    let source = onnx_quant::metadata::digest(&dir.read("net.onnx"));
    assert_eq!(said["source"], source.as_str());
    assert!(said["plan"].as_str().unwrap().contains("integer"), "{said}");
    let plain = dir.line("inspect net.onnx --json").ends(0).json();
    assert!(plain["metadata"].is_null());
}

#[test]
fn diff_names_the_layers_that_are_quantized_otherwise() {
    let dir = Sandbox::with_net();
    dir.line("quantize net.onnx --calib calib.npz -o a.onnx")
        .ends(0);
    dir.line("quantize net.onnx --calib calib.npz -o b.onnx --exclude conv_2")
        .ends(0);
    let text = dir.line("diff a.onnx b.onnx").ends(0).stdout;
    let (_, layers) = text.split_once("quantization of layers:\n").unwrap();
    assert!(layers.contains("- conv_2  Conv: in0 u8 scale "), "{layers}");
    assert!(!layers.contains("conv_1  Conv: in1"), "{layers}");
    let same = dir.line("diff a.onnx a.onnx").ends(0).stdout;
    assert!(!same.contains("quantization of layers"), "{same}");
}

#[test]
fn completions_and_manual_pages() {
    let dir = Sandbox::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = dir.run(&["completions", shell]).ends(0).stdout;
        assert!(
            script.contains("quantize") && script.contains("calib"),
            "{shell}"
        );
    }
    let page = dir.run(&["man"]).ends(0).stdout;
    assert!(page.contains(".TH onnx-quant 1"), "{page}");
    dir.line("man --out pages").ends(0);
    let page = String::from_utf8(dir.read("pages/onnx-quant-quantize.1")).unwrap();
    assert!(page.contains("max\\-drop"), "{page}");
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_nothing_half_written() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    let dir = Sandbox::with_net();
    // The check runs for long enough to be interrupted: many samples, and the model is written after it.
    let many = super::sandbox::noise(200_000 * 64, 3);
    dir.npz("many.npz", &[("x", &[200_000, 1, 8, 8], &many)]);
    let before = dir.names();
    let mut child = Command::new(env!("CARGO_BIN_EXE_onnx-quant"))
        .args([
            "quantize", "net.onnx", "--calib", "many.npz", "-o", "q.onnx",
        ])
        .current_dir(dir.path("."))
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(std::time::Duration::from_millis(400));
    let kill = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    let code = child.wait().unwrap().code();
    let mut said = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut said);
    assert_eq!(code, Some(130), "{said}");
    assert_eq!(dir.names(), before);
}

#[test]
fn encodings_go_out_and_come_back() {
    let dir = Sandbox::with_net();
    dir.line("quantize net.onnx --calib calib.npz -o a.onnx")
        .ends(0);
    dir.line("export-encodings a.onnx -o e.json").ends(0);
    let encodings: Value = serde_json::from_slice(&dir.read("e.json")).unwrap();
    let x = &encodings["activation_encodings"]["x"][0];
    assert_eq!(
        (x["bitwidth"].as_u64(), x["is_symmetric"].as_str()),
        (Some(8), Some("False"))
    );
    let channels = encodings["param_encodings"]["W1"].as_array().unwrap();
    assert_eq!(channels.len(), 8);
    dir.line("quantize net.onnx --import-encodings e.json -o b.onnx")
        .ends(0);
    let scales = |file: &str| {
        let found = dir.run(&["inspect", file, "--json"]).ends(0).json();
        let list = found["quantization"]["activations"]
            .as_array()
            .unwrap()
            .clone();
        let one = |a: &Value| (a["name"].to_string(), a["scale"].as_f64().unwrap());
        list.iter().map(one).collect::<Vec<_>>()
    };
    let (a, b) = (scales("a.onnx"), scales("b.onnx"));
    assert_eq!(a.len(), b.len());
    for ((name, x), (other, y)) in a.iter().zip(&b) {
        assert_eq!(name, other);
        assert!((x / y - 1.0).abs() < 0.01, "{name}: {x} {y}");
    }
    // Weights take scales too: twice as large here.
    let mut wide = encodings.clone();
    for entry in wide["param_encodings"]["W1"].as_array_mut().unwrap() {
        for key in ["scale", "min", "max"] {
            entry[key] = (entry[key].as_f64().unwrap() * 2.0).into();
        }
    }
    wide["param_encodings"]["lost"] = wide["param_encodings"]["W1"].clone();
    dir.write("wide.json", wide.to_string().as_bytes());
    let ran = dir
        .line("quantize net.onnx --import-encodings wide.json -o c.onnx")
        .ends(0);
    let said = format!("{}{}", ran.stderr, ran.stdout);
    assert!(
        said.contains("3 of its parameters") && said.contains("`lost`"),
        "{said}"
    );
    dir.line("export-encodings c.onnx -o back.json").ends(0);
    let back: Value = serde_json::from_slice(&dir.read("back.json")).unwrap();
    let scales = |of: &Value| {
        let list = of["param_encodings"]["W1"].as_array().unwrap().clone();
        let scale = |e: &Value| e["scale"].as_f64().unwrap() as f32;
        list.iter().map(scale).collect::<Vec<f32>>()
    };
    assert_eq!(scales(&back), scales(&wide));
    dir.write("other.json", b"{\"activation_encodings\": {}}");
    dir.line("quantize net.onnx --import-encodings other.json -o c.onnx")
        .refuses(&["other.json", "none of its 0 activations and 0 parameters"]);
    dir.line("export-encodings net.onnx")
        .refuses(&["nothing to export"]);
}

#[test]
fn data_sets_have_options_of_their_own() {
    let dir = Sandbox::with_net();
    std::fs::create_dir(dir.path("sub")).unwrap();
    for name in ["calib.npz", "eval.npz"] {
        std::fs::rename(dir.path(name), dir.path("sub").join(name)).unwrap();
    }
    let text = "calib = \"small\"\neval = \"whole\"\n\n[dataset.small]\npath = \"calib.npz\"\nsamples = 5\n\n[dataset.whole]\npath = \"eval.npz\"\nsamples = 7\n";
    dir.write("sub/onnx-quant.toml", text.as_bytes());
    let run = |more: &str| {
        let line = format!("quantize net.onnx -o q.onnx --config sub/onnx-quant.toml {more}");
        let ran = dir.line(&line).ends(0);
        ran.stderr.clone() + &ran.stdout
    };
    let said = run("");
    for words in ["calibrate   5 samples", "on 7 samples"] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    let said = run("--samples 3 --eval-samples 2 --force");
    for words in ["calibrate   3 samples", "on 2 samples"] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    let mistake = |text: &str, words: &[&str]| {
        dir.write("bad.toml", text.as_bytes());
        dir.line("quantize net.onnx -o z.onnx --config bad.toml")
            .refuses(words);
    };
    mistake(
        "[dataset.a]\npath = \"x\"\nsampels = 1\n",
        &["did you mean `samples`?"],
    );
    mistake("[dataset]\na = 1\n", &["bad.toml:2", "must be a table"]);
    mistake(
        "calib = \"a\"\n[dataset.a]\nsamples = 1\n",
        &["`path` is missing"],
    );
}

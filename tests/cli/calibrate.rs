//! Calibration as a file: shards, merging, resuming, and what is refused.

use onnx_quant::ir::proto::{Message, ModelProto};

use super::sandbox::{Sandbox, array, noise};

#[test]
fn statistics_from_a_file_give_the_same_model() {
    let dir = Sandbox::with_net();
    dir.line("calibrate net.onnx --calib calib.npz -o stats.json")
        .ends(0);
    for calibrator in [
        "mse",
        "minmax",
        "minmax-avg",
        "ema:0.9",
        "percentile:99.9",
        "kl",
    ] {
        let quantize = format!("quantize net.onnx --calibrator {calibrator}");
        dir.line(&format!("{quantize} --calib calib.npz -o direct.onnx"))
            .ends(0);
        dir.line(&format!("{quantize} --stats stats.json -o later.onnx"))
            .ends(0);
        assert_eq!(
            dir.read("direct.onnx"),
            dir.read("later.onnx"),
            "{calibrator}"
        );
    }
    let target = "quantize net.onnx --target openvino --activations int8";
    dir.line(&format!("{target} --calib calib.npz -o direct.onnx"))
        .ends(0);
    dir.line(&format!("{target} --stats stats.json -o later.onnx"))
        .ends(0);
    assert_eq!(dir.read("direct.onnx"), dir.read("later.onnx"));
}

#[test]
fn auto_says_what_it_chose_and_is_not_worse_than_the_default() {
    let dir = Sandbox::with_net();
    let quantize = "quantize net.onnx --calib calib.npz";
    let run = dir
        .line(&format!("{quantize} --calibrator auto -o auto.onnx --json"))
        .ends(0);
    let report = run.json();
    let notes = report["notes"].as_array().unwrap().iter();
    let said = notes
        .filter_map(|n| n.as_str())
        .find(|n| n.starts_with("auto chose"));
    let said = said.unwrap();
    let (_, list) = said.split_once(" samples: ").unwrap();
    let ratio = |tried: &str| {
        tried
            .trim_end_matches(" dB")
            .rsplit(' ')
            .next()
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    let tried: Vec<(&str, f64)> = list.split(", ").map(|t| (t, ratio(t))).collect();
    assert_eq!(tried.len(), 9, "{said}");
    let chosen = said["auto chose ".len()..].split(" by ").next().unwrap();
    let own = tried.iter().find(|t| t.0.starts_with(chosen)).unwrap();
    // The default one, or one that is better.
    assert!(own.1 >= tried[0].1, "{said}");
    // The same again on one thread, and the same as asking for what was chosen.
    dir.line(&format!(
        "{quantize} --calibrator auto --threads 1 -o one.onnx"
    ))
    .ends(0);
    assert_eq!(dir.read("one.onnx"), dir.read("auto.onnx"));
    if !chosen.contains("each tensor") {
        dir.line(&format!("{quantize} --calibrator {chosen} -o single.onnx"))
            .ends(0);
        let without_command = |name: &str| {
            let mut model = ModelProto::decode(dir.read(name).as_slice()).unwrap();
            model.metadata_props.clear();
            model.encode_to_vec()
        };
        assert!(without_command("single.onnx") == without_command("auto.onnx"));
    }
    // Statistics alone hold nothing to judge by.
    dir.line("calibrate net.onnx --calib calib.npz -o stats.json")
        .ends(0);
    let later = dir
        .line("quantize net.onnx --stats stats.json --calibrator auto -o later.onnx --json")
        .ends(0);
    assert!(
        later.stdout.contains("by its statistics"),
        "{}",
        later.stdout
    );
}

#[test]
fn auto_clips_nothing_where_a_cache_grows_beyond_the_calibrated_positions() {
    let dir = Sandbox::new();
    dir.model(
        "decoder.onnx",
        "main (int64[N,S] ids, float[N,P,8] past) => (float[N,T,8] present, float[N,T,8] y)
        <float[9,8] W = random(1), float[12,8] V = random(2), float[8,8] M = random(3), int64 O = {0}, int64 I = {1},
         int64[1] L = {1}, int64[1] H = {2}, int64[1] A = {0}>
        {
          d = Shape (past)
          p = Slice (d, L, H, A)
          start = Squeeze (p, A)
          e = Shape (ids)
          q = Slice (e, L, H, A)
          more = Squeeze (q, A)
          end = Add (start, more)
          places = Range (start, end, I)
          t = Gather (W, ids)
          at = Gather (V, places)
          x = Add (t, at)
          k = MatMul (x, M)
          present = Concat <axis = 1> (past, k)
          y = Relu (present)
        }",
    );
    let said = |length: usize| {
        let ids = (0..8 * length).flat_map(|i| (i as i64 % 9).to_le_bytes());
        let past = noise(8 * 4 * 8, 5).into_iter().flat_map(f32::to_le_bytes);
        dir.arrays(
            "calib.npz",
            &[
                array("ids", "<i8", &[8, length], ids.collect()),
                array("past", "<f4", &[8, 4, 8], past.collect()),
            ],
        );
        let line = "quantize decoder.onnx --calib calib.npz --calibrator auto -o q.onnx --json";
        let report = dir.line(line).ends(0).json();
        let notes = report["notes"].as_array().unwrap().iter();
        let mut notes = notes.filter_map(|n| n.as_str());
        notes
            .find(|n| n.starts_with("auto chose"))
            .unwrap()
            .to_owned()
    };
    let short = "auto chose minmax, which clips nothing: the calibration data has contexts of up to 6 of the 12 positions in `V`";
    assert!(said(2).starts_with(short), "{}", said(2));
    assert!(!said(8).contains("clips nothing"), "{}", said(8));
}

#[test]
fn shards_merge_to_the_bytes_of_a_single_run() {
    let dir = Sandbox::with_net();
    dir.line("calibrate net.onnx --calib calib.npz -o all.json")
        .ends(0);
    dir.line("calibrate net.onnx --calib calib.npz -o one.json --threads 1")
        .ends(0);
    assert_eq!(dir.read("one.json"), dir.read("all.json"));
    for k in 1..=3 {
        let run = format!("calibrate net.onnx --calib calib.npz --shard {k}/3 -o part{k}.json");
        dir.line(&run).ends(0);
    }
    dir.line("calibrate --merge part3.json part1.json part2.json -o merged.json")
        .ends(0);
    assert_eq!(dir.read("merged.json"), dir.read("all.json"));
    dir.line("calibrate --merge part2.json part2.json -o x.json")
        .refuses(&["more than one part"]);
    let partial = dir
        .line("quantize net.onnx --stats part2.json -o x.onnx --json")
        .ends(0);
    assert!(
        partial.stdout.contains("of 16 calibration samples"),
        "{}",
        partial.stdout
    );
    for (shard, words) in [
        ("0/3", "counted from 1"),
        ("4/3", "counted from 1"),
        ("x", "K/N"),
    ] {
        let run = format!("calibrate net.onnx --calib calib.npz --shard {shard} -o x.json");
        assert!(dir.line(&run).ends(2).stderr.contains(words));
    }
    assert!(!dir.has("x.json"));
}

#[test]
fn an_interrupted_run_goes_on_with_the_same_bytes() {
    let dir = Sandbox::with_net();
    dir.line("calibrate net.onnx --calib calib.npz -o all.json")
        .ends(0);
    // What a run that was killed half way has left.
    dir.line("calibrate net.onnx --calib calib.npz --shard 1/2 -o half.json")
        .ends(0);
    dir.write("resumed.json.part", &dir.read("half.json"));
    let ran = dir
        .line("calibrate net.onnx --calib calib.npz --resume -o resumed.json --json")
        .ends(0);
    assert_eq!(ran.json()["resumed"], 8);
    assert_eq!(dir.read("resumed.json"), dir.read("all.json"));
    assert!(!dir.has("resumed.json.part"));
    // Without a checkpoint it starts anew.
    dir.line("calibrate net.onnx --calib calib.npz --resume -o fresh.json")
        .ends(0);
    assert_eq!(dir.read("fresh.json"), dir.read("all.json"));
    // A checkpoint of other data, or of another shard, is not mixed in.
    dir.write("other.json.part", &dir.read("half.json"));
    dir.npz("other.npz", &[("x", &[16, 1, 8, 8], &noise(16 * 64, 9))]);
    dir.line("calibrate net.onnx --calib other.npz --resume -o other.json")
        .refuses(&["other.json.part", "other data"]);
    dir.line("calibrate net.onnx --calib calib.npz --shard 2/2 --resume -o other.json")
        .refuses(&["other.json.part", "another shard"]);
    // Nor is one of another runtime.
    let half = String::from_utf8(dir.read("half.json")).unwrap();
    let other = half.replace("\"engine\":\"tract\"", "\"engine\":\"onnxruntime\"");
    assert_ne!(other, half);
    dir.write("other.json.part", other.as_bytes());
    dir.line("calibrate net.onnx --calib calib.npz --resume -o other.json")
        .refuses(&["other.json.part", "onnxruntime, not with tract"]);
}

#[test]
fn files_that_do_not_belong_are_refused() {
    let dir = Sandbox::with_net();
    dir.line("calibrate net.onnx --calib calib.npz -o stats.json")
        .ends(0);
    dir.line("rewrite net.onnx --pipeline strip_debug_info,fold_constants,upgrade_opset{to=22} -o other.onnx");
    if dir.has("other.onnx") && dir.read("other.onnx") != dir.read("net.onnx") {
        dir.line("quantize other.onnx --stats stats.json -o x.onnx")
            .refuses(&["stats.json", "another model"]);
    }
    dir.write("bad.json", b"{}");
    dir.line("quantize net.onnx --stats bad.json -o x.onnx")
        .refuses(&["bad.json", "is not a calibration file"]);
    dir.line("quantize net.onnx --stats absent.json -o x.onnx")
        .refuses(&["absent.json", "cannot be read"]);
    dir.npz("longer.npz", &[("x", &[8, 1, 8, 8], &noise(8 * 64, 1))]);
    dir.line("calibrate net.onnx --calib longer.npz -o longer.json")
        .ends(0);
    dir.line("calibrate --merge stats.json longer.json -o x.json")
        .refuses(&["longer.json", "16 samples, not 8"]);
    assert!(!dir.has("x.onnx") && !dir.has("x.json"));
}

/// A branch that data chooses, one that none takes, and a loop.
const CONTROL: &str = r#"<ir_version: 8, opset_import: ["" : 17]>
main (float[N,8] x) => (float[N,8] y) <
  float[8,8] w = random(1), float[8,8] v = random(2), float zero = {0}, float huge = {1000000000.0}, int64 turns = {3}
> {
  mean = ReduceMean <keepdims = 0> (x)
  positive = Greater (mean, zero)
  impossible = Greater (mean, huge)
  [choice] a = If (positive) <
    then_branch = t () => (float[N,8] p) { [left] m = MatMul (x, w) p = Relu (m) },
    else_branch = e () => (float[N,8] q) { [right] q = MatMul (x, v) }
  >
  [rare] b = If (impossible) <
    then_branch = never () => (float[N,8] r) { n = MatMul (a, w) [idle] r = MatMul (n, v) },
    else_branch = always () => (float[N,8] s) { s = Identity (a) }
  >
  [loop] y = Loop (turns, , b) <
    body = turn (int64 i, bool c, float[N,8] h) => (bool d, float[N,8] k) {
      d = Identity (c)
      [again] k = MatMul (h, v)
    }
  >
}"#;

#[test]
fn bodies_of_control_flow_are_calibrated_where_a_sample_runs_them() {
    let dir = Sandbox::new();
    dir.model("net.onnx", CONTROL);
    dir.npz("calib.npz", &[("x", &[64, 8], &noise(512, 1))]);
    dir.line("calibrate net.onnx --calib calib.npz -o stats.json")
        .ends(0);
    let stats: serde_json::Value = serde_json::from_slice(&dir.read("stats.json")).unwrap();
    assert!(stats["values"]["loop/body/h"].is_object(), "{stats}");
    let quantize = "quantize net.onnx --min-activation-sqnr 10";
    let run = dir
        .line(&format!("{quantize} --calib calib.npz -o a.onnx --json"))
        .ends(0);
    dir.line(&format!(
        "{quantize} --stats stats.json --threads 1 -o b.onnx"
    ))
    .ends(0);
    assert_eq!(dir.read("a.onnx"), dir.read("b.onnx"));
    let report = run.json();
    let notes = report["notes"].to_string();
    assert!(
        notes.contains("no calibration sample runs the body `rare/then_branch`"),
        "{notes}"
    );
    let node = |key: &str| {
        let nodes = report["nodes"].as_array().unwrap().iter();
        let mut found = nodes.filter(|n| n["node"] == key);
        found
            .next()
            .unwrap_or_else(|| panic!("no {key} in {report}"))
            .clone()
    };
    for key in [
        "choice/then_branch/left",
        "choice/else_branch/right",
        "loop/body/again",
    ] {
        assert_eq!(node(key)["precision"], "integer", "{key}");
    }
    let idle = node("rare/then_branch/idle");
    assert_eq!(idle["precision"], "weight-only");
    let reason = idle["reason"].as_str().unwrap();
    assert!(reason.contains("no sample runs the body"), "{reason}");
    dir.line("check net.onnx a.onnx --eval calib.npz").ends(0);
}

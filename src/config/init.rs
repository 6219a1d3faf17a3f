//! A first configuration for a model, with what can be seen of it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use onnx_quant_ir::{DataType, Model, load};

use super::file::quote;
use crate::data::{DataSet, Input, Labels, Signature};
use crate::error::Error;
use crate::pipeline;

/// Names of calibration data that are looked for beside a model, the best first.
const CALIBRATION: [&str; 8] = [
    "calib.npz",
    "calibration.npz",
    "calib.npy",
    "calibration.npy",
    "calib",
    "calibration",
    "test_data_set_0",
    "data.npz",
];
/// The same for evaluation data.
const EVALUATION: [&str; 8] = [
    "eval.npz",
    "evaluation.npz",
    "val.npz",
    "test.npz",
    "eval.npy",
    "eval",
    "val",
    "test",
];
/// The same for labels.
const LABELS: [&str; 4] = [
    "labels.npy",
    "eval_labels.npy",
    "val_labels.npy",
    "targets.npy",
];

/// The text of a configuration for a model, with comments. Data that lies beside the model is used where it fits.
///
/// # Errors
/// A file that is no model, or a model that is quantized already.
pub fn propose(path: &Path) -> Result<String, Error> {
    let model = load::load(path)?;
    pipeline::refuse_quantized(&model, path)?;
    let name = file_name(path);
    let stem = path
        .file_stem()
        .map_or("model".into(), |s| s.to_string_lossy());
    let mut out = String::new();
    let _ = writeln!(
        out,
        "# The configuration of `onnx-quant quantize`. Keys are its options by their long names (`onnx-quant quantize\n\
         # --help` explains them); what the command line gives wins. Paths start from the folder of this file.\n"
    );
    let _ = writeln!(out, "model = {}", quote(&name));
    let _ = writeln!(out, "output = {}", quote(&format!("{stem}.int8.onnx")));
    let _ = writeln!(out, "report = {}\n", quote(&format!("{stem}.int8.json")));
    let signature = Signature::of(&model);
    match &signature {
        Ok(s) => describe(&mut out, s, &model),
        Err(e) => {
            let _ = writeln!(out, "# The model cannot be fed from files: {e}");
        }
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    data(&mut out, signature.as_ref().ok(), folder);
    out.push_str(CHOICES);
    rules(&mut out, &model);
    out.push_str(PROFILE);
    Ok(out)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

const CHOICES: &str = "
# Formats and ranges. These are the defaults.
# weights = \"int8:channel\"
# activations = \"uint8\"
# calibrator = \"mse\"           # or minmax, percentile:99.99, kl
# Nodes that stay in float: globs over names, or operator types.
# exclude = [\"Softmax\", \"*/head/*\"]
";

const PROFILE: &str = "
# Other values under a name: `onnx-quant quantize --profile small` uses them.
# [profile.small]
# activations = \"none\"
";

/// What is seen of the inputs.
fn describe(out: &mut String, signature: &Signature, model: &Model) {
    out.push_str("# What was seen of the model:\n");
    for input in signature.required() {
        let _ = writeln!(out, "# * `{}` is {input}{}", input.name, remark(input));
    }
    let count = signature.inputs.len() - signature.required().count();
    if count > 0 {
        let _ = writeln!(
            out,
            "# * {count} more inputs have default values (an old exporter lists its weights so) and become constants;\n\
             #   keep-input = [\"NAME\"] keeps one an input."
        );
    }
    if let Some(n) = fixed_batch(signature) {
        let _ = writeln!(
            out,
            "# * The batch is fixed to {n}: data is fed in pieces of that size."
        );
    }
    let cache = cache_inputs(signature);
    if cache > 0 {
        let _ = writeln!(
            out,
            "# * {cache} inputs look like a key/value cache of a decoder. Calibrate with caches that are filled, as they are\n\
             #   in use; an empty cache teaches nothing about the values that it will hold."
        );
    }
    if is_tokenized(signature) {
        out.push_str(
            "# * Inputs are token ids: the data must be tokenized as the model was trained. Transformers often have strong\n\
             #   outliers; layers that do not bear eight bits stay in float by themselves, and the report names them.\n",
        );
    }
    let free = |i: &&Input| i.symbols.iter().skip(1).any(Option::is_some);
    if signature.required().any(|i| free(&i)) {
        out.push_str("# * Some axes are free: use data with the lengths that occur in practice.\n");
    }
    let subgraphs = model.graph_ids().len() - 1;
    if subgraphs > 0 {
        let _ = writeln!(
            out,
            "# * {subgraphs} subgraphs (If, Loop, Scan): their nodes stand in the report too."
        );
    }
    out.push('\n');
}

/// What the shape of an image input says of its layout.
fn remark(input: &Input) -> &'static str {
    let is_float = matches!(
        input.dtype,
        DataType::Float | DataType::Float16 | DataType::Double
    );
    let image = |n: Option<usize>| matches!(n, Some(1 | 3 | 4));
    match input.rank() {
        Some(4) if is_float || input.dtype == DataType::Uint8 => {
            match (image(input.fixed(1)), image(input.fixed(3))) {
                (true, false) => ", which looks like images with channels first (NCHW)",
                (false, true) => ", which looks like images with channels last (NHWC)",
                _ => "",
            }
        }
        _ => "",
    }
}

/// The size of the first axis, where all inputs that have one fix it to the same size.
fn fixed_batch(signature: &Signature) -> Option<usize> {
    let mut sizes = signature
        .required()
        .filter(|i| i.rank().is_some_and(|r| r > 1))
        .map(|i| i.fixed(0));
    let first = sizes.next()??;
    sizes.all(|s| s == Some(first)).then_some(first)
}

fn cache_inputs(signature: &Signature) -> usize {
    let is_cache = |i: &&Input| {
        let name = i.name.to_lowercase();
        i.rank().is_some_and(|r| r >= 3)
            && ["past", "cache", "kv_"].iter().any(|w| name.contains(w))
    };
    signature.required().filter(is_cache).count()
}

fn is_tokenized(signature: &Signature) -> bool {
    let is_ids = |i: &Input| {
        let name = i.name.to_lowercase();
        let words = ["input_ids", "token", "attention_mask", "ids"];
        matches!(i.dtype, DataType::Int64 | DataType::Int32)
            && words.iter().any(|w| name.contains(w))
    };
    signature.required().any(is_ids)
}

/// The data beside the model: what opens is used, what does not is named with the reason.
fn data(out: &mut String, signature: Option<&Signature>, folder: &Path) {
    let there = |names: &[&'static str]| -> Vec<(&'static str, PathBuf)> {
        let at = |n: &&'static str| (*n, folder.join(n));
        let found = names.iter().map(at);
        found.filter(|(_, path)| path.exists()).collect()
    };
    let mut samples = None;
    for (key, names, what) in [
        (
            "calib",
            &CALIBRATION[..],
            "Data that ranges are learnt from; without it only weights are quantized.",
        ),
        (
            "eval",
            &EVALUATION[..],
            "Data that both models are run on and compared.",
        ),
    ] {
        let _ = writeln!(out, "# {what}");
        let mut taken = false;
        for (name, path) in there(names) {
            match signature.map(|s| DataSet::open(&path, s)) {
                Some(Ok(d)) if !taken => {
                    let _ = writeln!(out, "{key} = {}  # {} samples", quote(name), d.len());
                    taken = true;
                    if key == "eval" {
                        samples = Some(d.len());
                    }
                }
                Some(Err(e)) => {
                    let e = e.to_string().replace('\n', " ");
                    let _ = writeln!(out, "# {key} = {}  # does not fit: {e}", quote(name));
                }
                _ => {}
            }
        }
        if !taken {
            let _ = writeln!(out, "# {key} = \"{}\"", names[0]);
        }
    }
    let fits = |path: &Path| {
        let labels = Labels::open(path)?;
        labels.check(samples.unwrap_or(0))
    };
    let labels = there(&LABELS);
    let first = labels
        .iter()
        .find(|(_, p)| samples.is_some() && fits(p).is_ok());
    match first {
        Some((name, _)) => {
            let _ = writeln!(out, "labels = {}", quote(name));
        }
        None => out.push_str("# labels = \"labels.npy\"\n"),
    }
    out.push_str(
        "# The most that may be lost: points of top-1, relative rise of perplexity; else the model is not written.\n\
         # max-drop = \"1%\"\n",
    );
}

/// An example of a rule, with a name of this model.
fn rules(out: &mut String, model: &Model) {
    let weighted = |n: &&onnx_quant_ir::NodeId| {
        matches!(model.node(**n).op_type(), "Conv" | "Gemm" | "MatMul")
    };
    let nodes = &model.main().nodes;
    let last = nodes.iter().rev().find(weighted);
    let name = last.map_or_else(|| "head.*".to_owned(), |&n| model.node_key(n));
    let _ = write!(
        out,
        "\n# Other formats for some layers, by a glob over node names or an operator type.\n# [[layer]]\n# match = {}\n# weights = \"none\"\n",
        quote(&name)
    );
}

//! Texts as data, through the program. The tokenizer and the texts are made here.
#![cfg(feature = "text")]

use super::sandbox::Sandbox;

/// A word is a token; a sentence stands between [CLS] and [SEP].
const TOKENIZER: &str = r#"{
  "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
  "normalizer": {"type": "Lowercase"},
  "pre_tokenizer": {"type": "Whitespace"},
  "post_processor": {"type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
      {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
      "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
  "decoder": null,
  "model": {"type": "WordLevel", "unk_token": "[UNK]",
    "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "b": 5, "c": 6, "d": 7}}
}"#;

/// Logits for the next of eight tokens.
const LANGUAGE: &str = "main (int64[N,T] input_ids) => (float[N,T,8] logits)
<float[8,6] table = random(1), float[6,8] head = random(2)>
{
  [embed] e = Gather (table, input_ids)
  [head] logits = MatMul (e, head)
}
";

/// Each of the three usual inputs, as floats beside each other.
const ENCODER: &str = "main (int64[N,T] input_ids, int64[N,T] attention_mask, int64[N,T] token_type_ids) => (float[N,T] i, float[N,T] m, float[N,T] t)
{
  i = Cast <to = 1> (input_ids)
  m = Cast <to = 1> (attention_mask)
  t = Cast <to = 1> (token_type_ids)
}
";

fn with_tokenizer() -> Sandbox {
    let dir = Sandbox::new();
    dir.write("tokenizer.json", TOKENIZER.as_bytes());
    dir.model("encoder.onnx", ENCODER);
    dir.model("language.onnx", LANGUAGE);
    dir
}

#[test]
fn a_line_is_a_sample_with_a_mask() {
    let dir = with_tokenizer();
    dir.write("corpus.txt", b"A b x\n\nd d d d\n");
    let line = "run encoder.onnx --data corpus.txt --tokenizer tokenizer.json -o y.npz";
    let ran = dir.line(line).ends(0);
    assert!(ran.stdout.contains("1 lines are blank"), "{}", ran.stdout);
    let row = |name: &str| dir.array("y.npz", name, "float[N,8]");
    let ids = [
        2., 4., 5., 1., 3., 0., 0., 0., 2., 7., 7., 7., 7., 3., 0., 0.,
    ];
    assert_eq!(row("i"), ids);
    let mask = [
        1., 1., 1., 1., 1., 0., 0., 0., 1., 1., 1., 1., 1., 1., 0., 0.,
    ];
    assert_eq!(row("m"), mask);
    assert_eq!(row("t"), [0.0; 16]);
    // Without a mask nothing is filled up.
    dir.model(
        "plain.onnx",
        "main (int64[N,T] ids) => (float[N,T] y) {\n  y = Cast <to = 1> (ids)\n}\n",
    );
    dir.write("one.txt", b"a b\n");
    dir.line("run plain.onnx --data one.txt --tokenizer tokenizer.json -o y.npz")
        .ends(0);
    assert_eq!(dir.array("y.npz", "y", "float[N,4]"), [2., 4., 5., 3.]);
    // A fixed length cuts and fills up.
    dir.model(
        "fixed.onnx",
        "main (int64[N,5] input_ids) => (float[N,5] y) {\n  y = Cast <to = 1> (input_ids)\n}\n",
    );
    dir.write("two.txt", b"a\na b c d a b\n");
    let ran = dir
        .line("run fixed.onnx --data two.txt --tokenizer tokenizer.json -o y.npz")
        .ends(0);
    assert!(ran.stdout.contains("1 lines are longer"), "{}", ran.stdout);
    let fixed = dir.array("y.npz", "y", "float[N,5]");
    assert_eq!(fixed, [2., 4., 3., 0., 0., 2., 4., 5., 6., 7.]);
}

#[test]
fn a_text_is_cut_into_windows_and_has_its_own_labels() {
    let dir = with_tokenizer();
    let text: String = (0..600)
        .map(|i| ["a b", "c d", "d b"][i % 3].to_owned() + "\n")
        .collect();
    dir.write("corpus.txt", text.as_bytes());
    let data = "--tokenizer tokenizer.json --window 16";
    dir.line(&format!(
        "quantize language.onnx --calib corpus.txt {data} --samples 10 --shuffle -o q.onnx"
    ))
    .ends(0);
    let line =
        format!("check language.onnx q.onnx --eval corpus.txt {data} --labels next-token --json");
    let answer = dir.line(&line).ends(0).json();
    assert_eq!(answer["task"]["metric"], "perplexity");
    // 1200 tokens, the last of which is a label only.
    assert_eq!(answer["samples"], (1200 - 1) / 16);
    let few = dir.line(&format!("{line} --samples 3")).ends(0).json();
    assert_eq!(few["samples"], 3);
}

#[test]
fn texts_that_do_not_fit() {
    let dir = with_tokenizer();
    dir.write("corpus.txt", b"a b c d\n");
    dir.write("empty.txt", b"\n  \n");
    dir.write("bytes.txt", b"a b\nc \xff\xfe\n");
    dir.write("broken.json", b"{\"model\": 1}");
    let refused = |options: &str, words: &[&str]| {
        let before = dir.names();
        dir.line(&format!("run language.onnx -o y.npz {options}"))
            .refuses(words);
        assert_eq!(dir.names(), before);
    };
    refused("--data corpus.txt", &["corpus.txt", "--tokenizer"]);
    refused(
        "--data corpus.txt --tokenizer nothing.json",
        &["nothing.json", "does not exist"],
    );
    refused(
        "--data corpus.txt --tokenizer broken.json",
        &["broken.json", "no tokenizer.json"],
    );
    let tokens = "--tokenizer tokenizer.json";
    refused(
        &format!("--data empty.txt {tokens}"),
        &["empty.txt", "is empty"],
    );
    refused(
        &format!("--data bytes.txt {tokens}"),
        &["bytes.txt", "line 2", "UTF-8"],
    );
    refused(
        &format!("--data corpus.txt {tokens} --window 50"),
        &["4 tokens", "window of 50"],
    );
    dir.model(
        "image.onnx",
        "main (float[N,3] x) => (float[N,3] y) {\n  y = Identity (x)\n}\n",
    );
    dir.line(&format!(
        "run image.onnx --data corpus.txt {tokens} -o y.npz"
    ))
    .refuses(&["corpus.txt", "take tokens", "`x`"]);
}

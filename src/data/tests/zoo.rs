//! The real models and their data, where they are at hand.

use std::path::{Path, PathBuf};

use onnx_quant_ir::load::load;

use super::*;

fn zoo() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = root.ancestors().map(|a| a.join("shared/zoo"));
    let found = found.into_iter().find(|z| z.is_dir());
    if found.is_none() {
        eprintln!("SKIPPED: no folder shared/zoo beside the repository");
    }
    found
}

/// Model, data, samples, batches of at most 48, and the shape of the first input in the first and in the last batch.
type Case = (
    &'static str,
    &'static str,
    usize,
    usize,
    &'static [i64],
    &'static [i64],
);

const CASES: &[Case] = &[
    (
        "resnet8-cifar/model.onnx",
        "calib.npz",
        500,
        11,
        &[48, 32, 32, 3],
        &[20, 32, 32, 3],
    ),
    (
        "resnet8-cifar/model.onnx",
        "eval.npz",
        2000,
        42,
        &[48, 32, 32, 3],
        &[32, 32, 32, 3],
    ),
    (
        "mobilenetv2-cifar/model.onnx",
        "calib.npz",
        500,
        11,
        &[48, 3, 32, 32],
        &[20, 3, 32, 32],
    ),
    (
        "mobilenetv2-cifar/model.onnx",
        "eval.npz",
        2000,
        42,
        &[48, 3, 32, 32],
        &[32, 3, 32, 32],
    ),
    (
        "magika/model.onnx",
        "calib.npz",
        512,
        11,
        &[48, 2048],
        &[32, 2048],
    ),
    (
        "magika/model.onnx",
        "eval.npz",
        1100,
        23,
        &[48, 2048],
        &[44, 2048],
    ),
    (
        "ultraface-rfb320/model.onnx",
        "calib.npz",
        40,
        40,
        &[1, 3, 240, 320],
        &[1, 3, 240, 320],
    ),
    (
        "ultraface-rfb320/model.onnx",
        "eval.npz",
        60,
        60,
        &[1, 3, 240, 320],
        &[1, 3, 240, 320],
    ),
    (
        "minilm/model.onnx",
        "calib.npz",
        128,
        3,
        &[48, 64],
        &[32, 64],
    ),
    (
        "minilm/model.onnx",
        "eval.npz",
        512,
        11,
        &[48, 64],
        &[32, 64],
    ),
    (
        "chargpt-kv/model.onnx",
        "calib.npz",
        128,
        3,
        &[48, 32],
        &[32, 32],
    ),
    (
        "chargpt-kv/model.onnx",
        "calib_prefill.npz",
        128,
        3,
        &[48, 128],
        &[32, 128],
    ),
    (
        "chargpt-kv/model.onnx",
        "eval.npz",
        256,
        6,
        &[48, 128],
        &[16, 128],
    ),
    (
        "chargpt-kv/model_nocache.onnx",
        "calib_nocache.npz",
        128,
        3,
        &[48, 128],
        &[32, 128],
    ),
    (
        "silero-vad/model.onnx",
        "calib.npz",
        512,
        512,
        &[1, 576],
        &[1, 576],
    ),
    (
        "silero-vad/model.onnx",
        "eval.npz",
        1562,
        1562,
        &[1, 576],
        &[1, 576],
    ),
    (
        "silero-vad/model.onnx",
        "calib_8k.npz",
        256,
        256,
        &[1, 288],
        &[1, 288],
    ),
    (
        "silero-vad/model_op18_ifless.onnx",
        "eval_8k.npz",
        800,
        800,
        &[1, 288],
        &[1, 288],
    ),
];

#[test]
fn every_data_set_of_the_zoo_streams() {
    let Some(zoo) = zoo() else { return };
    for &(model, data, samples, batches, first, last) in CASES {
        let model = zoo.join(model);
        let signature = Signature::of(&load(&model).unwrap()).unwrap();
        let path = model.with_file_name(data);
        let set = DataSet::open(&path, &signature).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(set.len(), samples, "{}", path.display());
        assert_eq!(set.batch_count(48), batches, "{}", path.display());
        let shapes = set.all_shapes(48);
        assert!(shapes.len() <= 2, "{}", path.display());
        let (mut seen, mut last_dims) = (0, Vec::new());
        for (i, batch) in set.batches(48).enumerate() {
            let batch = batch.unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(
                (batch.index, batch.first_sample, batch.padded),
                (i, seen, 0)
            );
            seen += batch.samples;
            assert_eq!(batch.tensors.len(), signature.required().count());
            let dims: Vec<_> = set.shapes_of(&batch).into_iter().map(|s| s.2).collect();
            assert!(shapes.contains(&dims), "{}", path.display());
            for tensor in &batch.tensors {
                tensor.validate().unwrap();
            }
            last_dims = batch.tensors[0].dims().to_vec();
            if i == 0 {
                assert_eq!(last_dims, first, "{}", path.display());
                assert_eq!(set.peek_shapes(48), set.shapes_of(&batch));
            }
        }
        assert_eq!(
            (seen, last_dims),
            (samples, last.to_vec()),
            "{}",
            path.display()
        );
    }
}

#[test]
fn the_zoos_labels_match_its_data() {
    let Some(zoo) = zoo() else { return };
    for (file, samples, positions) in [
        ("resnet8-cifar/labels.npy", 2000, None),
        ("mobilenetv2-cifar/calib_labels.npy", 500, None),
        ("magika/labels.npy", 1100, None),
        ("chargpt-kv/labels.npy", 256, Some(128)),
    ] {
        let labels = Labels::open(&zoo.join(file)).unwrap();
        labels.check(samples).unwrap();
        assert_eq!(labels.positions(), positions, "{file}");
        assert_eq!(labels.range(3, 2).len(), 2 * positions.unwrap_or(1));
    }
}

#[test]
fn scalar_and_zero_length_inputs_of_the_zoo() {
    let Some(zoo) = zoo() else { return };
    let open = |folder: &str, data: &str| {
        let model = load(&zoo.join(folder).join("model.onnx")).unwrap();
        let signature = Signature::of(&model).unwrap();
        DataSet::open(&zoo.join(folder).join(data), &signature).unwrap()
    };
    let silero = open("silero-vad", "calib.npz");
    let batch = silero.batches(8).nth(5).unwrap().unwrap();
    let shapes: Vec<_> = batch.tensors.iter().map(|t| t.dims().to_vec()).collect();
    assert_eq!(shapes, [vec![1, 576], vec![2, 1, 128], vec![]]);
    assert_eq!(batch.tensors[2].to_i64().unwrap(), [16000]);
    assert!(silero.notes()[0].contains("one axis more"));
    let prefill = open("chargpt-kv", "calib_prefill.npz");
    let batch = prefill.batches(8).next().unwrap().unwrap();
    assert_eq!(batch.tensors[2].dims(), [8, 4, 0, 32]);
    assert_eq!(prefill.notes(), Vec::<String>::new());
}

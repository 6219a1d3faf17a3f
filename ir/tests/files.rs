//! External data, outputs that cannot be written, links, and files that must not be overwritten.
#![expect(clippy::unwrap_used, reason = "tests")]

mod zoo;

use std::fs;
use std::path::{Path, PathBuf};

use onnx_quant_ir::load::{LoadError, load};
use onnx_quant_ir::proto::{
    Message, ModelProto, SparseTensorProto, StringStringEntryProto, TensorProto, tensor_proto,
};
use onnx_quant_ir::save::{ExternalData, SaveError, save, to_bytes};
use onnx_quant_ir::{Model, Tensor, text};
use tempfile::TempDir;

const SOURCE: &str = "<ir_version: 10, opset_import: [\"\" : 21]>
g (float[N,3] X) => (float[N,2] Y)
<float[3,2] W = {1, 2, 3, 4, 5, 6}, float[2] B = {0.5, -0.5}>
{
  c = Constant <value = float[2] {7, 8}> ()
  d = MatMul (X, W)
  e = Add (d, B)
  Y = Add (e, c)
}";

fn model() -> Model {
    text::parse(SOURCE).unwrap()
}

fn names(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn written(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("m.onnx");
    save(&model(), &path, ExternalData::Above(0)).unwrap();
    path
}

fn tensor<'a>(m: &'a Model, name: &str) -> &'a Tensor {
    m.constant(m.find_value(name).unwrap()).unwrap()
}

#[test]
fn external_data_comes_back() {
    let dir = TempDir::new().unwrap();
    let path = written(&dir);
    assert_eq!(names(&dir), ["m.onnx", "m.onnx.data"]);
    let m = load(&path).unwrap();
    assert_eq!(m.external_files.len(), 1);
    let w = tensor(&m, "W").to_f32().unwrap();
    assert_eq!(w, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    // From one external file to another, and back into one file.
    let again = dir.path().join("again.onnx");
    save(&m, &again, ExternalData::Above(0)).unwrap();
    let data = |n: &str| fs::read(dir.path().join(n)).unwrap();
    assert_eq!(data("m.onnx.data"), data("again.onnx.data"));
    save(&m, &again, ExternalData::Auto).unwrap();
    assert_eq!(
        tensor(&load(&again).unwrap(), "B").to_f32().unwrap(),
        [0.5, -0.5]
    );
}

#[test]
fn zoo_models_are_saved_to_the_byte() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.onnx");
    for original in zoo::models() {
        let m = load(&original).unwrap();
        let done = save(&m, &path, ExternalData::Auto).unwrap();
        let bytes = fs::read(&original).unwrap();
        assert!(bytes == fs::read(&path).unwrap(), "{}", original.display());
        assert_eq!(
            (done.model_bytes, done.external),
            (bytes.len() as u64, None)
        );
    }
}

#[test]
fn a_data_file_of_any_shorter_length_is_an_error() {
    let dir = TempDir::new().unwrap();
    let path = written(&dir);
    let data = dir.path().join("m.onnx.data");
    let all = fs::read(&data).unwrap();
    // Between the tensors there is padding up to the next page.
    let padding = 24..4096;
    let ends = (0..all.len()).filter(|e| !padding.contains(e) || e % 128 == 0);
    for end in ends {
        fs::write(&data, &all[..end]).unwrap();
        match load(&path) {
            Err(LoadError::External { tensor, reason, .. }) => {
                assert!(["W", "B"].contains(&&*tensor));
                assert!(reason.contains(&format!("holds {end} bytes")), "{reason}");
            }
            other => panic!("{end}: {other:?}"),
        }
    }
    fs::write(&data, &all).unwrap();
    let message = fs::read(&path).unwrap();
    for end in 0..message.len() {
        fs::write(&path, &message[..end]).unwrap();
        if let Ok(m) = load(&path) {
            to_bytes(&m).unwrap();
        }
    }
    fs::write(&path, &message).unwrap();
    load(&path).unwrap();
    fs::remove_file(&data).unwrap();
    assert!(matches!(load(&path), Err(LoadError::External { .. })));
}

#[test]
fn the_files_of_the_original_are_not_overwritten() {
    let dir = TempDir::new().unwrap();
    let path = written(&dir);
    let before = (
        fs::read(&path).unwrap(),
        fs::read(dir.path().join("m.onnx.data")).unwrap(),
    );
    let m = load(&path).unwrap();
    let refused = |target: &Path, external| {
        let e = save(&m, target, external).unwrap_err();
        assert!(matches!(e, SaveError::Original { .. }), "{e}");
    };
    refused(&path, ExternalData::Auto);
    refused(&path, ExternalData::Above(0));
    refused(&dir.path().join("./m.onnx.data"), ExternalData::Auto);
    // The `.data` file of this output is the original's.
    fs::rename(&path, dir.path().join("other.onnx")).unwrap();
    let m = load(&dir.path().join("other.onnx")).unwrap();
    let e = save(&m, &path, ExternalData::Above(0)).unwrap_err();
    assert!(
        e.to_string()
            .contains("m.onnx.data: the model was read from it"),
        "{e}"
    );
    assert_eq!(names(&dir), ["m.onnx.data", "other.onnx"]);
    save(&m, &path, ExternalData::Auto).unwrap();
    assert_eq!(fs::read(dir.path().join("other.onnx")).unwrap(), before.0);
    assert_eq!(fs::read(dir.path().join("m.onnx.data")).unwrap(), before.1);
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.onnx");
    for blocked in ["m.onnx", "m.onnx.data"] {
        fs::create_dir(dir.path().join(blocked)).unwrap();
        let e = save(&model(), &path, ExternalData::Above(0)).unwrap_err();
        assert!(e.to_string().contains("is a directory"), "{e}");
        assert_eq!(names(&dir), [blocked]);
        fs::remove_dir(dir.path().join(blocked)).unwrap();
    }
    let old = written(&dir);
    let before = fs::read(dir.path().join("m.onnx.data")).unwrap();
    fs::remove_file(&old).unwrap();
    fs::create_dir(&old).unwrap();
    save(&model(), &path, ExternalData::Above(8)).unwrap_err();
    assert_eq!(fs::read(dir.path().join("m.onnx.data")).unwrap(), before);
    assert_eq!(names(&dir), ["m.onnx", "m.onnx.data"]);
    let e = save(&model(), &dir.path().join("no/m.onnx"), ExternalData::Auto).unwrap_err();
    assert!(matches!(e, SaveError::Io { .. }), "{e}");
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_devices_are_written_into() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    let link = dir.path().join("link.onnx");
    std::os::unix::fs::symlink("real/m.onnx", &link).unwrap();
    for external in [ExternalData::Auto, ExternalData::Above(0)] {
        save(&model(), &link, external).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        load(&dir.path().join("real/m.onnx")).unwrap();
    }
    assert!(dir.path().join("real/m.onnx.data").is_file());
    let m = load(&dir.path().join("real/m.onnx")).unwrap();
    let e = save(&m, &link, ExternalData::Auto).unwrap_err();
    assert!(matches!(e, SaveError::Original { .. }), "{e}");

    let null = Path::new("/dev/null");
    save(&model(), null, ExternalData::Auto).unwrap();
    assert!(!fs::metadata(null).unwrap().is_file());
    let e = save(&model(), null, ExternalData::Above(0)).unwrap_err();
    assert!(e.to_string().contains("regular file"), "{e}");
}

fn external(name: &str, offset: usize, dims: &[i64], kind: i32) -> TensorProto {
    let entry = |k: &str, v: String| StringStringEntryProto {
        key: Some(k.to_owned()),
        value: Some(v),
    };
    TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(kind),
        data_location: Some(tensor_proto::DataLocation::External as i32),
        external_data: vec![
            entry("location", "w.bin".to_owned()),
            entry("offset", offset.to_string()),
        ],
        ..TensorProto::default()
    }
}

#[test]
fn sparse_initializers_and_attributes_may_be_external() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.onnx");
    let mut proto = ModelProto::decode(&*to_bytes(&model()).unwrap()).unwrap();
    let g = proto.graph.as_mut().unwrap();
    g.node[0].attribute[0].t = Some(external("", 16, &[2], 1));
    g.sparse_initializer.push(SparseTensorProto {
        values: Some(external("S", 0, &[2], 1)),
        indices: Some(external("", 0, &[2], 7)),
        dims: vec![9],
    });
    fs::write(&path, proto.encode_to_vec()).unwrap();
    let bytes: Vec<u8> = (0..24u8).collect();
    fs::write(dir.path().join("w.bin"), &bytes).unwrap();
    let m = load(&path).unwrap();
    let g = m.to_proto().graph.unwrap();
    let t = g.node[0].attribute[0].t.clone().unwrap();
    assert_eq!(t.raw_data.unwrap(), bytes[16..]);
    let s = g.sparse_initializer[0].clone();
    assert_eq!(s.values.unwrap().raw_data.unwrap(), bytes[..8]);
    assert_eq!(s.indices.unwrap().raw_data.unwrap(), bytes[..16]);

    for (end, at) in [(23, "c.value"), (15, "`S`")] {
        fs::write(dir.path().join("w.bin"), &bytes[..end]).unwrap();
        let e = load(&path).unwrap_err();
        assert!(
            matches!(e, LoadError::External { .. }) && e.to_string().contains(at),
            "{e}"
        );
    }
    let g = proto.graph.as_mut().unwrap();
    g.sparse_initializer.clear();
    g.node[0].attribute[0].t = Some(TensorProto {
        raw_data: Some(vec![0; 7].into()),
        dims: vec![2],
        data_type: Some(1),
        ..TensorProto::default()
    });
    fs::write(&path, proto.encode_to_vec()).unwrap();
    let e = load(&path).unwrap_err();
    assert!(e.to_string().contains("tensor `c.value`"), "{e}");
}

/// Bytes of memory that the process holds.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[cfg(target_os = "linux")]
#[test]
fn loading_a_gigabyte_reads_no_weight() {
    const SIZE: u64 = 1 << 30;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("m.onnx");
    let mut proto = ModelProto::decode(&*to_bytes(&model()).unwrap()).unwrap();
    let g = proto.graph.as_mut().unwrap();
    let rows = (SIZE / 8) as i64;
    g.initializer[0] = external("W", 0, &[rows, 2], 1);
    fs::write(&path, proto.encode_to_vec()).unwrap();
    // A file without blocks: it takes no room on the disk.
    let data = fs::File::create(dir.path().join("w.bin")).unwrap();
    data.set_len(SIZE).unwrap();
    let before = resident();
    let m = load(&path).unwrap();
    let grown = resident().saturating_sub(before);
    assert_eq!(tensor(&m, "W").byte_len().unwrap() as u64, SIZE);
    assert!(grown < 64 << 20, "{grown} bytes");
}

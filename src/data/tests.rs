//! Tests of data feeds, through files on disk.

#![expect(clippy::unwrap_used, reason = "tests")]

mod errors;
mod feeds;
mod zoo;

use std::io::Write;
use std::path::{Path, PathBuf};

use onnx_quant_ir::DataType;
use tempfile::TempDir;

use super::*;

/// `f32 [batch, 3]` from "batch,3"; "" is a scalar; "*" is of any rank.
fn input(name: &str, dtype: DataType, dims: &str) -> Input {
    let axes: Vec<&str> = dims.split(',').filter(|s| !s.is_empty()).collect();
    Input {
        name: name.to_owned(),
        dtype,
        dims: (dims != "*").then(|| axes.iter().map(|a| a.parse().ok()).collect()),
        symbols: axes
            .iter()
            .map(|a| (a.parse::<i64>().is_err() && *a != "?").then(|| (*a).to_owned()))
            .collect(),
        optional: false,
    }
}

fn signature(inputs: &[(&str, DataType, &str)]) -> Signature {
    Signature {
        inputs: inputs.iter().map(|(n, t, d)| input(n, *t, d)).collect(),
    }
}

fn float(dims: &str) -> Signature {
    signature(&[("x", DataType::Float, dims)])
}

fn npy(descr: &str, fortran: bool, dims: &[usize], data: &[u8]) -> Vec<u8> {
    let shape: String = dims.iter().map(|d| format!("{d},")).collect();
    let order = if fortran { "True" } else { "False" };
    let text = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': ({shape}), }}\n");
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(data);
    out
}

fn f32s(dims: &[usize], data: &[f32]) -> Vec<u8> {
    let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    npy("<f4", false, dims, &bytes)
}

fn i64s(dims: &[usize], data: &[i64]) -> Vec<u8> {
    let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    npy("<i8", false, dims, &bytes)
}

/// Counts up from 0.
fn ramp(dims: &[usize]) -> Vec<u8> {
    let n = dims.iter().product::<usize>();
    f32s(dims, &(0..n).map(|i| i as f32).collect::<Vec<_>>())
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn npz(&self, name: &str, arrays: &[(&str, Vec<u8>)]) -> PathBuf {
        self.file(name, &npz(arrays, true))
    }
}

fn npz(arrays: &[(&str, Vec<u8>)], deflate: bool) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let method = if deflate {
        zip::CompressionMethod::Deflated
    } else {
        zip::CompressionMethod::Stored
    };
    for (name, bytes) in arrays {
        let options = zip::write::SimpleFileOptions::default().compression_method(method);
        zip.start_file(format!("{name}.npy"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn all(data: &DataSet, max_batch: usize) -> Vec<Batch> {
    data.batches(max_batch).map(Result::unwrap).collect()
}

/// Shape and values of each tensor of a batch.
fn tensors(batch: &Batch) -> Vec<(Vec<i64>, Vec<f32>)> {
    let values = |t: &onnx_quant_ir::Tensor| {
        let ints = || t.to_i64().unwrap().iter().map(|&i| i as f32).collect();
        t.to_f32().unwrap_or_else(|_| ints())
    };
    let tensors = batch.tensors.iter();
    tensors.map(|t| (t.dims().to_vec(), values(t))).collect()
}

fn open_error(path: &Path, signature: &Signature) -> String {
    DataSet::open(path, signature).unwrap_err().to_string()
}

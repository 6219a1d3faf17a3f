//! The arrays of a `.safetensors` file: a length, a JSON head with type, shape and place of each array, and the bytes.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. Arrays are row-major and little-endian.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use onnx_quant_ir::DataType;
use serde::Deserialize;

use super::archive::Place;
use super::array::Array;
use super::error::{DataError, Origin};
use super::npy::item_size;

/// The largest head that the format allows.
const MAX_HEAD: u64 = 100_000_000;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The arrays by name, sorted.
pub(super) fn entries(path: &Arc<Path>) -> Result<Vec<(String, Array)>, DataError> {
    let damaged = |array: Option<&str>, reason: String| DataError::Damaged {
        origin: Origin {
            path: Arc::clone(path),
            array: array.map(str::to_owned),
        },
        reason,
    };
    let mut file = File::open(path).map_err(|e| DataError::io(path, e))?;
    let size = file.metadata().map_err(|e| DataError::io(path, e))?.len();
    let mut length = [0; 8];
    if file.read_exact(&mut length).is_err() {
        return Err(damaged(
            None,
            format!("it has {size} bytes, which is too short"),
        ));
    }
    let length = u64::from_le_bytes(length);
    let start = length.saturating_add(8);
    if length > MAX_HEAD || start > size {
        let reason = format!("its head claims {length} bytes, but the file has {size}");
        return Err(damaged(None, reason));
    }
    let mut head = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact(&mut head)
        .map_err(|e| DataError::io(path, e))?;
    let head: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&head)
        .map_err(|e| damaged(None, format!("its head is no JSON object ({e})")))?;
    let mut found = Vec::new();
    for (name, value) in head {
        if name == "__metadata__" {
            continue;
        }
        let entry: Entry = serde_json::from_value(value).map_err(|e| {
            damaged(
                Some(&name),
                format!("its entry in the head does not parse ({e})"),
            )
        })?;
        let Some(dtype) = dtype(&entry.dtype) else {
            return Err(DataError::Unsupported {
                origin: Origin {
                    path: Arc::clone(path),
                    array: Some(name),
                },
                descr: format!("type {}", entry.dtype),
            });
        };
        let [from, to] = entry.data_offsets;
        let needed = entry
            .shape
            .iter()
            .try_fold(item_size(dtype), |n, &d| n.checked_mul(d))
            .map(|n| n as u64);
        if to < from || needed != Some(to - from) || start.saturating_add(to) > size {
            let reason = format!(
                "shape {:?} of {} does not fit the bytes {from} to {to} of {} in the file",
                entry.shape,
                entry.dtype,
                size - start
            );
            return Err(damaged(Some(&name), reason));
        }
        let origin = Origin {
            path: Arc::clone(path),
            array: Some(name.clone()),
        };
        let place = Place::part(path, start + from, to - from);
        found.push((name, Array::raw(origin, dtype, entry.shape, place)));
    }
    Ok(found)
}

fn dtype(name: &str) -> Option<DataType> {
    Some(match name {
        "BOOL" => DataType::Bool,
        "U8" => DataType::Uint8,
        "I8" => DataType::Int8,
        "U16" => DataType::Uint16,
        "I16" => DataType::Int16,
        "U32" => DataType::Uint32,
        "I32" => DataType::Int32,
        "U64" => DataType::Uint64,
        "I64" => DataType::Int64,
        "F16" => DataType::Float16,
        "BF16" => DataType::Bfloat16,
        "F32" => DataType::Float,
        "F64" => DataType::Double,
        _ => return None,
    })
}

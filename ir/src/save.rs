//! Writing a model: to a temporary file beside the target, then a rename, so that no reader ever sees half a file.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use onnx_quant_proto::{Message, ModelProto, StringStringEntryProto, TensorProto, tensor_proto};

use crate::model::Model;
use crate::order::CycleError;
use crate::tensor::{Tensor, TensorError};

/// Where the weights go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExternalData {
    /// Into the model's file, unless the file would pass 2 GiB.
    #[default]
    Auto,
    /// Into `FILE.data` beside the model: every tensor of at least this many bytes.
    Above(usize),
}

/// A protobuf message ends at 2 GiB; some room is left for what is not a weight.
const MAX_INLINE: usize = (1 << 31) - (1 << 20);
/// The standard's own threshold for external tensors.
const DEFAULT_THRESHOLD: usize = 1024;
/// Offsets are multiples of a page, so that readers can map single tensors.
const ALIGNMENT: u64 = 4096;

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The file system refused.
    #[error("cannot write {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The graph has become cyclic.
    #[error("cannot write the model: {0}")]
    Cycle(#[from] CycleError),
    /// A tensor cannot be read.
    #[error("cannot write tensor `{tensor}`: {source}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong.
        source: TensorError,
    },
    /// The model's file has fields that are not in the model and would be lost.
    #[error(
        "the model's file has {count} fields that this program does not know and would lose, the first is field {first}"
    )]
    FieldLoss {
        /// How many.
        count: usize,
        /// Path and number of the first.
        first: String,
    },
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Bytes of the model's file.
    pub model_bytes: u64,
    /// The external-data file and its bytes, where there is one.
    pub external: Option<(PathBuf, u64)>,
}

/// The model as the bytes of one file, external data taken in.
///
/// # Errors
/// A tensor whose data cannot be read.
pub fn to_bytes(model: &Model) -> Result<Vec<u8>, SaveError> {
    Ok(inlined(model)?.encode_to_vec())
}

/// The model as one message, external data taken in (shared, not copied).
///
/// # Errors
/// A tensor whose data cannot be read.
pub fn inlined(model: &Model) -> Result<ModelProto, SaveError> {
    let mut proto = model.to_proto();
    for_each_initializer(model, &mut proto, &mut |t, tensor| {
        if tensor.is_external() {
            t.raw_data = Some(tensor.shared_bytes()?);
            t.external_data.clear();
            t.data_location = None;
        }
        Ok(())
    })?;
    Ok(proto)
}

/// Writes a model, with all or none of its files appearing. The nodes are put in order first.
///
/// # Errors
/// What the file system says, with the path; a cyclic graph; fields that would be lost, unless
/// [`Model::allow_field_loss`] is set.
pub fn save(model: &Model, path: &Path, external: ExternalData) -> Result<Written, SaveError> {
    if let Some(first) = model
        .unknown_fields
        .first()
        .filter(|_| !model.allow_field_loss)
    {
        return Err(SaveError::FieldLoss {
            count: model.unknown_fields.iter().map(|f| f.count).sum(),
            first: first.to_string(),
        });
    }
    let mut model = model.clone();
    model.sort()?;
    let threshold = match external {
        ExternalData::Above(n) => Some(n),
        ExternalData::Auto if weight_bytes(&model) > MAX_INLINE => Some(DEFAULT_THRESHOLD),
        ExternalData::Auto => None,
    };
    let Some(threshold) = threshold else {
        let bytes = to_bytes(&model)?;
        write_atomically(path, |f| f.write_all(&bytes))?;
        return Ok(Written {
            model_bytes: bytes.len() as u64,
            external: None,
        });
    };
    save_external(&model, path, threshold)
}

fn save_external(model: &Model, path: &Path, threshold: usize) -> Result<Written, SaveError> {
    let mut data_name = path.file_name().unwrap_or_default().to_owned();
    data_name.push(".data");
    let data_path = path.with_file_name(&data_name);
    let location = data_name.to_string_lossy().into_owned();
    let mut proto = model.to_proto();
    let mut chunks: Vec<(u64, bytes::Bytes)> = Vec::new();
    let mut end = 0u64;
    for_each_initializer(model, &mut proto, &mut |t, tensor| {
        if tensor.byte_len().is_err() {
            return Ok(());
        }
        let data = tensor.shared_bytes()?;
        t.external_data.clear();
        t.data_location = None;
        if data.len() < threshold {
            t.raw_data = Some(data);
            clear_typed(t);
            return Ok(());
        }
        let offset = end.next_multiple_of(ALIGNMENT);
        end = offset + data.len() as u64;
        t.raw_data = None;
        clear_typed(t);
        t.data_location = Some(tensor_proto::DataLocation::External as i32);
        t.external_data = [
            ("location", location.clone()),
            ("offset", offset.to_string()),
            ("length", data.len().to_string()),
        ]
        .into_iter()
        .map(|(k, v)| StringStringEntryProto {
            key: Some(k.to_owned()),
            value: Some(v),
        })
        .collect();
        chunks.push((offset, data));
        Ok(())
    })?;
    write_atomically(&data_path, |f| {
        let mut at = 0u64;
        for (offset, data) in &chunks {
            io::copy(&mut io::Read::take(io::repeat(0), offset - at), f)?;
            f.write_all(data)?;
            at = offset + data.len() as u64;
        }
        Ok(())
    })?;
    let bytes = proto.encode_to_vec();
    write_atomically(path, |f| f.write_all(&bytes))?;
    Ok(Written {
        model_bytes: bytes.len() as u64,
        external: Some((data_path, end)),
    })
}

fn clear_typed(t: &mut TensorProto) {
    t.float_data.clear();
    t.int32_data.clear();
    t.int64_data.clear();
    t.double_data.clear();
    t.uint64_data.clear();
}

/// Writes a file through a temporary one in the same folder and a rename.
///
/// # Errors
/// What the file system says, with the path.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<(), SaveError> {
    let fail = |source| SaveError::Io {
        path: path.to_owned(),
        source,
    };
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    if path.is_dir() {
        return Err(fail(io::Error::new(
            io::ErrorKind::IsADirectory,
            "is a directory",
        )));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".onnx-quant-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temp = builder.tempfile_in(folder).map_err(fail)?;
    let mut out = BufWriter::new(temp);
    write(&mut out).map_err(fail)?;
    let temp = out.into_inner().map_err(|e| fail(e.into_error()))?;
    temp.persist(path).map_err(|e| fail(e.error))?;
    Ok(())
}

fn weight_bytes(model: &Model) -> usize {
    model
        .all_values()
        .into_iter()
        .filter_map(|v| model.value(v).init.as_ref())
        .filter_map(|t| t.byte_len().ok())
        .sum()
}

type Visit<'a> = &'a mut dyn FnMut(&mut TensorProto, &Tensor) -> Result<(), TensorError>;

/// Visits every initializer message of the main graph and of all subgraphs beside its tensor in the model.
fn for_each_initializer(
    model: &Model,
    proto: &mut ModelProto,
    visit: Visit<'_>,
) -> Result<(), SaveError> {
    match &mut proto.graph {
        Some(g) => visit_graph(model, Model::MAIN, g, visit),
        None => Ok(()),
    }
}

fn visit_graph(
    model: &Model,
    id: crate::GraphId,
    proto: &mut onnx_quant_proto::GraphProto,
    visit: Visit<'_>,
) -> Result<(), SaveError> {
    let graph = model.graph(id);
    let tensors = graph
        .initializers
        .iter()
        .filter_map(|&v| model.value(v).init.as_ref());
    for (t, tensor) in proto.initializer.iter_mut().zip(tensors) {
        visit(t, tensor).map_err(|source| SaveError::Tensor {
            tensor: t.name().to_owned(),
            source,
        })?;
    }
    for (&node, n) in graph.nodes.iter().zip(&mut proto.node) {
        let mut subgraphs = model.node(node).subgraphs.iter();
        for a in &mut n.attribute {
            for g in a.g.iter_mut().chain(&mut a.graphs) {
                if let Some((_, sub)) = subgraphs.next() {
                    visit_graph(model, *sub, g, visit)?;
                }
            }
        }
    }
    Ok(())
}

//! Writing a model: to temporary files beside the target, then renames, so that no reader ever sees half a file and
//! a failure leaves nothing behind. The files that the model was read from are never overwritten.

mod digest;
mod staged;
mod stream;

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use onnx_quant_proto::{Message, ModelProto, StringStringEntryProto, TensorProto, tensor_proto};

use crate::mmap;
use crate::model::Model;
use crate::order::CycleError;
use crate::tensor::{Tensor, TensorError};

pub use digest::digest;
use staged::Staged;
pub use staged::{abandon, write_atomically};

/// Where the weights go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExternalData {
    /// Into the model's file, unless the file would pass 2 GiB.
    #[default]
    Auto,
    /// Into `FILE.data` beside the model: every tensor of at least this many bytes.
    Above(usize),
}

/// A protobuf message ends at 2 GiB.
const MAX_MESSAGE: usize = i32::MAX as usize;
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
    /// The file is one that the model was read from.
    #[error(
        "cannot write {}: the model was read from it, and the original is never overwritten; give another path", path.display()
    )]
    Original {
        /// The file.
        path: PathBuf,
    },
    /// What has to stand in the model's own file is larger than a message can be.
    #[error(
        "the model takes {bytes} bytes without its initializers, and a file can hold 2147483647; make initializers of its Constant nodes"
    )]
    TooLarge {
        /// Bytes of the message.
        bytes: usize,
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

/// Writes a model, with all or none of its files appearing. The nodes are put in order first. A link is followed: the
/// file that it leads to is replaced, and external data goes beside that.
///
/// # Errors
/// What the file system says, with the path; a file that the model was read from; a cyclic graph; fields that would be
/// lost, unless [`Model::allow_field_loss`] is set; more than 2 GiB outside of initializers.
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
    let path = staged::follow(path);
    let proto = inlined(&model)?;
    let threshold = match external {
        ExternalData::Above(n) => n,
        ExternalData::Auto if proto.encoded_len() > MAX_MESSAGE => DEFAULT_THRESHOLD,
        ExternalData::Auto => {
            refuse_original(&model, &path)?;
            write_atomically(&path, |f| stream::write_message(&proto, f))?;
            return Ok(Written {
                model_bytes: proto.encoded_len() as u64,
                external: None,
            });
        }
    };
    drop(proto);
    save_external(&model, &path, threshold)
}

/// Refuses a file that the model's weights are, or were, mapped from.
fn refuse_original(model: &Model, path: &Path) -> Result<(), SaveError> {
    let Ok(real) = path.canonicalize() else {
        return Ok(());
    };
    let mut sources = model.path.iter().chain(&model.external_files);
    if sources.any(|s| s.canonicalize().is_ok_and(|s| s == real)) {
        return Err(SaveError::Original {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// A tensor's place in the external file.
struct Chunk {
    offset: u64,
    tensor: Tensor,
}

fn save_external(model: &Model, path: &Path, threshold: usize) -> Result<Written, SaveError> {
    let refuse = |reason: &str| SaveError::Io {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, reason),
    };
    if staged::is_special(path) {
        return Err(refuse("external data needs a regular file beside it"));
    }
    let name = path.file_name().and_then(|n| n.to_str());
    let location = match name {
        Some(name) => format!("{name}.data"),
        None => return Err(refuse("external data needs a name in Unicode")),
    };
    let data_path = path.with_file_name(&location);
    refuse_original(model, path)?;
    refuse_original(model, &data_path)?;
    let mut proto = model.to_proto();
    let (chunks, end) = move_out(model, &mut proto, &location, threshold)?;
    let bytes = proto.encoded_len();
    if bytes > MAX_MESSAGE {
        return Err(SaveError::TooLarge { bytes });
    }
    let data = Staged::write(&data_path, |f| write_chunks(&chunks, f))?;
    let message = proto.encode_to_vec();
    let file = Staged::write(path, |f| f.write_all(&message))?;
    let fresh = !data_path.exists();
    let _both = staged::naming();
    data.commit()?;
    if let Err(e) = file.commit() {
        if fresh {
            let _ = std::fs::remove_file(&data_path);
        }
        return Err(e);
    }
    Ok(Written {
        model_bytes: bytes as u64,
        external: Some((data_path, end)),
    })
}

/// Takes the data of initializers out of a message. Returns where it belongs, and the length of the external file.
fn move_out(
    model: &Model,
    proto: &mut ModelProto,
    location: &str,
    threshold: usize,
) -> Result<(Vec<Chunk>, u64), SaveError> {
    let mut chunks = Vec::new();
    let mut end = 0u64;
    for_each_initializer(model, proto, &mut |t, tensor| {
        let Ok(length) = tensor.byte_len() else {
            return Ok(());
        };
        t.external_data.clear();
        t.data_location = None;
        if length < threshold {
            t.raw_data = Some(tensor.shared_bytes()?);
            clear_typed(t);
            return Ok(());
        }
        tensor.validate()?;
        let offset = end.next_multiple_of(ALIGNMENT);
        end = offset + length as u64;
        t.raw_data = None;
        clear_typed(t);
        t.data_location = Some(tensor_proto::DataLocation::External as i32);
        t.external_data = [
            ("location", location.to_owned()),
            ("offset", offset.to_string()),
            ("length", length.to_string()),
        ]
        .into_iter()
        .map(|(k, v)| StringStringEntryProto {
            key: Some(k.to_owned()),
            value: Some(v),
        })
        .collect();
        chunks.push(Chunk {
            offset,
            tensor: tensor.clone(),
        });
        Ok(())
    })?;
    Ok((chunks, end))
}

/// One tensor after the other, straight from where it is mapped.
fn write_chunks(chunks: &[Chunk], file: &mut dyn Write) -> io::Result<()> {
    let mut at = 0u64;
    for Chunk { offset, tensor } in chunks {
        let data = tensor.bytes().map_err(io::Error::other)?;
        io::copy(&mut io::Read::take(io::repeat(0), offset - at), file)?;
        file.write_all(&data)?;
        at = offset + data.len() as u64;
        if data.len() >= LARGE {
            mmap::release();
        }
    }
    Ok(())
}

/// Tensors after which the pages that were read are given back.
const LARGE: usize = 8 << 20;

fn clear_typed(t: &mut TensorProto) {
    t.float_data.clear();
    t.int32_data.clear();
    t.int64_data.clear();
    t.double_data.clear();
    t.uint64_data.clear();
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

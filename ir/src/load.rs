//! Reading a model: the file is mapped, not copied, and so is its external data.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use onnx_quant_proto::{
    GraphProto, Message, ModelProto, NodeProto, SparseTensorProto, TensorProto, tensor_proto,
};

use crate::census::census;
use crate::codec::DecodeError;
use crate::mmap;
use crate::model::Model;
use crate::order::CycleError;
use crate::tensor::{Tensor, TensorError};

/// Why a file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a protobuf message of the ONNX schema.
    #[error("{} is not an ONNX model, or it is damaged: {source}", path.display())]
    Wire {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: prost::DecodeError,
    },
    /// The file is empty.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The message is not a valid model.
    #[error("{}: {source}", path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: DecodeError,
    },
    /// The graph is cyclic.
    #[error("{}: {source}", path.display())]
    Cycle {
        /// The file.
        path: PathBuf,
        /// The circle.
        source: CycleError,
    },
    /// A tensor's data does not fit its type and shape.
    #[error("{}: tensor `{tensor}`: {source}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Name of the initializer; node and attribute for the tensor of an attribute.
        tensor: String,
        /// What is wrong.
        source: TensorError,
    },
    /// External data that cannot be used.
    #[error("{}: external data of tensor `{tensor}`: {reason}", path.display())]
    External {
        /// The model's file.
        path: PathBuf,
        /// Name of the initializer; node and attribute for the tensor of an attribute.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
}

/// Loads a model from a file. Weights stay where they are: in the mapped file, or in mapped external files.
///
/// # Errors
/// Whatever makes the file no valid, complete model, with the tensor or node at fault.
pub fn load(path: &Path) -> Result<Model, LoadError> {
    let bytes = mmap::map(path).map_err(|source| LoadError::Io {
        path: path.to_owned(),
        source,
    })?;
    load_bytes(bytes, path)
}

/// Loads a model that the program carries. Weights stay where they are.
///
/// # Errors
/// As [`load_bytes`]; external data is looked for in the working directory.
pub fn load_static(bytes: &'static [u8]) -> Result<Model, LoadError> {
    load_bytes(Bytes::from_static(bytes), Path::new("model.onnx"))
}

/// Loads a model from memory. `path` is what errors name, and external data is looked for in its folder.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(bytes: Bytes, path: &Path) -> Result<Model, LoadError> {
    let path = path.to_owned();
    if bytes.is_empty() {
        return Err(LoadError::Empty { path });
    }
    let mut proto = match ModelProto::decode(bytes.clone()) {
        Ok(p) => p,
        Err(source) => return Err(LoadError::Wire { path, source }),
    };
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut files = ExternalFiles {
        model: path.clone(),
        folder,
        maps: BTreeMap::new(),
    };
    if let Some(g) = &mut proto.graph {
        files.inline_graph(g)?;
    }
    for n in proto.functions.iter_mut().flat_map(|f| &mut f.node) {
        files.inline_attributes(n)?;
    }
    let mut model = match Model::from_proto(proto) {
        Ok(m) => m,
        Err(source) => return Err(LoadError::Model { path, source }),
    };
    model.path = Some(path.clone());
    model.unknown_fields = census(&bytes);
    for id in model.all_values() {
        let v = model.value(id);
        let Some(t) = &v.init else { continue };
        if t.is_external() {
            let data = files.resolve(&v.name, t.proto())?;
            let loaded = Tensor::with_external(t.proto().clone(), data);
            model.value_mut(id).init = Some(loaded);
        }
        let v = model.value(id);
        if let Some(Err(source)) = v.init.as_ref().map(Tensor::validate) {
            let tensor = v.name.clone();
            return Err(LoadError::Tensor {
                path,
                tensor,
                source,
            });
        }
    }
    model.external_files = files.maps.into_keys().collect();
    let mut sorted = model.clone();
    if let Err(source) = sorted.sort() {
        return Err(LoadError::Cycle { path, source });
    }
    Ok(model)
}

struct ExternalFiles {
    model: PathBuf,
    folder: PathBuf,
    maps: BTreeMap<PathBuf, Bytes>,
}

impl ExternalFiles {
    /// Sparse initializers and the tensors of attributes have no place of their own in the graph: their external data
    /// is taken into the message (as a slice of the map, still without a copy), and they are checked here.
    fn inline_graph(&mut self, graph: &mut GraphProto) -> Result<(), LoadError> {
        for s in &mut graph.sparse_initializer {
            let name = s.values.as_ref().map_or("", |v| v.name()).to_owned();
            self.inline_sparse(s, &name)?;
        }
        for n in &mut graph.node {
            self.inline_attributes(n)?;
        }
        Ok(())
    }

    fn inline_attributes(&mut self, node: &mut NodeProto) -> Result<(), LoadError> {
        let label = match node.name() {
            "" => node.output.first().cloned().unwrap_or_default(),
            name => name.to_owned(),
        };
        for a in &mut node.attribute {
            let name = format!("{label}.{}", a.name());
            for t in a.t.iter_mut().chain(&mut a.tensors) {
                self.inline_tensor(t, &name)?;
            }
            for s in a.sparse_tensor.iter_mut().chain(&mut a.sparse_tensors) {
                self.inline_sparse(s, &name)?;
            }
            for g in a.g.iter_mut().chain(&mut a.graphs) {
                self.inline_graph(g)?;
            }
        }
        Ok(())
    }

    fn inline_sparse(&mut self, s: &mut SparseTensorProto, name: &str) -> Result<(), LoadError> {
        for t in s.values.iter_mut().chain(&mut s.indices) {
            self.inline_tensor(t, name)?;
        }
        Ok(())
    }

    fn inline_tensor(&mut self, t: &mut TensorProto, name: &str) -> Result<(), LoadError> {
        if t.data_location() == tensor_proto::DataLocation::External {
            t.raw_data = Some(self.resolve(name, t)?);
            t.external_data.clear();
            t.data_location = None;
        }
        let checked = Tensor::from_proto(t.clone()).validate();
        checked.map_err(|source| LoadError::Tensor {
            path: self.model.clone(),
            tensor: name.to_owned(),
            source,
        })
    }

    fn resolve(&mut self, tensor: &str, proto: &TensorProto) -> Result<Bytes, LoadError> {
        let fail = |model: &Path, reason: String| LoadError::External {
            path: model.to_owned(),
            tensor: tensor.to_owned(),
            reason,
        };
        let entry = |key: &str| {
            proto
                .external_data
                .iter()
                .find(|e| e.key() == key)
                .map(|e| e.value())
        };
        let number = |key: &str| -> Result<Option<usize>, LoadError> {
            entry(key)
                .map(|s| {
                    s.trim()
                        .parse::<usize>()
                        .map_err(|_| fail(&self.model, format!("{key} `{s}` is not a number")))
                })
                .transpose()
        };
        let location = entry("location")
            .filter(|l| !l.is_empty())
            .ok_or_else(|| fail(&self.model, "no location is given".to_owned()))?;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let inside = Path::new(location)
            .components()
            .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if !inside {
            let reason = format!("location `{location}` lies outside the model's folder");
            return Err(fail(&self.model, reason));
        }
        let file = self.folder.join(location);
        let whole = match self.maps.get(&file) {
            Some(b) => b.clone(),
            None => {
                let b = self
                    .open(&file)
                    .map_err(|reason| fail(&self.model, reason))?;
                self.maps.insert(file.clone(), b.clone());
                b
            }
        };
        let needed = Tensor::from_proto(proto.clone())
            .byte_len()
            .map_err(|e| fail(&self.model, e.to_string()))?;
        let length = length.unwrap_or(needed);
        match offset.checked_add(length) {
            Some(end) if end <= whole.len() => Ok(whole.slice(offset..end)),
            _ => Err(fail(
                &self.model,
                format!(
                    "{} holds {} bytes, but {length} bytes at offset {offset} are declared",
                    file.display(),
                    whole.len()
                ),
            )),
        }
    }

    /// Maps an external file after checking that no link leads out of the model's folder.
    fn open(&self, file: &Path) -> Result<Bytes, String> {
        let real = file
            .canonicalize()
            .map_err(|e| format!("cannot read {}: {e}", file.display()))?;
        let folder = self
            .folder
            .canonicalize()
            .map_err(|e| format!("cannot read {}: {e}", self.folder.display()))?;
        if !real.starts_with(&folder) {
            return Err(format!(
                "{} is a link that leads outside the model's folder",
                file.display()
            ));
        }
        mmap::map(&real).map_err(|e| format!("cannot read {}: {e}", file.display()))
    }
}

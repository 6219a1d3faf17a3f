//! The optional runtime: onnxruntime, from a shared library that is loaded when it is asked for. The program does not
//! link it.
//!
//! Sessions run with `session.x64quantprecision=1`: without it, onnxruntime's kernels for 8 bits saturate on processors
//! without VNNI, and a judgement would be of the processor. A session serves all shapes and runs on one thread;
//! samples run side by side, each on a session of its own.
//!
//! Watched values are made outputs of the model. That keeps onnxruntime from fusing quantized operators around them, so
//! a quantized model that is watched runs a second time as it is, and its outputs are those of that run.

mod library;
mod values;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use onnx_quant_ir::engine::{Engine, EngineError, Observed, Observer, Request};
use onnx_quant_ir::proto::{Message, TypeProto, ValueInfoProto, type_proto};
use onnx_quant_ir::save::{self, ExternalData};
use onnx_quant_ir::{DataType, Model, Tensor};
use ort::logging::LogLevel;
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputs};
use sha2::{Digest, Sha256};

use super::steps::{self, Program, StepSession};

/// How errors name the runtime.
const NAME: &str = "onnxruntime";
/// Largest model that is handed over in memory: protobuf ends at 2 GiB.
const IN_MEMORY: usize = 1 << 30;

/// Sessions by the digest of what they run.
type Pools = Vec<([u8; 32], Weak<Pool>)>;

/// onnxruntime.
#[derive(Clone)]
pub struct OnnxRuntimeEngine {
    library: PathBuf,
    /// Sessions by model and outputs, as long as somebody uses them.
    pools: Arc<Mutex<Pools>>,
}

impl std::fmt::Debug for OnnxRuntimeEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnnxRuntimeEngine")
            .field("library", &self.library)
            .finish_non_exhaustive()
    }
}

impl OnnxRuntimeEngine {
    /// Finds and loads the library: `ORT_DYLIB_PATH`, else that of a Python package `onnxruntime` (of the active or a
    /// local environment, or of `python3`), else one that is installed in the system.
    ///
    /// # Errors
    /// Where it was looked for, or why it does not load.
    pub fn open() -> Result<Self, EngineError> {
        let library = library::load().map_err(|reason| EngineError::Prepare {
            engine: NAME,
            reason,
        })?;
        Ok(Self {
            library,
            pools: Arc::default(),
        })
    }

    /// The library that is used.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The sessions of a model whose outputs are joined by these values.
    fn pool(
        &self,
        model: &Model,
        request: &Request,
        extra: &[String],
    ) -> Result<Arc<Pool>, EngineError> {
        let source = Source::of(model, &request.feed, extra)?;
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(_, pool)| pool.strong_count() > 0);
        let known = pools.iter().find(|(digest, _)| *digest == source.digest);
        if let Some(pool) = known.and_then(|(_, pool)| pool.upgrade()) {
            return Ok(pool);
        }
        let digest = source.digest;
        let first = source.session()?;
        let pool = Arc::new(Pool {
            source,
            idle: Mutex::new(vec![first]),
        });
        pools.push((digest, Arc::downgrade(&pool)));
        Ok(pool)
    }
}

impl Engine for OnnxRuntimeEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(
        &self,
        model: &Model,
        request: &Request,
    ) -> Result<Arc<dyn onnx_quant_ir::engine::Session>, EngineError> {
        if let Some(program) = watching_bodies(model, request) {
            return Ok(Arc::new(StepSession::new(Arc::new(self.clone()), program)?));
        }
        let outputs: Vec<String> = names(model, &model.main().outputs);
        let mut watched = Vec::new();
        let mut computed: Vec<String> = Vec::new();
        for name in &request.observe {
            let place = request.feed.iter().position(|(n, ..)| n == name);
            let value = model.find_value(name);
            watched.push(match (place, value) {
                (Some(place), _) => Watched::Fed(place),
                (None, Some(v)) if model.is_constant(v) => match model.constant(v).map(floats) {
                    Some(Ok(data)) => {
                        Watched::Constant(model.constant(v).map(dims).unwrap_or_default(), data)
                    }
                    _ => Watched::Absent,
                },
                (None, Some(_)) => {
                    if !outputs.contains(name) && !computed.contains(name) {
                        computed.push(name.clone());
                    }
                    Watched::Computed(name.clone())
                }
                (None, None) => Watched::Absent,
            });
        }
        let quantized = model.all_nodes().iter().any(|&n| {
            let op = model.node(n).op_type();
            op == "DequantizeLinear" || op.starts_with("QLinear")
        });
        let watching = match computed.is_empty() {
            true => None,
            false => Some(self.pool(model, request, &computed)?),
        };
        let plain = match &watching {
            Some(_) if !quantized => None,
            _ => Some(self.pool(model, request, &[])?),
        };
        Ok(Arc::new(OnnxRuntimeSession {
            feed: request.feed.iter().map(|(n, ..)| n.clone()).collect(),
            outputs,
            computed,
            watched,
            plain,
            watching,
        }))
    }
}

/// A model in which values of bodies are watched, to be run in steps: what stands in a body cannot be an output.
fn watching_bodies(model: &Model, request: &Request) -> Option<Program> {
    let bodies = steps::ids_in_bodies(model, &request.observe);
    if bodies.is_empty() {
        return None;
    }
    let mut model = model.clone();
    let mut inputs = Vec::new();
    for v in model.main().inputs.clone() {
        let name = &model.value(v).name;
        match request.feed.iter().position(|(n, ..)| n == name) {
            Some(place) => {
                inputs.push(place);
                // A default that is fed over.
                if model.value_mut(v).init.take().is_some() {
                    model
                        .graph_mut(Model::MAIN)
                        .initializers
                        .retain(|&i| i != v);
                }
            }
            None => model.remove_graph_input(v),
        }
    }
    let main = model.values_by_name(Model::MAIN);
    let place = |(i, name): (usize, &String)| {
        let value = main.get(name.as_str()).or_else(|| bodies.get(name));
        Some((i, *value?))
    };
    let watched = request
        .observe
        .iter()
        .enumerate()
        .filter_map(place)
        .collect();
    Some(Program {
        model,
        request: request.clone(),
        inputs,
        watched,
    })
}

fn names(model: &Model, values: &[onnx_quant_ir::ValueId]) -> Vec<String> {
    let name = |&v: &onnx_quant_ir::ValueId| model.value(v).name.clone();
    values.iter().map(name).collect()
}

/// A model as onnxruntime takes it.
struct Source {
    digest: [u8; 32],
    form: Form,
}

enum Form {
    Bytes(Vec<u8>),
    /// Models beyond what a protobuf message holds.
    File(tempfile::TempDir),
}

impl Source {
    fn of(
        model: &Model,
        feed: &[(String, DataType, Vec<usize>)],
        extra: &[String],
    ) -> Result<Self, EngineError> {
        let fail = |reason: String| EngineError::Prepare {
            engine: NAME,
            reason,
        };
        let mut model = model.clone();
        let mut hasher = Sha256::new();
        let weights = model.all_values();
        let weights = weights.iter().filter_map(|&v| model.value(v).init.as_ref());
        let size: usize = weights.filter_map(|t| t.byte_len().ok()).sum();
        if size > IN_MEMORY {
            for name in extra {
                if let Some(value) = model.find_value(name) {
                    model.graph_mut(Model::MAIN).outputs.push(value);
                }
            }
            let folder = tempfile::tempdir().map_err(|e| fail(e.to_string()))?;
            let path = folder.path().join(FILE);
            save::save(&model, &path, ExternalData::Above(1024))
                .map_err(|e| fail(e.to_string()))?;
            // Content would take a pass over gigabytes: such a model has sessions of its own.
            hasher.update(folder.path().to_string_lossy().as_bytes());
            return Ok(Self {
                digest: hasher.finalize().into(),
                form: Form::File(folder),
            });
        }
        let mut proto = save::inlined(&model).map_err(|e| fail(e.to_string()))?;
        if let Some(graph) = proto.graph.as_mut() {
            for input in graph.input.iter_mut().filter(|i| i.r#type.is_none()) {
                let fed = feed.iter().find(|(name, ..)| name == input.name());
                input.r#type = fed.map(|(_, dtype, _)| tensor_type(*dtype));
            }
            for name in extra {
                graph.output.push(ValueInfoProto {
                    name: Some(name.clone()),
                    ..ValueInfoProto::default()
                });
            }
        }
        let bytes = proto.encode_to_vec();
        hasher.update(&bytes);
        Ok(Self {
            digest: hasher.finalize().into(),
            form: Form::Bytes(bytes),
        })
    }

    fn session(&self) -> Result<Session, EngineError> {
        let build = || -> ort::Result<Session> {
            let builder = Session::builder()?
                .with_log_level(LogLevel::Fatal)?
                .with_intra_threads(1)?
                .with_inter_threads(1)?
                .with_optimization_level(GraphOptimizationLevel::Level3)?
                .with_config_entry("session.x64quantprecision", "1")?;
            match &self.form {
                Form::Bytes(bytes) => builder.commit_from_memory(bytes),
                Form::File(folder) => builder.commit_from_file(folder.path().join(FILE)),
            }
        };
        build().map_err(|e| EngineError::Prepare {
            engine: NAME,
            reason: first_line(&e.to_string()),
        })
    }
}

/// The type of tensors of any shape.
fn tensor_type(dtype: DataType) -> TypeProto {
    TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: Some(dtype as i32),
            shape: None,
        })),
        ..TypeProto::default()
    }
}

const FILE: &str = "model.onnx";

/// onnxruntime's messages end in lines of its call stack.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().trim().to_owned()
}

/// Sessions of one model; each is used by one thread at a time.
struct Pool {
    source: Source,
    idle: Mutex<Vec<Session>>,
}

impl Pool {
    fn run(&self, feed: &[(&str, &Tensor)], wanted: &[String]) -> Result<Vec<Tensor>, EngineError> {
        let idle = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let mut session = match idle {
            Some(session) => session,
            None => self.source.session()?,
        };
        let done = run_session(&mut session, feed, wanted);
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(session);
        done
    }
}

fn run_session(
    session: &mut Session,
    feed: &[(&str, &Tensor)],
    wanted: &[String],
) -> Result<Vec<Tensor>, EngineError> {
    let fail = |reason: String| EngineError::Run {
        engine: NAME,
        reason: first_line(&reason),
    };
    let mut inputs = Vec::with_capacity(feed.len());
    for (name, tensor) in feed {
        let value = values::to_ort(session.allocator(), tensor)
            .map_err(|e| fail(format!("input `{name}`: {e}")))?;
        inputs.push(((*name).into(), value.into()));
    }
    let outputs = session
        .run::<0>(SessionInputs::ValueMap(inputs))
        .map_err(|e| fail(e.to_string()))?;
    let output = |name: &String| {
        let value = outputs.get(name.as_str());
        let value = value.ok_or_else(|| fail(format!("the output `{name}` is missing")))?;
        values::from_ort(value).map_err(|e| fail(format!("output `{name}`: {e}")))
    };
    wanted.iter().map(output).collect()
}

/// Where a watched value is found.
enum Watched {
    /// In the feed.
    Fed(usize),
    /// In the model.
    Constant(Vec<usize>, Vec<f32>),
    /// Among the outputs.
    Computed(String),
    /// Nowhere in the main graph.
    Absent,
}

struct OnnxRuntimeSession {
    feed: Vec<String>,
    outputs: Vec<String>,
    /// Watched values that are no outputs of the model.
    computed: Vec<String>,
    watched: Vec<Watched>,
    /// The model as it is.
    plain: Option<Arc<Pool>>,
    /// The model with the watched values as outputs.
    watching: Option<Arc<Pool>>,
}

impl onnx_quant_ir::engine::Session for OnnxRuntimeSession {
    fn run(
        &self,
        feed: &[Tensor],
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<Tensor>, EngineError> {
        if feed.len() != self.feed.len() {
            return Err(EngineError::Feed(format!(
                "{} tensors are fed, but the session was prepared for {}",
                feed.len(),
                self.feed.len()
            )));
        }
        let named: Vec<(&str, &Tensor)> = self.feed.iter().map(String::as_str).zip(feed).collect();
        let watching = self
            .watching
            .as_ref()
            .filter(|_| observer.is_some() || self.plain.is_none());
        let mut seen = Vec::new();
        let mut outputs = None;
        if let Some(pool) = watching {
            let wanted = [self.outputs.as_slice(), &self.computed].concat();
            let mut all = pool.run(&named, &wanted)?;
            seen = all.split_off(self.outputs.len());
            outputs = Some(all);
        }
        let outputs = match (&self.plain, outputs) {
            (Some(pool), _) => pool.run(&named, &self.outputs)?,
            (None, Some(outputs)) => outputs,
            (None, None) => Vec::new(),
        };
        if let Some(observer) = observer {
            for (index, watched) in self.watched.iter().enumerate() {
                self.hand_out(index, watched, feed, &outputs, &seen, observer)?;
            }
        }
        Ok(outputs)
    }
}

impl OnnxRuntimeSession {
    fn hand_out(
        &self,
        index: usize,
        watched: &Watched,
        feed: &[Tensor],
        outputs: &[Tensor],
        seen: &[Tensor],
        observer: &mut (dyn FnMut(Observed<'_>) + Send),
    ) -> Result<(), EngineError> {
        let tensor = match watched {
            Watched::Fed(place) => feed.get(*place),
            Watched::Computed(name) => {
                let among = |names: &[String]| names.iter().position(|n| n == name);
                let output = among(&self.outputs).and_then(|i| outputs.get(i));
                output.or_else(|| among(&self.computed).and_then(|i| seen.get(i)))
            }
            Watched::Constant(dims, data) => {
                observer(Observed { index, dims, data });
                return Ok(());
            }
            Watched::Absent => None,
        };
        let Some(tensor) = tensor else { return Ok(()) };
        let data = floats(tensor).map_err(|reason| EngineError::Run {
            engine: NAME,
            reason,
        })?;
        observer(Observed {
            index,
            dims: &dims(tensor),
            data: &data,
        });
        Ok(())
    }
}

fn dims(tensor: &Tensor) -> Vec<usize> {
    let size = |&d: &i64| usize::try_from(d).unwrap_or(0);
    tensor.dims().iter().map(size).collect()
}

/// The elements as FP32.
fn floats(tensor: &Tensor) -> Result<Vec<f32>, String> {
    use onnx_quant_ir::dtype::DataTypeExt;
    match tensor.dtype() {
        t if t.is_float() => tensor.to_f32().map_err(|e| e.to_string()),
        DataType::String => Err("strings have no values that can be watched".to_owned()),
        _ => {
            let values = tensor.to_i64().map_err(|e| e.to_string())?;
            Ok(values.into_iter().map(|v| v as f32).collect())
        }
    }
}

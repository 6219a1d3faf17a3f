//! The options that choose the runtime.

use std::sync::Arc;

use onnx_quant::engine::TractEngine;
use onnx_quant::ir::engine::Engine;

/// The runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum EngineName {
    /// Part of this program
    Tract,
    /// An installed onnxruntime
    Onnxruntime,
}

/// The runtime of commands that need one.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EngineArgs {
    /// The runtime: tract, or an installed onnxruntime (ORT_DYLIB_PATH, or that of a Python environment)
    #[arg(
        long,
        value_name = "NAME",
        default_value = "tract",
        hide_possible_values = true
    )]
    engine: EngineName,
}

impl EngineArgs {
    /// The chosen runtime.
    pub(crate) fn engine(&self) -> anyhow::Result<Arc<dyn Engine>> {
        open(self.engine)
    }
}

/// The runtimes of `check`: one, or both to compare them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Engines {
    /// Part of this program
    Tract,
    /// An installed onnxruntime
    Onnxruntime,
    /// Both
    Both,
}

/// A runtime, and another one to compare it with.
pub(crate) type Opened = (Arc<dyn Engine>, Option<Arc<dyn Engine>>);

impl Engines {
    /// The runtime that the models are compared on, and another one that has to agree with it.
    pub(crate) fn open(self) -> anyhow::Result<Opened> {
        Ok(match self {
            Self::Tract => (open(EngineName::Tract)?, None),
            Self::Onnxruntime => (open(EngineName::Onnxruntime)?, None),
            Self::Both => (
                open(EngineName::Tract)?,
                Some(open(EngineName::Onnxruntime)?),
            ),
        })
    }
}

fn open(name: EngineName) -> anyhow::Result<Arc<dyn Engine>> {
    match name {
        EngineName::Tract => Ok(Arc::new(TractEngine)),
        #[cfg(feature = "onnxruntime")]
        EngineName::Onnxruntime => Ok(Arc::new(onnx_quant::engine::OnnxRuntimeEngine::open()?)),
        #[cfg(not(feature = "onnxruntime"))]
        EngineName::Onnxruntime => anyhow::bail!(
            "this program was built without the runtime onnxruntime; build it with the cargo feature `onnxruntime`"
        ),
    }
}

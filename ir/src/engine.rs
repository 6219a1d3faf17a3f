//! The frame of every runtime: prepare a model for the shapes of a feed, run it, watch named values as they appear.

use std::sync::Arc;

use crate::dtype::DataType;
use crate::model::Model;
use crate::tensor::Tensor;

/// What the inputs of one run look like, and which values are to be watched.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Request {
    /// Every input of the main graph that is fed: name, type, concrete shape.
    pub feed: Vec<(String, DataType, Vec<usize>)>,
    /// Keys (graph path and name) of values that the observer wants to see: those of the main graph are their names.
    /// A value in a body of control flow is seen each time that the body runs.
    pub observe: Vec<String>,
    /// Places in [`Self::observe`], ascending, of values that may be handed out with their axes behind the first in
    /// another order: a runtime that computes in another layout need not turn them back.
    pub unordered: Vec<usize>,
}

/// A value at the moment it was computed.
#[derive(Debug)]
pub struct Observed<'a> {
    /// Its place in [`Request::observe`].
    pub index: usize,
    /// Its shape.
    pub dims: &'a [usize],
    /// Its elements in row-major order, as FP32.
    pub data: &'a [f32],
}

/// Called for every watched value as it is produced; the data does not outlive the call.
pub type Observer<'a> = &'a mut (dyn FnMut(Observed<'_>) + Send);

/// Why a runtime cannot run a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// An operator that the runtime does not have.
    #[error("{engine} cannot run {op} (node `{node}`): {reason}\n  {advice}")]
    Unsupported {
        /// The runtime.
        engine: &'static str,
        /// The operator type.
        op: String,
        /// The node's name.
        node: String,
        /// What the runtime said.
        reason: String,
        /// What the user can do.
        advice: String,
    },
    /// The model does not load for another reason.
    #[error("{engine} cannot prepare the model: {reason}")]
    Prepare {
        /// The runtime.
        engine: &'static str,
        /// What the runtime said.
        reason: String,
    },
    /// The run failed.
    #[error("{engine} failed while running: {reason}")]
    Run {
        /// The runtime.
        engine: &'static str,
        /// What the runtime said.
        reason: String,
    },
    /// The feed does not fit the model's signature.
    #[error("{0}")]
    Feed(String),
}

/// A runtime.
pub trait Engine: Send + Sync {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Prepares a model for inputs of fixed types and shapes.
    ///
    /// # Errors
    /// What the runtime cannot do, with the node at fault.
    fn prepare(&self, model: &Model, request: &Request) -> Result<Arc<dyn Session>, EngineError>;
}

/// A prepared model. Many threads may run it at once.
pub trait Session: Send + Sync {
    /// Runs the model once. `feed` holds one tensor for each entry of [`Request::feed`], in that order; the result one
    /// for each output of the main graph.
    ///
    /// # Errors
    /// What went wrong in the runtime.
    fn run(
        &self,
        feed: &[Tensor],
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<Tensor>, EngineError>;
}

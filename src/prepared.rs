//! A model and the values that are watched in it, ready to be run on any batch of a data set.

use std::sync::Arc;

use onnx_quant_ir::engine::{Engine, Observer, Request};
use onnx_quant_ir::{Model, Tensor};

use crate::data::{Batch, DataSet};
use crate::engine::SessionCache;
use crate::error::Error;

/// Different shapes that are kept prepared: texts of every length up to a common one fit.
const SHAPES: usize = 64;

/// A model that is prepared for the shapes of a batch when the batch comes.
pub(crate) struct Prepared {
    cache: SessionCache,
    observe: Vec<String>,
    unordered: Vec<usize>,
}

impl Prepared {
    pub(crate) fn new(engine: &Arc<dyn Engine>, model: &Model, observe: Vec<String>) -> Self {
        Self {
            cache: SessionCache::new(Arc::clone(engine), Arc::new(model.clone()), SHAPES),
            observe,
            unordered: Vec::new(),
        }
    }

    /// Lets the runtime hand out these values with their axes in another order; see [`Request::unordered`].
    pub(crate) fn unordered(mut self, places: Vec<usize>) -> Self {
        self.unordered = places;
        self
    }

    /// Runs a batch; see [`onnx_quant_ir::engine::Session::run`].
    pub(crate) fn run(
        &self,
        data: &DataSet,
        batch: &Batch,
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<Tensor>, Error> {
        let request = Request {
            feed: data.shapes_of(batch),
            observe: self.observe.clone(),
            unordered: self.unordered.clone(),
        };
        Ok(self.cache.get(&request)?.run(&batch.tensors, observer)?)
    }
}

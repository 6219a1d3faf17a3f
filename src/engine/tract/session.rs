//! A prepared model and its runs: one plan shared by all threads, one short-lived state for each run.

use std::sync::Arc;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::engine::{EngineError, Observed, Observer, Request, Session};
use onnx_quant_ir::{DataType, Tensor};
use tract_onnx::prelude::{IntoTValue, TValue, TVec, TypedSimplePlan};
use tract_onnx::tract_core::plan;
use tract_onnx::tract_hir::internal::TractResult;

use super::lower::ConstantObservation;
use super::ops::Observe;
use super::{NAME, convert, protect};

/// A model that tract has optimized for one request.
#[derive(Debug)]
pub(super) struct TractSession {
    plan: Arc<TypedSimplePlan>,
    request: Request,
    /// For each input of the plan its place in the feed.
    inputs: Vec<usize>,
    /// For each output of the model its declared type.
    outputs: Vec<Option<DataType>>,
    /// By node of the plan: the watched value that it hands out.
    watch: Vec<Option<Observe>>,
    constants: Vec<ConstantObservation>,
}

impl TractSession {
    pub(super) fn new(
        plan: Arc<TypedSimplePlan>,
        request: Request,
        inputs: Vec<usize>,
        outputs: Vec<Option<DataType>>,
        constants: Vec<ConstantObservation>,
    ) -> Result<Self, EngineError> {
        let model = plan.model();
        let (found, wanted) = (model.inputs.len(), inputs.len());
        if found != wanted || model.outputs.len() < outputs.len() {
            return Err(EngineError::Prepare {
                engine: NAME,
                reason: format!(
                    "the plan has {found} inputs and {} outputs, the model {wanted} and {}",
                    model.outputs.len(),
                    outputs.len()
                ),
            });
        }
        let watch = model
            .nodes()
            .iter()
            .map(|n| Some(n.op_as::<Observe>()?.clone().relax(&request.unordered)))
            .collect();
        Ok(Self {
            plan,
            request,
            inputs,
            outputs,
            watch,
            constants,
        })
    }

    fn check(&self, feed: &[Tensor]) -> Result<(), EngineError> {
        let wanted = &self.request.feed;
        if feed.len() != wanted.len() {
            return Err(EngineError::Feed(format!(
                "{} tensors are fed, but the session was prepared for {}",
                feed.len(),
                wanted.len()
            )));
        }
        for (t, (name, dtype, dims)) in feed.iter().zip(wanted) {
            let same_shape = t
                .dims()
                .iter()
                .map(|&d| d as usize)
                .eq(dims.iter().copied());
            if t.dtype() != *dtype || !same_shape {
                return Err(EngineError::Feed(format!(
                    "input `{name}`: {} {:?} is fed, but the session was prepared for {} {dims:?}",
                    t.dtype().short_name(),
                    t.dims(),
                    dtype.short_name()
                )));
            }
        }
        Ok(())
    }

    fn run_plan(
        &self,
        feed: &[Tensor],
        observer: Option<Observer<'_>>,
    ) -> TractResult<Vec<Tensor>> {
        let inputs: TVec<TValue> = self
            .inputs
            .iter()
            .map(|&i| Ok(convert::to_tract(&feed[i])?.into_tvalue()))
            .collect::<TractResult<_>>()?;
        let mut state = self.plan.spawn()?;
        let outputs = match observer {
            None => state.run(inputs)?,
            Some(observer) => {
                for c in &self.constants {
                    observer(Observed {
                        index: c.index,
                        dims: &c.dims,
                        data: &c.data,
                    });
                }
                state.run_plan_with_eval(inputs, |ctx, op_state, node, inputs| {
                    match &self.watch[node.id] {
                        Some(watched) => {
                            watched.hand_out(&inputs[0], observer)?;
                            Ok(inputs)
                        }
                        None => plan::eval(ctx, op_state, node, inputs),
                    }
                })?
            }
        };
        outputs
            .iter()
            .zip(&self.outputs)
            .map(|(t, &dtype)| convert::from_tract(t, dtype))
            .collect()
    }
}

impl Session for TractSession {
    fn run(
        &self,
        feed: &[Tensor],
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<Tensor>, EngineError> {
        self.check(feed)?;
        protect(|| self.run_plan(feed, observer)).map_err(|messages| EngineError::Run {
            engine: NAME,
            reason: messages.join(": "),
        })
    }
}

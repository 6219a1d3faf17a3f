//! The default runtime: tract, with operators of our own for quantization and for watching values.
//!
//! A model is copied (its weights are shared), made concrete for the shapes of the feed, lowered, and handed to tract
//! in memory; see `lower` for what is changed. Watched values are handed out by an identity operator that stands
//! right behind each of them, so that the model around it is still optimized.

mod convert;
mod fault;
mod lower;
mod ops;
mod session;
mod switched;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use onnx_quant_ir::engine::{Engine, EngineError, Request, Session};
use onnx_quant_ir::{Model, Tensor};
use onnx_quant_proto::Message;
use tract_onnx::prelude::{Framework, InferenceModelExt};
use tract_onnx::tract_hir::internal::{SimplePlan, TractResult};

use super::steps::{StepSession, is_control};
use lower::{Concrete, Lowered};
use session::TractSession;
use switched::SwitchedSession;

/// How errors name the runtime.
const NAME: &str = "tract";

/// The tract runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct TractEngine;

impl Engine for TractEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn prepare(&self, model: &Model, request: &Request) -> Result<Arc<dyn Session>, EngineError> {
        let switches = switched::switches(model, request);
        if switches.is_empty() {
            return prepare_fixed(model, request, BTreeMap::new());
        }
        Ok(Arc::new(SwitchedSession {
            model: model.clone(),
            request: request.clone(),
            switches,
            slots: Mutex::default(),
        }))
    }
}

/// Prepares a model for one request; `values` are inputs that every run feeds the same value. Where values are watched
/// in bodies of control flow, or tract cannot run that by itself, the model is run in steps.
fn prepare_fixed(
    model: &Model,
    request: &Request,
    values: BTreeMap<String, Tensor>,
) -> Result<Arc<dyn Session>, EngineError> {
    let concrete = Concrete::of(model, request, values)?;
    let in_steps = |concrete: Concrete| -> Result<Arc<dyn Session>, EngineError> {
        let program = concrete.program(request);
        Ok(Arc::new(StepSession::new(Arc::new(TractEngine), program)?))
    };
    if concrete.watches_bodies() {
        return in_steps(concrete);
    }
    let nodes = &concrete.model.main().nodes;
    if !nodes.iter().any(|&n| is_control(&concrete.model, n)) {
        return prepare_whole(concrete, request);
    }
    prepare_whole(concrete.clone(), request).or_else(|_| in_steps(concrete))
}

/// Prepares a model that tract runs as it is.
fn prepare_whole(concrete: Concrete, request: &Request) -> Result<Arc<dyn Session>, EngineError> {
    let framework = ops::framework();
    let lowered = concrete.lower(request)?;
    fault::refuse(&lowered.model, &|op| {
        framework.op_register.0.contains_key(op)
    })?;
    let load = || -> TractResult<_> {
        let bytes = lowered.proto.encode_to_vec();
        let proto = tract_onnx::pb::ModelProto::decode(bytes::Bytes::from(bytes))?;
        let mut inference = framework.model_for_proto_model(&proto)?;
        drop(proto);
        inference.analyse(false)?;
        let watched = ops::constant_observations(&inference)?;
        let plan = SimplePlan::new(inference.into_optimized()?)?;
        Ok((plan, watched))
    };
    let (plan, watched) =
        protect(load).map_err(|messages| fault::explain(&lowered.names, &messages))?;
    let Lowered {
        inputs,
        outputs,
        mut constants,
        ..
    } = lowered;
    constants.extend(watched);
    constants.sort_by_key(|c| c.index);
    let session = TractSession::new(plan, request.clone(), inputs, outputs, constants)?;
    Ok(Arc::new(session))
}

/// Runs a call into tract. A panic becomes an error; the messages of an error are given from the outside in.
fn protect<T>(call: impl FnOnce() -> TractResult<T>) -> Result<T, Vec<String>> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(t)) => Ok(t),
        Ok(Err(e)) => Err(e.chain().map(ToString::to_string).collect()),
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
                .unwrap_or_else(|| "no message".to_owned());
            Err(vec![format!("internal failure: {text}")])
        }
    }
}

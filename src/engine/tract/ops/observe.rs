//! The identity that hands out a watched value.

use onnx_quant_ir::engine::Observed;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::infer::{Factoid, InferenceModel, InferenceOp, rules::TensorProxy};
use tract_onnx::tract_hir::internal::*;

use super::super::lower::ConstantObservation;

/// The operator type of the identity in the lowered model; its attribute `index` is the place in the request.
pub(in super::super) const OBSERVE: &str = "Observe";

/// An identity that the optimizer keeps. Layout changes pass through it and are undone for the observer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in super::super) struct Observe {
    index: usize,
    /// What leads from the layout that tract computes in back to the model's, in order.
    undo: Vec<AxisOp>,
}

impl Observe {
    /// Leaves the value in tract's layout where that has the same first axis, if the observer does not mind.
    pub(in super::super) fn relax(mut self, unordered: &[usize]) -> Self {
        let behind_the_first =
            |change: &AxisOp| matches!(change, AxisOp::Move(from, to) if *from > 0 && *to > 0);
        if unordered.contains(&self.index) && self.undo.iter().all(behind_the_first) {
            self.undo.clear();
        }
        self
    }

    /// Hands the value to the observer, as FP32 in the model's layout.
    pub(in super::super) fn hand_out(
        &self,
        value: &Tensor,
        observer: &mut (dyn FnMut(Observed<'_>) + Send),
    ) -> TractResult<()> {
        let mut value = Cow::Borrowed(value);
        for change in &self.undo {
            change.change_tensor(value.to_mut(), false)?;
        }
        let real = value.cast_to::<f32>()?;
        observer(Observed {
            index: self.index,
            dims: real.shape(),
            data: real.try_as_plain_ram()?.as_slice::<f32>()?,
        });
        Ok(())
    }
}

impl Op for Observe {
    fn name(&self) -> StaticName {
        OBSERVE.into()
    }
    op_as_typed_op!();
}

impl EvalOp for Observe {
    not_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(inputs)
    }
}

impl TypedOp for Observe {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].datum_type.fact(inputs[0].shape.clone())))
    }

    fn axes_mapping(
        &self,
        inputs: &[&TypedFact],
        outputs: &[&TypedFact],
    ) -> TractResult<AxesMapping> {
        AxesMapping::natural(inputs, outputs)
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _io: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        let mut undo = vec![change.recip()];
        undo.extend(self.undo.iter().cloned());
        let op = Self {
            index: self.index,
            undo,
        };
        Ok(Some(AxisChangeConsequence::new(
            model,
            node,
            Some(Box::new(op)),
            change,
        )))
    }
}

#[derive(Debug, Clone)]
struct ObserveExpansion {
    index: usize,
}

impl Expansion for ObserveExpansion {
    fn name(&self) -> StaticName {
        OBSERVE.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].datum_type, &outputs[0].datum_type)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)?;
        s.equals(&inputs[0].value, &outputs[0].value)
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let op = Observe {
            index: self.index,
            undo: vec![],
        };
        model.wire_node(prefix, op, inputs)
    }
}

pub(super) fn build(node: &NodeProto) -> TractResult<Box<dyn InferenceOp>> {
    let index = super::attr_i(node, "index")?.unwrap_or(0) as usize;
    Ok(expand(ObserveExpansion { index }))
}

/// The watched values that are the same in every run: tract folds them, so that no operator hands them out.
pub(in super::super) fn constant_observations(
    model: &InferenceModel,
) -> TractResult<Vec<ConstantObservation>> {
    let mut found = vec![];
    for node in model.nodes() {
        let Some(op) = node.op_as::<Box<dyn Expansion>>() else {
            continue;
        };
        let op: &dyn std::any::Any = &**op;
        let Some(observe) = op.downcast_ref::<ObserveExpansion>() else {
            continue;
        };
        if let Some(value) = node.outputs[0].fact.value.concretize() {
            let real = value.cast_to::<f32>()?;
            found.push(ConstantObservation {
                index: observe.index,
                dims: real.shape().to_vec(),
                data: real.try_as_plain_ram()?.as_slice::<f32>()?.to_vec(),
            });
        }
    }
    Ok(found)
}

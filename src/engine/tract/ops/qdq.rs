//! `Quantize`, `Dequantize` and `FakeQuantize` (see the pass `lower_qdq`), with the arithmetic of `numerics`.

use onnx_quant_numerics::affine::{QParams, quantize_reference};
use onnx_quant_numerics::minifloat::MiniFloat;
use onnx_quant_numerics::quantize::{Code, dequantize, fake_quant, quantize};
use onnx_quant_passes::lower_qdq::layout::ParamLayout;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::infer::{InferenceOp, rules::TensorProxy};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Quantize,
    Dequantize,
    Fake,
}

/// What the attributes of the node say.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Attributes {
    kind: Kind,
    axis: i64,
    block_size: i64,
    qmin: i32,
    qmax: i32,
    /// The type of the output; that of the scale where it is not given.
    to: Option<DatumType>,
    /// The codes are floats; their numbers stand in their place.
    element: Option<MiniFloat>,
    /// Numbers beyond the finite ones become the largest.
    saturate: bool,
    /// The division rounds to FP16; decided by the types of input and scale where it is not given.
    half_division: Option<bool>,
}

/// The operator. With constant parameters it has one input, otherwise also the scale and perhaps the zero point.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Qdq {
    attributes: Attributes,
    /// Scale (FP32) and zero point (INT32), where both are constant.
    params: Option<(Arc<Tensor>, Arc<Tensor>)>,
    to: DatumType,
    half_division: bool,
}

fn parameters(scale: &Tensor, zero_point: Option<&Tensor>) -> TractResult<(Tensor, Tensor)> {
    let scale = scale.cast_to::<f32>()?.into_owned();
    let zero_point = match zero_point {
        Some(z) => z.cast_to::<i32>()?.into_owned(),
        None => Tensor::zero::<i32>(scale.shape())?,
    };
    ensure!(
        scale.len() == zero_point.len(),
        "{} scales stand beside {} zero points",
        scale.len(),
        zero_point.len()
    );
    Ok((scale, zero_point))
}

/// Scales, zero points and where they belong, for one run.
struct Plan<'a> {
    layout: ParamLayout,
    scales: &'a [f32],
    zero_points: &'a [i32],
    qmin: i32,
    qmax: i32,
}

impl Plan<'_> {
    fn params(&self, p: usize) -> QParams {
        QParams {
            scale: self.scales[p],
            zero_point: self.zero_points[p],
            qmin: self.qmin,
            qmax: self.qmax,
        }
    }

    fn quantize<T: Code>(&self, x: &[f32], out: &mut [T]) {
        self.layout.for_each_run(|run, p| {
            quantize(&x[run.clone()], &self.params(p), &mut out[run]);
        });
    }

    fn dequantize<T: Code>(&self, q: &[T], out: &mut [f32]) {
        self.layout.for_each_run(|run, p| {
            let (scale, zero_point) = (self.scales[p], self.zero_points[p]);
            dequantize(&q[run.clone()], scale, zero_point, &mut out[run]);
        });
    }

    fn fake(&self, x: &mut [f32]) {
        self.layout
            .for_each_run(|run, p| fake_quant(&mut x[run], &self.params(p)));
    }

    /// Divides by the scale with the quotient rounded to FP16, and rounds to codes without their zero point, which
    /// stay FP32: what is left of the quantizer then has scale 1.
    fn divide_half(&self, x: &mut [f32]) {
        self.layout.for_each_run(|run, p| {
            for x in &mut x[run] {
                *x = f16::from_f32(*x / self.scales[p]).to_f32();
            }
        });
    }
}

impl Qdq {
    fn apply(&self, x: TValue, scale: &Tensor, zero_point: &Tensor) -> TractResult<Tensor> {
        let a = &self.attributes;
        let layout = ParamLayout::of(x.shape(), scale.shape(), a.axis, a.block_size)
            .map_err(|e| format_err!("{e}"))?;
        let plan = Plan {
            layout,
            scales: scale.try_as_plain_ram()?.as_slice()?,
            zero_points: zero_point.try_as_plain_ram()?.as_slice()?,
            qmin: a.qmin,
            qmax: a.qmax,
        };
        if let (Some(element), Kind::Quantize | Kind::Fake) = (a.element, a.kind) {
            return self.round(x, &plan, element);
        }
        match a.kind {
            Kind::Quantize if self.half_division => self.quantize_half(x, &plan),
            Kind::Quantize => self.quantize(x.cast_to::<f32>()?.as_ref(), &plan),
            Kind::Dequantize => dequantize_tensor(&x, &plan)?.cast_to_owned(self.to),
            Kind::Fake if self.half_division => {
                let wide = Self {
                    to: DatumType::I32,
                    ..self.clone()
                };
                let codes = wide.quantize_half(x, &plan)?;
                dequantize_tensor(&codes, &plan)?.cast_to_owned(self.to)
            }
            Kind::Fake => {
                let mut x = x.into_tensor().cast_to_owned(DatumType::F32)?;
                plan.fake(x.try_as_plain_ram_mut()?.as_slice_mut()?);
                x.cast_to_owned(self.to)
            }
        }
    }

    /// The numbers of a float format, with their scale where it is to be taken back.
    fn round(&self, x: TValue, plan: &Plan<'_>, element: MiniFloat) -> TractResult<Tensor> {
        let mut x = x.into_tensor().cast_to_owned(DatumType::F32)?;
        let mut plain = x.try_as_plain_ram_mut()?;
        let values = plain.as_slice_mut::<f32>()?;
        let table = element.table();
        let fake = self.attributes.kind == Kind::Fake;
        plan.layout.for_each_run(|run, p| {
            let scale = plan.scales[p];
            for x in &mut values[run] {
                let quotient = match self.half_division {
                    true => f16::from_f32(*x / scale).to_f32(),
                    false => *x / scale,
                };
                let code = element.encode(quotient, self.attributes.saturate);
                let number = table[usize::from(code)];
                *x = if fake { number * scale } else { number };
            }
        });
        x.cast_to_owned(self.to)
    }

    fn quantize(&self, x: &Tensor, plan: &Plan<'_>) -> TractResult<Tensor> {
        let mut out = Tensor::zero_dt(self.to, x.shape())?;
        let x = x.try_as_plain_ram()?.as_slice::<f32>()?;
        let mut plain = out.try_as_plain_ram_mut()?;
        match self.to {
            DatumType::I8 => plan.quantize(x, plain.as_slice_mut::<i8>()?),
            DatumType::U8 => plan.quantize(x, plain.as_slice_mut::<u8>()?),
            DatumType::I16 => plan.quantize(x, plain.as_slice_mut::<i16>()?),
            DatumType::U16 => plan.quantize(x, plain.as_slice_mut::<u16>()?),
            other => bail!("codes of type {other:?} are not supported"),
        }
        Ok(out)
    }

    fn quantize_half(&self, x: TValue, plan: &Plan<'_>) -> TractResult<Tensor> {
        let mut x = x.into_tensor().cast_to_owned(DatumType::F32)?;
        let mut plain = x.try_as_plain_ram_mut()?;
        let quotients = plain.as_slice_mut::<f32>()?;
        plan.divide_half(quotients);
        let mut codes = vec![0i32; quotients.len()];
        plan.layout.for_each_run(|run, p| {
            for (code, &q) in codes[run.clone()].iter_mut().zip(&quotients[run]) {
                *code = quantize_reference(q, 1.0, plan.zero_points[p], plan.qmin, plan.qmax);
            }
        });
        let shape = x.shape().to_vec();
        let codes = tract_core::prelude::tract_ndarray::ArrayD::from_shape_vec(shape, codes)?;
        Tensor::from(codes).cast_to_owned(self.to)
    }
}

fn dequantize_tensor(q: &Tensor, plan: &Plan<'_>) -> TractResult<Tensor> {
    let mut out = Tensor::zero::<f32>(q.shape())?;
    let mut plain = out.try_as_plain_ram_mut()?;
    let real = plain.as_slice_mut::<f32>()?;
    let codes = q.try_as_plain_ram()?;
    match q.datum_type() {
        DatumType::I8 => plan.dequantize(codes.as_slice::<i8>()?, real),
        DatumType::U8 => plan.dequantize(codes.as_slice::<u8>()?, real),
        DatumType::I16 => plan.dequantize(codes.as_slice::<i16>()?, real),
        DatumType::U16 => plan.dequantize(codes.as_slice::<u16>()?, real),
        DatumType::I32 => plan.dequantize(codes.as_slice::<i32>()?, real),
        DatumType::F32 => {
            let numbers = codes.as_slice::<f32>()?;
            plan.layout.for_each_run(|run, p| {
                for (out, &x) in real[run.clone()].iter_mut().zip(&numbers[run]) {
                    *out = x * plan.scales[p];
                }
            });
        }
        other => bail!("codes of type {other:?} are not supported"),
    }
    Ok(out)
}

/// A cast that copies nothing where the type is right already.
trait CastOwned {
    fn cast_to_owned(self, to: DatumType) -> TractResult<Tensor>;
}

impl CastOwned for Tensor {
    fn cast_to_owned(self, to: DatumType) -> TractResult<Tensor> {
        if self.datum_type() == to {
            return Ok(self);
        }
        Ok(self.cast_to_dt(to)?.into_owned())
    }
}

impl Op for Qdq {
    fn name(&self) -> StaticName {
        match self.attributes.kind {
            Kind::Quantize => "Quantize".into(),
            Kind::Dequantize => "Dequantize".into(),
            Kind::Fake => "FakeQuantize".into(),
        }
    }
    op_as_typed_op!();
}

impl EvalOp for Qdq {
    op_out_of_plan!();

    fn eval(&self, _ctx: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let x = inputs.remove(0);
        let out = match &self.params {
            Some((scale, zero_point)) => self.apply(x, scale, zero_point)?,
            None => {
                let (scale, zero_point) = parameters(&inputs[0], inputs.get(1).map(|z| &**z))?;
                self.apply(x, &scale, &zero_point)?
            }
        };
        Ok(tvec!(out.into_tvalue()))
    }
}

impl TypedOp for Qdq {
    as_op!();

    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(self.to.fact(inputs[0].shape.clone())))
    }

    fn axes_mapping(
        &self,
        inputs: &[&TypedFact],
        outputs: &[&TypedFact],
    ) -> TractResult<AxesMapping> {
        match self.params {
            Some(_) => AxesMapping::natural(inputs, outputs),
            None => AxesMapping::disconnected(inputs, outputs),
        }
    }

    fn change_axes(
        &self,
        model: &TypedModel,
        node: &TypedNode,
        _io: InOut,
        change: &AxisOp,
    ) -> TractResult<Option<AxisChangeConsequence>> {
        let Some((scale, _)) = &self.params else {
            return Ok(None);
        };
        let one = scale.len() == 1 && self.attributes.block_size == 0;
        if one && scale.rank() <= 1 {
            return Ok(Some(AxisChangeConsequence::new(model, node, None, change)));
        }
        let axis = usize::try_from(self.attributes.axis).ok();
        let moved = axis.and_then(|a| change.transform_axis(a));
        let (0, Some(axis)) = (self.attributes.block_size, moved) else {
            return Ok(None);
        };
        let mut op = self.clone();
        op.attributes.axis = axis as i64;
        let op: Box<dyn TypedOp> = Box::new(op);
        Ok(Some(AxisChangeConsequence::new(
            model,
            node,
            Some(op),
            change,
        )))
    }
}

impl Expansion for Attributes {
    fn name(&self) -> StaticName {
        "Qdq".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        ensure!(
            inputs.len() == 2 || inputs.len() == 3,
            "{} inputs stand where 2 or 3 are needed",
            inputs.len()
        );
        check_output_arity(outputs, 1)?;
        s.equals(&inputs[0].shape, &outputs[0].shape)?;
        match self.to {
            Some(to) => s.equals(&outputs[0].datum_type, to),
            None => s.equals(&outputs[0].datum_type, &inputs[1].datum_type),
        }
    }

    fn wire(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
    ) -> TractResult<TVec<OutletId>> {
        let x = model.outlet_fact(inputs[0])?.clone();
        let scale = model.outlet_fact(inputs[1])?.clone();
        let half = |f: &TypedFact| f.datum_type == DatumType::F16;
        let zero_point = match inputs.get(2) {
            Some(&z) => Some(model.outlet_fact(z)?.konst.clone()),
            None => None,
        };
        let params = match (&scale.konst, zero_point) {
            (Some(scale), None) => Some(parameters(scale, None)?),
            (Some(scale), Some(Some(z))) => Some(parameters(scale, Some(&z))?),
            _ => None,
        };
        let mut attributes = self.clone();
        if attributes.axis < 0 {
            attributes.axis += x.rank() as i64;
        }
        let op = Qdq {
            to: self.to.unwrap_or(scale.datum_type),
            half_division: self.kind != Kind::Dequantize
                && self.half_division.unwrap_or(half(&x) && half(&scale)),
            params: params.map(|(s, z)| (s.into_arc_tensor(), z.into_arc_tensor())),
            attributes,
        };
        let inputs = match op.params {
            Some(_) => &inputs[..1],
            None => inputs,
        };
        model.wire_node(prefix, op, inputs)
    }
}

pub(super) fn build(node: &NodeProto) -> TractResult<Box<dyn InferenceOp>> {
    let int = |name: &str| super::attr_i(node, name);
    let to = match int("to")? {
        None => None,
        Some(number) => match number {
            // FP32 stands for bfloat16 in execution.
            1 | 16 => Some(DatumType::F32),
            10 => Some(DatumType::F16),
            2 => Some(DatumType::U8),
            3 => Some(DatumType::I8),
            4 => Some(DatumType::U16),
            5 => Some(DatumType::I16),
            _ => bail!("the output type {number} is not supported"),
        },
    };
    let half_division = match int("precision")?.unwrap_or(0) {
        0 => None,
        1 | 16 => Some(false),
        10 => Some(true),
        other => bail!("division in the type {other} is not supported"),
    };
    Ok(expand(Attributes {
        kind: match node.op_type.as_str() {
            "Quantize" => Kind::Quantize,
            "Dequantize" => Kind::Dequantize,
            _ => Kind::Fake,
        },
        axis: int("axis")?.unwrap_or(1),
        block_size: int("block_size")?.unwrap_or(0),
        qmin: int("qmin")?.unwrap_or(0) as i32,
        qmax: int("qmax")?.unwrap_or(0) as i32,
        to,
        element: match int("element")? {
            None => None,
            Some(number) => Some(
                i32::try_from(number)
                    .ok()
                    .and_then(MiniFloat::from_onnx_type)
                    .with_context(|| format!("codes of type {number} are not supported"))?,
            ),
        },
        saturate: int("saturate")?.unwrap_or(1) != 0,
        half_division,
    }))
}

//! Writes integer operators as `DequantizeLinear → operator → QuantizeLinear`, for execution only.
//!
//! # What it does
//! QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger, and of com.microsoft QGemm, QLinearAdd, QLinearMul,
//! QLinearConcat, QLinearWhere, QLinearAveragePool, QLinearGlobalAveragePool, QLinearLeakyRelu, QLinearSigmoid,
//! QLinearSoftmax and DynamicQuantizeLSTM become float operators between conversions, which an engine runs fast and
//! with the same values.
//!
//! # Before → After
//! ```text
//! q → QLinearConv(W_quantized, b_quantized) → r
//! q → DQ → Conv(W_quantized → DQ, Cast(b) · S_X S_W) → Q → r
//! ```
//!
//! # When it does not fire
//! On other operators, and on pooling with `channels_last`.
//!
//! # Invariants kept
//! The signature. Sums of products are exact in FP32 up to 2²⁴; above, and at ties, a code may differ by one. Inside a
//! DynamicQuantizeLSTM the recurrent state stays in float.
//!
//! # Opset notes
//! All versions of these operators.
//!
//! # References
//! ONNX, QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger; onnxruntime, contrib operators.

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{DataType, GraphId, Model, Names, NodeId, NodeSpec, Tensor, ValueId};

mod recurrent;

/// See the head of this file.
pub struct ExpandQoperator;

static INFO: PassInfo = PassInfo {
    name: "expand_qoperator",
    summary: "Writes integer operators as float operators between conversions (for execution only)",
    source: include_str!("expand_qoperator.rs"),
    exact: false,
};

impl Pass for ExpandQoperator {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, _cx: &mut PassContext) -> Result<Changed, PassError> {
        let nodes = model.all_nodes();
        if !nodes.iter().any(|&n| is_integer_operator(model, n)) {
            return Ok(Changed::No);
        }
        let names = model.names();
        let mut e = Expansion { model, names };
        let mut changed = false;
        for node in nodes {
            if is_integer_operator(e.model, node) {
                changed |= e.expand(node).is_some();
            }
        }
        Ok(changed.into())
    }
}

/// Whether this pass knows the operator.
pub fn is_integer_operator(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    let known = match n.op_type() {
        "QLinearConv" | "QLinearMatMul" | "ConvInteger" | "MatMulInteger" => n.domain().is_empty(),
        "QGemm"
        | "QLinearAdd"
        | "QLinearMul"
        | "QLinearConcat"
        | "QLinearWhere"
        | "QLinearAveragePool"
        | "QLinearGlobalAveragePool"
        | "QLinearLeakyRelu"
        | "QLinearSigmoid"
        | "QLinearSoftmax"
        | "DynamicQuantizeLSTM" => n.domain() == "com.microsoft",
        _ => false,
    };
    known && n.attr_i("channels_last").unwrap_or(0) == 0
}

/// The model in work and the node that is being replaced.
struct Expansion<'a> {
    model: &'a mut Model,
    names: Names,
}

impl Expansion<'_> {
    fn expand(&mut self, node: NodeId) -> Option<()> {
        let op = self.model.node(node).op_type().to_owned();
        let inputs = self.model.inputs(node);
        let at = |i: usize| inputs.get(i).copied().flatten();
        match op.as_str() {
            "QLinearConv" => {
                let x = self.real(node, [at(0)?, at(1)?, at(2)?], None)?;
                let w = self.real(node, [at(3)?, at(4)?, at(5)?], Some(0))?;
                let mut data = vec![Some(x), Some(w)];
                if let Some(b) = at(8) {
                    data.push(Some(self.bias(node, b, at(1)?, at(4)?)));
                }
                self.between(node, "Conv", &data, (at(6)?, at(7)?), &[])
            }
            "QLinearMatMul" => {
                // The scales of the left side are for rows, those of the right side for columns.
                let a = self.real(node, [at(0)?, at(1)?, at(2)?], Some(-2))?;
                let b = self.real(node, [at(3)?, at(4)?, at(5)?], Some(-1))?;
                self.between(node, "MatMul", &[Some(a), Some(b)], (at(6)?, at(7)?), &[])
            }
            "QGemm" => {
                let a = self.real(node, [at(0)?, at(1)?, at(2)?], None)?;
                let turned = self.model.node(node).attr_i("transB").unwrap_or(0) != 0;
                let axis = if turned { 0 } else { 1 };
                let b = self.real(node, [at(3)?, at(4)?, at(5)?], Some(axis))?;
                let mut data = vec![Some(a), Some(b)];
                if let Some(c) = at(6) {
                    data.push(Some(self.bias(node, c, at(1)?, at(4)?)));
                }
                match (at(7), at(8)) {
                    (Some(scale), Some(zero)) => {
                        self.between(node, "Gemm", &data, (scale, zero), &[])
                    }
                    _ => self.float(node, "Gemm", &data),
                }
            }
            "QLinearConcat" => {
                let triples = inputs[2..].chunks_exact(3);
                let data = triples.map(|t| self.real(node, [t[0]?, t[1]?, t[2]?], None).map(Some));
                let data: Vec<_> = data.collect::<Option<_>>()?;
                self.between(node, "Concat", &data, (at(0)?, at(1)?), &[])
            }
            "QLinearWhere" => {
                let x = self.real(node, [at(1)?, at(2)?, at(3)?], None)?;
                let y = self.real(node, [at(4)?, at(5)?, at(6)?], None)?;
                let data = [at(0), Some(x), Some(y)];
                self.between(node, "Where", &data, (at(7)?, at(8)?), &[])
            }
            "QLinearAdd" | "QLinearMul" => {
                let a = self.real(node, [at(0)?, at(1)?, at(2)?], None)?;
                let b = self.real(node, [at(3)?, at(4)?, at(5)?], None)?;
                let real = op.trim_start_matches("QLinear");
                self.between(node, real, &[Some(a), Some(b)], (at(6)?, at(7)?), &[])
            }
            "ConvInteger" | "MatMulInteger" => self.integer(node, &op, &inputs),
            "DynamicQuantizeLSTM" => self.lstm(node, &inputs),
            _ => {
                let x = self.real(node, [at(0)?, at(1)?, at(2)?], None)?;
                let real = op.trim_start_matches("QLinear");
                let none = ["channels_last", "opset"];
                self.between(node, real, &[Some(x)], (at(3)?, at(4)?), &none)
            }
        }
    }

    fn graph(&self, node: NodeId) -> GraphId {
        self.model.node(node).graph
    }

    fn op(&mut self, graph: GraphId, spec: NodeSpec, inputs: &[ValueId], stem: &str) -> ValueId {
        let name = self.names.fresh(stem);
        self.model.add_op(graph, spec, inputs, &name)
    }

    fn stem(&self, value: ValueId) -> String {
        self.model.value(value).name.clone()
    }

    /// The real values of codes; a scale with several entries lies along `axis`.
    fn real(
        &mut self,
        node: NodeId,
        [codes, scale, zero]: [ValueId; 3],
        axis: Option<i64>,
    ) -> Option<ValueId> {
        let graph = self.graph(node);
        let count = |v: ValueId| self.model.constant(v).map(|t| t.element_count());
        let one = [scale, zero]
            .iter()
            .all(|&v| matches!(count(v), None | Some(Ok(1))));
        let stem = format!("{}_real", self.stem(codes));
        let (scale, zero) = if one {
            (self.scalar(graph, scale), self.scalar(graph, zero))
        } else {
            self.same_length(graph, scale, zero)
        };
        let mut spec = NodeSpec::new("DequantizeLinear");
        if let (false, Some(axis)) = (one, axis) {
            spec = spec.attr_i("axis", axis);
        }
        Some(self.op(graph, spec, &[codes, scale, zero], &stem))
    }

    /// A constant of one element as a scalar.
    fn scalar(&mut self, graph: GraphId, value: ValueId) -> ValueId {
        let Some(t) = self.model.constant(value).filter(|t| !t.dims().is_empty()) else {
            return value;
        };
        let Ok(bytes) = t.bytes().map(std::borrow::Cow::into_owned) else {
            return value;
        };
        let tensor = Tensor::from_raw(t.dtype(), &[], bytes);
        let name = self.names.fresh(&format!("{}_scalar", self.stem(value)));
        self.model.add_initializer(graph, &name, tensor)
    }

    /// Scales and zero points of which one is for all and the other one for each channel, with one for each channel.
    fn same_length(&mut self, graph: GraphId, scale: ValueId, zero: ValueId) -> (ValueId, ValueId) {
        let (Some(s), Some(z)) = (
            self.model.constant(scale).cloned(),
            self.model.constant(zero).cloned(),
        ) else {
            return (scale, zero);
        };
        let count = s
            .element_count()
            .unwrap_or(1)
            .max(z.element_count().unwrap_or(1));
        let longer = |e: &mut Self, value: ValueId, t: &Tensor| {
            let Ok(bytes) = t.bytes() else { return value };
            if t.dims() == [count as i64] {
                return value;
            }
            let copies = count / t.element_count().unwrap_or(1).max(1);
            let tensor = Tensor::from_raw(t.dtype(), &[count as i64], bytes.repeat(copies));
            let name = e.names.fresh(&format!("{}_channels", e.stem(value)));
            e.model.add_initializer(graph, &name, tensor)
        };
        (longer(self, scale, &s), longer(self, zero, &z))
    }

    /// An INT32 bias as real values: times the scales of input and weight.
    fn bias(&mut self, node: NodeId, bias: ValueId, x_scale: ValueId, w_scale: ValueId) -> ValueId {
        let graph = self.graph(node);
        let stem = self.stem(bias);
        let cast = NodeSpec::new("Cast").attr_i("to", DataType::Float as i64);
        let real = self.op(graph, cast, &[bias], &format!("{stem}_float"));
        let (x, w) = (self.scalar(graph, x_scale), w_scale);
        let scale = self.op(
            graph,
            NodeSpec::new("Mul"),
            &[x, w],
            &format!("{stem}_scale"),
        );
        self.op(
            graph,
            NodeSpec::new("Mul"),
            &[real, scale],
            &format!("{stem}_real"),
        )
    }

    fn spec(&self, node: NodeId, op: &str, without: &[&str]) -> NodeSpec {
        let n = self.model.node(node);
        let mut spec = NodeSpec::new(op).name(n.name());
        for a in &n.proto.attribute {
            if !without.contains(&a.name()) {
                spec = spec.attr(a.clone());
            }
        }
        spec
    }

    /// The float operator with a QuantizeLinear behind it.
    fn between(
        &mut self,
        node: NodeId,
        op: &str,
        data: &[Option<ValueId>],
        (scale, zero): (ValueId, ValueId),
        without: &[&str],
    ) -> Option<()> {
        let out = self.model.output(node, 0)?;
        let (graph, stem) = (self.graph(node), self.stem(out));
        let spec = self.spec(node, op, without);
        let (scale, zero) = (self.scalar(graph, scale), self.scalar(graph, zero));
        self.model.set_outputs(node, &[]);
        self.model.remove_node(node);
        let real = self.names.fresh(&format!("{stem}_unquantized"));
        let real = self.model.add_value(graph, &real);
        self.model.add_node(graph, spec, data, &[Some(real)]);
        let inputs = [real, scale, zero].map(Some);
        self.model.add_node(
            graph,
            NodeSpec::new("QuantizeLinear"),
            &inputs,
            &[Some(out)],
        );
        Some(())
    }

    /// The float operator alone.
    fn float(&mut self, node: NodeId, op: &str, data: &[Option<ValueId>]) -> Option<()> {
        let (graph, outputs) = (self.graph(node), self.model.outputs(node));
        let spec = self.spec(node, op, &[]);
        self.model.set_outputs(node, &[]);
        self.model.remove_node(node);
        self.model.add_node(graph, spec, data, &outputs);
        Some(())
    }

    /// `ConvInteger` and `MatMulInteger`: the differences to the zero points as floats, and the sum as INT32.
    fn integer(&mut self, node: NodeId, op: &str, inputs: &[Option<ValueId>]) -> Option<()> {
        let at = |i: usize| inputs.get(i).copied().flatten();
        let (out, graph) = (self.model.output(node, 0)?, self.graph(node));
        let conv = op == "ConvInteger";
        let a = self.difference(graph, at(0)?, at(2), if conv { 0 } else { 1 });
        let b = self.difference(
            graph,
            at(1)?,
            at(3),
            if conv { self.rank(at(1)?)? - 1 } else { 0 },
        );
        let spec = self.spec(node, op.trim_end_matches("Integer"), &[]);
        let stem = self.stem(out);
        self.model.set_outputs(node, &[]);
        self.model.remove_node(node);
        let sum = self.op(graph, spec, &[a, b], &format!("{stem}_sum"));
        let cast = NodeSpec::new("Cast").attr_i("to", DataType::Int32 as i64);
        self.model.add_node(graph, cast, &[Some(sum)], &[Some(out)]);
        Some(())
    }

    fn rank(&self, value: ValueId) -> Option<usize> {
        self.model.value(value).shape().map(|s| s.len())
    }

    /// `codes − zero point` as floats; a list of zero points gets `behind` axes of length one behind it.
    fn difference(
        &mut self,
        graph: GraphId,
        codes: ValueId,
        zero: Option<ValueId>,
        behind: usize,
    ) -> ValueId {
        let stem = self.stem(codes);
        let cast = || NodeSpec::new("Cast").attr_i("to", DataType::Float as i64);
        let real = self.op(graph, cast(), &[codes], &format!("{stem}_float"));
        let Some(zero) = zero else { return real };
        let mut zero = self.op(graph, cast(), &[zero], &format!("{stem}_zero_float"));
        let list = {
            let dims = self
                .model
                .producer(zero)
                .and_then(|(n, _)| self.model.input(n, 0));
            dims.and_then(|v| {
                self.model
                    .constant(v)
                    .map(|t| t.dims().len() == 1 && t.element_count() != Ok(1))
            })
        };
        if behind > 0 && list == Some(true) {
            let axes: Vec<i64> = (1..=behind as i64).collect();
            let axes = Tensor::from_i64(&[behind as i64], &axes);
            let name = self.names.fresh(&format!("{stem}_zero_axes"));
            let axes = self.model.add_initializer(graph, &name, axes);
            let name = format!("{stem}_zero_channels");
            zero = self.op(graph, NodeSpec::new("Unsqueeze"), &[zero, axes], &name);
        }
        self.op(
            graph,
            NodeSpec::new("Sub"),
            &[real, zero],
            &format!("{stem}_centred"),
        )
    }
}

//! Reading and making QuantizeLinear/DequantizeLinear nodes: the one place that knows their inputs.

use half::f16;
use onnx_quant_ir::{DataType, GraphId, Model, Names, NodeId, NodeSpec, Tensor, ValueId};
use onnx_quant_numerics::affine::QParams;
use onnx_quant_numerics::format::Base;

/// A QuantizeLinear or DequantizeLinear of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qdq {
    /// The node.
    pub node: NodeId,
    /// What it converts.
    pub input: ValueId,
    /// The result.
    pub output: ValueId,
    /// Its scale.
    pub scale: ValueId,
    /// Its zero point, where it is written.
    pub zero_point: Option<ValueId>,
    /// The axis of a scale with several elements.
    pub axis: i64,
    /// Block length along the axis; 0 for none.
    pub block_size: i64,
}

fn read(model: &Model, node: NodeId, op: &str) -> Option<Qdq> {
    let n = model.node(node);
    if n.op_type() != op || !matches!(n.domain(), "" | "com.microsoft") {
        return None;
    }
    Some(Qdq {
        node,
        input: model.input(node, 0)?,
        scale: model.input(node, 1)?,
        zero_point: model.input(node, 2),
        output: model.output(node, 0)?,
        axis: n.attr_i("axis").unwrap_or(1),
        block_size: n.attr_i("block_size").unwrap_or(0),
    })
}

/// The node as a QuantizeLinear.
pub fn quantize(model: &Model, node: NodeId) -> Option<Qdq> {
    read(model, node, "QuantizeLinear")
}

/// The node as a DequantizeLinear.
pub fn dequantize(model: &Model, node: NodeId) -> Option<Qdq> {
    read(model, node, "DequantizeLinear")
}

/// The DequantizeLinear that makes a value.
pub fn dequantized_by(model: &Model, value: ValueId) -> Option<Qdq> {
    dequantize(model, model.producer(value)?.0)
}

/// Whether two conversions have the same constant parameters, bit for bit.
pub fn same_parameters(model: &Model, a: &Qdq, b: &Qdq) -> bool {
    let same = |x: ValueId, y: ValueId| {
        x == y
            || match (model.constant(x), model.constant(y)) {
                (Some(s), Some(t)) => {
                    s.dtype() == t.dtype()
                        && s.dims() == t.dims()
                        && matches!((s.bytes(), t.bytes()), (Ok(p), Ok(q)) if p == q)
                }
                _ => false,
            }
    };
    let scalar = |q: &Qdq| {
        model
            .constant(q.scale)
            .is_some_and(|t| t.element_count() == Ok(1))
    };
    same(a.scale, b.scale)
        && match (a.zero_point, b.zero_point) {
            (Some(x), Some(y)) => same(x, y),
            (None, None) => true,
            _ => false,
        }
        && (scalar(a) || (a.axis == b.axis && a.block_size == b.block_size))
}

/// Whether the codes are int8 or uint8, by the zero point.
pub fn is_eight_bit(model: &Model, q: &Qdq) -> bool {
    let dtype = q.zero_point.and_then(|z| model.value(z).dtype());
    matches!(dtype, Some(DataType::Int8 | DataType::Uint8))
}

/// The scale of a per-tensor conversion.
pub fn scalar_scale(model: &Model, q: &Qdq) -> Option<f32> {
    model.constant(q.scale).and_then(Tensor::scalar_f32)
}

/// The scale as it is stored: rounded to its type, so that codes are computed with what a runtime will read, and not
/// below the smallest normal number of that type, which runtimes may flush to zero.
pub fn stored_scale(scale: f32, float: DataType) -> f32 {
    match float {
        DataType::Float16 => f16::from_f32(scale)
            .clamp(f16::MIN_POSITIVE, f16::MAX)
            .to_f32(),
        _ => scale.clamp(f32::MIN_POSITIVE, f32::MAX),
    }
}

/// The initializers of scale and zero point: scalars, or one entry for each channel.
///
/// `dims` is `&[]` for scalars and `&[channels]` else.
pub fn add_parameters(
    model: &mut Model,
    names: &mut Names,
    graph: GraphId,
    stem: &str,
    params: &[QParams],
    per_axis: bool,
    (base, float): (Base, DataType),
) -> (ValueId, ValueId) {
    let dims: Vec<i64> = if per_axis {
        vec![params.len() as i64]
    } else {
        vec![]
    };
    let scales: Vec<f32> = params.iter().map(|p| p.scale).collect();
    let zeros: Vec<i32> = params.iter().map(|p| p.zero_point).collect();
    let scale = Tensor::from_f32_as(float, &dims, &scales)
        .unwrap_or_else(|_| Tensor::from_f32(&dims, &scales));
    let zero = Tensor::from_raw(
        storage_type(base),
        &dims,
        onnx_quant_numerics::quantize::codes_to_bytes(&zeros, base),
    );
    let scale = model.add_initializer(graph, &names.fresh(&format!("{stem}_scale")), scale);
    let zero = model.add_initializer(graph, &names.fresh(&format!("{stem}_zero_point")), zero);
    (scale, zero)
}

/// The versions of a model before anything raised them. Put into the [`PassContext`](onnx_quant_ir::pass::PassContext).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    opset: Option<i64>,
    ir: Option<i64>,
}

impl Versions {
    /// Those of a model.
    pub fn of(model: &Model) -> Self {
        Self {
            opset: model.opset(""),
            ir: model.header.ir_version,
        }
    }

    /// Gives a model these versions.
    pub fn restore(self, model: &mut Model) {
        if let Some(opset) = self.opset {
            model.set_opset("", opset);
        }
        model.header.ir_version = self.ir;
    }
}

/// Raises the versions of operators and file to the first that hold a type in QuantizeLinear and DequantizeLinear.
pub fn require_type(model: &mut Model, dtype: DataType) {
    use onnx_quant_ir::dtype::DataTypeExt;
    let opset = match dtype {
        DataType::Float8e4m3fn | DataType::Float8e5m2 => 19,
        DataType::Int4 | DataType::Uint4 | DataType::Int16 | DataType::Uint16 => 21,
        DataType::Float4e2m1 => 23,
        DataType::Float8e8m0 => 24,
        DataType::Int2 | DataType::Uint2 => 25,
        DataType::Float6e2m3 | DataType::Float6e3m2 => 28,
        _ => return,
    };
    require_opset(model, opset);
    let needed = dtype.min_ir_version();
    if model.header.ir_version() < needed {
        model.header.ir_version = Some(needed);
    }
}

/// Raises the version of the standard's operators to `opset`, and that of the file to the one of its time.
pub fn require_opset(model: &mut Model, opset: i64) {
    if model.opset("").is_some_and(|v| v < opset) {
        model.set_opset("", opset);
    }
    let of_opset = match opset {
        28 => 14,
        25..=27 => 13,
        24 => 12,
        23 => 11,
        21..=22 => 10,
        _ => 9,
    };
    if model.header.ir_version() < of_opset {
        model.header.ir_version = Some(of_opset);
    }
}

/// The ONNX storage type of a base format.
pub fn storage_type(base: Base) -> DataType {
    DataType::try_from(base.info().onnx_type).unwrap_or(DataType::Undefined)
}

/// A DequantizeLinear node; `axis` is written only where there is one.
pub fn dequantize_spec(axis: Option<i64>) -> NodeSpec {
    let spec = NodeSpec::new("DequantizeLinear");
    match axis {
        Some(a) => spec.attr_i("axis", a),
        None => spec,
    }
}

//! What can be known of a value without running the model: its type and its rank.

use onnx_quant_ir::{DataType, Model, ValueId};

/// How many operators back a fact is looked for.
const REACH: usize = 64;

/// Operators whose first output has type and rank of the first input.
const SAME: &[&str] = &[
    "Abs",
    "AveragePool",
    "BatchNormalization",
    "Ceil",
    "Celu",
    "Clip",
    "CumSum",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "LpPool",
    "MaxPool",
    "Mish",
    "Neg",
    "PRelu",
    "Pad",
    "Reciprocal",
    "Relu",
    "Resize",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "Split",
    "Sqrt",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "TopK",
    "Transpose",
    "Upsample",
];

/// Operators whose first output has the type of the first input, but another rank.
const SAME_TYPE: &[&str] = &[
    "Add",
    "Concat",
    "Conv",
    "ConvTranspose",
    "DepthToSpace",
    "Div",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gemm",
    "MatMul",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Pow",
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Reshape",
    "Scatter",
    "ScatterElements",
    "ScatterND",
    "SpaceToDepth",
    "Squeeze",
    "Sub",
    "Sum",
    "Unsqueeze",
    "Einsum",
    "LSTM",
    "GRU",
    "RNN",
];

/// The element type of a value: declared, or followed back to where it is.
pub(super) fn dtype(model: &Model, value: ValueId) -> Option<DataType> {
    let mut at = value;
    for _ in 0..REACH {
        if let Some(d) = model.value(at).dtype() {
            return Some(d);
        }
        let (node, slot) = model.producer(at)?;
        let n = model.node(node);
        let first = n.domain().is_empty() && (slot == 0 || n.is("Split"));
        match n.op_type() {
            "Cast" => return DataType::try_from(i32::try_from(n.attr_i("to")?).ok()?).ok(),
            "Constant" => return n.attr_tensor("value").map(|t| t.dtype()),
            "Where" if first => at = model.input(node, 1)?,
            op if first && (SAME.contains(&op) || SAME_TYPE.contains(&op)) => {
                at = model.input(node, 0)?;
            }
            _ => return None,
        }
    }
    None
}

/// The rank of a value: declared, or followed back to where it is.
pub(super) fn rank(model: &Model, value: ValueId) -> Option<usize> {
    let mut at = value;
    for _ in 0..REACH {
        if let Some(s) = model.value(at).shape() {
            return Some(s.len());
        }
        let (node, slot) = model.producer(at)?;
        let n = model.node(node);
        if !n.domain().is_empty() || (slot > 0 && !n.is("Split")) {
            return None;
        }
        match n.op_type() {
            "Gemm" | "Flatten" => return Some(2),
            "Conv" | "ConvTranspose" => return rank_of_constant(model, model.input(node, 1)?),
            "Reshape" => {
                let target = model.input_constant(node, 1)?;
                return usize::try_from(*target.dims().first()?).ok();
            }
            "MatMul" if rank_of_constant(model, model.input(node, 1)?) == Some(2) => {
                at = model.input(node, 0)?;
            }
            "Add" | "Sub" | "Mul" | "Div" => at = wider(model, node)?,
            "Concat" => at = model.input(node, 0)?,
            op if SAME.contains(&op) => at = model.input(node, 0)?,
            _ => return None,
        }
    }
    None
}

fn rank_of_constant(model: &Model, value: ValueId) -> Option<usize> {
    model.constant(value).map(|t| t.dims().len())
}

/// Of two operands, the one that gives the result its rank: the other must be a constant of rank 1 or less, which no
/// result is narrower than.
fn wider(model: &Model, node: onnx_quant_ir::NodeId) -> Option<ValueId> {
    let (a, b) = (model.input(node, 0)?, model.input(node, 1)?);
    let small = |v| rank_of_constant(model, v).is_some_and(|r| r <= 1);
    match (small(a), small(b)) {
        (false, true) => Some(a),
        (true, false) => Some(b),
        _ => None,
    }
}

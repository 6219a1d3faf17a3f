//! Runs small models with the reference evaluator, for passes that claim to keep every bit.

use std::collections::HashMap;

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Model, Tensor, ValueId};
use onnx_quant_passes::eval::evaluate;

/// A symbolic dimension is this long.
const SYMBOLIC: i64 = 2;
/// No value of a case is larger than this many bytes.
const LIMIT: usize = 1 << 24;

/// Feeds for the inputs of a model by name: integers and floats that differ from each other; `None` where an input has
/// no known type.
pub fn feeds(model: &Model) -> Option<HashMap<String, Tensor>> {
    let inputs = model.main().inputs.iter();
    inputs
        .filter(|&&v| model.value(v).init.is_none())
        .map(|&v| {
            let value = model.value(v);
            let dims: Vec<i64> = value
                .shape()?
                .iter()
                .map(|d| d.unwrap_or(SYMBOLIC))
                .collect();
            let count = dims.iter().product::<i64>();
            let tensor = match value.dtype()? {
                t if t.is_float() => {
                    let wave = |i: i64| ((i * 37 % 101) as f32 - 50.0) / 23.0;
                    let data: Vec<f32> = (0..count).map(wave).collect();
                    Tensor::from_f32_as(t, &dims, &data).ok()?
                }
                DataType::Int64 => {
                    let data: Vec<i64> = (0..count).map(|i| i % 2).collect();
                    Tensor::from_i64(&dims, &data)
                }
                DataType::Bool => Tensor::from_raw(DataType::Bool, &dims, vec![1; count as usize]),
                _ => return None,
            };
            Some((value.name.clone(), tensor))
        })
        .collect()
}

/// Type, shape and bytes of an output.
pub type Output = (DataType, Vec<i64>, Vec<u8>);

/// The outputs of a model, type, shape and bytes; `None` where an operator is not one of the evaluator's.
pub fn outputs(model: &Model, feeds: &HashMap<String, Tensor>) -> Option<Vec<Output>> {
    let mut known: HashMap<ValueId, Tensor> = HashMap::new();
    for v in model.all_values() {
        let value = model.value(v);
        let tensor = feeds.get(&value.name).filter(|_| value.is_input());
        known.extend(tensor.or(value.init.as_ref()).map(|t| (v, t.clone())));
    }
    let mut sorted = model.clone();
    sorted.sort().ok()?;
    for &n in &sorted.main().nodes {
        let inputs = sorted.inputs(n).into_iter();
        let inputs: Vec<Option<&Tensor>> = inputs
            .map(|v| v.map_or(Some(None), |v| known.get(&v).map(Some)))
            .collect::<Option<_>>()?;
        let opset = sorted.opset("").unwrap_or(0);
        let results = evaluate(sorted.node(n), opset, &inputs, LIMIT).ok()?;
        for (v, t) in sorted.outputs(n).into_iter().zip(results) {
            known.extend(v.map(|v| (v, t)));
        }
    }
    let outputs = sorted.main().outputs.iter();
    outputs
        .map(|v| {
            let t = known.get(v)?;
            Some((t.dtype(), t.dims().to_vec(), t.bytes().ok()?.into_owned()))
        })
        .collect()
}

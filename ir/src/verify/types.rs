//! Rules T01 to T03.

use onnx_quant_proto::{TypeProto, tensor_shape_proto::dimension, type_proto};

use super::Findings;
use crate::dtype::{DataType, DataTypeExt};
use crate::model::{Model, ValueId};

pub(super) fn check(model: &Model, found: &mut Findings) {
    for v in model.all_values() {
        declarations(model, v, found);
    }
    let main = model.main();
    for &v in main.inputs.iter().chain(&main.outputs) {
        let value = model.value(v);
        let infos = [&value.input_info, &value.output_info];
        if infos.into_iter().flatten().any(|i| i.r#type.is_none()) {
            found.add("T03", model.value_key(v), "the signature declares no type");
        }
    }
}

fn declarations(model: &Model, v: ValueId, found: &mut Findings) {
    let value = model.value(v);
    let ir = model.header.ir_version();
    let gate = |dtype: DataType, what: &str, found: &mut Findings| {
        if dtype.min_ir_version() > ir {
            let (name, needed) = (dtype.short_name(), dtype.min_ir_version());
            let message = format!("{what} {name} needs IR version {needed}, the model has {ir}");
            found.add("T02", model.value_key(v), message);
        }
    };
    if let Some(t) = &value.init {
        gate(t.dtype(), "data of type", found);
    }
    let infos = [&value.input_info, &value.value_info, &value.output_info];
    for ty in infos
        .into_iter()
        .flatten()
        .filter_map(|i| i.r#type.as_ref())
    {
        let Some(type_proto::Value::TensorType(declared)) = &ty.value else {
            continue;
        };
        let dtype = DataType::from_number(declared.elem_type());
        match (dtype, &value.init) {
            (Some(d), None) => gate(d, "declared type", found),
            (Some(d), Some(t)) if d != t.dtype() => {
                let (d, t) = (d.short_name(), t.dtype().short_name());
                found.add(
                    "T01",
                    model.value_key(v),
                    format!("declared {d}, but its data is {t}"),
                );
                return;
            }
            _ => {}
        }
        if let Some(t) = &value.init
            && !admits(ty, t.dims())
        {
            let message = format!(
                "its data has shape {:?}, which is not the declared one",
                t.dims()
            );
            found.add("T01", model.value_key(v), message);
        }
    }
}

/// Whether a declared type allows a shape: equal rank, equal dimensions where both are known.
fn admits(ty: &TypeProto, dims: &[i64]) -> bool {
    let Some(type_proto::Value::TensorType(t)) = &ty.value else {
        return true;
    };
    t.shape.as_ref().is_none_or(|s| {
        s.dim.len() == dims.len()
            && s.dim.iter().zip(dims).all(|(d, &n)| match d.value {
                Some(dimension::Value::DimValue(v)) => v == n,
                _ => true,
            })
    })
}

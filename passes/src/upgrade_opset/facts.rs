//! What is known of a value without running the model: its type and its shape.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::{DataType, Model, ValueId};

use crate::infer::{self, Dim, Facts};

/// What is known of the model as it was before the walk. Values keep their ids and meaning on the way.
pub(super) struct Known {
    facts: Facts,
    /// The float type of the model, where all that is declared has one.
    pub(super) only_float: Option<DataType>,
}

impl Known {
    /// Looks at a whole model, whose nodes may stand in any order.
    pub(super) fn of(model: &Model) -> Self {
        Self {
            facts: infer::infer_declared(model, true),
            only_float: only_float(model),
        }
    }

    /// The element type of a value: inferred, else declared.
    pub(super) fn dtype(&self, model: &Model, value: ValueId) -> Option<DataType> {
        let fact = self.facts.get(value).and_then(|f| f.dtype);
        fact.or_else(|| model.value(value).dtype())
    }

    /// The shape of a value, with as many entries as it has axes.
    pub(super) fn shape(&self, value: ValueId) -> Option<&[Dim]> {
        self.facts.get(value)?.shape.as_deref()
    }
}

/// The float type of all inputs, initializers and declared values, and of the casts; `None` where there are several.
fn only_float(model: &Model) -> Option<DataType> {
    let values = model
        .all_values()
        .into_iter()
        .filter_map(|v| model.value(v).dtype());
    let casts = model.all_nodes().into_iter().filter_map(|n| {
        let node = model.node(n);
        let to = if node.is("Cast") {
            node.attr_i("to")
        } else {
            None
        };
        match node.attr_tensor("value") {
            Some(t) => Some(t.dtype()),
            None => DataType::from_number(i32::try_from(to?).ok()?),
        }
    });
    let mut floats = values.chain(casts).filter(|d| d.is_float());
    let first = floats.next()?;
    floats.all(|d| d == first).then_some(first)
}

//! Writes a stored weight into the graph: initializers, the operators that decode it, and the new input of its readers.

use onnx_quant_ir::dtype::DataTypeExt;
use onnx_quant_ir::spill::spill;
use onnx_quant_ir::{DataType, GraphId, Model, Names, NodeId, NodeSpec, Tensor, ValueId};

use super::encode::{Scale, Stored};
use crate::plan::WeightPlan;
use crate::qdq;

/// A weight, where it belongs, and how scales of a power of two are written.
pub(super) struct Place<'a> {
    /// The float initializer.
    pub value: ValueId,
    /// What reads it.
    pub readers: Vec<(NodeId, usize)>,
    /// Its plan.
    pub form: &'a WeightPlan,
    /// E8M0 scales are cast to FP32 first, for runtimes whose DequantizeLinear does not read them.
    pub cast_e8m0: bool,
}

/// Writes a weight.
pub(super) fn insert(model: &mut Model, names: &mut Names, place: Place<'_>, stored: Stored) {
    let value = model.value(place.value);
    let (graph, stem) = (home(model, &place), value.name.clone());
    let float = value.dtype().unwrap_or(DataType::Float);
    let mut writer = Writer {
        model,
        names,
        graph,
        stem,
        float,
        cast_e8m0: place.cast_e8m0,
    };
    if place.form.gathered && gathers_codes(&stored) {
        writer.gathered(place.readers, stored);
        return;
    }
    let real = writer.decoded(stored);
    for (node, slot) in place.readers {
        writer.model.set_input(node, slot, Some(real));
    }
}

/// Where codes and what decodes them stand: in the body of control flow that all readers stand in, since runtimes look for
/// them there; else where the weight stands.
fn home(model: &Model, place: &Place<'_>) -> GraphId {
    let mut graphs = place.readers.iter().map(|(n, _)| model.node(*n).graph);
    let first = graphs.next();
    let same = first.filter(|g| graphs.all(|other| other == *g));
    same.unwrap_or(model.value(place.value).graph)
}

/// Whether rows are looked up as codes: types that Gather takes. Scales of blocks are looked up with them, where they are
/// numbers.
fn gathers_codes(stored: &Stored) -> bool {
    let dtype = stored.codes.dtype();
    let whole = dtype.is_integer() && dtype.bits().is_some_and(|b| b >= 8);
    let half = matches!(dtype, DataType::Float16 | DataType::Bfloat16);
    let single = stored.block == 0;
    (whole || half) && (single || matches!(stored.scale, Scale::Float(_)))
}

struct Writer<'a> {
    model: &'a mut Model,
    names: &'a mut Names,
    graph: GraphId,
    stem: String,
    float: DataType,
    cast_e8m0: bool,
}

impl Writer<'_> {
    fn constant(&mut self, ending: &str, tensor: Tensor) -> ValueId {
        self.raise_versions(tensor.dtype());
        // The codes of a large model are not kept in memory; where there is no room for files they are.
        let tensor = spill(&tensor).unwrap_or(tensor);
        let name = self.names.fresh(&format!("{}_{ending}", self.stem));
        self.model.add_initializer(self.graph, &name, tensor)
    }

    fn raise_versions(&mut self, dtype: DataType) {
        qdq::require_type(self.model, dtype);
    }

    fn op(&mut self, spec: NodeSpec, inputs: &[ValueId], ending: &str) -> ValueId {
        let name = self.names.fresh(&format!("{}_{ending}", self.stem));
        self.model.add_op(self.graph, spec, inputs, &name)
    }

    /// A value in another float type; itself where it has that type.
    fn cast(&mut self, value: ValueId, from: DataType, to: DataType, ending: &str) -> ValueId {
        if from == to {
            return value;
        }
        let spec = NodeSpec::new("Cast").attr_i("to", to as i64);
        self.op(spec, &[value], ending)
    }

    /// The scales as a value, with the type that a DequantizeLinear makes of them.
    fn scale(&mut self, scale: Scale) -> Option<(ValueId, DataType)> {
        match scale {
            Scale::None => None,
            Scale::Float(tensor) => {
                let from = tensor.dtype();
                let value = self.constant("scale", tensor);
                let value = self.cast(value, from, self.float, "scale_Cast_Output");
                Some((value, self.float))
            }
            Scale::E8m0(tensor) => {
                let value = self.constant("scale", tensor);
                if self.cast_e8m0 {
                    let spec = NodeSpec::new("Cast").attr_i("to", DataType::Float as i64);
                    let value = self.op(spec, &[value], "scale_Cast_Output");
                    return Some((value, DataType::Float));
                }
                Some((value, DataType::Float8e8m0))
            }
            Scale::Codes(codes, scale, axis) => {
                let codes = self.constant("scale_quantized", codes);
                let from = scale.dtype();
                let scale = self.constant("scale_scale", scale);
                let scale = self.cast(scale, from, DataType::Float, "scale_scale_Cast_Output");
                let spec = qdq::dequantize_spec(axis.map(|a| a as i64));
                let value = self.op(spec, &[codes, scale], "scale");
                Some((value, DataType::Float))
            }
        }
    }

    /// The real weight.
    fn decoded(&mut self, stored: Stored) -> ValueId {
        let Stored {
            codes,
            scale,
            zero_point,
            axis,
            block,
            dims,
        } = stored;
        let (code_type, code_dims) = (codes.dtype(), codes.dims().to_vec());
        let codes = self.constant("quantized", codes);
        let Some((scale, scale_type)) = self.scale(scale) else {
            return self.cast(codes, code_type, self.float, "Cast_Output");
        };
        let zero = zero_point.map(|z| self.constant("zero_point", z));
        let mut spec = qdq::dequantize_spec(axis.map(|a| a as i64));
        if block > 0 {
            spec = spec.attr_i("block_size", block as i64);
        }
        let mut made = scale_type;
        if scale_type == DataType::Float8e8m0 {
            made = DataType::Float;
            spec = spec.attr_i("output_dtype", made as i64);
        }
        let inputs: Vec<ValueId> = [codes, scale].into_iter().chain(zero).collect();
        let real = self.op(spec, &inputs, "DequantizeLinear_Output");
        let real = self.cast(real, made, self.float, "Cast_Output");
        if code_dims == dims {
            return real;
        }
        let shape = Tensor::from_i64(&[dims.len() as i64], &dims);
        let shape = self.constant("shape", shape);
        self.op(NodeSpec::new("Reshape"), &[real, shape], "Reshape_Output")
    }

    /// Rows are looked up as codes and decoded behind that.
    fn gathered(&mut self, readers: Vec<(NodeId, usize)>, stored: Stored) {
        let (code_type, block) = (stored.codes.dtype(), stored.block);
        let axis = stored.axis.map(|_| -1);
        let codes = self.constant("quantized", stored.codes);
        let scale = self.scale(stored.scale);
        let zero = stored.zero_point.map(|z| self.constant("zero_point", z));
        for (node, slot) in readers {
            self.model.set_input(node, slot, Some(codes));
            let Some(rows) = self.model.output(node, 0) else {
                continue;
            };
            let name = format!("{}_quantized", self.model.value(rows).name);
            let name = self.names.fresh(&name);
            let graph = self.model.node(node).graph;
            let raw = self.model.add_value(graph, &name);
            self.model.set_output(node, 0, Some(raw));
            let row = |this: &mut Self, whole: ValueId, ending: &str| match block {
                0 => whole,
                _ => this.row(node, whole, ending),
            };
            let scale = scale.map(|(s, of)| (row(self, s, "scale_row"), of));
            let zero = zero.map(|z| row(self, z, "zero_point_row"));
            let spec = match scale {
                Some(_) if block > 0 => {
                    qdq::dequantize_spec(axis).attr_i("block_size", block as i64)
                }
                Some(_) => qdq::dequantize_spec(axis),
                None if code_type == self.float => NodeSpec::new("Identity"),
                None => NodeSpec::new("Cast").attr_i("to", self.float as i64),
            };
            let inputs: Vec<Option<ValueId>> = std::iter::once(Some(raw))
                .chain(scale.map(|(s, _)| Some(s)))
                .chain(zero.map(Some))
                .collect();
            self.model.add_node(graph, spec, &inputs, &[Some(rows)]);
        }
    }

    /// What belongs to the rows that a Gather looks up, of another table.
    fn row(&mut self, lookup: NodeId, table: ValueId, ending: &str) -> ValueId {
        let spec = NodeSpec::new("Gather").attr_i("axis", 0);
        match self.model.input(lookup, 1) {
            Some(indices) => self.op(spec, &[table, indices], ending),
            None => table,
        }
    }
}

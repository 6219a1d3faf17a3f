//! The operators that an emulation is made of, and where scales and zero points lie over a tensor.

use onnx_quant_ir::{DataType, GraphId, Model, NodeSpec, Tensor, ValueId};

use crate::codebook::Writer;
use crate::qdq::Qdq;

/// Writes the operators that take the place of one conversion.
pub(super) struct Ops<'m, 'w, 'n> {
    pub model: &'m mut Model,
    /// Writes lookups of packed codes; constants that conversions have in common are stored once.
    pub writer: &'w mut Writer<'n>,
    pub graph: GraphId,
    /// What names begin with.
    pub stem: String,
}

/// Where the parameters of a DequantizeLinear lie over its tensor.
pub(super) struct Place {
    /// Shape of the tensor.
    dims: Vec<i64>,
    /// Axis of the parameters; `None` where they meet the tensor as they are.
    axis: Option<usize>,
    /// Values that share a parameter along the axis; 0 where the other axes share it too.
    block: i64,
}

impl Place {
    /// The place of the scale and the zero point over a constant.
    ///
    /// # Errors
    /// An axis that the tensor does not have.
    pub(super) fn of(model: &Model, d: &Qdq, dims: &[i64]) -> Result<Self, String> {
        let scale = model.value(d.scale).shape();
        let one = scale.is_some_and(|s| s.is_empty() || s == [Some(1)]);
        let axis = if d.axis < 0 {
            d.axis + dims.len() as i64
        } else {
            d.axis
        };
        let axis = usize::try_from(axis).ok().filter(|&a| a < dims.len());
        let single = one && d.block_size == 0;
        if axis.is_none() && !single {
            return Err(format!("it has no axis {}", d.axis));
        }
        Ok(Self {
            dims: dims.to_vec(),
            axis: axis.filter(|_| !single),
            block: d.block_size,
        })
    }

    /// Parameters of a computed tensor that need not be moved: one, or one for each element of the last axis.
    pub(super) fn of_rows(model: &Model, d: &Qdq) -> Option<Self> {
        let scale = model.value(d.scale).shape();
        let one = scale.is_some_and(|s| s.is_empty() || s == [Some(1)]);
        ((one || d.axis == -1) && d.block_size == 0).then_some(Self {
            dims: Vec::new(),
            axis: None,
            block: 0,
        })
    }
}

impl Ops<'_, '_, '_> {
    /// One operator with one output.
    pub(super) fn op(&mut self, op_type: &str, inputs: &[ValueId]) -> ValueId {
        self.spec(NodeSpec::new(op_type), inputs)
    }

    fn spec(&mut self, spec: NodeSpec, inputs: &[ValueId]) -> ValueId {
        let name = format!("{}_step", self.stem);
        self.writer
            .add_op(self.model, self.graph, &name, spec, inputs)
    }

    /// A Cast.
    pub(super) fn cast(&mut self, value: ValueId, to: DataType) -> ValueId {
        self.spec(NodeSpec::new("Cast").attr_i("to", to as i64), &[value])
    }

    /// A constant number.
    pub(super) fn scalar(&mut self, x: f32) -> ValueId {
        self.shared("number", Tensor::from_f32(&[], &[x]))
    }

    fn shape(&mut self, dims: &[i64]) -> ValueId {
        self.shared("shape", Tensor::from_i64(&[dims.len() as i64], dims))
    }

    fn shared(&mut self, role: &str, tensor: Tensor) -> ValueId {
        self.writer.add_shared(self.model, self.graph, role, tensor)
    }

    fn reshape(&mut self, value: ValueId, dims: &[i64]) -> ValueId {
        let dims = self.shape(dims);
        self.op("Reshape", &[value, dims])
    }

    /// Brings parameters into a shape that meets the tensor.
    pub(super) fn spread(&mut self, value: ValueId, place: &Place) -> ValueId {
        let Some(axis) = place.axis else {
            return value;
        };
        let dims = &place.dims;
        if place.block == 0 {
            let mut side = vec![1; dims.len() - axis];
            side[0] = dims[axis];
            return self.reshape(value, &side);
        }
        let product = |dims: &[i64]| dims.iter().product::<i64>();
        let (outer, inner) = (product(&dims[..axis]), product(&dims[axis + 1..]));
        let (length, block) = (dims[axis], place.block);
        let blocks = length / block + i64::from(length % block != 0);
        let apart = self.reshape(value, &[outer, blocks, 1, inner]);
        let whole = self.shape(&[outer, blocks, block, inner]);
        let whole = self.op("Expand", &[apart, whole]);
        let mut long = dims.clone();
        long[axis] = blocks * block;
        let long = self.reshape(whole, &long);
        if blocks * block == length {
            return long;
        }
        let [start, end, at] = [0, length, axis as i64].map(|x| self.shape(&[x]));
        self.op("Slice", &[long, start, end, at])
    }
}

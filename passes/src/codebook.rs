//! Weights as packed indices into a table, in operators of the standard: how they are written and recognized.
//!
//! ```text
//! packed (u8) → BitShift → BitwiseAnd → Cast (i32) → Reshape → [+ group · 2^bits] → Gather (table) → [× α] → weight
//! ```
//!
//! Indices of 1, 2 and 4 bits stand in the bytes from the low bits up; `packed [bytes, 1]` is shifted by `[0, n, 2n …]`.
//! Indices of 3, 5, 6 and 7 bits are one stream of bits: eight of them stand in `n` bytes, and each is put together from
//! the byte it starts in and the next one. Indices of 8 bits are stored as they are. Codebooks of several groups stand one
//! behind the other in one table; the offset of a group is made by Range, so that it takes no room in the file. Tables
//! that all groups share (binary, ternary) are multiplied by one `α` for each group.

pub mod read;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use onnx_quant_ir::node::attr_s;
use onnx_quant_ir::spill::spill;
use onnx_quant_ir::{DataType, GraphId, Model, Names, NodeSpec, Tensor, ValueId};
use onnx_quant_numerics::groups::{GroupKind, Groups};
use onnx_quant_numerics::pack::pack;

/// A weight to be written.
#[derive(Debug, Clone, Copy)]
pub struct Indexed<'a> {
    /// Shape of the weight.
    pub dims: &'a [i64],
    /// Which values share a codebook or a scale.
    pub groups: Groups,
    /// Bits of an index, 1 to 8.
    pub bits: u32,
    /// Index of each value.
    pub codes: &'a [u8],
    /// What the indices mean.
    pub table: Table<'a>,
    /// Type of the weight: `f32` or `f16`.
    pub float: DataType,
}

/// What indices mean.
#[derive(Debug, Clone, Copy)]
pub enum Table<'a> {
    /// One codebook of `2^bits` entries for each group.
    Codebooks(&'a [f32]),
    /// The same levels for all groups, times one scale for each group.
    Scaled {
        /// The value of each code.
        levels: &'a [f32],
        /// One for each group.
        scales: &'a [f32],
    },
}

impl Indexed<'_> {
    /// The weight that the operators compute, in FP32 (exact for `f16`, whose products are rounded once).
    pub fn decode(&self) -> Vec<f32> {
        let value = |(at, &code): (usize, &u8)| {
            let (group, code) = (self.groups.group_of(at), usize::from(code));
            match self.table {
                Table::Codebooks(books) => books[(group << self.bits) + code],
                Table::Scaled { levels, scales } => levels[code] * scales[group],
            }
        };
        self.codes.iter().enumerate().map(value).collect()
    }
}

/// Writes indexed weights into a graph; constants that weights have in common are stored once.
#[derive(Debug)]
pub struct Writer<'a> {
    names: &'a mut Names,
    shared: BTreeMap<(GraphId, i32, Vec<i64>, Vec<u8>), ValueId>,
}

/// Where operators of one weight go.
struct Place<'m> {
    model: &'m mut Model,
    graph: GraphId,
    stem: String,
}

impl<'a> Writer<'a> {
    /// A writer that takes names from `names`.
    pub fn new(names: &'a mut Names) -> Self {
        Self {
            names,
            shared: BTreeMap::new(),
        }
    }

    /// Writes a weight and returns the value that holds it. `stem` is the name of the weight.
    ///
    /// # Errors
    /// A weight whose tables have more entries than INT32 counts.
    pub fn write(
        &mut self,
        model: &mut Model,
        graph: GraphId,
        stem: &str,
        weight: &Indexed<'_>,
    ) -> Result<ValueId, String> {
        let mut place = Place {
            model,
            graph,
            stem: stem.to_owned(),
        };
        let view = View::of(weight);
        let limit = i32::MAX as usize >> weight.bits;
        if weight.groups.count() > limit || weight.codes.len() > i32::MAX as usize {
            return Err("has more codebook entries than an INT32 index reaches".to_owned());
        }
        let indices = self.unpack(&mut place, weight, &view);
        let float = |dims: &[i64], data: &[f32]| {
            Tensor::from_f32_as(weight.float, dims, data)
                .unwrap_or_else(|_| Tensor::from_f32(dims, data))
        };
        let many = weight.groups.count() > 1;
        let mut value = match weight.table {
            Table::Codebooks(books) => {
                let table = float(&[books.len() as i64], books);
                let table = self.constant(&mut place, "codebook", table);
                let at = match many {
                    true => {
                        let offset = self.offsets(&mut place, weight, &view);
                        self.op(
                            &mut place,
                            "entry",
                            NodeSpec::new("Add"),
                            &[indices, offset],
                        )
                    }
                    false => indices,
                };
                self.op(&mut place, "value", NodeSpec::new("Gather"), &[table, at])
            }
            Table::Scaled { levels, scales } => {
                let table = float(&[levels.len() as i64], levels);
                let table = self.shared(&mut place, "levels", table);
                let unit = self.op(
                    &mut place,
                    "level",
                    NodeSpec::new("Gather"),
                    &[table, indices],
                );
                let dims = if many { view.side.clone() } else { Vec::new() };
                let scales = self.constant(&mut place, "alpha", float(&dims, scales));
                let scales = match many {
                    true => self.spread(&mut place, scales, &view),
                    false => scales,
                };
                self.op(&mut place, "value", NodeSpec::new("Mul"), &[unit, scales])
            }
        };
        if view.dims != weight.dims {
            value = self.reshape(&mut place, "weight", value, weight.dims);
        }
        Ok(value)
    }

    /// Writes packed codes (with their bits and shape) and looks each up in a table.
    pub fn look_up(
        &mut self,
        model: &mut Model,
        graph: GraphId,
        stem: &str,
        (codes, bits, dims): (&[u8], u32, &[i64]),
        table: Tensor,
    ) -> ValueId {
        let mut place = Place {
            model,
            graph,
            stem: stem.to_owned(),
        };
        let weight = Indexed {
            dims,
            groups: Groups::tensor(codes.len()),
            bits,
            codes,
            table: Table::Codebooks(&[]),
            float: table.dtype(),
        };
        let indices = self.unpack(&mut place, &weight, &View::of(&weight));
        let table = self.shared(&mut place, "levels", table);
        let spec = NodeSpec::new("Gather");
        self.op(&mut place, "level", spec, &[table, indices])
    }

    /// An operator with one output, whose name is `name` or like it.
    pub fn add_op(
        &mut self,
        model: &mut Model,
        graph: GraphId,
        name: &str,
        spec: NodeSpec,
        inputs: &[ValueId],
    ) -> ValueId {
        let name = self.names.fresh(name);
        model.add_op(graph, spec, inputs, &name)
    }

    /// A constant that is stored once, however often it is asked for; `role` names it.
    pub fn add_shared(
        &mut self,
        model: &mut Model,
        graph: GraphId,
        role: &str,
        tensor: Tensor,
    ) -> ValueId {
        let stem = String::new();
        self.shared(&mut Place { model, graph, stem }, role, tensor)
    }

    /// Operators that make INT32 indices in the shape of the view.
    fn unpack(&mut self, place: &mut Place<'_>, weight: &Indexed<'_>, view: &View) -> ValueId {
        let bits = weight.bits;
        let mut packed = pack(weight.codes, bits);
        let byte = |data: Vec<u8>| Tensor::from_raw(DataType::Uint8, &[data.len() as i64], data);
        let count = weight.codes.len();
        if bits == 8 {
            let codes = Tensor::from_raw(DataType::Uint8, &view.dims, packed);
            let codes = self.constant(place, "packed", codes);
            return self.widen(place, codes);
        }
        let (fields, unpacked) = if 8 % bits == 0 {
            let rows = packed.len();
            let shifts: Vec<u8> = (0..8 / bits).map(|i| (i * bits) as u8).collect();
            let data = Tensor::from_raw(DataType::Uint8, &[rows as i64, 1], packed);
            let data = self.constant(place, "packed", data);
            let shifts = self.shared(place, "shifts", byte(shifts));
            let fields = self.shift(place, "fields", "RIGHT", data, shifts);
            (fields, rows * (8 / bits) as usize)
        } else {
            let rows = packed.len().div_ceil(bits as usize);
            packed.resize(rows * bits as usize, 0);
            let data = Tensor::from_raw(DataType::Uint8, &[rows as i64, i64::from(bits)], packed);
            let data = self.constant(place, "packed", data);
            (self.stream(place, bits, data), rows * 8)
        };
        let mask = Tensor::from_raw(DataType::Uint8, &[], vec![(1u8 << bits) - 1]);
        let mask = self.shared(place, "mask", mask);
        let mut codes = self.op(place, "codes", NodeSpec::new("BitwiseAnd"), &[fields, mask]);
        if unpacked != count {
            codes = self.reshape(place, "padded", codes, &[-1]);
            let ends = [0, count as i64].map(|at| Tensor::from_i64(&[1], &[at]));
            let [start, end] = ends.map(|at| self.shared(place, "end", at));
            codes = self.op(place, "cut", NodeSpec::new("Slice"), &[codes, start, end]);
        }
        let wide = self.widen(place, codes);
        self.reshape(place, "index", wide, &view.dims)
    }

    /// The fields of a stream of bits: what the byte that a code starts in holds of it, and what the next one does.
    fn stream(&mut self, place: &mut Place<'_>, bits: u32, data: ValueId) -> ValueId {
        let [mut low, mut high]: [Vec<i64>; 2] = Default::default();
        let [mut right, mut left]: [Vec<u8>; 2] = Default::default();
        for code in 0..8 {
            let (at, off) = (code * bits / 8, code * bits % 8);
            low.push(i64::from(at));
            high.push(i64::from((at + 1).min(bits - 1)));
            right.push(off as u8);
            // Where the code ends in its first byte the bits of the next one lie above the mask.
            left.push((8 - off).min(7) as u8);
        }
        let byte = |data: Vec<u8>| Tensor::from_raw(DataType::Uint8, &[8], data);
        let mut part = |role: &str, at: Vec<i64>, by: Vec<u8>, direction: &str| {
            let at = self.shared(place, "bytes", Tensor::from_i64(&[8], &at));
            let pick = NodeSpec::new("Gather").attr_i("axis", 1);
            let bytes = self.op(place, &format!("{role}_byte"), pick, &[data, at]);
            let by = self.shared(place, "shifts", byte(by));
            self.shift(place, role, direction, bytes, by)
        };
        let low = part("low", low, right, "RIGHT");
        let high = part("high", high, left, "LEFT");
        self.op(place, "fields", NodeSpec::new("BitwiseOr"), &[low, high])
    }

    /// The first entry of each value's codebook.
    fn offsets(&mut self, place: &mut Place<'_>, weight: &Indexed<'_>, view: &View) -> ValueId {
        let step = 1i32 << weight.bits;
        let end = (weight.groups.count() as i32) << weight.bits;
        let bounds =
            [0, end, step].map(|x| self.shared(place, "bound", Tensor::from_i32(&[], &[x])));
        let all = self.op(place, "first", NodeSpec::new("Range"), &bounds);
        let side = self.reshape(place, "offset", all, &view.side);
        self.spread(place, side, view)
    }

    /// One value for each group in a shape that broadcasts with the view.
    fn spread(&mut self, place: &mut Place<'_>, side: ValueId, view: &View) -> ValueId {
        let Some((block, len)) = view.short else {
            return side;
        };
        let [outer, blocks, _, inner] = view.side[..] else {
            return side;
        };
        let shape = Tensor::from_i64(&[4], &[outer, blocks, block, inner]);
        let shape = self.shared(place, "shape", shape);
        let whole = self.op(place, "spread", NodeSpec::new("Expand"), &[side, shape]);
        let rows = self.reshape(place, "rows", whole, &[outer, blocks * block, inner]);
        let ends = [0, len, 1].map(|at| Tensor::from_i64(&[1], &[at]));
        let [start, end, axis] = ends.map(|at| self.shared(place, "end", at));
        self.op(
            place,
            "own",
            NodeSpec::new("Slice"),
            &[rows, start, end, axis],
        )
    }

    fn shift(
        &mut self,
        place: &mut Place<'_>,
        role: &str,
        direction: &str,
        data: ValueId,
        by: ValueId,
    ) -> ValueId {
        let spec = NodeSpec::new("BitShift").attr(attr_s("direction", direction));
        self.op(place, role, spec, &[data, by])
    }

    fn widen(&mut self, place: &mut Place<'_>, codes: ValueId) -> ValueId {
        let spec = NodeSpec::new("Cast").attr_i("to", DataType::Int32 as i64);
        self.op(place, "wide", spec, &[codes])
    }

    fn reshape(
        &mut self,
        place: &mut Place<'_>,
        role: &str,
        value: ValueId,
        dims: &[i64],
    ) -> ValueId {
        let shape = Tensor::from_i64(&[dims.len() as i64], dims);
        let shape = self.shared(place, "shape", shape);
        self.op(place, role, NodeSpec::new("Reshape"), &[value, shape])
    }

    fn op(
        &mut self,
        place: &mut Place<'_>,
        role: &str,
        spec: NodeSpec,
        inputs: &[ValueId],
    ) -> ValueId {
        let name = self.names.fresh(&format!("{}_{role}", place.stem));
        place.model.add_op(place.graph, spec, inputs, &name)
    }

    fn constant(&mut self, place: &mut Place<'_>, role: &str, tensor: Tensor) -> ValueId {
        let name = self.names.fresh(&format!("{}_{role}", place.stem));
        // The codes of a large model are not kept in memory; where there is no room for files they are.
        let tensor = spill(&tensor).unwrap_or(tensor);
        place.model.add_initializer(place.graph, &name, tensor)
    }

    /// A small constant that weights have in common.
    fn shared(&mut self, place: &mut Place<'_>, role: &str, tensor: Tensor) -> ValueId {
        let bytes = tensor.bytes().map(|b| b.into_owned()).unwrap_or_default();
        let graph = place.graph;
        let key = (graph, tensor.dtype() as i32, tensor.dims().to_vec(), bytes);
        if let Some(&known) = self.shared.get(&key) {
            return known;
        }
        let name = self.names.fresh(&format!("unpack_{role}"));
        let value = place.model.add_initializer(graph, &name, tensor);
        self.shared.insert(key, value);
        value
    }
}

/// The shape in which indices meet what belongs to their groups.
struct View {
    /// Shape of the indices.
    dims: Vec<i64>,
    /// Shape of one entry for each group.
    side: Vec<i64>,
    /// Block length and length of the axis, where the last block is short.
    short: Option<(i64, i64)>,
}

impl View {
    fn of(weight: &Indexed<'_>) -> Self {
        let Groups {
            outer,
            len,
            inner,
            kind,
        } = weight.groups;
        let whole = || Self {
            dims: weight.dims.to_vec(),
            side: Vec::new(),
            short: None,
        };
        let (outer, length, inner) = (outer as i64, len as i64, inner as i64);
        match kind {
            GroupKind::Tensor => whole(),
            GroupKind::Channel => {
                let product = |dims: &[i64]| dims.iter().product::<i64>();
                let fits = |&a: &usize| {
                    let (before, after) = (&weight.dims[..a], &weight.dims[a + 1..]);
                    weight.dims[a] == length && product(before) == outer && product(after) == inner
                };
                let mut view = whole();
                match (0..weight.dims.len()).find(fits) {
                    Some(axis) => {
                        view.side = vec![1; weight.dims.len() - axis];
                        view.side[0] = length;
                    }
                    None => {
                        view.dims = vec![outer, length, inner];
                        view.side = vec![length, 1];
                    }
                }
                view
            }
            GroupKind::Block(size) => {
                let block = size.clamp(1, len.max(1)) as i64;
                let blocks = length.max(1).div_euclid(block) + i64::from(length % block != 0);
                let short = length % block != 0;
                Self {
                    dims: match short {
                        true => vec![outer, length, inner],
                        false => vec![outer, blocks, block, inner],
                    },
                    side: vec![outer, blocks, 1, inner],
                    short: short.then_some((block, length)),
                }
            }
        }
    }
}

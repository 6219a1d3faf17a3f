//! `DynamicQuantizeLSTM` as an LSTM: the input is quantized as a whole, the weights are dequantized and turned.

use onnx_quant_ir::{DataType, GraphId, NodeId, NodeSpec, Tensor, ValueId};

use super::Expansion;

impl Expansion<'_> {
    pub(super) fn lstm(&mut self, node: NodeId, inputs: &[Option<ValueId>]) -> Option<()> {
        let at = |i: usize| inputs.get(i).copied().flatten();
        let graph = self.graph(node);
        let x = self.dynamic(graph, at(0)?);
        let w = self.weight(graph, [at(1)?, at(8)?, at(9)?]);
        let r = self.weight(graph, [at(2)?, at(10)?, at(11)?]);
        let data = [Some(x), Some(w), Some(r), at(3), at(4), at(5), at(6), at(7)];
        self.float(node, "LSTM", &data)
    }

    /// A value that went through codes with the range of the moment.
    fn dynamic(&mut self, graph: GraphId, x: ValueId) -> ValueId {
        let stem = self.stem(x);
        let fresh: Vec<ValueId> = ["codes", "scale", "zero"]
            .iter()
            .map(|what| {
                let name = self.names.fresh(&format!("{stem}_dynamic_{what}"));
                self.model.add_value(graph, &name)
            })
            .collect();
        let outputs: Vec<Option<ValueId>> = fresh.iter().copied().map(Some).collect();
        let spec = NodeSpec::new("DynamicQuantizeLinear");
        self.model.add_node(graph, spec, &[Some(x)], &outputs);
        let centred = self.difference(graph, fresh[0], Some(fresh[2]), 0);
        let name = format!("{stem}_dynamic");
        self.op(graph, NodeSpec::new("Mul"), &[centred, fresh[1]], &name)
    }

    /// `[directions, inputs, gates]` with scales `[directions]` or `[directions, gates]` as the standard's weight.
    fn weight(&mut self, graph: GraphId, [codes, scale, zero]: [ValueId; 3]) -> ValueId {
        let stem = self.stem(codes);
        let zero = self.between_axes(graph, zero);
        let cast = || NodeSpec::new("Cast").attr_i("to", DataType::Float as i64);
        let zero = self.op(graph, cast(), &[zero], &format!("{stem}_zero_float"));
        let real = self.op(graph, cast(), &[codes], &format!("{stem}_float"));
        let centred = self.op(
            graph,
            NodeSpec::new("Sub"),
            &[real, zero],
            &format!("{stem}_centred"),
        );
        let scale = self.between_axes(graph, scale);
        let real = self.op(
            graph,
            NodeSpec::new("Mul"),
            &[centred, scale],
            &format!("{stem}_real"),
        );
        let turn = NodeSpec::new("Transpose").attr_ints("perm", &[0, 2, 1]);
        self.op(graph, turn, &[real], &format!("{stem}_turned"))
    }

    /// A list `[d]` or `[d, g]` as `[d, 1, 1]` or `[d, 1, g]`.
    fn between_axes(&mut self, graph: GraphId, value: ValueId) -> ValueId {
        let Some(t) = self.model.constant(value).cloned() else {
            return value;
        };
        let dims = match *t.dims() {
            [d] => [d, 1, 1],
            [d, g] => [d, 1, g],
            _ => return value,
        };
        let Ok(bytes) = t.bytes() else { return value };
        let name = self.names.fresh(&format!("{}_axes", self.stem(value)));
        let tensor = Tensor::from_raw(t.dtype(), &dims, bytes.into_owned());
        self.model.add_initializer(graph, &name, tensor)
    }
}

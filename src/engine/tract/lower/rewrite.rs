//! Writes what tract lacks with what it has.
//!
//! * bfloat16 is computed as FP32: constants, inputs and outputs, `Cast`.
//! * GRU, LSTM and RNN that run backwards: the input is reversed in time, the operator runs forwards, and its `Y` is
//!   reversed (ONNX standard, `direction`).
//! * A `Gemm` with an FP16 bias: tract multiplies the bias by an FP32 `beta`. The bias is added by an `Add`.
//! * An output of the model that is an input: it comes through an `Identity`.
//! * Constants are given as raw data: tract misreads UINT32 and UINT64 in the typed fields.

use onnx_quant_ir::engine::EngineError;
use onnx_quant_ir::{DataType, Model, NodeId, NodeSpec, Tensor, TensorError};
use onnx_quant_proto::{ModelProto, type_proto};

use super::prepare;

/// Rewrites a model in place.
pub(super) fn rewrite(m: &mut Model) -> Result<(), EngineError> {
    widen_bfloat16(m).map_err(prepare)?;
    for node in m.all_nodes() {
        let n = m.node(node);
        let recurrent = ["GRU", "LSTM", "RNN"].iter().any(|op| n.is(op));
        if recurrent && n.attr_s("direction") == Some("reverse") && m.input(node, 4).is_none() {
            reverse_in_time(m, node);
        }
        add_half_bias(m, node).map_err(prepare)?;
    }
    copy_passed_inputs(m);
    Ok(())
}

/// `Gemm(A, B, C)` with an FP16 constant `C` becomes `alpha · Gemm(A, B) + beta · C`.
fn add_half_bias(m: &mut Model, node: NodeId) -> Result<(), TensorError> {
    if !m.node(node).is("Gemm") {
        return Ok(());
    }
    let half = |t: &&Tensor| t.dtype() == DataType::Float16;
    let Some(bias) = m.input_constant(node, 2).filter(half).cloned() else {
        return Ok(());
    };
    let Some(y) = m.output(node, 0) else {
        return Ok(());
    };
    let take = |m: &mut Model, name: &str| {
        let attr = m.node_mut(node).take_attr(name);
        attr.and_then(|a| a.f).unwrap_or(1.0)
    };
    let (alpha, beta) = (take(m, "alpha"), take(m, "beta"));
    let graph = m.node(node).graph;
    let label = m.node_label(node);
    let mut names = m.names();
    let scaled: Vec<f32> = bias.to_f32()?.into_iter().map(|c| c * beta).collect();
    let scaled = Tensor::from_f32_as(DataType::Float16, bias.dims(), &scaled)?;
    let scaled = m.add_initializer(graph, &names.fresh(&format!("{label}_bias")), scaled);
    m.set_input(node, 2, None);
    let mut product = m.add_value(graph, &names.fresh(&format!("{label}_product")));
    m.set_output(node, 0, Some(product));
    if alpha != 1.0 {
        let factor = Tensor::from_f32_as(DataType::Float16, &[], &[alpha])?;
        let factor = m.add_initializer(graph, &names.fresh(&format!("{label}_alpha")), factor);
        let name = names.fresh(&format!("{label}_scaled"));
        product = m.add_op(graph, NodeSpec::new("Mul"), &[product, factor], &name);
    }
    m.add_node(
        graph,
        NodeSpec::new("Add"),
        &[Some(product), Some(scaled)],
        &[Some(y)],
    );
    Ok(())
}

/// Gives an output of the main graph that is an input a copy of its own.
fn copy_passed_inputs(m: &mut Model) {
    let mut names = m.names();
    for id in m.main().outputs.clone() {
        if !m.value(id).is_input() {
            continue;
        }
        let name = names.fresh(&format!("{}_passed", m.value(id).name));
        let copy = m.add_op(Model::MAIN, NodeSpec::new("Identity"), &[id], &name);
        let info = m.value_mut(id).output_info.take();
        m.value_mut(copy).output_info = info;
        for slot in &mut m.graph_mut(Model::MAIN).outputs {
            if *slot == id {
                *slot = copy;
            }
        }
    }
}

fn widen_bfloat16(m: &mut Model) -> Result<(), TensorError> {
    for id in m.all_values() {
        let v = m.value_mut(id);
        if let Some(t) = v.init.as_ref().filter(|t| t.dtype() == DataType::Bfloat16) {
            v.init = Some(Tensor::from_f32(t.dims(), &t.to_f32()?));
        }
        let infos = [&mut v.input_info, &mut v.output_info, &mut v.value_info];
        for info in infos.into_iter().flatten() {
            if let Some(type_proto::Value::TensorType(t)) =
                info.r#type.as_mut().and_then(|t| t.value.as_mut())
                && t.elem_type() == DataType::Bfloat16 as i32
            {
                t.elem_type = Some(DataType::Float as i32);
            }
        }
    }
    for node in m.all_nodes() {
        let n = m.node_mut(node);
        if n.is("Cast") && n.attr_i("to") == Some(DataType::Bfloat16 as i64) {
            n.set_attr_i("to", DataType::Float as i64);
        }
        if n.is("Constant")
            && let Some(t) = n
                .attr_tensor("value")
                .filter(|t| t.dtype() == DataType::Bfloat16)
        {
            let wide = Tensor::from_f32(t.dims(), &t.to_f32()?);
            let attr = onnx_quant_ir::node::attr_tensor("value", wide.proto().clone());
            n.set_attr(attr);
        }
    }
    Ok(())
}

fn reverse_in_time(m: &mut Model, node: NodeId) {
    let graph = m.node(node).graph;
    let label = m.node_label(node);
    let time = i64::from(m.node(node).attr_i("layout").unwrap_or(0) == 1);
    let mut names = m.names();
    let mut constant = |m: &mut Model, what: &str, value: i64| {
        let name = names.fresh(&format!("{label}_{what}"));
        m.add_initializer(graph, &name, Tensor::from_i64(&[1], &[value]))
    };
    let starts = constant(m, "starts", -1);
    let ends = constant(m, "ends", i64::MIN);
    let axes = constant(m, "axes", time);
    let steps = constant(m, "steps", -1);
    let slice = || NodeSpec::new("Slice");
    if let Some(x) = m.input(node, 0) {
        let name = names.fresh(&format!("{label}_reversed"));
        let reversed = m.add_op(graph, slice(), &[x, starts, ends, axes, steps], &name);
        m.set_input(node, 0, Some(reversed));
    }
    if let Some(y) = m.output(node, 0) {
        let forward = m.add_value(graph, &names.fresh(&format!("{label}_forward")));
        m.set_output(node, 0, Some(forward));
        let inputs = [forward, starts, ends, axes, steps].map(Some);
        m.add_node(graph, slice(), &inputs, &[Some(y)]);
    }
    m.node_mut(node).take_attr("direction");
}

/// Gives all constants of the main graph and its subgraphs as raw data.
pub(super) fn raw_initializers(m: &Model, proto: &mut ModelProto) -> Result<(), TensorError> {
    fn visit(
        m: &Model,
        id: onnx_quant_ir::GraphId,
        proto: &mut onnx_quant_proto::GraphProto,
    ) -> Result<(), TensorError> {
        let graph = m.graph(id);
        let tensors = graph
            .initializers
            .iter()
            .filter_map(|&v| m.value(v).init.as_ref());
        for (p, t) in proto.initializer.iter_mut().zip(tensors) {
            if p.raw_data.is_some() || t.dtype() == DataType::String {
                continue;
            }
            *p = onnx_quant_proto::TensorProto {
                name: p.name.take(),
                dims: std::mem::take(&mut p.dims),
                data_type: p.data_type,
                raw_data: Some(t.shared_bytes()?),
                ..Default::default()
            };
        }
        for (&node, n) in graph.nodes.iter().zip(&mut proto.node) {
            let mut subgraphs = m.node(node).subgraphs.iter();
            for a in &mut n.attribute {
                for g in a.g.iter_mut().chain(&mut a.graphs) {
                    if let Some((_, sub)) = subgraphs.next() {
                        visit(m, *sub, g)?;
                    }
                }
            }
        }
        Ok(())
    }
    match &mut proto.graph {
        Some(g) => visit(m, Model::MAIN, g),
        None => Ok(()),
    }
}

//! Removes what an exporter wrote for debugging itself.
//!
//! # What it does
//! PyTorch's exporters store, beside every node, the stack trace, the module hierarchy and the source expression it
//! came from: often more bytes than a quantized model's weights. Metadata entries whose keys begin with `pkg.torch`
//! or equal `namespace`, and documentation strings of nodes and values, go.
//!
//! # Before → After
//! The graph is the same.
//!
//! # When it does not fire
//! On metadata of other keys, on the model's own metadata and on its documentation.
//!
//! # Invariants kept
//! Every output, bit for bit; names.
//!
//! # Opset notes
//! Metadata of nodes exists since IR version 10.
//!
//! # References
//! ONNX, `metadata_props`.

use onnx_quant_ir::Model;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::proto::{StringStringEntryProto, ValueInfoProto};

/// See the head of this file.
pub struct StripDebugInfo;

/// Put into the [`PassContext`] to keep everything.
pub struct KeepDebugInfo;

static INFO: PassInfo = PassInfo {
    name: "strip_debug_info",
    summary: "removes what an exporter wrote for debugging itself",
    source: include_str!("strip_debug_info.rs"),
    exact: true,
};

impl Pass for StripDebugInfo {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        if cx.get::<KeepDebugInfo>().is_some() {
            return Ok(Changed::No);
        }
        let mut bytes = 0;
        for node in model.all_nodes() {
            let proto = &mut model.node_mut(node).proto;
            bytes += entries(&mut proto.metadata_props) + text(&mut proto.doc_string);
        }
        for value in model.all_values() {
            let v = model.value_mut(value);
            let infos = [&mut v.input_info, &mut v.output_info, &mut v.value_info];
            bytes += infos.into_iter().flatten().map(|i| info(i)).sum::<usize>();
        }
        for graph in model.graph_ids() {
            bytes += entries(&mut model.graph_mut(graph).header.metadata_props);
        }
        if bytes > 0 {
            cx.note(format!(
                "{bytes} bytes of the exporter's debugging information were left out (--keep-debug-info keeps them)"
            ));
        }
        Ok((bytes > 0).into())
    }
}

fn info(info: &mut ValueInfoProto) -> usize {
    entries(&mut info.metadata_props) + text(&mut info.doc_string)
}

fn text(doc: &mut Option<String>) -> usize {
    doc.take().map_or(0, |d| d.len())
}

fn entries(props: &mut Vec<StringStringEntryProto>) -> usize {
    let mut bytes = 0;
    props.retain(|p| {
        let debugging = p.key().starts_with("pkg.torch") || p.key() == "namespace";
        if debugging {
            bytes += p.key().len() + p.value().len();
        }
        !debugging
    });
    bytes
}

//! Removes what an exporter wrote into the file to debug itself.
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
    summary: "Removes what an exporter wrote into the file to debug itself",
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use onnx_quant_ir::text;

    fn noted() -> Model {
        let mut model =
            text::parse("main (float[4] X) => (float[4] Y)\n{\n  [relu] Y = Relu (X)\n}\n")
                .unwrap();
        let entry = |key: &str| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some("12345".to_owned()),
        };
        let node = model.all_nodes()[0];
        let proto = &mut model.node_mut(node).proto;
        proto.doc_string = Some("where it was".to_owned());
        proto.metadata_props = vec![
            entry("pkg.torch.onnx.stack_trace"),
            entry("owner"),
            entry("namespace"),
        ];
        model
    }

    #[test]
    fn traces_go_and_entries_of_others_stay() {
        let mut model = noted();
        let mut cx = PassContext::default();
        assert_eq!(
            StripDebugInfo.run(&mut model, &mut cx).unwrap(),
            Changed::Yes
        );
        let node = model.all_nodes()[0];
        let proto = &model.node(node).proto;
        assert_eq!(proto.doc_string, None);
        let keys: Vec<&str> = proto.metadata_props.iter().map(|p| p.key()).collect();
        assert_eq!(keys, ["owner"]);
        assert!(cx.notes[0].message.contains("57 bytes"), "{:?}", cx.notes);
        assert_eq!(
            StripDebugInfo.run(&mut model, &mut cx).unwrap(),
            Changed::No
        );
    }

    #[test]
    fn everything_stays_where_it_is_asked_for() {
        let mut model = noted();
        let mut cx = PassContext::default();
        cx.insert(KeepDebugInfo);
        assert_eq!(
            StripDebugInfo.run(&mut model, &mut cx).unwrap(),
            Changed::No
        );
        let node = model.all_nodes()[0];
        assert_eq!(model.node(node).proto.metadata_props.len(), 3);
    }
}

//! A message written piece by piece, so that a model in one file is never held in memory a second time.

use std::io::{self, Write};

use onnx_quant_proto::{GraphProto, Message, ModelProto};

/// Keys of length-delimited fields: `ModelProto.graph` is number 7, `GraphProto.initializer` number 5.
const GRAPH: u8 = (7 << 3) | 2;
const INITIALIZER: u8 = (5 << 3) | 2;

/// Writes the bytes of [`Message::encode_to_vec`], with at most one initializer in memory at a time.
pub(super) fn write_message(proto: &ModelProto, out: &mut dyn Write) -> io::Result<()> {
    let Some(graph) = &proto.graph else {
        return out.write_all(&proto.encode_to_vec());
    };
    let head = ModelProto {
        ir_version: proto.ir_version,
        producer_name: proto.producer_name.clone(),
        producer_version: proto.producer_version.clone(),
        domain: proto.domain.clone(),
        model_version: proto.model_version,
        doc_string: proto.doc_string.clone(),
        ..ModelProto::default()
    };
    out.write_all(&head.encode_to_vec())?;
    let mut key = vec![GRAPH];
    prost::encode_length_delimiter(graph.encoded_len(), &mut key).map_err(io::Error::other)?;
    out.write_all(&key)?;
    write_graph(graph, out)?;
    let tail = ModelProto {
        ir_version: None,
        producer_name: None,
        producer_version: None,
        domain: None,
        model_version: None,
        doc_string: None,
        graph: None,
        ..proto.clone()
    };
    out.write_all(&tail.encode_to_vec())
}

fn write_graph(graph: &GraphProto, out: &mut dyn Write) -> io::Result<()> {
    let head = GraphProto {
        node: graph.node.clone(),
        name: graph.name.clone(),
        ..GraphProto::default()
    };
    out.write_all(&head.encode_to_vec())?;
    for t in &graph.initializer {
        out.write_all(&[INITIALIZER])?;
        out.write_all(&t.encode_length_delimited_to_vec())?;
    }
    let tail = GraphProto {
        node: Vec::new(),
        name: None,
        initializer: Vec::new(),
        ..graph.clone()
    };
    out.write_all(&tail.encode_to_vec())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use onnx_quant_proto::{OperatorSetIdProto, StringStringEntryProto};

    #[test]
    fn the_pieces_are_the_whole() {
        let source = include_str!("../text/tests/small.onnxtxt");
        let mut proto = crate::text::parse(source).unwrap().to_proto();
        proto.producer_name = Some("p".to_owned());
        proto.producer_version = Some("1".to_owned());
        proto.domain = Some("d".to_owned());
        proto.model_version = Some(7);
        proto.doc_string = Some("text".to_owned());
        proto.opset_import.push(OperatorSetIdProto::default());
        let entry = StringStringEntryProto::default();
        proto.metadata_props.push(entry.clone());
        let g = proto.graph.as_mut().unwrap();
        assert!(!g.initializer.is_empty() && !g.node.is_empty());
        g.doc_string = Some("graph".to_owned());
        g.metadata_props.push(entry);
        let mut bytes = Vec::new();
        write_message(&proto, &mut bytes).unwrap();
        assert!(bytes == proto.encode_to_vec());
        proto.graph = None;
        bytes.clear();
        write_message(&proto, &mut bytes).unwrap();
        assert!(bytes == proto.encode_to_vec());
    }
}

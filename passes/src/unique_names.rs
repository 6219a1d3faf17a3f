//! Gives nodes that share a name names of their own.
//!
//! # What it does
//! The first node of a name keeps it, in program order; the others get a number behind it. Runtimes refuse files in
//! which two nodes of a graph have one name, and plans and reports speak of nodes by name.
//!
//! # Before → After
//! `[conv] …; [conv] …` becomes `[conv] …; [conv_1] …`.
//!
//! # When it does not fire
//! On nodes without a name.
//!
//! # Invariants kept
//! Every output, and the names of all values.
//!
//! # Opset notes
//! None.
//!
//! # References
//! None.

use std::collections::HashSet;

use onnx_quant_ir::Model;
use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};

/// See the head of this file.
pub struct UniqueNames;

static INFO: PassInfo = PassInfo {
    name: "unique_names",
    summary: "Gives nodes that share a name names of their own",
    source: include_str!("unique_names.rs"),
    exact: true,
};

impl Pass for UniqueNames {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let mut seen = HashSet::new();
        let nodes = model.all_nodes().into_iter();
        let twins: Vec<_> = nodes
            .filter(|&n| {
                let name = model.node(n).name();
                !name.is_empty() && !seen.insert(name.to_owned())
            })
            .collect();
        if twins.is_empty() {
            return Ok(Changed::No);
        }
        let mut names = model.names();
        for &node in &twins {
            let fresh = names.fresh(model.node(node).name());
            model.node_mut(node).proto.name = Some(fresh);
        }
        cx.note(format!("{} nodes had the name of another one", twins.len()));
        Ok(Changed::Yes)
    }
}

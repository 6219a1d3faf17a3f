//! Replaces calls of local functions by their bodies.
//!
//! **What it does.** A node whose domain, operator and overload name a function of the file becomes the nodes of that
//! function, in the main graph and in bodies of control-flow nodes, until no call is left; then the functions go, used or
//! not, and with them the imports of domains that nothing uses any more. Attributes that refer to an attribute of the
//! call get its value, else the function's default, else they are left out. Optional inputs and outputs that the call
//! leaves out are left out inside. An output that is an input of the function comes through an `Identity`.
//!
//! **Before → After.** `f(a) => (b) { t = Neg(a); b = Exp(t) }`, `[call] y = local.f(x)` → `call/t = Neg(x); y = Exp(call/t)`.
//!
//! **When it does not fire.** Errors: a function that calls itself; a function written for another version of an
//! operator set than the model's, where an operator it uses means another thing in the model's (operators of the
//! standard with only compatible changes in between are fine); more than a million nodes.
//!
//! **Invariants kept.** Signature, names outside the functions, every output bit for bit. Inner names are those of the
//! function behind the name of the call.
//!
//! **Opset notes.** Functions came with IR version 8, `overload` with 10. Operator sets that only a function imports are
//! imported by the model afterwards.
//!
//! **References.** ONNX IR specification, section "Functions"; `onnx.inliner`.

mod rename;

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
};
use onnx_quant_ir::save::inlined;
use onnx_quant_ir::{Model, Names};

use crate::upgrade_opset::same_definition;

/// Replaces calls of local functions by their bodies.
#[derive(Debug, Clone, Copy, Default)]
pub struct InlineFunctions;

static INFO: PassInfo = PassInfo {
    name: "inline_functions",
    summary: "Replaces calls of local functions by their bodies",
    source: include_str!("inline_functions.rs"),
    exact: true,
};

/// Functions that call each other nest no deeper than this in any real model.
const MAX_DEPTH: usize = 64;
/// An inlined model has no more nodes than this.
const MAX_NODES: usize = 1_000_000;

impl Pass for InlineFunctions {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, _cx: &mut PassContext) -> Result<Changed, PassError> {
        if model.header.functions.is_empty() {
            return Ok(Changed::No);
        }
        let mut proto = inlined(model).map_err(|e| error(e.to_string()))?;
        let functions = std::mem::take(&mut proto.functions);
        let domains: BTreeSet<String> = functions.iter().map(|f| plain(f.domain())).collect();
        let mut inliner = Inliner {
            functions: functions.into_iter().map(|f| (Key::of(&f), f)).collect(),
            imports: import_map(&proto.opset_import),
            names: model.names(),
            open: Vec::new(),
            nodes: 0,
        };
        if let Some(g) = &mut proto.graph {
            g.node = inliner.expand(std::mem::take(&mut g.node))?;
        }
        merge_imports(&mut proto, inliner.imports, &domains);
        let path = model.path.take();
        *model = Model::from_proto(proto).map_err(|e| error(e.to_string()))?;
        model.path = path;
        Ok(Changed::Yes)
    }
}

fn error(message: String) -> PassError {
    PassError::new(INFO.name, message)
}

/// A domain by its short name.
fn plain(domain: &str) -> String {
    match domain {
        "ai.onnx" => String::new(),
        other => other.to_owned(),
    }
}

/// What names a function: domain, name, overload.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key(String, String, String);

impl Key {
    fn of(f: &FunctionProto) -> Self {
        let overload = f.overload.clone().unwrap_or_default();
        Self(plain(f.domain()), f.name().to_owned(), overload)
    }

    fn called_by(n: &NodeProto) -> Self {
        let overload = n.overload.clone().unwrap_or_default();
        Self(plain(n.domain()), n.op_type().to_owned(), overload)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.0.is_empty() {
            write!(f, "{}.", self.0)?;
        }
        f.write_str(&self.1)?;
        if !self.2.is_empty() {
            write!(f, ":{}", self.2)?;
        }
        Ok(())
    }
}

type Imports = BTreeMap<String, i64>;

fn import_map(imports: &[OperatorSetIdProto]) -> Imports {
    imports
        .iter()
        .map(|o| (plain(o.domain()), o.version()))
        .collect()
}

/// Adds what functions imported, and drops the functions' own domains where no node is left in them.
fn merge_imports(proto: &mut ModelProto, imports: Imports, domains: &BTreeSet<String>) {
    let mut used = BTreeSet::new();
    if let Some(g) = &proto.graph {
        collect_domains(&g.node, &mut used);
    }
    let unused = |d: &str| domains.contains(d) && !d.is_empty() && !used.contains(d);
    proto.opset_import.retain(|o| !unused(&plain(o.domain())));
    let known = import_map(&proto.opset_import);
    for (domain, version) in imports {
        if !known.contains_key(&domain) && !unused(&domain) {
            proto.opset_import.push(OperatorSetIdProto {
                domain: Some(domain),
                version: Some(version),
            });
        }
    }
}

fn collect_domains(nodes: &[NodeProto], used: &mut BTreeSet<String>) {
    for n in nodes {
        used.insert(plain(n.domain()));
        for g in graphs(&n.attribute) {
            collect_domains(&g.node, used);
        }
    }
}

fn graphs(attributes: &[AttributeProto]) -> impl Iterator<Item = &GraphProto> {
    attributes.iter().flat_map(|a| a.g.iter().chain(&a.graphs))
}

struct Inliner {
    functions: BTreeMap<Key, FunctionProto>,
    imports: Imports,
    names: Names,
    /// The calls that are being replaced, outermost first.
    open: Vec<Key>,
    nodes: usize,
}

impl Inliner {
    /// The nodes with every call replaced.
    fn expand(&mut self, nodes: Vec<NodeProto>) -> Result<Vec<NodeProto>, PassError> {
        let mut out = Vec::with_capacity(nodes.len());
        for mut n in nodes {
            for a in &mut n.attribute {
                for g in a.g.iter_mut().chain(&mut a.graphs) {
                    g.node = self.expand(std::mem::take(&mut g.node))?;
                }
            }
            let key = Key::called_by(&n);
            match self.functions.get(&key).cloned() {
                Some(f) => out.extend(self.call(&n, key, f)?),
                None => out.push(n),
            }
            self.nodes += 1;
            if self.nodes > MAX_NODES {
                let m = format!("inlining gives more than {MAX_NODES} nodes");
                return Err(error(m));
            }
        }
        Ok(out)
    }

    fn call(
        &mut self,
        node: &NodeProto,
        key: Key,
        f: FunctionProto,
    ) -> Result<Vec<NodeProto>, PassError> {
        if self.open.contains(&key) {
            let mut circle: Vec<String> = self.open.iter().map(Key::to_string).collect();
            circle.push(key.to_string());
            let m = format!("function `{key}` calls itself: {}", circle.join(" → "));
            return Err(error(m));
        }
        if self.open.len() >= MAX_DEPTH {
            let m = format!("functions call each other more than {MAX_DEPTH} levels deep");
            return Err(error(m));
        }
        if node.input.len() > f.input.len() || node.output.len() > f.output.len() {
            let (i, o) = (f.input.len(), f.output.len());
            let m = format!(
                "node `{}` calls `{key}` with more than its {i} inputs and {o} outputs",
                node.name()
            );
            return Err(error(m));
        }
        self.take_imports(&key, &f)?;
        let mut body = rename::body(node, &f, &mut self.names)
            .map_err(|what| error(format!("function `{key}`: {what}")))?;
        bind(&mut body, &node.attribute, &f.attribute_proto);
        self.open.push(key);
        let body = self.expand(body)?;
        self.open.pop();
        Ok(body)
    }

    /// Checks that the function's operators mean the same in the model's operator sets, and adds the sets that the
    /// model lacks.
    fn take_imports(&mut self, key: &Key, f: &FunctionProto) -> Result<(), PassError> {
        for (domain, version) in import_map(&f.opset_import) {
            let Some(&model) = self.imports.get(&domain) else {
                self.imports.insert(domain, version);
                continue;
            };
            if model == version {
                continue;
            }
            let mut ops = BTreeSet::new();
            self.ops(&f.node, &domain, &mut ops);
            let same = |op: &str| domain.is_empty() && same_definition(op, version, model);
            if let Some(op) = ops.iter().find(|op| !same(op)) {
                let set = if domain.is_empty() {
                    "ai.onnx"
                } else {
                    &domain
                };
                return Err(error(format!(
                    "function `{key}` is written for version {version} of `{set}`, the model imports {model}, and \
                     {op} is not the same operator in both"
                )));
            }
        }
        Ok(())
    }

    /// The operators of one domain that a body uses, calls of functions left out.
    fn ops(&self, nodes: &[NodeProto], domain: &str, found: &mut BTreeSet<String>) {
        for n in nodes {
            if plain(n.domain()) == domain && !self.functions.contains_key(&Key::called_by(n)) {
                found.insert(n.op_type().to_owned());
            }
            for g in graphs(&n.attribute) {
                self.ops(&g.node, domain, found);
            }
        }
    }
}

/// Gives every attribute that refers to one of the function its value.
fn bind(nodes: &mut [NodeProto], given: &[AttributeProto], defaults: &[AttributeProto]) {
    for n in nodes {
        let attributes = std::mem::take(&mut n.attribute);
        for mut a in attributes {
            if a.ref_attr_name().is_empty() {
                for g in a.g.iter_mut().chain(&mut a.graphs) {
                    bind(&mut g.node, given, defaults);
                }
                n.attribute.push(a);
                continue;
            }
            let mut values = given.iter().chain(defaults);
            if let Some(value) = values.find(|v| v.name() == a.ref_attr_name()) {
                n.attribute.push(AttributeProto {
                    name: a.name,
                    ref_attr_name: None,
                    ..value.clone()
                });
            }
        }
    }
}

#[cfg(test)]
mod tests;

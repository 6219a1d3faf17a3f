//! The body of a function with the names of the place where it is called.

use std::collections::HashMap;

use onnx_quant_ir::Names;
use onnx_quant_ir::proto::{FunctionProto, GraphProto, NodeProto};

/// The nodes of `f` as `call` sees them: formal inputs and outputs are the call's, everything else is new.
pub(super) fn body(
    call: &NodeProto,
    f: &FunctionProto,
    names: &mut Names,
) -> Result<Vec<NodeProto>, String> {
    let label = [call.name()]
        .into_iter()
        .chain(call.output.iter().map(String::as_str))
        .find(|n| !n.is_empty())
        .unwrap_or(call.op_type());
    let actual = |list: &[String], i: usize| list.get(i).cloned().unwrap_or_default();
    let mut scope: HashMap<String, String> = HashMap::new();
    for (i, formal) in f.input.iter().enumerate() {
        scope.insert(formal.clone(), actual(&call.input, i));
    }
    let mut copies = Vec::new();
    for (i, formal) in f.output.iter().enumerate() {
        let out = actual(&call.output, i);
        if out.is_empty() {
            continue;
        }
        match scope.get(formal) {
            None => {
                scope.insert(formal.clone(), out);
            }
            Some(source) if source.is_empty() => {
                return Err(format!("it returns `{formal}`, which the call leaves out"));
            }
            Some(source) => copies.push((source.clone(), out)),
        }
    }
    let mut renamer = Renamer {
        label,
        names,
        scopes: vec![scope],
    };
    let mut nodes = f.node.clone();
    renamer.nodes(&mut nodes)?;
    nodes.extend(copies.into_iter().map(|(from, to)| NodeProto {
        op_type: Some("Identity".to_owned()),
        input: vec![from],
        output: vec![to],
        ..NodeProto::default()
    }));
    Ok(nodes)
}

struct Renamer<'a> {
    /// Stands before every new name.
    label: &'a str,
    names: &'a mut Names,
    scopes: Vec<HashMap<String, String>>,
}

impl Renamer<'_> {
    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<(), String> {
        for name in nodes.iter().flat_map(|n| &n.output) {
            if !self.scopes.last().is_some_and(|s| s.contains_key(name)) {
                self.define(name);
            }
        }
        for n in nodes {
            if !n.name().is_empty() {
                n.name = Some(self.fresh(n.name()));
            }
            for name in n.input.iter_mut().chain(&mut n.output) {
                self.replace(name)?;
            }
            for a in &mut n.attribute {
                for g in a.g.iter_mut().chain(&mut a.graphs) {
                    self.graph(g)?;
                }
            }
        }
        Ok(())
    }

    fn graph(&mut self, g: &mut GraphProto) -> Result<(), String> {
        self.scopes.push(HashMap::new());
        let inputs = g.input.iter().filter_map(|i| i.name.clone());
        let weights = g.initializer.iter().filter_map(|t| t.name.clone());
        let sparse = g.sparse_initializer.iter();
        let sparse = sparse.filter_map(|s| s.values.as_ref().and_then(|v| v.name.clone()));
        for name in inputs.chain(weights).chain(sparse).collect::<Vec<_>>() {
            if !self.scopes.last().is_some_and(|s| s.contains_key(&name)) {
                self.define(&name);
            }
        }
        self.nodes(&mut g.node)?;
        let infos = g.input.iter_mut().chain(&mut g.output);
        let mut all: Vec<&mut Option<String>> = infos.map(|i| &mut i.name).collect();
        all.extend(g.initializer.iter_mut().map(|t| &mut t.name));
        let sparse = g.sparse_initializer.iter_mut();
        all.extend(sparse.filter_map(|s| s.values.as_mut().map(|v| &mut v.name)));
        for name in all.into_iter().flatten() {
            self.replace(name)?;
        }
        g.value_info
            .retain_mut(|i| i.name.as_mut().is_some_and(|n| self.replace(n).is_ok()));
        g.quantization_annotation.clear();
        self.scopes.pop();
        Ok(())
    }

    fn define(&mut self, name: &str) {
        if name.is_empty() {
            return;
        }
        let fresh = self.fresh(name);
        if let Some(s) = self.scopes.last_mut() {
            s.insert(name.to_owned(), fresh);
        }
    }

    fn fresh(&mut self, name: &str) -> String {
        self.names.fresh(&format!("{}/{name}", self.label))
    }

    fn replace(&self, name: &mut String) -> Result<(), String> {
        if name.is_empty() {
            return Ok(());
        }
        match self.scopes.iter().rev().find_map(|s| s.get(name)) {
            Some(new) => {
                new.clone_into(name);
                Ok(())
            }
            None => Err(format!("it uses `{name}`, which it does not define")),
        }
    }
}

//! Rules S01 to S12.

use std::collections::{HashMap, HashSet};

use petgraph::Direction;

use super::{Findings, arity};
use crate::model::{Edge, Graph, GraphId, Model, NodeId, ValueId, Vertex};
use crate::node::Node;

/// S07, S11, S12: what every other function of the crate takes for granted.
pub(super) fn arena(model: &Model, found: &mut Findings) {
    let listed: HashSet<NodeId> = model
        .graphs
        .values()
        .flat_map(|g| g.nodes.clone())
        .collect();
    for i in model.arena.node_indices() {
        match &model.arena[i] {
            Vertex::Node(n) => {
                let label = label(n);
                slots(model, NodeId(i), n, found);
                if !listed.contains(&NodeId(i)) {
                    found.add("S12", label, "the node stands in no graph's list");
                }
                if !model.graphs.contains_key(&n.graph) {
                    found.add("S12", label, "the node belongs to a graph that is gone");
                }
                for (attr, g) in &n.subgraphs {
                    let parent = model.graphs.get(g).and_then(|g| g.parent.clone());
                    if parent != Some((NodeId(i), attr.clone())) {
                        found.add("S12", label, format!("subgraph `{attr}` is not its own"));
                    }
                }
            }
            Vertex::Value(v) if !model.graphs.contains_key(&v.graph) => {
                found.add("S12", &v.name, "the value belongs to a graph that is gone");
            }
            Vertex::Value(_) => {}
        }
    }
    for (&id, g) in &model.graphs {
        lists(model, id, g, found);
    }
}

fn label(n: &Node) -> &str {
    if n.name().is_empty() {
        n.op_type()
    } else {
        n.name()
    }
}

fn slots(model: &Model, id: NodeId, n: &Node, found: &mut Findings) {
    let mut seen = HashSet::new();
    let edges = model.arena.edges_directed(id.0, Direction::Incoming);
    for e in edges.chain(model.arena.edges_directed(id.0, Direction::Outgoing)) {
        let (what, slot, count) = match e.weight() {
            Edge::Input(s) => ("input", *s, n.input_count),
            Edge::Output(s) => ("output", *s, n.output_count),
            Edge::Capture => continue,
        };
        if slot as usize >= count {
            let message = format!("{what} slot {slot} is used, but there are {count}");
            found.add("S07", label(n), message);
        }
        if !seen.insert(*e.weight()) {
            found.add("S07", label(n), format!("{what} slot {slot} is used twice"));
        }
    }
}

fn lists(model: &Model, id: GraphId, g: &Graph, found: &mut Findings) {
    let path = g.header.name();
    if let Some((owner, attr)) = &g.parent {
        let owned =
            model.has_node(*owner) && model.node(*owner).subgraphs.contains(&(attr.clone(), id));
        if !owned {
            found.add("S12", path, "the graph's control-flow node does not own it");
        }
    } else if id != Model::MAIN {
        found.add("S12", path, "the graph has no owner");
    }
    let mut nodes = HashSet::new();
    for &n in &g.nodes {
        if !model.has_node(n) || model.node(n).graph != id || !nodes.insert(n) {
            found.add(
                "S12",
                path,
                format!("the list of nodes names {n:?} wrongly"),
            );
        }
    }
    let all = [
        ("S11", "inputs", &g.inputs),
        ("S11", "outputs", &g.outputs),
        ("S12", "initializers", &g.initializers),
        ("S12", "declarations", &g.value_info),
    ];
    for (rule, list, values) in all {
        let mut seen = HashSet::new();
        for &v in values {
            if !model.has_value(v) {
                found.add(
                    rule,
                    path,
                    format!("the list of {list} names {v:?}, which is gone"),
                );
                continue;
            }
            let value = model.value(v);
            let flagged = match list {
                "inputs" => value.is_input(),
                "outputs" => value.is_output() || value.graph != id,
                "initializers" => value.init.is_some(),
                _ => value.value_info.is_some(),
            };
            let foreign = value.graph != id && list != "outputs";
            if !flagged || foreign {
                let message = format!("the list of {list} names it, but it is none here");
                found.add(rule, &value.name, message);
            }
            if !seen.insert(v) && list != "outputs" {
                found.add(
                    rule,
                    &value.name,
                    format!("the list of {list} names it twice"),
                );
            }
        }
    }
    for v in model.all_values() {
        let value = model.value(v);
        if value.graph != id {
            continue;
        }
        let missing = [
            (value.is_input() && !g.inputs.contains(&v), "S11", "inputs"),
            (
                value.is_output() && !g.outputs.contains(&v),
                "S11",
                "outputs",
            ),
        ];
        for (wrong, rule, list) in missing {
            if wrong {
                let message = format!("it says it is one of the {list}, but it is not listed");
                found.add(rule, &value.name, message);
            }
        }
    }
    let listed: HashSet<ValueId> = g.initializers.iter().copied().collect();
    for v in model.all_values() {
        let value = model.value(v);
        if value.graph == id && value.init.is_some() && !listed.contains(&v) {
            found.add(
                "S12",
                &value.name,
                "it has data, but is not listed as an initializer",
            );
        }
    }
}

/// S01 to S06 and S08 to S10.
pub(super) fn check(model: &Model, found: &mut Findings) {
    names(model, found);
    for v in model.all_values() {
        definition(model, v, found);
        let value = model.value(v);
        if let Some(Err(e)) = value.init.as_ref().map(|t| t.validate()) {
            found.add("S10", model.value_key(v), e.to_string());
        }
    }
    if let Err(e) = model.clone().sort() {
        found.add("S04", "", e.to_string());
    }
    let imported: HashSet<&str> = model
        .header
        .opset_import
        .iter()
        .map(|o| o.domain())
        .collect();
    for n in model.all_nodes() {
        scope(model, n, found);
        arity::check(model, n, found);
        let domain = model.node(n).domain();
        if !imported.contains(domain) && model.opset(domain).is_none() {
            found.add(
                "S09",
                model.node_key(n),
                format!("domain `{domain}` is not imported"),
            );
        }
    }
    for g in model.graph_ids() {
        order(model, g, found);
    }
}

fn names(model: &Model, found: &mut Findings) {
    let mut defined: HashMap<(GraphId, &str), usize> = HashMap::new();
    for v in model.all_values() {
        let value = model.value(v);
        if value.name.is_empty() {
            found.add("S01", model.graph_path(value.graph), "a value has no name");
        }
        *defined
            .entry((value.graph, value.name.as_str()))
            .or_default() += 1;
    }
    for v in model.all_values() {
        let value = model.value(v);
        let count = defined.get_mut(&(value.graph, value.name.as_str()));
        if let Some(count) = count.filter(|c| **c > 1) {
            found.add("S02", model.value_key(v), format!("defined {count} times"));
            *count = 1;
        }
        let mut at = value.graph;
        while let Some((owner, _)) = &model.graph(at).parent {
            at = model.node(*owner).graph;
            if defined.contains_key(&(at, value.name.as_str())) {
                let message = "a graph around this one defines the same name";
                found.add("S02", model.value_key(v), message);
            }
        }
    }
}

fn definition(model: &Model, v: ValueId, found: &mut Findings) {
    let value = model.value(v);
    let producers = model
        .arena
        .edges_directed(v.0, Direction::Incoming)
        .filter(|e| matches!(e.weight(), Edge::Output(_)))
        .count();
    let given = value.is_input() || value.init.is_some() || value.sparse_init;
    if producers + usize::from(given) > 1 {
        found.add("S03", model.value_key(v), "defined in more than one way");
    }
    if producers == 0 && !given && !model.is_unused(v) {
        let users: Vec<String> = model
            .consumers(v)
            .into_iter()
            .map(|(n, _)| model.node_label(n))
            .collect();
        let by = if users.is_empty() {
            "a signature".to_owned()
        } else {
            users.join(", ")
        };
        found.add(
            "S03",
            model.value_key(v),
            format!("used by {by}, but nothing defines it"),
        );
    }
}

/// Whether a graph is another one or lies around it.
fn encloses(model: &Model, outer: GraphId, inner: GraphId) -> bool {
    let mut at = inner;
    loop {
        if at == outer {
            return true;
        }
        match &model.graph(at).parent {
            Some((owner, _)) => at = model.node(*owner).graph,
            None => return false,
        }
    }
}

fn scope(model: &Model, n: NodeId, found: &mut Findings) {
    let graph = model.node(n).graph;
    for v in model.inputs(n).into_iter().flatten() {
        if !encloses(model, model.value(v).graph, graph) {
            let message = format!("uses `{}`, which is out of scope", model.value_key(v));
            found.add("S05", model.node_key(n), message);
        }
    }
    for v in model.outputs(n).into_iter().flatten() {
        if model.value(v).graph != graph {
            let message = format!("defines `{}` of another graph", model.value_key(v));
            found.add("S05", model.node_key(n), message);
        }
    }
}

fn order(model: &Model, graph: GraphId, found: &mut Findings) {
    let nodes = &model.graph(graph).nodes;
    let at: HashMap<NodeId, usize> = nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
    for (i, &n) in nodes.iter().enumerate() {
        let used = model.inputs(n).into_iter().flatten();
        for v in used.chain(model.captured_by(n)) {
            let later = model
                .producer(v)
                .and_then(|(p, _)| at.get(&p))
                .is_some_and(|&p| p >= i);
            if later {
                let message = format!("uses `{}` before it is defined", model.value_key(v));
                found.add("S06", model.node_key(n), message);
            }
        }
    }
}

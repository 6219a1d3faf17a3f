//! Taking things out of the graph: nodes, values, subgraphs, and the control-flow nodes that a branch replaces.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::edit::Names;
use crate::model::{Graph, GraphId, Model, NodeId, ValueId, Vertex};

impl Model {
    /// Removes a node and the subgraphs it owns. Its outputs stay as values without a producer.
    pub fn remove_node(&mut self, node: NodeId) {
        let n = self.node(node);
        if !n.subgraphs.is_empty() {
            return self.remove_nodes(&HashSet::from([node]));
        }
        let graph = n.graph;
        self.arena.remove_node(node.0);
        self.graph_mut(graph).nodes.retain(|&n| n != node);
    }

    /// Removes many nodes of any graphs at once, with the subgraphs they own: linear in the size of the model. Nodes
    /// that are not in the model any more are passed over.
    pub fn remove_nodes(&mut self, nodes: &HashSet<NodeId>) {
        if nodes.is_empty() {
            return;
        }
        let mut open: Vec<NodeId> = nodes.iter().copied().collect();
        let mut gone: HashSet<GraphId> = HashSet::new();
        while let Some(node) = open.pop() {
            if !self.has_node(node) {
                continue;
            }
            for (_, graph) in self.node(node).subgraphs.clone() {
                if let Some(g) = self.graphs.remove(&graph) {
                    gone.insert(graph);
                    open.extend(g.nodes);
                }
            }
        }
        self.arena.retain_nodes(|arena, i| match &arena[i] {
            Vertex::Node(n) => !nodes.contains(&NodeId(i)) && !gone.contains(&n.graph),
            Vertex::Value(v) => !gone.contains(&v.graph),
        });
        for g in self.graphs.values_mut() {
            g.nodes.retain(|n| !nodes.contains(n));
        }
    }

    /// Removes a value that nothing uses from the arena and from its graph's lists.
    pub fn remove_value(&mut self, value: ValueId) {
        self.remove_values(&HashSet::from([value]));
    }

    /// Removes many values at once: linear in the size of the model.
    pub fn remove_values(&mut self, values: &HashSet<ValueId>) {
        if values.is_empty() {
            return;
        }
        // In a fixed order: the arena gives freed indices out again, and order of ids is order of output.
        for v in values.iter().copied().collect::<BTreeSet<ValueId>>() {
            self.arena.remove_node(v.0);
        }
        let keep = |v: &ValueId| !values.contains(v);
        for g in self.graphs.values_mut() {
            g.inputs.retain(keep);
            g.outputs.retain(keep);
            g.initializers.retain(keep);
            g.value_info.retain(keep);
        }
    }

    /// Puts the contents of subgraphs in the place of the control-flow nodes that own them, and removes those nodes
    /// with their other subgraphs: linear in the size of the model. Of nested ones, those whose owner stands in a
    /// subgraph that is removed go with it.
    ///
    /// Values keep their names where these are free and get fresh ones otherwise. The subgraphs must have no inputs
    /// that are still in use. Returns, in the order given, each output of a removed node, which now lacks a producer,
    /// with the value that its subgraph returned for it.
    pub fn splice_subgraphs(&mut self, taken: &[(NodeId, GraphId)]) -> Vec<(ValueId, ValueId)> {
        let chosen: HashMap<NodeId, GraphId> = taken.iter().copied().collect();
        let mut pairs = Vec::new();
        let mut homes: HashMap<GraphId, GraphId> = HashMap::new();
        for &(node, graph) in taken {
            let results = self.graph(graph).outputs.clone();
            let outputs = self.outputs(node).into_iter().zip(results);
            pairs.extend(outputs.filter_map(|(old, new)| Some((old?, new))));
            homes.insert(graph, self.home_of(self.node(node).graph, &chosen));
        }
        let mut bodies: HashMap<NodeId, Graph> = HashMap::new();
        for (&node, graph) in &chosen {
            let owner = self.node_mut(node);
            owner.subgraphs.retain(|(_, g)| g != graph);
            if let Some(body) = self.graphs.remove(graph) {
                bodies.insert(node, body);
            }
        }
        for g in self.graphs.values_mut() {
            let nodes = std::mem::take(&mut g.nodes);
            expand(nodes, &mut bodies, g);
        }
        let moved = self.rehome(&homes);
        self.remove_nodes(&chosen.into_keys().collect());
        self.rename_moved(&moved);
        pairs.retain(|&(old, new)| self.has_value(old) && self.has_value(new));
        pairs
    }

    /// The graph that the contents of a graph end up in when the chosen subgraphs replace their owners.
    fn home_of(&self, graph: GraphId, chosen: &HashMap<NodeId, GraphId>) -> GraphId {
        let mut at = graph;
        while let Some((owner, _)) = &self.graph(at).parent {
            if chosen.get(owner) != Some(&at) {
                break;
            }
            at = self.node(*owner).graph;
        }
        at
    }

    /// Tells every vertex of the graphs named its new graph, and returns the values among them.
    fn rehome(&mut self, homes: &HashMap<GraphId, GraphId>) -> Vec<ValueId> {
        let mut moved = Vec::new();
        for i in self.arena.node_indices().collect::<Vec<_>>() {
            match &mut self.arena[i] {
                Vertex::Node(n) => n.graph = homes.get(&n.graph).copied().unwrap_or(n.graph),
                Vertex::Value(v) => {
                    if let Some(&home) = homes.get(&v.graph) {
                        v.graph = home;
                        v.input_info = None;
                        v.output_info = None;
                        moved.push(ValueId(i));
                    }
                }
            }
        }
        moved
    }

    /// Gives those of the values that are still there names that no other value has.
    fn rename_moved(&mut self, moved: &[ValueId]) {
        let set: HashSet<ValueId> = moved.iter().copied().collect();
        let others = self.all_values().into_iter().filter(|v| !set.contains(v));
        let mut names: Names = others.map(|v| self.value(v).name.clone()).collect();
        for &v in moved
            .iter()
            .filter(|&&v| self.has_value(v))
            .collect::<Vec<_>>()
        {
            let fresh = names.fresh(&self.value(v).name);
            self.value_mut(v).name = fresh;
        }
    }
}

/// Appends nodes to a graph, with the contents of the bodies in the place of the nodes that own them.
fn expand(nodes: Vec<NodeId>, bodies: &mut HashMap<NodeId, Graph>, into: &mut Graph) {
    for node in nodes {
        let Some(body) = bodies.remove(&node) else {
            into.nodes.push(node);
            continue;
        };
        into.initializers.extend(body.initializers);
        into.value_info.extend(body.value_info);
        let sparse = body.header.sparse_initializer;
        into.header.sparse_initializer.extend(sparse);
        expand(body.nodes, bodies, into);
    }
}

//! Program order and captures: what follows from the edges and is computed anew after changes.

use std::collections::{HashMap, HashSet};

use crate::model::{Edge, GraphId, Model, NodeId, ValueId};

/// The nodes of a graph depend on each other in a circle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the graph is cyclic: {}", cycle.join(" → "))]
pub struct CycleError {
    /// The nodes of the circle; the last is the first again.
    pub cycle: Vec<String>,
}

impl Model {
    /// Puts every graph's nodes in an order in which each value is defined before it is used. The present order is
    /// kept as far as it can be; a node that was added stands right before the first node that needs it.
    ///
    /// # Errors
    /// [`CycleError`] with the nodes of a circle.
    pub fn sort(&mut self) -> Result<(), CycleError> {
        self.refresh_captures();
        for graph in self.graph_ids() {
            let order = self.sorted(graph)?;
            self.graph_mut(graph).nodes = order;
        }
        Ok(())
    }

    fn dependencies(&self, graph: GraphId, node: NodeId) -> Vec<NodeId> {
        let mut values: Vec<ValueId> = self.inputs(node).into_iter().flatten().collect();
        values.extend(self.captured_by(node));
        values
            .into_iter()
            .filter_map(|v| self.producer(v).map(|(n, _)| n))
            .filter(|&n| self.node(n).graph == graph)
            .collect()
    }

    fn sorted(&self, graph: GraphId) -> Result<Vec<NodeId>, CycleError> {
        let nodes = &self.graph(graph).nodes;
        let mut order = Vec::with_capacity(nodes.len());
        let mut done: HashSet<NodeId> = HashSet::with_capacity(nodes.len());
        let mut open: HashMap<NodeId, usize> = HashMap::new();
        for &root in nodes {
            if done.contains(&root) {
                continue;
            }
            let mut stack = vec![(root, self.dependencies(graph, root), 0)];
            open.insert(root, 0);
            while let Some((node, deps, next)) = stack.last_mut() {
                let Some(&dep) = deps.get(*next) else {
                    done.insert(*node);
                    order.push(*node);
                    open.remove(node);
                    stack.pop();
                    continue;
                };
                *next += 1;
                if done.contains(&dep) {
                    continue;
                }
                if let Some(&at) = open.get(&dep) {
                    let mut cycle: Vec<String> = stack[at..]
                        .iter()
                        .map(|(n, ..)| self.node_label(*n))
                        .collect();
                    cycle.push(self.node_label(dep));
                    return Err(CycleError { cycle });
                }
                open.insert(dep, stack.len());
                let deps = self.dependencies(graph, dep);
                stack.push((dep, deps, 0));
            }
        }
        Ok(order)
    }

    /// Computes the capture edges anew: for every use of a value inside a subgraph that does not define it, an edge
    /// from the value to each control-flow node between the use and the definition.
    pub fn refresh_captures(&mut self) {
        self.arena.retain_edges(|g, e| g[e] != Edge::Capture);
        if self.graphs.len() < 2 {
            return;
        }
        let mut edges: Vec<(ValueId, NodeId)> = Vec::new();
        for graph in self.graph_ids().into_iter().skip(1) {
            let g = self.graph(graph);
            let uses = g
                .nodes
                .iter()
                .flat_map(|&n| self.inputs(n).into_iter().flatten())
                .chain(g.outputs.iter().copied());
            for v in uses.collect::<HashSet<_>>() {
                let home = self.value(v).graph;
                let mut at = graph;
                while at != home {
                    let Some((owner, _)) = self.graph(at).parent else {
                        break;
                    };
                    edges.push((v, owner));
                    at = self.node(owner).graph;
                }
            }
        }
        edges.sort_unstable();
        edges.dedup();
        for (v, n) in edges {
            self.arena.add_edge(v.0, n.0, Edge::Capture);
        }
    }
}

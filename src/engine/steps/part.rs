//! A part of a model as a model of its own.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use onnx_quant_ir::engine::{Engine, EngineError, Observed, Observer, Request};
use onnx_quant_ir::proto::{TypeProto, type_proto};
use onnx_quant_ir::{GraphId, Model, NodeId, Tensor, ValueId};

use super::Values;
use crate::engine::SessionCache;

/// Different shapes that a part is kept prepared for.
const SHAPES: usize = 64;

/// Some nodes of the main graph, prepared for the shapes that they are fed.
pub(super) struct Part {
    sessions: SessionCache,
    feed: Vec<(ValueId, String)>,
    outputs: Vec<ValueId>,
    /// The names of watched values, and their places among those of the whole model.
    observe: Vec<String>,
    places: Vec<usize>,
    unordered: Vec<usize>,
}

impl Part {
    /// The part of a model that some of its main graph's nodes are; `None` of no nodes.
    pub(super) fn of(
        engine: &Arc<dyn Engine>,
        model: &Model,
        nodes: &BTreeSet<NodeId>,
        outputs: Vec<ValueId>,
        watched: &[(usize, ValueId)],
        request: &Request,
    ) -> Option<Self> {
        if nodes.is_empty() || (outputs.is_empty() && watched.is_empty()) {
            return None;
        }
        let mut part = model.clone();
        let others = part.main().nodes.iter().copied();
        let others: HashSet<NodeId> = others.filter(|n| !nodes.contains(n)).collect();
        part.remove_nodes(&others);
        Some(Self::whole(engine, part, outputs, watched, request))
    }

    /// A model that has no more nodes than the part, with whatever signature.
    fn whole(
        engine: &Arc<dyn Engine>,
        mut part: Model,
        outputs: Vec<ValueId>,
        watched: &[(usize, ValueId)],
        request: &Request,
    ) -> Self {
        let mut types = HashMap::new();
        for v in part.main().inputs.clone() {
            types.insert(v, element_type(&part, v));
            part.remove_graph_input(v);
        }
        for v in part.main().outputs.clone() {
            types.entry(v).or_insert_with(|| element_type(&part, v));
            part.remove_graph_output(v);
        }
        part.refresh_captures();
        let mut read = BTreeSet::new();
        for &node in &part.main().nodes {
            read.extend(part.inputs(node).into_iter().flatten());
            read.extend(part.captured_by(node));
        }
        let fed = |v: &ValueId| {
            let value = part.value(*v);
            value.init.is_none() && !value.sparse_init && part.producer(*v).is_none()
        };
        let inputs: Vec<ValueId> = read.into_iter().filter(fed).collect();
        let mut declared = |part: &mut Model, v: ValueId| {
            let ty = types.remove(&v).flatten().or_else(|| element_type(part, v));
            part.drop_value_info(v);
            ty
        };
        for &v in &inputs {
            let ty = declared(&mut part, v);
            part.make_graph_input(v, ty);
        }
        for &v in &outputs {
            let ty = declared(&mut part, v);
            part.make_graph_output(v, ty);
        }
        let values = part.all_values().into_iter();
        let idle = values.filter(|&v| {
            let value = part.value(v);
            let apart = value.graph == Model::MAIN && !value.is_input() && !value.sparse_init;
            apart && part.is_unused(v) && part.producer(v).is_none()
        });
        let idle: HashSet<ValueId> = idle.collect();
        part.remove_values(&idle);
        let name = |v: &ValueId| (*v, part.value(*v).name.clone());
        let feed = inputs.iter().map(name).collect();
        let known = watched.iter().filter(|(_, v)| part.has_value(*v));
        let known: Vec<(usize, ValueId)> = known.copied().collect();
        let relaxed = |i: &usize| request.unordered.contains(&known[*i].0);
        Self {
            feed,
            outputs,
            observe: known.iter().map(|(_, v)| part.value_key(*v)).collect(),
            places: known.iter().map(|(place, _)| *place).collect(),
            unordered: (0..known.len()).filter(relaxed).collect(),
            sessions: SessionCache::new(Arc::clone(engine), Arc::new(part), SHAPES),
        }
    }

    /// Runs the part on values of the scopes around it, the innermost first.
    pub(super) fn run(
        &self,
        scopes: &[&Values],
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<(ValueId, Tensor)>, EngineError> {
        let find = |(v, name): &(ValueId, String)| {
            let found = scopes.iter().find_map(|s| s.get(v)).cloned();
            found.ok_or_else(|| EngineError::Feed(format!("`{name}` was not computed")))
        };
        let tensors = self.feed.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let shape = |((_, name), t): (&(ValueId, String), &Tensor)| {
            let dims = t.dims().iter().map(|&d| d as usize).collect();
            (name.clone(), t.dtype(), dims)
        };
        let observe = observer.is_some() && !self.observe.is_empty();
        let request = Request {
            feed: self.feed.iter().zip(&tensors).map(shape).collect(),
            observe: if observe {
                self.observe.clone()
            } else {
                Vec::new()
            },
            unordered: if observe {
                self.unordered.clone()
            } else {
                Vec::new()
            },
        };
        let session = self.sessions.get(&request)?;
        let found = match observer.filter(|_| observe) {
            None => session.run(&tensors, None)?,
            Some(observer) => {
                let mut see = |seen: Observed<'_>| {
                    observer(Observed {
                        index: self.places[seen.index],
                        ..seen
                    });
                };
                session.run(&tensors, Some(&mut see))?
            }
        };
        Ok(self.outputs.iter().copied().zip(found).collect())
    }
}

/// The declared type of a value without its shape, which may be another at each turn of a loop.
fn element_type(model: &Model, value: ValueId) -> Option<TypeProto> {
    let mut ty = model.value(value).ty().cloned()?;
    if let Some(type_proto::Value::TensorType(t)) = &mut ty.value {
        t.shape = None;
    }
    Some(ty)
}

/// A body of a control-flow node.
pub(super) struct Body {
    /// Its operators, where it has any.
    part: Option<Part>,
    pub(super) inputs: Vec<ValueId>,
    pub(super) outputs: Vec<ValueId>,
}

impl Body {
    pub(super) fn new(
        engine: &Arc<dyn Engine>,
        model: &Model,
        (node, graph): (NodeId, GraphId),
        watched: &[(usize, ValueId)],
        request: &Request,
    ) -> Self {
        let body = model.graph(graph);
        let (inputs, outputs) = (body.inputs.clone(), body.outputs.clone());
        let mut computed: Vec<ValueId> = outputs.clone();
        computed.retain(|&v| {
            let maker = model.producer(v).map(|(n, _)| model.node(n).graph);
            maker == Some(graph)
        });
        computed.sort_unstable();
        computed.dedup();
        let inside = |&&(_, v): &&(usize, ValueId)| is_inside(model, model.value(v).graph, graph);
        let seen: Vec<(usize, ValueId)> = watched.iter().filter(inside).copied().collect();
        let none = body.nodes.is_empty() || (computed.is_empty() && seen.is_empty());
        let part = (!none).then(|| {
            let mut part = model.clone();
            let typed = inputs.iter().chain(&computed);
            let types: Vec<_> = typed.map(|&v| (v, element_type(model, v))).collect();
            let others = part.main().nodes.iter().copied().filter(|&n| n != node);
            let others: HashSet<NodeId> = others.collect();
            part.remove_nodes(&others);
            part.splice_subgraphs(&[(node, graph)]);
            for (v, ty) in types {
                if let Some(ty) = ty.filter(|_| part.has_value(v)) {
                    part.set_value_info(v, ty);
                }
            }
            Part::whole(engine, part, computed, &seen, request)
        });
        Self {
            part,
            inputs,
            outputs,
        }
    }

    /// Runs the body once: the values that it returns.
    pub(super) fn run(
        &self,
        outer: &Values,
        given: Vec<Tensor>,
        observer: Option<Observer<'_>>,
    ) -> Result<Vec<Tensor>, EngineError> {
        let mut values: Values = self.inputs.iter().copied().zip(given).collect();
        if let Some(part) = &self.part {
            let found = part.run(&[&values, outer], observer)?;
            values.extend(found);
        }
        let output = |v: &ValueId| {
            let found = values.get(v).or_else(|| outer.get(v)).cloned();
            found.ok_or_else(|| EngineError::Feed("a result was not computed".to_owned()))
        };
        self.outputs.iter().map(output).collect()
    }
}

/// Whether a graph is another one or lies in it.
fn is_inside(model: &Model, mut at: GraphId, graph: GraphId) -> bool {
    loop {
        if at == graph {
            return true;
        }
        match model.graph(at).parent {
            Some((owner, _)) => at = model.node(owner).graph,
            None => return false,
        }
    }
}

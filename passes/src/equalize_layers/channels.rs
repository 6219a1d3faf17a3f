//! Which channels belong together: the weights that make them, the constants added to them, and the weights that read
//! them.

use std::collections::BTreeMap;

use onnx_quant_ir::{Model, NodeId, ValueId};

use super::sides::{maker_side, reader_side};
use crate::infer::{Facts, infer_declared};
use crate::ops;

/// Where the channels of a group stand in a constant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Side {
    /// The node that reads the constant, and the slot.
    pub(crate) node: NodeId,
    pub(crate) slot: usize,
    /// The constant read as `[groups, outer, channels, inner]`; the channel is `group · channels + index`, or each
    /// `repeat` neighbours are one channel.
    pub(crate) layout: Places,
}

/// See [`Side::layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    pub(crate) groups: usize,
    pub(crate) outer: usize,
    pub(crate) channels: usize,
    pub(crate) inner: usize,
    pub(crate) repeat: usize,
}

impl Places {
    pub(crate) fn plain(outer: usize, channels: usize, inner: usize) -> Self {
        Self {
            groups: 1,
            outer,
            channels,
            inner,
            repeat: 1,
        }
    }

    /// The channel of an element.
    pub(crate) fn channel(&self, element: usize) -> usize {
        let row = element / self.inner;
        let within = row % self.channels;
        let group = row / self.channels / self.outer;
        (group * self.channels + within) / self.repeat
    }
}

/// Channels that must be scaled alike.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    /// Channels.
    pub(crate) size: usize,
    /// Weights that make them: divided.
    pub(crate) makers: Vec<Side>,
    /// Constants that are added to them: divided.
    pub(crate) added: Vec<Side>,
    /// Weights that read them: multiplied.
    pub(crate) readers: Vec<Side>,
    /// Values that hold them, one after the other.
    pub(crate) values: Vec<ValueId>,
    /// Clips with a bound that moves with the channel.
    pub(crate) clips: Vec<Bounded>,
}

/// A Clip with a bound other than 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Bounded {
    pub(crate) node: NodeId,
    pub(crate) low: f32,
    pub(crate) high: f32,
    /// Axes behind that of the channels.
    pub(crate) behind: usize,
}

/// A group that cannot be scaled.
pub(crate) struct Blocked {
    pub(crate) subject: String,
    pub(crate) reason: String,
}

/// The groups of a model.
pub(crate) struct Groups {
    pub(crate) free: Vec<Group>,
    pub(crate) blocked: Vec<Blocked>,
}

/// The channels of a value: its group, the axis they lie on, and how many neighbours are one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Channels {
    pub(super) group: usize,
    pub(super) axis: usize,
    pub(super) repeat: usize,
}

struct Search<'a> {
    model: &'a Model,
    facts: Facts,
    parents: Vec<usize>,
    groups: Vec<Group>,
    reasons: Vec<Option<String>>,
    subjects: Vec<String>,
    of: BTreeMap<ValueId, Channels>,
}

pub(crate) fn groups(model: &Model) -> Groups {
    let mut search = Search {
        model,
        facts: infer_declared(model, true),
        parents: Vec::new(),
        groups: Vec::new(),
        reasons: Vec::new(),
        subjects: Vec::new(),
        of: BTreeMap::new(),
    };
    for &node in &model.main().nodes {
        search.node(node);
    }
    for (&value, &c) in &search.of.clone() {
        let v = model.value(value);
        if model.main().outputs.contains(&value) || v.is_output() {
            search.block(c.group, format!("`{}` is an output of the graph", v.name));
        }
        if !model.captures(value).is_empty() {
            search.block(c.group, format!("`{}` is read inside a subgraph", v.name));
        }
    }
    for (&value, c) in &search.of.clone() {
        let root = search.root(c.group);
        let clip = search.bounded(value, c);
        search.groups[root].clips.extend(clip);
        if c.repeat == 1 {
            search.groups[root].values.push(value);
        }
    }
    search.collect()
}

impl Search<'_> {
    fn root(&self, mut group: usize) -> usize {
        while self.parents[group] != group {
            group = self.parents[group];
        }
        group
    }

    fn block(&mut self, group: usize, reason: String) {
        let root = self.root(group);
        self.reasons[root].get_or_insert(reason);
    }

    fn new_group(&mut self, node: NodeId, size: usize) -> usize {
        let id = self.parents.len();
        self.parents.push(id);
        self.groups.push(Group {
            size,
            ..Group::default()
        });
        self.reasons.push(None);
        self.subjects.push(self.model.node_key(node));
        id
    }

    fn unite(&mut self, a: usize, b: usize) {
        let (a, b) = (
            self.root(a).min(self.root(b)),
            self.root(a).max(self.root(b)),
        );
        if a == b {
            return;
        }
        self.parents[b] = a;
        let moved = std::mem::take(&mut self.groups[b]);
        if moved.size != self.groups[a].size {
            self.block(a, "channels of different number are added".to_owned());
        }
        self.groups[a].makers.extend(moved.makers);
        self.groups[a].added.extend(moved.added);
        self.groups[a].readers.extend(moved.readers);
        if let Some(reason) = self.reasons[b].take() {
            self.block(a, reason);
        }
    }

    fn rank(&self, value: ValueId) -> Option<usize> {
        let known = self
            .facts
            .get(value)
            .and_then(|f| Some(f.shape.as_ref()?.len()));
        known.or_else(|| self.model.value(value).shape().map(|s| s.len()))
    }

    fn node(&mut self, node: NodeId) {
        match ops::linear(self.model, node) {
            Some(Ok(linear)) => self.linear(node, &linear),
            _ => self.other(node),
        }
    }

    /// A linear operator ends the group of its input and begins one of its own.
    fn linear(&mut self, node: NodeId, linear: &ops::Linear) {
        let model = self.model;
        for (slot, value) in model.inputs(node).into_iter().enumerate() {
            let Some(c) = value.and_then(|v| self.of.get(&v).copied()) else {
                continue;
            };
            let side = (slot == linear.activation).then(|| reader_side(model, node, linear, c));
            match side {
                Some(Ok(side)) => {
                    let size = self.groups[self.root(c.group)].size;
                    let covers =
                        side.layout.groups * side.layout.channels == size * side.layout.repeat;
                    let root = self.root(c.group);
                    self.groups[root].readers.push(side);
                    if !covers {
                        self.block(c.group, "a weight reads other channels".to_owned());
                    }
                }
                Some(Err(why)) => self.block(
                    c.group,
                    format!("`{}` reads it: {why}", model.node_label(node)),
                ),
                None => self.block(
                    c.group,
                    format!("`{}` takes it as a weight or bias", model.node_label(node)),
                ),
            }
        }
        let Some(output) = model.output(node, 0) else {
            return;
        };
        let Some((side, size)) = maker_side(model, node, linear) else {
            return;
        };
        let axis = match model.node(node).op_type() {
            "MatMul" => match self.rank(output).and_then(|r| r.checked_sub(1)) {
                Some(axis) => axis,
                None => return,
            },
            _ => 1,
        };
        let id = self.new_group(node, size);
        self.groups[id].makers.push(side);
        self.of.insert(
            output,
            Channels {
                group: id,
                axis,
                repeat: 1,
            },
        );
        if let Some(slot) = linear.bias {
            let fits = model.input_constant(node, slot).is_some_and(|t| {
                t.element_count() == Ok(size) && t.dims().last() == Some(&(size as i64))
            });
            if fits {
                let layout = Places::plain(1, size, 1);
                self.groups[id].added.push(Side { node, slot, layout });
            } else {
                self.block(
                    id,
                    "its bias has not one constant value for each channel".to_owned(),
                );
            }
        }
    }

    fn other(&mut self, node: NodeId) {
        let model = self.model;
        let n = model.node(node);
        let inputs: Vec<Option<ValueId>> = model.inputs(node);
        let known: Vec<Channels> = inputs
            .iter()
            .flatten()
            .filter_map(|v| self.of.get(v).copied())
            .collect();
        let Some(&first) = known.first() else {
            return;
        };
        let result = match (n.domain(), n.op_type()) {
            ("", "Add") => self.add(node, &inputs),
            ("", op)
                if known.len() == 1
                    && inputs
                        .first()
                        .copied()
                        .flatten()
                        .is_some_and(|v| self.of.contains_key(&v)) =>
            {
                self.through(node, op, first)
            }
            (_, op) => Err(format!("{op} reads it")),
        };
        match (result, model.output(node, 0)) {
            (Ok(c), Some(output)) => {
                self.of.insert(output, c);
            }
            (Ok(_), None) => {}
            (Err(why), _) => {
                let why = format!("`{}`: {why}", model.node_label(node));
                for c in known {
                    self.block(c.group, why.clone());
                }
            }
        }
    }

    fn add(&mut self, node: NodeId, inputs: &[Option<ValueId>]) -> Result<Channels, String> {
        let model = self.model;
        let [Some(a), Some(b)] = inputs else {
            return Err("an input is missing".to_owned());
        };
        match (self.of.get(a).copied(), self.of.get(b).copied()) {
            (Some(x), Some(y)) => {
                let (ra, rb) = (self.rank(*a), self.rank(*b));
                if ra.is_none() || ra != rb || x.axis != y.axis || x.repeat != y.repeat {
                    return Err("channels on different axes are added".to_owned());
                }
                self.unite(x.group, y.group);
                Ok(Channels {
                    group: self.root(x.group),
                    ..x
                })
            }
            (Some(c), None) | (None, Some(c)) => {
                let slot = usize::from(self.of.contains_key(a));
                let other = if slot == 1 { b } else { a };
                let constant = model
                    .constant(*other)
                    .ok_or("a value whose channels are not known is added")?;
                let rank = self
                    .rank(if slot == 1 { *a } else { *b })
                    .ok_or("its rank is not known")?;
                let dims = constant.dims();
                let size = self.groups[self.root(c.group)].size;
                let axis = (c.axis + dims.len())
                    .checked_sub(rank)
                    .ok_or("the constant has another rank")?;
                let fits = dims.len() <= rank
                    && dims.iter().enumerate().all(|(i, &d)| {
                        d == if i == axis {
                            (size * c.repeat) as i64
                        } else {
                            1
                        }
                    });
                if !fits {
                    return Err(
                        "a constant is added that has not one value for each channel".to_owned(),
                    );
                }
                let layout = Places {
                    repeat: c.repeat,
                    ..Places::plain(1, size * c.repeat, 1)
                };
                let root = self.root(c.group);
                self.groups[root].added.push(Side { node, slot, layout });
                Ok(c)
            }
            (None, None) => Err("nothing is known of it".to_owned()),
        }
    }

    /// What an operator with one scaled input does to the channels.
    fn through(&self, node: NodeId, op: &str, c: Channels) -> Result<Channels, String> {
        let (model, n) = (self.model, self.model.node(node));
        match op {
            "Relu" | "LeakyRelu" | "Identity" | "Dropout" => Ok(c),
            "PRelu" => match model.input_constant(node, 1) {
                Some(_) => Ok(c),
                None => Err("its slope is computed at run time".to_owned()),
            },
            "Clip" => match ops::clamp_bounds(model, node) {
                Some((low, high)) if free(low) && free(high) => Ok(c),
                // Bounds for each channel are written as Min and Max.
                Some((low, high)) if low <= 0.0 && high >= 0.0 && c.repeat == 1 => Ok(c),
                Some(_) => Err("Clip has a bound that the factors would move".to_owned()),
                None => Err("the bounds of Clip are computed at run time".to_owned()),
            },
            "MaxPool" | "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool"
                if c.axis == 1 && c.repeat == 1 && model.output(node, 1).is_none() =>
            {
                Ok(c)
            }
            "Transpose" => {
                let rank = model
                    .input(node, 0)
                    .and_then(|v| self.rank(v))
                    .ok_or("its rank is not known")?;
                let reverse: Vec<i64> = (0..rank as i64).rev().collect();
                let perm = n.attr_ints("perm").unwrap_or(&reverse);
                let axis = perm.iter().position(|&p| p == c.axis as i64);
                axis.map(|axis| Channels { axis, ..c })
                    .ok_or_else(|| "its permutation is not valid".to_owned())
            }
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => self.reshape(node, c),
            "ReduceMean" | "ReduceSum" | "ReduceMax" => self.reduce(node, c),
            _ => Err(format!("{op} does not let factors through")),
        }
    }

    /// Follows the channels through a change of shape: the elements before them and behind them stay together.
    fn reshape(&self, node: NodeId, c: Channels) -> Result<Channels, String> {
        let unknown = || "the shapes around it are not known".to_owned();
        let dims = |v: Option<ValueId>| -> Option<Vec<Option<i64>>> {
            let fact = self.facts.get(v?)?;
            Some(
                fact.shape
                    .as_ref()?
                    .iter()
                    .map(crate::infer::Dim::known)
                    .collect(),
            )
        };
        let from = dims(self.model.input(node, 0)).ok_or_else(unknown)?;
        let to = dims(self.model.output(node, 0)).ok_or_else(unknown)?;
        let product = |d: &[Option<i64>]| d.iter().try_fold(1i64, |p, d| Some(p * (*d)?));
        let channels = from.get(c.axis).copied().flatten().ok_or_else(unknown)?;
        let behind = product(&from[c.axis + 1..]).ok_or_else(unknown)?;
        // The last axes of the result hold `channels · behind` elements, from the axis where the channels begin.
        for axis in (0..to.len()).rev() {
            let Some(size) = product(&to[axis..]) else {
                break;
            };
            if size < channels * behind {
                continue;
            }
            let inner = product(&to[axis + 1..]).ok_or_else(unknown)?;
            let here = to[axis].ok_or_else(unknown)?;
            let splits = size == channels * behind
                && behind % inner.max(1) == 0
                && here == channels * (behind / inner.max(1));
            if !splits {
                break;
            }
            let repeat = c.repeat * (behind / inner.max(1)) as usize;
            return Ok(Channels {
                group: c.group,
                axis,
                repeat,
            });
        }
        Err("the channels do not stay together".to_owned())
    }

    fn reduce(&self, node: NodeId, c: Channels) -> Result<Channels, String> {
        let (model, n) = (self.model, self.model.node(node));
        let rank = model
            .input(node, 0)
            .and_then(|v| self.rank(v))
            .ok_or("its rank is not known")? as i64;
        let axes = match (n.attr_ints("axes"), model.input(node, 1)) {
            (Some(axes), _) => axes.to_vec(),
            (None, Some(v)) => model
                .constant(v)
                .and_then(|t| t.to_i64().ok())
                .ok_or("its axes are computed at run time")?,
            (None, None) => return Err("it reduces all axes".to_owned()),
        };
        let axes: Vec<i64> = axes
            .iter()
            .map(|a| if *a < 0 { a + rank } else { *a })
            .collect();
        if axes.is_empty() || axes.contains(&(c.axis as i64)) {
            return Err("it reduces the channels".to_owned());
        }
        let kept = n.attr_i("keepdims").unwrap_or(1) != 0;
        let before = axes.iter().filter(|&&a| a < c.axis as i64).count();
        let axis = if kept { c.axis } else { c.axis - before };
        Ok(Channels { axis, ..c })
    }

    /// The Clip that makes a value, if its bounds move with the channels.
    fn bounded(&self, value: ValueId, c: &Channels) -> Option<Bounded> {
        let (node, _) = self.model.producer(value)?;
        let (low, high) = ops::clamp_bounds(self.model, node)?;
        let behind = self.rank(value)?.checked_sub(c.axis + 1)?;
        (!free(low) || !free(high)).then_some(Bounded {
            node,
            low,
            high,
            behind,
        })
    }

    fn collect(self) -> Groups {
        let mut found = Groups {
            free: Vec::new(),
            blocked: Vec::new(),
        };
        for id in 0..self.parents.len() {
            if self.parents[id] != id {
                continue;
            }
            let group = &self.groups[id];
            let reason = self.reasons[id].clone();
            match reason {
                Some(reason) => found.blocked.push(Blocked {
                    subject: self.subjects[id].clone(),
                    reason,
                }),
                None if group.readers.is_empty() => {}
                None => found.free.push(group.clone()),
            }
        }
        found
    }
}

/// Whether factors leave a bound as it is.
fn free(bound: f32) -> bool {
    bound == 0.0 || bound.is_infinite()
}

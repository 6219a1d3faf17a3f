//! Which operators run in integers: a fixpoint over the graph.
//!
//! Linear operators want to; the others do only where a kernel gains, that is where all their inputs are quantized
//! anyway and their result is read by an integer operator. A value that does not bear its format takes the operators
//! around it out again, and the search starts anew with that knowledge.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::format::{Format, Scheme};

use crate::layers::LayerChoices;
use crate::ops::{self, Kernel, Linear};
use crate::settings::{QuantSettings, Selector};

/// What is decided for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// A linear operator in integers.
    Integer,
    /// Weights in few bits, arithmetic in float.
    WeightOnly(String),
    /// Another operator with an integer kernel.
    Supporting,
    /// Moves values; quantized if its input is and its result is wanted so.
    Preserving,
    /// A Relu or Clip that the operator before it takes in.
    Merged,
    /// Float, and why.
    Float(String),
}

/// The quantized activations: which nodes read the dequantized value, `None` for all.
pub(super) type Quantized = BTreeMap<ValueId, Option<BTreeSet<NodeId>>>;

/// The state of the search.
pub(super) struct Placement<'a> {
    model: &'a Model,
    settings: &'a QuantSettings,
    selector: &'a Selector,
    choices: &'a LayerChoices,
    pub(super) modes: BTreeMap<NodeId, Mode>,
    pub(super) linears: BTreeMap<NodeId, Linear>,
    merged: BTreeMap<NodeId, NodeId>,
}

impl<'a> Placement<'a> {
    pub(super) fn new(
        model: &'a Model,
        settings: &'a QuantSettings,
        selector: &'a Selector,
        choices: &'a LayerChoices,
    ) -> Self {
        let mut placement = Self {
            model,
            settings,
            selector,
            choices,
            modes: BTreeMap::new(),
            linears: BTreeMap::new(),
            merged: BTreeMap::new(),
        };
        for node in model.all_nodes() {
            let mode = placement.first_guess(node);
            placement.modes.insert(node, mode);
        }
        placement
    }

    fn first_guess(&mut self, node: NodeId) -> Mode {
        if let Some(reason) = self.selector.excluded_by(self.model, node) {
            return Mode::Float(reason);
        }
        let inner = self.model.node(node).graph != Model::MAIN;
        let choice = self.choices.of(node);
        let activations = choice.activations.is_some() && !inner;
        let weights = choice.weights.is_some();
        let layer = matches!(ops::linear(self.model, node), Some(Ok(_)))
            || ops::embedding(self.model, node).is_some()
            || !ops::recurrent(self.model, node).is_empty();
        if layer && !weights {
            let reason = choice.weights_reason.as_deref();
            return Mode::Float(reason.unwrap_or("weights stay in float").to_owned());
        }
        match ops::linear(self.model, node) {
            Some(Err(reason)) => Mode::Float(reason),
            Some(Ok(linear)) => {
                self.linears.insert(node, linear);
                let why = match linear.kernel {
                    _ if inner => "stands inside a subgraph, which calibration does not reach",
                    _ if !activations => match &choice.activations_reason {
                        Some(reason) => reason.as_str(),
                        None => "only weights are quantized",
                    },
                    Kernel::None(why) => why,
                    _ if self.mixed_signs(node) => {
                        "no kernel takes int8 activations with uint8 weights: ask for int8 weights"
                    }
                    _ => return Mode::Integer,
                };
                Mode::WeightOnly(why.to_owned())
            }
            None if ops::embedding(self.model, node).is_some() => {
                Mode::WeightOnly("rows are looked up in few bits and dequantized".to_owned())
            }
            None if !ops::recurrent(self.model, node).is_empty() => {
                let op = self.model.node(node).op_type();
                Mode::WeightOnly(format!("{op} has no integer kernel in Q/DQ form"))
            }
            None if !activations => {
                let reason = choice.activations_reason.clone();
                Mode::Float(reason.unwrap_or_else(|| self.default_reason(node)))
            }
            None if self.can_support(node) => Mode::Supporting,
            None if ops::is_preserving(self.model, node) => Mode::Preserving,
            None => Mode::Float(self.default_reason(node)),
        }
    }

    /// Whether activations are signed and weights are not.
    fn mixed_signs(&self, node: NodeId) -> bool {
        let signed = |f: Option<Format>| f.map(|f| f.base.info().signed);
        let choice = self.choices.of(node);
        (signed(choice.activations), signed(choice.weights)) == (Some(true), Some(false))
    }

    /// Whether the node is named by an `--include`, or by a rule that insists.
    pub(super) fn forced(&self, node: NodeId) -> bool {
        self.selector.included(self.model, node) || self.choices.of(node).force
    }

    /// The format that the node wants for what it reads.
    pub(super) fn wanted_format(&self, node: NodeId) -> Option<Format> {
        self.choices.of(node).activations
    }

    fn can_support(&self, node: NodeId) -> bool {
        let n = self.model.node(node);
        let inputs = self.model.inputs(node);
        n.domain().is_empty()
            && ops::is_supporting(n.op_type())
            && inputs
                .iter()
                .flatten()
                .all(|&v| self.model.value(v).init.is_none())
    }

    fn default_reason(&self, node: NodeId) -> String {
        let n = self.model.node(node);
        if !n.domain().is_empty() {
            return format!("operators of the domain `{}` are opaque", n.domain());
        }
        if n.graph != Model::MAIN {
            return "stands inside a subgraph".to_owned();
        }
        if ops::is_supporting(n.op_type()) {
            return "one operand is a constant, or nothing around it runs in integers".to_owned();
        }
        if ops::clamp_bounds(self.model, node).is_some() {
            return "no integer operator before it takes it in".to_owned();
        }
        if ops::is_preserving(self.model, node) {
            return "moves values that are in float".to_owned();
        }
        format!("the runtime has no integer kernel for {}", n.op_type())
    }

    /// Takes operators out until what is left agrees, and returns the values to be quantized.
    pub(super) fn settle(&mut self) -> Quantized {
        loop {
            self.merge_clamps();
            let available = self.available();
            let wanted = self.wanted();
            let mut changed = false;
            for &node in &self.model.main().nodes {
                if self.modes[&node] != Mode::Supporting {
                    continue;
                }
                let inputs = self.model.inputs(node);
                let fed = inputs.iter().flatten().all(|v| available.contains(v));
                let read = self.result(node).is_some_and(|v| wanted.contains(&v));
                let forced = self.forced(node);
                let reason = match (fed, read) {
                    _ if forced => continue,
                    (true, true) => continue,
                    (false, _) => {
                        "its inputs are in float: quantizing them for it alone gains nothing"
                    }
                    (true, false) => "nothing after it runs in integers",
                };
                self.modes.insert(node, Mode::Float(reason.to_owned()));
                changed = true;
            }
            if !changed {
                return self.quantized(&available, &wanted);
            }
        }
    }

    /// Takes the operators around a value out of integer arithmetic. `false` where all of them are forced.
    pub(super) fn bar(&mut self, value: ValueId, quantized: &Quantized, reason: &str) -> bool {
        let mut around: Vec<NodeId> = self
            .model
            .consumers(value)
            .into_iter()
            .filter(|(n, slot)| self.reads(*n, *slot))
            .map(|(n, _)| n)
            .collect();
        if quantized.get(&value).is_some_and(Option::is_none) {
            let maker = self.model.producer(value).map(|(n, _)| n);
            around.extend(maker.map(|n| self.merged.get(&n).copied().unwrap_or(n)));
        }
        let mut changed = false;
        for node in around {
            if self.forced(node) {
                continue;
            }
            let mode = match self.modes[&node] {
                Mode::Integer => Mode::WeightOnly(reason.to_owned()),
                Mode::Supporting | Mode::Preserving => Mode::Float(reason.to_owned()),
                _ => continue,
            };
            self.modes.insert(node, mode);
            changed = true;
        }
        changed
    }

    /// Whether the node's input slot takes a quantized activation.
    pub(super) fn reads(&self, node: NodeId, slot: usize) -> bool {
        match &self.modes[&node] {
            Mode::Integer => self.linears[&node].activation == slot,
            Mode::Supporting => true,
            Mode::Preserving => slot == 0,
            _ => false,
        }
    }

    /// Lets integer operators take in the Relu or Clip behind them, where the quantized range makes it redundant:
    /// with a zero point at the lowest code, that is in the asymmetric scheme.
    fn merge_clamps(&mut self) {
        let old: Vec<NodeId> = self.merged.keys().copied().collect();
        for node in old {
            self.modes
                .insert(node, Mode::Float(self.default_reason(node)));
        }
        self.merged.clear();
        if self.settings.activation_scheme != Scheme::Asymmetric {
            return;
        }
        for &node in &self.model.main().nodes {
            if !self.gives_codes(node) {
                continue;
            }
            let Some(out) = self.model.output(node, 0) else {
                continue;
            };
            let uses = self.model.consumers(out);
            let [(clamp, 0)] = uses[..] else { continue };
            let one_use = !self.model.value(out).is_output()
                && self.model.captures(out).is_empty()
                && self.model.node(clamp).graph == Model::MAIN;
            let bounds = ops::clamp_bounds(self.model, clamp);
            let excluded = self.selector.excluded_by(self.model, clamp).is_some();
            if one_use
                && !excluded
                && bounds.is_some_and(|(lo, hi)| lo <= 0.0 && hi >= 0.0 && lo < hi)
            {
                self.merged.insert(clamp, node);
                self.modes.insert(clamp, Mode::Merged);
            }
        }
    }

    /// Whether an operator's result is quantized at once because its kernel gives codes.
    pub(super) fn gives_codes(&self, node: NodeId) -> bool {
        match self.modes[&node] {
            Mode::Integer => self.linears[&node].kernel == Kernel::QuantizedOutput,
            Mode::Supporting => true,
            _ => false,
        }
    }

    /// The value behind an operator that is quantized: after a Relu or Clip that it takes in.
    fn result(&self, node: NodeId) -> Option<ValueId> {
        let out = self.model.output(node, 0)?;
        let clamp = self
            .model
            .consumers(out)
            .into_iter()
            .find(|(n, _)| self.merged.get(n) == Some(&node));
        match clamp {
            Some((n, _)) => self.model.output(n, 0),
            None => Some(out),
        }
    }

    /// The node that an integer operator takes in, for the reasons in the plan.
    pub(super) fn merged_into(&self, node: NodeId) -> Option<NodeId> {
        self.merged.get(&node).copied()
    }

    /// Values that have codes for another reason than the operator that asks.
    fn available(&self) -> BTreeSet<ValueId> {
        let mut found = BTreeSet::new();
        for (&node, linear) in &self.linears {
            if self.modes[&node] == Mode::Integer {
                found.extend(self.model.input(node, linear.activation));
            }
        }
        for &node in &self.model.main().nodes {
            if self.gives_codes(node) {
                found.extend(self.result(node));
            } else if self.modes[&node] == Mode::Preserving
                && self
                    .model
                    .input(node, 0)
                    .is_some_and(|v| found.contains(&v))
            {
                found.extend(self.model.outputs(node).into_iter().flatten());
            }
        }
        found
    }

    /// Values that an integer operator reads, directly or through operators that move values.
    fn wanted(&self) -> BTreeSet<ValueId> {
        let mut found = BTreeSet::new();
        for &node in self.model.main().nodes.iter().rev() {
            match self.modes[&node] {
                Mode::Integer => {
                    found.extend(self.model.input(node, self.linears[&node].activation))
                }
                Mode::Supporting => found.extend(self.model.inputs(node).into_iter().flatten()),
                Mode::Preserving => {
                    let outputs = self.model.outputs(node);
                    if outputs.iter().flatten().any(|v| found.contains(v)) {
                        found.extend(self.model.input(node, 0));
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn quantized(&self, available: &BTreeSet<ValueId>, wanted: &BTreeSet<ValueId>) -> Quantized {
        let mut all: Quantized = BTreeMap::new();
        let mut read = |value: Option<ValueId>, node: NodeId| {
            if let Some(Some(readers)) =
                value.map(|v| all.entry(v).or_insert_with(|| Some(BTreeSet::new())))
            {
                readers.insert(node);
            }
        };
        let mut whole = Vec::new();
        for &node in &self.model.main().nodes {
            match self.modes[&node] {
                Mode::Integer => read(self.model.input(node, self.linears[&node].activation), node),
                Mode::Supporting => {
                    for v in self.model.inputs(node) {
                        read(v, node);
                    }
                }
                Mode::Preserving if self.moves_codes(node, available, wanted) => {
                    read(self.model.input(node, 0), node);
                    whole.extend(self.model.outputs(node).into_iter().flatten());
                }
                _ => {}
            }
            if self.gives_codes(node) {
                whole.extend(self.result(node));
            }
        }
        for v in whole {
            all.insert(v, None);
        }
        all
    }

    /// Whether a value-moving operator moves codes: its input has them, and its result is wanted so. With signed codes
    /// also where it is not: onnxruntime 1.32 would move the conversion behind the operator by itself and then fails
    /// on the type of the codes.
    fn moves_codes(
        &self,
        node: NodeId,
        available: &BTreeSet<ValueId>,
        wanted: &BTreeSet<ValueId>,
    ) -> bool {
        let signed = self
            .wanted_format(node)
            .is_some_and(|f| f.base.info().signed);
        let outputs = self.model.outputs(node);
        self.model
            .input(node, 0)
            .is_some_and(|v| available.contains(&v))
            && (signed || outputs.iter().flatten().any(|v| wanted.contains(v)))
    }
}

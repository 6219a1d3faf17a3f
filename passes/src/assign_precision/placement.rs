//! Which operators run in integers: a fixpoint over the graph, by the table of the target.
//!
//! Linear operators want to; the others do only where a kernel gains, that is where all their inputs are quantized
//! anyway and their result is read by an integer operator. A value that does not bear its format takes the operators
//! around it out again, and the search starts anew with that knowledge.

use std::collections::{BTreeMap, BTreeSet};

use onnx_quant_ir::{Model, NodeId, ValueId};
use onnx_quant_numerics::affine::{QOptions, code_range};
use onnx_quant_numerics::format::{Format, Scheme};

use crate::infer::{Facts, infer_declared};
use crate::layers::{LayerChoice, LayerChoices};
use crate::ops::{self, Linear};
use crate::settings::{QuantSettings, Selector};
use crate::target::{Clamps, Pairs, Role, Target};

/// What is decided for a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Mode {
    /// A linear operator in integers.
    Integer,
    /// Weights in few bits, arithmetic in float.
    WeightOnly(String),
    /// Another operator with an integer kernel.
    Supporting,
    /// Its inputs in these slots are quantized, whatever stands around it.
    Inputs(Vec<usize>),
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
    pub(super) model: &'a Model,
    /// All nodes, those of bodies behind those of the graphs around them.
    order: Vec<NodeId>,
    pub(super) settings: &'a QuantSettings,
    pub(super) selector: &'a Selector,
    pub(super) choices: &'a LayerChoices,
    pub(super) target: &'static Target,
    /// What is known of shapes; empty where no rule of the target asks for them.
    pub(super) facts: Facts,
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
        let target = settings.target.rules();
        let facts = if target.limits.is_empty() {
            Facts::default()
        } else {
            infer_declared(model, true)
        };
        let mut placement = Self {
            model,
            order: model.all_nodes(),
            settings,
            selector,
            choices,
            target,
            facts,
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

    /// Whether the node is named by an `--include`, or by a rule that insists.
    pub(super) fn forced(&self, node: NodeId) -> bool {
        self.selector.included(self.model, node) || self.choices.of(node).force
    }

    /// What holds for the node.
    pub(super) fn choice(&self, node: NodeId) -> &LayerChoice {
        self.choices.of(node)
    }

    /// The format that the node wants for what it reads.
    pub(super) fn wanted_format(&self, node: NodeId) -> Option<Format> {
        self.choices.of(node).activations
    }

    /// Whether the operator moves values in a way that the target lets codes pass through.
    pub(super) fn moves(&self, node: NodeId) -> bool {
        let n = self.model.node(node);
        n.domain().is_empty()
            && self.target.is_move(n.op_type())
            && (self.target.pairs == Pairs::Inputs || ops::is_preserving(self.model, node))
    }

    /// The input slots of a node that hold data.
    pub(super) fn data_slots(&self, node: NodeId) -> std::ops::Range<usize> {
        let n = self.model.node(node);
        ops::data_slots(n.op_type(), n.input_count)
    }

    /// The activation that a linear operator reads.
    fn activation(&self, node: NodeId) -> Option<ValueId> {
        self.model.input(node, self.linears.get(&node)?.activation)
    }

    fn data(&self, node: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        self.data_slots(node)
            .filter_map(move |slot| self.model.input(node, slot))
    }

    /// Takes operators out until what is left agrees, and returns the values to be quantized.
    pub(super) fn settle(&mut self) -> Quantized {
        loop {
            self.merge_clamps();
            let available = self.available();
            let wanted = self.wanted();
            let mut changed = false;
            for &node in &self.order {
                if let Some(reason) = self.disagrees(node, &available, &wanted) {
                    self.modes.insert(node, Mode::Float(reason));
                    changed = true;
                }
            }
            if !changed {
                return self.quantized(&available, &wanted);
            }
        }
    }

    /// Why an operator that runs in integers only between others does not; `None` where it does.
    fn disagrees(
        &self,
        node: NodeId,
        available: &BTreeSet<ValueId>,
        wanted: &BTreeSet<ValueId>,
    ) -> Option<String> {
        if self.forced(node) {
            return None;
        }
        let reason = match &self.modes[&node] {
            Mode::Supporting => {
                let fed = self.data(node).all(|v| available.contains(&v));
                let read = self.result(node).is_some_and(|v| wanted.contains(&v));
                match (fed, read) {
                    (true, true) => return None,
                    (false, _) => {
                        "its inputs are in float: quantizing them for it alone gains nothing"
                    }
                    (true, false) => "nothing after it runs in integers",
                }
            }
            Mode::Inputs(slots) => match self.target.role(self.model.node(node).op_type()) {
                Some(Role::SkipBranch) => {
                    let (skip, main) = (slots[0], 1 - slots[0]);
                    let skip = self.model.input(node, skip);
                    if !self.behind_conv(node, main) {
                        "no quantized convolution makes the branch that is not skipped: nothing fuses"
                    } else if !skip.is_some_and(|v| available.contains(&v)) {
                        "its skip branch is in float"
                    } else {
                        return None;
                    }
                }
                Some(Role::BehindConv) if !self.behind_conv(node, 0) => {
                    "no quantized convolution makes its input"
                }
                _ => return None,
            },
            _ => return None,
        };
        Some(reason.to_owned())
    }

    /// Whether a quantized convolution makes the input in a slot, and nothing else reads it.
    fn behind_conv(&self, node: NodeId, slot: usize) -> bool {
        let Some(value) = self.model.input(node, slot) else {
            return false;
        };
        let alone = self.model.consumers(value).len() == 1 && !self.model.value(value).is_output();
        let maker = self.model.producer(value).map(|(n, _)| n);
        alone
            && maker.is_some_and(|n| {
                let op = self.model.node(n).op_type();
                self.modes[&n] == Mode::Integer && matches!(op, "Conv" | "ConvTranspose")
            })
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
            let mode = match &self.modes[&node] {
                Mode::Integer if self.target.weight_only => Mode::WeightOnly(reason.to_owned()),
                Mode::Integer | Mode::Supporting | Mode::Preserving | Mode::Inputs(_) => {
                    Mode::Float(reason.to_owned())
                }
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
            Mode::Integer => self
                .linears
                .get(&node)
                .is_some_and(|l| l.activation == slot),
            Mode::Supporting => self.data_slots(node).contains(&slot),
            Mode::Inputs(slots) => slots.contains(&slot),
            Mode::Preserving => slot == 0 && self.target.pairs == Pairs::Around,
            _ => false,
        }
    }

    /// Lets integer operators take in the Relu or Clip behind them; by the range of the codes only with a zero point at
    /// the lowest code, that is in the asymmetric scheme.
    fn merge_clamps(&mut self) {
        let old: Vec<NodeId> = self.merged.keys().copied().collect();
        for node in old {
            self.modes
                .insert(node, Mode::Float(self.default_reason(node)));
        }
        self.merged.clear();
        if self.settings.dynamic {
            return;
        }
        for &node in &self.order {
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
                && self.model.node(clamp).graph == self.model.node(node).graph;
            let bounds = ops::clamp_bounds(self.model, clamp);
            let excluded = self.selector.excluded_by(self.model, clamp).is_some();
            if one_use && !excluded && bounds.is_some_and(|b| self.takes_in(node, b)) {
                self.merged.insert(clamp, node);
                self.modes.insert(clamp, Mode::Merged);
            }
        }
    }

    /// Whether an integer operator takes in a clamp behind it. Codes take the place of a bound where they end at it: the
    /// lowest of the type is 0, or the highest is the bound. A reduced range leaves codes of the type beyond its ends,
    /// and so does a scale that is raised to a power of two, but not below a zero point at the lowest code.
    fn takes_in(&self, node: NodeId, (low, high): (f32, f32)) -> bool {
        if self.target.clamps != Clamps::Redundant {
            return low < high;
        }
        let Some(format) = self.wanted_format(node) else {
            return false;
        };
        let options = QOptions {
            narrow: false,
            reduce_range: self.settings.reduce_range,
        };
        let (info, (qmin, qmax)) = (format.base.info(), code_range(format.base, options));
        let whole = qmax == info.qmax && !self.settings.storage.power_of_two;
        self.settings.activation_scheme == Scheme::Asymmetric
            && low < high
            && (low == f32::NEG_INFINITY || low <= 0.0 && qmin == info.qmin)
            && (high == f32::INFINITY || high >= 0.0 && whole)
    }

    /// Whether an operator's result is quantized at once because its kernel gives codes; where pairs stand on inputs
    /// only, whether it can give codes.
    pub(super) fn gives_codes(&self, node: NodeId) -> bool {
        let role = self.target.role(self.model.node(node).op_type());
        let inputs_only = self.target.pairs == Pairs::Inputs;
        match self.modes[&node] {
            Mode::Integer => inputs_only || role == Some(Role::Linear { codes: true }),
            Mode::Supporting => true,
            Mode::Inputs(_) => inputs_only && role != Some(Role::BehindConv),
            _ => false,
        }
    }

    /// The value behind an operator that is quantized: after a Relu or Clip that it takes in.
    pub(super) fn result(&self, node: NodeId) -> Option<ValueId> {
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

    /// Whether codes pass through an operator to one that takes them, by the runtime's own doing.
    pub(super) fn is_transparent(&self, node: NodeId, quantized: &Quantized) -> bool {
        let mut outputs = self.model.outputs(node).into_iter().flatten();
        self.target.pairs == Pairs::Inputs
            && outputs.any(|v| {
                let moved_on = |&(n, _): &(NodeId, usize)| {
                    self.modes[&n] == Mode::Preserving && self.is_transparent(n, quantized)
                };
                quantized.contains_key(&v) || self.model.consumers(v).iter().any(moved_on)
            })
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
        for &node in &self.order {
            if let Mode::Inputs(slots) = &self.modes[&node] {
                let product = self.target.role(self.model.node(node).op_type());
                if matches!(product, Some(Role::Linear { .. })) {
                    found.extend(slots.iter().filter_map(|&s| self.model.input(node, s)));
                }
            }
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
        for &node in self.order.iter().rev() {
            match self.modes[&node] {
                Mode::Integer => found.extend(self.activation(node)),
                Mode::Supporting => found.extend(self.data(node)),
                Mode::Inputs(ref slots) => {
                    found.extend(slots.iter().filter_map(|&s| self.model.input(node, s)));
                }
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
        if self.settings.dynamic {
            return all;
        }
        let mut read = |value: Option<ValueId>, node: NodeId| {
            if let Some(Some(readers)) =
                value.map(|v| all.entry(v).or_insert_with(|| Some(BTreeSet::new())))
            {
                readers.insert(node);
            }
        };
        let around = self.target.pairs == Pairs::Around;
        let mut whole = Vec::new();
        for &node in &self.order {
            match self.modes[&node] {
                Mode::Integer => read(self.activation(node), node),
                Mode::Supporting => {
                    for v in self.data(node) {
                        read(Some(v), node);
                    }
                }
                Mode::Inputs(ref slots) => {
                    for &slot in slots {
                        read(self.model.input(node, slot), node);
                    }
                }
                Mode::Preserving if around && self.moves_codes(node, available, wanted) => {
                    read(self.model.input(node, 0), node);
                    whole.extend(self.model.outputs(node).into_iter().flatten());
                }
                _ => {}
            }
            if around && self.gives_codes(node) {
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

//! The first guess of what a node becomes, from the node and the target's table alone, and the words for what stays in
//! float.

use onnx_quant_ir::{DataType, NodeId};
use onnx_quant_numerics::format::{Base, Family, Format, Granularity, Scheme};

use super::placement::{Mode, Placement};
use super::residual;
use crate::codebook_weights::is_indexed;
use crate::ops::{self, Kernel, Linear};
use crate::target::{Role, Use};

impl Placement<'_> {
    pub(super) fn first_guess(&mut self, node: NodeId) -> Mode {
        if let Some(reason) = self.selector.excluded_by(self.model, node) {
            return Mode::Float(reason);
        }
        let choice = self.choices.of(node);
        let layer = matches!(ops::linear(self.model, node), Some(Ok(_)))
            || ops::embedding(self.model, node).is_some()
            || !ops::recurrent(self.model, node).is_empty();
        if layer && choice.weights.is_none() {
            let reason = choice.weights_reason.as_deref();
            return Mode::Float(reason.unwrap_or("weights stay in float").to_owned());
        }
        let guess = match ops::linear(self.model, node) {
            Some(Err(_)) if self.takes_product(node) => self.product(node),
            Some(Err(reason)) => Mode::Float(reason),
            Some(Ok(linear)) => self.linear(node, linear),
            None => self.other(node),
        };
        self.without_weight_only(node, guess)
    }

    /// A linear operator with a constant weight.
    fn linear(&mut self, node: NodeId, mut linear: Linear) -> Mode {
        if let Some(reason) = self.left_out(node, linear.weight) {
            return Mode::Float(reason);
        }
        let n = self.model.node(node);
        let grouped = n.is("ConvTranspose") && n.attr_i("group").unwrap_or(1) != 1;
        if grouped && !self.target.grouped_transpose_scales {
            linear.axis = None;
        }
        let kernel = match self.target.role(n.op_type()) {
            Some(Role::NoKernel(why)) => Some(why),
            Some(_) => None,
            None => Some("the target's table does not have it"),
        };
        if let Some(reason) = self.format_refusal(node) {
            return Mode::Float(reason);
        }
        self.linears.insert(node, linear);
        if self.settings.dynamic {
            return match kernel
                .map(str::to_owned)
                .or_else(|| self.not_dynamic(node, linear.weight))
            {
                Some(why) => Mode::WeightOnly(why),
                None => Mode::Integer,
            };
        }
        let why = match (linear.kernel, kernel) {
            _ if !self.activations(node) => self.no_activations(node),
            (_, Some(why)) | (Kernel::None(why), _) => why,
            _ if self.weights_alone(node) => "its weights are read in a format for weights alone",
            _ if self.is_indexed(node) => {
                "weights that are indices into a table have no integer kernel"
            }
            _ if self.mixed_signs(node) => {
                "no kernel takes int8 activations with uint8 weights: ask for int8 weights"
            }
            _ => return Mode::Integer,
        };
        Mode::WeightOnly(why.to_owned())
    }

    /// Why an activation before this weight cannot be quantized at run time.
    fn not_dynamic(&self, node: NodeId, slot: usize) -> Option<String> {
        let weight = self.model.input(node, slot).map(|v| self.model.value(v));
        if weight.and_then(|w| w.dtype()) != Some(DataType::Float) {
            return Some("DynamicQuantizeLinear takes FP32 only".to_owned());
        }
        let format = self.choices.of(node).weights?;
        let whole = matches!(
            format.granularity,
            None | Some(Granularity::Tensor | Granularity::Channel)
        );
        let eight = matches!(format.base, Base::INT8 | Base::UINT8);
        (!whole || !eight).then(|| {
            format!("{format} weights have no integer operator: it takes int8 or uint8 for a tensor or a channel")
        })
    }

    /// An LSTM where the target has it with weights of 8 bits; the others calculate in float.
    fn dynamic_recurrent(&self, node: NodeId) -> Mode {
        let op = self.model.node(node).op_type();
        if op != "LSTM" || !self.target.contrib {
            return Mode::WeightOnly(format!(
                "{} has no dynamic integer operator for {op}",
                self.target.title
            ));
        }
        if ops::recurrent(self.model, node).len() != 2 {
            return Mode::WeightOnly("one of its weights is computed at run time".to_owned());
        }
        if self.model.node(node).attr_i("layout").unwrap_or(0) != 0 {
            return Mode::WeightOnly("DynamicQuantizeLSTM knows no layout".to_owned());
        }
        let signed = self
            .choices
            .of(node)
            .weights
            .is_some_and(|f| f.base == Base::INT8);
        match self.not_dynamic(node, 1) {
            Some(why) => Mode::WeightOnly(why),
            None if !signed || self.settings.weight_scheme != Scheme::Symmetric => {
                Mode::WeightOnly("DynamicQuantizeLSTM takes symmetric int8 weights".to_owned())
            }
            None => Mode::Integer,
        }
    }

    /// Whether the weights are asked for as a codebook, signs or trits.
    fn is_indexed(&self, node: NodeId) -> bool {
        let weights = self.choices.of(node).weights;
        weights.is_some_and(|f| is_indexed(f.base))
    }

    /// A product of two activations.
    fn product(&self, node: NodeId) -> Mode {
        match self.left_out(node, 1) {
            Some(reason) => Mode::Float(reason),
            None if self.activations(node) => Mode::Inputs(vec![0, 1]),
            None => Mode::Float(self.no_activations(node).to_owned()),
        }
    }

    fn takes_product(&self, node: NodeId) -> bool {
        self.target.activation_products && ops::activation_product(self.model, node)
    }

    fn other(&self, node: NodeId) -> Mode {
        let op = self.model.node(node).op_type();
        let standard = self.model.node(node).domain().is_empty();
        if ops::embedding(self.model, node).is_some() {
            return match self.left_out(node, 0) {
                Some(reason) => Mode::Float(reason),
                None => {
                    Mode::WeightOnly("rows are looked up in few bits and dequantized".to_owned())
                }
            };
        }
        if !ops::recurrent(self.model, node).is_empty() {
            return match self.left_out(node, 1) {
                Some(reason) => Mode::Float(reason),
                None if self.settings.dynamic => self.dynamic_recurrent(node),
                None => Mode::WeightOnly(format!("{op} has no integer kernel in Q/DQ form")),
            };
        }
        if !self.activations(node) || !standard {
            let reason = self.choices.of(node).activations_reason.clone();
            return Mode::Float(reason.unwrap_or_else(|| self.default_reason(node)));
        }
        match self.target.role(op) {
            Some(Role::Supporting | Role::OneScale) if self.data_is_computed(node) => {
                Mode::Supporting
            }
            Some(Role::SkipBranch) => match residual::skip_slot(self.model, node) {
                Some(slot) => Mode::Inputs(vec![slot]),
                None => Mode::Float(residual::NO_SKIP.to_owned()),
            },
            Some(Role::BehindConv) => Mode::Inputs(vec![0]),
            _ if self.moves(node) => Mode::Preserving,
            _ => Mode::Float(self.default_reason(node)),
        }
    }

    /// Few bits for weights alone, where the target takes them.
    fn without_weight_only(&self, node: NodeId, mode: Mode) -> Mode {
        match mode {
            Mode::WeightOnly(why) if !self.target.weight_only && !self.weights_alone(node) => {
                let base = self.choices.of(node).weights.map_or(Base::INT8, |f| f.base);
                Mode::Float(format!(
                    "{why}; {} takes {} weights only with quantized activations",
                    self.target.title,
                    base.to_string().to_uppercase()
                ))
            }
            other => other,
        }
    }

    /// Why the target does not read a layer's weights in their format; `None` where it does, or no rule says.
    fn format_refusal(&self, node: NodeId) -> Option<String> {
        let format = self.choices.of(node).weights?;
        let op = self.model.node(node).op_type();
        let rule = self.target.format(format.base)?;
        rule.refusal(format, op, self.target.title)
    }

    /// Whether the format of a layer's weights is one that the target reads for weights alone.
    fn weights_alone(&self, node: NodeId) -> bool {
        let format = self.choices.of(node).weights;
        let rule = format.and_then(|f| self.target.format(f.base));
        rule.is_some_and(|r| r.used == Use::Weights) && self.linears.contains_key(&node)
    }

    /// The limit of the target that leaves a node out; a weight's slot is given.
    fn left_out(&self, node: NodeId, weight: usize) -> Option<String> {
        let dtype = self
            .model
            .input(node, weight)
            .and_then(|v| self.model.value(v).dtype());
        if dtype == Some(DataType::Float16) && !self.target.half {
            return Some(format!("{} takes no scales in FP16", self.target.title));
        }
        if self.forced(node) {
            return None;
        }
        let mut limits = self.target.limits.iter();
        limits.find_map(|l| l.refusal(self.model, &self.facts, node, self.target.title))
    }

    /// Whether activations around the node may be quantized.
    fn activations(&self, node: NodeId) -> bool {
        self.choices.of(node).activations.is_some() && !self.settings.dynamic
    }

    /// Why activations around the node stay in float.
    fn no_activations(&self, node: NodeId) -> &str {
        let reason = self.choices.of(node).activations_reason.as_deref();
        reason.unwrap_or("only weights are quantized")
    }

    /// Whether activations are signed and weights are not.
    fn mixed_signs(&self, node: NodeId) -> bool {
        let signed = |f: Option<Format>| {
            let info = f?.base.info();
            (info.family == Family::Integer && info.storage_bits == 8).then_some(info.signed)
        };
        let choice = self.choices.of(node);
        (signed(choice.activations), signed(choice.weights)) == (Some(true), Some(false))
    }

    fn data_is_computed(&self, node: NodeId) -> bool {
        let computed = |slot| {
            let value = self.model.input(node, slot);
            value.is_some_and(|v| self.model.value(v).init.is_none())
        };
        self.data_slots(node).all(computed)
    }

    /// The words for an operator that stays in float.
    pub(super) fn default_reason(&self, node: NodeId) -> String {
        let n = self.model.node(node);
        if !n.domain().is_empty() {
            return format!("operators of the domain `{}` are opaque", n.domain());
        }
        if self.target.role(n.op_type()).is_some() {
            return "one operand is a constant, or nothing around it runs in integers".to_owned();
        }
        if ops::clamp_bounds(self.model, node).is_some() {
            return "no integer operator before it takes it in".to_owned();
        }
        if self.moves(node) {
            return "moves values that are in float".to_owned();
        }
        format!(
            "{} has no integer kernel for {}",
            self.target.title,
            n.op_type()
        )
    }
}

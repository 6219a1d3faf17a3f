//! The verifier: what holds for every model between two passes. All violations are collected.
//!
//! *Structure* — a violation after a pass is a bug of that pass:
//! * **S01** every value has a name that is not empty.
//! * **S02** a name is defined once in its graph, and no subgraph defines the name of a graph around it again.
//! * **S03** every used value is defined, in one way: by a node, as an initializer, or as an input of its graph.
//! * **S04** no graph is cyclic, captures counted.
//! * **S05** a node uses values of its own graph and of the graphs around it only.
//! * **S06** nodes stand in an order in which each value is defined before it is used.
//! * **S07** the slots of a node are used once each and lie below its number of inputs or outputs.
//! * **S08** operators of the standard that are known here have as many inputs and outputs as they may have.
//! * **S09** every domain that a node uses is imported.
//! * **S10** the data of an initializer fits its type and shape.
//! * **S11** inputs are listed once, and inputs and outputs say that they are inputs and outputs.
//! * **S12** the lists of a graph and the arena agree: nodes, initializers, subgraphs.
//!
//! *Types*:
//! * **T01** the declared type and shape of an initializer are those of its data.
//! * **T02** the IR version admits every type that an initializer or a declaration names.
//! * **T03** inputs and outputs of the main graph declare a type.
//!
//! *Quantization* — of QuantizeLinear and DequantizeLinear, where the values in question are constant or known:
//! * **Q01** scales are floats, finite and above zero.
//! * **Q02** the zero point has the type of the codes and the shape of the scale.
//! * **Q03** a scale for each index has one dimension, an axis within the rank, and the axis's length.
//! * **Q04** a scale for each block has the input's shape, with `ceil(D / block_size)` on the axis.
//! * **Q05** INT32 codes have no zero point, or zeros.
//! * **Q06** the scale of a dequantized INT32 bias of Conv, ConvTranspose or Gemm is input scale × weight scale, to a
//!   relative difference of 10⁻⁵ (the product may have been rounded twice to FP32).
//! * **Q07** the operator set knows the type of the codes and of the scale: 8 bit 10, FP8 and 16-bit scales 19, 4 and
//!   16 bit 21, FP4 23, E8M0 24, 2 bit 25, FP6 28.
//! * **Q08** the operator set knows the attributes: `axis` 13, `saturate` 19, `block_size` 21, `output_dtype` 21 (of
//!   DequantizeLinear 23), `precision` 23.

mod arity;
mod quant;
mod structure;
#[cfg(test)]
mod tests;
mod types;

use std::fmt;

use crate::model::Model;
use crate::pass::Violation;

/// A rule that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The rule's number, `S03` for example.
    pub rule: &'static str,
    /// Key of the node or value at fault; empty where the whole model is.
    pub path: String,
    /// What does not hold.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)?;
        if !self.path.is_empty() {
            write!(f, " {}", self.path)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Every violation of every rule, by rule and then in the order of the model. Where the arena itself is broken (S07,
/// S11, S12) the other rules are not looked at.
pub fn verify(model: &Model) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    structure::arena(model, &mut found);
    if found.0.is_empty() {
        structure::check(model, &mut found);
        types::check(model, &mut found);
        quant::check(model, &mut found);
    }
    found.0.sort_by_key(|f| f.rule);
    found.0
}

/// The rules that a pass must keep whatever model it was given: structure, quantization and T02. Wrong declarations
/// that a file brings along (T01, T03) are no pass's fault.
///
/// # Errors
/// The first violations.
pub fn verify_for_pass(model: &Model) -> Result<(), Violation> {
    let mut found = verify(model);
    found.retain(|f| f.rule != "T01" && f.rule != "T03");
    if found.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = found.iter().take(5).map(Finding::to_string).collect();
    let mut text = shown.join("; ");
    if found.len() > shown.len() {
        text.push_str(&format!("; and {} more", found.len() - shown.len()));
    }
    Err(Violation(text))
}

struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, rule: &'static str, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Finding {
            rule,
            path: path.into(),
            message: message.into(),
        });
    }
}

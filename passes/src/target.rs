//! The runtimes that a model can be made for: what each fuses, as data.
//!
//! One table a runtime, in the files of the folder `target`. A [`Target`] says where Q/DQ pairs stand, which formats
//! the kernels take, what an operator is to the runtime ([`Role`]) and which operators it runs slower in integers
//! than in float ([`Limit`]). The search in `assign_precision` reads these tables and knows no runtime by name.

use std::fmt;
use std::str::FromStr;

use onnx_quant_numerics::format::{Base, Format, Granularity, Scheme};

mod choose;
mod formats;
mod generic;
mod limits;
mod onnxruntime;
mod openvino;
mod tensorrt;
mod tract;

pub use choose::{Given, choose};
pub use formats::cannot_run;
pub use limits::Limit;

/// A runtime by the name it is asked for with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum TargetName {
    /// onnxruntime, CPU provider.
    #[default]
    Ort,
    /// TensorRT with explicit quantization.
    TensorRt,
    /// OpenVINO, CPU.
    OpenVino,
    /// tract.
    Tract,
    /// Whatever reads the standard.
    Generic,
}

/// Every target, in the order in which they are listed.
pub const TARGETS: [&Target; 5] = [
    &onnxruntime::TARGET,
    &tensorrt::TARGET,
    &openvino::TARGET,
    &tract::TARGET,
    &generic::TARGET,
];

/// The x86 or ARM instructions that onnxruntime's kernels will use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// x86 without VNNI: products of 8-bit codes are added in 16 bits, which saturate, so weights get 7 bits.
    Avx2,
    /// x86 with VNNI: uint8 activations, int8 weights, all 8 bits.
    Vnni,
    /// ARM: both int8.
    Arm,
}

const ISAS: [(&str, Isa); 3] = [("avx2", Isa::Avx2), ("vnni", Isa::Vnni), ("arm", Isa::Arm)];

/// Where Q/DQ pairs stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// Before and behind an operator: the runtime replaces DQ → operator → Q by one kernel.
    Around,
    /// On the inputs of operators only: the runtime finds the outputs itself.
    Inputs,
}

/// How the bias of an integer operator is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// INT32 with scale input × weight.
    Int32,
    /// Float.
    Float,
}

/// What a Relu or Clip behind an integer operator is to the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clamps {
    /// Taken in where the codes' range makes it redundant: with a zero point at the lowest code.
    Redundant,
    /// Taken in always.
    Fused,
    /// An operator of its own, which the Q stands behind.
    Apart,
}

/// What an operator is to the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A linear operator with an integer kernel, which gives codes where `codes` says so and float values else.
    Linear {
        /// The kernel exists with a quantized output only.
        codes: bool,
    },
    /// A linear operator without one; the reason.
    NoKernel(&'static str),
    /// Has an integer kernel, and gains by it between integer operators only.
    Supporting,
    /// As `Supporting`, with one scale for all inputs and the output.
    OneScale,
    /// An addition that the convolution before one of its inputs takes in; only the other input is quantized.
    SkipBranch,
    /// Its input is quantized where a convolution makes it.
    BehindConv,
}

/// What one operator type is to the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpRule {
    /// The operator type, of the standard's domain.
    pub op: &'static str,
    /// What it is.
    pub role: Role,
}

/// What a runtime does with a number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Kernels take activations and weights in it.
    Both,
    /// It reads weights, dequantizes them, and calculates in float.
    Weights,
}

/// How a runtime reads a number format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatRule {
    /// The format of the codes.
    pub base: Base,
    /// Lengths of blocks with a scale of their own; without any, a tensor or a channel has one.
    pub blocks: &'static [u32],
    /// What for.
    pub used: Use,
    /// The operator types whose weights may have it.
    pub ops: &'static [&'static str],
}

impl FormatRule {
    /// Why weights of this format are not read; `None` where they are.
    pub fn refusal(&self, format: Format, op: &str, title: &str) -> Option<String> {
        let base = self.base;
        if !self.ops.contains(&op) {
            let ops = self.ops.join(" and ");
            return Some(format!("{title} reads {base} weights of {ops} only"));
        }
        let read = match format.weight_granularity() {
            Granularity::Tensor | Granularity::Channel => self.blocks.is_empty(),
            Granularity::Block(n) => self.blocks.contains(&n),
            Granularity::Vsq(_) => false,
        };
        let lengths: Vec<String> = self.blocks.iter().map(u32::to_string).collect();
        let wanted = match self.blocks {
            [] => "with a scale for the tensor or each channel".to_owned(),
            _ => format!("in blocks of {}", lengths.join(" or ")),
        };
        (!read).then(|| format!("{title} reads {base} weights {wanted} only"))
    }
}

/// One sentence of documentation for `onnx-quant targets --explain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// What the rule is about.
    pub topic: &'static str,
    /// What it says.
    pub says: &'static str,
}

/// A runtime.
#[derive(Debug, PartialEq)]
pub struct Target {
    /// Which one.
    pub name: TargetName,
    /// The word on the command line.
    pub word: &'static str,
    /// The runtime's name in sentences.
    pub title: &'static str,
    /// Where pairs stand.
    pub pairs: Pairs,
    /// Formats of activations with integer kernels; the first is the default.
    pub activations: &'static [Base],
    /// Formats of weights with integer kernels; the first is the default.
    pub weights: &'static [Base],
    /// The scheme of activations that alone is taken.
    pub activation_scheme: Option<Scheme>,
    /// The scheme of weights that alone is taken.
    pub weight_scheme: Option<Scheme>,
    /// What operators are.
    pub ops: &'static [OpRule],
    /// Operators that only move values: codes pass through them.
    pub moves: &'static [&'static str],
    /// A product of two activations is quantized.
    pub activation_products: bool,
    /// Operators that stay in float although there is a kernel.
    pub limits: &'static [Limit],
    /// How biases are stored.
    pub bias: Bias,
    /// What becomes of Relu and Clip.
    pub clamps: Clamps,
    /// Weights are stored in few bits where the arithmetic stays in float.
    pub weight_only: bool,
    /// What is read of each number format; where the list is empty, the rest of the table says all.
    pub formats: &'static [FormatRule],
    /// A ConvTranspose with groups has a scale for each input channel; else one for the tensor.
    pub grouped_transpose_scales: bool,
    /// Scales of FP16 models are taken.
    pub half: bool,
    /// The integer operators of the standard are there: QLinearConv, MatMulInteger …
    pub integer_operators: bool,
    /// The operators of `com.microsoft` are there.
    pub contrib: bool,
    /// What a user should know.
    pub rules: &'static [Rule],
}

impl TargetName {
    /// The table of the runtime.
    pub fn rules(self) -> &'static Target {
        TARGETS[self as usize]
    }
}

impl Target {
    /// What an operator type is to the runtime; `None` for those that stay in float.
    pub fn role(&self, op: &str) -> Option<Role> {
        self.ops.iter().find(|r| r.op == op).map(|r| r.role)
    }

    /// The operator types that are quantized.
    pub fn quantized(&self) -> impl Iterator<Item = &'static str> {
        let has_kernel = |r: &&OpRule| !matches!(r.role, Role::NoKernel(_));
        self.ops.iter().filter(has_kernel).map(|r| r.op)
    }

    /// How the number format is read, where the table says so.
    pub fn format(&self, base: Base) -> Option<&'static FormatRule> {
        self.formats.iter().find(|r| r.base == base)
    }

    /// Whether the operator type only moves values.
    pub fn is_move(&self, op: &str) -> bool {
        self.moves.contains(&op)
    }
}

/// A name that is none of a list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no {what} `{name}`{}; there are {known}", near.as_ref().map_or(String::new(), |n| format!(", did you mean `{n}`?")))]
pub struct UnknownName {
    what: &'static str,
    name: String,
    near: Option<String>,
    known: String,
}

fn lookup<T: Copy>(what: &'static str, name: &str, all: &[(&str, T)]) -> Result<T, UnknownName> {
    let score = |n: &str| strsim::normalized_damerau_levenshtein(n, name);
    if let Some((_, found)) = all.iter().find(|(n, _)| *n == name) {
        return Ok(*found);
    }
    let near = all
        .iter()
        .map(|(n, _)| *n)
        .max_by(|a, b| score(a).total_cmp(&score(b)))
        .filter(|n| score(n) > 0.5);
    let known: Vec<&str> = all.iter().map(|(n, _)| *n).collect();
    Err(UnknownName {
        what,
        name: name.to_owned(),
        near: near.map(str::to_owned),
        known: known.join(", "),
    })
}

impl FromStr for TargetName {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        let all: Vec<(&str, TargetName)> = TARGETS.iter().map(|t| (t.word, t.name)).collect();
        lookup("target", text, &all)
    }
}

impl fmt::Display for TargetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.rules().word)
    }
}

impl FromStr for Isa {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        lookup("instruction set", text, &ISAS)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(ISAS[*self as usize].0)
    }
}

const fn op(op: &'static str, role: Role) -> OpRule {
    OpRule { op, role }
}

const fn rule(topic: &'static str, says: &'static str) -> Rule {
    Rule { topic, says }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn tables_stand_in_the_order_of_their_names() {
        for t in TARGETS {
            assert_eq!(t.name.rules().word, t.word);
            assert_eq!(t.word.parse::<TargetName>(), Ok(t.name));
            assert_eq!(t.name.to_string(), t.word);
        }
        for (word, isa) in ISAS {
            assert_eq!(word.parse::<Isa>(), Ok(isa));
            assert_eq!(isa.to_string(), word);
        }
    }

    #[test]
    fn no_operator_has_two_roles() {
        for t in TARGETS {
            for (i, r) in t.ops.iter().enumerate() {
                let again = t.ops[i + 1..].iter().any(|o| o.op == r.op);
                assert!(!again && !t.is_move(r.op), "{}: {}", t.word, r.op);
            }
        }
    }

    #[test]
    fn a_wrong_name_is_told_with_a_near_one() {
        let e = "tensort".parse::<TargetName>().unwrap_err().to_string();
        assert!(e.contains("did you mean `tensorrt`"), "{e}");
        let e = "xyz".parse::<Isa>().unwrap_err().to_string();
        assert!(e.contains("avx2, vnni, arm") && !e.contains("mean"), "{e}");
    }
}

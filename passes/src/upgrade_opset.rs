//! Rewrites a model from an older version of the standard's operator set to a newer one.
//!
//! **What it does.** Walks version by version from the model's opset to the target (21, or the option `to`, at most 25).
//! For each version, every operator that got a new definition in it is looked up in one table, which says that old and
//! new agree for old models, how to rewrite, or why there is no way. Nodes inside bodies are rewritten where they stand.
//! Before that every operator of the standard's domain is checked to exist in the model's opset.
//!
//! **Before → After** (the changes that are more than a new type):
//! * attributes become inputs: axes of `Squeeze`, `Unsqueeze`, `ReduceSum` (13) and the other reductions (18), `split`
//!   (13), `min` and `max` of `Clip` (11), `pads` and `value` of `Pad` (11), `starts`, `ends`, `axes` of `Slice` (10), `k`
//!   of `TopK` (10), `ratio` of `Dropout` (12), `axis` of `DFT` (20);
//! * `Softmax`, `LogSoftmax`, `Hardmax` (13): before, all axes from `axis` on were one; where that is not a single axis
//!   anyway, `Flatten → Softmax → Reshape`;
//! * `Upsample` → `Resize` (10), `Resize` (11, 13): the coordinates that were implied are written out; `Scatter` →
//!   `ScatterElements` (11); `RoiAlign` (16) keeps its old sampling; `GridSample` (20) has new names for its modes;
//!   `GroupNormalization` (21) has parameters for each channel, not for each group; `Split` (18) counts its outputs;
//!   `BatchNormalization` loses `spatial` (9).
//!
//! **When it does not fire.** The model is at the target or beyond: it is never lowered. Other domains are opaque. Local
//! functions have opsets of their own and stay as they are, which a note says. Errors, with operator and node: an
//! opset older than 7; an unknown operator; `Scan` of opset 8; a `BatchNormalization` that trains or has
//! `spatial = 0`; a `Dropout` whose mask is used; a `Resize` with `tf_half_pixel_for_nn` other than
//! nearest and floor; `Clip` and `Pad` on a value of unknown type, in a model of several float types.
//!
//! **Invariants kept.** Signature, names of nodes and values that stay, outputs bit for bit. Types and shapes are inferred
//! where the file does not declare them. Three notes can appear, two where the old definition was wider than what
//! models use: a `Resize` of opset 10 whose scales are not constant is taken to enlarge, and indices of a `OneHot` of
//! opset 9 are taken not to be negative. The third: a value whose type is unknown is taken to have the only float
//! type of the model.
//!
//! **Opset notes.** 7 to 20 are read; newer ones up to 28 are only checked. The IR version is raised to the one that came with
//! the target (10 for 21).
//!
//! **References.** ONNX standard, `docs/Changelog.md`; the schema history in `upgrade_opset/schema.rs`.

mod arguments;
mod facts;
mod resize;
mod rules;
mod schema;
mod semantics;

use onnx_quant_ir::pass::{Changed, Pass, PassContext, PassError, PassInfo};
use onnx_quant_ir::{Model, Names, NodeId, Tensor, ValueId};

use facts::Known;
use rules::Action;

/// The opset that a full run writes.
pub const DEFAULT_OPSET: i64 = 21;
/// The oldest opset that is understood.
pub const OLDEST_OPSET: i64 = 7;
/// The newest opset that can be asked for.
pub const NEWEST_TARGET: i64 = 25;

/// Rewrites a model to a newer version of the standard's operator set.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpgradeOpset;

static INFO: PassInfo = PassInfo {
    name: "upgrade_opset",
    summary: "Rewrites a model of opset 7 to 20 to opset 21, or to the option `to`",
    source: include_str!("upgrade_opset.rs"),
    exact: true,
};

impl Pass for UpgradeOpset {
    fn info(&self) -> &'static PassInfo {
        &INFO
    }

    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError> {
        let to = target(cx)?;
        let from = match model.opset("") {
            Some(from) => from,
            None => no_opset(model, to)?,
        };
        check_known(model, from)?;
        if model.opset("").is_some() && from >= to {
            return Ok(Changed::No);
        }
        let functions = model.header.functions.len();
        if functions > 0 {
            cx.note(format!(
                "{functions} local functions keep their own opset: inline them first"
            ));
        }
        let known = Known::of(model);
        let mut upgrade = Upgrade {
            model,
            known,
            cx,
            to,
            names: None,
        };
        for version in from + 1..=to {
            upgrade.step(version)?;
        }
        set_opset(model, to);
        let ir = ir_version(to);
        if model.header.ir_version() < ir {
            model.header.ir_version = Some(ir);
        }
        Ok(Changed::Yes)
    }
}

fn error(message: String) -> PassError {
    PassError::new(INFO.name, message)
}

fn target(cx: &PassContext) -> Result<i64, PassError> {
    let Some(text) = cx.option("to") else {
        return Ok(DEFAULT_OPSET);
    };
    match text.parse() {
        Ok(to) if (OLDEST_OPSET..=NEWEST_TARGET).contains(&to) => Ok(to),
        _ => Err(error(format!(
            "to={text}: an opset from {OLDEST_OPSET} to {NEWEST_TARGET} is needed"
        ))),
    }
}

/// A model that does not import the standard's operators may not use them; it is as good as new.
fn no_opset(model: &Model, to: i64) -> Result<i64, PassError> {
    let all = model.all_nodes();
    match all.iter().find(|&&n| is_standard(model, n)) {
        None => Ok(to),
        Some(&n) => Err(error(format!(
            "{} `{}` is an operator of the standard, but the model does not import its operator set",
            model.node(n).op_type(),
            model.node_key(n)
        ))),
    }
}

/// Whether the node is an operator of the standard's own domain, and no call of a local function.
fn is_standard(model: &Model, node: NodeId) -> bool {
    let n = model.node(node);
    n.domain().is_empty()
        && !model
            .header
            .functions
            .iter()
            .any(|f| matches!(f.domain(), "" | "ai.onnx") && f.name() == n.op_type())
}

/// Every operator of the standard's domain exists in the model's opset.
fn check_known(model: &Model, opset: i64) -> Result<(), PassError> {
    if opset < OLDEST_OPSET {
        let m =
            format!("opset {opset} is older than {OLDEST_OPSET}, the oldest that is understood");
        return Err(error(m));
    }
    if opset > schema::NEWEST {
        let newest = schema::NEWEST;
        let m = format!("opset {opset} is newer than {newest}, the newest that is known here");
        return Err(error(m));
    }
    for node in model.all_nodes() {
        if !is_standard(model, node) {
            continue;
        }
        let op = model.node(node).op_type();
        let fail = |what: String| {
            let key = model.node_key(node);
            Err(error(format!("op {op} (node `{key}`) {what}")))
        };
        let known = schema::OPERATORS.binary_search_by_key(&op, |(name, _)| name);
        match known.map(|i| schema::OPERATORS[i].1[0]) {
            Err(_) => return fail(format!("is unknown in opset {opset} of the standard")),
            Ok(since) if since > opset => {
                return fail(format!(
                    "is unknown in opset {opset} of the standard: it came with opset {since}"
                ));
            }
            Ok(_) => {}
        }
        if let Some((_, gone)) = schema::WITHDRAWN.iter().find(|(name, _)| *name == op)
            && opset >= *gone
        {
            return fail(format!(
                "is unknown in opset {opset} of the standard: it went with opset {gone}"
            ));
        }
    }
    Ok(())
}

/// Imports the standard's operators in one version, under one of their two names.
fn set_opset(model: &mut Model, to: i64) {
    model.set_opset("", to);
    let mut seen = false;
    model.header.opset_import.retain(|o| {
        let standard = matches!(o.domain(), "" | "ai.onnx");
        !standard || !std::mem::replace(&mut seen, true)
    });
}

/// Whether an operator of the standard's domain that was written for one opset means the same in another: nothing
/// but compatible changes lies between, or none at all where the other is older.
pub(crate) fn same_definition(op: &str, written: i64, read: i64) -> bool {
    let known = schema::OPERATORS.binary_search_by_key(&op, |(name, _)| name);
    let Ok(i) = known else { return false };
    let at = |opset| schema::OPERATORS[i].1.iter().rfind(|&&v| v <= opset);
    if written < read && read <= NEWEST_TARGET {
        return written >= OLDEST_OPSET
            && at(written).is_some()
            && (written + 1..=read).all(|v| rules::action(op, v).is_none());
    }
    at(written).is_some() && at(written) == at(read)
}

/// The IR version that the standard published together with an opset.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=8 => 3,
        9 => 4,
        10 => 5,
        11 => 6,
        12..=14 => 7,
        15..=18 => 8,
        19 | 20 => 9,
        21 | 22 => 10,
        23 => 11,
        24 => 12,
        25..=27 => 13,
        _ => 14,
    }
}

/// Why a node cannot be rewritten.
type Refusal = String;

/// What a rewrite works with.
struct Upgrade<'a> {
    model: &'a mut Model,
    known: Known,
    cx: &'a mut PassContext,
    /// The opset at the end of the walk. A rewrite may leave out what a later version makes optional.
    to: i64,
    /// Names in use, gathered when the first new one is needed.
    names: Option<Names>,
}

impl Upgrade<'_> {
    /// Brings every node from `version − 1` to `version`.
    fn step(&mut self, version: i64) -> Result<(), PassError> {
        for node in self.model.all_nodes() {
            if !is_standard(self.model, node) {
                continue;
            }
            let op = self.model.node(node).op_type().to_owned();
            let done = match rules::action(&op, version) {
                None => Ok(()),
                Some(Action::Rewrite(rewrite)) => rewrite(self, node),
                Some(Action::Refuse(why)) => Err((*why).to_owned()),
            };
            done.map_err(|why| {
                let key = self.model.node_key(node);
                let old = version - 1;
                error(format!(
                    "op {op} (node `{key}`) cannot be upgraded from opset {old} to {version}: {why}"
                ))
            })?;
        }
        Ok(())
    }

    /// A name that nothing has yet: the node's with a suffix.
    fn fresh(&mut self, node: NodeId, suffix: &str) -> String {
        let wanted = format!("{}_{suffix}", self.model.node_label(node));
        self.names
            .get_or_insert_with(|| self.model.names())
            .fresh(&wanted)
    }

    /// Adds a constant beside a node, named after it.
    fn constant(&mut self, node: NodeId, suffix: &str, tensor: Tensor) -> ValueId {
        let name = self.fresh(node, suffix);
        let graph = self.model.node(node).graph;
        self.model.add_initializer(graph, &name, tensor)
    }

    /// Puts a new constant into an input slot.
    fn set_constant(&mut self, node: NodeId, slot: usize, suffix: &str, tensor: Tensor) {
        let v = self.constant(node, suffix, tensor);
        self.model.set_input(node, slot, Some(v));
    }

    /// Tells the user something about a node.
    fn note(&mut self, node: NodeId, what: &str) {
        let n = self.model.node(node);
        let message = format!("{} `{}`: {what}", n.op_type(), self.model.node_key(node));
        self.cx.note(message);
    }
}

#[cfg(test)]
mod tests;

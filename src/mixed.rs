//! Mixed precision: how much each layer suffers from each format, the best choice under a budget, and its proof.
//!
//! `analyze` measures ([`analyze`], [`sensitivity`]), `assign` chooses ([`assign`], [`search`]), and the choice is a
//! file that people can read and edit ([`plan_file`]).

pub mod analyze;
pub mod assign;
pub mod auto;
mod cache;
pub mod candidates;
mod chunks;
pub mod digest;
mod errors;
mod exchange;
pub mod judge;
mod layers;
pub mod loss;
mod measure;
#[cfg(feature = "config")]
pub mod plan_file;
mod refine;
pub mod search;
pub mod sensitivity;
pub mod settings_text;
mod sums;
mod ties;
mod variant;

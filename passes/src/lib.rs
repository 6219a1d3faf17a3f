//! Every transformation and analysis of a graph: one file each, and the table that lists them.
//!
//! To add a pass: write `src/NAME.rs` (copy the head of `drop_unused.rs`), list it in [`registry`], and give it cases.

pub mod registry;

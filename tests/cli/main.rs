//! The program from end to end: its commands, what it does with bad input, and the commands of the README.
#![expect(clippy::unwrap_used, reason = "tests")]

mod bad_input;
mod book;
mod calibrate;
mod codebook;
mod commands;
mod config;
mod data;
mod engine;
mod formats;
mod mixed;
mod optimize;
mod readme;
mod report;
mod sandbox;
mod text;

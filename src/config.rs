//! Configuration files: what the command line can say, as keys of `onnx-quant.toml`.
//!
//! The keys are not listed anywhere: they are the options of the command, by their long names, so that every option can
//! be configured. Keys at the top belong to `quantize`; a table with the name of another command holds that command's;
//! `[profile.NAME]` holds both again, and is in force with `--profile NAME`. `[[layer]]` tables are the values of
//! `--layer`. What the command line gives wins over a profile, and a profile over the rest of the file.
//!
//! Relative paths in a file start from the folder of the file.

pub mod file;
pub mod init;
pub mod merge;
pub mod schema;

/// The name under which a configuration is looked for: beside the model, then in the working directory.
pub const NAME: &str = "onnx-quant.toml";

/// What is wrong with a configuration, with file and line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

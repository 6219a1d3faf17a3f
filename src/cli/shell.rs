//! Shell completions and manual pages, made from the options themselves.

use std::path::{Path, PathBuf};

use clap_complete::Shell;
use onnx_quant::ir::save;

use super::{Outcome, command, output};

/// The options of `completions`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  onnx-quant completions bash > ~/.local/share/bash-completion/completions/onnx-quant")]
pub(crate) struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Runs `completions`.
pub(crate) fn completions(args: &CompletionArgs) -> anyhow::Result<Outcome> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "onnx-quant", &mut text);
    output::print(&String::from_utf8_lossy(&text))?;
    Ok(Outcome::Done)
}

/// The options of `man`.
#[derive(Debug, clap::Args)]
pub(crate) struct ManArgs {
    /// Write a page for each command into this folder [default: print the page of the program]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Runs `man`.
pub(crate) fn man(args: &ManArgs) -> anyhow::Result<Outcome> {
    let mut program = command();
    program.build();
    let Some(folder) = &args.out else {
        output::print(&String::from_utf8_lossy(&page(&program)?))?;
        return Ok(Outcome::Done);
    };
    std::fs::create_dir_all(folder)
        .map_err(|e| anyhow::anyhow!("cannot make the folder {}: {e}", folder.display()))?;
    write(folder, "onnx-quant", &program)?;
    for sub in program.get_subcommands().filter(|s| s.get_name() != "help") {
        write(folder, &format!("onnx-quant-{}", sub.get_name()), sub)?;
    }
    Ok(Outcome::Done)
}

fn page(command: &clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut text)?;
    Ok(text)
}

fn write(folder: &Path, name: &str, command: &clap::Command) -> anyhow::Result<()> {
    let text = page(command)?;
    let path = folder.join(format!("{name}.1"));
    save::write_atomically(&path, |f| f.write_all(&text))?;
    Ok(())
}

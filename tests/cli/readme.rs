//! The README: its commands run, in order, in one folder; its options exist; every option is in it.

use std::collections::BTreeSet;

use super::sandbox::Sandbox;

fn readme() -> &'static str {
    include_str!("../../README.md")
}

/// The commands of the `sh` blocks, one line each: continued lines are joined, and comments stay.
fn commands() -> Vec<String> {
    let mut found = Vec::new();
    for block in readme().split("```sh\n").skip(1) {
        let block = block.split("```").next().unwrap_or("").replace("\\\n", " ");
        found.extend(block.lines().map(|l| l.trim().to_owned()));
    }
    found.retain(|l| !l.is_empty() && !l.starts_with('#'));
    found
}

/// Commands for people who build the program: they are named here because a test cannot run them.
const NOT_RUN: [&str; 3] = [
    "cargo test --workspace",
    "cargo install --path .",
    "cargo run --release -p demo-trainer -- --check",
];

#[test]
fn every_command_runs() {
    let dir = Sandbox::new();
    let mut ran = 0;
    for command in commands() {
        let (line, comment) = command.split_once('#').unwrap_or((&command, ""));
        let line = line.trim();
        if NOT_RUN.contains(&line) {
            continue;
        }
        let args = line
            .strip_prefix("onnx-quant ")
            .or_else(|| line.strip_prefix("cargo run --release -- "));
        let args = args.unwrap_or_else(|| panic!("`{line}` is no command of this program"));
        let args: Vec<String> = args
            .split_whitespace()
            .map(|a| a.trim_matches('\'').to_owned())
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let code = comment.trim().strip_prefix("exit code ");
        let code = code.map_or(0, |c| c.parse().unwrap());
        let done = dir.run(&args).ends(code);
        if code == 2 {
            let error = done.stderr.lines().last().unwrap();
            assert!(readme().contains(error), "README.md does not show: {error}");
        }
        ran += 1;
    }
    assert!(ran >= 8, "only {ran} commands were found");
}

fn help(command: &str) -> String {
    Sandbox::new().run(&[command, "--help"]).ends(0).stdout
}

/// Words of the form `--name`.
fn options(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|w| w.len() > 3 && w.starts_with("--") && !w.starts_with("---"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn options_of_the_readme_exist_and_none_is_missing() {
    let commands = [
        "analyze",
        "assign",
        "calibrate",
        "completions",
        "config",
        "export-encodings",
        "init",
        "man",
        "demo",
        "quantize",
        "check",
        "run",
        "inspect",
        "diff",
        "passes",
        "targets",
        "formats",
        "rewrite",
        "compress",
        "decompress",
    ];
    let mut known = options("--version --workspace --path --release");
    for c in commands {
        known.extend(options(&help(c)));
    }
    let told = options(readme());
    let unknown: Vec<&String> = told.difference(&known).collect();
    assert!(unknown.is_empty(), "the program has no {unknown:?}");
    let quantize = options(&help("quantize"));
    let missing: Vec<&String> = quantize
        .difference(&told)
        .filter(|o| *o != "--help")
        .collect();
    assert!(missing.is_empty(), "README.md does not tell {missing:?}");
}

/// The options of a help text that have a default: name and default.
fn defaults(help: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut option = String::new();
    for line in help.lines() {
        if let Some(at) = line
            .trim_start()
            .strip_prefix("--")
            .or_else(|| line.trim_start().strip_prefix("-o, --"))
        {
            option = at.split_whitespace().next().unwrap_or("").to_owned();
        }
        if let Some((_, rest)) = line.split_once("[default: ") {
            let (value, whole) = rest.split_once(']').unwrap_or((rest, ""));
            // A default with spaces, or with its end on another line, is a sentence and not a value.
            if !value.contains(' ') && value.len() + whole.len() < rest.len() {
                found.push((format!("--{option}"), value.to_owned()));
            }
        }
    }
    found
}

#[test]
fn defaults_of_the_readme_are_those_of_the_program() {
    let all = defaults(&help("quantize"));
    let mut checked = 0;
    for (option, default) in &all {
        let row = readme()
            .lines()
            .find(|l| l.starts_with('|') && l.contains(&format!("`{option}")));
        let Some(row) = row else { continue };
        checked += 1;
        assert!(
            row.contains(default.as_str()),
            "{option} is {default} by default:\n{row}"
        );
    }
    assert!(checked >= 5, "{all:?}");
}

//! The book: its commands run in order in one folder, its output is that of the program, its reference is made here.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use onnx_quant::passes::registry;

use super::sandbox::{Ran, Sandbox};

fn source(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/src")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(source(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn updates() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

/// The chapters in the order of the summary.
fn chapters() -> Vec<String> {
    let summary = read("SUMMARY.md");
    let link = |l: &str| Some(l.split_once("](")?.1.split(')').next()?.to_owned());
    summary.lines().filter_map(link).collect()
}

fn run(dir: &Sandbox, line: &str) -> Ran {
    let words: Vec<&str> = line
        .split_whitespace()
        .map(|w| w.trim_matches('\''))
        .collect();
    assert_eq!(words.first(), Some(&"onnx-quant"), "{line}");
    dir.run(&words[1..]).ends(0)
}

/// The first word of every line that is not indented, of equal ones in a row one: what changes neither with every digit
/// nor with the processor that the model is run on.
fn outline(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|l| !l.starts_with(' '));
    let word = |l: &str| l.split_whitespace().next().map(str::to_owned);
    let mut words: Vec<String> = lines.filter_map(word).collect();
    words.dedup();
    words
}

/// A page with the output of its commands put into the block after each mark.
fn with_output(dir: &Sandbox, text: &str) -> String {
    let Some((before, rest)) = text.split_once("<!-- output of: ") else {
        return text.to_owned();
    };
    let (command, rest) = rest.split_once(" -->\n```text\n").unwrap();
    let (shown, after) = rest.split_once("```\n").unwrap();
    let said = run(dir, command).stdout;
    if !updates() {
        assert_eq!(
            outline(shown),
            outline(&said),
            "`{command}` prints something else: UPDATE_DOCS=1 cargo test --test cli book writes it\n{said}"
        );
    }
    format!(
        "{before}<!-- output of: {command} -->\n```text\n{said}```\n{}",
        with_output(dir, after)
    )
}

#[test]
fn every_command_of_the_book_runs() {
    let dir = Sandbox::new();
    let mut ran = 0;
    let made = |c: &String| c == "commands.md" || c == "passes.md";
    for chapter in chapters().into_iter().filter(|c| !made(c)) {
        let text = read(&chapter);
        for block in text.split("```sh\n").skip(1) {
            for line in block.split("```").next().unwrap_or("").lines() {
                run(&dir, line);
                ran += 1;
            }
        }
        let fresh = with_output(&dir, &text);
        if updates() && fresh != text {
            std::fs::write(source(&chapter), fresh).unwrap();
        }
    }
    assert!(ran >= 15, "only {ran} commands were found");
}

/// What is made from the program is what the repository holds.
fn is_current(file: &Path, text: &str) {
    if std::fs::read_to_string(file).ok().as_deref() == Some(text) {
        return;
    }
    assert!(
        updates(),
        "{} is old: UPDATE_DOCS=1 cargo test --test cli book writes it",
        file.display()
    );
    std::fs::write(file, text).unwrap();
}

#[test]
fn the_reference_of_commands_is_current() {
    let dir = Sandbox::new();
    let mut text = String::from(
        "# Commands\n\nMade from the program. `onnx-quant COMMAND --help` prints the same.\n",
    );
    let mut program = onnx_quant::cli::command();
    program.build();
    for command in program.get_subcommands().filter(|c| c.get_name() != "help") {
        let name = command.get_name();
        let help = dir.run(&[name, "--help"]).ends(0).stdout;
        let help: Vec<&str> = help.lines().map(str::trim_end).collect();
        let _ = write!(
            text,
            "\n## {name}\n\n```text\n{}\n```\n",
            help.join("\n").trim_end()
        );
    }
    assert!(text.contains("\n## quantize\n") && text.contains("--max-drop"));
    is_current(&source("commands.md"), &text);
}

#[test]
fn the_reference_of_passes_is_current() {
    let mut text = String::from(
        "# Passes\n\nMade from the heads of their files. `onnx-quant passes --explain NAME` prints the same.\n",
    );
    for pass in registry::all() {
        let info = pass.info();
        // Headings of a pass stand below the pass.
        let body: Vec<String> = info
            .explain()
            .lines()
            .map(|l| match l.strip_prefix("# ") {
                Some(heading) => format!("### {heading}"),
                None => l.to_owned(),
            })
            .collect();
        let _ = write!(
            text,
            "\n## {}\n\n{}\n",
            info.name,
            body.join("\n").trim_end()
        );
    }
    assert!(text.contains("\n## insert_qdq\n") && text.contains("### When it does not fire"));
    is_current(&source("passes.md"), &text);
}

#[test]
fn the_schema_of_the_configuration_is_current() {
    let text = Sandbox::new().line("config --schema").ends(0).stdout;
    is_current(&source("../onnx-quant.schema.json"), &text);
}

#[test]
fn links_of_the_book_lead_somewhere() {
    for chapter in chapters() {
        let text = read(&chapter);
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or("");
            let local = !target.contains("://") && !target.starts_with('#');
            if local {
                assert!(source(target).exists(), "{chapter} links to {target}");
            }
        }
    }
}

//! The conventions of the repository, as tests: layering, heads of files, passes and what belongs to them, words that
//! must not be committed.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use onnx_quant::passes::registry;
use onnx_quant::pipeline::{NORMALIZE, RECOVER, REWRITE};

/// Lines that a file may have.
const LONGEST: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files of the repository below a folder with one of these endings, sorted; without what builds leave behind.
fn files(folder: &str, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if !["target", ".git", ".venv", "__pycache__"].contains(&name.as_str()) {
                    open.push(path);
                }
            } else if endings.iter().any(|e| name.ends_with(e)) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

fn folders(parent: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(root().join(parent)).unwrap();
    entries
        .map(|e| e.unwrap())
        .filter(|e| e.path().is_dir())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect()
}

fn report(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Lines of the files that hold one of the words.
fn lines_with(files: &[PathBuf], words: &[&str]) -> Vec<String> {
    let mut faults = Vec::new();
    for path in files {
        for (i, line) in read(path).lines().enumerate() {
            for word in words.iter().filter(|w| line.contains(**w)) {
                faults.push(format!("{}:{}: `{word}`", name(path), i + 1));
            }
        }
    }
    faults
}

#[test]
fn every_file_says_what_it_is_for() {
    let faults: Vec<String> = files("", &[".rs"])
        .iter()
        .filter(|p| !read(p).starts_with("//!"))
        .map(|p| format!("{}: no `//!` on its first line", name(p)))
        .collect();
    report(&faults);
}

#[test]
fn files_are_short() {
    let long = |p: &PathBuf| {
        let lines = read(p).lines().count();
        (lines > LONGEST).then(|| format!("{}: {lines} lines", name(p)))
    };
    let faults: Vec<String> = files("", &[".rs", ".py"]).iter().filter_map(long).collect();
    report(&faults);
}

#[test]
fn rooms_know_only_the_rooms_below_them() {
    let above = [
        (
            "proto",
            vec![
                "onnx_quant_ir",
                "onnx_quant_numerics",
                "onnx_quant_passes",
                "onnx_quant::",
            ],
        ),
        (
            "ir",
            vec![
                "onnx_quant_numerics",
                "onnx_quant_passes",
                "onnx_quant::",
                "tract",
            ],
        ),
        (
            "numerics",
            vec![
                "onnx_quant_proto",
                "onnx_quant_ir",
                "onnx_quant_passes",
                "onnx_quant::",
            ],
        ),
        ("passes", vec!["onnx_quant::", concat!("tract", "_")]),
    ];
    let mut faults = Vec::new();
    for (room, forbidden) in above {
        let sources = files(&format!("{room}/src"), &[".rs"]);
        assert!(!sources.is_empty(), "{room} has no sources");
        let uses = |line: &str| !line.trim_start().starts_with("//");
        for path in sources {
            for (i, line) in read(&path).lines().enumerate().filter(|(_, l)| uses(l)) {
                for word in forbidden.iter().filter(|w| line.contains(**w)) {
                    faults.push(format!("{}:{}: `{word}`", name(&path), i + 1));
                }
            }
        }
    }
    report(&faults);
}

#[test]
fn the_engine_alone_knows_tract() {
    let others: Vec<PathBuf> = files("", &[".rs"])
        .into_iter()
        .filter(|p| {
            !name(p).starts_with("src/engine/tract") && !name(p).starts_with("tests/engine")
        })
        .collect();
    report(&lines_with(
        &others,
        &[
            concat!("tract", "_onnx"),
            concat!("tract", "_core"),
            concat!("tract", "_data"),
        ],
    ));
}

#[test]
fn crates_share_edition_licence_and_lints() {
    let mut faults = Vec::new();
    for path in files("", &["Cargo.toml"]) {
        // A crate as a user has it, of a workspace of its own.
        if name(&path).starts_with("examples/") {
            continue;
        }
        let text = read(&path);
        for line in [
            "edition.workspace = true",
            "rust-version.workspace = true",
            "license.workspace = true",
            "[lints]\nworkspace = true",
        ] {
            if !text.contains(line) {
                faults.push(format!("{}: `{line}` is missing", name(&path)));
            }
        }
    }
    report(&faults);
}

#[test]
fn nothing_unfinished_is_committed() {
    let words = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[", "ignore"),
        concat!("FIX", "ME"),
        concat!("TO", "DO:"),
        concat!("X", "XX"),
    ];
    report(&lines_with(
        &files("", &[".rs", ".py", ".md", ".toml"]),
        &words,
    ));
}

#[test]
fn no_text_names_a_machine_or_a_ticket() {
    let texts = files(
        "",
        &[
            ".rs", ".py", ".md", ".toml", ".onnxtxt", ".snap", ".proto", "run",
        ],
    );
    let paths = [
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/wo", "rk/"),
        concat!("C:", "\\Users"),
    ];
    let mut faults = lines_with(&texts, &paths);
    for path in &texts {
        for (i, line) in read(path).lines().enumerate() {
            if names_a_ticket(line) {
                faults.push(format!("{}:{}: {line}", name(path), i + 1));
            }
        }
    }
    report(&faults);
}

/// A number after the word for a ticket, or after a bracket and the sign for numbers.
fn names_a_ticket(line: &str) -> bool {
    let lower = line.to_lowercase();
    let number_after = |mark: &str| {
        lower.match_indices(mark).any(|(at, _)| {
            let rest = lower[at + mark.len()..].trim_start_matches('#');
            rest.starts_with(|c: char| c.is_ascii_digit())
        })
    };
    ["issue ", "issues ", "pull request ", "(#", "fixes #"]
        .iter()
        .any(|m| number_after(m))
}

#[test]
fn tickets_are_recognized() {
    for line in [
        concat!("see iss", "ue 12"),
        concat!("Iss", "ue #3 says"),
        concat!("done (", "#7)"),
    ] {
        assert!(names_a_ticket(line), "{line}");
    }
    assert!(!names_a_ticket("the issue is closed; r#\"raw\"#; #[test]"));
}

fn registered() -> BTreeSet<String> {
    registry::all()
        .iter()
        .map(|p| p.info().name.to_owned())
        .collect()
}

#[test]
fn every_pass_is_one_file() {
    let files: BTreeSet<String> = files("passes/src", &[".rs"])
        .iter()
        .filter(|p| read(p).contains("static INFO: PassInfo"))
        .map(|p| stem(p))
        .collect();
    assert_eq!(files, registered(), "left: files, right: registry");
    for pass in registry::all() {
        let path = root()
            .join("passes/src")
            .join(format!("{}.rs", pass.info().name));
        assert_eq!(
            read(&path),
            pass.info().source,
            "{}: `source` is not its own file",
            pass.info().name
        );
    }
}

#[test]
fn the_registry_has_no_name_twice() {
    assert_eq!(registered().len(), registry::all().len());
}

#[test]
fn pipelines_name_passes_that_exist() {
    let known = registered();
    for name in NORMALIZE.iter().chain(RECOVER).chain(REWRITE) {
        assert!(known.contains(*name), "no pass `{name}`");
    }
}

#[test]
fn the_head_of_a_pass_has_its_parts() {
    let parts = [
        "What it does",
        "Before → After",
        "When it does not fire",
        "Invariants kept",
        "Opset notes",
        "References",
    ];
    let mut faults = Vec::new();
    for pass in registry::all() {
        let text = pass.info().explain();
        let has =
            |part: &str| text.contains(&format!("# {part}")) || text.contains(&format!("**{part}"));
        for part in parts.iter().filter(|p| !has(p)) {
            faults.push(format!("{}: `{part}` is missing", pass.info().name));
        }
    }
    report(&faults);
}

#[test]
fn every_pass_has_cases_and_every_case_a_snapshot() {
    let cases = folders("passes/cases");
    assert_eq!(cases, registered(), "left: case folders, right: registry");
    let mut faults = Vec::new();
    for pass in &cases {
        let stems = |folder: &str, ending: &str| -> BTreeSet<String> {
            files(&format!("{folder}/{pass}"), &[ending])
                .iter()
                .map(|p| stem(p))
                .collect()
        };
        let cases = stems("passes/cases", ".onnxtxt");
        let snapshots = stems("snapshots", ".snap");
        let errors = |case: &String| {
            let path = root()
                .join("passes/cases")
                .join(pass)
                .join(format!("{case}.onnxtxt"));
            read(&path).contains("expect: error")
        };
        for case in cases.difference(&snapshots).filter(|c| !errors(c)) {
            faults.push(format!("{pass}/{case}: no snapshot"));
        }
        for snapshot in snapshots.difference(&cases) {
            faults.push(format!("snapshots/{pass}/{snapshot}.snap: no case"));
        }
    }
    report(&faults);
}

#[test]
fn every_snapshot_is_used() {
    let sources: String = files("", &[".rs"]).iter().map(|p| read(p)).collect();
    let passes = registered();
    let unused = |p: &PathBuf| {
        let room = stem(p.parent().unwrap());
        let used = passes.contains(&room) || sources.contains(&format!("\"{}\"", stem(p)));
        (!used).then(|| format!("{}: no test names it", name(p)))
    };
    let faults: Vec<String> = files("", &[".snap"]).iter().filter_map(unused).collect();
    report(&faults);
    let inside = |p: &PathBuf| name(p).starts_with("snapshots/");
    assert!(
        files("", &[".snap"]).iter().all(inside),
        "snapshots belong into the folder `snapshots`"
    );
    let pending: Vec<String> = files("", &[".snap.new", ".pending-snap"])
        .iter()
        .map(|p| name(p))
        .collect();
    report(&pending);
}

/// The rows of the README's table of passes.
fn expected_table() -> Vec<String> {
    let stage = |name: &str| match name {
        n if NORMALIZE.contains(&n) => "normalize",
        n if REWRITE.contains(&n) => "quantize",
        n if RECOVER.contains(&n) => "recover",
        _ => "execute",
    };
    registry::all()
        .iter()
        .map(|p| p.info())
        .map(|i| {
            let exact = if i.exact { "yes" } else { "no" };
            format!(
                "| `{}` | {} | {exact} | {} |",
                i.name,
                stage(i.name),
                i.summary
            )
        })
        .collect()
}

#[test]
fn the_readme_lists_the_passes() {
    let readme = read(&root().join("README.md"));
    let section = readme
        .split("\n## ")
        .find(|s| s.starts_with("Passes\n"))
        .unwrap();
    let rows: Vec<&str> = section.lines().filter(|l| l.starts_with("| `")).collect();
    let expected = expected_table();
    assert!(
        rows == expected,
        "the table in README.md must be:\n{}",
        expected.join("\n")
    );
}

#[test]
fn the_licences_are_there() {
    for (file, words) in [
        ("LICENSE-MIT", "Permission is hereby granted"),
        ("LICENSE-APACHE", "Apache License"),
    ] {
        assert!(read(&root().join(file)).contains(words), "{file}");
    }
}

#[test]
fn the_example_crate_locks_what_its_dependencies_need() {
    let table = |path: &str| -> toml::Table { read(&root().join(path)).parse().unwrap() };
    let lock = table("examples/build-time/Cargo.lock");
    let packages = lock["package"].as_array().unwrap();
    let mut faults = Vec::new();
    for folder in ["proto", "ir", "numerics", "passes"] {
        let manifest = table(&format!("{folder}/Cargo.toml"));
        let own = packages
            .iter()
            .find(|p| p["name"] == manifest["package"]["name"]);
        let locked = own.and_then(|p| p.get("dependencies")?.as_array());
        let locked: BTreeSet<&str> = (locked.into_iter().flatten())
            .filter_map(|d| d.as_str()?.split(' ').next())
            .collect();
        for (name, how) in manifest["dependencies"].as_table().unwrap() {
            let optional = how.get("optional").and_then(toml::Value::as_bool) == Some(true);
            if !optional && !locked.contains(name.as_str()) {
                faults.push(format!(
                    "examples/build-time/Cargo.lock: {folder} needs {name}"
                ));
            }
        }
    }
    report(&faults);
}

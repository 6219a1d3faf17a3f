//! Reads case files, runs passes on them and checks what every pass promises.

mod execute;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use onnx_quant_ir::Model;
use onnx_quant_ir::pass::{Changed, Manager, Pass, PassContext, RunError};
use onnx_quant_ir::text::{self, Print};
use onnx_quant_ir::verify::{verify, verify_for_pass};
use onnx_quant_passes::registry;

/// A case file.
pub struct Case {
    /// Name of the file without its ending.
    pub name: String,
    /// The text, head included.
    pub text: String,
    head: Vec<(String, String)>,
}

thread_local! {
    /// Cases that were run before and after an exact pass.
    static EXECUTED: Cell<usize> = const { Cell::new(0) };
}

/// Puts data into the context of a pass.
pub type Prepare<'a> = &'a dyn Fn(&Case, &Model, &mut PassContext);

/// What a pass leaves in the context, as lines of the snapshot.
pub type Describe<'a> = &'a dyn Fn(&str, &PassContext) -> String;

const KEYS: [&str; 13] = [
    "options",
    "before",
    "expect",
    "signature",
    "verify",
    "repeat",
    "settings",
    "range",
    "layer",
    "pinned",
    "correct",
    "smooth",
    "smooth_readers",
];

impl Case {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let comments = text
            .lines()
            .map_while(|l| l.strip_prefix("//").or_else(|| l.strip_prefix('#')));
        let head = comments
            .filter_map(|l| l.split_once(':'))
            .map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()))
            .filter(|(k, _)| KEYS.contains(&k.as_str()))
            .collect();
        Self {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            head,
            text,
        }
    }

    /// All values of a key of the head, in order.
    pub fn all(&self, key: &str) -> Vec<&str> {
        let found = self.head.iter().filter(|(k, _)| k == key);
        found.map(|(_, v)| v.as_str()).collect()
    }

    /// Whether a key has this value.
    pub fn says(&self, key: &str, value: &str) -> bool {
        self.all(key).contains(&value)
    }

    /// The `key=value` pairs of all lines of a key.
    pub fn pairs(&self, key: &str) -> Vec<(&str, &str)> {
        let each = self.all(key).into_iter().flat_map(|o| o.split(','));
        each.filter_map(|o| o.split_once('='))
            .map(|(k, v)| (k.trim(), v.trim()))
            .collect()
    }

    fn options(&self) -> BTreeMap<String, String> {
        let pairs = self.pairs("options").into_iter();
        pairs.map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
    }
}

/// Runs all cases of all registered passes and reports every failure together.
pub fn run_all(prepare: Prepare<'_>, describe: Describe<'_>) {
    let mut failures = Vec::new();
    let mut seen = 0;
    for pass in registry::all() {
        let files = files(pass.info().name);
        if files.is_empty() {
            failures.push(format!("pass `{}` has no cases", pass.info().name));
        }
        for file in files {
            let case = Case::read(&file);
            seen += 1;
            let run = catch_unwind(AssertUnwindSafe(|| run(pass, &case, prepare, describe)));
            let failed = match run {
                Ok(Ok(())) => continue,
                Ok(Err(message)) => message,
                Err(_) => "panicked, see above".to_owned(),
            };
            failures.push(format!("{}/{}: {failed}", pass.info().name, case.name));
        }
    }
    let executed = EXECUTED.get();
    eprintln!("{seen} cases, {executed} of exact passes executed");
    assert!(
        executed > 0,
        "no case was executed: the evaluator runs none of them"
    );
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

fn files(pass: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("cases")
        .join(pass);
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<_> = entries
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnxtxt"))
        .collect();
    files.sort();
    files
}

/// A run of one pass.
fn once(
    pass: &dyn Pass,
    options: BTreeMap<String, String>,
    model: &mut Model,
    cx: &mut PassContext,
) -> Result<Changed, RunError> {
    cx.skips.clear();
    cx.notes.clear();
    let mut manager = Manager {
        verifier: Some(verify_for_pass),
        ..Manager::default()
    };
    manager.run(pass, options, model, cx)
}

fn run(
    pass: &dyn Pass,
    case: &Case,
    prepare: Prepare<'_>,
    describe: Describe<'_>,
) -> Result<(), String> {
    let mut model = text::parse(&case.text).map_err(|e| e.to_string())?;
    let mut cx = PassContext::default();
    prepare(case, &model, &mut cx);
    for name in case.all("before").into_iter().flat_map(|b| b.split(',')) {
        let name = name.trim();
        let first = registry::find(name).ok_or_else(|| format!("there is no pass `{name}`"))?;
        once(first, BTreeMap::new(), &mut model, &mut cx).map_err(|e| format!("before: {e}"))?;
    }
    if let Some(f) = verify(&model)
        .first()
        .filter(|_| !case.says("verify", "no"))
    {
        return Err(format!("the case is not valid: {f}"));
    }
    let before = text::print(&model, Print::Full);
    let signature = names(&model);
    let feeds = execute::feeds(&model).unwrap_or_default();
    let outputs = execute::outputs(&model, &feeds);
    let changed = match once(pass, case.options(), &mut model, &mut cx) {
        Ok(changed) => changed,
        Err(RunError::Pass(e)) if case.says("expect", "error") => {
            snapshot(pass, case, &format!("error: {e}\n"));
            return Ok(());
        }
        Err(e) => return Err(e.to_string()),
    };
    if case.says("expect", "error") {
        return Err("an error is expected, and there is none".to_owned());
    }
    if changed == Changed::No && before != text::print(&model, Print::Full) {
        return Err("the pass says `Changed::No`, but the model is another one".to_owned());
    }
    if let Some(f) = verify(&model)
        .first()
        .filter(|_| !case.says("verify", "no"))
    {
        return Err(format!("the result is not valid: {f}"));
    }
    let expected = [("changed", Changed::Yes), ("unchanged", Changed::No)];
    for (word, needed) in expected {
        if case.says("expect", word) && changed != needed {
            return Err(format!("`{word}` is expected, but it is {changed:?}"));
        }
    }
    if !case.says("signature", "changes") && signature != names(&model) {
        return Err(format!(
            "the signature changed: {signature:?} → {:?}",
            names(&model)
        ));
    }
    if let Some(wanted) = outputs.filter(|_| pass.info().exact && changed == Changed::Yes) {
        EXECUTED.set(EXECUTED.get() + 1);
        match execute::outputs(&model, &feeds) {
            Some(found) if found == wanted => {}
            Some(_) => return Err("the pass claims to be exact, but an output differs".to_owned()),
            None => return Err("the result of an exact pass cannot be run".to_owned()),
        }
    }
    let text = shown(&model, changed, &cx) + &describe(pass.info().name, &cx);
    snapshot(pass, case, &text);
    again(pass, case, &mut model, &mut cx)
}

/// A second run must find nothing to do.
fn again(
    pass: &dyn Pass,
    case: &Case,
    model: &mut Model,
    cx: &mut PassContext,
) -> Result<(), String> {
    if case.says("repeat", "changes") {
        return Ok(());
    }
    let first = text::print(model, Print::Full);
    match once(pass, case.options(), model, cx) {
        Ok(Changed::No) if first == text::print(model, Print::Full) => Ok(()),
        Ok(changed) => Err(format!(
            "a second run is not without effect ({changed:?}):\n{}",
            text::print(model, Print::Summary)
        )),
        Err(e) => Err(format!("a second run fails: {e}")),
    }
}

fn names(model: &Model) -> (Vec<String>, Vec<String>) {
    let all =
        |ids: &[onnx_quant_ir::ValueId]| ids.iter().map(|&v| model.value(v).name.clone()).collect();
    (all(&model.main().inputs), all(&model.main().outputs))
}

fn shown(model: &Model, changed: Changed, cx: &PassContext) -> String {
    let mut out = match changed {
        Changed::Yes => text::print(model, Print::Summary),
        Changed::No => "unchanged\n".to_owned(),
    };
    for s in &cx.skips {
        let _ = writeln!(out, "# skip {}: {}", s.subject, s.reason);
    }
    for n in &cx.notes {
        let _ = writeln!(out, "# note {}", n.message);
    }
    out
}

fn snapshot(pass: &dyn Pass, case: &Case, text: &str) {
    let mut settings = insta::Settings::clone_current();
    let room = concat!(env!("CARGO_MANIFEST_DIR"), "/../snapshots");
    settings.set_snapshot_path(Path::new(room).join(pass.info().name));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!(case.name.as_str(), text));
}

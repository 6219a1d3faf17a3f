//! A command line and a configuration file become one command line; every value knows where it is from.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, ValueHint};

use super::file::{ConfigFile, Entry, Value};
use super::{ConfigError, NAME};

/// The command whose keys stand at the top of a file.
pub const MAIN: &str = "quantize";

/// Arguments that say how the file itself is used, or that ask for something else to be printed.
const NO_KEYS: [&str; 8] = [
    "verbose",
    "help",
    "version",
    "config",
    "no_config",
    "profile",
    "print_config",
    "json",
];

/// Commands that take nothing from a file.
pub(super) const UNCONFIGURED: [&str; 7] = [
    "init",
    "config",
    "completions",
    "man",
    "demo",
    "passes",
    "targets",
];

/// Where a value is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// The line.
    pub line: usize,
    /// The profile that it stands in.
    pub profile: Option<String>,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)?;
        match &self.profile {
            Some(p) => write!(f, ", profile {p}"),
            None => Ok(()),
        }
    }
}

/// A command line that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merged {
    /// The arguments, the program's name first.
    pub args: Vec<OsString>,
    /// Where the values of a file are from, by the identifier of the argument.
    pub origins: BTreeMap<String, Origin>,
    /// The file that was read.
    pub file: Option<PathBuf>,
}

/// The name of an argument in a file: its long option, or its own name where it has none.
pub fn key(arg: &Arg) -> String {
    match arg.get_long() {
        Some(long) => long.to_owned(),
        None => arg.get_id().as_str().replace('_', "-"),
    }
}

/// The arguments of a command that a file can give.
pub fn configurable(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_key = |a: &&Arg| {
        !NO_KEYS.contains(&a.get_id().as_str())
            && (a.get_long().is_some() || a.get_index().is_some())
    };
    command.get_arguments().filter(is_key)
}

/// Whether an argument is a switch without a value.
pub fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue | ArgAction::SetFalse)
}

/// Completes a command line from the configuration that it names, or that lies beside its model or in the working
/// directory. Command lines that are wrong, or ask for help, are returned as they are.
///
/// # Errors
/// What is wrong with the configuration, with file and line.
pub fn merge(program: &Command, args: Vec<OsString>) -> Result<Merged, ConfigError> {
    let plain = |args| Merged {
        args,
        origins: BTreeMap::new(),
        file: None,
    };
    let mut program = program.clone();
    program.build();
    let lenient = program.clone().ignore_errors(true);
    let Ok(matches) = lenient.try_get_matches_from(&args) else {
        return Ok(plain(args));
    };
    let Some((name, given)) = matches.subcommand() else {
        return Ok(plain(args));
    };
    if UNCONFIGURED.contains(&name) {
        return Ok(plain(args));
    }
    let Some(command) = program.find_subcommand(name) else {
        return Ok(plain(args));
    };
    if !command.get_arguments().any(|a| a.get_id() == "config") || flag(given, "no_config") {
        return Ok(plain(args));
    }
    let profile = given.try_get_one::<String>("profile").ok().flatten();
    let Some(file) = find(command, given)? else {
        return match profile {
            Some(p) => Err(ConfigError(format!(
                "--profile {p} needs a configuration: there is no {NAME} beside the model or in the working directory; name one with --config"
            ))),
            None => Ok(plain(args)),
        };
    };
    let mut values = Values {
        file: &file,
        program: &program,
        command,
        given,
        found: BTreeMap::new(),
    };
    values.section(&file.entries, name, None)?;
    if let Some(profile) = profile {
        values.profile(profile, name)?;
    }
    let (extra, origins) = values.arguments()?;
    let mut args = args;
    let at = args.iter().skip(1).position(|a| a == name);
    let at = at.map_or(args.len(), |i| i + 2);
    args.splice(at..at, extra);
    Ok(Merged {
        args,
        origins,
        file: Some(file.path),
    })
}

fn flag(matches: &ArgMatches, id: &str) -> bool {
    matches!(matches.try_get_one::<bool>(id), Ok(Some(true)))
}

/// The file that is named, or lies beside the model, or in the working directory.
fn find(command: &Command, given: &ArgMatches) -> Result<Option<ConfigFile>, ConfigError> {
    if let Ok(Some(path)) = given.try_get_one::<PathBuf>("config") {
        return ConfigFile::read(path).map(Some);
    }
    let first = command.get_positionals().next();
    let model = first.and_then(|a| given.try_get_raw(a.get_id().as_str()).ok().flatten());
    let model = model.and_then(|mut values| values.next().map(PathBuf::from));
    let beside = model
        .as_deref()
        .and_then(Path::parent)
        .map(|f| f.join(NAME));
    let here = PathBuf::from(NAME);
    let mut places = beside.into_iter().chain([here]);
    match places.find(|p| p.is_file()) {
        Some(path) => ConfigFile::read(&path).map(Some),
        None => Ok(None),
    }
}

/// The values that are in force for one command.
struct Values<'a> {
    file: &'a ConfigFile,
    program: &'a Command,
    command: &'a Command,
    given: &'a ArgMatches,
    found: BTreeMap<String, (&'a Arg, &'a Entry, Option<String>)>,
}

impl<'a> Values<'a> {
    /// Takes the keys of a section of the file: those at its top for `quantize`, those of the command's table for others.
    /// Keys of other commands are checked all the same.
    fn section(
        &mut self,
        entries: &'a [Entry],
        name: &str,
        profile: Option<&str>,
    ) -> Result<(), ConfigError> {
        let main = self.program.find_subcommand(MAIN).unwrap_or(self.command);
        for entry in entries {
            if entry.key == "profile" && profile.is_none() {
                self.check_profiles(entry)?;
                continue;
            }
            let other = self.program.find_subcommand(&entry.key);
            if let (Value::Table(inner), Some(other)) = (&entry.value, other) {
                for e in inner {
                    let arg = self.known(other, e)?;
                    if other.get_name() == name {
                        self.put(arg.get_id().as_str(), e, profile);
                    }
                }
                continue;
            }
            let arg = self.known(main, entry)?;
            // Options that all commands share are in force for all of them.
            if name == MAIN || arg.is_global_set() {
                self.put(arg.get_id().as_str(), entry, profile);
            }
        }
        Ok(())
    }

    fn put(&mut self, id: &str, entry: &'a Entry, profile: Option<&str>) {
        let arg = self.command.get_arguments().find(|a| a.get_id() == id);
        if let Some(arg) = arg {
            let value = (arg, entry, profile.map(str::to_owned));
            self.found.insert(id.to_owned(), value);
        }
    }

    /// The argument of a key, or the error that suggests one.
    fn known<'c>(&self, command: &'c Command, entry: &Entry) -> Result<&'c Arg, ConfigError> {
        let wanted = entry.key.as_str();
        if let Some(arg) = configurable(command).find(|a| key(a) == wanted) {
            return Ok(arg);
        }
        let mut names: Vec<String> = configurable(command).map(key).collect();
        if command.get_name() == MAIN {
            names.push("profile".to_owned());
        }
        let near = names
            .iter()
            .map(|n| (strsim::jaro_winkler(n, &wanted.replace('_', "-")), n))
            .filter(|(score, _)| *score > 0.75)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let advice = near.map_or_else(
            || {
                format!(
                    "; the keys are the options of `onnx-quant {}`",
                    command.get_name()
                )
            },
            |(_, n)| format!("; did you mean `{n}`?"),
        );
        Err(self
            .file
            .error(entry.line, format!("there is no key `{wanted}`{advice}")))
    }

    fn check_profiles(&self, entry: &'a Entry) -> Result<(), ConfigError> {
        let Value::Table(profiles) = &entry.value else {
            return Err(self.file.error(
                entry.line,
                "`profile` takes tables, as in [profile.fast]; --profile chooses one",
            ));
        };
        for p in profiles {
            let Value::Table(inner) = &p.value else {
                let what = format!("the profile `{}` must be a table", p.key);
                return Err(self.file.error(p.line, what));
            };
            let mut dry = Values {
                found: BTreeMap::new(),
                ..*self
            };
            dry.section(inner, MAIN, Some(&p.key))?;
        }
        Ok(())
    }

    fn profile(&mut self, wanted: &str, name: &str) -> Result<(), ConfigError> {
        let all = self.file.entries.iter().find(|e| e.key == "profile");
        let profiles = match all.map(|e| &e.value) {
            Some(Value::Table(p)) => p.as_slice(),
            _ => &[],
        };
        let profile = profiles.iter().find(|p| p.key == wanted);
        if let Some(Value::Table(entries)) = profile.map(|p| &p.value) {
            return self.section(entries, name, Some(wanted));
        }
        let names: Vec<&str> = profiles.iter().map(|p| p.key.as_str()).collect();
        let has = match names.len() {
            0 => "no profiles".to_owned(),
            _ => format!("the profiles {}", names.join(", ")),
        };
        Err(ConfigError(format!(
            "{} has no profile `{wanted}`; it has {has}",
            self.file.path.display()
        )))
    }

    /// The values that the command line does not give, as arguments.
    fn arguments(self) -> Result<(Vec<OsString>, BTreeMap<String, Origin>), ConfigError> {
        let (mut args, mut origins) = (Vec::new(), BTreeMap::new());
        let sets = match self.found.get(DATASET).map(|(_, e, _)| &e.value) {
            Some(Value::Table(sets)) => sets.as_slice(),
            _ => &[],
        };
        let is_set =
            |e: &Entry| matches!(&e.value, Value::Text(t) if sets.iter().any(|s| s.key == *t));
        for (id, (arg, entry, profile)) in &self.found {
            if id != DATASET && self.given.value_source(id) == Some(ValueSource::CommandLine) {
                continue;
            }
            match &entry.value {
                Value::Table(sets) if id == DATASET => args.extend(self.datasets(sets)?),
                Value::Text(name) if is_path(arg) && is_set(entry) => {
                    args.push(format!("--{}={name}", key(arg)).into());
                }
                _ => args.extend(argument(self.file, arg, entry)?),
            }
            let origin = Origin {
                file: self.file.path.clone(),
                line: entry.line,
                profile: profile.clone(),
            };
            origins.insert(id.clone(), origin);
        }
        Ok((args, origins))
    }
}

/// The key of data sets: a table of tables.
pub(super) const DATASET: &str = "dataset";

impl Values<'_> {
    /// Data sets as values of `--dataset`.
    fn datasets(&self, sets: &[Entry]) -> Result<Vec<OsString>, ConfigError> {
        let mut args = Vec::new();
        for set in sets {
            let Value::Table(entries) = &set.value else {
                let what = format!("`{}` must be a table, as in [dataset.val]", set.key);
                return Err(self.file.error(set.line, what));
            };
            let mut line = vec![Entry {
                key: "name".to_owned(),
                value: Value::Text(set.key.clone()),
                line: set.line,
            }];
            for entry in entries {
                let arg = self.command.get_arguments().find(|a| key(a) == entry.key);
                let mut entry = entry.clone();
                let is_file = ["path", "labels"].contains(&entry.key.as_str());
                if let Value::Text(text) = &entry.value
                    && (is_file || arg.is_some_and(is_path))
                {
                    entry.value = Value::Text(in_folder(self.file, text));
                }
                line.push(entry);
            }
            args.push(format!("--{DATASET}={}", Value::Table(line).to_toml()).into());
        }
        Ok(args)
    }
}

/// A key as arguments.
///
/// # Errors
/// A value of the wrong kind, with the line.
pub fn argument(file: &ConfigFile, arg: &Arg, entry: &Entry) -> Result<Vec<OsString>, ConfigError> {
    let name = key(arg);
    if is_switch(arg) {
        return match entry.value {
            Value::Bool(true) => Ok(vec![format!("--{name}").into()]),
            Value::Bool(false) => Ok(Vec::new()),
            _ => Err(file.error(
                entry.line,
                format!("`{name}` is true or false, not {}", entry.value.kind()),
            )),
        };
    }
    let repeatable = matches!(arg.get_action(), ArgAction::Append);
    let values = match &entry.value {
        Value::List(list) if repeatable => list.iter().collect(),
        Value::List(list) if arg.get_value_delimiter().is_some() => list.iter().collect(),
        one => vec![one],
    };
    let mut args = Vec::new();
    for value in values {
        let text = match value {
            Value::Text(s) => path_from(file, arg, s),
            Value::Number(s) => s.clone(),
            Value::Table(_) if name == "layer" => layer(file, value, entry.line),
            Value::Bool(_) | Value::List(_) | Value::Table(_) => {
                let list = if repeatable { " or a list" } else { "" };
                return Err(file.error(
                    entry.line,
                    format!(
                        "`{name}` takes a string or a number{list}, not {}",
                        value.kind()
                    ),
                ));
            }
        };
        args.push(match arg.get_index() {
            Some(_) => text.into(),
            None => format!("--{name}={text}").into(),
        });
    }
    Ok(args)
}

/// A rule for layers with the place where it stands.
fn layer(file: &ConfigFile, value: &Value, line: usize) -> String {
    let mut value = value.clone();
    if let Value::Table(entries) = &mut value
        && !entries.iter().any(|e| e.key == "origin")
    {
        let line = entries.iter().map(|e| e.line).min().unwrap_or(line);
        entries.insert(
            0,
            Entry {
                key: "origin".to_owned(),
                value: Value::Text(format!("{}:{line}", file.path.display())),
                line,
            },
        );
    }
    value.to_toml()
}

/// A path starts from the folder of the file; `random:16` and what is no path stay.
fn path_from(file: &ConfigFile, arg: &Arg, text: &str) -> String {
    if is_path(arg) {
        return in_folder(file, text);
    }
    text.to_owned()
}

fn is_path(arg: &Arg) -> bool {
    matches!(
        arg.get_value_hint(),
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath
    )
}

fn in_folder(file: &ConfigFile, text: &str) -> String {
    if text.starts_with("random:") || file.folder().as_os_str().is_empty() {
        return text.to_owned();
    }
    file.folder().join(text).display().to_string()
}

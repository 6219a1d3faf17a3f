//! A configuration file as keys with values and lines.

use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::ConfigError;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A string.
    Text(String),
    /// A number, or a date, as it is written.
    Number(String),
    /// A switch.
    Bool(bool),
    /// Several values.
    List(Vec<Value>),
    /// A table.
    Table(Vec<Entry>),
}

impl Value {
    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Number(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }

    /// The value in TOML, in one line.
    pub fn to_toml(&self) -> String {
        match self {
            Self::Text(s) => quote(s),
            Self::Number(s) => s.clone(),
            Self::Bool(b) => b.to_string(),
            Self::List(list) => {
                let list: Vec<String> = list.iter().map(Self::to_toml).collect();
                format!("[{}]", list.join(", "))
            }
            Self::Table(entries) => {
                let pair = |e: &Entry| format!("{} = {}", quoted(&e.key), e.value.to_toml());
                let list: Vec<String> = entries.iter().map(pair).collect();
                format!("{{ {} }}", list.join(", "))
            }
        }
    }
}

/// A key as TOML writes it.
fn quoted(key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !key.is_empty() && key.chars().all(bare) {
        return key.to_owned();
    }
    quote(key)
}

/// A text as a string of TOML.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A key with its value and the line it stands in, counted from 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Value,
    /// The line.
    pub line: usize,
}

/// A configuration file.
#[derive(Debug, Clone, PartialEq)]
pub struct ConfigFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its keys, in the order of their lines.
    pub entries: Vec<Entry>,
}

impl ConfigFile {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, or is no TOML.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| ConfigError(format!("cannot read {}: {e}", path.display())))?;
        Self::parse(path, &text)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// Text that is no TOML.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let table = DeTable::parse(text).map_err(|e| {
            let line = e.span().map_or(1, |s| line(s.start));
            ConfigError(format!("{}:{line}: {}", path.display(), e.message()))
        })?;
        Ok(Self {
            path: path.to_owned(),
            entries: entries(table.get_ref(), &line),
        })
    }

    /// The folder that relative paths start from; empty for the working directory.
    pub fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }

    /// An error at a line.
    pub fn error(&self, line: usize, what: impl AsRef<str>) -> ConfigError {
        ConfigError(format!("{}:{line}: {}", self.path.display(), what.as_ref()))
    }
}

fn entries(table: &DeTable<'_>, line: &dyn Fn(usize) -> usize) -> Vec<Entry> {
    let mut list: Vec<Entry> = table
        .iter()
        .map(|(key, v)| Entry {
            key: key.get_ref().to_string(),
            value: value(v, line),
            line: line(key.span().start),
        })
        .collect();
    list.sort_by_key(|e| e.line);
    list
}

fn value(v: &Spanned<DeValue<'_>>, line: &dyn Fn(usize) -> usize) -> Value {
    match v.get_ref() {
        DeValue::String(s) => Value::Text(s.to_string()),
        DeValue::Integer(n) => Value::Number(decimal(n.as_str(), n.radix())),
        DeValue::Float(x) => Value::Number(x.as_str().to_owned()),
        DeValue::Datetime(d) => Value::Number(d.to_string()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Array(list) => Value::List(list.iter().map(|v| value(v, line)).collect()),
        DeValue::Table(table) => Value::Table(entries(table, line)),
    }
}

/// An integer in base ten; as it is where it does not fit.
fn decimal(digits: &str, radix: u32) -> String {
    match i128::from_str_radix(digits, radix) {
        Ok(n) => n.to_string(),
        Err(_) => digits.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn keys_have_lines_and_values_their_form() {
        let text = "# head\nmodel = \"m.onnx\"\nseed = 0x10\nmean = [0.5, 1]\n\n[[layer]]\nmatch = \"a.*\"\n";
        let file = ConfigFile::parse(Path::new("c.toml"), text).unwrap();
        let lines: Vec<(&str, usize, String)> = file
            .entries
            .iter()
            .map(|e| (e.key.as_str(), e.line, e.value.to_toml()))
            .collect();
        assert_eq!(
            lines,
            [
                ("model", 2, "\"m.onnx\"".to_owned()),
                ("seed", 3, "16".to_owned()),
                ("mean", 4, "[0.5, 1]".to_owned()),
                ("layer", 6, "[{ match = \"a.*\" }]".to_owned()),
            ]
        );
    }

    #[test]
    fn text_that_is_no_toml_names_the_line() {
        let error = ConfigFile::parse(Path::new("c.toml"), "a = 1\nb = \n").unwrap_err();
        assert!(error.0.starts_with("c.toml:2: "), "{error}");
    }
}

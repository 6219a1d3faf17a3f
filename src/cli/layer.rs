//! The option for rules of single layers.

use std::path::Path;

use onnx_quant::config::file::{ConfigFile, Entry, Value};
use onnx_quant::passes::layers::{Choice, LayerRule};

/// Rules for layers.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct LayerArgs {
    /// A rule for single layers, as { match = "encoder.*", weights = "int8:tensor" } (repeatable; the last that names a node wins)
    #[arg(long, value_name = "RULE", value_parser = parse)]
    pub layer: Vec<LayerRule>,
}

const KEYS: [&str; 7] = [
    "match",
    "weights",
    "activations",
    "input-range",
    "force",
    "reason",
    "origin",
];

fn parse(text: &str) -> Result<LayerRule, String> {
    let wrong = |e: String| format!("`{text}` is no rule: {e}");
    let file = ConfigFile::parse(Path::new("rule"), &format!("rule = {text}"))
        .map_err(|e| wrong(e.to_string()))?;
    let entries = match file.entries.first().map(|e| &e.value) {
        Some(Value::Table(entries)) => entries.as_slice(),
        _ => {
            return Err(wrong(
                "write { match = \"PATTERN\", weights = \"FORMAT\" }".to_owned(),
            ));
        }
    };
    let mut rule = LayerRule::default();
    for entry in entries {
        put(&mut rule, entry).map_err(|e| match &rule.origin {
            Some(origin) => format!("{origin}: {e}"),
            None => e,
        })?;
    }
    if rule.pattern.is_empty() {
        return Err(wrong("`match` is missing".to_owned()));
    }
    Ok(rule)
}

fn put(rule: &mut LayerRule, entry: &Entry) -> Result<(), String> {
    let key = entry.key.as_str();
    let choice = |s: &str| -> Result<Option<Choice>, String> {
        s.parse()
            .map(Some)
            .map_err(|e: String| format!("`{key}`: {e}"))
    };
    match (key, &entry.value) {
        ("match", Value::Text(s)) => rule.pattern.clone_from(s),
        ("weights", Value::Text(s)) => rule.weights = choice(s)?,
        ("activations", Value::Text(s)) => rule.activations = choice(s)?,
        ("reason", Value::Text(s)) => rule.reason = Some(s.clone()),
        ("origin", Value::Text(s)) => rule.origin = Some(s.clone()),
        ("force", Value::Bool(b)) => rule.force = *b,
        ("input-range", Value::List(list)) => {
            let number = |v: &Value| match v {
                Value::Number(n) => n.parse::<f32>().ok(),
                _ => None,
            };
            match list
                .iter()
                .map(number)
                .collect::<Option<Vec<_>>>()
                .as_deref()
            {
                Some([low, high]) if low <= high => rule.input_range = Some((*low, *high)),
                _ => return Err("`input-range` is two numbers, [lowest, highest]".to_owned()),
            }
        }
        (known, value) if KEYS.contains(&known) => {
            return Err(format!("`{known}` cannot be {}", value.kind()));
        }
        (unknown, _) => {
            let near = KEYS.iter().max_by(|a, b| {
                strsim::jaro_winkler(a, unknown).total_cmp(&strsim::jaro_winkler(b, unknown))
            });
            return Err(format!(
                "a rule has no key `{unknown}`; did you mean `{}`?",
                near.unwrap_or(&"match")
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn rules_are_read_from_toml() {
        let rule =
            parse("{ match = \"a.*\", weights = \"none\", input-range = [-1, 2.5] }").unwrap();
        assert_eq!(rule.pattern, "a.*");
        assert_eq!(rule.weights, Some(Choice::Float));
        assert_eq!(rule.input_range, Some((-1.0, 2.5)));
        for (bad, words) in [
            ("a.*", "is no rule"),
            ("{ weights = \"none\" }", "`match` is missing"),
            (
                "{ match = \"a\", weigths = \"none\" }",
                "did you mean `weights`?",
            ),
            (
                "{ match = \"a\", weights = 8 }",
                "`weights` cannot be a number",
            ),
            (
                "{ match = \"a\", weights = \"int99\" }",
                "`weights`: unknown",
            ),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }
}

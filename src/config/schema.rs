//! The JSON schema of configuration files, made from the options of the program.

use clap::{Arg, ArgAction, Command};
use serde_json::{Map, Value, json};

use super::merge::{DATASET, MAIN, UNCONFIGURED, configurable, is_switch, key};

/// The schema, for editors that complete and check TOML.
pub fn schema(program: &Command) -> Value {
    let mut program = program.clone();
    program.build();
    let mut options = Map::new();
    if let Some(main) = program.find_subcommand(MAIN) {
        options.extend(properties(main));
    }
    for command in program.get_subcommands() {
        let has = |id: &str| command.get_arguments().any(|a| a.get_id() == id);
        let name = command.get_name();
        if name == MAIN
            || UNCONFIGURED.contains(&name)
            || !has("config")
            || options.contains_key(name)
        {
            continue;
        }
        let about = command.get_about().map(ToString::to_string);
        options.insert(
            name.to_owned(),
            json!({
                "type": "object",
                "description": about.unwrap_or_default(),
                "additionalProperties": false,
                "properties": properties(command),
            }),
        );
    }
    let mut all = options.clone();
    all.insert(
        "profile".to_owned(),
        json!({
            "type": "object",
            "description": "Values that are in force with --profile NAME",
            "additionalProperties": {"$ref": "#/$defs/options"},
        }),
    );
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "onnx-quant.toml",
        "description": "Configuration of onnx-quant: the options of `onnx-quant quantize` by their long names, tables for other commands, and profiles",
        "type": "object",
        "additionalProperties": false,
        "properties": all,
        "$defs": {"options": {"type": "object", "additionalProperties": false, "properties": options}},
    })
}

fn properties(command: &Command) -> Map<String, Value> {
    let value = |a: &Arg| match key(a) == DATASET {
        true => datasets(command, a),
        false => one(a),
    };
    let mut list: Vec<(String, Value)> =
        configurable(command).map(|a| (key(a), value(a))).collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list.into_iter().collect()
}

/// Tables of data sets, which hold the options that have the same heading.
fn datasets(command: &Command, dataset: &Arg) -> Value {
    let belongs = |a: &&Arg| {
        a.get_help_heading() == dataset.get_help_heading()
            && ![DATASET, "eval-samples"].contains(&key(a).as_str())
    };
    let mut options: Map<String, Value> = configurable(command)
        .filter(belongs)
        .map(|a| (key(a), one(a)))
        .collect();
    for name in ["path", "labels"] {
        options.insert(name.to_owned(), json!({"type": "string"}));
    }
    let help = dataset.get_help().map(ToString::to_string);
    json!({
        "type": "object",
        "description": help.unwrap_or_default(),
        "additionalProperties": {
            "type": "object",
            "required": ["path"],
            "additionalProperties": false,
            "properties": options,
        },
    })
}

fn one(arg: &Arg) -> Value {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    if is_switch(arg) {
        return json!({"type": "boolean", "default": false, "description": help});
    }
    let named: Vec<String> = arg
        .get_possible_values()
        .iter()
        .map(|v| v.get_name().to_owned())
        .collect();
    let mut scalar = json!({"type": ["string", "number"]});
    if !named.is_empty() {
        scalar = json!({"enum": named});
    }
    if key(arg) == "layer" {
        scalar = layer();
    }
    let several =
        matches!(arg.get_action(), ArgAction::Append) || arg.get_value_delimiter().is_some();
    let mut schema = if several {
        json!({"anyOf": [scalar, {"type": "array", "items": scalar}]})
    } else {
        scalar
    };
    schema["description"] = Value::String(help);
    if let Some(default) = arg.get_default_values().first() {
        schema["default"] = Value::String(default.to_string_lossy().into_owned());
    }
    schema
}

/// A rule for layers.
fn layer() -> Value {
    let text = json!({"type": "string"});
    json!({
        "type": "object",
        "required": ["match"],
        "additionalProperties": false,
        "properties": {
            "match": text, "weights": text, "activations": text, "reason": text,
            "input-range": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2},
            "force": {"type": "boolean"},
        },
    })
}

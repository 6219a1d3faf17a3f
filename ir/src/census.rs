//! The census: which fields of a file does the schema not have?
//!
//! The decoder drops such fields without a word. This walk over the wire format finds them: it reads the tags and
//! lengths of messages and jumps over everything else, so weights are not touched.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use onnx_quant_proto::{FieldSchema, SCHEMA};

/// The decoder's own limit: deeper messages are no valid file.
const MAX_DEPTH: usize = 100;

/// A field that the schema does not have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnknownField {
    /// The fields that lead to the message, `graph.node.attribute` for example; empty for the model itself.
    pub path: String,
    /// The number of the field.
    pub number: u32,
    /// How often it occurs.
    pub count: usize,
}

impl fmt::Display for UnknownField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}.", self.path)?;
        }
        write!(f, "{}", self.number)
    }
}

/// A message that is being read: what is left of it, its place in the schema, its path.
struct Open<'a> {
    rest: &'a [u8],
    message: usize,
    path: usize,
}

/// The paths seen so far: each is its parent and a field's name.
struct Paths {
    steps: Vec<(usize, &'static str)>,
    known: HashMap<(usize, u32), usize>,
}

impl Paths {
    fn step(&mut self, parent: usize, field: &FieldSchema) -> usize {
        *self.known.entry((parent, field.number)).or_insert_with(|| {
            self.steps.push((parent, field.name));
            self.steps.len() - 1
        })
    }

    fn name(&self, mut path: usize) -> String {
        let mut parts = Vec::new();
        while path != 0 {
            let (parent, name) = self.steps[path];
            parts.push(name);
            path = parent;
        }
        parts.reverse();
        parts.join(".")
    }
}

/// Counts the unknown fields of an encoded model, by path and number. Bytes that are no message end the walk where they
/// stand: the decoder is who reports them.
pub fn census(bytes: &[u8]) -> Vec<UnknownField> {
    let Some(root) = SCHEMA.iter().position(|m| m.name == "ModelProto") else {
        return Vec::new();
    };
    let mut paths = Paths {
        steps: vec![(0, "")],
        known: HashMap::new(),
    };
    let mut counts: BTreeMap<(usize, u32), usize> = BTreeMap::new();
    let mut stack = vec![Open {
        rest: bytes,
        message: root,
        path: 0,
    }];
    while let Some(open) = stack.last_mut() {
        let Some((number, inner)) = field(&mut open.rest) else {
            stack.pop();
            continue;
        };
        let (message, path) = (open.message, open.path);
        let Some(known) = SCHEMA[message].fields.iter().find(|f| f.number == number) else {
            *counts.entry((path, number)).or_default() += 1;
            continue;
        };
        if let (Some(message), Some(rest)) = (known.message, inner)
            && stack.len() < MAX_DEPTH
        {
            let path = paths.step(path, known);
            stack.push(Open {
                rest,
                message,
                path,
            });
        }
    }
    let mut out: Vec<UnknownField> = counts
        .into_iter()
        .map(|((path, number), count)| UnknownField {
            path: paths.name(path),
            number,
            count,
        })
        .collect();
    out.sort();
    out
}

/// The next field: its number, and its bytes where they are counted by a length. `None` at the end and at damage.
fn field<'a>(rest: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
    let tag = varint(rest)?;
    let number = u32::try_from(tag >> 3).ok()?;
    if tag & 7 == 3 {
        group(rest)?;
        return Some((number, None));
    }
    Some((number, value(rest, tag & 7)?))
}

/// Reads past a value of a wire type other than a group.
fn value<'a>(rest: &mut &'a [u8], wire: u64) -> Option<Option<&'a [u8]>> {
    match wire {
        0 => varint(rest).map(|_| None),
        1 => take(rest, 8).map(|_| None),
        2 => {
            let length = usize::try_from(varint(rest)?).ok()?;
            take(rest, length).map(Some)
        }
        5 => take(rest, 4).map(|_| None),
        _ => None,
    }
}

/// Reads past a group and the groups in it.
fn group(rest: &mut &[u8]) -> Option<()> {
    let mut depth = 1usize;
    while depth > 0 {
        match varint(rest)? & 7 {
            3 => depth += 1,
            4 => depth -= 1,
            wire => {
                value(rest, wire)?;
            }
        }
    }
    Some(())
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(length)?;
    *rest = left;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut out = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, left) = rest.split_first()?;
        *rest = left;
        out |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte < 0x80 {
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::path::Path;

    use super::census;
    use crate::load::load_bytes;
    use crate::save::{ExternalData, SaveError, save, to_bytes};
    use crate::text;

    fn bytes() -> Vec<u8> {
        let model = text::parse(
            "g (float[2] X) => (float[2] Y) <float[2] W = {1, 2}> { Y = Foo <a = [1, 2]> (X, W) }",
        );
        to_bytes(&model.unwrap()).unwrap()
    }

    fn found(bytes: &[u8]) -> Vec<String> {
        let all = census(bytes).into_iter();
        all.map(|f| format!("{f} × {}", f.count)).collect()
    }

    #[test]
    fn a_model_of_the_schema_has_no_unknown_fields() {
        assert_eq!(census(&bytes()), vec![]);
    }

    #[test]
    fn unknown_fields_of_every_wire_type_are_counted() {
        let mut b = bytes();
        // 99: varint, 98: 64 bit, 97: bytes, 96: a group with a group in it, 95: 32 bit; then 99 again.
        b.extend([0x98, 6, 1]);
        b.extend([0x91, 6, 0, 0, 0, 0, 0, 0, 0, 0]);
        b.extend([0x8a, 6, 2, 0xff, 0xff]);
        b.extend([0x83, 6, 0x08, 1, 0x0b, 0x12, 1, 7, 0x0c, 0x84, 6]);
        b.extend([0xfd, 5, 0, 0, 0, 0]);
        b.extend([0x98, 6, 1]);
        assert_eq!(
            found(&b),
            ["95 × 1", "96 × 1", "97 × 1", "98 × 1", "99 × 2"]
        );
        // graph { node { attribute { 99: 1 } } }
        b.extend([0x3a, 7, 0x0a, 5, 0x2a, 3, 0x98, 6, 1]);
        assert_eq!(found(&b)[5], "graph.node.attribute.99 × 1");
    }

    #[test]
    fn a_model_with_unknown_fields_is_saved_only_when_told() {
        let mut b = bytes();
        b.extend([0x98, 6, 1]);
        let mut model = load_bytes(b.into(), Path::new("x.onnx")).unwrap();
        assert_eq!(model.unknown_fields.len(), 1);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.onnx");
        let refused = save(&model, &path, ExternalData::Auto).unwrap_err();
        assert!(matches!(refused, SaveError::FieldLoss { count: 1, .. }));
        assert!(!path.exists());
        model.allow_field_loss = true;
        save(&model, &path, ExternalData::Auto).unwrap();
        assert_eq!(std::fs::read(path).unwrap(), bytes());
    }

    #[test]
    fn damage_and_depth_end_the_walk() {
        assert_eq!(census(&[0xff; 20]), vec![]);
        assert_eq!(census(&[0x0b; 100_000]), vec![]);
        assert_eq!(
            found(&nested(9)),
            ["graph.node.attribute.g.node.attribute.g.node.attribute.99 × 1"]
        );
        assert_eq!(census(&nested(30_000)), vec![]);
    }

    /// Unknown field 99 in so many messages: model → graph → node → attribute → graph …
    fn nested(depth: usize) -> Vec<u8> {
        let tags = [0x0a, 0x2a, 0x32];
        let mut out = vec![0x98, 6, 1];
        for level in (0..depth).rev() {
            let tag = if level == 0 {
                0x3a
            } else {
                tags[(level - 1) % 3]
            };
            let mut outer = vec![tag];
            let mut n = out.len();
            while n >= 0x80 {
                outer.push((n & 0x7f) as u8 | 0x80);
                n >>= 7;
            }
            outer.push(n as u8);
            outer.append(&mut out);
            out = outer;
        }
        out
    }
}

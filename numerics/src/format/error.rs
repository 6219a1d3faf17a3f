//! Names that are in no table, and formats that contradict themselves.

use thiserror::Error;

/// A text that is no format.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// A name that is not in the table it was looked up in.
    #[error("unknown {kind} `{given}`{}; valid: {valid}", did_you_mean(.suggestion))]
    Unknown {
        /// What was looked up: `number format`, `granularity`, …
        kind: &'static str,
        /// The text that was given.
        given: String,
        /// The valid name nearest to it, where one is near.
        suggestion: Option<String>,
        /// Every valid name, ready to be printed.
        valid: String,
    },
    /// A fixed-point format of too few or too many bits.
    #[error(
        "`{given}`: a fixed-point format qM.F has 2 to 16 bits in all, M with the sign before the point and F behind it"
    )]
    FixedPoint {
        /// The text that was given.
        given: String,
    },
    /// A block or vector length that is none.
    #[error("`{given}`: the {what} is a number from {least} to {most}, for example `{example}`")]
    Length {
        /// The text that was given.
        given: String,
        /// `length of a block` or `length of a vector`.
        what: &'static str,
        /// Smallest length.
        least: u32,
        /// Largest length.
        most: u32,
        /// A good text.
        example: &'static str,
    },
    /// A granularity that the base format does not have.
    #[error("`{given}`: {base} {rule}")]
    Granularity {
        /// The text that was given.
        given: String,
        /// The base format.
        base: String,
        /// What it has.
        rule: &'static str,
    },
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion
        .as_ref()
        .map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}

/// The name nearest to `given`, where one is near.
pub(super) fn nearest<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let score = |name: &str| strsim::normalized_damerau_levenshtein(name, given);
    names
        .filter(|name| score(name) >= 0.5)
        .reduce(|best, name| {
            if score(name) > score(best) {
                name
            } else {
                best
            }
        })
        .map(str::to_owned)
}

/// The position of `given` among `names`, without regard to case.
pub(crate) fn lookup(
    kind: &'static str,
    given: &str,
    names: impl Iterator<Item = &'static str>,
) -> Result<usize, FormatError> {
    let valid: Vec<&'static str> = names.collect();
    let lower = given.trim().to_ascii_lowercase();
    if let Some(at) = valid.iter().position(|name| *name == lower) {
        return Ok(at);
    }
    Err(FormatError::Unknown {
        kind,
        given: given.to_owned(),
        suggestion: nearest(&lower, valid.iter().copied()),
        valid: valid.join(", "),
    })
}

//! A report as it is read: headed sections, from which the text and the page are made alike.

use super::figures::Figures;

/// A report.
#[derive(Debug, Clone, Default)]
pub struct Document {
    /// What was done, in a few words.
    pub title: String,
    /// The model that it was done to.
    pub subject: String,
    /// Program and version.
    pub tool: String,
    /// Whether the budget holds, and the sentence that says so.
    pub verdict: Option<(bool, String)>,
    /// The numbers that matter most.
    pub facts: Vec<Fact>,
    /// Settings and origins, by name.
    pub settings: Vec<(String, String)>,
    /// How the model's outputs differ.
    pub outputs: Table,
    /// Neighbours that were quantized together.
    pub neighbours: Table,
    /// What is drawn.
    pub figures: Figures,
    /// What stays in float or follows its neighbours, with the reason.
    pub float: Table,
    /// What the user should know.
    pub notes: Vec<String>,
}

/// A number of the summary.
#[derive(Debug, Clone, Default)]
pub struct Fact {
    /// What it is.
    pub name: String,
    /// The number.
    pub value: String,
    /// What it was, or what it consists of.
    pub detail: String,
}

impl Fact {
    /// A number with its name.
    pub fn new(
        name: impl Into<String>,
        value: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
            detail: detail.into(),
        }
    }
}

/// A table.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// The heads of the columns.
    pub head: Vec<&'static str>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

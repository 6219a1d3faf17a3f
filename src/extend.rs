//! What a user's crate adds to the pipeline: passes at named points, observers that choose ranges.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use onnx_quant_ir::pass::Pass;

use crate::error::Error;
use crate::observe::{Erased, RangeObserver};
use crate::pipeline::{self, NORMALIZE, REWRITE};

/// A stage of the pipeline that is a list of passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The passes of [`NORMALIZE`].
    Normalize,
    /// The passes of [`pipeline::plan_passes`].
    Plan,
    /// The passes of [`pipeline::rewrite_passes`].
    Rewrite,
}

impl Stage {
    /// The name: `normalize`, `plan` or `rewrite`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normalize => "normalize",
            Self::Plan => "plan",
            Self::Rewrite => "rewrite",
        }
    }
}

/// A point of the pipeline. As text: `before:PASS`, `after:PASS`, `before:STAGE` or `after:STAGE`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Before a stage.
    BeforeStage(Stage),
    /// After a stage.
    AfterStage(Stage),
    /// Before every run of a built-in pass.
    Before(String),
    /// After every run of a built-in pass.
    After(String),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeforeStage(s) => write!(f, "before:{}", s.name()),
            Self::AfterStage(s) => write!(f, "after:{}", s.name()),
            Self::Before(pass) => write!(f, "before:{pass}"),
            Self::After(pass) => write!(f, "after:{pass}"),
        }
    }
}

impl FromStr for Point {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (when, what) = text.split_once(':').ok_or_else(|| {
            Error::usage(format!(
                "`{text}` is no point of the pipeline: write before:NAME or after:NAME"
            ))
        })?;
        let stages = [Stage::Normalize, Stage::Plan, Stage::Rewrite];
        let stage = stages.into_iter().find(|s| s.name() == what);
        match (when, stage) {
            ("before", Some(s)) => Ok(Self::BeforeStage(s)),
            ("after", Some(s)) => Ok(Self::AfterStage(s)),
            ("before", None) => Ok(Self::Before(known(what)?)),
            ("after", None) => Ok(Self::After(known(what)?)),
            _ => Err(Error::usage(format!(
                "`{text}` is no point of the pipeline: write before:NAME or after:NAME"
            ))),
        }
    }
}

/// A pass of the pipeline, or the error that suggests one.
fn known(pass: &str) -> Result<String, Error> {
    if NORMALIZE.iter().chain(REWRITE).any(|p| *p == pass) {
        return Ok(pass.to_owned());
    }
    Err(match pipeline::find(pass) {
        Err(e) => e,
        Ok(_) => Error::usage(format!(
            "the pass `{pass}` is no part of the pipeline, so nothing runs before or after it"
        )),
    })
}

/// Passes and observers of the user. Empty by default.
///
/// ```
/// use onnx_quant::extend::{Extensions, Point, Stage};
/// use onnx_quant::passes::drop_unused::DropUnused;
///
/// let mut mine = Extensions::default();
/// mine.pass(Point::AfterStage(Stage::Normalize), DropUnused)?;
/// mine.pass("before:insert_qdq".parse()?, DropUnused)?;
/// assert!("after:insert_qqd".parse::<Point>().is_err());
/// # Ok::<(), onnx_quant::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Extensions {
    passes: BTreeMap<Point, Vec<Arc<dyn Pass>>>,
    observers: Vec<Arc<dyn Erased>>,
}

impl Extensions {
    /// Registers a pass at a point; several at one point run in the order of registration. It is checked, timed, dumped
    /// and counted as the built-in passes are.
    ///
    /// # Errors
    /// A point that names no pass of the pipeline.
    pub fn pass(&mut self, point: Point, pass: impl Pass + 'static) -> Result<&mut Self, Error> {
        if let Point::Before(name) | Point::After(name) = &point {
            known(name)?;
        }
        self.passes.entry(point).or_default().push(Arc::new(pass));
        Ok(self)
    }

    /// Registers an observer; where several give a range for a value, the last one registered decides.
    pub fn observer(&mut self, observer: impl RangeObserver + 'static) -> &mut Self {
        self.observers.push(crate::observe::erase(observer));
        self
    }

    /// The passes at a point.
    pub(crate) fn at(&self, point: &Point) -> &[Arc<dyn Pass>] {
        self.passes.get(point).map_or(&[], Vec::as_slice)
    }

    /// The observers.
    pub(crate) fn observers(&self) -> &[Arc<dyn Erased>] {
        &self.observers
    }

    /// A registered pass by its name.
    pub(crate) fn has_pass(&self, name: &str) -> bool {
        let mut all = self.passes.values().flatten();
        all.any(|p| p.info().name == name)
    }
}

impl fmt::Debug for Extensions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |p: &Vec<Arc<dyn Pass>>| p.iter().map(|p| p.info().name).collect::<Vec<_>>();
        let passes: Vec<_> = self.passes.iter().map(|(k, p)| (k, names(p))).collect();
        f.debug_struct("Extensions")
            .field("passes", &passes)
            .field("observers", &self.observers.len())
            .finish()
    }
}

//! The frame of every pass: what a pass is, what it sees, and the manager that runs passes in order.
//!
//! The manager does *requires → run → sort → verify → ensures → record*. Three things must not be confused: a bad
//! model is a [`PassError`], a pass that leaves a broken graph behind is a [`Violation`] (a bug of that pass), and a
//! rule that does not apply is a [`Skip`] with its reason.

use std::any::{Any, TypeId};
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use crate::model::{Model, NodeId};

/// What a pass is called and where it is documented.
#[derive(Debug)]
pub struct PassInfo {
    /// The name: of the file, of the command-line option, of the case folder and of the snapshot folder.
    pub name: &'static str,
    /// One sentence.
    pub summary: &'static str,
    /// The text of the pass's own file; its head is the documentation.
    pub source: &'static str,
    /// The pass keeps every output bit for bit.
    pub exact: bool,
}

impl PassInfo {
    /// The documentation of the pass: the `//!` head of its file.
    pub fn explain(&self) -> String {
        self.source
            .lines()
            .take_while(|l| l.starts_with("//!"))
            .map(|l| l.trim_start_matches("//!").strip_prefix(' ').unwrap_or(""))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Whether a pass changed the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changed {
    /// The model is as it was.
    No,
    /// The model is another one now.
    Yes,
}

impl From<bool> for Changed {
    fn from(changed: bool) -> Self {
        if changed { Self::Yes } else { Self::No }
    }
}

/// A promise of the frame that does not hold: a bug of the pass that is named with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Why a pass cannot do its work on this model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{pass}: {message}")]
pub struct PassError {
    /// The pass.
    pub pass: String,
    /// What is wrong, with the node or value at fault.
    pub message: String,
}

impl PassError {
    /// An error of the named pass.
    pub fn new(pass: &str, message: impl Into<String>) -> Self {
        Self {
            pass: pass.to_owned(),
            message: message.into(),
        }
    }
}

/// A place where a pass could have acted and did not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    /// The pass.
    pub pass: String,
    /// Key of the node or value.
    pub subject: String,
    /// Why.
    pub reason: String,
}

/// Something the user should know that is no error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The pass.
    pub pass: String,
    /// What was done or found.
    pub message: String,
}

/// What the passes of one run share: typed data (statistics, plan), options, and the record of what was said.
#[derive(Default)]
pub struct PassContext {
    data: HashMap<TypeId, Box<dyn Any + Send + Sync>>,
    options: BTreeMap<String, String>,
    current: String,
    /// Places where a pass did not act, in order.
    pub skips: Vec<Skip>,
    /// What the passes want the user to know, in order.
    pub notes: Vec<Note>,
}

impl PassContext {
    /// The data of this type that was put in before.
    pub fn get<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.data.get(&TypeId::of::<T>())?.downcast_ref()
    }

    /// The data of this type, to be changed.
    pub fn get_mut<T: Any + Send + Sync>(&mut self) -> Option<&mut T> {
        self.data.get_mut(&TypeId::of::<T>())?.downcast_mut()
    }

    /// The data of this type, or the pass's refusal to work without it.
    ///
    /// # Errors
    /// A [`PassError`] that names what is missing.
    pub fn need<T: Any + Send + Sync>(&self) -> Result<&T, PassError> {
        self.get().ok_or_else(|| {
            let name = std::any::type_name::<T>();
            let short = name.rsplit("::").next().unwrap_or(name);
            PassError::new(
                &self.current,
                format!("needs a {short}, and none was given"),
            )
        })
    }

    /// Puts data in; data of the same type is replaced and returned.
    pub fn insert<T: Any + Send + Sync>(&mut self, value: T) -> Option<T> {
        self.data
            .insert(TypeId::of::<T>(), Box::new(value))
            .and_then(|old| old.downcast().ok().map(|b| *b))
    }

    /// Takes data out.
    pub fn take<T: Any + Send + Sync>(&mut self) -> Option<T> {
        self.data
            .remove(&TypeId::of::<T>())
            .and_then(|old| old.downcast().ok().map(|b| *b))
    }

    /// An option that the pipeline text gave to the running pass (`name{key=value}`).
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }

    /// Says that the running pass does not act on a node, and why.
    pub fn skip(&mut self, model: &Model, node: NodeId, reason: impl Into<String>) {
        let subject = model.node_key(node);
        self.skip_subject(subject, reason);
    }

    /// Says that the running pass does not act on something, and why.
    pub fn skip_subject(&mut self, subject: impl Into<String>, reason: impl Into<String>) {
        self.skips.push(Skip {
            pass: self.current.clone(),
            subject: subject.into(),
            reason: reason.into(),
        });
    }

    /// Tells the user something.
    pub fn note(&mut self, message: impl Into<String>) {
        self.notes.push(Note {
            pass: self.current.clone(),
            message: message.into(),
        });
    }
}

/// One transformation or analysis of a model.
pub trait Pass: Send + Sync {
    /// Name and documentation.
    fn info(&self) -> &'static PassInfo;

    /// What must hold before.
    ///
    /// # Errors
    /// What does not hold.
    fn requires(&self, _model: &Model, _cx: &PassContext) -> Result<(), Violation> {
        Ok(())
    }

    /// Does the work.
    ///
    /// # Errors
    /// Why the model does not allow it.
    fn run(&self, model: &mut Model, cx: &mut PassContext) -> Result<Changed, PassError>;

    /// What must hold afterwards.
    ///
    /// # Errors
    /// What does not hold.
    fn ensures(&self, _model: &Model, _cx: &PassContext) -> Result<(), Violation> {
        Ok(())
    }
}

/// What one pass did.
#[derive(Debug, Clone)]
pub struct PassRecord {
    /// The pass.
    pub pass: &'static str,
    /// Whether it changed the model.
    pub changed: Changed,
    /// How long it took, checks not counted.
    pub elapsed: Duration,
}

/// A failure of the manager's run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The pass refuses the model.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// The pass broke a promise.
    #[error("internal error: pass `{pass}` {when}: {violation}")]
    Broken {
        /// The pass.
        pass: &'static str,
        /// Which promise.
        when: &'static str,
        /// What does not hold.
        violation: Violation,
    },
}

/// Called before and after a pass with its name and the model.
pub type Hook<'a> = Box<dyn FnMut(&str, &Model) + 'a>;
/// Checks a whole model.
pub type Verifier = fn(&Model) -> Result<(), Violation>;

/// Runs passes in order.
#[derive(Default)]
pub struct Manager<'a> {
    /// Called before each pass.
    pub before: Option<Hook<'a>>,
    /// Called after each pass.
    pub after: Option<Hook<'a>>,
    /// Checks the model after each pass that changed it.
    pub verifier: Option<Verifier>,
    /// Stops after this many passes.
    pub limit: Option<usize>,
    /// What was done.
    pub records: Vec<PassRecord>,
}

impl Manager<'_> {
    /// Runs one pass with its options.
    ///
    /// # Errors
    /// The pass's refusal, or a broken promise.
    pub fn run(
        &mut self,
        pass: &dyn Pass,
        options: BTreeMap<String, String>,
        model: &mut Model,
        cx: &mut PassContext,
    ) -> Result<Changed, RunError> {
        let name = pass.info().name;
        if self.limit.is_some_and(|n| self.records.len() >= n) {
            return Ok(Changed::No);
        }
        let broken = |when| {
            move |violation| RunError::Broken {
                pass: name,
                when,
                violation,
            }
        };
        cx.current = name.to_owned();
        cx.options = options;
        if let Some(hook) = &mut self.before {
            hook(name, model);
        }
        pass.requires(model, cx)
            .map_err(broken("was run where it cannot be"))?;
        let start = Instant::now();
        let changed = pass.run(model, cx)?;
        let elapsed = start.elapsed();
        if changed == Changed::Yes {
            model
                .sort()
                .map_err(|e| broken("left a cyclic graph")(Violation(e.to_string())))?;
            if let Some(verify) = self.verifier {
                verify(model).map_err(broken("left an invalid model"))?;
            }
        }
        pass.ensures(model, cx)
            .map_err(broken("does not keep what it promises"))?;
        if let Some(hook) = &mut self.after {
            hook(name, model);
        }
        self.records.push(PassRecord {
            pass: name,
            changed,
            elapsed,
        });
        Ok(changed)
    }
}

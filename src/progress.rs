//! Progress bars on long work, with rate and time left: on a terminal only, and on standard error.

#[cfg(feature = "cli")]
pub use with_bars::bar;
#[cfg(not(feature = "cli"))]
pub use without::bar;

use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Shows no bars from now on, or shows them again.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

#[cfg(feature = "cli")]
mod with_bars {
    use std::io::IsTerminal;

    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

    use super::{Ordering, QUIET};

    /// A bar for `total` steps of the named work; invisible where standard error is no terminal.
    pub fn bar(what: &str, total: usize) -> ProgressBar {
        let shown = std::io::stderr().is_terminal() && !QUIET.load(Ordering::Relaxed);
        let target = if shown {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(total as u64), target);
        let style =
            ProgressStyle::with_template("{msg:<12}{wide_bar} {pos}/{len}  {per_sec}  {eta} left");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar
    }
}

#[cfg(not(feature = "cli"))]
mod without {
    /// Stands for a progress bar where there are none.
    pub struct Bar;

    impl Bar {
        /// Steps that are done.
        pub fn inc(&self, _steps: u64) {}

        /// The work is done.
        pub fn finish_and_clear(&self) {}
    }

    /// No bar.
    pub fn bar(_what: &str, _total: usize) -> Bar {
        Bar
    }
}

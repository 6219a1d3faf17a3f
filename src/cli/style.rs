//! Colours on standard error: on a terminal only, and not where `NO_COLOR` is set.

use std::io::IsTerminal;

/// Whether standard error takes colours: <https://no-color.org>, and `CLICOLOR_FORCE` for those who want them in a pipe.
pub(crate) fn colours() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|v| !v.is_empty());
    if set("NO_COLOR") {
        return false;
    }
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    let forced = std::env::var_os("CLICOLOR_FORCE").is_some_and(|v| !v.is_empty() && v != "0");
    forced || (!dumb && std::io::stderr().is_terminal())
}

fn paint(code: &str, text: &str) -> String {
    if colours() {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// The word before an error.
pub(crate) fn error() -> String {
    paint("1;31", "error:")
}

/// The word before a warning.
pub(crate) fn warning() -> String {
    paint("1;33", "warning:")
}

//! Ctrl-C: what is not complete is removed, what is being renamed gets its name, and the program ends.

use onnx_quant::ir::save;

/// Exit code of a program that a signal ended: 128 and the signal's number.
#[cfg(unix)]
const BY_SIGNAL: i32 = 128;

/// Waits for SIGINT and SIGTERM on a thread of its own.
#[cfg(unix)]
pub(crate) fn watch() {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]) else {
        return;
    };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            save::abandon();
            std::process::exit(BY_SIGNAL + signal);
        }
    });
}

/// Other systems end the program by themselves; temporary files stay.
#[cfg(not(unix))]
pub(crate) fn watch() {
    let _ = save::abandon;
}

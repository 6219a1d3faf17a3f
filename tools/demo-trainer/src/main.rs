//! Trains the model of the project's demonstration and writes the files that `onnx-quant` embeds.
//!
//! ```text
//! cargo run --release -p demo-trainer -- --out DIR     # writes the files (assets/demo without --out)
//! cargo run --release -p demo-trainer -- --check       # trains again and compares with the files that are there
//! ```
//! The files come out the same, byte for byte, on every run, machine and number of threads. Exit codes: 0 done,
//! 1 a file differs or the model is not accurate enough (nothing is written), 2 usage or input and output.

mod conv;
mod export;
#[cfg(test)]
mod gradients;
mod layers;
mod network;
mod render;
mod rng;
mod tensor;
mod train;

use render::{Dataset, Split};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use train::Schedule;

const USAGE: &str = "usage: demo-trainer [--out DIR] [--check]";
/// How the demo's model is trained.
const SCHEDULE: Schedule = Schedule {
    steps: 1200,
    batch: 50,
    rate: 0.08,
};
/// Images for calibration.
const CALIBRATION: usize = 128;
/// Images for evaluation.
const EVAL: usize = 512;
/// The share of the evaluation images that a model must recognize to be written.
const ENOUGH: f64 = 0.95;

struct Options {
    out: PathBuf,
    check: bool,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => return fail(2, &format!("{message}\n{USAGE}")),
    };
    let files = match build() {
        Ok(Some(files)) => files,
        Ok(None) => return fail(1, "the model is not accurate enough"),
        Err(error) => return fail(2, &error.to_string()),
    };
    let mut code = ExitCode::SUCCESS;
    for (name, bytes) in files {
        match deliver(&options, name, &bytes) {
            Ok(true) => {}
            Ok(false) => code = ExitCode::FAILURE,
            Err(error) => {
                let path = options.out.join(name);
                return fail(2, &format!("{}: {error}", path.display()));
            }
        }
    }
    code
}

fn fail(code: u8, message: &str) -> ExitCode {
    eprintln!("demo-trainer: {message}");
    ExitCode::from(code)
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        out: Path::new("assets").join("demo"),
        check: false,
    };
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--check" => options.check = true,
            "--out" => options.out = args.next().ok_or("--out needs a folder")?.into(),
            _ => return Err(format!("unknown argument {arg:?}")),
        }
    }
    Ok(options)
}

/// The files of a name and its bytes each.
type Files = Vec<(&'static str, Vec<u8>)>;

/// The files that need no training.
fn data_files() -> std::io::Result<Files> {
    let calibration = Dataset::render(Split::Calibration, 0, CALIBRATION);
    let eval = Dataset::render(Split::Eval, 0, EVAL);
    Ok(vec![
        ("calib.npz", export::images(&calibration)?),
        ("eval.npz", export::images(&eval)?),
        ("labels.npy", export::labels(&eval)?),
    ])
}

/// Trains and evaluates; the model's file and those of the data, or nothing if the accuracy is too low.
fn build() -> std::io::Result<Option<Files>> {
    let started = std::time::Instant::now();
    let mut layers = train::train(SCHEDULE, |step, loss| {
        let seconds = started.elapsed().as_secs();
        println!(
            "step {step:5} of {}  loss {loss:.4}  {seconds} s",
            SCHEDULE.steps
        );
    });
    let eval = Dataset::render(Split::Eval, 0, EVAL);
    let correct = train::correct(&mut layers, &eval);
    let accuracy = correct as f64 / EVAL as f64;
    println!("accuracy {:.2} % ({correct} of {EVAL})", 100.0 * accuracy);
    if accuracy < ENOUGH {
        return Ok(None);
    }
    let mut files = data_files()?;
    files.push(("model.onnx", export::onnx(&layers)));
    Ok(Some(files))
}

/// Writes a file, or compares it with the one that is there; whether all is well.
fn deliver(options: &Options, name: &str, bytes: &[u8]) -> std::io::Result<bool> {
    let path = options.out.join(name);
    if options.check {
        let same = std::fs::read(&path)? == bytes;
        let verdict = if same { "same" } else { "DIFFERENT" };
        println!("{verdict:9}  {}", path.display());
        return Ok(same);
    }
    std::fs::create_dir_all(&options.out)?;
    std::fs::write(&path, bytes)?;
    println!("{:9} bytes  {}", bytes.len(), path.display());
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(args: &[&str]) -> Result<Options, String> {
        parse(args.iter().map(|arg| (*arg).to_owned()))
    }

    #[test]
    fn arguments() {
        let given = options(&["--check", "--out", "x"]).expect("valid arguments");
        assert!(given.check && given.out == Path::new("x"));
        let default = options(&[]).expect("valid arguments");
        assert!(!default.check && default.out == Path::new("assets/demo"));
        assert!(options(&["--out"]).is_err());
        assert!(options(&["model.onnx"]).is_err());
    }

    #[test]
    fn the_stored_data_is_what_this_program_renders() {
        let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo");
        for (name, bytes) in data_files().expect("the data files") {
            let stored = std::fs::read(Path::new(assets).join(name)).expect("a stored file");
            assert!(stored == bytes, "{name} differs");
        }
    }
}

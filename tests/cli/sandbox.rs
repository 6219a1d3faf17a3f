//! A folder with models and data, and the program run in it.

use std::path::{Path, PathBuf};
use std::process::Command;

use onnx_quant::ir::proto::Message;
use onnx_quant::ir::{save, text};
use onnx_quant::run::{Output, write_npz};
use serde_json::Value;

/// Two convolutions, pooling and a dense layer, with weights from a generator; 4 classes.
pub const NET: &str = "main (float[N,1,8,8] x) => (float[N,4] y)
<
  float[8,1,3,3] W1 = random(1),
  float[8] B1 = random(2),
  float[8,8,3,3] W2 = random(3),
  float[8,4] W3 = random(4),
  float[4] B3 = random(5)
>
{
  [conv_1] a = Conv <pads = [1, 1, 1, 1]> (x, W1, B1)
  [relu_1] b = Relu (a)
  [conv_2] c = Conv <pads = [1, 1, 1, 1]> (b, W2)
  [relu_2] d = Relu (c)
  [pool] e = GlobalAveragePool (d)
  [flat] f = Flatten (e)
  [dense] y = Gemm (f, W3, B3)
}
";

/// How the program ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Fails unless the exit code is this one; returns itself for more checks.
    #[track_caller]
    pub fn ends(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code\n{}\n{}",
            self.stdout, self.stderr
        );
        self
    }

    /// Fails unless the program refused: exit code 2, one error that holds all the words, and no panic.
    #[track_caller]
    pub fn refuses(self, words: &[&str]) {
        let ran = self.ends(2);
        let errors = ran.stderr.matches("error: ").count();
        assert_eq!(errors, 1, "one error\n{}", ran.stderr);
        let error = ran.stderr.split("error: ").nth(1).unwrap_or("").trim();
        let half = error.len() / 2;
        let twice = error
            .get(half..)
            .is_some_and(|rest| error.starts_with(rest.trim_start_matches([':', ' '])));
        assert!(!twice, "said twice\n{}", ran.stderr);
        for word in words {
            assert!(
                ran.stderr.contains(word),
                "`{word}` is missing in\n{}",
                ran.stderr
            );
        }
    }

    /// Standard output as one JSON document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}\n{}", self.stdout))
    }
}

/// A temporary folder that the program runs in.
pub struct Sandbox(tempfile::TempDir);

impl Sandbox {
    /// An empty folder.
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A folder with `net.onnx`, `calib.npz` and `eval.npz`.
    pub fn with_net() -> Self {
        let dir = Self::new();
        dir.model("net.onnx", NET);
        dir.npz("calib.npz", &[("x", &[16, 1, 8, 8], &noise(16 * 64, 1))]);
        dir.npz("eval.npz", &[("x", &[24, 1, 8, 8], &noise(24 * 64, 2))]);
        dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn has(&self, name: &str) -> bool {
        self.path(name).exists()
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.path(name), bytes).unwrap();
    }

    /// The names in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Writes a model given in the text form.
    pub fn model(&self, name: &str, source: &str) {
        let model = text::parse(source).unwrap();
        save::save(&model, &self.path(name), save::ExternalData::Auto).unwrap();
    }

    /// Writes a model message as it is.
    pub fn proto(&self, name: &str, proto: &onnx_quant::ir::proto::ModelProto) {
        self.write(name, &proto.encode_to_vec());
    }

    /// Writes FP32 arrays.
    pub fn npz(&self, name: &str, arrays: &[(&str, &[usize], &[f32])]) {
        let outputs: Vec<Output> = arrays
            .iter()
            .map(|(name, dims, data)| {
                let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
                array(name, "<f4", dims, bytes)
            })
            .collect();
        self.arrays(name, &outputs);
    }

    /// Writes arrays of any type.
    pub fn arrays(&self, name: &str, arrays: &[Output]) {
        let mut file = std::fs::File::create(self.path(name)).unwrap();
        write_npz(arrays, &mut file).unwrap();
    }

    /// Writes INT64 values as an `.npy` file.
    pub fn labels(&self, name: &str, labels: &[i64]) {
        let mut text = format!(
            "{{'descr': '<i8', 'fortran_order': False, 'shape': ({},), }}",
            labels.len()
        );
        text.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend(u16::try_from(text.len()).unwrap().to_le_bytes());
        bytes.extend(text.into_bytes());
        bytes.extend(labels.iter().flat_map(|l| l.to_le_bytes()));
        self.write(name, &bytes);
    }

    /// Runs the program in the folder.
    pub fn run(&self, args: &[&str]) -> Ran {
        run_in(self.0.path(), args)
    }

    /// Runs the program with arguments in one line, which may not hold spaces.
    pub fn line(&self, line: &str) -> Ran {
        self.run(&line.split_whitespace().collect::<Vec<_>>())
    }
}

/// An array of an `.npz`.
pub fn array(name: &str, descr: &'static str, dims: &[usize], bytes: Vec<u8>) -> Output {
    Output {
        name: name.to_owned(),
        descr,
        dims: dims.to_vec(),
        bytes,
    }
}

/// Runs the program in a folder.
pub fn run_in(folder: &Path, args: &[&str]) -> Ran {
    let out = Command::new(env!("CARGO_BIN_EXE_onnx-quant"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    Ran {
        code: out.status.code().unwrap_or(-1),
        stdout: String::from_utf8(out.stdout).unwrap(),
        stderr: String::from_utf8(out.stderr).unwrap(),
    }
}

/// Values between -1 and 1, the same for the same seed.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

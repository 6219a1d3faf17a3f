//! Data as users have it, through the program: images, recordings, random numbers, values for inputs, and the choice
//! of samples. The files are made here.

use onnx_quant::data::{DataSet, Signature};
use onnx_quant::ir::text;

use super::sandbox::{Sandbox, noise};

/// What goes in comes out.
const PLANES: &str = "main (float[N,3,2,2] x) => (float[N,3,2,2] y) {\n  y = Identity (x)\n}\n";

/// Four classes by the mean of each image.
const PICTURES: &str = "main (float[N,1,8,8] x) => (float[N,2] y)
<
  float[4,1,3,3] W = random(1),
  float[4] B = random(2),
  float[4,2] V = random(3)
>
{
  [conv] a = Conv <pads = [1, 1, 1, 1]> (x, W, B)
  [relu] b = Relu (a)
  [pool] c = GlobalAveragePool (b)
  [flat] d = Flatten (c)
  [dense] y = Gemm (d, V)
}
";

/// A 24-bit Windows bitmap; `pixel` gives red, green and blue by row and column.
pub fn bmp(height: usize, width: usize, pixel: impl Fn(usize, usize) -> [u8; 3]) -> Vec<u8> {
    let row = (width * 3).next_multiple_of(4);
    let mut out = b"BM".to_vec();
    out.extend((54 + row as u32 * height as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend(54_u32.to_le_bytes());
    out.extend(40_u32.to_le_bytes());
    out.extend((width as i32).to_le_bytes());
    out.extend((height as i32).to_le_bytes());
    out.extend(1_u16.to_le_bytes());
    out.extend(24_u16.to_le_bytes());
    out.extend([0; 24]);
    // Rows stand from the last to the first.
    for y in (0..height).rev() {
        let start = out.len();
        for x in 0..width {
            let [r, g, b] = pixel(y, x);
            out.extend([b, g, r]);
        }
        out.resize(start + row, 0);
    }
    out
}

/// A recording of 16 bits.
pub fn wav(rate: u32, channels: u16, values: &[i16]) -> Vec<u8> {
    let bytes = values.len() as u32 * 2;
    let mut out = b"RIFF".to_vec();
    out.extend((36 + bytes).to_le_bytes());
    out.extend(b"WAVEfmt ");
    out.extend(16_u32.to_le_bytes());
    out.extend(1_u16.to_le_bytes());
    out.extend(channels.to_le_bytes());
    out.extend(rate.to_le_bytes());
    out.extend((rate * 2 * u32::from(channels)).to_le_bytes());
    out.extend((2 * channels).to_le_bytes());
    out.extend(16_u16.to_le_bytes());
    out.extend(b"data");
    out.extend(bytes.to_le_bytes());
    out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    out
}

impl Sandbox {
    fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Twelve grey pictures in two sub-folders.
    fn pictures() -> Self {
        let dir = Self::new();
        dir.model("net.onnx", PICTURES);
        for i in 0..12_usize {
            let name = format!("images/{}/{i}.bmp", ["cat", "dog"][i % 2]);
            dir.put(
                &name,
                &bmp(8, 8, |y, x| [(x * 29 + y * 13 + i * 17) as u8; 3]),
            );
        }
        dir
    }

    /// The array `y` that `run` wrote, declared as the type and shape.
    fn values(&self, name: &str, ty: &str) -> Vec<f32> {
        self.array(name, "y", ty)
    }

    /// An array that `run` wrote, declared as the type and shape; the others of the file are left out.
    pub fn array(&self, name: &str, array: &str, ty: &str) -> Vec<f32> {
        let text = format!("main ({ty} {array}) => ({ty} z) {{\n  z = Identity ({array})\n}}\n");
        let signature = Signature::of(&text::parse(&text).unwrap()).unwrap();
        let mut archive =
            zip::ZipArchive::new(std::fs::File::open(self.path(name)).unwrap()).unwrap();
        let mut bytes = Vec::new();
        let mut entry = archive.by_name(&format!("{array}.npy")).unwrap();
        std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
        let single = self.path("single.npy");
        std::fs::write(&single, bytes).unwrap();
        let data = DataSet::open(&single, &signature).unwrap();
        let batches = data.batches(64);
        let values = batches.map(|b| b.unwrap().tensors[0].to_f32().unwrap());
        let values = values.flatten().collect();
        std::fs::remove_file(single).unwrap();
        values
    }
}

#[test]
fn images_are_fed_as_the_options_say() {
    let dir = Sandbox::new();
    dir.model("id.onnx", PLANES);
    dir.put(
        "images/b.bmp",
        &bmp(2, 2, |y, x| [(10 * y + x) as u8, 100, 200]),
    );
    dir.put("images/a.bmp", &bmp(2, 2, |_, _| [255, 0, 51]));
    dir.put("images/readme.txt", b"not an image");
    let ran = dir
        .line("run id.onnx --data images --preset raw -o y.npz")
        .ends(0);
    assert!(
        ran.stdout.contains("1 files are no images"),
        "{}",
        ran.stdout
    );
    let raw = dir.values("y.npz", "float[N,3,2,2]");
    let first = [[255.0; 4], [0.0; 4], [51.0; 4]].concat();
    let second = [vec![0.0, 1.0, 10.0, 11.0], vec![100.0; 4], vec![200.0; 4]].concat();
    assert_eq!(raw, [first, second].concat());

    dir.line("run id.onnx --data images --mean 0.5,0,1 --std 0.5,1,2 --channels bgr -o y.npz")
        .ends(0);
    let scaled = dir.values("y.npz", "float[N,3,2,2]");
    let channel = |v: f64| v as f32;
    assert_eq!(scaled[0], channel((51.0 / 255.0 - 0.5) / 0.5));
    assert_eq!(scaled[4], 0.0);
    assert_eq!(scaled[8], channel((1.0 - 1.0) / 2.0));

    dir.model(
        "last.onnx",
        "main (float[N,H,W,3] x) => (float[N,H,W,3] y) {\n  y = Identity (x)\n}\n",
    );
    let line = "run last.onnx --data images/b.bmp --image-size 2x2 --preset raw -o y.npz";
    dir.line(line).ends(0);
    let last = dir.values("y.npz", "float[N,2,2,3]");
    assert_eq!(last[..6], [0.0, 100.0, 200.0, 1.0, 100.0, 200.0]);

    dir.model(
        "byte.onnx",
        "main (uint8[N,3,2,2] x) => (uint8[N,3,2,2] y) {\n  y = Identity (x)\n}\n",
    );
    dir.line("run byte.onnx --data images -o y.npz").ends(0);
    let plane = |b: u8| dir.read("y.npz").windows(4).any(|w| w == [b; 4]);
    assert!(plane(51));
}

#[test]
fn images_are_scaled_and_cut() {
    let dir = Sandbox::new();
    dir.model("id.onnx", PLANES);
    // 4 rows of 8: the shorter side to 2 gives 2 rows of 4, of which the middle 2 columns stay.
    dir.put(
        "images/wide.bmp",
        &bmp(4, 8, |_, x| [(x / 2 * 50) as u8; 3]),
    );
    dir.line("run id.onnx --data images --preset raw --resize shortest:2 -o y.npz")
        .ends(0);
    let cut = dir.values("y.npz", "float[N,3,2,2]");
    assert!(
        cut[0] > 30.0 && cut[0] < 70.0 && cut[1] > 80.0 && cut[1] < 120.0,
        "{cut:?}"
    );
    dir.line("run id.onnx --data images --preset raw --resize fit:7 -o y.npz")
        .ends(0);
    // One row of 2, and one row of the border.
    let fit = dir.values("y.npz", "float[N,3,2,2]");
    assert_eq!(fit.iter().filter(|&&v| v == 7.0).count(), 6, "{fit:?}");
}

#[test]
fn sub_folders_and_csv_files_are_labels() {
    let dir = Sandbox::pictures();
    dir.line("quantize net.onnx --calib images --preset unit -o q.onnx")
        .ends(0);
    let folders = dir
        .line("check net.onnx q.onnx --eval images --preset unit --json")
        .ends(0)
        .json();
    assert_eq!(folders["task"]["metric"], "top-1");
    assert!(
        folders["notes"].to_string().contains("cat = 0 to dog = 1"),
        "{folders}"
    );
    let share = |v: &serde_json::Value| v["task"]["reference"].as_f64().unwrap();
    let rows: String = (0..12).map(|i| format!("{i}.bmp,{}\n", i % 2)).collect();
    dir.put("labels.csv", format!("file,class\n{rows}").as_bytes());
    let line = "check net.onnx q.onnx --eval images --preset unit --labels labels.csv --json";
    assert_eq!(share(&dir.line(line).ends(0).json()), share(&folders));
    let swapped: String = (0..12)
        .map(|i| format!("\"{i}.bmp\",{}\n", 1 - i % 2))
        .collect();
    dir.put("labels.csv", swapped.as_bytes());
    let other = share(&dir.line(line).ends(0).json());
    assert!((other + share(&folders) - 1.0).abs() < 1e-9);
    // The labels of samples that are left out are left out with them.
    let shuffled = format!("{line} --shuffle --samples 12 --seed 3");
    assert_eq!(share(&dir.line(&shuffled).ends(0).json()), other);
}

#[test]
fn broken_images_are_named_and_may_be_skipped() {
    let dir = Sandbox::pictures();
    let whole = dir.read("images/cat/4.bmp");
    dir.put("images/cat/4.bmp", &whole[..100]);
    let line = "quantize net.onnx --calib images --preset unit -o q.onnx --report r.json";
    dir.line(line)
        .refuses(&["4.bmp", "cannot be read", "--skip-bad"]);
    assert!(!dir.has("q.onnx") && !dir.has("r.json"));
    let ran = dir.line(&format!("{line} --skip-bad")).ends(0);
    assert!(ran.stdout.contains("SKIPPED 1 of 12"), "{}", ran.stdout);
    let report: serde_json::Value = serde_json::from_slice(&dir.read("r.json")).unwrap();
    assert_eq!(report["calibration_skipped"], 1);
    assert_eq!(report["calibration_samples"], 11);
    let check = "check net.onnx q.onnx --eval images --preset unit --skip-bad --json";
    assert_eq!(dir.line(check).ends(0).json()["samples"], 11);
}

#[test]
fn recordings_are_cut_into_windows() {
    let dir = Sandbox::new();
    dir.model(
        "id.onnx",
        "main (float[N,4] x) => (float[N,4] y) {\n  y = Identity (x)\n}\n",
    );
    dir.put(
        "sounds/1.wav",
        &wav(8000, 1, &[0, 8192, -16384, 1, 2, 3, 4, 5, 6, 7]),
    );
    dir.put("sounds/2.wav", &wav(8000, 1, &[-32768, 16384]));
    let ran = dir.line("run id.onnx --data sounds -o y.npz").ends(0);
    assert!(
        ran.stdout.contains("filled up with silence"),
        "{}",
        ran.stdout
    );
    let values = dir.values("y.npz", "float[N,4]");
    assert_eq!(values.len(), 12);
    assert_eq!(values[..3], [0.0, 0.25, -0.5]);
    assert_eq!(values[8..], [-1.0, 0.5, 0.0, 0.0]);
    dir.model(
        "free.onnx",
        "main (float[N,T] x) => (float[N,T] y) {\n  y = Identity (x)\n}\n",
    );
    dir.line("run free.onnx --data sounds -o y.npz")
        .refuses(&["--window"]);
    dir.line("run free.onnx --data sounds/1.wav --window 5 -o y.npz")
        .ends(0);
    assert_eq!(dir.values("y.npz", "float[N,5]").len(), 10);
}

#[test]
fn random_data_is_a_dry_run_and_says_so() {
    let dir = Sandbox::with_net();
    let line = |seed: u64, out: &str| {
        let line =
            format!("quantize net.onnx --calib random:16 --seed {seed} -o {out} --report r.json");
        dir.line(&line).ends(0)
    };
    let ran = line(1, "a.onnx");
    assert!(ran.stdout.contains("RANDOM DATA"), "{}", ran.stdout);
    assert!(ran.stderr.contains("RANDOM DATA"), "{}", ran.stderr);
    let report: serde_json::Value = serde_json::from_slice(&dir.read("r.json")).unwrap();
    assert_eq!(report["calibration_data"], "random:16");
    assert_eq!(report["calibration_samples"], 16);
    line(1, "b.onnx");
    line(2, "c.onnx");
    assert_eq!(dir.read("a.onnx"), dir.read("b.onnx"));
    assert_ne!(dir.read("a.onnx"), dir.read("c.onnx"));
    dir.model(
        "embed.onnx",
        "main (int64[N,T] ids, int64[N,T] mask) => (float[N,T,2] y)
<float[5,2] table = random(1)>
{
  e = Gather (table, ids)
  m = Cast <to = 1> (mask)
  axis = Constant <value_ints = [2]> ()
  u = Unsqueeze (m, axis)
  y = Mul (e, u)
}
",
    );
    // Indices beyond the five rows would fail.
    dir.line("run embed.onnx --data random:50 --window 7 -o y.npz")
        .ends(0);
    assert_eq!(dir.values("y.npz", "float[N,7,2]").len(), 50 * 14);
}

#[test]
fn inputs_that_the_data_does_not_give() {
    let dir = Sandbox::new();
    dir.model(
        "two.onnx",
        "main (float[N,3] x, float[N,3] s) => (float[N,3] y) {\n  y = Mul (x, s)\n}\n",
    );
    let x = noise(15, 3);
    dir.npz("x.npz", &[("x", &[5, 3], &x)]);
    dir.npz("s.npz", &[("s", &[1, 3], &[2.0, 3.0, 4.0])]);
    dir.line("run two.onnx --data x.npz -o y.npz")
        .refuses(&["no array for the input `s`"]);
    dir.line("run two.onnx --data x.npz --input s=2 -o y.npz")
        .ends(0);
    let doubled: Vec<f32> = x.iter().map(|v| v * 2.0).collect();
    assert_eq!(dir.values("y.npz", "float[N,3]"), doubled);
    dir.line("run two.onnx --data x.npz --input s=[2,3,4] -o y.npz")
        .ends(0);
    let rows: Vec<f32> = x
        .iter()
        .enumerate()
        .map(|(i, v)| v * (2 + i % 3) as f32)
        .collect();
    assert_eq!(dir.values("y.npz", "float[N,3]"), rows);
    for (value, words) in [
        ("s=[1,2]", &["--input s", "[2]", "does not fit"][..]),
        ("s=[[1],[2,3]]", &["different lengths"]),
        ("s=", &["NAME=VALUE"]),
        ("t=1", &["no such input"]),
        ("s=nothing.npy", &["neither a number"]),
    ] {
        let args = [
            "run", "two.onnx", "--data", "x.npz", "--input", value, "-o", "z.npz",
        ];
        dir.run(&args).refuses(words);
    }
    dir.line("run two.onnx --data x.npz --input s=1 --input x=1 -o z.npz")
        .refuses(&["--input x", "gives that input already"]);
}

#[test]
fn caches_that_the_data_does_not_give_are_empty() {
    let dir = Sandbox::new();
    dir.model(
        "cache.onnx",
        "main (float[N,2,S,4] x, float[N,2,P,4] \"past_key_values.0.key\") => (float[N,2,T,4] y) {
  y = Concat <axis = 2> (\"past_key_values.0.key\", x)
}
",
    );
    let x = noise(3 * 2 * 5 * 4, 3);
    dir.npz("x.npz", &[("x", &[3, 2, 5, 4], &x)]);
    let ran = dir.line("run cache.onnx --data x.npz -o y.npz").ends(0);
    assert!(ran.stdout.contains("length zero"), "{}", ran.stdout);
    assert_eq!(dir.values("y.npz", "float[N,2,5,4]"), x);
}

#[test]
fn samples_are_chosen() {
    let dir = Sandbox::new();
    dir.model(
        "id.onnx",
        "main (float[N,1] x) => (float[N,1] y) {\n  y = Identity (x)\n}\n",
    );
    let x: Vec<f32> = (0..100).map(|i| i as f32).collect();
    dir.npz("x.npz", &[("x", &[100, 1], &x)]);
    let run = |options: &str| {
        dir.line(&format!("run id.onnx --data x.npz -o y.npz {options}"))
            .ends(0);
        dir.values("y.npz", "float[N,1]")
    };
    assert_eq!(run("--samples 7"), x[..7]);
    let some = run("--samples 20 --shuffle --seed 5");
    assert_eq!(some, run("--samples 20 --shuffle --seed 5 --threads 1"));
    assert_ne!(some, run("--samples 20 --shuffle --seed 6"));
    let mut sorted = run("--shuffle");
    assert_ne!(sorted, x);
    sorted.sort_by(f32::total_cmp);
    assert_eq!(sorted, x);
    // One feed for each index of one more axis.
    dir.npz("feeds.npz", &[("x", &[10, 10, 1], &x)]);
    dir.line("run id.onnx --data feeds.npz --shuffle --samples 2 -o y.npz")
        .ends(0);
    let feeds = dir.values("y.npz", "float[N,10,1]");
    assert!(feeds.len() == 20 && feeds[0] % 10.0 == 0.0 && feeds[9] == feeds[0] + 9.0);
}

#[test]
fn safetensors_are_arrays() {
    let dir = Sandbox::with_net();
    let x = noise(16 * 64, 1);
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let write = |head: &str, bytes: &[u8]| {
        let mut file = (head.len() as u64).to_le_bytes().to_vec();
        file.extend(head.as_bytes());
        file.extend(bytes);
        dir.put("calib.safetensors", &file);
    };
    let head = format!(
        "{{\"__metadata__\":{{\"a\":\"b\"}},\"x\":{{\"dtype\":\"F32\",\"shape\":[16,1,8,8],\"data_offsets\":[0,{}]}}}}",
        bytes.len()
    );
    write(&head, &bytes);
    dir.line("quantize net.onnx --calib calib.npz -o a.onnx")
        .ends(0);
    dir.line("quantize net.onnx --calib calib.safetensors -o b.onnx")
        .ends(0);
    assert_eq!(dir.read("a.onnx"), dir.read("b.onnx"));
    let refused = |words: &[&str]| {
        dir.line("quantize net.onnx --calib calib.safetensors -o c.onnx")
            .refuses(words);
    };
    write(&head, &bytes[..100]);
    refused(&["calib.safetensors", "`x`", "does not fit"]);
    write(&head.replace("F32", "F128"), &bytes);
    refused(&["F128"]);
    write("{\"x\":", &bytes);
    refused(&["no JSON"]);
    write(&head.replace("\"x\"", "\"z\""), &bytes);
    refused(&["`z`", "not an input"]);
    dir.put("calib.safetensors", b"abc");
    refused(&["too short"]);
}

#[test]
fn images_that_do_not_fit() {
    let dir = Sandbox::pictures();
    let refused = |options: &str, words: &[&str]| {
        let before = dir.names();
        dir.line(&format!("quantize net.onnx -o q.onnx --calib {options}"))
            .refuses(words);
        assert_eq!(dir.names(), before);
    };
    refused("nothing", &["nothing", "does not exist"]);
    std::fs::create_dir(dir.path("empty")).unwrap();
    refused("empty", &["empty", "no image"]);
    dir.put("texts/a.md", b"text");
    refused("texts", &["texts", "no image"]);
    refused(
        "images --image-size 9x9",
        &["--image-size 9x9", "`x`", "8, 8"],
    );
    refused("images --image-size big", &["HEIGHTxWIDTH"]);
    refused("images --resize shortest", &["shortest:256"]);
    refused("images --mean 1,2", &["--mean", "2 values", "1 channels"]);
    refused("images --std 0", &["--std"]);
    refused("images --layout nhwc", &["nhwc", "8 channels"]);
    refused("images --preset foo", &["imagenet"]);
    dir.put("images/small.bmp", &bmp(4, 4, |_, _| [0; 3]));
    refused("images --resize none", &["small.bmp", "4x4", "8x8"]);
    refused("images --samples 0", &["--samples"]);
    dir.put("bad/x.png", b"this is no image");
    refused("bad", &["x.png", "cannot be read"]);
    refused("bad --skip-bad", &["not one"]);
    refused("random:0", &["random:16"]);
    refused("random:many", &["random:16"]);
    dir.put("a.txt", b"text\n");
    refused("a.txt", &["a.txt", "text"]);
    dir.model(
        "strings.onnx",
        "main (string[N] x) => (string[N] y) {\n  y = Identity (x)\n}\n",
    );
    dir.line("run strings.onnx --data random:4 -o y.npz")
        .refuses(&["`x`", "strings"]);
}

#[test]
fn labels_that_do_not_fit() {
    let dir = Sandbox::pictures();
    let refused = |csv: &str, words: &[&str]| {
        dir.put("labels.csv", csv.as_bytes());
        let line = "check net.onnx net.onnx --eval images --preset unit --labels labels.csv";
        dir.line(line).refuses(words);
    };
    let all: String = (0..12).map(|i| format!("{i}.bmp,{}\n", i % 2)).collect();
    refused("", &["labels.csv", "no labels"]);
    refused("0.bmp\n", &["line 1", "comma"]);
    refused("99.bmp,1\n", &["line 1", "99.bmp", "none of the files"]);
    refused("0.bmp,1\n1.bmp,x\n", &["line 2", "`x`"]);
    refused("0.bmp,1\n0.bmp,1\n", &["line 2", "on line 1"]);
    refused(&all.replace("7.bmp,1\n", ""), &["no class for", "7.bmp"]);
    dir.put("labels.csv", all.as_bytes());
    dir.npz("x.npz", &[("x", &[12, 1, 8, 8], &noise(12 * 64, 1))]);
    dir.line("check net.onnx net.onnx --eval x.npz --labels labels.csv")
        .refuses(&["labels.csv", "folders of images"]);
    dir.line("check net.onnx net.onnx --eval images --labels next-token")
        .refuses(&["next-token", "window"]);
}

#[test]
fn recordings_that_do_not_fit() {
    let dir = Sandbox::new();
    dir.model(
        "id.onnx",
        "main (float[N,4] x) => (float[N,4] y) {\n  y = Identity (x)\n}\n",
    );
    dir.put("good/a.wav", &wav(8000, 1, &[1; 8]));
    let refused = |name: &str, bytes: &[u8], options: &str, words: &[&str]| {
        dir.put(name, bytes);
        let folder = name.split('/').next().unwrap();
        dir.line(&format!("run id.onnx --data {folder} {options} -o y.npz"))
            .refuses(words);
    };
    refused(
        "good/a.wav",
        &wav(8000, 1, &[1; 8]),
        "--rate 16000",
        &["a.wav", "8000", "16000"],
    );
    refused(
        "good/a.wav",
        &wav(8000, 1, &[1; 8]),
        "--window 5",
        &["--window 5"],
    );
    refused(
        "stereo/a.wav",
        &wav(8000, 2, &[1; 8]),
        "",
        &["a.wav", "2 channels"],
    );
    refused("empty/a.wav", &wav(8000, 1, &[]), "", &["a.wav", "empty"]);
    refused(
        "broken/a.wav",
        b"RIFFxxxxWAVE",
        "",
        &["a.wav", "cannot be read"],
    );
    dir.put("mixed/a.wav", &wav(8000, 1, &[1; 8]));
    refused(
        "mixed/b.wav",
        &wav(44100, 1, &[1; 8]),
        "",
        &["b.wav", "44100", "a.wav", "8000"],
    );
    let ran = dir
        .line("run id.onnx --data mixed --skip-bad -o y.npz")
        .ends(0);
    assert!(ran.stdout.contains("SKIPPED 1 of 2"), "{}", ran.stdout);
}

//! Codebook weights and compressed files through the program.

use super::sandbox::Sandbox;

/// A net whose weights are large enough for codebooks.
fn net() -> Sandbox {
    Sandbox::with_net()
}

#[test]
fn codebooks_store_their_bits_and_run() {
    let dir = net();
    for (format, bits) in [
        ("kmeans2:tensor", 2.0),
        ("kmeans4:channel", 4.0),
        ("binary:tensor", 1.0),
        ("ternary", 2.0),
    ] {
        let line =
            format!("quantize net.onnx --weights {format} --activations none -o q.onnx --json");
        let report = dir.line(&line).ends(0).json();
        let told = report["size"]["effective_bits"].as_f64().unwrap();
        let seen = dir.line("inspect q.onnx --json").ends(0).json();
        let quantization = &seen["quantization"];
        assert_eq!(
            quantization["effective_bits"].as_f64().unwrap(),
            told,
            "{format}"
        );
        let weights = quantization["weights"].as_array().unwrap();
        assert_eq!(weights.len(), 3, "{format}");
        let values: u64 = weights.iter().map(|w| w["values"].as_u64().unwrap()).sum();
        assert_eq!(values, 72 + 576 + 32, "{format}");
        // Codes, and codebooks or scales beside them.
        assert!(told >= bits, "{format}: {told}");
        let name = format.split(':').next().unwrap();
        assert!(weights.iter().all(|w| w["indexed"] == name), "{format}");
        dir.line("check net.onnx q.onnx --eval calib.npz").ends(0);
        dir.line("quantize q.onnx -o again.onnx")
            .refuses(&["already quantized", name]);
    }
}

#[test]
fn stochastic_signs_follow_the_seed() {
    let dir = net();
    let write = |seed: u32, name: &str| {
        let line = format!(
            "quantize net.onnx --weights binary --activations none --binary stochastic --seed {seed} -o {name}"
        );
        dir.line(&line).ends(0);
        std::fs::read(dir.path(name)).unwrap()
    };
    let first = write(1, "a.onnx");
    assert_eq!(first, write(1, "b.onnx"));
    assert_ne!(first, write(2, "c.onnx"));
}

#[test]
fn a_compressed_file_comes_back_as_the_clustered_model() {
    let dir = net();
    let line = "compress net.onnx --sparsity 0.6 --weights kmeans4 --clustered clustered.onnx -o net.oqz --json";
    let report = dir.line(line).ends(0).json();
    dir.line("decompress net.oqz -o back.onnx").ends(0);
    let bytes = |name: &str| std::fs::read(dir.path(name)).unwrap();
    assert_eq!(bytes("clustered.onnx"), bytes("back.onnx"));
    assert_eq!(report["after_bytes"], bytes("net.oqz").len());
    assert!((report["sparsity"].as_f64().unwrap() - 0.6).abs() < 0.02);
    let stages: Vec<i64> = report["stages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["bits"].as_i64().unwrap())
        .collect();
    assert!(
        stages[0] > stages[1] && stages[1] > stages[2] && stages[2] > stages[3],
        "{stages:?}"
    );
    dir.line("compress net.onnx --sparsity 0.6 --weights kmeans4 --threads 1 -o one.oqz")
        .ends(0);
    assert_eq!(bytes("net.oqz"), bytes("one.oqz"));
}

#[test]
fn a_budget_chooses_the_sparsity_by_what_is_measured() {
    let dir = net();
    let line =
        "compress net.onnx --calib calib.npz --eval calib.npz --max-drop 20% -o net.oqz --json";
    let report = dir.line(line).ends(0).json();
    let budget = &report["budget"];
    assert!(budget["held"].as_bool().unwrap());
    let trials = report["trials"].as_array().unwrap();
    assert!(trials.len() > 3, "{trials:?}");
    let chosen = report["sparsity"].as_f64().unwrap();
    for t in trials.iter().filter(|t| t["drop"].as_f64().unwrap() > 0.2) {
        assert!(t["sparsity"].as_f64().unwrap() > chosen, "{trials:?}");
    }
}

#[test]
fn wrong_compressions_are_refused() {
    let dir = net();
    let refuse = |line: &str, words: &[&str]| {
        let before = dir.names();
        dir.line(line).refuses(words);
        assert_eq!(dir.names(), before, "{line}");
    };
    refuse(
        "compress net.onnx --weights kmean4 -o n.oqz",
        &["did you mean `kmeans4`"],
    );
    refuse(
        "compress net.onnx --weights int4 -o n.oqz",
        &["kmeans2 to kmeans8"],
    );
    refuse(
        "compress net.onnx --weights kmeans4:channel -o n.oqz",
        &["one codebook for the tensor"],
    );
    refuse(
        "compress net.onnx --weights kmeans1 --sparsity 0.5 -o n.oqz",
        &["kmeans2 to kmeans8"],
    );
    refuse(
        "compress net.onnx --sparsity 1.5 -o n.oqz",
        &["share between 0 and 1"],
    );
    refuse("compress net.onnx --max-drop 1% -o n.oqz", &["--eval"]);
    refuse(
        "compress net.onnx --prune importance -o n.oqz",
        &["--calib"],
    );
    refuse(
        "compress net.onnx --prune globl -o n.oqz",
        &["layer, global, importance"],
    );
    refuse(
        "compress net.onnx --schedule cubic:0 --sparsity 0.5 -o n.oqz",
        &["cubic:N"],
    );
    refuse(
        "compress net.onnx --schedule cubic:3 -o n.oqz",
        &["--sparsity"],
    );
    refuse(
        "compress net.onnx --coder huffmann -o n.oqz",
        &["did you mean `huffman`"],
    );
    refuse(
        "compress net.onnx --kmeans-init liner -o n.oqz",
        &["did you mean `linear`"],
    );
    refuse("compress net.onnx --include nothing -o n.oqz", &["nothing"]);
    refuse("compress net.onnx -o net.onnx", &["never overwritten"]);
    refuse(
        "compress net.onnx --clustered n.oqz -o n.oqz",
        &["same file"],
    );
    refuse("compress nothing.onnx -o n.oqz", &["does not exist"]);
    refuse(
        "decompress net.onnx -o n.onnx",
        &["net.onnx", "not an .oqz file"],
    );
    refuse("decompress nothing.oqz -o n.onnx", &["nothing.oqz"]);
    refuse("quantize net.onnx --weights kmeans9 -o q.onnx", &["kmeans"]);
    refuse(
        "quantize net.onnx --weights binary --binary random -o q.onnx",
        &["deterministic, stochastic"],
    );
    refuse(
        "quantize net.onnx --activations kmeans4 -o q.onnx",
        &["is for weights only"],
    );
}

#[test]
fn damage_anywhere_in_a_compressed_file_is_found() {
    let dir = net();
    dir.line("compress net.onnx --sparsity 0.5 -o net.oqz")
        .ends(0);
    let data = std::fs::read(dir.path("net.oqz")).unwrap();
    for at in [0, 8, 9, 14, data.len() / 3, data.len() / 2, data.len() - 1] {
        let mut bad = data.clone();
        bad[at] ^= 0x20;
        std::fs::write(dir.path("bad.oqz"), &bad).unwrap();
        let before = dir.names();
        dir.line("decompress bad.oqz -o back.onnx")
            .refuses(&["bad.oqz"]);
        assert_eq!(dir.names(), before);
    }
    std::fs::write(dir.path("bad.oqz"), &data[..data.len() - 7]).unwrap();
    dir.line("decompress bad.oqz -o back.onnx")
        .refuses(&["is damaged: it ends"]);
}

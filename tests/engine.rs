//! The tract engine against other implementations: the onnx reference evaluator on Q/DQ, onnxruntime on whole models.
//!
//! The expected values come from the programs in `tests/crosscheck`, which name the variable that hands their output
//! to these tests. Without it a test says so and passes.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use onnx_quant::engine::{SessionCache, TractEngine};
use onnx_quant_ir::engine::{Engine, Observed, Request};
use onnx_quant_ir::{DataType, Model, Tensor, load};

/// One tensor of a case file.
#[derive(serde::Deserialize)]
struct TensorFile {
    name: String,
    dtype: i32,
    dims: Vec<i64>,
    file: String,
}

#[derive(serde::Deserialize)]
struct Sample {
    inputs: Vec<TensorFile>,
    outputs: Vec<TensorFile>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    model: PathBuf,
    bits: bool,
    samples: Vec<Sample>,
}

impl TensorFile {
    fn read(&self, folder: &Path) -> Tensor {
        let dtype = DataType::try_from(self.dtype).unwrap();
        let bytes = std::fs::read(folder.join(&self.file)).unwrap();
        Tensor::from_raw(dtype, &self.dims, bytes)
    }
}

/// The cases in the folder that the variable names.
fn cases(variable: &str) -> Option<(PathBuf, Vec<Case>)> {
    let Some(folder) = std::env::var_os(variable).map(PathBuf::from) else {
        eprintln!("SKIPPED: {variable} is not set (see tests/crosscheck)");
        return None;
    };
    let text = std::fs::read(folder.join("cases.json")).unwrap();
    Some((folder, serde_json::from_slice(&text).unwrap()))
}

fn request(names: &[String], feed: &[Tensor], observe: Vec<String>) -> Request {
    let dims = |t: &Tensor| t.dims().iter().map(|&d| d as usize).collect();
    Request {
        feed: names
            .iter()
            .zip(feed)
            .map(|(n, t)| (n.clone(), t.dtype(), dims(t)))
            .collect(),
        observe,
        ..Request::default()
    }
}

/// Bits of a float tensor with one NaN for all; of any other tensor the bytes.
fn bits(t: &Tensor) -> Vec<u32> {
    match t.to_f32() {
        Ok(real) => real
            .iter()
            .map(|x| {
                if x.is_nan() {
                    f32::NAN.to_bits()
                } else {
                    x.to_bits()
                }
            })
            .collect(),
        Err(_) => t.bytes().unwrap().iter().map(|&b| u32::from(b)).collect(),
    }
}

/// The largest difference, relative to the largest magnitude expected.
fn difference(found: &Tensor, expected: &Tensor) -> f32 {
    let real = |t: &Tensor| {
        t.to_f32()
            .or_else(|_| {
                t.to_i64()
                    .map(|v| v.into_iter().map(|x| x as f32).collect::<Vec<_>>())
            })
            .unwrap()
    };
    let (found, expected) = (real(found), real(expected));
    let range = expected
        .iter()
        .fold(f32::MIN_POSITIVE, |m, x| m.max(x.abs()));
    let pairs = found.iter().zip(&expected);
    pairs.fold(0f32, |m, (a, b)| {
        let d = (a - b).abs() / range;
        if d.is_nan() && !(a.is_nan() && b.is_nan()) {
            f32::INFINITY
        } else {
            m.max(d)
        }
    })
}

/// What is wrong with a case; the largest relative difference where nothing is.
fn run_case(folder: &Path, case: &Case) -> Result<f32, String> {
    let model = Arc::new(load::load(&case.model).map_err(|e| e.to_string())?);
    let cache = SessionCache::new(Arc::new(TractEngine), model, 4);
    let mut worst = 0f32;
    for sample in &case.samples {
        let names: Vec<String> = sample.inputs.iter().map(|t| t.name.clone()).collect();
        let feed: Vec<Tensor> = sample.inputs.iter().map(|t| t.read(folder)).collect();
        let session = cache
            .get(&request(&names, &feed, vec![]))
            .map_err(|e| e.to_string())?;
        let found = session.run(&feed, None).map_err(|e| e.to_string())?;
        if found.len() != sample.outputs.len() {
            return Err(format!("{} outputs", found.len()));
        }
        for (found, file) in found.iter().zip(&sample.outputs) {
            let expected = file.read(folder);
            if (found.dtype(), found.dims()) != (expected.dtype(), expected.dims()) {
                let (a, b) = (found.dims(), expected.dims());
                return Err(format!(
                    "{}: {:?} {a:?} for {b:?}",
                    file.name,
                    found.dtype()
                ));
            }
            if case.bits {
                let (a, b) = (bits(found), bits(&expected));
                let wrong = a.iter().zip(&b).filter(|(a, b)| a != b).count();
                if wrong > 0 {
                    let at = a.iter().zip(&b).position(|(a, b)| a != b).unwrap();
                    return Err(format!(
                        "{}: {wrong} of {} differ, first at {at}: {:x} for {:x}",
                        file.name,
                        a.len(),
                        a[at],
                        b[at]
                    ));
                }
                continue;
            }
            worst = worst.max(difference(found, &expected));
        }
    }
    Ok(worst)
}

#[test]
fn qdq_equals_the_reference_evaluator_bit_for_bit() {
    let Some((folder, cases)) = cases("QDQ_CASES") else {
        return;
    };
    assert!(cases.len() > 100);
    let mut wrong = vec![];
    for case in &cases {
        assert!(case.bits);
        if let Err(e) = run_case(&folder, case) {
            wrong.push(format!("{}: {e}", case.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}

#[test]
fn the_zoo_agrees_with_onnxruntime() {
    let Some((folder, cases)) = cases("ZOO_CASES") else {
        return;
    };
    let mut wrong = vec![];
    for case in &cases {
        let start = Instant::now();
        let result = run_case(&folder, case);
        eprintln!("{}: {result:?} in {:?}", case.name, start.elapsed());
        match result {
            Ok(d) if d < 1e-4 => {}
            other => wrong.push(format!("{}: {other:?}", case.name)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The model of a case and the feed of its first sample.
fn zoo_case(name: &str) -> Option<(Model, Vec<String>, Vec<Tensor>)> {
    let (folder, cases) = cases("ZOO_CASES")?;
    let case = cases.iter().find(|c| c.name.starts_with(name))?;
    let sample = &case.samples[0];
    let names = sample.inputs.iter().map(|t| t.name.clone()).collect();
    let feed = sample.inputs.iter().map(|t| t.read(&folder)).collect();
    Some((load::load(&case.model).unwrap(), names, feed))
}

/// Names of all values of the main graph that nodes compute.
fn computed(model: &Model) -> Vec<String> {
    let outputs = model.main().nodes.iter().flat_map(|&n| model.outputs(n));
    outputs
        .flatten()
        .map(|v| model.value(v).name.clone())
        .collect()
}

#[test]
fn every_value_can_be_watched() {
    let Some((model, names, feed)) = zoo_case("resnet8-cifar") else {
        return;
    };
    let watched = computed(&model);
    let all = TractEngine
        .prepare(&model, &request(&names, &feed, watched.clone()))
        .unwrap();
    let mut seen = vec![None; watched.len()];
    let mut observer = |o: Observed<'_>| {
        assert_eq!(o.dims.iter().product::<usize>(), o.data.len());
        assert!(
            seen[o.index]
                .replace((o.dims.to_vec(), o.data.to_vec()))
                .is_none()
        );
    };
    let outputs = all.run(&feed, Some(&mut observer)).unwrap();
    let bare = TractEngine
        .prepare(&model, &request(&names, &feed, vec![]))
        .unwrap();
    let expected = bare.run(&feed, None).unwrap();
    assert!(difference(&outputs[0], &expected[0]) < 1e-5);
    for (name, seen) in watched.iter().zip(&seen) {
        let (dims, data) = seen
            .as_ref()
            .unwrap_or_else(|| panic!("{name} was not seen"));
        // The same value as an output of the model is what the observer must have seen.
        let mut cut = model.clone();
        let id = cut.find_value(name).unwrap();
        if !cut.value(id).is_output() {
            let ty = cut.value(id).ty().cloned();
            cut.make_graph_output(id, ty);
        }
        let session = TractEngine
            .prepare(&cut, &request(&names, &feed, vec![]))
            .unwrap();
        let found = session.run(&feed, None).unwrap();
        let at = cut.main().outputs.iter().position(|&o| o == id).unwrap();
        let dims: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        assert_eq!(found[at].dims(), dims, "{name}");
        assert!(
            difference(&Tensor::from_f32(&dims, data), &found[at]) < 1e-5,
            "{name}"
        );
    }
}

#[test]
fn threads_share_a_session() {
    let Some((model, names, feed)) = zoo_case("resnet8-cifar") else {
        return;
    };
    let watched = computed(&model);
    let session = TractEngine
        .prepare(&model, &request(&names, &feed, watched.clone()))
        .unwrap();
    let run = || {
        let mut sums = vec![0f64; watched.len()];
        let mut observer = |o: Observed<'_>| {
            sums[o.index] += o.data.iter().map(|&x| f64::from(x)).sum::<f64>();
        };
        let out = session.run(&feed, Some(&mut observer)).unwrap();
        (sums, out[0].bytes().unwrap().into_owned())
    };
    let expected = run();
    std::thread::scope(|s| {
        let threads: Vec<_> = (0..4)
            .map(|_| s.spawn(|| (0..3).map(|_| run()).collect::<Vec<_>>()))
            .collect();
        for t in threads {
            for result in t.join().unwrap() {
                assert_eq!(result, expected);
            }
        }
    });
}

/// Prints what the README's table of times says: the median of several runs, in milliseconds.
///
/// `QDQ_MODELS` is a folder with `NAME.onnx`, quantized models of the zoo. Run alone and in release.
#[test]
fn times() {
    let Some(folder) = std::env::var_os("QDQ_MODELS").map(PathBuf::from) else {
        eprintln!("SKIPPED: QDQ_MODELS is not set");
        return;
    };
    for name in [
        "resnet8-cifar",
        "mobilenetv2-cifar",
        "ultraface-rfb320",
        "minilm",
    ] {
        let Some((model, names, feed)) = zoo_case(name) else {
            return;
        };
        let heavy = |op: &str| ["Conv", "Gemm", "MatMul", "Add"].contains(&op);
        let nodes = model.main().nodes.iter();
        let watched: Vec<String> = nodes
            .filter(|&&n| heavy(model.node(n).op_type()))
            .filter_map(|&n| model.output(n, 0))
            .map(|v| model.value(v).name.clone())
            .collect();
        let bare = median(&model, &names, &feed, vec![]);
        let count = watched.len();
        let with = median(&model, &names, &feed, watched);
        let quantized = load::load(&folder.join(format!("{name}.onnx"))).unwrap();
        let quantized = median(&quantized, &names, &feed, vec![]);
        eprintln!(
            "{name}: bare {bare:.2} ms, {count} watched {with:.2} ms, Q/DQ {quantized:.2} ms"
        );
    }
}

fn median(model: &Model, names: &[String], feed: &[Tensor], observe: Vec<String>) -> f64 {
    let watch = !observe.is_empty();
    let session = TractEngine
        .prepare(model, &request(names, feed, observe))
        .unwrap();
    let mut times: Vec<f64> = (0..25)
        .map(|_| {
            let mut observer = |_: Observed<'_>| {};
            let start = Instant::now();
            session
                .run(feed, if watch { Some(&mut observer) } else { None })
                .unwrap();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

#[test]
fn unordered_values_have_the_same_elements_in_each_index_of_the_first_axis() {
    let text = r#"<ir_version: 8, opset_import: ["" : 17]>
        net (float[2, 6, 3] x) => (float[2, 6, 4] y) <float[4, 3, 1] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}> {
            t = Transpose <perm = [0, 2, 1]> (x)
            c = Conv (t, w)
            r = Relu (c)
            b = Transpose <perm = [0, 2, 1]> (r)
            y = Softmax (b)
        }"#;
    let model = onnx_quant_ir::text::parse(text).unwrap();
    let data: Vec<f32> = (0..36).map(|i| (i * 7 % 36) as f32 - 18.0).collect();
    let feed = [Tensor::from_f32(&[2, 6, 3], &data)];
    let names = ["x".to_owned()];
    let watched: Vec<String> = ["t", "c", "r", "b"].map(str::to_owned).into();
    let seen = |unordered: Vec<usize>| {
        let request = Request {
            unordered,
            ..request(&names, &feed, watched.clone())
        };
        let mut all = BTreeMap::new();
        let mut observer = |seen: Observed<'_>| {
            let length = seen.data.len() / seen.dims[0];
            let sorted = seen.data.chunks(length).map(|part| {
                let mut part = part.to_vec();
                part.sort_by(f32::total_cmp);
                part
            });
            all.insert(seen.index, (seen.dims[0], sorted.collect::<Vec<_>>()));
        };
        let session = TractEngine.prepare(&model, &request).unwrap();
        session.run(&feed, Some(&mut observer)).unwrap();
        all
    };
    let ordered = seen(vec![]);
    assert_eq!(ordered.len(), 4);
    assert_eq!(seen(vec![0, 1, 2, 3]), ordered);
}

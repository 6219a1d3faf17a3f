//! Bad data: one sentence that names the file, the array and the fault.

use super::*;

fn check(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
    assert!(!message.contains('\n'), "{message}");
}

fn two() -> Signature {
    signature(&[
        ("input_ids", DataType::Int64, "batch,seq"),
        ("mask", DataType::Int64, "batch,seq"),
    ])
}

#[test]
fn names() {
    let f = Folder::new();
    let a = i64s(&[2, 2], &[0; 4]);
    let path = f.npz("d.npz", &[("input_id", a.clone()), ("mask", a.clone())]);
    let found = [
        "`input_id`",
        "`input_ids`, `mask`",
        "did you mean `input_ids`?",
    ];
    check(&open_error(&path, &two()), &found);
    let path = f.npz("d.npz", &[("input_ids", a.clone())]);
    check(
        &open_error(&path, &two()),
        &["d.npz", "no array for the input `mask`", "`input_ids`"],
    );
    let path = f.npz("d.npz", &[("arr_0", ramp(&[2]))]);
    check(
        &open_error(&path, &float("n")),
        &["`arr_0`", r#"np.savez(path, **{"x": array})"#],
    );
    let path = f.npz("none.npz", &[]);
    check(
        &open_error(&path, &float("n")),
        &["`x`", "the data holds no array"],
    );
    let path = f.file("d.npy", &a);
    check(
        &open_error(&path, &two()),
        &["d.npy", "which input", "`input_ids`, `mask`"],
    );
    let many = Folder::new();
    many.file("mask.npy", &a);
    many.file("imput_ids.npy", &a);
    check(
        &open_error(many.path(), &two()),
        &["imput_ids.npy", "did you mean `input_ids`"],
    );
}

#[test]
fn an_input_with_a_default_is_fed_by_all_files_or_none() {
    let f = Folder::new();
    let mut model = signature(&[("w", DataType::Float, "n"), ("x", DataType::Float, "n")]);
    model.inputs[0].optional = true;
    f.npz("1.npz", &[("x", ramp(&[3]))]);
    f.npz("2.npz", &[("x", ramp(&[3])), ("w", ramp(&[3]))]);
    check(
        &open_error(f.path(), &model),
        &["2.npz", "`w` has a default", "or none"],
    );
}

proptest::proptest! {
    /// Whatever stands in a file, opening and reading end with a result.
    #[test]
    fn no_header_brings_the_reader_down(
        text in "[{}()\\[\\]',:0-9a-zA-Z_<>|\\\\ -]{0,80}|\\{'descr': '[<>|][a-zA-Z][0-9]{0,3}', 'fortran_order': (True|False), 'shape': \\([0-9]{0,20},[0-9]{0,20}\\), \\}",
        version in 0u8..5,
        data in proptest::collection::vec(0u8..=255, 0..40),
    ) {
        let f = Folder::new();
        let mut bytes = vec![0x93, b'N', b'U', b'M', b'P', b'Y', version, 0];
        bytes.extend((text.len() as u16).to_le_bytes());
        if version >= 2 {
            bytes.extend([0, 0]);
        }
        bytes.extend(text.bytes().chain(data));
        let path = f.file("x.npy", &bytes);
        if let Ok(set) = DataSet::open(&path, &float("*")) {
            for batch in set.batches(1 << 20).take(3).flatten() {
                proptest::prop_assert!(batch.tensors[0].validate().is_ok());
            }
        }
        if let Ok(labels) = Labels::open(&path) {
            let width = labels.positions().unwrap_or(1);
            proptest::prop_assert_eq!(labels.ids().len(), labels.len() * width);
        }
    }
}

#[test]
fn types() {
    let f = Folder::new();
    let path = f.npz("d.npz", &[("x", i64s(&[2], &[1, 2]))]);
    let expected = [
        "array `x` holds i64",
        "takes f32",
        r#"arr.astype("float32")"#,
    ];
    check(&open_error(&path, &float("n")), &expected);
    let bf16 = signature(&[("x", DataType::Bfloat16, "n")]);
    check(
        &open_error(&path, &bf16),
        &["takes bf16", "arr.astype(ml_dtypes.bfloat16)"],
    );
    let int4 = signature(&[("x", DataType::Int4, "n")]);
    check(&open_error(&path, &int4), &["takes i4", "TensorProto"]);
    for (descr, size, says) in [
        ("|O", 8, "Python objects"),
        ("<U3", 12, "strings (<U3)"),
        ("|S3", 3, "strings (|S3)"),
        ("<c8", 8, "complex numbers (<c8)"),
        ("<M8[ns]", 8, "<M8[ns]"),
        ("<f16", 16, "<f16"),
        ("<V1", 1, "V1"),
    ] {
        let path = f.file("x.npy", &npy(descr, false, &[1], &vec![0; size]));
        check(&open_error(&path, &float("n")), &["x.npy", says]);
    }
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/fixtures");
    check(
        &open_error(&fixtures.join("numpy_structured.npy"), &float("n")),
        &["structured"],
    );
}

#[test]
fn shapes() {
    let f = Folder::new();
    let x = |dims: &[usize]| f.npz("d.npz", &[("x", ramp(dims))]);
    check(
        &open_error(&x(&[3, 4]), &float("n,3,4")),
        &["[3, 4]", "f32 [n, 3, 4]", "arr[None]"],
    );
    check(
        &open_error(&x(&[3]), &float("n,3,4")),
        &["[3]", "f32 [n, 3, 4]"],
    );
    check(
        &open_error(&x(&[2, 3, 5]), &float("n,3,4")),
        &["size 5 on axis 2", "f32 [n, 3, 4]"],
    );
    check(
        &open_error(&x(&[2, 1, 3, 5]), &float("n,3,4")),
        &["size 5 on axis 3"],
    );
    check(
        &open_error(&x(&[0, 3]), &float("n,3")),
        &["`x`", "no samples"],
    );
    let a = i64s(&[2, 3], &[0; 6]);
    let path = f.npz(
        "d.npz",
        &[("input_ids", a.clone()), ("mask", i64s(&[3, 3], &[0; 9]))],
    );
    check(
        &open_error(&path, &two()),
        &["`mask` holds 3 samples", "`input_ids` holds 2"],
    );
    let path = f.npz(
        "d.npz",
        &[("input_ids", a.clone()), ("mask", i64s(&[2, 2], &[0; 4]))],
    );
    let says = [
        "`seq` is 3 on axis 1 of the input `input_ids` but 2 on axis 1 of the input `mask`",
        "d.npz",
    ];
    check(&open_error(&path, &two()), &says);
    let path = f.npz(
        "d.npz",
        &[("input_ids", a), ("mask", i64s(&[2, 1, 3], &[0; 6]))],
    );
    check(
        &open_error(&path, &two()),
        &["`mask`", "one axis more", "`input_ids`"],
    );
}

#[test]
fn axes_that_cannot_count_samples() {
    let f = Folder::new();
    let path = f.npz("d.npz", &[("x", ramp(&[2, 1])), ("y", ramp(&[2, 2]))]);
    let model = |x, y| signature(&[("x", DataType::Float, x), ("y", DataType::Float, y)]);
    let says = [
        "axis 0 of the input `x` to 2 and that of `y` to 4",
        "complete feeds",
    ];
    check(&open_error(&path, &model("2,1", "4,2")), &says);
    let says = [
        "`b` is axis 0 of the input `x` and axis 1 of `y`",
        "complete feeds",
    ];
    check(&open_error(&path, &model("b,1", "?,b")), &says);
    let path = f.npz("d.npz", &[("x", ramp(&[2, 3, 1])), ("y", ramp(&[2, 2, 4]))]);
    let says = ["`b` is 3 on axis 0 of the input `x` but 4 on axis 1 of the input `y`"];
    check(&open_error(&path, &model("b,1", "?,b")), &says);
}

#[test]
fn values_that_are_not_finite() {
    let f = Folder::new();
    for (value, name) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (f32::NEG_INFINITY, "-inf"),
    ] {
        let mut data = vec![1.0; 12];
        data[7] = value;
        let path = f.npz("d.npz", &[("x", f32s(&[6, 2], &data))]);
        let set = DataSet::open(&path, &float("n,2")).unwrap();
        let results: Vec<_> = set.batches(2).collect();
        assert_eq!(results.len(), 2, "nothing follows an error");
        assert!(results[0].is_ok());
        let message = results[1].as_ref().unwrap_err().to_string();
        check(
            &message,
            &["d.npz", "`x`", &format!("holds {name} in sample 3 ")],
        );
    }
    let half = npy(">f2", false, &[2], &[0x3c, 0, 0x7c, 0]);
    let path = f.file("h.npy", &half);
    let set = DataSet::open(&path, &signature(&[("h", DataType::Float16, "n")])).unwrap();
    let error = set.batches(2).next().unwrap().unwrap_err().to_string();
    check(&error, &["holds inf in sample 1"]);
    let path = f.file("b.npy", &npy("|b1", false, &[2], &[1, 2]));
    let set = DataSet::open(&path, &signature(&[("b", DataType::Bool, "n")])).unwrap();
    check(
        &set.batches(2).next().unwrap().unwrap_err().to_string(),
        &["the byte 2"],
    );
}

#[test]
fn files() {
    let f = Folder::new();
    let open = |path: &Path| open_error(path, &float("n"));
    check(
        &open(&f.path().join("none.npz")),
        &["none.npz", "does not exist"],
    );
    check(
        &open(f.path()),
        &["holds no .npz, .npy, .safetensors or input_*.pb"],
    );
    check(&open(&f.file("x.csv", b"1,2")), &["x.csv", "no data file"]);
    check(
        &open(&f.file("x.npy", b"")),
        &["x.npy", "damaged", "header"],
    );
    check(&open(&f.file("x.npz", b"")), &["x.npz", "damaged"]);
    check(
        &open(&f.file("x.npy", b"hello, hello")),
        &["does not begin as"],
    );
    let huge = npy("<f4", false, &[usize::MAX, 2], &[]);
    check(&open(&f.file("x.npy", &huge)), &["shape is too large"]);
    let mut cut = ramp(&[1]);
    cut[11] = b'(';
    check(
        &open(&f.file("x.npy", &cut)),
        &["header does not parse (could not parse Python expression)"],
    );
    let deep = format!("\u{93}NUMPY\u{1}\0{}", "(".repeat(3000));
    check(&open(&f.file("x.npy", deep.as_bytes())), &["damaged"]);
    let sets = Folder::new();
    sets.file("test_data_set_0/input_0.pb", &[10, 200, 1]);
    check(&open(sets.path()), &["input_0.pb", "no ONNX tensor"]);
    sets.file("test_data_set_0/input_0.pb", b"");
    check(&open(sets.path()), &["input_0.pb", "empty"]);
}

/// Every prefix of a file is an error, on opening or on reading; so is every changed byte of the data.
#[test]
fn damage_is_found_wherever_it_is() {
    let f = Folder::new();
    let whole = ramp(&[4, 3]);
    for (name, bytes) in [
        ("x.npy", whole.clone()),
        ("s.npz", npz(&[("x", whole.clone())], false)),
        ("d.npz", npz(&[("x", whole)], true)),
    ] {
        let read = |bytes: &[u8]| {
            let path = f.file(name, bytes);
            DataSet::open(&path, &float("n,3"))
                .and_then(|d| d.batches(3).collect::<Result<Vec<_>, _>>())
        };
        let good = read(&bytes).unwrap();
        for end in 0..bytes.len() {
            assert!(read(&bytes[..end]).is_err(), "{name} cut at {end}");
        }
        let mut unnoticed = 0;
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 0x10;
            if let Ok(batches) = read(&changed) {
                let same = |(a, b): (&Batch, &Batch)| tensors(a) == tensors(b);
                let equal = batches.iter().zip(&good).all(same);
                unnoticed += usize::from(!equal);
            }
        }
        if name != "x.npy" {
            assert_eq!(unnoticed, 0, "{name}: the checksum finds changed values");
        }
    }
}

#[test]
fn labels() {
    let f = Folder::new();
    let open = |bytes: &[u8]| Labels::open(&f.file("l.npy", bytes));
    let labels = open(&i64s(&[3], &[1, -1, 2])).unwrap();
    assert_eq!((labels.len(), labels.ids()), (3, &[1, -1, 2][..]));
    let says = ["l.npy", "3 labels", "4 samples"];
    check(&labels.check(4).unwrap_err().to_string(), &says);
    let rows = open(&npy("|u1", false, &[2, 2], &[1, 2, 3, 200])).unwrap();
    assert_eq!(
        (rows.positions(), rows.range(1, 5)),
        (Some(2), &[3, 200][..])
    );
    let fortran = open(&npy("|u1", true, &[2, 2], &[1, 3, 2, 4])).unwrap();
    assert_eq!(fortran.ids(), [1, 2, 3, 4]);
    let fails = |bytes: &[u8], says: &[&str]| check(&open(bytes).unwrap_err().to_string(), says);
    fails(&ramp(&[3]), &["holds f32", "astype(\"int64\")"]);
    fails(&ramp(&[3, 10]), &["holds f32", "argmax(-1)"]);
    fails(&npy("|b1", false, &[2], &[0, 1]), &["holds bool"]);
    fails(&i64s(&[], &[1]), &["shape []"]);
    fails(&i64s(&[1, 1, 1], &[1]), &["shape [1, 1, 1]"]);
    fails(&i64s(&[0], &[]), &["no samples"]);
    fails(
        &npy("<u8", false, &[1], &[255; 8]),
        &["18446744073709551615"],
    );
    let one = f.npz("l.npz", &[("y", i64s(&[1], &[3]))]);
    assert_eq!(Labels::open(&one).unwrap().ids(), [3]);
    let two = f.npz("l.npz", &[("y", i64s(&[1], &[3])), ("z", i64s(&[1], &[3]))]);
    check(
        &Labels::open(&two).unwrap_err().to_string(),
        &["`y`, `z`", "single array"],
    );
    let none = Labels::open(&f.path().join("none.npy"));
    check(&none.unwrap_err().to_string(), &["does not exist"]);
}

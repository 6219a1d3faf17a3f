//! How data becomes batches.

use super::*;
use onnx_quant_ir::proto::{Message, TensorProto};

#[test]
fn a_free_batch_axis_takes_what_the_caller_asks_for() {
    let f = Folder::new();
    let path = f.file("x.npy", &ramp(&[5, 2]));
    let data = DataSet::open(&path, &float("batch,2")).unwrap();
    assert_eq!((data.len(), data.batch_count(2)), (5, 3));
    let batches = all(&data, 2);
    let place = |b: &Batch| (b.index, b.first_sample, b.samples, b.padded);
    let places: Vec<_> = batches.iter().map(place).collect();
    assert_eq!(places, [(0, 0, 2, 0), (1, 2, 2, 0), (2, 4, 1, 0)]);
    assert_eq!(tensors(&batches[1]), [(vec![2, 2], vec![4., 5., 6., 7.])]);
    assert_eq!(tensors(&batches[2]), [(vec![1, 2], vec![8., 9.])]);
    assert_eq!(all(&data, 0).len(), 5);
    assert_eq!(tensors(&all(&data, 100)[0])[0].0, [5, 2]);
    assert_eq!(data.all_shapes(2), [[vec![2, 2]], [vec![1, 2]]]);
}

#[test]
fn a_fixed_batch_axis_is_filled_up() {
    let f = Folder::new();
    let path = f.npz("d.npz", &[("x", ramp(&[5, 1]))]);
    let data = DataSet::open(&path, &float("3,1")).unwrap();
    let batches = all(&data, 64);
    assert_eq!(batches.len(), 2);
    assert_eq!((batches[1].samples, batches[1].padded), (2, 1));
    assert_eq!(tensors(&batches[1]), [(vec![3, 1], vec![3., 4., 4.])]);
    assert_eq!(data.notes().len(), 1);
    assert!(
        data.notes()[0].contains("3 samples at a time"),
        "{:?}",
        data.notes()
    );
    let four = data.limit(4);
    assert_eq!(tensors(&all(&four, 1)[1]), [(vec![3, 1], vec![3., 3., 3.])]);
    assert_eq!(four.limit(3).notes(), Vec::<String>::new());
}

#[test]
fn one_axis_more_is_one_feed_for_each_index() {
    let f = Folder::new();
    let model = signature(&[
        ("x", DataType::Float, "?,2"),
        ("state", DataType::Float, "2,batch"),
        ("sr", DataType::Int64, ""),
    ]);
    let sr = |dims: &[usize], v: &[i64]| ("sr", i64s(dims, v));
    let x = ("x", ramp(&[3, 1, 2]));
    let state = ("state", ramp(&[3, 2, 1]));
    let path = f.npz("d.npz", &[sr(&[3], &[7, 8, 9]), x.clone(), state.clone()]);
    let data = DataSet::open(&path, &model).unwrap();
    let batches = all(&data, 2);
    assert_eq!((data.len(), batches.len()), (3, 3));
    let expected = [
        (vec![1, 2], vec![4., 5.]),
        (vec![2, 1], vec![4., 5.]),
        (vec![], vec![9.]),
    ];
    assert_eq!(tensors(&batches[2]), expected);
    let path = f.npz("same.npz", &[sr(&[], &[7]), x, state]);
    let batches = all(&DataSet::open(&path, &model).unwrap(), 2);
    assert_eq!(tensors(&batches[2])[2], (vec![], vec![7.]));
}

#[test]
fn a_scalar_goes_into_every_batch() {
    let f = Folder::new();
    let model = signature(&[("x", DataType::Float, "n,1"), ("k", DataType::Int64, "")]);
    let path = f.npz("d.npz", &[("k", i64s(&[], &[4])), ("x", ramp(&[3, 1]))]);
    let batches = all(&DataSet::open(&path, &model).unwrap(), 2);
    assert_eq!(tensors(&batches[0])[1], (vec![], vec![4.]));
    assert_eq!(
        tensors(&batches[1]),
        [(vec![1, 1], vec![2.]), (vec![], vec![4.])]
    );
    let only = signature(&[("k", DataType::Int64, "")]);
    let path = f.npz("k.npz", &[("k", i64s(&[], &[4]))]);
    let data = DataSet::open(&path, &only).unwrap();
    assert_eq!(
        (data.len(), tensors(&all(&data, 9)[0])),
        (1, vec![(vec![], vec![4.])])
    );
}

#[test]
fn inputs_of_unknown_rank_have_samples_on_axis_0() {
    let f = Folder::new();
    let path = f.npz("d.npz", &[("x", ramp(&[3, 2, 2]))]);
    let data = DataSet::open(&path, &float("*")).unwrap();
    assert_eq!(tensors(&all(&data, 2)[1])[0].0, [1, 2, 2]);
}

#[test]
fn an_input_with_a_default_may_be_missing() {
    let f = Folder::new();
    let mut model = signature(&[("w", DataType::Float, "2"), ("x", DataType::Float, "n")]);
    model.inputs[0].optional = true;
    let path = f.npz("d.npz", &[("x", ramp(&[3]))]);
    let data = DataSet::open(&path, &model).unwrap();
    assert_eq!(data.fed().len(), 1);
    assert_eq!(
        data.peek_shapes(2),
        [("x".to_owned(), DataType::Float, vec![2])]
    );
    assert_eq!(data.notes(), Vec::<String>::new());
    let w = ("w", ramp(&[3, 2]));
    model.inputs.push(input("v", DataType::Float, "1"));
    model.inputs[2].optional = true;
    let x = ("x", ramp(&[3, 1]));
    let path = f.npz("w.npz", &[w, x]);
    let with_default = DataSet::open(&path, &model).unwrap();
    assert_eq!(with_default.fed().len(), 2);
    assert!(with_default.notes()[0].contains("`v` is not in the data"));
    let npy = f.file("d.npy", &ramp(&[3]));
    assert_eq!(DataSet::open(&npy, &model).unwrap().fed()[0].name, "x");
}

#[test]
fn a_folder_of_chunks_is_one_sequence() {
    let f = Folder::new();
    f.file("part10.npy", &f32s(&[1, 1], &[6.]));
    f.file("part2.npy", &f32s(&[3, 1], &[3., 4., 5.]));
    f.npz("part1.npz", &[("x", ramp(&[3, 1]))]);
    f.file(".hidden.npy", b"junk");
    f.file("readme.txt", b"hello");
    let data = DataSet::open(f.path(), &float("n,1")).unwrap();
    let values: Vec<_> = all(&data, 4)
        .iter()
        .map(|b| tensors(b)[0].1.clone())
        .collect();
    assert_eq!(values, [vec![0., 1., 2., 3.], vec![4., 5., 6.]]);
    let limited: Vec<_> = all(&data.limit(5), 4).iter().map(|b| b.samples).collect();
    assert_eq!(limited, [4, 1]);
}

#[test]
fn chunks_of_different_shapes_do_not_share_a_batch() {
    let f = Folder::new();
    f.file("a.npy", &ramp(&[3, 1]));
    f.file("b.npy", &ramp(&[2, 2]));
    let data = DataSet::open(f.path(), &float("n,?")).unwrap();
    let shapes: Vec<_> = all(&data, 2)
        .iter()
        .map(|b| tensors(b)[0].0.clone())
        .collect();
    assert_eq!(shapes, [vec![2, 1], vec![1, 1], vec![2, 2]]);
    assert_eq!(data.all_shapes(2).len(), 3);
    let fixed = DataSet::open(f.path(), &float("2,?")).unwrap();
    let padded: Vec<_> = all(&fixed, 1).iter().map(|b| b.padded).collect();
    assert_eq!(padded, [0, 1, 0]);
}

#[test]
fn a_folder_may_hold_one_npy_for_each_input() {
    let f = Folder::new();
    f.file("b.npy", &i64s(&[2], &[5, 6]));
    f.file("a.npy", &ramp(&[2, 1]));
    let model = signature(&[("a", DataType::Float, "n,1"), ("b", DataType::Int64, "n")]);
    let data = DataSet::open(f.path(), &model).unwrap();
    let expected = [(vec![2, 1], vec![0., 1.]), (vec![2], vec![5., 6.])];
    assert_eq!(tensors(&all(&data, 9)[0]), expected);
}

fn pb(name: &str, dims: &[i64], data: &[f32]) -> Vec<u8> {
    let mut t = TensorProto {
        dims: dims.to_vec(),
        data_type: Some(DataType::Float as i32),
        float_data: data.to_vec(),
        ..TensorProto::default()
    };
    if !name.is_empty() {
        t.name = Some(name.to_owned());
    }
    t.encode_to_vec()
}

#[test]
fn onnx_test_data_are_complete_feeds() {
    let f = Folder::new();
    let model = signature(&[("a", DataType::Float, "?,?"), ("b", DataType::Float, "?")]);
    f.file("test_data_set_0/input_0.pb", &pb("", &[1, 2], &[1., 2.]));
    f.file("test_data_set_0/input_1.pb", &pb("", &[1], &[3.]));
    f.file("test_data_set_0/output_0.pb", b"junk");
    f.file("test_data_set_10/input_0.pb", &pb("b", &[2], &[8., 9.]));
    f.file("test_data_set_10/input_1.pb", &pb("a", &[0, 2], &[]));
    f.file("test_data_set_9/input_0.pb", &pb("other", &[1, 1], &[4.]));
    f.file("test_data_set_9/input_1.pb", &pb("b", &[1], &[5.]));
    f.file("test_data_0.npz", b"junk");
    let data = DataSet::open(f.path(), &model).unwrap();
    let fed: Vec<_> = all(&data, 4).iter().map(tensors).collect();
    assert_eq!(fed[0], [(vec![1, 2], vec![1., 2.]), (vec![1], vec![3.])]);
    assert_eq!(fed[1], [(vec![1, 1], vec![4.]), (vec![1], vec![5.])]);
    assert_eq!(fed[2], [(vec![0, 2], vec![]), (vec![2], vec![8., 9.])]);
    assert_eq!((data.len(), data.notes().len()), (3, 1));
    let one = DataSet::open(&f.path().join("test_data_set_9"), &model).unwrap();
    assert_eq!(tensors(&all(&one, 4)[0]), fed[1]);
}

#[test]
fn arrays_as_numpy_writes_them() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/data/fixtures");
    let model = signature(&[
        ("fortran", DataType::Float, "n,3,2"),
        ("big", DataType::Float, "n,3,2"),
        ("half", DataType::Float16, "n,3,2"),
        ("double", DataType::Double, "n,3,2"),
        ("ids", DataType::Int64, "n"),
        ("flags", DataType::Bool, "n"),
        ("scalar", DataType::Int64, ""),
        ("none", DataType::Uint16, "n,past,5"),
    ]);
    let data = DataSet::open(&fixtures.join("numpy_deflated.npz"), &model).unwrap();
    let batches = all(&data, 3);
    let ramp = |n: std::ops::Range<i32>| n.map(|i| i as f32 / 8.0).collect::<Vec<_>>();
    for (batch, range, rows) in [(&batches[0], 0..18, 3), (&batches[1], 18..24, 1)] {
        for tensor in &tensors(batch)[..4] {
            assert_eq!(*tensor, (vec![rows, 3, 2], ramp(range.clone())));
        }
    }
    assert_eq!(tensors(&batches[0])[4].1, [-2., -1., 0.]);
    assert_eq!(tensors(&batches[0])[5].1, [1., 0., 1.]);
    assert_eq!(tensors(&batches[1])[6], (vec![], vec![7.]));
    assert_eq!(tensors(&batches[1])[7], (vec![1, 0, 5], vec![]));
    assert_eq!(data.notes().len(), 2);
    assert_eq!(
        tensors(&all(&data, 3)[1]),
        tensors(&batches[1]),
        "a second pass"
    );
    let stored = signature(&[("x", DataType::Float, "n,3,2")]);
    let stored = DataSet::open(&fixtures.join("numpy_stored.npz"), &stored).unwrap();
    assert_eq!(tensors(&all(&stored, 4)[0])[0].1, ramp(0..24));
}

#[test]
fn threads_may_pull_the_batches_of_one_pass() {
    use rayon::prelude::*;
    let f = Folder::new();
    let path = f.npz("d.npz", &[("x", ramp(&[97, 5]))]);
    let data = DataSet::open(&path, &float("n,5")).unwrap();
    let mut pulled: Vec<Batch> = data.batches(4).par_bridge().map(Result::unwrap).collect();
    pulled.sort_by_key(|b| b.index);
    let values = |batches: &[Batch]| batches.iter().map(tensors).collect::<Vec<_>>();
    assert_eq!(values(&pulled), values(&all(&data, 4)));
}

#[test]
fn every_type_of_input_can_be_fed() {
    let f = Folder::new();
    for (descr, dtype, size) in [
        ("|b1", DataType::Bool, 1),
        ("|i1", DataType::Int8, 1),
        ("<i2", DataType::Int16, 2),
        (">i4", DataType::Int32, 4),
        ("<i8", DataType::Int64, 8),
        ("|u1", DataType::Uint8, 1),
        (">u2", DataType::Uint16, 2),
        ("<u4", DataType::Uint32, 4),
        (">u8", DataType::Uint64, 8),
        ("<f2", DataType::Float16, 2),
        ("<V2", DataType::Bfloat16, 2),
        (">f4", DataType::Float, 4),
        ("<f8", DataType::Double, 8),
    ] {
        let mut one = vec![0; size];
        let low = if descr.starts_with('>') { size - 1 } else { 0 };
        one[low] = 1;
        let path = f.file("x.npy", &npy(descr, false, &[1], &one));
        let data = DataSet::open(&path, &signature(&[("x", dtype, "n")])).unwrap();
        let bytes = all(&data, 1)[0].tensors[0].bytes().unwrap().into_owned();
        assert_eq!((bytes[0], bytes.len()), (1, size), "{descr}");
    }
}

#[test]
fn signatures_are_read_from_the_model() {
    use onnx_quant_ir::load::load_bytes;
    use onnx_quant_ir::proto::*;
    let dim = |value| tensor_shape_proto::Dimension {
        value: Some(value),
        ..Default::default()
    };
    let value_info = |name: &str, dims: Option<Vec<tensor_shape_proto::Dimension>>| {
        let tensor = type_proto::Tensor {
            elem_type: Some(DataType::Float as i32),
            shape: dims.map(|dim| TensorShapeProto { dim }),
        };
        ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(tensor)),
                ..Default::default()
            }),
            ..Default::default()
        }
    };
    let size = |v| dim(tensor_shape_proto::dimension::Value::DimValue(v));
    let symbol = |s: &str| dim(tensor_shape_proto::dimension::Value::DimParam(s.to_owned()));
    let mut graph = GraphProto::default();
    let dims = vec![symbol("batch"), size(3), size(-1), symbol("?")];
    graph.input = vec![
        value_info("x", Some(dims)),
        value_info("w", Some(vec![size(1)])),
    ];
    graph.input.push(value_info("any", None));
    graph.initializer = vec![TensorProto {
        name: Some("w".to_owned()),
        dims: vec![1],
        data_type: Some(DataType::Float as i32),
        float_data: vec![1.0],
        ..Default::default()
    }];
    let model = ModelProto {
        ir_version: Some(8),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto {
            domain: None,
            version: Some(17),
        }],
        ..Default::default()
    };
    let bytes = model.encode_to_vec();
    let model = load_bytes(bytes.into(), Path::new("m.onnx")).unwrap();
    let found = Signature::of(&model).unwrap();
    let mut expected = signature(&[
        ("x", DataType::Float, "batch,3,?,?"),
        ("w", DataType::Float, "1"),
        ("any", DataType::Float, "*"),
    ]);
    expected.inputs[1].optional = true;
    expected.inputs[2].symbols.clear();
    assert_eq!(found, expected);
    assert_eq!(found.inputs[0].to_string(), "f32 [batch, 3, ?, ?]");
}

//! Tests of the inference of types, shapes and small constants.

#![expect(clippy::unwrap_used, reason = "tests")]

use onnx_quant_ir::node::{attr_f, attr_i, attr_ints, attr_s};
use onnx_quant_ir::text;
use onnx_quant_ir::{DataType, Model, NodeSpec, Tensor};
use proptest::prelude::*;

use super::{Dim, Fact, Facts, Options, Shapes, infer};

const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 18]>\n";

fn read(body: &str) -> Model {
    text::parse(&format!("{HEAD}{body}")).unwrap()
}

fn shapes(list: &[(&str, &[usize])]) -> Shapes {
    list.iter()
        .map(|(n, d)| ((*n).to_owned(), (DataType::Float, d.to_vec())))
        .collect()
}

fn run(body: &str, given: &[(&str, &[usize])]) -> (Model, Facts) {
    let model = read(body);
    let options = Options {
        use_value_info: false,
        ..Options::default()
    };
    let facts = infer(&model, &shapes(given), &options);
    (model, facts)
}

fn fact(model: &Model, facts: &Facts, name: &str) -> Fact {
    facts.get(model.find_value(name).unwrap()).unwrap().clone()
}

fn known(dims: &[i64]) -> Option<Vec<Dim>> {
    Some(dims.iter().map(|&d| Dim::Known(d)).collect())
}

#[test]
fn convolutions_and_pools_get_their_sizes() {
    let (m, f) = run(
        "main (float[N,3,H,W] X) => (float[N,8,A,B] Y)
<float[8,3,3,3] K = random(1), float[8,4,2,2] T = random(2)>
{
  a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (X, K)
  b = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (a)
  c = ConvTranspose <strides = [2, 2]> (b, T)
  d = AveragePool <kernel_shape = [3, 3], auto_pad = \"SAME_UPPER\", strides = [2, 2]> (a)
  e = GlobalAveragePool (d)
  Y = Resize <mode = \"nearest\"> (b, \"\", \"\", sizes)
}"
        .replace("random(2)>", "random(2), int64[4] sizes = {2, 8, 9, 9}>")
        .as_str(),
        &[("X", &[2, 3, 33, 32])],
    );
    assert_eq!(fact(&m, &f, "a").shape, known(&[2, 8, 17, 16]));
    assert_eq!(fact(&m, &f, "b").shape, known(&[2, 8, 9, 8]));
    assert_eq!(fact(&m, &f, "c").shape, known(&[2, 4, 18, 16]));
    assert_eq!(fact(&m, &f, "d").shape, known(&[2, 8, 9, 8]));
    assert_eq!(fact(&m, &f, "e").shape, known(&[2, 8, 1, 1]));
    assert_eq!(fact(&m, &f, "Y").shape, known(&[2, 8, 9, 9]));
}

#[test]
fn partly_known_lists_steer_a_reshape() {
    let body = "main (float[batch,seq,12] X) => (float[a,b,c,d] Y)
<int64 zero = {0}, int64[1] front = {0}, int64[1] minus = {-1}, int64[1] four = {4}>
{
  s = Shape (X)
  d = Gather (s, zero)
  d1 = Unsqueeze (d, front)
  t = Concat <axis = 0> (d1, minus, four, four)
  Y = Reshape (X, t)
  Z = Flatten <axis = 2> (X)
  B = Add (X, X)
}";
    let (m, f) = run(body, &[]);
    let y = fact(&m, &f, "Y").shape.unwrap();
    assert_eq!(y[0], Dim::Symbol("batch".into()));
    assert_eq!(y[1..], [Dim::Unknown, Dim::Known(4), Dim::Known(4)]);
    let b = fact(&m, &f, "B").shape.unwrap();
    assert!(b[1].same(&Dim::Symbol("seq".into())), "{b:?}");
    let (m, f) = run(body, &[("X", &[2, 8, 12])]);
    assert_eq!(fact(&m, &f, "Y").shape, known(&[2, 6, 4, 4]));
    assert_eq!(fact(&m, &f, "Z").shape, known(&[16, 12]));
    assert_eq!(fact(&m, &f, "t").ints(), Some(vec![2, -1, 4, 4]));
}

#[test]
fn an_if_gives_what_both_branches_agree_on_or_the_one_taken() {
    let body = "main (float[N,4] X, bool c) => (float[A,B] Y, float[C,D] Z)
<int64 two = {2}>
{
  Y = If (c) <
    then_branch = then_1 () => (float[A,B] t) { t = Relu (X) },
    else_branch = else_1 () => (float[A,B] e) { e = Concat <axis = 0> (X, X) }
  >
  s = Shape (X)
  r = Size (s)
  flat = Equal (r, two)
  Z = If (flat) <
    then_branch = then_2 () => (float[C,D] t2) { t2 = Transpose (X) },
    else_branch = else_2 () => (float[C,D] e2) { e2 = Relu (X) }
  >
}";
    let (m, f) = run(body, &[("X", &[3, 4])]);
    let y = fact(&m, &f, "Y");
    assert_eq!(y.shape, Some(vec![Dim::Unknown, Dim::Known(4)]));
    assert_eq!(y.dtype, Some(DataType::Float));
    assert_eq!(fact(&m, &f, "Z").shape, known(&[4, 3]));
}

#[test]
fn einsum_recurrence_and_normalization() {
    let (m, f) = run(
        "main (float[S,B,I] X, float[P,Q,R] A) => (float[S,1,B,8] Y)
<float[1,32,4] W = random(1), float[1,32,8] R = random(2), float[4] g = random(3)>
{
  Y, H, C = LSTM <hidden_size = 8> (X, W, R)
  E = Einsum <equation = \"bij, bkj -> bik\"> (A, A)
  N, mean = LayerNormalization (X, g)
  K, at = TopK <axis = 1> (A, k)
}"
        .replace("random(3)>", "random(3), int64[1] k = {2}>")
        .as_str(),
        &[("X", &[5, 2, 4]), ("A", &[3, 6, 7])],
    );
    assert_eq!(fact(&m, &f, "Y").shape, known(&[5, 1, 2, 8]));
    assert_eq!(fact(&m, &f, "C").shape, known(&[1, 2, 8]));
    assert_eq!(fact(&m, &f, "E").shape, known(&[3, 6, 6]));
    assert_eq!(fact(&m, &f, "mean").shape, known(&[5, 2, 1]));
    let at = fact(&m, &f, "at");
    assert_eq!(
        (at.dtype, at.shape),
        (Some(DataType::Int64), known(&[3, 2, 7]))
    );
}

#[test]
fn unknown_operators_and_declarations() {
    let body = "main (float[N,4] X) => (float[N,7] Y)
<float[N,7] U>
{
  U = \"some.domain\".Thing (X)
  Y = Relu (U)
}";
    let body = body.replace("\"some.domain\".Thing", "local.Thing");
    let model = text::parse(&format!(
        "<ir_version: 8, opset_import: [\"\" : 18, \"local\" : 1]>\n{body}"
    ))
    .unwrap();
    let given = shapes(&[("X", &[2, 4])]);
    let trusting = infer(&model, &given, &Options::default());
    let y = model.find_value("Y").unwrap();
    let shape = trusting.get(y).unwrap().shape.clone().unwrap();
    assert_eq!(shape, [Dim::Symbol("N".into()), Dim::Known(7)]);
    let strict = Options {
        use_value_info: false,
        ..Options::default()
    };
    assert_eq!(infer(&model, &given, &strict).get(y).unwrap().shape, None);
}

/// Operators with rules of their own, for the test that nothing panics.
const OPS: &[&str] = &[
    "Conv",
    "ConvTranspose",
    "MaxPool",
    "AveragePool",
    "Resize",
    "Upsample",
    "DepthToSpace",
    "SpaceToDepth",
    "GridSample",
    "MatMul",
    "Gemm",
    "LayerNormalization",
    "LSTM",
    "Einsum",
    "Attention",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Expand",
    "Tile",
    "Slice",
    "Concat",
    "Split",
    "Pad",
    "Gather",
    "GatherND",
    "ReduceSum",
    "ArgMax",
    "TopK",
    "Range",
    "OneHot",
    "ConstantOfShape",
    "Add",
    "Div",
    "Where",
    "Compress",
    "Shape",
    "Cast",
];

fn extreme() -> impl Strategy<Value = i64> {
    prop_oneof![8 => -3i64..6, 1 => Just(i64::MAX), 1 => Just(i64::MIN)]
}

fn maybe_shape() -> impl Strategy<Value = Option<Vec<usize>>> {
    prop::option::of(prop::collection::vec(0usize..5, 0..5))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Any operator on any shapes, lists and attributes, known and unknown: a fact, or nothing.
    #[test]
    fn nothing_panics(
        op in prop::sample::select(OPS),
        shapes in prop::collection::vec(maybe_shape(), 0..3),
        lists in prop::collection::vec(prop::collection::vec(extreme(), 0..5), 0..3),
        numbers in prop::collection::vec(extreme(), 4),
        scale in any::<f32>(),
    ) {
        let mut model = read("main (float X) => (float Y) { Y = Neg (X) }");
        let main = Model::MAIN;
        let mut given = Shapes::new();
        let mut inputs = Vec::new();
        for (i, shape) in shapes.into_iter().enumerate() {
            let name = format!("x{i}");
            inputs.push(Some(model.add_graph_input(main, &name, None)));
            if let Some(shape) = shape {
                given.insert(name, (DataType::Float, shape));
            }
        }
        for (i, list) in lists.iter().enumerate() {
            let t = Tensor::from_i64(&[list.len() as i64], list);
            inputs.push(Some(model.add_initializer(main, &format!("c{i}"), t)));
        }
        let same = numbers[0] % 2 == 0;
        let mut spec = NodeSpec::new(op)
            .attr(attr_s("equation", "ij,...jk->i...k"))
            .attr(attr_s("auto_pad", if same { "SAME_UPPER" } else { "NOTSET" }))
            .attr(attr_f("value", scale));
        for (k, name) in ["axis", "keepdims", "ceil_mode", "blocksize"].iter().enumerate() {
            spec = spec.attr(attr_i(name, numbers[k]));
        }
        for name in ["pads", "strides", "dilations", "kernel_shape", "perm", "output_padding"] {
            spec = spec.attr(attr_ints(name, lists.first().map_or(&[], |l| l)));
        }
        let out = model.add_value(main, "out");
        model.add_node(main, spec, &inputs, &[Some(out)]);
        let facts = infer(&model, &given, &Options::default());
        prop_assert!(facts.get(out).is_some());
    }
}

#[test]
fn old_forms_of_operators_are_read() {
    let model = text::parse(
        "<ir_version: 3, opset_import: [\"\" : 7]>
main (float[2,4,12] X) => (float[A] Y)
<int64[2] t = {0, -1}, float[4] g = {1, 1, 1, 1}>
{
  u = Unsqueeze <axes = [0, 2]> (X)
  q = Squeeze <axes = [0, 2]> (u)
  s = Slice <axes = [1, 2], starts = [0, 1], ends = [9223372036854775807, -1]> (q)
  a, b = Split <axis = 2, split = [4, 6]> (s)
  c = Clip <min = 0.0> (b)
  p = Pad <pads = [0, 0, 1, 0, 0, 2]> (c)
  sum = ReduceSum <axes = [2], keepdims = 0> (p)
  mean = ReduceMean <axes = [1, 2]> (p)
  all = ReduceMax <keepdims = 0> (p)
  v, i = TopK <k = 3, axis = 1> (p)
  d, mask = Dropout <ratio = 0.5> (p)
  bn, m0, m1, m2, m3 = BatchNormalization (p, g, g, g, g)
  r = Reshape (p, t)
  h = Upsample <scales = [1.0, 2.0, 1.5]> (p)
  Y = Softmax (r)
}",
    )
    .unwrap();
    let facts = infer(&model, &Shapes::new(), &Options::default());
    let cases: [(&str, &[i64]); 15] = [
        ("u", &[1, 2, 1, 4, 12]),
        ("q", &[2, 4, 12]),
        ("s", &[2, 4, 10]),
        ("a", &[2, 4, 4]),
        ("c", &[2, 4, 6]),
        ("p", &[2, 4, 9]),
        ("sum", &[2, 4]),
        ("mean", &[2, 1, 1]),
        ("all", &[]),
        ("v", &[2, 3, 9]),
        ("mask", &[2, 4, 9]),
        ("m3", &[4]),
        ("r", &[2, 36]),
        ("h", &[2, 8, 13]),
        ("Y", &[2, 36]),
    ];
    for (name, dims) in cases {
        let f = fact(&model, &facts, name);
        assert_eq!(
            (f.dtype, f.shape),
            (Some(DataType::Float), known(dims)),
            "{name}"
        );
    }
    let i = fact(&model, &facts, "i");
    assert_eq!(
        (i.dtype, i.shape),
        (Some(DataType::Int64), known(&[2, 3, 9]))
    );
}

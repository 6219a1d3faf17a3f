//! What the operators compute is what the numbers say: every width, granularity and shape.
#![expect(clippy::unwrap_used, reason = "tests")]

use onnx_quant_ir::pass::{Changed, PassContext};
use onnx_quant_numerics::random::bits;

use super::read::{evaluate, find};
use super::*;
use crate::lower_codebook::LowerCodebook;
use crate::testing;

const SHAPES: &[&[i64]] = &[&[5], &[3, 4], &[4, 3, 3, 3], &[2, 9, 1], &[16, 8], &[1, 7]];

/// The ways to group a tensor of this shape.
fn groupings(dims: &[i64]) -> Vec<Groups> {
    let size = |d: &[i64]| d.iter().product::<i64>() as usize;
    let mut all = vec![Groups::tensor(size(dims))];
    for axis in 0..dims.len() {
        for kind in [
            GroupKind::Channel,
            GroupKind::Block(2),
            GroupKind::Block(3),
            GroupKind::Block(99),
        ] {
            all.push(Groups {
                outer: size(&dims[..axis]),
                len: dims[axis] as usize,
                inner: size(&dims[axis + 1..]),
                kind,
            });
        }
    }
    all.push(Groups {
        outer: dims[0] as usize,
        len: size(&dims[1..]),
        inner: 1,
        kind: GroupKind::Block(4),
    });
    all
}

/// A model that adds the weight to its input.
fn model_with(weight: &Indexed<'_>) -> Model {
    let mut model = testing::empty(21);
    let x = testing::input(&mut model, "X", weight.dims);
    let mut names = model.names();
    let w = Writer::new(&mut names)
        .write(&mut model, Model::MAIN, "W", weight)
        .unwrap();
    let y = model.add_op(Model::MAIN, NodeSpec::new("Add"), &[x, w], "Y");
    testing::output(&mut model, y);
    model.sort().unwrap();
    model
}

fn check(weight: &Indexed<'_>, name: &str) {
    let what = format!("{name} {:?} {:?}", weight.dims, weight.groups);
    let mut model = model_with(weight);
    let found = find(&model);
    assert_eq!(found.len(), 1, "{what}");
    let stored = &found[0];
    assert_eq!(stored.format(), name, "{what}");
    assert_eq!(stored.dims, weight.dims, "{what}");
    assert_eq!(stored.groups, weight.groups.count() as u64, "{what}");
    let bits = weight.codes.len() as u64 * u64::from(weight.bits);
    let tables = match weight.table {
        Table::Codebooks(books) => books.len(),
        Table::Scaled { scales, .. } => scales.len(),
    };
    let least = bits + tables as u64 * 32;
    assert!(
        (least..least + 64).contains(&stored.stored_bits),
        "{what}: {stored:?}"
    );
    let computed = evaluate(&model, stored).unwrap();
    assert_eq!(computed.dims(), weight.dims, "{what}");
    let exact = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    assert_eq!(
        exact(computed.to_f32().unwrap()),
        exact(weight.decode()),
        "{what}"
    );
    let changed = testing::run_with(&LowerCodebook, &mut model, &mut PassContext::default());
    assert_eq!(changed, Changed::Yes, "{what}");
    assert_eq!(testing::ops(&model), ["Add"], "{what}");
}

#[test]
fn the_operators_compute_what_the_numbers_say() {
    for dims in SHAPES {
        let count = dims.iter().product::<i64>() as usize;
        for groups in groupings(dims) {
            for n in 1..=8u32 {
                let codes: Vec<u8> = (0..count)
                    .map(|i| (bits(5, i as u64) % (1 << n)) as u8)
                    .collect();
                let books: Vec<f32> = (0..groups.count() << n)
                    .map(|i| bits(6, i as u64) as f32 / 1e18 - 9.0)
                    .collect();
                let weight = Indexed {
                    dims,
                    groups,
                    bits: n,
                    codes: &codes,
                    table: Table::Codebooks(&books),
                    float: DataType::Float,
                };
                check(&weight, &format!("kmeans{n}"));
            }
            let scales: Vec<f32> = (0..groups.count()).map(|i| 0.3 + i as f32).collect();
            for (name, n, levels) in [
                ("binary", 1, &[-1.0f32, 1.0][..]),
                ("ternary", 2, &[-1.0, 0.0, 1.0]),
            ] {
                let codes: Vec<u8> = (0..count)
                    .map(|i| (bits(7, i as u64) % levels.len() as u64) as u8)
                    .collect();
                let weight = Indexed {
                    dims,
                    groups,
                    bits: n,
                    codes: &codes,
                    table: Table::Scaled {
                        levels,
                        scales: &scales,
                    },
                    float: DataType::Float,
                };
                check(&weight, name);
            }
        }
    }
}

#[test]
fn weights_share_what_does_not_depend_on_them() {
    let mut model = testing::empty(21);
    let mut names = model.names();
    let mut writer = Writer::new(&mut names);
    let codes = [1u8, 0, 3, 2];
    let books = [0.0f32, 1.0, 2.0, 3.0];
    let weight = Indexed {
        dims: &[4],
        groups: Groups::tensor(4),
        bits: 2,
        codes: &codes,
        table: Table::Codebooks(&books),
        float: DataType::Float16,
    };
    for name in ["A", "B"] {
        writer
            .write(&mut model, Model::MAIN, name, &weight)
            .unwrap();
    }
    let names: Vec<&str> = model
        .main()
        .initializers
        .iter()
        .map(|&v| model.value(v).name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "A_packed",
            "unpack_shifts",
            "unpack_mask",
            "unpack_shape",
            "A_codebook",
            "B_packed",
            "B_codebook"
        ]
    );
    for stored in find(&model) {
        let computed = evaluate(&model, &stored).unwrap();
        assert_eq!(computed.dtype(), DataType::Float16);
        assert_eq!(computed.to_f32().unwrap(), [1.0, 0.0, 3.0, 2.0]);
    }
}

#[test]
fn other_lookups_are_left_alone() {
    let mut model = testing::empty(21);
    let table = Tensor::from_f32(&[4], &[0.0, 1.0, 2.0, 3.0]);
    let table = model.add_initializer(Model::MAIN, "T", table);
    let ty = testing::tensor_type(DataType::Int64, &[2]);
    let at = model.add_graph_input(Model::MAIN, "I", Some(ty));
    let y = model.add_op(Model::MAIN, NodeSpec::new("Gather"), &[table, at], "Y");
    testing::output(&mut model, y);
    assert!(find(&model).is_empty());
    let (changed, _) = testing::run(&LowerCodebook, &mut model);
    assert_eq!(changed, Changed::No);
}

//! The integer operators against real arithmetic.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::format::Base;

fn y(scale: f32, zero_point: i32, base: Base) -> QParams {
    QParams::for_type(scale, zero_point, base)
}

#[test]
fn a_product_by_hand() {
    let x = Activation {
        codes: &[130, 126],
        scale: 0.5,
        zero_point: 128,
    };
    let w = Weight {
        codes: &[3, -1, 4, 2],
        scales: &[0.5, 0.25],
        zero_points: &[0],
    };
    // 2·3 − 2·4 = −2 and 2·(−1) − 2·2 = −6
    assert_eq!(matmul_integer(x, w, (1, 2, 2)).unwrap(), [-2, -6]);
    // −2 · 0.25 = −0.5 and −6 · 0.125 = −0.75, in steps of 0.25: −2 and −3
    let codes = qlinear_matmul(x, w, None, (1, 2, 2), &y(0.25, 10, Base::UINT8)).unwrap();
    assert_eq!(codes, [8, 7]);
    let codes =
        qlinear_matmul(x, w, Some(&[4, 1000]), (1, 2, 2), &y(0.25, 10, Base::UINT8)).unwrap();
    assert_eq!(codes, [12, 255]);
}

#[test]
fn halves_go_to_the_even_code() {
    let out = y(2.0, 0, Base::INT8);
    assert_eq!(
        [1, 3, 5, -1, -3].map(|s| requantize(s, 1.0, 1.0, &out)),
        [0, 2, 2, 0, -2]
    );
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = Activation {
        codes: &[1, 2],
        scale: 1.0,
        zero_point: 0,
    };
    let w = Weight {
        codes: &[1],
        scales: &[1.0],
        zero_points: &[0],
    };
    let e = matmul_integer(x, w, (1, 2, 1)).unwrap_err();
    assert_eq!(
        e.to_string(),
        "the right side holds 1 values where 2 are needed"
    );
    let w = Weight {
        codes: &[1, 1],
        scales: &[1.0],
        zero_points: &[0],
    };
    let out = y(1.0, 0, Base::INT8);
    let e = qlinear_matmul(x, w, Some(&[i32::MAX]), (1, 2, 1), &out).unwrap_err();
    assert_eq!(e, IntegerError::Overflow { index: 0 });
}

#[test]
fn dynamic_codes_hold_zero_and_both_ends() {
    let (codes, scale, zero) = dynamic_quantize(&[-1.0, 0.0, 4.1]);
    assert_eq!((codes[0], codes[1], codes[2]), (0, zero, 255));
    assert!((scale - 0.02).abs() < 1e-6 && zero == 50);
    assert_eq!(dynamic_quantize(&[0.0, 0.0]), (vec![0, 0], 0.0, 0));
    assert_eq!(dynamic_quantize(&[2.0]).0, [255]);
}

/// The convolution in f64 on dequantized values.
fn real_conv(x: &Activation<'_>, w: &Weight<'_>, shape: &ConvShape, bias: &[i32]) -> Vec<f64> {
    let [rows, columns] = shape.output();
    let ins = shape.inputs / shape.groups;
    let mut out = Vec::new();
    for image in 0..shape.batch {
        for (o, &offset) in bias.iter().enumerate() {
            let scale = f64::from(x.scale) * f64::from(w.scale(o));
            for r in 0..rows {
                for c in 0..columns {
                    let mut sum = f64::from(offset) * scale;
                    for i in 0..ins {
                        let channel = o / (shape.outputs / shape.groups) * ins + i;
                        for kr in 0..shape.kernel[0] {
                            for kc in 0..shape.kernel[1] {
                                let row = (r * shape.strides[0] + kr * shape.dilations[0]) as i64
                                    - shape.pads[0][0] as i64;
                                let column = (c * shape.strides[1] + kc * shape.dilations[1])
                                    as i64
                                    - shape.pads[1][0] as i64;
                                let inside = (0..shape.size[0] as i64).contains(&row)
                                    && (0..shape.size[1] as i64).contains(&column);
                                if !inside {
                                    continue;
                                }
                                let at = ((image * shape.inputs + channel) * shape.size[0]
                                    + row as usize)
                                    * shape.size[1]
                                    + column as usize;
                                let k =
                                    ((o * ins + i) * shape.kernel[0] + kr) * shape.kernel[1] + kc;
                                let a = f64::from(x.codes[at] - x.zero_point) * f64::from(x.scale);
                                let b =
                                    f64::from(w.codes[k] - w.zero_point(o)) * f64::from(w.scale(o));
                                sum += a * b;
                            }
                        }
                    }
                    out.push(sum);
                }
            }
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_convolution_equals_its_real_form_within_one_step(
        x in proptest::collection::vec(0i32..256, 2 * 4 * 5 * 6),
        w in proptest::collection::vec(-127i32..128, 6 * 4 * 3 * 2),
        bias in proptest::collection::vec(-2000i32..2000, 6),
        scales in proptest::collection::vec(1e-3f32..0.1, 6),
        zero_points in proptest::collection::vec(-3i32..4, 6),
        groups in prop_oneof![Just(1usize), Just(2)],
        strides in prop_oneof![Just([1usize, 1]), Just([2, 1])],
        dilations in prop_oneof![Just([1usize, 1]), Just([1, 2])],
        pads in prop_oneof![Just([[0usize, 0], [0, 0]]), Just([[1, 1], [0, 2]])],
        x_zero in 0i32..256,
    ) {
        let shape = ConvShape {
            batch: 2, inputs: 4, outputs: 6, size: [5, 6], kernel: [3, 2], strides, dilations, pads, groups,
        };
        let a = Activation { codes: &x, scale: 0.03, zero_point: x_zero };
        let b = Weight { codes: &w[..6 * 4 / groups * 6], scales: &scales, zero_points: &zero_points };
        let out = y(0.7, 120, Base::UINT8);
        let codes = qlinear_conv(a, b, Some(&bias), &shape, &out).unwrap();
        for (code, real) in codes.iter().zip(real_conv(&a, &b, &shape, &bias)) {
            let wanted = ((real / f64::from(out.scale)).round_ties_even() + 120.0).clamp(0.0, 255.0);
            prop_assert!((f64::from(*code) - wanted).abs() <= 1.0, "{code} {wanted}");
        }
    }

    #[test]
    fn a_product_equals_its_real_form_within_one_step(
        x in proptest::collection::vec(-128i32..128, 3 * 7),
        w in proptest::collection::vec(-127i32..128, 7 * 4),
        scales in proptest::collection::vec(1e-3f32..0.1, 4),
        zero in -128i32..128,
    ) {
        let a = Activation { codes: &x, scale: 0.02, zero_point: zero };
        let b = Weight { codes: &w, scales: &scales, zero_points: &[0] };
        let out = y(0.05, -3, Base::INT8);
        let codes = qlinear_matmul(a, b, None, (3, 7, 4), &out).unwrap();
        for (i, code) in codes.iter().enumerate() {
            let real: f64 = (0..7)
                .map(|k| f64::from(x[i / 4 * 7 + k] - zero) * f64::from(w[k * 4 + i % 4]))
                .sum::<f64>() * 0.02f32 as f64 * f64::from(scales[i % 4]);
            let wanted = ((real / f64::from(out.scale)).round_ties_even() - 3.0).clamp(-128.0, 127.0);
            prop_assert!((f64::from(*code) - wanted).abs() <= 1.0);
        }
    }
}

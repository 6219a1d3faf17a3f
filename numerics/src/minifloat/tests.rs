//! Every code of every format, the rounding between neighbours, and the edges.
use super::*;
use proptest::prelude::*;

/// The finite magnitudes of a format in ascending order, with their codes.
fn magnitudes(format: MiniFloat) -> Vec<(f64, u8)> {
    let positive = 1u16 << (format.bits() - 1);
    let codes = (0..positive).map(|code| (f64::from(format.decode(code as u8)), code as u8));
    codes.filter(|(x, _)| x.is_finite()).collect()
}

/// The nearest code by search over all of them, half to even, saturating.
fn nearest(format: MiniFloat, x: f32) -> u8 {
    let table = magnitudes(format);
    let magnitude = f64::from(x.abs());
    let at = table.partition_point(|&(v, _)| v < magnitude);
    let code = match (at.checked_sub(1).map(|i| table[i]), table.get(at)) {
        (_, None) => table[table.len() - 1].1,
        (None, Some(&(_, code))) => code,
        (Some((low, below)), Some(&(high, above))) => {
            match (magnitude - low).total_cmp(&(high - magnitude)) {
                std::cmp::Ordering::Less => below,
                std::cmp::Ordering::Greater => above,
                std::cmp::Ordering::Equal => [below, above][usize::from(below % 2 == 1)],
            }
        }
    };
    let no_negative_zero = matches!(format, MiniFloat::E4m3Fnuz | MiniFloat::E5m2Fnuz);
    match x.is_sign_negative() && !(no_negative_zero && code == 0) {
        true => code | 1 << (format.bits() - 1),
        false => code,
    }
}

#[test]
fn every_number_has_its_code() {
    for format in MiniFloat::ALL {
        for code in 0..1u16 << format.bits() {
            let x = format.decode(code as u8);
            if !x.is_nan() {
                assert_eq!(
                    format.encode(x, false),
                    code as u8,
                    "{format} {code:#x} {x}"
                );
            }
        }
        assert_eq!(format.table().len(), 1 << format.bits());
    }
}

#[test]
fn known_numbers() {
    let largest = |f: MiniFloat| (f.largest(), f.smallest(), f.largest_exponent());
    assert_eq!(largest(MiniFloat::E4m3), (448.0, pow2(-9), 8));
    assert_eq!(largest(MiniFloat::E5m2), (57344.0, pow2(-16), 15));
    assert_eq!(largest(MiniFloat::E4m3Fnuz), (240.0, pow2(-10), 7));
    assert_eq!(largest(MiniFloat::E5m2Fnuz), (57344.0, pow2(-17), 15));
    assert_eq!(largest(MiniFloat::E2m3), (7.5, 0.125, 2));
    assert_eq!(largest(MiniFloat::E3m2), (28.0, 0.0625, 4));
    assert_eq!(largest(MiniFloat::E2m1), (6.0, 0.5, 2));
    assert_eq!(
        MiniFloat::E2m1.table()[..8],
        [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    );
    assert!(MiniFloat::E4m3.decode(0x7f).is_nan() && MiniFloat::E4m3.decode(0xff).is_nan());
    assert_eq!(MiniFloat::E5m2.decode(0xfc), f32::NEG_INFINITY);
    assert!(MiniFloat::E5m2Fnuz.decode(0x80).is_nan());
}

#[test]
fn beyond_the_finite_numbers() {
    let inf = f32::INFINITY;
    let codes = |f: MiniFloat, x: f32| (f.encode(x, true), f.encode(x, false));
    assert_eq!(codes(MiniFloat::E4m3, inf), (0x7e, 0x7f));
    assert_eq!(codes(MiniFloat::E4m3, -1e9), (0xfe, 0xff));
    assert_eq!(codes(MiniFloat::E4m3, 464.0), (0x7e, 0x7e));
    assert_eq!(codes(MiniFloat::E4m3, 464.0f32.next_up()), (0x7e, 0x7f));
    assert_eq!(codes(MiniFloat::E5m2, inf), (0x7b, 0x7c));
    assert_eq!(codes(MiniFloat::E5m2, -61440.0), (0xfb, 0xfc));
    assert_eq!(codes(MiniFloat::E4m3Fnuz, inf), (0x7f, 0x80));
    assert_eq!(codes(MiniFloat::E2m1, -inf), (0x0f, 0x0f));
    assert_eq!(codes(MiniFloat::E4m3, f32::NAN), (0x7f, 0x7f));
    assert_eq!(codes(MiniFloat::E5m2, -f32::NAN), (0xfe, 0xfe));
    assert_eq!(codes(MiniFloat::E5m2Fnuz, f32::NAN), (0x80, 0x80));
    assert_eq!(codes(MiniFloat::E2m1, f32::NAN), (0x08, 0x08));
    assert_eq!(codes(MiniFloat::E4m3Fnuz, -0.0), (0, 0));
    assert_eq!(codes(MiniFloat::E4m3, -1e-30), (0x80, 0x80));
}

#[test]
fn middles_go_to_the_even_code() {
    for format in MiniFloat::ALL {
        for pair in magnitudes(format).windows(2) {
            let middle = ((pair[0].0 + pair[1].0) / 2.0) as f32;
            for x in [middle, middle.next_up(), middle.next_down(), -middle] {
                assert_eq!(format.encode(x, true), nearest(format, x), "{format} {x}");
            }
        }
    }
}

proptest! {
    #[test]
    fn rounding_equals_the_code_decoded(bits: u32, narrow in -600.0f32..600.0) {
        for x in [f32::from_bits(bits), narrow].into_iter().filter(|x| x.is_finite()) {
            for format in MiniFloat::ALL {
                let rounded = Encoder::new(format).round(x);
                prop_assert_eq!(rounded, format.decode(format.encode(x, true)), "{} {}", format, x);
            }
        }
    }

    #[test]
    fn codes_are_the_nearest(bits: u32, narrow in -600.0f32..600.0) {
        for format in MiniFloat::ALL {
            for x in [f32::from_bits(bits), narrow, narrow / 64.0] {
                if x.is_nan() {
                    continue;
                }
                prop_assert_eq!(format.encode(x, true), nearest(format, x), "{} {}", format, x);
            }
            let raw = [f32::from_bits(bits), f32::from_bits(bits | 0x7fc0_0000), narrow];
            let mut codes = [0; 3];
            format.encode_scaled(&raw, 3.0, &mut codes);
            prop_assert_eq!(codes, raw.map(|x| format.encode(x / 3.0, true)), "{} {:?}", format, raw);
        }
    }
}

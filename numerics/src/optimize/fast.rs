//! Powers of e in a form that the compiler turns into vector instructions, with a relative error below 3·10⁻⁷: learned
//! rounding takes one for every weight in every step.

/// 1.5 · 2²³: added to a number below 2²², it leaves the number rounded to an integer in the last bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, of which the first has few bits.
const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

/// `eˣ`, for `x` from −87 to 88; beyond them the value at the end.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2.0) - n * LN2.1;
    let tail = 1.0 / 24.0 + r * (1.0 / 120.0 + r * (1.0 / 720.0 + r * (1.0 / 5040.0)));
    let p = 1.0 + r * (1.0 + r * (0.5 + r * (1.0 / 6.0 + r * tail)));
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    p * f32::from_bits(exponent.wrapping_add(127) << 23)
}

/// `xᵃ` for `x` from 0 to 1 and `a` from 0 on.
#[inline(always)]
pub(super) fn power(x: f32, a: f32) -> f32 {
    let x = x.max(f32::MIN_POSITIVE);
    // The mantissa in [√½, √2), and the exponent.
    let shifted = x.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (shifted as i32 >> 23) as f32;
    let m = f32::from_bits((shifted & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let s = (m - 1.0) / (m + 1.0);
    let t = s * s;
    let series = 1.0 + t * (1.0 / 3.0 + t * (0.2 + t * (1.0 / 7.0 + t * (1.0 / 9.0))));
    exp(a * (exponent * std::f32::consts::LN_2 + 2.0 * s * series))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_those_of_the_library() {
        for i in -8000..=8000 {
            let x = i as f32 * 0.01;
            let near = (exp(x) / x.exp() - 1.0).abs();
            assert!(near < 3e-7, "{x}: {near}");
        }
        assert!(exp(-1e9) < 1e-37 && exp(1e9) > 1e38 && exp(0.0) == 1.0);
        for i in 1..=1000 {
            for a in [0.0, 1.0, 1.7, 19.0] {
                let x = i as f32 * 0.001;
                let (found, exact) = (power(x, a), x.powf(a));
                assert!((found - exact).abs() < 1e-5 * exact.max(1e-30), "{x} {a}");
            }
        }
        assert!(power(0.0, 1.0) < 1e-37 && power(0.0, 0.0) == 1.0);
    }
}

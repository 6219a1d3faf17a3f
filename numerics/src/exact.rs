//! Sums of f32 values that are exact, so that the order of the values does not matter.
//!
//! Source: Kulisch, *Computer Arithmetic and Validity*, 2008: a fixed-point number wide enough for every value. Bit 0
//! of the sum weighs `2^-149`, the least f32; `f32::MAX` ends at bit 276, which leaves room for 2^106 values.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

const LIMBS: usize = 6;
/// The exponent of bit 0.
const UNIT: i32 = -149;

/// The exact sum of finite f32 values, in two's complement with the lowest limb first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExactSum([u64; LIMBS]);

impl ExactSum {
    /// Adds a value; NaN and infinities are no numbers and add nothing.
    pub fn add(&mut self, x: f32) {
        if !x.is_finite() {
            return;
        }
        let bits = x.to_bits();
        let exponent = bits >> 23 & 0xff;
        let fraction = u64::from(bits & 0x7f_ffff);
        // A subnormal number has exponent field 0 and the unit of field 1.
        let (mantissa, shift) = match exponent {
            0 => (fraction, 0),
            e => (fraction | 1 << 23, e - 1),
        };
        let at = (shift / 64) as usize;
        let wide = u128::from(mantissa) << (shift % 64);
        let mut term = [0; LIMBS];
        term[at] = wide as u64;
        term[at + 1] = (wide >> 64) as u64;
        let term = ExactSum(term);
        self.add_sum(&if x.is_sign_negative() {
            term.negated()
        } else {
            term
        });
    }

    /// Adds another sum. Associative and commutative.
    pub fn add_sum(&mut self, other: &Self) {
        let mut carry = false;
        for (a, &b) in self.0.iter_mut().zip(&other.0) {
            let (sum, over) = a.overflowing_add(b);
            let (sum, again) = sum.overflowing_add(u64::from(carry));
            (*a, carry) = (sum, over || again);
        }
    }

    fn negated(&self) -> Self {
        let mut one = [0; LIMBS];
        one[0] = 1;
        let mut negative = ExactSum(self.0.map(|limb| !limb));
        negative.add_sum(&ExactSum(one));
        negative
    }

    fn is_negative(&self) -> bool {
        self.0[LIMBS - 1] >> 63 == 1
    }

    /// The sum as f64, from its leading 64 bits: off by less than one part in 2^52.
    pub fn to_f64(&self) -> f64 {
        if self.is_negative() {
            return -self.negated().to_f64();
        }
        let Some(top) = (0..LIMBS).rev().find(|&i| self.0[i] != 0) else {
            return 0.0;
        };
        let below = if top > 0 { self.0[top - 1] } else { 0 };
        let low = f64::from(UNIT + 64 * top as i32).exp2();
        (self.0[top] as f64 + below as f64 * 2f64.powi(-64)) * low
    }
}

impl From<ExactSum> for String {
    /// Hexadecimal, highest limb first.
    fn from(sum: ExactSum) -> Self {
        sum.0.iter().rev().fold(String::new(), |mut text, limb| {
            let _ = write!(text, "{limb:016x}");
            text
        })
    }
}

impl TryFrom<String> for ExactSum {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const WRONG: &str = "a sum is 96 hexadecimal digits";
        if text.len() != 16 * LIMBS || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(WRONG);
        }
        let mut limbs = [0; LIMBS];
        for (i, limb) in limbs.iter_mut().enumerate() {
            let end = text.len() - 16 * i;
            *limb = u64::from_str_radix(&text[end - 16..end], 16).map_err(|_| WRONG)?;
        }
        Ok(ExactSum(limbs))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn sum(x: &[f32]) -> ExactSum {
        let mut sum = ExactSum::default();
        x.iter().for_each(|&x| sum.add(x));
        sum
    }

    #[test]
    fn nothing_is_lost() {
        let x = [f32::MAX, 1e-45, -f32::MAX, 1.0, -3.5, f32::MIN_POSITIVE];
        let expected = 1e-45f32 as f64 - 2.5 + f64::from(f32::MIN_POSITIVE);
        assert_eq!(sum(&x).to_f64(), expected);
        assert_eq!(sum(&[1e-45, -1e-45, 0.0, -0.0]), ExactSum::default());
        assert_eq!(sum(&[f32::NAN, f32::INFINITY]), ExactSum::default());
        assert_eq!(sum(&[1e-45]).to_f64(), f64::from(1e-45f32));
        assert_eq!(sum(&[f32::MIN; 1000]).to_f64(), f64::from(f32::MIN) * 1e3);
    }

    #[test]
    fn text_that_is_no_sum_is_refused() {
        for bad in ["", "00", &"g".repeat(96), &"é".repeat(48)] {
            assert!(ExactSum::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn order_does_not_matter(
            x in proptest::collection::vec(any::<u32>().prop_map(f32::from_bits), 0..40), at in 0usize..40,
        ) {
            let whole = sum(&x);
            let mut back: Vec<f32> = x.clone();
            back.reverse();
            prop_assert_eq!(sum(&back), whole);
            let (a, b) = x.split_at(at.min(x.len()));
            let mut joined = sum(b);
            joined.add_sum(&sum(a));
            prop_assert_eq!(joined, whole);
            let text = String::from(whole);
            prop_assert_eq!(ExactSum::try_from(text).unwrap(), whole);
        }

        #[test]
        fn small_integers_are_summed_as_integers(x in proptest::collection::vec(-1000i16..1000, 0..50)) {
            let floats: Vec<f32> = x.iter().map(|&x| f32::from(x)).collect();
            let expected: i32 = x.iter().map(|&x| i32::from(x)).sum();
            prop_assert_eq!(sum(&floats).to_f64(), f64::from(expected));
        }
    }
}

//! The program's own random numbers and elementary functions.
//!
//! The trained model must come out the same, bit for bit, on every machine. The functions of the platform's
//! mathematical library are not the same everywhere, so what is needed of them is written here with `+ - * /` alone,
//! which IEEE 754 fixes.

/// SplitMix64 (Steele, Lea, Flood 2014): one 64-bit counter and a mixing function.
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    /// The generator of one stream of a seed; streams of different numbers are unrelated.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self(mix(seed ^ mix(stream.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from `low` (included) to `high`, out of 2²⁴ evenly spaced ones.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.bits() >> 40) as f32 / (1u32 << 24) as f32;
        low + (high - low) * unit
    }

    /// About a standard normal number: the sum of twelve uniform ones (Irwin–Hall), mean 0 and variance 1.
    pub fn normal(&mut self) -> f32 {
        let mut sum = 0i64;
        for _ in 0..3 {
            let bits = self.bits();
            sum += (0..4)
                .map(|part| ((bits >> (16 * part)) & 0xffff) as i64)
                .sum::<i64>();
        }
        (sum - 6 * 0xffff) as f32 / 65536.0
    }

    /// True with probability one half.
    pub fn coin(&mut self) -> bool {
        self.bits() >> 63 == 1
    }
}

/// The output function of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `eˣ`, for `x` limited to ±700: `2ᵏ·eʳ` with `|r| ≤ ln 2 / 2` and the Taylor series of `eʳ`.
pub fn exp(x: f64) -> f64 {
    let x = x.clamp(-700.0, 700.0);
    let k = (x / std::f64::consts::LN_2).round();
    let r = x - k * std::f64::consts::LN_2;
    let series = (1..=16)
        .rev()
        .fold(1.0, |sum, i| 1.0 + sum * r / f64::from(i));
    series * f64::from_bits(((k as i64 + 1023) as u64) << 52)
}

/// The natural logarithm of a positive normal number: `k·ln 2 + 2·artanh((m − 1)/(m + 1))`, `m` in [√½, √2).
pub fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut k = ((bits >> 52) as i64 - 1023) as f64;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m /= 2.0;
        k += 1.0;
    }
    let s = (m - 1.0) / (m + 1.0);
    let series = (0..13)
        .rev()
        .fold(0.0, |sum, i| sum * s * s + 1.0 / f64::from(2 * i + 1));
    k * std::f64::consts::LN_2 + 2.0 * s * series
}

/// The cosine of `x` in [0, π], by its Taylor series around 0 after `cos x = −cos(π − x)`.
pub fn cos(x: f64) -> f64 {
    use std::f64::consts::{FRAC_PI_2, PI};
    if x > FRAC_PI_2 {
        return -cos(PI - x);
    }
    (1..=12).rev().fold(1.0, |sum, i| {
        1.0 - sum * x * x / f64::from((2 * i - 1) * (2 * i))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_published_sequence() {
        // The first outputs of SplitMix64 from the state 1234567, as in the reference implementation's tests.
        let mut rng = Rng(1_234_567);
        let got: Vec<u64> = (0..3).map(|_| rng.bits()).collect();
        let want = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut rng = Rng::new(1, 2);
        let draws: Vec<f64> = (0..100_000).map(|_| f64::from(rng.normal())).collect();
        let mean = draws.iter().sum::<f64>() / 1e5;
        let variance = draws.iter().map(|d| d * d).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.01, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn functions_agree_with_the_platform() {
        for step in -2000..=2000 {
            let x = f64::from(step) / 50.0;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-13, "exp {x}");
            let y = x.exp();
            assert!((ln(y) - y.ln()).abs() < 1e-13, "ln {y}");
            let z = (x + 40.0) / 80.0 * std::f64::consts::PI;
            assert!((cos(z) - z.cos()).abs() < 1e-13, "cos {z}");
        }
    }
}

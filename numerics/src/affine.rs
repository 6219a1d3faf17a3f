//! Linear quantization `q = clamp(⌊r / S⌉ + Z, qmin, qmax)`, `r̂ = S · (q − Z)`: the choice of `S` and `Z`
//! from a range, and the reference of both directions. [`crate::quantize`] has the same over slices.
//!
//! Source of the two directions: the ONNX operators QuantizeLinear and DequantizeLinear.

use thiserror::Error;

use crate::format::{Base, Scheme};
use crate::minifloat::MiniFloat;

/// The parameters of one linear quantizer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QParams {
    /// Real value of one step; a positive normal number.
    pub scale: f32,
    /// Code of the real value 0; within `qmin..=qmax`.
    pub zero_point: i32,
    /// Smallest code that is used.
    pub qmin: i32,
    /// Largest code that is used.
    pub qmax: i32,
}

/// How much of the code range [`choose_qparams`] may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QOptions {
    /// Leave out the lowest code, so that a symmetric range has as many codes below zero as above (−127..=127).
    pub narrow: bool,
    /// Leave out one bit: −64..=64 for int8, 0..=127 for uint8. Kernels that add two
    /// 8-bit products in 16 bits (x86 without VNNI) then do not saturate.
    pub reduce_range: bool,
}

/// A range that no quantizer can be made for.
#[derive(Debug, Clone, Copy, PartialEq, Error)]
pub enum RangeError {
    /// A bound is NaN or infinite.
    #[error("the range [{min}, {max}] is not finite")]
    NotFinite {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// The lower bound is above the upper bound.
    #[error("the range [{min}, {max}] is empty: its lower bound is above its upper bound")]
    Inverted {
        /// Lower bound.
        min: f32,
        /// Upper bound.
        max: f32,
    },
    /// No value was observed.
    #[error("no values were observed, so there is no range")]
    NoValues,
    /// Some observed values are NaN or infinite.
    #[error("the observed values hold {nan} NaN and {infinite} infinite values")]
    NonFiniteValues {
        /// Number of NaN.
        nan: u64,
        /// Number of +∞ and −∞.
        infinite: u64,
    },
}

impl QParams {
    /// Parameters for a QuantizeLinear of type `base`, which saturates at the bounds of its type.
    pub fn for_type(scale: f32, zero_point: i32, base: Base) -> Self {
        let info = base.info();
        QParams {
            scale,
            zero_point,
            qmin: info.qmin,
            qmax: info.qmax,
        }
    }

    /// The code of `x`; see [`quantize_reference`].
    pub fn quantize(&self, x: f32) -> i32 {
        quantize_reference(x, self.scale, self.zero_point, self.qmin, self.qmax)
    }

    /// The real value of code `q`; see [`dequantize_reference`].
    pub fn dequantize(&self, q: i32) -> f32 {
        dequantize_reference(q, self.scale, self.zero_point)
    }

    /// Smallest and largest real value that have a code of their own.
    pub fn real_range(&self) -> (f32, f32) {
        (self.dequantize(self.qmin), self.dequantize(self.qmax))
    }
}

/// The code range that `options` leave of `base`.
pub fn code_range(base: Base, options: QOptions) -> (i32, i32) {
    let info = base.info();
    let (qmin, qmax) = match (options.reduce_range, info.signed) {
        (false, _) => (info.qmin, info.qmax),
        (true, true) => (-(1 << (info.bits - 2)), 1 << (info.bits - 2)),
        (true, false) => (0, info.qmax >> 1),
    };
    match (options.narrow, info.signed) {
        (false, _) => (qmin, qmax),
        (true, true) => (-qmax, qmax),
        (true, false) => (1, qmax),
    }
}

/// Scale and zero point for real values in `[min, max]`.
///
/// The range is first widened to hold 0, so that zero padding is exact.
/// * symmetric: `Z` = 0 (unsigned: the middle code), `S = max(|min|, |max|) / (qmax − Z)`;
/// * float formats of 4 to 8 bits: `Z` = 0, `S = max(|min|, |max|)` by the format's largest number;
/// * asymmetric: `S = (max − min) / (qmax − qmin)`, `Z = ⌊qmax − max / S⌉`, half to even, clamped.
///
/// Computed in f64 and rounded once. A range of width 0 gives `S` = 1, one too narrow for a normal `S` gives the
/// smallest normal number, and one so wide that the outermost code would be infinite gives the largest `S` for which
/// it is not: `S` and every dequantized code are finite.
///
/// Source: Jacob et al., *Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
/// Inference*, 2018, section 2.1.
///
/// # Errors
/// [`RangeError::NotFinite`] for a NaN or infinite bound, [`RangeError::Inverted`] for `min > max`.
pub fn choose_qparams(
    min: f32,
    max: f32,
    base: Base,
    scheme: Scheme,
    options: QOptions,
) -> Result<QParams, RangeError> {
    Chooser::new(base, scheme, options).choose(min, max)
}

/// [`choose_qparams`] for many ranges.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chooser {
    base: Base,
    scheme: Scheme,
    element: Option<MiniFloat>,
    qmin: i32,
    qmax: i32,
    /// The zero point of symmetric ranges.
    middle: i32,
}

impl Chooser {
    pub(crate) fn new(base: Base, scheme: Scheme, options: QOptions) -> Self {
        let (qmin, qmax) = code_range(base, options);
        let middle = match base.info().signed {
            true => 0,
            false => (qmax + 1) / 2,
        };
        Chooser {
            base,
            scheme,
            element: base.element(),
            qmin,
            qmax,
            middle,
        }
    }

    #[inline]
    pub(crate) fn choose(&self, min: f32, max: f32) -> Result<QParams, RangeError> {
        if !min.is_finite() || !max.is_finite() {
            return Err(RangeError::NotFinite { min, max });
        }
        if min > max {
            return Err(RangeError::Inverted { min, max });
        }
        let (low, high) = (f64::from(min.min(0.0)), f64::from(max.max(0.0)));
        if let Some(element) = self.element {
            return Ok(float_params(high.max(-low), element, self.base));
        }
        let (qmin, qmax) = (self.qmin, self.qmax);
        let (scale, zero_point) = match self.scheme {
            Scheme::Symmetric => {
                let scale = normal_scale(high.max(-low), qmax - self.middle);
                (scale, self.middle)
            }
            Scheme::Asymmetric => {
                let scale = normal_scale(high - low, qmax - qmin);
                let exact = f64::from(qmax) - high / f64::from(scale);
                let zero_point = if low == high {
                    0
                } else {
                    exact.round_ties_even() as i32
                };
                (scale, zero_point.clamp(qmin, qmax))
            }
        };
        let farthest = (zero_point - qmin).max(qmax - zero_point);
        let scale = finite_products(scale, farthest);
        Ok(QParams {
            scale,
            zero_point,
            qmin,
            qmax,
        })
    }
}

/// The scale that makes a magnitude the largest number of a float format; there is no zero point.
fn float_params(magnitude: f64, element: MiniFloat, base: Base) -> QParams {
    let scale = match magnitude {
        0.0 => 1.0,
        m => ((m / f64::from(element.largest())) as f32).max(f32::MIN_POSITIVE),
    };
    QParams::for_type(scale, 0, base)
}

/// `width / steps` as a positive normal f32.
fn normal_scale(width: f64, steps: i32) -> f32 {
    if width == 0.0 {
        return 1.0;
    }
    let scale = width / f64::from(steps);
    (scale as f32).max(f32::MIN_POSITIVE)
}

/// The largest scale up to `scale` whose product with `steps` is finite.
fn finite_products(scale: f32, steps: i32) -> f32 {
    let steps = steps as f32;
    if (scale * steps).is_finite() {
        return scale;
    }
    let mut limited = f32::MAX / steps;
    while !(limited * steps).is_finite() {
        limited = limited.next_down();
    }
    limited
}

/// The code of `x`, as the ONNX standard defines QuantizeLinear: divide in f32, round half to even, add the zero
/// point, saturate, in this order and without wrapping.
///
/// ±∞ and quotients that overflow saturate. NaN gives `qmin`: the standard leaves it open, and onnx's reference
/// evaluator and onnxruntime on x86 give this. onnxruntime agrees in every case; the reference evaluator does where
/// the quotient fits int32, and otherwise casts to −2^31 and adds the zero point with wrap-around, which the
/// standard's saturation excludes.
pub fn quantize_reference(x: f32, scale: f32, zero_point: i32, qmin: i32, qmax: i32) -> i32 {
    let rounded = (x / scale).round_ties_even();
    if rounded.is_nan() {
        return qmin;
    }
    // The cast saturates, and the sum of two 32-bit values fits 64 bits with room to spare.
    let code = i64::from(rounded as i32) + i64::from(zero_point);
    code.clamp(i64::from(qmin), i64::from(qmax)) as i32
}

/// The real value of code `q`, as the ONNX standard defines DequantizeLinear: `(q − Z) · S` with the difference
/// in integers and one rounding in the product (exact to the standard for codes of up to 24 bits).
pub fn dequantize_reference(q: i32, scale: f32, zero_point: i32) -> f32 {
    (i64::from(q) - i64::from(zero_point)) as f32 * scale
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn all_options() -> impl Iterator<Item = (Base, Scheme, QOptions)> {
        let bases = Base::all().into_iter().filter(|b| b.is_integer());
        bases.flat_map(|base| {
            [Scheme::Symmetric, Scheme::Asymmetric]
                .into_iter()
                .flat_map(move |scheme| {
                    [(false, false), (false, true), (true, false), (true, true)].map(
                        |(narrow, reduce_range)| {
                            (
                                base,
                                scheme,
                                QOptions {
                                    narrow,
                                    reduce_range,
                                },
                            )
                        },
                    )
                })
        })
    }

    #[test]
    fn code_ranges() {
        let range = |base, narrow, reduce_range| {
            code_range(
                base,
                QOptions {
                    narrow,
                    reduce_range,
                },
            )
        };
        assert_eq!(range(Base::INT8, false, false), (-128, 127));
        assert_eq!(range(Base::INT8, true, false), (-127, 127));
        assert_eq!(range(Base::INT8, true, true), (-64, 64));
        assert_eq!(range(Base::UINT8, false, false), (0, 255));
        assert_eq!(range(Base::UINT8, false, true), (0, 127));
        assert_eq!(range(Base::INT4, true, false), (-7, 7));
    }

    #[test]
    fn textbook_values() {
        let options = QOptions::default();
        let p = choose_qparams(-1.0, 3.0, Base::UINT8, Scheme::Asymmetric, options).unwrap();
        assert_eq!((p.scale, p.zero_point), (4.0 / 255.0, 64));
        let p = choose_qparams(-2.54, 1.0, Base::INT8, Scheme::Symmetric, options).unwrap();
        assert_eq!((p.scale, p.zero_point), (0.02, 0));
        let p = choose_qparams(-1.0, 1.27, Base::UINT8, Scheme::Symmetric, options).unwrap();
        assert_eq!((p.scale, p.zero_point), (0.01, 128));
        // One-sided ranges are widened to zero.
        let p = choose_qparams(5.0, 10.0, Base::UINT8, Scheme::Asymmetric, options).unwrap();
        assert_eq!((p.scale, p.zero_point), (10.0 / 255.0, 0));
        let p = choose_qparams(-10.0, -5.0, Base::UINT8, Scheme::Asymmetric, options).unwrap();
        assert_eq!((p.scale, p.zero_point), (10.0 / 255.0, 255));
        let p = choose_qparams(-10.0, 5.0, Base::INT8, Scheme::Asymmetric, options).unwrap();
        assert_eq!((p.scale, p.zero_point), (15.0 / 255.0, 42));
    }

    #[test]
    fn refused_ranges() {
        let choose =
            |min, max| choose_qparams(min, max, Base::INT8, Scheme::Symmetric, QOptions::default());
        assert!(matches!(
            choose(f32::NAN, 1.0),
            Err(RangeError::NotFinite { .. })
        ));
        assert!(matches!(
            choose(0.0, f32::INFINITY),
            Err(RangeError::NotFinite { .. })
        ));
        assert_eq!(
            choose(2.0, 1.0),
            Err(RangeError::Inverted { min: 2.0, max: 1.0 })
        );
    }

    #[test]
    fn zero_width_has_scale_one() {
        for (base, scheme, options) in all_options() {
            let p = choose_qparams(0.0, -0.0, base, scheme, options).unwrap();
            assert_eq!(p.scale, 1.0);
            assert_eq!(p.dequantize(p.quantize(0.0)), 0.0);
        }
    }

    #[test]
    fn order_of_operations() {
        // Multiplying by the reciprocal of the scale gives 16, 3 and 4.
        assert_eq!(quantize_reference(1.55, 0.1, 0, -128, 127), 15);
        assert_eq!(quantize_reference(0.75000006, 0.3, 0, -128, 127), 2);
        assert_eq!(quantize_reference(0.09, 0.02, 0, -128, 127), 5);
        assert_eq!(quantize_reference(0.5, 1.0, 3, 0, 255), 3);
        assert_eq!(quantize_reference(1.5, 1.0, 3, 0, 255), 5);
        assert_eq!(quantize_reference(-0.5, 1.0, 1, 0, 255), 1);
        assert_eq!(quantize_reference(3e9, 1.0, 100, 0, 255), 255);
        assert_eq!(quantize_reference(-3e9, 1.0, -100, -128, 127), -128);
        assert_eq!(quantize_reference(f32::INFINITY, 1.0, 255, 0, 255), 255);
        assert_eq!(
            quantize_reference(f32::NEG_INFINITY, 1.0, -5, -128, 127),
            -128
        );
        assert_eq!(quantize_reference(f32::NAN, 1.0, 5, -128, 127), -128);
    }

    fn any_finite() -> impl Strategy<Value = f32> {
        any::<u32>()
            .prop_map(f32::from_bits)
            .prop_filter("finite", |x| x.is_finite())
    }

    proptest! {
        #[test]
        fn any_finite_range_gives_a_usable_quantizer(a in any_finite(), b in any_finite()) {
            for (base, scheme, options) in all_options() {
                let p = choose_qparams(a.min(b), a.max(b), base, scheme, options).unwrap();
                prop_assert!(p.scale.is_normal() && p.scale > 0.0);
                prop_assert!((p.qmin..=p.qmax).contains(&p.zero_point));
                prop_assert_eq!(p.quantize(0.0), p.zero_point);
                prop_assert_eq!(p.dequantize(p.zero_point), 0.0);
                let (low, high) = p.real_range();
                prop_assert!(low.is_finite() && high.is_finite());
            }
        }

        #[test]
        fn without_clipping_the_error_is_half_a_step(
            a in -1e6f32..1e6, b in -1e6f32..1e6, at in 0.0f32..=1.0,
        ) {
            let (min, max) = (a.min(b), a.max(b));
            let x = (min + (max - min) * at).clamp(min, max);
            for (base, scheme, options) in all_options() {
                let p = choose_qparams(min, max, base, scheme, options).unwrap();
                let steps = p.quantize(x) - p.zero_point;
                let error = (f64::from(x) / f64::from(p.scale) - f64::from(steps)).abs();
                // The quotient is rounded to f32 before it is rounded to an integer.
                let tolerance = 0.5 + f64::from(steps.abs() + 1) * f64::from(f32::EPSILON);
                prop_assert!(error <= tolerance, "{x} {p:?} {error}");
            }
        }
    }
}

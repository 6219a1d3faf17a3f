//! Calibrators: how a range is chosen from the histogram of the observed values.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::affine::{QOptions, RangeError};
use crate::format::{Base, FormatError, Scheme, lookup};
use crate::histogram::Histogram;
use crate::search;

/// A method that chooses a range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Calibrator {
    /// The exact extremes.
    MinMax,
    /// The range that leaves out this many percent of the values, half of them at each end, as onnxruntime's
    /// percentile calibrator does. In (0, 100]; 100 is [`Calibrator::MinMax`].
    Percentile(f64),
    /// The range whose clipped and quantized histogram has the least Kullback–Leibler divergence; see [`crate::search`].
    Kl,
    /// The range with the least mean squared quantization error; see [`crate::search`].
    Mse,
}

/// The quantizer that a range is chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Format of the codes.
    pub base: Base,
    /// Where the zero point lies.
    pub scheme: Scheme,
    /// How much of the code range is used.
    pub options: QOptions,
}

impl Default for Target {
    /// uint8, asymmetric.
    fn default() -> Self {
        Target {
            base: Base::UINT8,
            scheme: Scheme::Asymmetric,
            options: QOptions::default(),
        }
    }
}

/// The names of the calibrators, each with what follows its colon.
const NAMES: [&str; 4] = ["minmax", "percentile", "kl", "mse"];

/// Text that is not a calibrator.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum CalibratorError {
    /// There is no such calibrator.
    #[error(transparent)]
    Unknown(#[from] FormatError),
    /// The number after the colon is missing, is none, or is out of range.
    #[error(
        "`{given}`: a percentile is a number above 0 and up to 100, for example `percentile:99.99`"
    )]
    Percentile {
        /// The text that was given.
        given: String,
    },
    /// The calibrator takes nothing after a colon.
    #[error("`{given}`: the calibrator `{name}` takes no argument")]
    Argument {
        /// The text that was given.
        given: String,
        /// The calibrator.
        name: &'static str,
    },
}

impl fmt::Display for Calibrator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Calibrator::MinMax => f.pad("minmax"),
            Calibrator::Percentile(percent) => write!(f, "percentile:{percent}"),
            Calibrator::Kl => f.pad("kl"),
            Calibrator::Mse => f.pad("mse"),
        }
    }
}

impl FromStr for Calibrator {
    type Err = CalibratorError;

    fn from_str(text: &str) -> Result<Self, CalibratorError> {
        let (name, argument) = match text.split_once(':') {
            Some((name, argument)) => (name, Some(argument)),
            None => (text, None),
        };
        let given = text.to_owned();
        let name = NAMES[lookup("calibrator", name, NAMES.into_iter())?];
        if name == "percentile" {
            let percent = argument.and_then(|argument| argument.trim().parse::<f64>().ok());
            return match percent {
                Some(percent) if percent > 0.0 && percent <= 100.0 => {
                    Ok(Calibrator::Percentile(percent))
                }
                _ => Err(CalibratorError::Percentile { given }),
            };
        }
        match (argument, name) {
            (Some(_), _) => Err(CalibratorError::Argument { given, name }),
            (None, "kl") => Ok(Calibrator::Kl),
            (None, "mse") => Ok(Calibrator::Mse),
            (None, _) => Ok(Calibrator::MinMax),
        }
    }
}

/// [`range_for`] the default [`Target`].
///
/// # Errors
/// As [`range_for`].
pub fn range(histogram: &Histogram, calibrator: Calibrator) -> Result<(f32, f32), RangeError> {
    range_for(histogram, calibrator, Target::default())
}

/// The range that `calibrator` chooses for a quantizer, within the exact extremes except that it always contains 0.
///
/// [`Calibrator::MinMax`] and [`Calibrator::Percentile`] do not look at the target.
///
/// # Errors
/// [`RangeError::NonFiniteValues`] if NaN or infinities were observed, [`RangeError::NoValues`] if nothing was.
pub fn range_for(
    histogram: &Histogram,
    calibrator: Calibrator,
    target: Target,
) -> Result<(f32, f32), RangeError> {
    let (nan, infinite) = (histogram.nan(), histogram.infinite());
    if nan > 0 || infinite > 0 {
        return Err(RangeError::NonFiniteValues { nan, infinite });
    }
    let (min, max) = histogram.extremes().ok_or(RangeError::NoValues)?;
    let (low, high) = match calibrator {
        Calibrator::MinMax => (min, max),
        Calibrator::Percentile(percent) => percentile(histogram, percent),
        Calibrator::Kl => search::kl_range(histogram, target)?,
        Calibrator::Mse => search::mse_range(histogram, target)?,
    };
    Ok((low.clamp(min, max).min(0.0), high.clamp(min, max).max(0.0)))
}

/// The outer edges of the outermost bins that are kept when at most `(100 − percent) / 200` of the values are left
/// out at each end.
///
/// Source: onnxruntime, `HistogramCollector.compute_percentile`, which takes the lower edges.
fn percentile(histogram: &Histogram, percent: f64) -> (f32, f32) {
    let tail = (1.0 - percent / 100.0) / 2.0;
    let left_out = (histogram.count() as f64 * tail).max(0.0) as u64;
    let mut below = 0u64;
    let first = histogram.bins().find(|bin| {
        below = below.saturating_add(bin.count);
        below > left_out
    });
    let mut above = 0u64;
    let last = histogram.bins().rfind(|bin| {
        above = above.saturating_add(bin.count);
        above > left_out
    });
    let low = first.map_or(f32::NEG_INFINITY, |bin| bin.low as f32);
    let high = last.map_or(f32::INFINITY, |bin| bin.high as f32);
    (low, high)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn observed(x: &[f32]) -> Histogram {
        let mut histogram = Histogram::new();
        histogram.observe(x);
        histogram
    }

    #[test]
    fn names_and_arguments() {
        for text in [
            "minmax",
            "percentile:99.99",
            "percentile:100",
            "percentile:0.5",
        ] {
            assert_eq!(text.parse::<Calibrator>().unwrap().to_string(), text);
        }
        for bad in [
            "percentile",
            "percentile:",
            "percentile:0",
            "percentile:100.1",
            "percentile:NaN",
            "percentile:-3",
            "percentile:x",
        ] {
            let error = bad.parse::<Calibrator>().unwrap_err();
            assert!(matches!(error, CalibratorError::Percentile { .. }), "{bad}");
        }
        assert!(matches!(
            "minmax:1".parse::<Calibrator>(),
            Err(CalibratorError::Argument { .. })
        ));
        assert_eq!(
            "minmx".parse::<Calibrator>().unwrap_err().to_string(),
            "unknown calibrator `minmx` (did you mean `minmax`?); valid: minmax, percentile, kl, mse"
        );
    }

    #[test]
    fn min_max_contains_zero() {
        assert_eq!(
            range(&observed(&[2.0, 3.5]), Calibrator::MinMax),
            Ok((0.0, 3.5))
        );
        assert_eq!(
            range(&observed(&[-2.0, -3.5]), Calibrator::MinMax),
            Ok((-3.5, 0.0))
        );
        assert_eq!(
            range(&Histogram::new(), Calibrator::MinMax),
            Err(RangeError::NoValues)
        );
        assert_eq!(
            range(
                &observed(&[1.0, f32::NAN, f32::INFINITY]),
                Calibrator::MinMax
            ),
            Err(RangeError::NonFiniteValues {
                nan: 1,
                infinite: 1
            })
        );
    }

    #[test]
    fn percentile_leaves_out_half_at_each_end() {
        // −5, −4.999, …, 4.999: 1 % is 50 values at each end.
        let x: Vec<f32> = (0..10_000).map(|i| i as f32 / 1000.0 - 5.0).collect();
        let (low, high) = range(&observed(&x), Calibrator::Percentile(99.0)).unwrap();
        let width = observed(&x).bin_width() as f32;
        assert!((-4.95 - width..=-4.95).contains(&low), "{low}");
        assert!((4.949..=4.949 + width).contains(&high), "{high}");
        let all = observed(&x);
        assert_eq!(
            range(&all, Calibrator::Percentile(100.0)),
            range(&all, Calibrator::MinMax)
        );
    }

    #[test]
    fn percentile_cuts_an_outlier() {
        let mut x = vec![1.0; 100_000];
        x[77] = 1000.0;
        let (low, high) = range(&observed(&x), Calibrator::Percentile(99.99)).unwrap();
        assert_eq!(low, 0.0);
        assert!((1.0..1.5).contains(&high), "{high}");
    }

    proptest! {
        #[test]
        fn no_more_is_left_out_than_asked(
            x in proptest::collection::vec(-100f32..100.0, 1..300), percent in 0.1f64..=100.0,
        ) {
            let histogram = observed(&x);
            let (low, high) = range(&histogram, Calibrator::Percentile(percent)).unwrap();
            let (min, max) = range(&histogram, Calibrator::MinMax).unwrap();
            prop_assert!(min <= low && low <= 0.0 && 0.0 <= high && high <= max);
            let tail = x.len() as f64 * (1.0 - percent / 100.0) / 2.0;
            prop_assert!(x.iter().filter(|&&v| v < low).count() as f64 <= tail);
            prop_assert!(x.iter().filter(|&&v| v > high).count() as f64 <= tail);
        }
    }
}

//! Calibrators: how a range is chosen from the statistics of the observed values.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::affine::{QOptions, RangeError};
use crate::format::{Base, FormatError, Scheme, lookup};
use crate::histogram::Histogram;
use crate::search::{self, WeightedError};
use crate::stats::{SampleRanges, TensorStats};

mod care;

pub use care::Care;

/// A method that chooses a range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Calibrator {
    /// The exact extremes.
    MinMax,
    /// The mean of the samples' minima and that of their maxima.
    MinMaxAvg,
    /// The exponential moving average of the samples' extremes, in order of the samples: this much of the old average
    /// is kept with each sample. In [0, 1); see [`crate::stats::SampleRanges::moving_average`].
    Ema(f64),
    /// The range that leaves out this many percent of the values, half of them at each end, as onnxruntime's
    /// percentile calibrator does. In (0, 100]; 100 is [`Calibrator::MinMax`].
    Percentile(f64),
    /// The range whose clipped and quantized histogram has the least Kullback–Leibler divergence; see [`crate::search`].
    Kl,
    /// The range with the least mean squared quantization error; see [`crate::search`].
    Mse,
    /// For each tensor the one of the others ([`CANDIDATES`]) whose squared quantization error, weighted by how much
    /// the result of the layers that read the tensor depends on it ([`Care`]), is least.
    Auto,
}

/// What [`Calibrator::Auto`] chooses from; of equal errors the first.
pub const CANDIDATES: [Calibrator; 8] = [
    Calibrator::Mse,
    Calibrator::MinMax,
    Calibrator::MinMaxAvg,
    Calibrator::Ema(0.9),
    Calibrator::Percentile(99.999),
    Calibrator::Percentile(99.99),
    Calibrator::Percentile(99.9),
    Calibrator::Kl,
];

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
const NAMES: [&str; 7] = [
    "minmax",
    "minmax-avg",
    "ema",
    "percentile",
    "kl",
    "mse",
    "auto",
];

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
    /// The number after the colon is missing, is none, or is out of range.
    #[error(
        "`{given}`: what a moving average keeps is a number from 0 to below 1, for example `ema:0.9`"
    )]
    Ema {
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
            Calibrator::MinMaxAvg => f.pad("minmax-avg"),
            Calibrator::Ema(keep) => write!(f, "ema:{keep}"),
            Calibrator::Percentile(percent) => write!(f, "percentile:{percent}"),
            Calibrator::Kl => f.pad("kl"),
            Calibrator::Mse => f.pad("mse"),
            Calibrator::Auto => f.pad("auto"),
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
        let number = argument.and_then(|argument| argument.trim().parse::<f64>().ok());
        if name == "ema" {
            return match number {
                Some(keep) if (0.0..1.0).contains(&keep) => Ok(Calibrator::Ema(keep)),
                _ => Err(CalibratorError::Ema { given }),
            };
        }
        if name == "percentile" {
            return match number {
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
            (None, "auto") => Ok(Calibrator::Auto),
            (None, "minmax-avg") => Ok(Calibrator::MinMaxAvg),
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

/// The range that `calibrator` chooses for a quantizer from a histogram alone, within the exact extremes except that
/// it always contains 0.
///
/// A histogram knows no samples: averages over them are its extremes. See [`choose`] for statistics that do.
///
/// # Errors
/// [`RangeError::NonFiniteValues`] if NaN or infinities were observed, [`RangeError::NoValues`] if nothing was.
pub fn range_for(
    histogram: &Histogram,
    calibrator: Calibrator,
    target: Target,
) -> Result<(f32, f32), RangeError> {
    let one = SampleRanges::default();
    range_of((histogram, &one), calibrator, target, &Care::default())
}

/// The range that `calibrator` chooses for a quantizer, within the exact extremes except that it always contains 0.
/// Only [`Calibrator::Kl`], [`Calibrator::Mse`] and [`Calibrator::Auto`] look at the target.
///
/// # Errors
/// As [`range_for`].
pub fn choose(
    stats: &TensorStats,
    calibrator: Calibrator,
    target: Target,
    care: &Care,
) -> Result<(f32, f32), RangeError> {
    range_of(
        (stats.histogram(), stats.samples()),
        calibrator,
        target,
        care,
    )
}

fn range_of(
    (histogram, samples): (&Histogram, &SampleRanges),
    calibrator: Calibrator,
    target: Target,
    care: &Care,
) -> Result<(f32, f32), RangeError> {
    let (nan, infinite) = (histogram.nan(), histogram.infinite());
    if nan > 0 || infinite > 0 {
        return Err(RangeError::NonFiniteValues { nan, infinite });
    }
    let (min, max) = histogram.extremes().ok_or(RangeError::NoValues)?;
    let (low, high) = match calibrator {
        Calibrator::MinMax => (min, max),
        Calibrator::MinMaxAvg => samples.mean().unwrap_or((min, max)),
        Calibrator::Ema(keep) => samples.moving_average(keep).unwrap_or((min, max)),
        Calibrator::Percentile(percent) => percentile(histogram, percent),
        Calibrator::Kl => search::kl_range(histogram, target)?,
        Calibrator::Mse => search::mse_range(histogram, target)?,
        Calibrator::Auto => {
            let error = WeightedError::new(histogram, care);
            let mut best = ((min, max), f64::INFINITY);
            for candidate in CANDIDATES {
                let range = range_of((histogram, samples), candidate, target, care)?;
                let found = error.of(range, target);
                if found < best.1 {
                    best = (range, found);
                }
            }
            best.0
        }
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
    use crate::stats::Samples;
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
            "minmax-avg",
            "ema:0.9",
            "ema:0",
            "kl",
            "mse",
            "auto",
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
        for bad in ["ema", "ema:", "ema:1", "ema:-0.1", "ema:NaN", "ema:x"] {
            let error = bad.parse::<Calibrator>().unwrap_err();
            assert!(matches!(error, CalibratorError::Ema { .. }), "{bad}");
        }
        assert!(matches!(
            "minmax:1".parse::<Calibrator>(),
            Err(CalibratorError::Argument { .. })
        ));
        assert_eq!(
            "minmx".parse::<Calibrator>().unwrap_err().to_string(),
            "unknown calibrator `minmx` (did you mean `minmax`?); valid: minmax, minmax-avg, ema, percentile, kl, mse, auto"
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

    #[test]
    fn averages_are_those_of_the_samples() {
        let mut stats = TensorStats::default();
        for (i, x) in [[-1.0, 4.0], [-3.0, 2.0], [1.0, 8.0]].iter().enumerate() {
            stats.observe(Samples::one(i as u64), &[1, 2], x);
        }
        let of = |calibrator| choose(&stats, calibrator, Target::default(), &Care::default());
        assert_eq!(of(Calibrator::MinMaxAvg), Ok((-1.0, 14.0 / 3.0)));
        assert_eq!(of(Calibrator::Ema(0.5)), Ok((-0.5, 5.5)));
        // In range of the extremes and with zero, whatever the average says.
        let positive = TensorStats::of(&[2.0, 5.0]);
        let range = choose(
            &positive,
            Calibrator::MinMaxAvg,
            Target::default(),
            &Care::default(),
        );
        assert_eq!(range, Ok((0.0, 5.0)));
    }

    #[test]
    fn auto_is_no_worse_than_any_candidate_and_weighs_channels() {
        // Channel 0 holds what matters, channel 1 an outlier that no reader looks at.
        let mut stats = TensorStats::new(&[1]);
        for i in 0..500u16 {
            let x = f32::from(i % 100) / 100.0;
            let outlier = if i == 7 { 80.0 } else { x };
            stats.observe(Samples::one(u64::from(i)), &[1, 2], &[x, outlier]);
        }
        let target = Target::default();
        let of = |calibrator, care: &Care| choose(&stats, calibrator, target, care).unwrap();
        let flat = Care::default();
        let ranges: Vec<(f32, f32)> = stats.channels()[0].ranges().flatten().collect();
        let care = Care::new(&ranges, &[1.0, 0.0]);
        assert!(of(Calibrator::Auto, &flat).1 > 20.0);
        assert!(of(Calibrator::Auto, &care).1 < 2.0);
        for care in [&flat, &care] {
            let error = WeightedError::new(stats.histogram(), care);
            let least = error.of(of(Calibrator::Auto, care), target);
            for candidate in CANDIDATES {
                assert!(
                    least <= error.of(of(candidate, care), target),
                    "{candidate}"
                );
            }
        }
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

//! How much the readers of a tensor depend on its values.

/// The importance of a value by its size.
///
/// The error of a linear layer's result is `Σ_k e_k² ‖W_k‖²` for independent errors `e_k` of its input channels, so an
/// error counts as much as the weights that its channel is multiplied with. A value of a given size can only be of a
/// channel that reaches so far: its importance is the mean of those channels'. So outliers of a few channels count
/// as much as those channels do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Care {
    /// Reach of a channel above zero, ascending, and the mean importance of those that reach at least so far.
    above: Vec<(f64, f64)>,
    /// The same below zero.
    below: Vec<(f64, f64)>,
}

impl Care {
    /// From the range of each channel and its importance, the squared norm of the weights that it is multiplied with.
    /// Channels without an importance, or with one that is not finite, are left out; without any, all values count
    /// the same.
    pub fn new(ranges: &[(f32, f32)], importance: &[f64]) -> Self {
        let channels = || {
            let pairs = ranges.iter().zip(importance);
            pairs.filter(|(_, i)| i.is_finite() && **i >= 0.0)
        };
        let side = |reach: fn(&(f32, f32)) -> f32| {
            let reaches = channels().map(|(r, &i)| (f64::from(reach(r)).max(0.0), i));
            means(reaches.collect())
        };
        Care {
            above: side(|r| r.1),
            below: side(|r| -r.0),
        }
    }

    /// The importance of a value.
    pub fn of(&self, x: f64) -> f64 {
        let side = if x < 0.0 { &self.below } else { &self.above };
        let at = side.partition_point(|&(reach, _)| reach < x.abs());
        side.get(at).or(side.last()).map_or(1.0, |&(_, mean)| mean)
    }
}

fn means(mut channels: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    channels.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut sum = 0.0;
    let mut result: Vec<(f64, f64)> = Vec::with_capacity(channels.len());
    for (count, &(reach, importance)) in channels.iter().rev().enumerate() {
        sum += importance;
        result.push((reach, sum / (count + 1) as f64));
    }
    result.reverse();
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_as_the_channels_that_reach_it() {
        let care = Care::new(&[(-1.0, 2.0), (0.0, 10.0), (-4.0, 2.0)], &[3.0, 0.0, 9.0]);
        assert_eq!(
            [0.5, 2.0, 2.5, 10.0, 99.0].map(|x| care.of(x)),
            [4.0, 4.0, 0.0, 0.0, 0.0]
        );
        assert_eq!(
            [-0.5, -1.0, -3.0, -9.0].map(|x| care.of(x)),
            [6.0, 6.0, 9.0, 9.0]
        );
        assert_eq!(Care::default().of(3.0), 1.0);
        assert_eq!(Care::new(&[(0.0, 1.0)], &[f64::NAN]), Care::default());
    }
}

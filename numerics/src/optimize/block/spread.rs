//! How the elements of a value repeat in a larger one: broadcasts, and backwards the sums over axes.

/// Where each element of a larger value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spread {
    /// Both are of the same size.
    Same,
    /// The smaller one over and over: it has the last axes.
    Cycle,
    /// Each element that many times: it has the first axes.
    Runs(usize),
    /// Any other order.
    Places(Vec<u32>),
}

impl Spread {
    /// From the shape of a value to that of a broadcast (NumPy's rule); `None` where they do not fit.
    pub fn of(from: &[usize], to: &[usize]) -> Option<Self> {
        let missing = to.len().checked_sub(from.len())?;
        let own: Vec<usize> = std::iter::repeat_n(1, missing)
            .chain(from.iter().copied())
            .collect();
        if own.iter().zip(to).any(|(&f, &t)| f != t && f != 1) {
            return None;
        }
        let (small, large): (usize, usize) = (own.iter().product(), to.iter().product());
        // Axes that are stretched, without those of length 1.
        let stretched: Vec<bool> = own
            .iter()
            .zip(to)
            .filter(|(_, t)| **t != 1)
            .map(|(f, t)| f != t)
            .collect();
        let turns = stretched.windows(2).filter(|w| w[0] != w[1]).count();
        match (turns, stretched.first()) {
            _ if small == large => return Some(Self::Same),
            (0, _) | (1, Some(true)) => return Some(Self::Cycle),
            (1, _) => return Some(Self::Runs(large / small.max(1))),
            _ => {}
        }
        let mut places = vec![0u32];
        let mut stride = small;
        for (&f, &t) in own.iter().zip(to) {
            stride /= f.max(1);
            let step = if f == 1 { 0 } else { stride as u32 };
            let next = |p: u32| (0..t as u32).map(move |i| p + i * step);
            places = places.into_iter().flat_map(next).collect();
        }
        Some(Self::Places(places))
    }

    /// The larger value, of `size` elements.
    pub fn expand(&self, x: &[f32], size: usize) -> Vec<f32> {
        match self {
            Self::Same => x.to_vec(),
            Self::Cycle => x.iter().copied().cycle().take(size).collect(),
            Self::Runs(run) => x
                .iter()
                .flat_map(|&x| std::iter::repeat_n(x, *run))
                .collect(),
            Self::Places(places) => places.iter().map(|&p| x[p as usize]).collect(),
        }
    }

    /// The sum over the places of each element of the smaller value, which has `size` elements.
    pub fn collapse(&self, y: &[f32], size: usize) -> Vec<f32> {
        match self {
            Self::Same => y.to_vec(),
            Self::Cycle => {
                let mut sums = vec![0.0; size];
                for y in y.chunks(size.max(1)) {
                    sums.iter_mut().zip(y).for_each(|(s, y)| *s += y);
                }
                sums
            }
            Self::Runs(run) => y.chunks(*run).map(|y| y.iter().sum()).collect(),
            Self::Places(places) => {
                let mut sums = vec![0.0; size];
                places
                    .iter()
                    .zip(y)
                    .for_each(|(&p, y)| sums[p as usize] += y);
                sums
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn broadcasts_and_their_sums() {
        let x = [1.0, 2.0, 3.0];
        let of = |from: &[usize], to: &[usize]| Spread::of(from, to).unwrap();
        assert_eq!(of(&[3], &[2, 3]), Spread::Cycle);
        assert_eq!(of(&[], &[2, 3]), Spread::Cycle);
        assert_eq!(of(&[3, 1], &[3, 2]), Spread::Runs(2));
        assert_eq!(of(&[3, 1], &[1, 3, 1]), Spread::Same);
        assert_eq!(Spread::of(&[2], &[3]), None);
        let middle = of(&[1, 3, 1], &[2, 3, 2]);
        let wide = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0];
        assert_eq!(middle.expand(&x, 12), wide);
        assert_eq!(middle.collapse(&wide, 3), [4.0, 8.0, 12.0]);
        let outer = of(&[2, 1, 2], &[2, 2, 2]);
        let four = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(
            outer.expand(&four, 8),
            [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]
        );
        assert_eq!(
            of(&[3, 1], &[3, 2]).collapse(&wide[..6], 3),
            [2.0, 4.0, 6.0]
        );
        assert_eq!(
            of(&[3], &[2, 3]).expand(&x, 6),
            [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]
        );
    }
}

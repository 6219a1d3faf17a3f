//! A value and what a clamp makes of it, counted at once.

use super::tables::{BLOCK, TABLES, Tables, add_to, take, take_back_into, take_into, total};
use super::{CHUNK, Histogram, LONG, SIDE, magnitude, power_of_two};

impl Histogram {
    /// Takes in finite values whose extremes are known, and in `clamped` what `min(max(x, 0), upper)` makes of them:
    /// the same as two times [`Histogram::observe`].
    ///
    /// Clamped values reach no farther than the others, so that their bins are as narrow or narrower. Positive values are
    /// counted in these as far as they reach. Sums of neighbours are the counts of the others; what lies below zero
    /// counts as 0, and what lies above the bin of `upper` in it.
    pub(crate) fn observe_clamped(
        &mut self,
        clamped: &mut Histogram,
        upper: f32,
        x: &[f32],
        (min, max): (f32, f32),
    ) {
        let clamp = |x: f32| x.max(0.0).min(upper);
        self.extend((min, max));
        clamped.extend((clamp(min), clamp(max)));
        let (wide, narrow) = (
            power_of_two(-self.exponent),
            power_of_two(-clamped.exponent),
        );
        if x.len() < LONG || clamped.exponent > self.exponent {
            self.count_short(x, wide);
            let mut values = [0.0; BLOCK];
            for block in x.chunks(BLOCK) {
                for (value, &x) in values.iter_mut().zip(block) {
                    *value = clamp(x);
                }
                clamped.count_short(&values[..block.len()], narrow);
            }
            return;
        }
        TABLES.with_borrow_mut(|tables| {
            for chunk in x.chunks(CHUNK) {
                if tables.is_full() {
                    tables.drain_into_both(self, clamped, upper);
                }
                match (narrow == wide, max * narrow < SIDE as f32) {
                    (true, _) => tables.count(chunk, wide),
                    (_, true) => tables.count_sides::<false>(chunk, narrow, wide),
                    _ => tables.count_sides::<true>(chunk, narrow, wide),
                }
            }
            tables.drain_into_both(self, clamped, upper);
        });
    }
}

impl Tables {
    /// Moves the counts of [`Tables::count_sides`] to histograms that have room for them.
    fn drain_into_both(&mut self, all: &mut Histogram, clamped: &mut Histogram, upper: f32) {
        let narrow = power_of_two(-clamped.exponent);
        let last = match upper * narrow < SIDE as f32 {
            true => magnitude(upper, narrow) as usize,
            false => SIDE - 1,
        };
        let shift = (all.exponent - clamped.exponent).clamp(0, 31);
        let [above, below, far] = self.kinds();
        let reach = (all.positive.len() << shift).min(SIDE);
        let above = &mut above[..reach];
        // Bins from the last on hold what is clamped.
        let (below_last, beyond) = above.split_at_mut(last.min(reach));
        add_to(&mut clamped.positive, below_last);
        let mut most = total(beyond);
        if shift == 0 {
            take_into(&mut all.positive, above);
        } else {
            for (total, cells) in all.positive.iter_mut().zip(above.chunks_mut(1 << shift)) {
                *total = total.saturating_add(cells.iter_mut().map(take).sum());
            }
        }
        if all.positive.len() << shift > SIDE {
            let far = &mut far[..all.positive.len()];
            most = most.saturating_add(total(far));
            take_into(&mut all.positive, far);
        }
        let beside = below.len() - all.negative.len();
        let below = &mut below[beside..];
        let zeros = total(below);
        take_back_into(&mut all.negative, below);
        clamped.positive[0] = clamped.positive[0].saturating_add(zeros);
        if most > 0 {
            clamped.positive[last] = clamped.positive[last].saturating_add(most);
        }
    }
}

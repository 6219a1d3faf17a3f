//! Random numbers that depend on a seed and a position only, so that threads do not change them.

/// 64 random bits for a seed and a position.
///
/// Source: the output function of SplitMix64, Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014.
pub fn bits(seed: u64, position: u64) -> u64 {
    let mix = |mut z: u64| {
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    };
    let golden = 0x9e37_79b9_7f4a_7c15u64;
    mix(mix(seed.wrapping_add(golden)).wrapping_add(position.wrapping_add(1).wrapping_mul(golden)))
}

/// A number in `[0, 1)` for a seed and a position.
pub fn uniform(seed: u64, position: u64) -> f64 {
    (bits(seed, position) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_seeds_give_other_numbers_that_are_uniform() {
        let n = 20_000;
        let numbers: Vec<f64> = (0..n).map(|i| uniform(7, i)).collect();
        let mean = numbers.iter().sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        for tenth in 0..10 {
            let inside = numbers.iter().filter(|x| (**x * 10.0) as u32 == tenth);
            let count = inside.count();
            assert!((1850..2150).contains(&count), "{tenth}: {count}");
        }
        assert_ne!(bits(7, 0), bits(8, 0));
        assert_eq!(uniform(7, 3), numbers[3]);
    }
}

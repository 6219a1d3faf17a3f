//! The channel paths against a loop over single values.
#![expect(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::affine::{QOptions, choose_qparams};
use crate::format::Scheme;
use crate::quantize::codes_from_bytes;

fn layouts() -> impl Strategy<Value = Layout> {
    let dims = prop_oneof![
        (1usize..5, 1usize..9, 0usize..40),
        (0usize..300, 1usize..20, Just(1usize)),
        // More values than one task takes.
        (Just(3usize), 2usize..4, 12_000usize..30_000),
        (9_000usize..20_000, 2usize..4, 1usize..4),
        (1usize..3, 30_000usize..40_000, 1usize..3),
    ];
    dims.prop_map(|(outer, channels, inner)| Layout {
        outer,
        channels,
        inner,
    })
}

/// Values with a different size in each channel, from a linear congruential sequence.
fn values(layout: Layout, seed: u32) -> Vec<f32> {
    let Layout {
        outer,
        channels,
        inner,
    } = layout;
    let mut state = seed;
    (0..outer * channels * inner)
        .map(|at| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let channel = at / inner % channels;
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * (1.0 + channel as f32)
        })
        .collect()
}

fn integers() -> Vec<Base> {
    Base::all().into_iter().filter(|b| b.is_integer()).collect()
}

fn channel_of(layout: Layout, at: usize) -> usize {
    at / layout.inner % layout.channels
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn ranges_and_codes_equal_the_single_value_loop(
        layout in layouts(), seed: u32, format in 0..integers().len(), symmetric: bool,
    ) {
        let data = values(layout, seed);
        let base = integers()[format];
        let scheme = if symmetric { Scheme::Symmetric } else { Scheme::Asymmetric };

        let mut expected = vec![(f32::INFINITY, f32::NEG_INFINITY); layout.channels];
        for (at, &x) in data.iter().enumerate() {
            let range = &mut expected[channel_of(layout, at)];
            *range = (range.0.min(x), range.1.max(x));
        }
        if data.is_empty() {
            expected.fill((0.0, 0.0));
        }
        let ranges = channel_ranges(&data, layout).unwrap();
        prop_assert_eq!(&ranges, &expected);

        let params: Vec<QParams> = ranges
            .iter()
            .map(|r| choose_qparams(r.0, r.1, base, scheme, QOptions { narrow: symmetric, reduce_range: false }).unwrap())
            .collect();
        let expected: Vec<i32> =
            data.iter().enumerate().map(|(at, &x)| params[channel_of(layout, at)].quantize(x)).collect();
        let bytes = quantize_per_channel(&data, layout, &params, base).unwrap();
        prop_assert_eq!(bytes.len(), base.storage_bytes(data.len()));
        prop_assert_eq!(&codes_from_bytes(&bytes, data.len(), base).unwrap(), &expected);

        let real: Vec<f32> = expected
            .iter()
            .enumerate()
            .map(|(at, &q)| params[channel_of(layout, at)].dequantize(q))
            .collect();
        let mut back = vec![0.0; data.len()];
        dequantize_per_channel(&expected, layout, &params, &mut back).unwrap();
        prop_assert_eq!(&back, &real);
        let mut faked = data.clone();
        fake_quant_per_channel(&mut faked, layout, &params).unwrap();
        prop_assert_eq!(&faked, &real);
    }
}

#[test]
fn one_thread_and_many_agree() {
    let layout = Layout {
        outer: 2,
        channels: 700,
        inner: 150,
    };
    let data = values(layout, 7);
    let job = || {
        let ranges = channel_ranges(&data, layout).unwrap();
        let params: Vec<QParams> = ranges
            .iter()
            .map(|r| {
                choose_qparams(r.0, r.1, Base::INT8, Scheme::Symmetric, QOptions::default())
                    .unwrap()
            })
            .collect();
        quantize_per_channel(&data, layout, &params, Base::INT8).unwrap()
    };
    let with = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(job)
    };
    assert_eq!(with(1), with(3));
}

#[test]
fn a_channel_with_nan_is_marked() {
    for layout in [
        Layout {
            outer: 1,
            channels: 3,
            inner: 20,
        },
        Layout {
            outer: 20,
            channels: 3,
            inner: 1,
        },
        Layout {
            outer: 5,
            channels: 3,
            inner: 4,
        },
    ] {
        let mut data = values(layout, 3);
        let at = (0..data.len())
            .rfind(|&at| channel_of(layout, at) == 1)
            .unwrap();
        data[at] = f32::NAN;
        let ranges = channel_ranges(&data, layout).unwrap();
        assert!(ranges[1].0.is_nan());
        assert!(ranges[0].0.is_finite() && ranges[2].1.is_finite());
    }
}

#[test]
fn misfits_are_errors() {
    assert_eq!(
        Layout::of(&[4, 3, 2, 5], 1).unwrap(),
        Layout {
            outer: 4,
            channels: 3,
            inner: 10
        }
    );
    assert_eq!(
        Layout::of(&[4], 1),
        Err(LayoutError::Axis { axis: 1, rank: 1 })
    );
    let layout = Layout {
        outer: 1,
        channels: 2,
        inner: 2,
    };
    assert!(matches!(
        channel_ranges(&[0.0; 3], layout),
        Err(LayoutError::Length { found: 3, .. })
    ));
    assert!(matches!(
        quantize_per_channel(&[0.0; 4], layout, &[], Base::INT8),
        Err(LayoutError::Params {
            found: 0,
            channels: 2
        })
    ));
    let huge = Layout {
        outer: usize::MAX,
        channels: 2,
        inner: 2,
    };
    assert!(channel_ranges(&[0.0; 4], huge).is_err());
}

//! The gradient against differences, and what learning gains.
#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::affine::QParams;

fn random_vec(n: usize, random: &mut Random) -> Vec<f32> {
    (0..n)
        .map(|_| random.unit() + random.unit() - 1.0)
        .collect()
}

fn conv(channels: usize, rows: usize, groups: usize, kernel: usize, random: &mut Random) -> Layer {
    let cols = channels / groups * kernel * kernel;
    let p = QParams {
        scale: 0.25,
        zero_point: 0,
        qmin: -4,
        qmax: 3,
    };
    Layer {
        weights: random_vec(rows * cols, random),
        bias: random_vec(rows, random),
        grid: Grid::per_row(cols, &vec![p; rows]),
        groups,
        geometry: Some(Geometry {
            channels,
            groups,
            input: vec![4, 5],
            output: vec![4, 5],
            kernel: vec![kernel, kernel],
            strides: vec![1, 1],
            dilations: vec![1, 1],
            pads: vec![kernel / 2, kernel / 2],
            transposed: false,
        }),
        tokens: 0,
        free_scales: true,
        free_bias: true,
    }
}

/// An inverted residual block: 1×1, depthwise 3×3, 1×1, with quantizers, and the input added.
fn block(random: &mut Random) -> Block {
    let relu = Activation::Clamp {
        low: 0.0,
        high: 1.5,
    };
    let quantizer = Quantizer {
        scale: 0.02,
        low: 0.0,
        high: 60.0,
        learned: true,
    };
    Block {
        layers: vec![
            conv(3, 6, 1, 1, random),
            conv(6, 6, 6, 3, random),
            conv(6, 3, 1, 3, random),
        ],
        quantizers: vec![quantizer, quantizer],
        steps: vec![
            Step::Linear {
                layer: 0,
                input: 0,
                output: 1,
            },
            Step::Activate {
                input: 1,
                output: 2,
                activations: vec![relu],
                run: 20,
            },
            Step::Quantize {
                input: 2,
                output: 3,
                quantizer: 0,
            },
            Step::Linear {
                layer: 1,
                input: 3,
                output: 4,
            },
            Step::Activate {
                input: 4,
                output: 5,
                activations: vec![relu],
                run: 20,
            },
            Step::Quantize {
                input: 5,
                output: 6,
                quantizer: 1,
            },
            Step::Linear {
                layer: 2,
                input: 6,
                output: 7,
            },
            Step::Apply {
                op: Op::Binary {
                    kind: ops::Binary::Add,
                    spreads: [Spread::Same, Spread::Same],
                    size: 60,
                },
                inputs: vec![7, 0],
                output: 8,
            },
        ],
        inputs: vec![0],
        constants: Vec::new(),
        output: 8,
        values: 9,
    }
}

fn data(block: &Block, samples: usize, random: &mut Random) -> Data {
    let mut state = block.state(block.layers.iter().map(|l| l.weights.clone()).collect());
    state.scales.fill(1e-6);
    let free = Block {
        quantizers: block
            .quantizers
            .iter()
            .map(|q| Quantizer {
                low: -1e9,
                high: 1e9,
                ..*q
            })
            .collect(),
        ..block.clone()
    };
    let mut data = Data::default();
    for _ in 0..samples {
        let x: Vec<Value> = vec![Arc::new(random_vec(3 * 20, random))];
        let exact = free.ready();
        let mut values = exact.forward(&state, &x, None);
        data.targets
            .push(Arc::new(values.pop().unwrap().into_owned()));
        data.inputs.push(x);
    }
    data
}

#[test]
fn the_gradient_is_that_of_the_error() {
    let mut random = Random::new(3);
    let mut block = block(&mut random);
    // Without quantizers the error is smooth almost everywhere.
    block.steps.retain(|s| !matches!(s, Step::Quantize { .. }));
    for step in &mut block.steps {
        if let Step::Linear { input, .. } = step {
            *input = match *input {
                3 => 2,
                6 => 5,
                x => x,
            };
        }
    }
    let data = data(&block, 3, &mut random);
    let mut state = block.nearest();
    let sums = block.ready().batch(&state, &data, (&[0, 1, 2], 1.0), None);
    let step = 1e-3;
    let mut checked = 0;
    let mut check = |slope: f64, found: f32, what: &str| {
        let found = f64::from(found);
        let near = (slope - found).abs() < 0.03 * slope.abs().max(1.0);
        assert!(near, "{what}: {slope} {found}");
        checked += 1;
    };
    for layer in 0..3 {
        for at in (0..state.weights[layer].len()).step_by(7) {
            let own = state.weights[layer][at];
            let mut error = |w: f32| {
                state.weights[layer][at] = w;
                block.error(&state, &data) * 3.0
            };
            let slope = (error(own + step) - error(own - step)) / (2.0 * f64::from(step));
            state.weights[layer][at] = own;
            check(slope, sums.weights[layer][at], "a weight");
        }
        for at in 0..state.biases[layer].len() {
            let own = state.biases[layer][at];
            let mut error = |b: f32| {
                state.biases[layer][at] = b;
                block.error(&state, &data) * 3.0
            };
            let slope = (error(own + step) - error(own - step)) / (2.0 * f64::from(step));
            state.biases[layer][at] = own;
            check(slope, sums.biases[layer][at], "a bias");
        }
    }
    assert!(checked > 30);
}

#[test]
fn learning_a_block_gains_over_nearest() {
    let mut random = Random::new(5);
    let block = block(&mut random);
    let data = data(&block, 24, &mut random);
    let before = block.error(&block.nearest(), &data);
    let learning = Learning {
        rounding: Options {
            iterations: 400,
            batch: 8,
            ..Options::default()
        },
        steps: false,
        drop: false,
        seed: 1,
    };
    let one = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .unwrap();
    let learned = |steps: bool, drop: bool| {
        let learning = Learning {
            steps,
            drop,
            ..learning
        };
        let state = block.reconstruct(&data, &learning);
        // The same for any number of threads.
        assert_eq!(one.install(|| block.reconstruct(&data, &learning)), state);
        (block.error(&state, &data), state)
    };
    let (plain, state) = learned(false, false);
    assert!(plain < 0.5 * before, "{before} → {plain}");
    assert_eq!(block.state(state.weights.clone()), state);
    let (stepped, moved) = learned(true, false);
    assert!(stepped < plain, "{plain} → {stepped}");
    assert!(moved.scales.iter().all(|s| *s > 0.0 && s.is_finite()));
    for (l, layer) in block.layers.iter().enumerate() {
        assert_eq!(state.weights[l], layer.grid.nearest(&state.weights[l]));
        // With other scales the weights are those of the grid times their factor.
        for (at, w) in moved.weights[l].iter().enumerate() {
            let factor = moved.factors[l][at / layer.grid.cols];
            let own = w / factor;
            let near = layer.grid.cell(at / layer.grid.cols, 0).nearest(own);
            assert!((own - near).abs() < 1e-5, "{own} {near}");
        }
    }
    let (dropped, _) = learned(false, true);
    assert!(dropped < 0.7 * before, "{before} → {dropped}");
}

#[test]
fn what_is_hidden_of_a_result_counts_for_nothing() {
    let mut random = Random::new(8);
    let block = block(&mut random);
    let mut data = data(&block, 6, &mut random);
    data.hidden = vec![vec![2..5, 9..11]; 6];
    let mut wrong = data.clone();
    for target in &mut wrong.targets {
        let mut values = target.get().into_owned();
        data.hidden[0]
            .iter()
            .for_each(|at| values[at.clone()].fill(1e6));
        *target = Arc::new(values);
    }
    let learning = Learning {
        rounding: Options {
            iterations: 20,
            batch: 4,
            ..Options::default()
        },
        steps: true,
        drop: false,
        seed: 2,
    };
    let nearest = block.nearest();
    assert!(block.error(&nearest, &data) > 0.0);
    assert_eq!(block.error(&nearest, &data), block.error(&nearest, &wrong));
    let learned = block.reconstruct(&data, &learning);
    assert_eq!(learned, block.reconstruct(&wrong, &learning));
    data.hidden.clear();
    assert_ne!(learned, block.reconstruct(&data, &learning));
}

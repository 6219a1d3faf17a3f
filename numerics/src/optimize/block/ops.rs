//! The operators between the layers of a block: what each computes, and the gradients of its inputs for one of its
//! result. Shapes are those of one sample and are fixed when the operator is made.

use super::spread::Spread;
use crate::optimize::matrix::{add_ab, add_abt, add_atb};

/// A function of each element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// `|x|`.
    Abs,
    /// `eˣ`.
    Exp,
    /// `ln x`.
    Log,
    /// `−x`.
    Neg,
    /// `√x`.
    Sqrt,
    /// `1 / x`.
    Reciprocal,
    /// The error function.
    Erf,
    /// The hyperbolic tangent.
    Tanh,
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
    /// `ln(1 + eˣ)`.
    Softplus,
    /// `x · σ(αx)`: SiLU, Swish.
    Swish(f32),
    /// `x · Φ(x)`.
    Gelu,
    /// Its approximation with a hyperbolic tangent.
    GeluTanh,
    /// `clip(αx + β, 0, 1)`.
    HardSigmoid(f32, f32),
    /// `x · clip(x / 6 + 1/2, 0, 1)`.
    HardSwish,
    /// `xᵃ`.
    Power(f32),
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

impl Unary {
    /// The value and the derivative.
    pub fn apply(self, x: f32) -> (f32, f32) {
        use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};
        match self {
            Self::Abs => (x.abs(), if x == 0.0 { 0.0 } else { x.signum() }),
            Self::Exp => (x.exp(), x.exp()),
            Self::Log => (x.ln(), 1.0 / x),
            Self::Neg => (-x, -1.0),
            Self::Sqrt => (x.sqrt(), 0.5 / x.sqrt()),
            Self::Reciprocal => (1.0 / x, -1.0 / (x * x)),
            Self::Erf => (libm::erff(x), FRAC_2_SQRT_PI * (-x * x).exp()),
            Self::Tanh => {
                let y = x.tanh();
                (y, 1.0 - y * y)
            }
            Self::Sigmoid => {
                let y = sigmoid(x);
                (y, y * (1.0 - y))
            }
            Self::Softplus => (x.max(0.0) + (-x.abs()).exp().ln_1p(), sigmoid(x)),
            Self::Swish(a) => {
                let s = sigmoid(a * x);
                (x * s, s + a * x * s * (1.0 - s))
            }
            Self::Gelu => {
                let below = 0.5 * (1.0 + libm::erff(x * FRAC_1_SQRT_2));
                let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
                (x * below, below + x * density)
            }
            Self::GeluTanh => {
                let (k, c) = ((2.0 / PI).sqrt(), 0.044_715);
                let t = (k * (x + c * x * x * x)).tanh();
                let inner = k * (1.0 + 3.0 * c * x * x);
                (
                    0.5 * x * (1.0 + t),
                    0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * inner,
                )
            }
            Self::HardSigmoid(a, b) => {
                let y = a * x + b;
                (y.clamp(0.0, 1.0), if y > 0.0 && y < 1.0 { a } else { 0.0 })
            }
            Self::HardSwish => {
                let (h, d) = Self::HardSigmoid(1.0 / 6.0, 0.5).apply(x);
                (x * h, h + x * d)
            }
            Self::Power(a) => (x.powf(a), a * x.powf(a - 1.0)),
        }
    }
}

/// A function of two elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a − b`.
    Sub,
    /// `a · b`.
    Mul,
    /// `a / b`.
    Div,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
}

impl Binary {
    fn value(self, a: f32, b: f32) -> f32 {
        match self {
            Self::Add => a + b,
            Self::Sub => a - b,
            Self::Mul => a * b,
            Self::Div => a / b,
            Self::Min => a.min(b),
            Self::Max => a.max(b),
        }
    }

    /// The derivative by the first or the second operand.
    fn slope(self, a: f32, b: f32, second: bool) -> f32 {
        let first = |is: bool| f32::from(u8::from(is != second));
        match (self, second) {
            (Self::Add, _) | (Self::Sub, false) => 1.0,
            (Self::Sub, true) => -1.0,
            (Self::Mul, false) => b,
            (Self::Mul, true) => a,
            (Self::Div, false) => 1.0 / b,
            (Self::Div, true) => -a / (b * b),
            (Self::Min, _) => first(a <= b),
            (Self::Max, _) => first(a >= b),
        }
    }
}

/// An operator of a block.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// A function of each element.
    Unary(Unary),
    /// A function of two values that are spread to the result.
    Binary {
        /// Which.
        kind: Binary,
        /// How the operands are spread.
        spreads: [Spread; 2],
        /// Elements of the result.
        size: usize,
    },
    /// Sums over axes: `factor` times what the result would be spread from.
    Sum {
        /// From the result to the input.
        spread: Spread,
        /// 1, or one over the number of elements for a mean.
        factor: f32,
        /// Elements of the result.
        size: usize,
    },
    /// Softmax over `len` elements that lie `inner` apart.
    Softmax {
        /// Elements of a sum.
        len: usize,
        /// Their distance.
        inner: usize,
    },
    /// Rows of `len` elements divided by their root mean square, what LayerNormalization does before scale and bias.
    Normalize {
        /// Elements of a row.
        len: usize,
        /// Added to the mean square.
        epsilon: f32,
        /// The mean is subtracted before.
        centred: bool,
    },
    /// Products of the matrices `[m, k]` of one value with the `[k, n]` of another.
    Product {
        /// Which matrices belong together, by matrix of the result.
        pairs: Vec<(usize, usize)>,
        /// `m`, `k` and `n`.
        sizes: [usize; 3],
    },
    /// Elements in another order, some left out or repeated: Transpose, Slice, Split, Gather, Expand.
    Take(Vec<u32>),
    /// Pieces of several values, turn by turn.
    Concat(Vec<usize>),
    /// The second value where the first is not 0, else the third.
    Select {
        /// How the three are spread.
        spreads: [Spread; 3],
        /// Elements of the result.
        size: usize,
    },
}

impl Op {
    /// The result.
    pub(super) fn forward(&self, x: &[&[f32]]) -> Vec<f32> {
        match self {
            Self::Unary(f) => x[0].iter().map(|&x| f.apply(x).0).collect(),
            Self::Binary {
                kind,
                spreads,
                size,
            } => {
                let mut y = spreads[0].expand(x[0], *size);
                let b = match spreads[1] {
                    Spread::Same => None,
                    _ => Some(spreads[1].expand(x[1], *size)),
                };
                let b = b.as_deref().unwrap_or(x[1]);
                y.iter_mut()
                    .zip(b)
                    .for_each(|(y, &b)| *y = kind.value(*y, b));
                y
            }
            Self::Sum {
                spread,
                factor,
                size,
            } => {
                let mut y = spread.collapse(x[0], *size);
                y.iter_mut().for_each(|y| *y *= factor);
                y
            }
            &Self::Softmax { len, inner } => {
                let mut y = x[0].to_vec();
                for at in lanes(y.len(), len, inner) {
                    let lane = || (0..len).map(|i| at + i * inner);
                    let top = lane().fold(f32::NEG_INFINITY, |m, i| m.max(y[i]));
                    // A row that is masked as a whole has no largest value.
                    let top = if top.is_finite() { top } else { 0.0 };
                    let mut sum = 0.0;
                    for i in lane() {
                        y[i] = (y[i] - top).exp();
                        sum += y[i];
                    }
                    lane().for_each(|i| y[i] /= sum);
                }
                y
            }
            &Self::Normalize {
                len,
                epsilon,
                centred,
            } => {
                let mut y = x[0].to_vec();
                for row in y.chunks_mut(len) {
                    let (mean, factor) = moments(row, epsilon, centred);
                    row.iter_mut().for_each(|y| *y = (*y - mean) * factor);
                }
                y
            }
            Self::Product {
                pairs,
                sizes: [m, k, n],
            } => {
                let mut y = vec![0.0; pairs.len() * m * n];
                for (y, &(a, b)) in y.chunks_mut(m * n).zip(pairs) {
                    let a = &x[0][a * m * k..(a + 1) * m * k];
                    add_ab(y, a, &x[1][b * k * n..(b + 1) * k * n], *k, 1.0);
                }
                y
            }
            Self::Take(places) => places.iter().map(|&p| x[0][p as usize]).collect(),
            Self::Concat(widths) => {
                let mut y = Vec::with_capacity(x.iter().map(|x| x.len()).sum());
                for turn in 0..x[0].len() / widths[0].max(1) {
                    for (x, &w) in x.iter().zip(widths) {
                        y.extend_from_slice(&x[turn * w..(turn + 1) * w]);
                    }
                }
                y
            }
            Self::Select { spreads, size } => {
                let [c, a, b] = [0, 1, 2].map(|i| spreads[i].expand(x[i], *size));
                let both = a.into_iter().zip(b);
                let pick = |(&c, (a, b)): (&f32, (f32, f32))| if c == 0.0 { b } else { a };
                c.iter().zip(both).map(pick).collect()
            }
        }
    }

    /// The gradient of input `at` for the gradient `dy` of the result `y`.
    pub(super) fn gradient(&self, x: &[&[f32]], y: &[f32], dy: &[f32], at: usize) -> Vec<f32> {
        match self {
            Self::Unary(f) => {
                let pairs = x[0].iter().zip(dy);
                pairs.map(|(&x, d)| d * f.apply(x).1).collect()
            }
            Self::Binary {
                kind: Binary::Add,
                spreads,
                ..
            } => spreads[at].collapse(dy, x[at].len()),
            Self::Binary {
                kind,
                spreads,
                size,
            } => {
                let [a, b] = [0, 1].map(|i| spreads[i].expand(x[i], *size));
                let both = a.iter().zip(&b).zip(dy);
                let all: Vec<f32> = both
                    .map(|((&a, &b), d)| d * kind.slope(a, b, at == 1))
                    .collect();
                spreads[at].collapse(&all, x[at].len())
            }
            Self::Sum { spread, factor, .. } => {
                let mut dx = spread.expand(dy, x[0].len());
                dx.iter_mut().for_each(|d| *d *= factor);
                dx
            }
            &Self::Softmax { len, inner } => {
                let mut dx = dy.to_vec();
                for at in lanes(y.len(), len, inner) {
                    let lane = || (0..len).map(|i| at + i * inner);
                    let sum: f32 = lane().map(|i| dy[i] * y[i]).sum();
                    lane().for_each(|i| dx[i] = y[i] * (dy[i] - sum));
                }
                dx
            }
            &Self::Normalize {
                len,
                epsilon,
                centred,
            } => {
                let mut dx = dy.to_vec();
                let rows = x[0].chunks(len).zip(y.chunks(len));
                for (dx, (x, y)) in dx.chunks_mut(len).zip(rows) {
                    let (_, factor) = moments(x, epsilon, centred);
                    let mean = match centred {
                        true => dx.iter().sum::<f32>() / len as f32,
                        false => 0.0,
                    };
                    let along = dx.iter().zip(y).map(|(d, y)| d * y).sum::<f32>() / len as f32;
                    for (d, y) in dx.iter_mut().zip(y) {
                        *d = factor * (*d - mean - y * along);
                    }
                }
                dx
            }
            Self::Product {
                pairs,
                sizes: [m, k, n],
            } => {
                let mut dx = vec![0.0; x[at].len()];
                for (dy, &(a, b)) in dy.chunks(m * n).zip(pairs) {
                    let (left, right) = (a * m * k..(a + 1) * m * k, b * k * n..(b + 1) * k * n);
                    match at {
                        0 => add_abt(&mut dx[left], dy, &x[1][right], *n, 1.0),
                        _ => add_atb(&mut dx[right], &x[0][left], dy, *m, 1.0),
                    }
                }
                dx
            }
            Self::Take(places) => {
                let mut dx = vec![0.0; x[0].len()];
                places
                    .iter()
                    .zip(dy)
                    .for_each(|(&p, d)| dx[p as usize] += d);
                dx
            }
            Self::Concat(widths) => {
                let (turn, before) = (widths.iter().sum(), widths[..at].iter().sum::<usize>());
                let turns = dy.chunks(turn);
                turns
                    .flat_map(|t| &t[before..before + widths[at]])
                    .copied()
                    .collect()
            }
            Self::Select { spreads, size } => {
                let c = spreads[0].expand(x[0], *size);
                let taken = |(&c, &d): (&f32, &f32)| if (c == 0.0) == (at == 2) { d } else { 0.0 };
                let all: Vec<f32> = c.iter().zip(dy).map(taken).collect();
                spreads[at].collapse(&all, x[at].len())
            }
        }
    }

    /// Multiplications of a pass forward, where these are many.
    pub(super) fn work(&self) -> usize {
        match self {
            Self::Product { pairs, sizes } => pairs.len() * sizes.iter().product::<usize>(),
            _ => 0,
        }
    }
}

/// Where the lanes of an axis begin.
fn lanes(size: usize, len: usize, inner: usize) -> impl Iterator<Item = usize> {
    let outer = (0..size).step_by((len * inner).max(1));
    outer.flat_map(move |o| (0..inner).map(move |i| o + i))
}

/// The mean that is subtracted and the factor of a row that is normalized.
fn moments(row: &[f32], epsilon: f32, centred: bool) -> (f32, f32) {
    let len = row.len() as f32;
    let mean = if centred {
        row.iter().sum::<f32>() / len
    } else {
        0.0
    };
    let square = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / len;
    (mean, 1.0 / (square + epsilon).sqrt())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::optimize::random::Random;

    /// Compares every gradient with differences of the weighted sum of the result.
    fn check(name: &str, op: &Op, sizes: &[usize], range: (f32, f32), fixed: usize) {
        let mut random = Random::new(11);
        let mut draw = |n: usize| -> Vec<f32> {
            let x = (0..n).map(|_| range.0 + random.unit() * (range.1 - range.0));
            x.collect()
        };
        let mut x: Vec<Vec<f32>> = sizes.iter().map(|&n| draw(n)).collect();
        // What decides is no number.
        x[..fixed]
            .iter_mut()
            .flatten()
            .for_each(|x| *x = f32::from(u8::from(*x > 0.0)));
        let views = |x: &[Vec<f32>]| op.forward(&x.iter().map(Vec::as_slice).collect::<Vec<_>>());
        let y = views(&x);
        let dy: Vec<f32> = (0..y.len())
            .map(|i| ((i * 7 % 5) as f32 - 1.7) * 0.3)
            .collect();
        let sum = |y: &[f32]| -> f64 {
            y.iter()
                .zip(&dy)
                .map(|(y, d)| f64::from(*y) * f64::from(*d))
                .sum()
        };
        for at in fixed..x.len() {
            let known: Vec<&[f32]> = x.iter().map(Vec::as_slice).collect();
            let found = op.gradient(&known, &y, &dy, at);
            assert_eq!(found.len(), x[at].len(), "{name}");
            for i in 0..x[at].len() {
                let (own, step) = (x[at][i], 4e-3f32);
                x[at][i] = own + step;
                let up = sum(&views(&x));
                x[at][i] = own - step;
                let down = sum(&views(&x));
                x[at][i] = own;
                let slope = (up - down) / (2.0 * f64::from(step));
                let near = (slope - f64::from(found[i])).abs() < 0.01 * slope.abs().max(0.3);
                assert!(
                    near,
                    "{name}, input {at}, element {i}: {slope} {}",
                    found[i]
                );
            }
        }
    }

    #[test]
    fn functions_of_one_element() {
        let anywhere = (-2.5, 2.4);
        for f in [
            Unary::Exp,
            Unary::Neg,
            Unary::Erf,
            Unary::Tanh,
            Unary::Sigmoid,
            Unary::Softplus,
            Unary::Swish(1.3),
            Unary::Gelu,
            Unary::GeluTanh,
            Unary::HardSigmoid(0.1, 0.5),
            Unary::Power(2.0),
            Unary::Power(3.0),
        ] {
            check(&format!("{f:?}"), &Op::Unary(f), &[40], anywhere, 0);
        }
        for f in [
            Unary::Abs,
            Unary::Log,
            Unary::Sqrt,
            Unary::Reciprocal,
            Unary::HardSwish,
            Unary::Power(-0.5),
        ] {
            check(&format!("{f:?}"), &Op::Unary(f), &[40], (0.5, 2.5), 0);
        }
        assert_eq!(Unary::HardSwish.apply(-4.0), (0.0, 0.0));
        assert_eq!(Unary::Power(2.0).apply(-3.0), (9.0, -6.0));
    }

    #[test]
    fn functions_of_two_elements() {
        let shapes: [(&[usize], &[usize]); 5] = [
            (&[2, 3, 4], &[2, 3, 4]),
            (&[2, 3, 4], &[4]),
            (&[2, 3, 1], &[2, 3, 4]),
            (&[2, 3, 4], &[1, 3, 1]),
            (&[], &[2, 3, 4]),
        ];
        for kind in [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div] {
            for (a, b) in shapes {
                let spreads = [a, b].map(|s| Spread::of(s, &[2, 3, 4]).unwrap());
                let op = Op::Binary {
                    kind,
                    spreads,
                    size: 24,
                };
                let sizes = [a, b].map(|s| s.iter().product());
                check(&format!("{kind:?} {a:?} {b:?}"), &op, &sizes, (0.5, 2.0), 0);
            }
        }
        for kind in [Binary::Min, Binary::Max] {
            let op = Op::Binary {
                kind,
                spreads: [Spread::Same, Spread::Cycle],
                size: 12,
            };
            check(&format!("{kind:?}"), &op, &[12, 3], (-1.0, 1.0), 0);
        }
    }

    #[test]
    fn sums_and_normalizations() {
        for (out, size) in [(vec![2, 1, 4], 8), (vec![2, 3, 1], 6), (vec![1, 3, 4], 12)] {
            let spread = Spread::of(&out, &[2, 3, 4]).unwrap();
            let op = Op::Sum {
                spread,
                factor: 0.25,
                size,
            };
            check(&format!("Sum {out:?}"), &op, &[24], (-1.0, 1.0), 0);
        }
        for (len, inner) in [(6, 1), (3, 4), (4, 2)] {
            let op = Op::Softmax { len, inner };
            check(
                &format!("Softmax {len} {inner}"),
                &op,
                &[24],
                (-2.0, 2.0),
                0,
            );
        }
        for centred in [true, false] {
            let op = Op::Normalize {
                len: 6,
                epsilon: 1e-3,
                centred,
            };
            check(&format!("Normalize {centred}"), &op, &[24], (-2.0, 2.0), 0);
        }
        let masked = Op::Softmax { len: 2, inner: 1 };
        let y = masked.forward(&[&[f32::NEG_INFINITY, 3.0]]);
        assert_eq!(y, [0.0, 1.0]);
    }

    #[test]
    fn products_and_moves() {
        let op = Op::Product {
            pairs: vec![(0, 0), (1, 0), (2, 1)],
            sizes: [2, 4, 3],
        };
        check("Product", &op, &[24, 24], (-1.0, 1.0), 0);
        check("Take", &Op::Take(vec![5, 0, 3, 3, 1]), &[6], (-1.0, 1.0), 0);
        check(
            "Concat",
            &Op::Concat(vec![2, 3, 1]),
            &[4, 6, 2],
            (-1.0, 1.0),
            0,
        );
        let op = Op::Select {
            spreads: [Spread::Cycle, Spread::Same, Spread::Cycle],
            size: 12,
        };
        check("Select", &op, &[6, 12, 1], (-1.0, 1.0), 1);
    }
}

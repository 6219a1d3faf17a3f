//! Training and evaluation: cross entropy, stochastic gradient descent with momentum, a cosine schedule.

use crate::layers::{Layer, Mode, backward, forward, params};
use crate::network::network;
use crate::render::{CLASSES, Dataset, PIXELS, SIDE, Split};
use crate::rng::{Rng, cos, exp, ln};
use crate::tensor::Tensor;

/// The seed of the initial weights.
const SEED: u64 = 0x7765_6967_6874_7331;
/// Momentum of the gradients.
const MOMENTUM: f32 = 0.9;
/// Pull of the weights to zero.
const DECAY: f32 = 5e-4;
/// Images that are evaluated at once.
const EVAL_BATCH: usize = 64;

/// How long and how fast to train.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Updates of the weights.
    pub steps: usize,
    /// Images for each update; every one is seen once.
    pub batch: usize,
    /// The highest learning rate, reached after a twentieth of the steps.
    pub rate: f32,
}

impl Schedule {
    /// The learning rate of a step: a linear rise, then half a period of the cosine down to zero.
    fn rate(&self, step: usize) -> f32 {
        let rise = self.steps / 20;
        if step < rise {
            return self.rate * (step + 1) as f32 / rise as f32;
        }
        let part = (step - rise) as f64 / (self.steps - rise) as f64;
        self.rate * (0.5 + 0.5 * cos(part * std::f64::consts::PI)) as f32
    }
}

/// Trains a network from its random weights. `report` gets the number of steps done and the mean loss since the last
/// report, after each twentieth of them.
pub fn train(schedule: Schedule, mut report: impl FnMut(usize, f64)) -> Vec<Layer> {
    let mut layers = network(&mut Rng::new(SEED, 0));
    let every = (schedule.steps / 20).max(1);
    let mut loss = 0.0;
    for step in 0..schedule.steps {
        let data = Dataset::render(Split::Train, step * schedule.batch, schedule.batch);
        let logits = forward(&mut layers, batch(&data.images), Mode::Training);
        let (batch_loss, gradient) = cross_entropy(&logits, &data.labels);
        backward(&mut layers, gradient);
        update(&mut layers, schedule.rate(step));
        loss += batch_loss;
        if (step + 1) % every == 0 {
            report(step + 1, loss / every as f64);
            loss = 0.0;
        }
    }
    layers
}

/// The number of images whose highest logit is that of their label.
pub fn correct(layers: &mut [Layer], data: &Dataset) -> usize {
    let batches = data.images.chunks(EVAL_BATCH * PIXELS);
    batches
        .zip(data.labels.chunks(EVAL_BATCH))
        .map(|(images, labels)| {
            let logits = forward(layers, batch(images), Mode::Inference);
            let rows = logits.data.chunks(CLASSES).zip(labels);
            rows.filter(|(row, label)| argmax(row) == **label).count()
        })
        .sum()
}

fn batch(images: &[f32]) -> Tensor {
    Tensor {
        shape: [images.len() / PIXELS, 1, SIDE, SIDE],
        data: images.to_vec(),
    }
}

/// The index of the largest value, the first of equals.
fn argmax(row: &[f32]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

/// The mean of `−ln softmax(logits)[label]` and its gradient, `(softmax − one-hot) / samples`.
fn cross_entropy(logits: &Tensor, labels: &[usize]) -> (f64, Tensor) {
    let mut gradient = Tensor::zeros(logits.shape);
    let samples = labels.len() as f64;
    let mut loss = 0.0;
    let rows = logits.data.chunks(CLASSES);
    for ((row, label), d) in rows.zip(labels).zip(gradient.data.chunks_mut(CLASSES)) {
        let highest = f64::from(row[argmax(row)]);
        let powers: Vec<f64> = row.iter().map(|x| exp(f64::from(*x) - highest)).collect();
        let total: f64 = powers.iter().sum();
        loss += (ln(total) + highest - f64::from(row[*label])) / samples;
        for (class, (d, power)) in d.iter_mut().zip(&powers).enumerate() {
            let target = if class == *label { 1.0 } else { 0.0 };
            *d = ((power / total - target) / samples) as f32;
        }
    }
    (loss, gradient)
}

fn update(layers: &mut [Layer], rate: f32) {
    for param in params(layers) {
        let decay = if param.decays { DECAY } else { 0.0 };
        let values = param.value.iter_mut().zip(&mut param.velocity);
        for ((value, velocity), grad) in values.zip(&param.grad) {
            *velocity = MOMENTUM * *velocity + (grad + decay * *value);
            *value -= rate * *velocity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss reports and the weights of a short training run on a number of threads.
    fn short_run(threads: usize) -> (Vec<f64>, Vec<f32>) {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a thread pool").install(|| {
            let mut losses = Vec::new();
            let schedule = Schedule {
                steps: 40,
                batch: 20,
                rate: 0.05,
            };
            let mut layers = train(schedule, |_, loss| losses.push(loss));
            let weights = params(&mut layers)
                .iter()
                .flat_map(|param| param.value.clone())
                .collect();
            (losses, weights)
        })
    }

    #[test]
    fn training_lowers_the_loss_and_ignores_the_number_of_threads() {
        let (losses, weights) = short_run(1);
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (early, late) = (mean(&losses[..3]), mean(&losses[losses.len() - 3..]));
        assert!(late < early - 0.1, "{losses:?}");
        assert_eq!((losses, weights), short_run(3));
    }

    #[test]
    fn cross_entropy_and_its_gradient() {
        let data: Vec<f32> = (0..2 * CLASSES)
            .map(|i| ((i * 7) % 13) as f32 / 4.0)
            .collect();
        let labels = [3, 9];
        let at = |data: &[f32]| {
            let shape = [2, CLASSES, 1, 1];
            cross_entropy(
                &Tensor {
                    shape,
                    data: data.to_vec(),
                },
                &labels,
            )
        };
        let (loss, gradient) = at(&data);
        let direct: f64 = (0..2)
            .map(|n| {
                let row = &data[n * CLASSES..][..CLASSES];
                let total: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
                (total.ln() - f64::from(row[labels[n]])) / 2.0
            })
            .sum();
        assert!((loss - direct).abs() < 1e-12);
        for i in 0..data.len() {
            let mut moved = [data.clone(), data.clone()];
            moved[0][i] -= 1.0 / 64.0;
            moved[1][i] += 1.0 / 64.0;
            let slope = (at(&moved[1]).0 - at(&moved[0]).0) * 32.0;
            assert!((slope - f64::from(gradient.data[i])).abs() < 1e-4);
        }
    }

    #[test]
    fn the_rate_rises_and_falls_to_zero() {
        let schedule = Schedule {
            steps: 100,
            batch: 1,
            rate: 2.0,
        };
        let rates: Vec<f32> = (0..100).map(|step| schedule.rate(step)).collect();
        assert_eq!(rates[0], 0.4);
        assert_eq!(rates[5], 2.0);
        assert!(rates[5..].is_sorted_by(|a, b| a > b));
        assert!(rates[99] < 0.001);
    }
}

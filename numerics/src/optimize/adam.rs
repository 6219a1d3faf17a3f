//! The Adam optimizer over a slice of parameters.
//!
//! Source: Kingma, Ba, *Adam: A Method for Stochastic Optimization*, 2015, algorithm 1.

/// Moments of the gradient of each parameter.
#[derive(Debug, Clone)]
pub struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    step: i32,
    /// Step size.
    pub rate: f32,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPSILON: f32 = 1e-8;

impl Adam {
    /// An optimizer of `count` parameters.
    pub fn new(count: usize, rate: f32) -> Self {
        Self {
            first: vec![0.0; count],
            second: vec![0.0; count],
            step: 0,
            rate,
        }
    }

    /// Moves the parameters one step against their gradients.
    pub fn step(&mut self, parameters: &mut [f32], gradients: &[f32]) {
        self.step += 1;
        let rate = self.rate * (1.0 - BETA2.powi(self.step)).sqrt() / (1.0 - BETA1.powi(self.step));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((p, &g), (m, v)) in parameters.iter_mut().zip(gradients).zip(moments) {
            *m = BETA1 * *m + (1.0 - BETA1) * g;
            *v = BETA2 * *v + (1.0 - BETA2) * g * g;
            *p -= rate * *m / (v.sqrt() + EPSILON);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_minimum_of_a_parabola() {
        let mut adam = Adam::new(2, 0.05);
        let mut x = [5.0f32, -3.0];
        for _ in 0..2000 {
            let gradients = [2.0 * (x[0] - 1.0), 20.0 * (x[1] + 2.0)];
            adam.step(&mut x, &gradients);
        }
        assert!(
            (x[0] - 1.0).abs() < 1e-2 && (x[1] + 2.0).abs() < 1e-2,
            "{x:?}"
        );
    }
}

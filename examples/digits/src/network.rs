//! The 64-128-10 network: ReLU, then softmax and cross-entropy.

use ndarray::linalg::general_mat_mul;
use ndarray::{Array1, Array2, ArrayView2, Axis, Zip};
use rand_distr::{Distribution, Normal};

use crate::data::{CLASSES, Digits, PIXELS};

const HIDDEN: usize = 128;

/// One tensor for each of the network's weights and biases: its parameters, or their gradients.
pub(crate) struct Tensors {
    weight1: Array2<f32>,
    bias1: Array1<f32>,
    weight2: Array2<f32>,
    bias2: Array1<f32>,
}

impl Tensors {
    pub(crate) fn zeros() -> Self {
        Self {
            weight1: Array2::zeros((PIXELS, HIDDEN)),
            bias1: Array1::zeros(HIDDEN),
            weight2: Array2::zeros((HIDDEN, CLASSES)),
            bias2: Array1::zeros(CLASSES),
        }
    }

    /// Weights from a normal distribution of variance 2/inputs (He et al., 2015), biases 0.
    pub(crate) fn random(rng: &mut impl rand::Rng) -> Self {
        let mut tensors = Self::zeros();
        for weight in [&mut tensors.weight1, &mut tensors.weight2] {
            let inputs = weight.nrows() as f32;
            let normal = Normal::new(0.0, (2.0 / inputs).sqrt()).expect("the deviation is finite");
            weight.mapv_inplace(|_| normal.sample(rng));
        }
        tensors
    }

    /// The tensors as flat slices, always in the same order.
    pub(crate) fn slices(&self) -> [&[f32]; 4] {
        let slices = [self.weight1.as_slice(), self.bias1.as_slice(), self.weight2.as_slice(), self.bias2.as_slice()];
        slices.map(|slice| slice.expect("the arrays are in row order"))
    }

    /// [`slices`](Self::slices), to write to.
    pub(crate) fn slices_mut(&mut self) -> [&mut [f32]; 4] {
        let slices = [
            self.weight1.as_slice_mut(),
            self.bias1.as_slice_mut(),
            self.weight2.as_slice_mut(),
            self.bias2.as_slice_mut(),
        ];
        slices.map(|slice| slice.expect("the arrays are in row order"))
    }

    fn hidden(&self, pixels: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut hidden = pixels.dot(&self.weight1) + &self.bias1;
        hidden.mapv_inplace(|x| x.max(0.0));
        hidden
    }

    fn logits(&self, hidden: &Array2<f32>) -> Array2<f32> {
        hidden.dot(&self.weight2) + &self.bias2
    }

    /// Writes the gradients of the mean cross-entropy over `batch` into `grads`.
    pub(crate) fn gradients(&self, batch: &Digits, grads: &mut Self) {
        let hidden = self.hidden(batch.pixels.view());
        let mut d_logits = self.logits(&hidden);
        d_logits.outer_iter_mut().for_each(softmax);
        for (mut row, &label) in d_logits.outer_iter_mut().zip(&batch.labels) {
            row[label] -= 1.0;
        }
        d_logits /= batch.len() as f32;

        let mut d_hidden = d_logits.dot(&self.weight2.t());
        Zip::from(&mut d_hidden).and(&hidden).for_each(|d, &h| *d = if h > 0.0 { *d } else { 0.0 });

        general_mat_mul(1.0, &hidden.t(), &d_logits, 0.0, &mut grads.weight2);
        general_mat_mul(1.0, &batch.pixels.t(), &d_hidden, 0.0, &mut grads.weight1);
        grads.bias2.assign(&d_logits.sum_axis(Axis(0)));
        grads.bias1.assign(&d_hidden.sum_axis(Axis(0)));
    }

    /// The mean cross-entropy over `digits`, and the fraction of them that get their label.
    pub(crate) fn evaluate(&self, digits: &Digits) -> (f64, f64) {
        let logits = self.logits(&self.hidden(digits.pixels.view()));
        let (mut loss, mut correct) = (0.0, 0);
        for (row, &label) in logits.outer_iter().zip(&digits.labels) {
            let max = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
            let sum: f32 = row.iter().map(|x| (x - max).exp()).sum();
            loss += f64::from(sum.ln() + max - row[label]);
            // Only a strict maximum counts, so that a network of equal or NaN outputs gets nothing
            // right.
            correct += usize::from((0..CLASSES).all(|class| class == label || row[class] < row[label]));
        }
        (loss / digits.len() as f64, correct as f64 / digits.len() as f64)
    }
}

fn softmax(mut row: ndarray::ArrayViewMut1<'_, f32>) {
    let max = row.fold(f32::NEG_INFINITY, |a, &b| a.max(b));
    row.mapv_inplace(|x| (x - max).exp());
    let sum = row.sum();
    row /= sum;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    /// Each tensor's gradient, against central differences of the loss along the gradient itself.
    #[test]
    fn gradients_are_those_of_the_loss() {
        let mut rng = rand::rngs::Xoshiro256PlusPlus::seed_from_u64(1);
        let batch = Digits::bundled().select(&(0..128).collect::<Vec<_>>());
        let mut network = Tensors::random(&mut rng);
        let mut grads = Tensors::zeros();
        // Twice, since old gradients must not stay in the buffer.
        network.gradients(&batch, &mut grads);
        network.gradients(&batch, &mut grads);
        for tensor in 0..4 {
            let gradient = grads.slices()[tensor].to_vec();
            let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
            let shift = |network: &mut Tensors, by: f32| {
                let params = &mut network.slices_mut()[tensor];
                params.iter_mut().zip(&gradient).for_each(|(p, g)| *p += by * g / norm);
            };
            let mut loss_at = |distance: f32| {
                shift(&mut network, distance);
                let (loss, _) = network.evaluate(&batch);
                shift(&mut network, -distance);
                loss
            };
            let slope = (loss_at(1e-2) - loss_at(-1e-2)) / 2e-2;
            let error = (slope - f64::from(norm)).abs() / f64::from(norm);
            assert!(error < 1e-3, "tensor {tensor}: slope {slope}, norm {norm}");
        }
    }
}

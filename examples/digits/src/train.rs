//! One training run.

use std::time::Duration;

use clap::ValueEnum;
use dualadam::cpu::{Buffer, BufferMut};
use dualadam::half::bf16;
use dualadam::{Element, TensorSpec};
use indicatif::ProgressBar;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;

use crate::backend::{Device, Error, Optimizer};
use crate::data::{Digits, train_len};
use crate::network::Tensors;
use crate::optimizers::Contender;

/// Images of one step.
pub(crate) const BATCH: usize = 128;

/// The type of the parameters and gradients that the optimizer is given. The network computes in
/// f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// f32 parameters and gradients
    F32,
    /// bf16 parameters and gradients, with f32 masters in the optimizer
    Bf16,
}

impl Dtype {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// What all runs have in common.
pub(crate) struct Setting {
    pub(crate) digits: Digits,
    pub(crate) epochs: u64,
    pub(crate) dtype: Dtype,
    pub(crate) device: Device,
}

impl Setting {
    pub(crate) fn steps_per_epoch(&self) -> u64 {
        train_len(self.digits.len()).div_ceil(BATCH) as u64
    }

    pub(crate) fn steps(&self) -> u64 {
        self.epochs * self.steps_per_epoch()
    }
}

/// What one run gave.
pub(crate) struct Run {
    /// Mean loss over the training set, before the first epoch and after each.
    pub(crate) losses: Vec<f64>,
    /// Fraction of the test set that is classified right, at the same times.
    pub(crate) accuracies: Vec<f64>,
    /// What each call of the optimizer took.
    pub(crate) step_times: Vec<Duration>,
}

/// Trains a network. The seed alone decides on the split, the initialisation and the order of the
/// images, so that runs of one seed differ in nothing but the optimizer.
pub(crate) fn train(setting: &Setting, contender: &Contender, seed: u64, bar: &ProgressBar) -> Result<Run, Error> {
    train_with(setting, contender, seed, bar, |specs| setting.device.optimizer(contender.config, specs))
}

/// [`train`] with the optimizer that is made for the network's tensors.
pub(crate) fn train_with(
    setting: &Setting,
    contender: &Contender,
    seed: u64,
    bar: &ProgressBar,
    optimizer: impl FnOnce(&[TensorSpec]) -> Result<Box<dyn Optimizer>, Error>,
) -> Result<Run, Error> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let (train, test) = setting.digits.split(&mut rng);
    let mut model = Model::new(Tensors::random(&mut rng), setting.dtype);
    let mut optimizer = optimizer(&model.specs())?;
    let mut grads = Tensors::zeros();
    let mut run = Run { losses: Vec::new(), accuracies: Vec::new(), step_times: Vec::new() };
    let mut order: Vec<usize> = (0..train.len()).collect();

    run.record(&model.network, &train, &test);
    for _ in 0..setting.epochs {
        order.shuffle(&mut rng);
        for rows in order.chunks(BATCH) {
            model.network.gradients(&train.select(rows), &mut grads);
            optimizer.set_lr(contender.lr(run.step_times.len() as u64 + 1))?;
            run.step_times.push(model.step(&mut *optimizer, &grads)?);
        }
        run.record(&model.network, &train, &test);
        bar.inc(1);
    }
    Ok(run)
}

impl Run {
    fn record(&mut self, network: &Tensors, train: &Digits, test: &Digits) {
        self.losses.push(network.evaluate(train).0);
        self.accuracies.push(network.evaluate(test).1);
    }
}

/// The network, and in bf16 also what the optimizer sees of it.
struct Model {
    network: Tensors,
    half: Option<Half>,
}

/// A bf16 model's parameters and gradients; the network then computes with the widened parameters.
struct Half {
    params: [Vec<bf16>; 4],
    grads: [Vec<bf16>; 4],
}

impl Model {
    fn new(network: Tensors, dtype: Dtype) -> Self {
        let mut model = Self { network, half: None };
        if dtype == Dtype::Bf16 {
            let half = Half { params: narrowed(&model.network), grads: narrowed(&model.network) };
            half.widen_into(&mut model.network);
            model.half = Some(half);
        }
        model
    }

    fn specs(&self) -> [TensorSpec; 4] {
        self.network.slices().map(|slice| {
            let spec = TensorSpec::new(slice.len());
            if self.half.is_some() { spec.with_master() } else { spec }
        })
    }

    /// One step of the optimizer; returns what it alone took.
    fn step(&mut self, optimizer: &mut dyn Optimizer, grads: &Tensors) -> Result<Duration, Error> {
        let Some(half) = &mut self.half else {
            return optimizer.step(self.network.slices_mut().map(BufferMut::from), grads.slices().map(Buffer::from));
        };
        half.grads = narrowed(grads);
        let grads = half.grads.each_ref().map(Buffer::from);
        let time = optimizer.step(half.params.each_mut().map(BufferMut::from), grads)?;
        half.widen_into(&mut self.network);
        Ok(time)
    }
}

impl Half {
    fn widen_into(&self, network: &mut Tensors) {
        for (wide, narrow) in network.slices_mut().into_iter().zip(&self.params) {
            wide.iter_mut().zip(narrow).for_each(|(wide, narrow)| *wide = narrow.widen());
        }
    }
}

fn narrowed(tensors: &Tensors) -> [Vec<bf16>; 4] {
    tensors.slices().map(|slice| slice.iter().map(|&value| bf16::narrow(value)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizers::contenders;

    fn runs(dtype: Dtype, lr: f64, seed: u64) -> Vec<Run> {
        let setting = Setting { digits: Digits::bundled(), epochs: 5, dtype, device: Device::Cpu };
        let contenders = contenders(lr, 10);
        contenders.iter().map(|contender| train(&setting, contender, seed, &ProgressBar::hidden()).unwrap()).collect()
    }

    #[test]
    fn the_seed_alone_decides_what_the_optimizers_share() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let (runs, again, other) = (runs(dtype, 1e-2, 0), runs(dtype, 1e-2, 0), runs(dtype, 1e-2, 1));
            for (run, again) in runs.iter().zip(&again) {
                assert_eq!(run.losses, again.losses);
                assert_eq!(run.accuracies, again.accuracies);
                assert_eq!((run.losses[0], run.accuracies[0]), (runs[0].losses[0], runs[0].accuracies[0]));
                assert_eq!((run.losses.len(), run.step_times.len()), (6, 60));
            }
            assert_ne!(runs[0].losses[0], other[0].losses[0]);
        }
    }

    /// At a learning rate whose steps bf16 alone would mostly lose.
    #[test]
    fn adam_learns_in_bf16_as_in_f32() {
        let [wide, narrow] = [Dtype::F32, Dtype::Bf16].map(|dtype| runs(dtype, 2e-4, 0).swap_remove(0).losses);
        assert_ne!(wide[0], narrow[0], "the bf16 network starts from rounded parameters");
        let [learnt, learnt_narrow] = [&wide, &narrow].map(|losses| losses[0] - losses[5]);
        assert!(learnt > 0.2 && (learnt_narrow / learnt - 1.0).abs() < 0.01, "{wide:?} {narrow:?}");
    }
}

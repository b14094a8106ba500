//! Trains a small network on real handwritten digits with candle's autograd: DualAdam beside
//! candle's AdamW.

#[path = "../../examples/digits/src/data.rs"]
mod data;

use std::time::Instant;

use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{AdamW, Linear, Optimizer, ParamsAdamW, loss};
use dualadam::{DualAdamConfig, SwitchSchedule, WeightDecay};
use dualadam_candle::DualAdam;
use rand::SeedableRng;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Normal};

use crate::data::{CLASSES, Digits, PIXELS};

const HIDDEN: usize = 128;
const BATCH: usize = 128;
const EPOCHS: u64 = 30;
const SEEDS: u64 = 3;
const LR: f64 = 1e-3;
const WEIGHT_DECAY: f64 = 0.01;

fn main() -> Result<()> {
    let device = Device::cuda_if_available(0)?;
    let digits = Digits::bundled();
    println!(
        "64-{HIDDEN}-10 network, {EPOCHS} epochs, learning rate {LR}, weight decay {WEIGHT_DECAY}, {:?}",
        device.location()
    );
    println!("optimizer      seed  training loss  test loss  test accuracy  seconds");
    for seed in 0..SEEDS {
        let config = ParamsAdamW { lr: LR, weight_decay: WEIGHT_DECAY, ..ParamsAdamW::default() };
        report::<AdamW>("candle's AdamW", seed, &digits, &device, |_| config)?;
        report::<DualAdam>("DualAdam", seed, &digits, &device, dual_adam)?;
    }
    Ok(())
}

/// The paper's linear schedule, which leaves inverse Adam after 16% of the run.
fn dual_adam(steps: u64) -> DualAdamConfig {
    DualAdamConfig::default()
        .with_lr(LR)
        .with_weight_decay(WeightDecay::Decoupled(WEIGHT_DECAY))
        .with_schedule(SwitchSchedule::linear_until((steps * 16).div_ceil(100)))
}

/// Trains with an optimizer whose config depends on the number of steps, and prints the losses, the
/// accuracy and the time.
fn report<O: Optimizer>(
    name: &str,
    seed: u64,
    digits: &Digits,
    device: &Device,
    config: impl FnOnce(u64) -> O::Config,
) -> Result<()> {
    let mut run = Run::new(digits, seed, DType::F32, device)?;
    let mut optimizer = O::new(run.network.vars(), config(EPOCHS * run.batches()))?;
    let start = Instant::now();
    for _ in 0..EPOCHS {
        for batch in run.epoch() {
            let (pixels, labels) = tensors(&batch, DType::F32, device)?;
            optimizer.backward_step(&run.network.loss(&pixels, &labels)?)?;
        }
    }
    let (train_loss, _) = run.network.evaluate(&run.train, device)?;
    let seconds = start.elapsed().as_secs_f64();
    let (test_loss, accuracy) = run.network.evaluate(&run.test, device)?;
    println!("{name:<14} {seed:>4} {train_loss:>14.5} {test_loss:>10.5} {:>13.2}% {seconds:>8.2}", 100.0 * accuracy);
    Ok(())
}

/// What a seed alone decides: the split, the first weights and the order of the images.
struct Run {
    rng: Xoshiro256PlusPlus,
    train: Digits,
    test: Digits,
    network: Network,
}

impl Run {
    fn new(digits: &Digits, seed: u64, dtype: DType, device: &Device) -> Result<Self> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let (train, test) = digits.split(&mut rng);
        let network = Network::random(&mut rng, dtype, device)?;
        Ok(Self { rng, train, test, network })
    }

    fn batches(&self) -> u64 {
        self.train.len().div_ceil(BATCH) as u64
    }

    /// The training set in a new order, in batches.
    fn epoch(&mut self) -> Vec<Digits> {
        let mut rows: Vec<_> = (0..self.train.len()).collect();
        rows.shuffle(&mut self.rng);
        rows.chunks(BATCH).map(|rows| self.train.select(rows)).collect()
    }
}

/// Two layers of candle's: ReLU between, softmax and cross-entropy at the end.
struct Network {
    hidden: (Var, Var),
    output: (Var, Var),
}

impl Network {
    /// Weights from a normal distribution of variance 2/inputs (He et al., 2015), biases 0.
    fn random(rng: &mut Xoshiro256PlusPlus, dtype: DType, device: &Device) -> Result<Self> {
        let mut layer = |inputs: usize, outputs: usize| {
            let normal = Normal::new(0.0, (2.0 / inputs as f32).sqrt()).expect("the deviation is finite");
            let weights: Vec<f32> = normal.sample_iter(&mut *rng).take(outputs * inputs).collect();
            let weights = Tensor::from_vec(weights, (outputs, inputs), device)?.to_dtype(dtype)?;
            Ok::<_, candle_core::Error>((Var::from_tensor(&weights)?, Var::zeros(outputs, dtype, device)?))
        };
        Ok(Self { hidden: layer(PIXELS, HIDDEN)?, output: layer(HIDDEN, CLASSES)? })
    }

    fn vars(&self) -> Vec<Var> {
        [&self.hidden.0, &self.hidden.1, &self.output.0, &self.output.1].map(Var::clone).to_vec()
    }

    fn logits(&self, pixels: &Tensor) -> Result<Tensor> {
        let layer =
            |(weights, biases): &(Var, Var)| Linear::new(weights.as_tensor().clone(), Some(biases.as_tensor().clone()));
        layer(&self.output).forward(&layer(&self.hidden).forward(pixels)?.relu()?)
    }

    fn loss(&self, pixels: &Tensor, labels: &Tensor) -> Result<Tensor> {
        loss::cross_entropy(&self.logits(pixels)?, labels)
    }

    /// The mean cross-entropy over `digits`, and the fraction of them that get their label.
    fn evaluate(&self, digits: &Digits, device: &Device) -> Result<(f32, f32)> {
        let (pixels, labels) = tensors(digits, self.hidden.0.dtype(), device)?;
        let logits = self.logits(&pixels)?;
        let right = logits.argmax(1)?.eq(&labels)?.to_dtype(DType::F32)?.mean_all()?;
        let loss = loss::cross_entropy(&logits, &labels)?.to_dtype(DType::F32)?;
        Ok((loss.to_scalar()?, right.to_scalar()?))
    }
}

fn tensors(digits: &Digits, dtype: DType, device: &Device) -> Result<(Tensor, Tensor)> {
    let pixels: Vec<f32> = digits.pixels.iter().copied().collect();
    let labels: Vec<u32> = digits.labels.iter().map(|&label| label as u32).collect();
    let pixels = Tensor::from_vec(pixels, (digits.len(), PIXELS), device)?.to_dtype(dtype)?;
    Ok((pixels, Tensor::from_vec(labels, digits.len(), device)?))
}

#[cfg(test)]
mod tests {
    use candle_core::WithDType;
    use dualadam::cpu::{self, Buffer, BufferMut};
    use dualadam::half::{bf16, f16};

    use super::*;

    fn values<T: WithDType>(tensor: &Tensor) -> Vec<T> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Two epochs, beside the library's own optimizer on copies of the parameters and gradients.
    fn same_bits<T: WithDType>(bits: fn(T) -> u32)
    where
        for<'a> BufferMut<'a>: From<&'a mut Vec<T>>,
        for<'a> Buffer<'a>: From<&'a Vec<T>>,
    {
        let mut run = Run::new(&Digits::bundled(), 0, T::DTYPE, &Device::Cpu).unwrap();
        let vars = run.network.vars();
        let config = dual_adam(2 * run.batches()).with_lr(1e-2);
        let mut optimizer = DualAdam::new(vars.clone(), config).unwrap();
        let mut copies: Vec<Vec<T>> = vars.iter().map(|var| values(var)).collect();
        let lens: Vec<_> = copies.iter().map(Vec::len).collect();
        let mut own = cpu::DualAdam::new(config, &lens).unwrap();
        let mut losses = Vec::new();
        for batch in run.epoch().into_iter().chain(run.epoch()) {
            let (pixels, labels) = tensors(&batch, T::DTYPE, &Device::Cpu).unwrap();
            let loss = run.network.loss(&pixels, &labels).unwrap();
            losses.push(loss.to_dtype(DType::F32).unwrap().to_scalar::<f32>().unwrap());
            let grads = loss.backward().unwrap();
            optimizer.step(&grads).unwrap();

            let grads: Vec<Vec<T>> = vars.iter().map(|var| values(grads.get(var).unwrap())).collect();
            let grads = grads.iter().map(|grads| Some(Buffer::from(grads)));
            own.step(copies.iter_mut().map(BufferMut::from), grads).unwrap();
            for (var, copy) in vars.iter().zip(&copies) {
                let bits_of = |values: &[T]| values.iter().map(|&value| bits(value)).collect::<Vec<_>>();
                assert!(bits_of(&values(var)) == bits_of(copy), "{:?} {:?}", T::DTYPE, var.shape());
            }
        }
        assert!(losses[losses.len() - 1] < 0.5 * losses[0], "{losses:?}");
    }

    #[test]
    fn a_run_has_the_bits_of_the_cpu_backend() {
        same_bits(f32::to_bits);
        same_bits(|value: bf16| value.to_bits().into());
        same_bits(|value: f16| value.to_bits().into());
    }
}

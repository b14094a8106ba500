//! Inputs for the comparisons: ordinary values, every special one, and configurations that take
//! every branch of the rule.

use dualadam::{Dtype, DualAdamConfig, Element, InverseTerm, SwitchSchedule, WeightDecay};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::values::Values;

/// Zeros, subnormals, ties of bf16 and f16, neighbours of 1, extremes, infinities and NaN, of both
/// signs.
pub const SPECIAL: &[f32] = [
    [0.0, -0.0, 1e-45, -1e-45, 1.0e-39, f32::MIN_POSITIVE, -f32::MIN_POSITIVE],
    [5.960_464_5e-8, 2.980_232_2e-8, 6.103_515_6e-5, 1.0, -1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0],
    [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 0.999_999_94, 65_504.0, 65_519.996, 65_520.0, 1e19],
    [-1e19, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN],
]
.as_flattened();

/// Sizes around the edges of loops, vectors, chunks and threads.
pub const SIZES: [usize; 20] =
    [0, 1, 3, 4, 5, 15, 16, 17, 255, 256, 257, 4095, 4097, 32_767, 32_768, 32_769, 65_535, 65_537, 131_073, 1_000_003];

/// The inputs of one tensor.
#[derive(Clone)]
pub struct Inputs {
    pub p: Vec<f32>,
    pub grad: Vec<f32>,
    pub m: Vec<f32>,
    pub v: Vec<f32>,
}

impl Inputs {
    /// Values of magnitudes from 1e-6 to 1e2, of both signs; the second moment is not negative.
    pub fn random(seed: u64, len: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut vector = |signed: bool| -> Vec<f32> {
            let mut value = || {
                let magnitude = 10.0_f32.powf(rng.random_range(-6.0..2.0));
                if signed && rng.random() { -magnitude } else { magnitude }
            };
            (0..len).map(|_| value()).collect()
        };
        Self { p: vector(true), grad: vector(true), m: vector(true), v: vector(false) }
    }

    /// These parameters, with gradients and moments of 0.
    pub fn parameters(p: Vec<f32>) -> Self {
        let zeros = vec![0.0; p.len()];
        Self { p, grad: zeros.clone(), m: zeros.clone(), v: zeros }
    }

    /// Every special value as parameter with every special value as gradient, and special values as
    /// moments.
    pub fn special() -> Self {
        let mut inputs = Self { p: vec![], grad: vec![], m: vec![], v: vec![] };
        for (i, &a) in SPECIAL.iter().enumerate() {
            for (j, &b) in SPECIAL.iter().enumerate() {
                let (c, d) = (SPECIAL[(i + 7 * j) % SPECIAL.len()], SPECIAL[(5 * i + j) % SPECIAL.len()]);
                inputs.p.extend([a, a, 1.0]);
                inputs.grad.extend([b, 0.5, c]);
                inputs.m.extend([0.25, b, a]);
                inputs.v.extend([0.125, d.abs(), b.abs()]);
            }
        }
        inputs
    }

    /// Gradients of both signs whose squares are infinite in f32. Each stands with a second moment
    /// of 0, with an ordinary one, and with large ones.
    pub fn overflowing() -> Self {
        let grads = [1.85e19, 2e19, 1e30, f32::MAX].into_iter().flat_map(|grad| [grad, -grad]);
        let (grad, v): (Vec<_>, Vec<_>) = grads.flat_map(|grad| [0.0, 0.125, 1e38, 3.4e38].map(|v| (grad, v))).unzip();
        Self { p: vec![1.0; grad.len()], m: vec![0.0; grad.len()], grad, v }
    }

    pub fn len(&self) -> usize {
        self.p.len()
    }

    pub fn is_empty(&self) -> bool {
        self.p.is_empty()
    }
}

/// A pseudo-random number generator.
pub struct Noise(pub u64);

impl Noise {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// In -1..1.
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Mostly ordinary numbers; one in sixteen is a zero, subnormal, extreme, infinity or NaN.
    pub fn any(&mut self) -> f32 {
        const SPECIAL: [f32; 8] = [0.0, -0.0, 1e-45, -1e-39, f32::MAX, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
        let choice = self.bits() % 128;
        SPECIAL.get(choice as usize).copied().unwrap_or_else(|| self.unit() * 8.0)
    }

    pub fn values(&mut self, dtype: Dtype, len: usize, mut value: impl FnMut(&mut Self) -> f32) -> Values {
        Values::new(dtype, &(0..len).map(|_| value(self)).collect::<Vec<_>>())
    }
}

/// The values narrowed to `T`.
pub fn narrow<T: Element>(values: &[f32]) -> Vec<T> {
    values.iter().map(|&value| T::narrow(value)).collect()
}

/// Triples of loss scale, clip factor and found-inf flag. Some allow a step; the others skip it,
/// for every reason that these scalars can give.
pub fn steering() -> impl Iterator<Item = [f32; 3]> {
    let pairs = SPECIAL.iter().flat_map(|&a| SPECIAL.iter().map(move |&b| (a, b)));
    let ordinary = [(65_536.0, 1.0), (1e-30, 1e30), (3.0, 0.1), (f32::MAX, 1e-45), (1024.0, 0.0), (1e-45, 1e-45)];
    pairs.chain(ordinary).map(|(a, b)| [a, b, 0.0]).chain(SPECIAL.iter().map(|&c| [1.0, 1.0, c]))
}

/// Configurations and steps that together take every branch of the rule.
pub fn configs() -> Vec<(DualAdamConfig, u64)> {
    let linear = |until| SwitchSchedule::linear_until(until);
    vec![
        (DualAdamConfig::default(), 1),
        (DualAdamConfig::default().with_schedule(linear(100)).with_lr(1e-2), 60),
        (DualAdamConfig::adam(), 1),
        (DualAdamConfig::adamw(0.1).with_lr(1e-2), 1000),
        (DualAdamConfig::inv_adam().with_maximize(true), 3),
        (DualAdamConfig::authors_code().with_weight_decay(WeightDecay::Decoupled(0.05)), 10),
        (DualAdamConfig::default().with_weight_decay(WeightDecay::L2(0.05)).with_schedule(linear(10)), 5),
        (DualAdamConfig::adam().with_weight_decay(WeightDecay::L2(0.5)).with_maximize(true), 2),
        (DualAdamConfig::default().with_inverse_term(InverseTerm::WithEps).with_eps(1e-2), 7),
        (DualAdamConfig::default().with_betas(0.0, 0.0), 1),
        (DualAdamConfig::default().with_betas(0.95, 0.9999).with_lr(0.0), 20_000),
    ]
}

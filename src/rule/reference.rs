//! The oracle: Algorithm 1 of [arXiv 2603.07122](https://arxiv.org/abs/2603.07122) in f64, line by
//! line.
//!
//! The tests check every backend against it. It is slow and simple, and shares only
//! [`DualAdamConfig`] and its schedule with the backends.

use super::config::{DualAdamConfig, InverseTerm, WeightDecay};

/// One element of a tensor with its moments, in f64.
///
/// # Examples
///
/// A parameter before its first step, with moments of 0:
///
/// ```
/// let x = dualadam::reference::Element { theta: 1.0, ..Default::default() };
/// assert_eq!((x.m, x.v), (0.0, 0.0));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Element {
    /// The parameter θ.
    pub theta: f64,
    /// The first moment, `exp_avg`.
    pub m: f64,
    /// The second moment, `exp_avg_sq`.
    pub v: f64,
}

/// Makes the `t`-th update of one element with the gradient `grad`. Returns the change of θ without
/// the part of decoupled decay.
///
/// `t` counts from 1. The config is not validated: call [`DualAdamConfig::validate`] for that.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, reference};
///
/// let mut x = reference::Element { theta: 1.0, ..Default::default() };
/// let delta = reference::step(&DualAdamConfig::adam(), 1, &mut x, 0.5);
/// assert!((delta + 1e-3).abs() < 1e-10); // Adam's first step is the learning rate
/// ```
pub fn step(config: &DualAdamConfig, t: u64, x: &mut Element, grad: f64) -> f64 {
    let DualAdamConfig { lr, beta1, beta2, eps, .. } = *config;
    let mut g = if config.maximize { -grad } else { grad };
    if let WeightDecay::L2(weight_decay) = config.weight_decay {
        g += weight_decay * x.theta;
    }
    x.m = beta1 * x.m + (1.0 - beta1) * g;
    x.v = beta2 * x.v + (1.0 - beta2) * g * g;
    let m_hat = x.m / (1.0 - beta1.powf(t as f64));
    let v_hat = x.v / (1.0 - beta2.powf(t as f64));
    let alpha = config.schedule.alpha(t);
    let adam = m_hat / (v_hat.sqrt() + eps);
    let inverse = match config.inverse_term {
        InverseTerm::Paper => m_hat * v_hat.sqrt(),
        InverseTerm::WithEps => m_hat * (v_hat.sqrt() + eps),
    };
    let update = if alpha > 0.0 { alpha * inverse + (1.0 - alpha) * adam } else { adam };
    if let WeightDecay::Decoupled(weight_decay) = config.weight_decay {
        x.theta *= 1.0 - lr * weight_decay;
    }
    let delta = -lr * update;
    x.theta += delta;
    delta
}

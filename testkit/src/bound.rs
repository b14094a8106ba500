//! How far f32 steps may be from exact arithmetic: a running error analysis.
//!
//! Every line follows one line of the contract. To the errors of its inputs it adds the rounding of
//! each coefficient (formed in f64, so off by one rounding) and of each operation.

use dualadam::{DualAdamConfig, InverseTerm, StepCoeffs, WeightDecay, reference};

use crate::contract::{TINY, U};

/// From this magnitude on, the square of a gradient may be infinite in f32.
pub const LEAST_OVERFLOWING: f64 = 1.84e19;

/// The largest error of each new value.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bound {
    pub p: f64,
    pub m: f64,
    pub v: f64,
}

/// The exact new state of `x`, and how far the new state in f32 arithmetic may be from it, if the
/// old state was off by at most `start`.
///
/// The gradient multiplier is 1. The bound leaves out products of two errors; a factor just above 1
/// makes up for them.
pub fn exact_and_bound(
    config: &DualAdamConfig,
    t: u64,
    x: reference::Element,
    grad: f32,
    start: Bound,
) -> (reference::Element, Bound) {
    let (reference::Element { theta: p, m, v }, grad) = (x, f64::from(grad));
    let mut exact = x;
    let delta = reference::step(config, t, &mut exact, grad);

    let c = ExactCoeffs::new(config, t);
    let mut g = if config.maximize { -grad } else { grad };
    let mut g_error = 0.0;
    if c.l2 != 0.0 {
        g_error = c.l2 * start.p + U * (c.l2 * p).abs();
        g += c.l2 * p;
        g_error += U * g.abs() + TINY;
    }
    assert!(g.abs() < LEAST_OVERFLOWING, "the bound does not cover a second moment that saturates");
    let m_change = c.one_minus_beta1 * (g_error + 2.0 * U * (g - m).abs());
    let m_error = config.beta1 * start.m + m_change + U * exact.m.abs() + TINY;
    let inner = (g * g - v).abs();
    let inner_error = 2.0 * g.abs() * g_error + U * inner + TINY;
    let v_change = c.one_minus_beta2 * (inner_error + U * inner);
    let v_error = config.beta2 * start.v + v_change + U * exact.v + TINY;
    let root = exact.v.sqrt();
    let root_error = f64::max((exact.v + v_error).sqrt() - root, root - (exact.v - v_error).max(0.0).sqrt());
    let s = root * c.inv_sqrt_bc2;
    let s_error = (root_error + U * root) * c.inv_sqrt_bc2 + 2.0 * U * s + TINY;
    let sum = s + c.eps;
    let sum_error = s_error + U * c.eps + U * sum + TINY;
    let q = c.adam_scale / sum;
    // Where a small beta2 leaves little of v, the error can be as large as s, but the root is never
    // negative.
    let least_sum = f64::max(sum - sum_error, c.eps * (1.0 - 3.0 * U));
    let q_error = c.adam_scale / least_sum * (1.0 + 2.0 * U) - q + TINY * (1.0 + 1.0 / least_sum);
    let (mut w, mut w_error) = (q, q_error);
    if c.inverse_scale != 0.0 {
        let factor = s + c.inverse_eps;
        let factor_error = s_error + U * c.inverse_eps + U * factor + TINY;
        w += c.inverse_scale * factor;
        w_error += c.inverse_scale * (factor_error + U * factor) + TINY * factor + U * w + TINY;
    }
    let decayed = (c.decay * p).abs();
    let decay_error = 2.0 * U * decayed + TINY;
    let update = -delta + c.decay * p;
    let update_error = exact.m.abs() * w_error + m_error * (w + w_error) + decay_error + U * update.abs() + TINY;
    let p_error = (1.0 - c.decay) * start.p + update_error + U * exact.theta.abs() + TINY;
    let higher_orders = 1.0 + 1e-5;
    let bound = Bound { p: p_error * higher_orders, m: m_error * higher_orders, v: v_error * higher_orders };
    (exact, bound)
}

/// The coefficients before they are rounded to f32.
#[derive(Debug, Clone, Copy)]
pub struct ExactCoeffs {
    pub one_minus_beta1: f64,
    pub one_minus_beta2: f64,
    pub inv_sqrt_bc2: f64,
    pub eps: f64,
    pub inverse_eps: f64,
    pub inverse_scale: f64,
    pub adam_scale: f64,
    pub decay: f64,
    pub l2: f64,
}

impl ExactCoeffs {
    pub fn new(config: &DualAdamConfig, t: u64) -> Self {
        let DualAdamConfig { lr, beta1, beta2, eps, .. } = *config;
        let alpha = config.schedule.alpha(t);
        let bc1 = 1.0 - beta1.powf(t as f64);
        let bc2 = 1.0 - beta2.powf(t as f64);
        Self {
            one_minus_beta1: 1.0 - beta1,
            one_minus_beta2: 1.0 - beta2,
            inv_sqrt_bc2: 1.0 / bc2.sqrt(),
            eps,
            inverse_eps: if config.inverse_term == InverseTerm::Paper { 0.0 } else { eps },
            inverse_scale: lr * alpha / bc1,
            adam_scale: lr * (1.0 - alpha) / bc1,
            decay: if let WeightDecay::Decoupled(weight_decay) = config.weight_decay { lr * weight_decay } else { 0.0 },
            l2: if let WeightDecay::L2(weight_decay) = config.weight_decay { weight_decay } else { 0.0 },
        }
    }
}

/// Fails unless the rounded coefficients are the exact ones, rounded once.
pub fn check_coeffs(config: &DualAdamConfig, t: u64, coeffs: &StepCoeffs) {
    let exact = ExactCoeffs::new(config, t);
    for (name, actual, exact) in [
        ("one_minus_beta1", coeffs.one_minus_beta1, exact.one_minus_beta1),
        ("one_minus_beta2", coeffs.one_minus_beta2, exact.one_minus_beta2),
        ("inv_sqrt_bc2", coeffs.inv_sqrt_bc2, exact.inv_sqrt_bc2),
        ("eps", coeffs.eps, exact.eps),
        ("inverse_eps", coeffs.inverse_eps, exact.inverse_eps),
        ("inverse_scale", coeffs.inverse_scale, exact.inverse_scale),
        ("adam_scale", coeffs.adam_scale, exact.adam_scale),
        ("decay", coeffs.decay, exact.decay),
        ("l2", coeffs.l2, exact.l2),
    ] {
        // The f64 roundings before the one to f32 can move a value across a tie. The error is then
        // slightly more than half a unit.
        let error = (f64::from(actual) - exact).abs();
        assert!(error <= U * exact * (1.0 + 1e-4) + TINY, "{name} of step {t}: {actual:e}, not {exact:e}");
    }
}

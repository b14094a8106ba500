//! How far one WGSL step may be from exact arithmetic, started from the same f32 state.
//! `docs/src/internals/webgpu-accuracy.md` derives it; the numbers here are its units.

use dualadam::{DualAdamConfig, reference};

use testkit::bound::{ExactCoeffs, LEAST_OVERFLOWING};
use testkit::contract::{Element, U};

/// Two subnormals that a driver may flush: an operand or product, and the result.
const FLUSH: f64 = 1.0 / (1_u128 << 125) as f64;
/// The error of the root of a flushed second moment, 2^-62.5.
const FLUSHED_ROOT: f64 = 1.533_e-19;
/// Products of two errors, which the units leave out.
const HIGHER_ORDERS: f64 = 1.0 + 1e-5;

/// An exact new value, the largest error, and the sum of the summands. The documentation states the
/// error in units of 2^-24 of that sum, which is NaN where the error has no such form.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantity {
    pub(crate) exact: f64,
    pub(crate) bound: f64,
    pub(crate) summands: f64,
}

/// The new p, m and v of `x`.
pub(crate) fn bound(config: &DualAdamConfig, t: u64, x: Element, grad: f32) -> [Quantity; 3] {
    let (p, m, v) = (f64::from(x.p), f64::from(x.m), f64::from(x.v));
    let grad = f64::from(grad);
    let mut exact = reference::Element { theta: p, m, v };
    reference::step(config, t, &mut exact, grad);

    let c = ExactCoeffs::new(config, t);
    let g = grad.abs() + c.l2 * p.abs();
    assert!(g < LEAST_OVERFLOWING, "the bound does not cover a second moment that saturates");
    let m_summands = m.abs() + c.one_minus_beta1 * (g + m.abs());
    let v_summands = v + c.one_minus_beta2 * (g * g + v);
    let decayed = c.decay * p.abs();

    let s = exact.v.sqrt() * c.inv_sqrt_bc2;
    let w = c.adam_scale / (s + c.eps) + c.inverse_scale * (s + c.inverse_eps);
    let p_summands = m_summands * w + decayed;
    let (error, counted) = if v_summands <= 2.0 * exact.v {
        (40.0 * U * p_summands, p_summands)
    } else {
        // Cancellation has left little of v, so the error of s is large beside s.
        (m_summands * error_of_w(&c, exact.v, v_summands) + 10.0 * U * (p_summands + m_summands * w), f64::NAN)
    };
    let through_root = c.inv_sqrt_bc2 * FLUSHED_ROOT * (c.adam_scale / (c.eps * c.eps) + c.inverse_scale);
    let p_bound = 1.5 * U * p.abs() + error + m_summands * through_root + FLUSH * (1.0 + w);
    // Units mean nothing where the summands are near the size of flushed values.
    let of = |exact, bound: f64, summands: f64| {
        let summands = if U * summands > 1e6 * FLUSH { summands } else { f64::NAN };
        Quantity { exact, bound: bound * HIGHER_ORDERS, summands }
    };
    [
        of(exact.theta, p_bound, counted),
        of(exact.m, 8.0 * U * m_summands + FLUSH, m_summands),
        of(exact.v, 12.0 * U * v_summands + FLUSH, v_summands),
    ]
}

/// The error of w: from the ends of the interval that s lies in, and from the operations after s.
fn error_of_w(c: &ExactCoeffs, v: f64, v_summands: f64) -> f64 {
    let s_of = |v: f64, units: f64| v.max(0.0).sqrt() * c.inv_sqrt_bc2 * (1.0 + units * U);
    let (low, high) = (s_of(v - 12.0 * U * v_summands, -11.0), s_of(v + 12.0 * U * v_summands, 11.0));
    let adam = |s: f64| c.adam_scale / (s + c.eps);
    let inverse = |s: f64| c.inverse_scale * (s + c.inverse_eps);
    let exact = s_of(v, 0.0);
    let w = adam(exact) + inverse(exact);
    let (most, least) = (adam(low) + inverse(high), adam(high) + inverse(low));
    f64::max(most - w, w - least) + 9.0 * U * most
}

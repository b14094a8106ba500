//! The arithmetic contract written a second time, for one element, and the sizes of its rounding
//! errors.
//!
//! Each `fma` is formed from its exact f64 product here, so that not even the fused operation is
//! shared with the library.

use dualadam::StepCoeffs;

/// Half a unit in the last place of a number in 1..2: the largest relative error of one rounding.
pub const U: f64 = 1.0 / (1 << 24) as f64;

/// Half the smallest subnormal f32: the largest error of one rounding where numbers are subnormal.
pub const TINY: f64 = 7.006_492_321_624_085e-46;

/// `a·b + c` rounded once to f32.
///
/// The product of two f32 is exact in f64. The sum is made exact as well, as a rounded sum and its
/// error, and rounded to odd: then narrowing to f32 rounds as if from the exact value.
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    let (product, c) = (f64::from(a) * f64::from(b), f64::from(c));
    let sum = product + c;
    if !sum.is_finite() {
        return sum as f32;
    }
    let c_part = sum - product;
    let error = (product - (sum - c_part)) + (c - c_part);
    let odd = sum.to_bits() & 1 == 1;
    if error == 0.0 || odd {
        return sum as f32;
    }
    // The next value towards the exact one is odd.
    let away_from_zero = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if away_from_zero { sum.to_bits() + 1 } else { sum.to_bits() - 1 }) as f32
}

/// One element's parameter and moments.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Element {
    pub p: f32,
    pub m: f32,
    pub v: f32,
}

/// The new state of an element, exactly as the contract states it.
pub fn update(c: &StepCoeffs, x: Element, grad: f32) -> Element {
    let Element { p, m, v } = x;
    let g = c.grad_scale * grad;
    let g = if c.l2 == 0.0 { g } else { fma(c.l2, p, g) };
    let m = fma(c.one_minus_beta1, g - m, m);
    let v = fma(c.one_minus_beta2, fma(g, g, -v), v);
    let v = if v == f32::INFINITY { f32::MAX } else { v };
    let s = v.sqrt() * c.inv_sqrt_bc2;
    let q = c.adam_scale / (s + c.eps);
    let w = if c.inverse_scale == 0.0 { q } else { fma(c.inverse_scale, s + c.inverse_eps, q) };
    let u = if c.decay == 0.0 { m * w } else { fma(m, w, c.decay * p) };
    Element { p: p - u, m, v }
}

/// Whether two f32 have the same bits. All NaNs count as the same.
pub fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan())
}

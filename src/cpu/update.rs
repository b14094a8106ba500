//! The update rule of one element. `kernels/update.cuh` and `shaders/update.wgsl` have the same
//! lines with the same names.

use crate::rule::StepCoeffs;

/// `f32::MAX` where `x` is above it, else `x`. NaN stays NaN, which `f32::min` would not keep.
#[inline(always)]
fn saturate(x: f32) -> f32 {
    if x > f32::MAX { f32::MAX } else { x }
}

/// The rule that [`StepCoeffs`] states: returns the new parameter and updates the moments in place.
///
/// `DUAL`, `L2` and `DECAY` tell whether `inverse_scale`, `l2` and `decay` are not 0. The caller
/// tests this once for all elements.
#[inline(always)]
pub(super) fn update<const DUAL: bool, const L2: bool, const DECAY: bool>(
    c: &StepCoeffs,
    p: f32,
    grad: f32,
    m: &mut f32,
    v: &mut f32,
) -> f32 {
    let g = c.grad_scale * grad;
    let g = if !L2 { g } else { c.l2.mul_add(p, g) };
    *m = c.one_minus_beta1.mul_add(g - *m, *m);
    *v = saturate(c.one_minus_beta2.mul_add(g.mul_add(g, -*v), *v));
    let s = v.sqrt() * c.inv_sqrt_bc2;
    let q = c.adam_scale / (s + c.eps);
    let w = if !DUAL { q } else { c.inverse_scale.mul_add(s + c.inverse_eps, q) };
    let u = if !DECAY { *m * w } else { m.mul_add(w, c.decay * p) };
    p - u
}

//! The update rule of one element. `kernels/update.cuh` and `shaders/update.wgsl` say the same,
//! name for name.

use crate::rule::StepCoeffs;

/// Where `x` is above the largest finite f32, that. A NaN stays one, which `f32::min` would not
/// keep.
#[inline(always)]
fn saturate(x: f32) -> f32 {
    if x > f32::MAX { f32::MAX } else { x }
}

/// The rule that [`StepCoeffs`] states. `DUAL`, `L2` and `DECAY` say whether `inverse_scale`, `l2`
/// and `decay` are not 0: the caller has asked once for all elements.
///
/// Takes the parameter and gradient as f32 and returns the new parameter; the moments are updated
/// in place.
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

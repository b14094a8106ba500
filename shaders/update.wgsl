// The update rule of four elements: DualAdam with the Adam branch, the inverse branch, their blend,
// and both kinds of decay.
//
// The lines are the same as in the rules for the CPU and CUDA. WGSL lets a driver fuse and
// reassociate operations and flush subnormals, so the bits may differ from theirs, within a stated
// bound. This file has no loads or stores.

// The scalars of one step, computed on the host in f64 and rounded once. 40 bytes, with the fields
// in the host's order.
struct StepCoeffs {
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    inv_sqrt_bc2: f32,
    eps: f32,
    inverse_eps: f32,
    inverse_scale: f32,
    adam_scale: f32,
    decay: f32,
    l2: f32,
    grad_scale: f32,
}

// The parameters and moments of four elements.
struct Elements {
    p: vec4<f32>,
    m: vec4<f32>,
    v: vec4<f32>,
}

// Replaces an infinity by the largest finite f32. Everything else stays, including NaN. It compares
// bits, since a driver may assume that no float is infinite. (WGSL's own `saturate` clamps to
// 0..1.)
fn saturated(x: vec4<f32>) -> vec4<f32> {
    return select(x, vec4(0x1.fffffep+127f), bitcast<vec4<u32>>(x) == vec4(0x7f800000u));
}

// dual = false leaves the inverse branch out; the host guarantees that inverse_scale is 0 then. A
// term with coefficient 0 is absent, not multiplied by 0: 0 times infinity would be NaN. The tests
// are uniform.
fn update(dual: bool, c: StepCoeffs, grad: vec4<f32>, x: Elements) -> Elements {
    var g = c.grad_scale * grad;
    if c.l2 != 0.0 { g = fma(vec4(c.l2), x.p, g); }
    let m = fma(vec4(c.one_minus_beta1), g - x.m, x.m);
    let v = saturated(fma(vec4(c.one_minus_beta2), fma(g, g, -x.v), x.v));
    let s = sqrt(v) * c.inv_sqrt_bc2;
    let q = c.adam_scale / (s + c.eps);
    var w = q;
    if dual && c.inverse_scale != 0.0 { w = fma(vec4(c.inverse_scale), s + c.inverse_eps, q); }
    var u = m * w;
    if c.decay != 0.0 { u = fma(m, w, c.decay * x.p); }
    return Elements(x.p - u, m, v);
}

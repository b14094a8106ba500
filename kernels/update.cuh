// The update rule of one element: DualAdam with the Adam branch, the inverse branch, their blend,
// and both kinds of decay.
//
// Every operation is named, so that no compiler fuses or splits one. So the bits are those of the
// rule for the CPU. This file has no loads or stores.

#pragma once

// The scalars of one step, computed in f64 and rounded once. 40 bytes, with the fields in the
// host's order.
struct StepCoeffs {
    float one_minus_beta1;
    float one_minus_beta2;
    float inv_sqrt_bc2;
    float eps;
    float inverse_eps;
    float inverse_scale;
    float adam_scale;
    float decay;
    float l2;
    float grad_scale;
};

// The smaller of x and the largest finite float. Unlike fminf, this keeps a NaN.
__device__ __forceinline__ float saturate(float x) { return x > 3.402823466e38f ? 3.402823466e38f : x; }

// DUAL = false leaves the inverse branch out; the host guarantees that inverse_scale is 0 then.
// A term with coefficient 0 is absent, not multiplied by 0: 0 times infinity would be NaN.
template <bool DUAL>
__device__ __forceinline__ void update(const StepCoeffs &c, float grad, float &p, float &m, float &v) {
    float g = __fmul_rn(c.grad_scale, grad);
    g = c.l2 == 0.0f ? g : __fmaf_rn(c.l2, p, g);
    m = __fmaf_rn(c.one_minus_beta1, __fsub_rn(g, m), m);
    v = saturate(__fmaf_rn(c.one_minus_beta2, __fmaf_rn(g, g, -v), v));
    const float s = __fmul_rn(__fsqrt_rn(v), c.inv_sqrt_bc2);
    const float q = __fdiv_rn(c.adam_scale, __fadd_rn(s, c.eps));
    const float w = !DUAL || c.inverse_scale == 0.0f ? q : __fmaf_rn(c.inverse_scale, __fadd_rn(s, c.inverse_eps), q);
    const float u = c.decay == 0.0f ? __fmul_rn(m, w) : __fmaf_rn(m, w, __fmul_rn(c.decay, p));
    p = __fsub_rn(p, u);
}

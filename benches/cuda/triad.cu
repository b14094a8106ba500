// What bounds a step of one variant: a multiply and an add for each written value, over the step's
// streams. The same bytes, hardly an instruction beside. No part of the library.
//
// Compiled once a variant, with the defines of kernels/dual_adam.cu. A factor of 0 leaves all
// values as they are. Every address must be a multiple of VEC elements.

#include "../../kernels/step.cuh"

#define JOIN_EXPANDED(kind, variant) kind##_##variant
#define JOIN(kind, variant) JOIN_EXPANDED(kind, variant)

using Variant = Formats<PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MASTER>;

template <typename T>
__device__ __forceinline__ T cut(float x) {
    return narrow<T>(x);
}

// Without rounding: the streams are measured, not the conversion.
template <>
__device__ __forceinline__ Bf16 cut(float x) {
    return {u16(__float_as_uint(x) >> 16)};
}

template <u32 N, typename F>
__device__ __forceinline__ void triad_elements(const Buffers<F> &b, u64 start, float factor) {
    Elements<N, F> e;
    load(b, true, start, e);
    typename F::Param param[N];
    typename F::Master master[N];
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        const float g = widen(e.g[k]);
        const float p = __fmaf_rn(factor, g, widen(e.p[k]));
        param[k] = cut<typename F::Param>(p);
        e.m[k] = cut<typename F::ExpAvg>(__fmaf_rn(factor, g, widen(e.m[k])));
        e.v[k] = cut<typename F::ExpAvgSq>(__fmaf_rn(factor, g, widen(e.v[k])));
        if constexpr (F::HAS_MASTER) master[k] = cut<typename F::Master>(p);
    }
    if constexpr (F::HAS_MASTER) store_pieces<N>(b.master + start, master);
    store_pieces<N>(b.param + start, param);
    store_pieces<N>(b.exp_avg + start, e.m);
    store_pieces<N>(b.exp_avg_sq + start, e.v);
}

extern "C" __global__ void __launch_bounds__(BLOCK)
    JOIN(triad, VARIANT)(PARAM *param, const GRAD *grad, EXP_AVG *exp_avg, EXP_AVG_SQ *exp_avg_sq, MASTER *master, u64 len,
                         float factor) {
    const Buffers<Variant> b = {param, grad, exp_avg, exp_avg_sq, master, len, false};
    const u64 unit = u64(blockIdx.x) * BLOCK + threadIdx.x;
    const u64 groups = len / VEC;
    if (unit < groups) {
        triad_elements<VEC>(b, unit * VEC, factor);
    } else if (unit - groups < len % VEC) {
        triad_elements<1>(b, unit + groups * (VEC - 1), factor);
    }
}

// What the benchmark measures the step against: a triad over the same streams, and the step with a kernel for each operation.
// No part of the library.

#include "../../kernels/pack.cuh"

// One multiply and add for each written value. It bounds the step: the same bytes, hardly an instruction beside.
// A factor of 0 leaves all values as they are. Every address must be a multiple of VEC elements.

__device__ __forceinline__ float blend(float x, float g, float factor) { return __fmaf_rn(factor, g, x); }

// Without rounding: the streams are measured, not the conversion.
__device__ __forceinline__ Bf16 blend(Bf16 x, float g, float factor) {
    return {u16(__float_as_uint(__fmaf_rn(factor, g, widen(x))) >> 16)};
}

__device__ __forceinline__ F16 blend(F16 x, float g, float factor) { return narrow<F16>(__fmaf_rn(factor, g, widen(x))); }

__device__ __forceinline__ void copy_of(float p, NoCopy &copy) {}

__device__ __forceinline__ void copy_of(float p, Bf16 &copy) { copy = {u16(__float_as_uint(p) >> 16)}; }

__device__ __forceinline__ void copy_of(float p, F16 &copy) { copy = narrow<F16>(p); }

template <u32 N>
__device__ __forceinline__ void store_copy(NoCopy *, const NoCopy (&)[N]) {}

template <u32 N, typename C>
__device__ __forceinline__ void store_copy(C *to, const C (&from)[N]) {
    store_pieces<N>(to, from);
}

template <u32 N, typename P, typename G, typename C>
__device__ __forceinline__ void triad_elements(P *param, const G *grad, float *exp_avg, float *exp_avg_sq, C *copy, u64 start,
                                               float factor) {
    P p[N];
    G g[N];
    float m[N];
    float v[N];
    C c[N];
    load_pieces<N>(param + start, p);
    load_pieces<N>(grad + start, g);
    load_pieces<N>(exp_avg + start, m);
    load_pieces<N>(exp_avg_sq + start, v);
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        const float wide = widen(g[k]);
        p[k] = blend(p[k], wide, factor);
        m[k] = blend(m[k], wide, factor);
        v[k] = blend(v[k], wide, factor);
        copy_of(widen(p[k]), c[k]);
    }
    store_pieces<N>(param + start, p);
    store_pieces<N>(exp_avg + start, m);
    store_pieces<N>(exp_avg_sq + start, v);
    store_copy<N>(copy + start, c);
}

#define TRIAD(TYPES, P, G, C)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(BLOCK)                                                                          \
        triad_##TYPES(P *param, const G *grad, float *exp_avg, float *exp_avg_sq, C *copy, u64 len, float factor) {              \
        const u64 unit = u64(blockIdx.x) * BLOCK + threadIdx.x;                                                                  \
        const u64 groups = len / VEC;                                                                                            \
        if (unit < groups) {                                                                                                     \
            triad_elements<VEC>(param, grad, exp_avg, exp_avg_sq, copy, unit * VEC, factor);                                     \
        } else if (unit - groups < len % VEC) {                                                                                  \
            triad_elements<1>(param, grad, exp_avg, exp_avg_sq, copy, unit + groups * (VEC - 1), factor);                        \
        }                                                                                                                        \
    }

TRIAD(f32_f32, float, float, NoCopy)
TRIAD(f32_bf16, float, Bf16, NoCopy)
TRIAD(f32_f16, float, F16, NoCopy)
TRIAD(bf16_bf16, Bf16, Bf16, NoCopy)
TRIAD(bf16_f32, Bf16, float, NoCopy)
TRIAD(f16_f16, F16, F16, NoCopy)
TRIAD(f16_f32, F16, float, NoCopy)
TRIAD(f32_f32_bf16, float, float, Bf16)
TRIAD(f32_bf16_bf16, float, Bf16, Bf16)
TRIAD(f32_f32_f16, float, float, F16)
TRIAD(f32_f16_f16, float, F16, F16)

// The DualAdam step as a framework without a fused kernel runs it, in f32 and without decay: x of `to` and y of `from` make the new
// `to`, for the operations in the order below, with a and b from StepCoeffs. With the rule's roundings, so the results have its bits.

template <u32 N, typename Operation>
__device__ __forceinline__ void pass_elements(float *to, const float *from, u64 start, Operation operation) {
    float x[N];
    float y[N];
    load_pieces<N>(to + start, x);
    load_pieces<N>(from + start, y);
#pragma unroll
    for (u32 k = 0; k < N; ++k) x[k] = operation(x[k], y[k]);
    store_pieces<N>(to + start, x);
}

// The compiler leaves out the loads of `to` that nothing uses.
#define PASS(NAME, OPERATION)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(BLOCK) NAME(float *to, const float *from, u64 len, float a, float b) {          \
        const auto operation = [=](float x, float y) { return OPERATION; };                                                      \
        const u64 unit = u64(blockIdx.x) * BLOCK + threadIdx.x;                                                                  \
        const u64 groups = len / VEC;                                                                                            \
        if (unit < groups) {                                                                                                     \
            pass_elements<VEC>(to, from, unit * VEC, operation);                                                                 \
        } else if (unit - groups < len % VEC) {                                                                                  \
            pass_elements<1>(to, from, unit + groups * (VEC - 1), operation);                                                    \
        }                                                                                                                        \
    }

PASS(unfused_exp_avg, __fmaf_rn(a, __fsub_rn(y, x), x))                    // m, g
PASS(unfused_exp_avg_sq, __fmaf_rn(a, __fmaf_rn(y, y, -x), x))             // v, g
PASS(unfused_root, __fsqrt_rn(y))                                          // root, v
PASS(unfused_correct, __fmul_rn(y, a))                                     // s, root
PASS(unfused_divide, __fdiv_rn(a, __fadd_rn(y, b)))                        // q, s
PASS(unfused_blend, __fmaf_rn(a, x, y))                                    // w in s's place, q
PASS(unfused_multiply, __fmul_rn(y, x))                                    // u in w's place, m
PASS(unfused_subtract, __fsub_rn(x, y))                                    // p, u

// A copy of 16-byte words whose loads are all under way before the first store: the driver's own copy is not always the fastest.
struct alignas(16) Words16 {
    u64 low;
    u64 high;
};

enum : u32 { UNROLLED = 8 };

extern "C" __global__ void __launch_bounds__(BLOCK) copy_unrolled(Words16 *to, const Words16 *from, u64 len) {
    const u64 first = u64(blockIdx.x) * (BLOCK * UNROLLED) + threadIdx.x;
    if (first + (UNROLLED - 1) * BLOCK < len) {
        Words16 words[UNROLLED];
#pragma unroll
        for (u32 i = 0; i < UNROLLED; ++i) words[i] = from[first + i * BLOCK];
#pragma unroll
        for (u32 i = 0; i < UNROLLED; ++i) to[first + i * BLOCK] = words[i];
    } else {
#pragma unroll 1
        for (u64 i = first; i < len; i += BLOCK) to[i] = from[i];
    }
}

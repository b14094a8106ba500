// What the benchmark measures the step against, beside the triad: the step with a kernel for each
// operation, and a copy. No part of the library.

#include "../../kernels/pack.cuh"
#include "../../kernels/update.cuh"

// The DualAdam step as a framework without a fused kernel runs it, in f32 and without decay: x of
// `to` and y of `from` make the new `to`, for the operations in the order below, with a and b from
// StepCoeffs. With the rule's roundings, so the results have its bits.

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
PASS(unfused_exp_avg_sq, saturate(__fmaf_rn(a, __fmaf_rn(y, y, -x), x)))   // v, g
PASS(unfused_root, __fsqrt_rn(y))                                          // root, v
PASS(unfused_correct, __fmul_rn(y, a))                                     // s, root
PASS(unfused_divide, __fdiv_rn(a, __fadd_rn(y, b)))                        // q, s
PASS(unfused_blend, __fmaf_rn(a, x, y))                                    // w in s's place, q
PASS(unfused_multiply, __fmul_rn(y, x))                                    // u in w's place, m
PASS(unfused_subtract, __fsub_rn(x, y))                                    // p, u

// A copy of 16-byte words whose loads are all under way before the first store: the driver's own
// copy is not always the fastest.
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

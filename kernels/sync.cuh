// Takes over into the masters what other code wrote into their parameters between two steps.
//
// A step leaves each parameter as the rounding of its master. Where the bits are others, the
// parameter was changed, and the master becomes its value. Elsewhere the master keeps its low bits.

#pragma once

#include "step.cuh"

// The same for N elements from `start` on, a group or one alone. Writes nothing if none changed.
template <u32 N, typename Param, typename Master>
__device__ __forceinline__ void sync_elements(const Param *param, Master *master, u64 start) {
    Param p[N];
    Master w[N];
    if constexpr (N == VEC) {
        load_by_phase(param + start, p);
    } else {
        load_pieces<N>(param + start, p);
    }
    load_pieces<N>(master + start, w);
    bool changed = false;
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        // Bits, not values: -0 is not 0. A NaN may count as changed each time; it stays a NaN.
        if (narrow<Param>(widen(w[k])).bits != p[k].bits) {
            w[k] = narrow<Master>(widen(p[k]));
            changed = true;
        }
    }
    if (changed) store_pieces<N>(master + start, w);
}

// FLAT_GROUPS units a thread, and blocks, as for step_flat. Groups start where `master` is aligned
// to VEC of its elements.
template <typename Param, typename Master>
__device__ __forceinline__ void sync_flat(const Param *param, Master *master, u64 len) {
    const u32 head = u32(min(u64((VEC - phase(master)) % VEC), len));
    const u64 groups = (len - head) / VEC, units = len - groups * (VEC - 1);
    u64 unit = u64(blockIdx.x) * (BLOCK * FLAT_GROUPS) + threadIdx.x;
#pragma unroll 1
    for (u32 i = 0; i < FLAT_GROUPS && unit < units; ++i, unit += BLOCK) {
        if (unit < groups) {
            sync_elements<VEC>(param, master, head + unit * VEC);
        } else {
            const u64 single = unit - groups;
            sync_elements<1>(param, master, single < head ? single : single + groups * VEC);
        }
    }
}

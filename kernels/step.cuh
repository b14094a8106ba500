// Sharing out the elements of flat buffers and of tensor lists among threads. What happens to an element is in update.cuh, how its
// bytes move in pack.cuh. Neither alignment nor grouping nor chunking changes a bit of the result.

#pragma once

#include "control.cuh"
#include "pack.cuh"
#include "update.cuh"

enum : u32 {
    // Coefficient sets that fit beside the other arguments in 4,096 bytes, CUDA's limit. No GPU has measured what they cost against
    // sets in device memory.
    MAX_SETS = 96,
};

struct StepSets {
    StepCoeffs set[MAX_SETS];
};

// C is the type of the copy of the new parameters, or NoCopy.
template <typename P, typename G, typename C>
struct Buffers {
    P *param;
    const G *grad;
    float *exp_avg;
    float *exp_avg_sq;
    C *copy;
    u64 len;
    bool sets_masters; // param is to be taken from copy
};

template <typename C>
struct Writes {
    enum : bool { copy = true };
};

template <>
struct Writes<NoCopy> {
    enum : bool { copy = false };
};

// Groups of VEC elements start where exp_avg is aligned to 16 bytes: it and exp_avg_sq, as a rule aligned alike, are most of the
// traffic. The up to VEC - 1 elements before the first group (the head) and after the last (the tail) go singly.
// A unit is a group or a single element, groups counted first.
struct Layout {
    u64 groups;
    u64 units;
    u32 head;
    bool aligned; // every buffer is aligned to VEC of its elements where exp_avg is
};

template <typename P, typename G, typename C>
__device__ __forceinline__ Layout layout_of(const Buffers<P, G, C> &b) {
    const u32 at = phase(b.exp_avg);
    bool aligned = phase(b.param) == at && phase(b.grad) == at && phase(b.exp_avg_sq) == at;
    if constexpr (Writes<C>::copy) aligned = aligned && phase(b.copy) == at;

    const u32 head = u32(min(u64((VEC - at) % VEC), b.len));
    const u64 groups = (b.len - head) / VEC;
    return {groups, b.len - groups * (VEC - 1), head, aligned};
}

// N elements on their way: a group, or a single element.
template <u32 N, typename P, typename G>
struct Elements {
    P p[N];
    G g[N];
    float m[N];
    float v[N];
};

// The parameters, or the masters that are taken from them.
template <u32 N, typename P, typename G, typename C>
__device__ __forceinline__ void load_param(const Buffers<P, G, C> &b, u64 start, P (&p)[N]) {
    if constexpr (Writes<C>::copy) {
        if (b.sets_masters) {
            C copy[N];
            load_pieces<N>(b.copy + start, copy);
#pragma unroll
            for (u32 k = 0; k < N; ++k) p[k] = widen(copy[k]);
            return;
        }
    }
    load_pieces<N>(b.param + start, p);
}

template <typename P, typename G, typename C>
__device__ __forceinline__ void load_param_by_phase(const Buffers<P, G, C> &b, u64 start, P (&p)[VEC]) {
    if constexpr (Writes<C>::copy) {
        if (b.sets_masters) {
            C copy[VEC];
            load_by_phase(b.copy + start, copy);
#pragma unroll
            for (u32 k = 0; k < VEC; ++k) p[k] = widen(copy[k]);
            return;
        }
    }
    load_by_phase(b.param + start, p);
}

template <u32 N, typename P, typename G, typename C>
__device__ __forceinline__ void load(const Buffers<P, G, C> &b, bool aligned, u64 start, Elements<N, P, G> &e) {
    if (N == 1 || aligned) {
        load_param<N>(b, start, e.p);
        load_pieces<N>(b.grad + start, e.g);
        load_pieces<N>(b.exp_avg + start, e.m);
        load_pieces<N>(b.exp_avg_sq + start, e.v);
    } else if constexpr (N == VEC) {
        load_param_by_phase(b, start, e.p);
        load_by_phase(b.grad + start, e.g);
        load_pieces<N>(b.exp_avg + start, e.m);
        load_by_phase(b.exp_avg_sq + start, e.v);
    }
}

// The step of elements that were loaded from `start` on.
template <bool DUAL, u32 N, typename P, typename G, typename C>
__device__ __forceinline__ void step(const Buffers<P, G, C> &b, bool aligned, u64 start, Elements<N, P, G> &e, const StepCoeffs &coeffs) {
    C copy[N];
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        float updated = widen(e.p[k]);
        update<DUAL>(coeffs, widen(e.g[k]), updated, e.m[k], e.v[k]);
        e.p[k] = narrow<P>(updated);
        copy[k] = narrow<C>(updated);
    }

    if (N == 1 || aligned) {
        store_pieces<N>(b.param + start, e.p);
        store_pieces<N>(b.exp_avg + start, e.m);
        store_pieces<N>(b.exp_avg_sq + start, e.v);
        if constexpr (Writes<C>::copy) store_pieces<N>(b.copy + start, copy);
    } else if constexpr (N == VEC) {
        store_by_phase(b.param + start, e.p);
        store_pieces<N>(b.exp_avg + start, e.m);
        store_by_phase(b.exp_avg_sq + start, e.v);
        if constexpr (Writes<C>::copy) store_by_phase(b.copy + start, copy);
    }
}

template <bool DUAL, u32 N, typename P, typename G, typename C>
__device__ __forceinline__ void step_elements(const Buffers<P, G, C> &b, bool aligned, u64 start, const StepCoeffs &coeffs) {
    Elements<N, P, G> e;
    load(b, aligned, start, e);
    step<DUAL>(b, aligned, start, e, coeffs);
}

template <bool DUAL, typename P, typename G, typename C>
__device__ __forceinline__ void step_unit(const Buffers<P, G, C> &b, const Layout &layout, u64 unit, const StepCoeffs &coeffs) {
    if (unit < layout.groups) {
        step_elements<DUAL, VEC>(b, layout.aligned, layout.head + unit * VEC, coeffs);
    } else {
        const u64 single = unit - layout.groups;
        const u64 element = single < layout.head ? single : single + layout.groups * VEC;
        step_elements<DUAL, 1>(b, layout.aligned, element, coeffs);
    }
}

// The units `unit`, `unit` + BLOCK, and so on, GROUPS of them, where they are. The first must be.
template <bool DUAL, u32 GROUPS, typename P, typename G, typename C>
__device__ __forceinline__ void step_units(const Buffers<P, G, C> &b, const Layout &layout, u64 unit, const StepCoeffs &coeffs) {
    if constexpr (GROUPS == 1) {
        step_unit<DUAL>(b, layout, unit, coeffs);
    } else if (unit + (GROUPS - 1) * BLOCK < layout.groups) {
        Elements<VEC, P, G> e[GROUPS];
        const u64 start = layout.head + unit * VEC;
        // One test for all groups: with one for each, a group's values are unpacked before the next group's loads are issued.
        if (layout.aligned) {
#pragma unroll
            for (u32 i = 0; i < GROUPS; ++i) load(b, true, start + i * BLOCK * VEC, e[i]);
        } else {
#pragma unroll
            for (u32 i = 0; i < GROUPS; ++i) load(b, false, start + i * BLOCK * VEC, e[i]);
        }
#pragma unroll
        for (u32 i = 0; i < GROUPS; ++i) step<DUAL>(b, layout.aligned, start + i * BLOCK * VEC, e[i], coeffs);
    } else {
#pragma unroll 1
        for (u32 i = 0; i < GROUPS && unit < layout.units; ++i, unit += BLOCK) step_unit<DUAL>(b, layout, unit, coeffs);
    }
}

// FLAT_GROUPS units a thread, blocks = ceil(len / (BLOCK * VEC * FLAT_GROUPS)) + 1: a head and a tail are 2 * (VEC - 1) units beyond
// len / VEC at most.
template <bool DUAL, typename P, typename G, typename C>
__device__ __forceinline__ void step_flat(const Buffers<P, G, C> &b, const StepCoeffs &coeffs) {
    const Layout layout = layout_of(b);
    const u64 unit = u64(blockIdx.x) * (BLOCK * FLAT_GROUPS) + threadIdx.x;
    if (unit < layout.units) step_units<DUAL, FLAT_GROUPS>(b, layout, unit, coeffs);
}

// What a list knows of a tensor: 64 bytes, aligned, in loads that do not wait for each other.
// Tensor i owns ceil(len[i] / CHUNK) chunks, from first_chunk on.
struct alignas(64) Record {
    Piece<2, void *> param_and_grad; // without a gradient the tensor is left alone
    Piece<2, void *> moments;
    void *copy;
    u64 len;
    u32 first_chunk;
    u32 set;
    u64 sets_masters; // whether the masters, which are param, are to be taken from the parameters, which are copy
};

__device__ __forceinline__ const u32 *spans_of(const Record *table, u32 n) { return reinterpret_cast<const u32 *>(table + n); }

__device__ __forceinline__ void prefetch(const void *address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)));
}

// Brings into the L2 cache what a later block reads of the table. A step of many small tensors moves more than the cache holds between
// two uses of a record, and the block would wait for memory twice before it knows its data.
__device__ __forceinline__ void prefetch_table(const Record *table, u32 n, u32 tensor) {
    if (AHEAD == 0 || threadIdx.x != 0) return;
    if (n - tensor > AHEAD) prefetch(table + tensor + AHEAD);
    if (gridDim.x - blockIdx.x > AHEAD) prefetch(spans_of(table, n) + (blockIdx.x + AHEAD) / SPAN);
}

// A list's table: a record a tensor and then, as u32, the tensor of every SPAN-th chunk. Empty tensors are the last, so that a span has the
// chunks of SPAN tensors at most.
__device__ __forceinline__ const Record &record_of(const Record *table, u32 n) {
    const u32 *const span_tensor = spans_of(table, n);
    const u32 first = span_tensor[blockIdx.x / SPAN];
    prefetch_table(table, n, first);
    u32 tensor = first;
    // A later chunk of the span may be of one of the tensors that follow. These loads do not wait for each other.
#pragma unroll
    for (u32 i = 1; i < SPAN; ++i) {
        if (first + i < n && table[first + i].first_chunk <= blockIdx.x) tensor = first + i;
    }
    return table[tensor];
}

// One chunk a block, blocks = all chunks.
template <typename P, typename G, typename C>
__device__ __forceinline__ void step_list(const Record *table, u32 n, const StepCoeffs *sets_device, const u32 *skips, const StepSets &sets) {
    const Record &record = record_of(table, n);
    const Piece<2, void *> param_and_grad = record.param_and_grad, moments = record.moments;
    void *const copy = record.copy;
    u64 len = record.len, sets_masters = record.sets_masters;
    u32 first_chunk = record.first_chunk, set = record.set;
    // In PTX all are loaded by here: the compiler would put loads behind the branches after which it needs them.
    asm volatile("" : "+l"(len), "+r"(first_chunk), "+r"(set));
    if constexpr (Writes<C>::copy) asm volatile("" : "+l"(sets_masters));
    const u32 skip = skips != nullptr ? skips[set] : u32(NOT_SKIPPED);
    if (skip != NOT_SKIPPED && skip != SETTING_MASTERS) return;

    const u64 begin = u64(blockIdx.x - first_chunk) * CHUNK;
    // An empty chunk, so that no load waits for a branch on another.
    const u64 most = param_and_grad.at[1] == nullptr ? 0 : CHUNK;
    const Buffers<P, G, C> b = {global<P>(param_and_grad.at[0]) + begin,
                                global<const G>(param_and_grad.at[1]) + begin,
                                global<float>(moments.at[0]) + begin,
                                global<float>(moments.at[1]) + begin,
                                global<C>(copy) + begin,
                                min(len - begin, most),
                                sets_masters != 0 || skip == SETTING_MASTERS};
    const Layout layout = layout_of(b);

    // Not by the choice of an address: the argument would be copied to memory to have one.
    StepCoeffs coeffs;
    if (sets_device != nullptr) {
        coeffs = sets_device[set];
    } else {
        coeffs = sets.set[set];
    }
#pragma unroll 1
    for (u32 unit = threadIdx.x; unit < layout.units; unit += BLOCK * LIST_GROUPS) {
        step_units<true, LIST_GROUPS>(b, layout, unit, coeffs);
    }
}

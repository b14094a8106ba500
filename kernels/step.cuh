// Distributes the elements of flat buffers and of tensor lists over threads. The arithmetic is in
// update.cuh, the loads and stores are in pack.cuh. Alignment, grouping and chunking change no bit
// of the result.

#pragma once

#include "control.cuh"
#include "pack.cuh"
#include "update.cuh"

enum : u32 {
    // The most coefficients that fit beside the other arguments in 4,096 bytes, CUDA's limit. No
    // GPU has measured their cost against that of coefficients in device memory.
    MAX_COEFFS = 96,
};

struct StepCoeffsArray {
    StepCoeffs at[MAX_COEFFS];
};

// The format of what is updated: the master if there is one, else the parameter.
template <typename Param, typename Master>
struct UpdatedOf {
    using Type = Master;
    enum : bool { IS_MASTER = true };
};

template <typename Param>
struct UpdatedOf<Param, NoMaster> {
    using Type = Param;
    enum : bool { IS_MASTER = false };
};

// The formats of a variant, by role.
template <typename ParamFormat, typename GradFormat, typename ExpAvgFormat, typename ExpAvgSqFormat, typename MasterFormat>
struct Formats {
    using Param = ParamFormat;
    using Grad = GradFormat;
    using ExpAvg = ExpAvgFormat;
    using ExpAvgSq = ExpAvgSqFormat;
    using Master = MasterFormat;
    using Updated = typename UpdatedOf<Param, Master>::Type;
    enum : bool { HAS_MASTER = UpdatedOf<Param, Master>::IS_MASTER };
};

// A tensor's buffers in the formats F, all of one length.
template <typename F>
struct Buffers {
    typename F::Param *param; // with a master: its rounding, only written unless sets_master
    const typename F::Grad *grad;
    typename F::ExpAvg *exp_avg;
    typename F::ExpAvgSq *exp_avg_sq;
    typename F::Master *master;
    u64 len;
    bool sets_master; // set master from param before the update
};

// Groups of VEC elements start where exp_avg is aligned to VEC of its elements: it and exp_avg_sq,
// which mostly have the same alignment, are most of the traffic. The up to VEC - 1 elements before
// the first group (the head) and after the last (the tail) are served singly. A unit is a group or
// a single element; groups are counted first.
struct Layout {
    u64 groups;
    u64 units;
    u32 head;
    bool aligned; // where exp_avg is aligned to VEC of its elements, so is every buffer
};

template <typename F>
__device__ __forceinline__ Layout layout_of(const Buffers<F> &b) {
    const u32 at = phase(b.exp_avg);
    bool aligned = phase(b.param) == at && phase(b.grad) == at && phase(b.exp_avg_sq) == at;
    if constexpr (F::HAS_MASTER) aligned = aligned && phase(b.master) == at;

    const u32 head = u32(min(u64((VEC - at) % VEC), b.len));
    const u64 groups = (b.len - head) / VEC;
    return {groups, b.len - groups * (VEC - 1), head, aligned};
}

// N elements in registers: a group, or a single element.
template <u32 N, typename F>
struct Elements {
    typename F::Updated p[N];
    typename F::Grad g[N];
    typename F::ExpAvg m[N];
    typename F::ExpAvgSq v[N];
};

// Loads what is updated: a parameter, a master, or a master that is set from its parameter.
template <u32 N, typename F>
__device__ __forceinline__ void load_updated(const Buffers<F> &b, u64 start, typename F::Updated (&p)[N]) {
    if constexpr (!F::HAS_MASTER) {
        load_pieces<N>(b.param + start, p);
    } else if (b.sets_master) {
        typename F::Param param[N];
        load_pieces<N>(b.param + start, param);
#pragma unroll
        for (u32 k = 0; k < N; ++k) p[k] = narrow<typename F::Master>(widen(param[k]));
    } else {
        load_pieces<N>(b.master + start, p);
    }
}

template <typename F>
__device__ __forceinline__ void load_updated_by_phase(const Buffers<F> &b, u64 start, typename F::Updated (&p)[VEC]) {
    if constexpr (!F::HAS_MASTER) {
        load_by_phase(b.param + start, p);
    } else if (b.sets_master) {
        typename F::Param param[VEC];
        load_by_phase(b.param + start, param);
#pragma unroll
        for (u32 k = 0; k < VEC; ++k) p[k] = narrow<typename F::Master>(widen(param[k]));
    } else {
        load_by_phase(b.master + start, p);
    }
}

template <u32 N, typename F>
__device__ __forceinline__ void load(const Buffers<F> &b, bool aligned, u64 start, Elements<N, F> &e) {
    if (N == 1 || aligned) {
        load_updated<N>(b, start, e.p);
        load_pieces<N>(b.grad + start, e.g);
        load_pieces<N>(b.exp_avg + start, e.m);
        load_pieces<N>(b.exp_avg_sq + start, e.v);
    } else if constexpr (N == VEC) {
        load_updated_by_phase(b, start, e.p);
        load_by_phase(b.grad + start, e.g);
        load_pieces<N>(b.exp_avg + start, e.m);
        load_by_phase(b.exp_avg_sq + start, e.v);
    }
}

// Steps and stores elements that were loaded from `start` on.
template <bool DUAL, u32 N, typename F>
__device__ __forceinline__ void step(const Buffers<F> &b, bool aligned, u64 start, Elements<N, F> &e, const StepCoeffs &coeffs) {
    typename F::Param param[N];
    typename F::Master master[N];
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        float p = widen(e.p[k]);
        float m = widen(e.m[k]);
        float v = widen(e.v[k]);
        update<DUAL>(coeffs, widen(e.g[k]), p, m, v);
        param[k] = narrow<typename F::Param>(p);
        e.m[k] = narrow<typename F::ExpAvg>(m);
        e.v[k] = narrow<typename F::ExpAvgSq>(v);
        if constexpr (F::HAS_MASTER) master[k] = narrow<typename F::Master>(p);
    }

    if (N == 1 || aligned) {
        if constexpr (F::HAS_MASTER) store_pieces<N>(b.master + start, master);
        store_pieces<N>(b.param + start, param);
        store_pieces<N>(b.exp_avg + start, e.m);
        store_pieces<N>(b.exp_avg_sq + start, e.v);
    } else if constexpr (N == VEC) {
        if constexpr (F::HAS_MASTER) store_by_phase(b.master + start, master);
        store_by_phase(b.param + start, param);
        store_pieces<N>(b.exp_avg + start, e.m);
        store_by_phase(b.exp_avg_sq + start, e.v);
    }
}

template <bool DUAL, u32 N, typename F>
__device__ __forceinline__ void step_elements(const Buffers<F> &b, bool aligned, u64 start, const StepCoeffs &coeffs) {
    Elements<N, F> e;
    load(b, aligned, start, e);
    step<DUAL>(b, aligned, start, e, coeffs);
}

template <bool DUAL, typename F>
__device__ __forceinline__ void step_unit(const Buffers<F> &b, const Layout &layout, u64 unit, const StepCoeffs &coeffs) {
    if (unit < layout.groups) {
        step_elements<DUAL, VEC>(b, layout.aligned, layout.head + unit * VEC, coeffs);
    } else {
        const u64 single = unit - layout.groups;
        const u64 element = single < layout.head ? single : single + layout.groups * VEC;
        step_elements<DUAL, 1>(b, layout.aligned, element, coeffs);
    }
}

// Steps the units `unit`, `unit` + BLOCK, and so on, GROUPS of them, as far as they exist. The
// first must exist.
template <bool DUAL, u32 GROUPS, typename F>
__device__ __forceinline__ void step_units(const Buffers<F> &b, const Layout &layout, u64 unit, const StepCoeffs &coeffs) {
    if constexpr (GROUPS == 1) {
        step_unit<DUAL>(b, layout, unit, coeffs);
    } else if (unit + (GROUPS - 1) * BLOCK < layout.groups) {
        Elements<VEC, F> e[GROUPS];
        const u64 start = layout.head + unit * VEC;
        // One test for all groups. With a test for each, a group's values would be unpacked before
        // the next group's loads are issued.
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

// FLAT_GROUPS units for each thread, and ceil(len / (BLOCK * VEC * FLAT_GROUPS)) + 1 blocks: head
// and tail add at most 2 * (VEC - 1) units to len / VEC.
template <bool DUAL, typename F>
__device__ __forceinline__ void step_flat(const Buffers<F> &b, const StepCoeffs &coeffs) {
    const Layout layout = layout_of(b);
    const u64 unit = u64(blockIdx.x) * (BLOCK * FLAT_GROUPS) + threadIdx.x;
    if (unit < layout.units) step_units<DUAL, FLAT_GROUPS>(b, layout, unit, coeffs);
}

// The descriptor of a tensor in a list: 64 bytes, aligned, read in loads that do not depend on each
// other. Tensor i owns ceil(len[i] / CHUNK) chunks, from first_chunk on.
struct alignas(64) Record {
    Piece<2, void *> param_and_grad; // without a gradient the tensor is skipped
    Piece<2, void *> moments;        // exp_avg and exp_avg_sq
    void *master;
    u64 len;
    u32 first_chunk;
    u32 coeffs_index;
    u64 sets_master; // whether to set the masters from the parameters before the update
};

__device__ __forceinline__ const u32 *spans_of(const Record *table, u32 n) { return reinterpret_cast<const u32 *>(table + n); }

__device__ __forceinline__ void prefetch(const void *address) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(address)));
}

// Prefetches into the L2 cache what a later block reads of the table. A step of many small tensors
// moves more between two uses of a record than the cache holds; without a prefetch, a block would
// wait for memory twice before it knows its data.
__device__ __forceinline__ void prefetch_table(const Record *table, u32 n, u32 tensor) {
    if (AHEAD == 0 || threadIdx.x != 0) return;
    if (n - tensor > AHEAD) prefetch(table + tensor + AHEAD);
    if (gridDim.x - blockIdx.x > AHEAD) prefetch(spans_of(table, n) + (blockIdx.x + AHEAD) / SPAN);
}

// The record of this block's tensor. A list's table has a record for each tensor and then, as u32,
// the tensor of every SPAN-th chunk. Empty tensors come last, so that a span has chunks of at most
// SPAN tensors.
__device__ __forceinline__ const Record &record_of(const Record *table, u32 n) {
    const u32 *const span_tensor = spans_of(table, n);
    const u32 first = span_tensor[blockIdx.x / SPAN];
    prefetch_table(table, n, first);
    u32 tensor = first;
    // A later chunk of the span may belong to one of the tensors that follow. These loads do not
    // depend on each other.
#pragma unroll
    for (u32 i = 1; i < SPAN; ++i) {
        if (first + i < n && table[first + i].first_chunk <= blockIdx.x) tensor = first + i;
    }
    return table[tensor];
}

// One chunk for each block, and as many blocks as chunks.
template <typename F>
__device__ __forceinline__ void step_list(const Record *table, u32 n, const StepCoeffs *coeffs_on_device, const u32 *skips,
                                          const StepCoeffsArray &coeffs_by_value) {
    const Record &record = record_of(table, n);
    const Piece<2, void *> param_and_grad = record.param_and_grad, moments = record.moments;
    void *const master = record.master;
    u64 len = record.len, sets_master = record.sets_master;
    u32 first_chunk = record.first_chunk, coeffs_index = record.coeffs_index;
    // Forces these loads to be before this point in the PTX. The compiler would move them behind
    // the branches after which it needs them.
    asm volatile("" : "+l"(len), "+r"(first_chunk), "+r"(coeffs_index));
    if constexpr (F::HAS_MASTER) asm volatile("" : "+l"(sets_master));
    const u32 skip = skips != nullptr ? skips[coeffs_index] : u32(NOT_SKIPPED);
    if (skip != NOT_SKIPPED && skip != SETTING_MASTERS) return;

    const u64 begin = u64(blockIdx.x - first_chunk) * CHUNK;
    // Without a gradient the chunk is empty. A branch would make other loads wait for this one.
    const u64 most = param_and_grad.at[1] == nullptr ? 0 : CHUNK;
    const Buffers<F> b = {global<typename F::Param>(param_and_grad.at[0]) + begin,
                          global<const typename F::Grad>(param_and_grad.at[1]) + begin,
                          global<typename F::ExpAvg>(moments.at[0]) + begin,
                          global<typename F::ExpAvgSq>(moments.at[1]) + begin,
                          global<typename F::Master>(master) + begin,
                          min(len - begin, most),
                          sets_master != 0 || skip == SETTING_MASTERS};
    const Layout layout = layout_of(b);

    // Not by choosing an address: the compiler would copy the argument to memory to get its
    // address.
    StepCoeffs coeffs;
    if (coeffs_on_device != nullptr) {
        coeffs = coeffs_on_device[coeffs_index];
    } else {
        coeffs = coeffs_by_value.at[coeffs_index];
    }
#pragma unroll 1
    for (u32 unit = threadIdx.x; unit < layout.units; unit += BLOCK * LIST_GROUPS) {
        step_units<true, LIST_GROUPS>(b, layout, unit, coeffs);
    }
}

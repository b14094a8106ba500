// Sharing out the elements of flat buffers and of tensor lists among threads. What happens to an element is in update.cuh, how its
// bytes move in pack.cuh. Neither alignment nor grouping nor chunking changes a bit of the result.

#pragma once

#include "control.cuh"
#include "pack.cuh"
#include "update.cuh"

enum : u32 {
    // Threads. Tuned on nothing: no GPU has run it.
    BLOCK = 256,
    // At least. Reckoned: 1,536 threads of 40 registers have enough loads in flight, and with 8 blocks ptxas spills. Tuned on
    // nothing: no GPU has run it.
    BLOCKS_PER_SM = 6,
    // Elements of a list that one block serves; a multiple of BLOCK * VEC. Reckoned in docs/performance.md. Tuned on nothing: no
    // GPU has run it.
    CHUNK = 4096,
    // Chunks that share an entry of a list's table, which would else have four bytes for each. Tuned on nothing: no GPU has run it.
    SPAN = 8,
    // Coefficient sets that fit beside the other arguments in 4,096 bytes, CUDA's limit; what they cost against sets in device
    // memory was tuned on nothing: no GPU has run it.
    MAX_SETS = 96,
    // Blocks that set one tensor's masters, once. Tuned on nothing: no GPU has run it.
    MASTERS_BLOCKS = 16,
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
// A unit is a group or a single element, groups counted first; a thread takes one unit at a time.
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

// One step of the N elements from `start` on: a group, or a single element.
template <bool DUAL, u32 N, typename P, typename G, typename C>
__device__ __forceinline__ void step_elements(const Buffers<P, G, C> &b, bool aligned, u64 start, const StepCoeffs &coeffs) {
    P p[N];
    G g[N];
    float m[N];
    float v[N];
    if (N == 1 || aligned) {
        load_pieces<N>(b.param + start, p);
        load_pieces<N>(b.grad + start, g);
        load_pieces<N>(b.exp_avg + start, m);
        load_pieces<N>(b.exp_avg_sq + start, v);
    } else if constexpr (N == VEC) {
        load_by_phase(b.param + start, p);
        load_by_phase(b.grad + start, g);
        load_pieces<N>(b.exp_avg + start, m);
        load_by_phase(b.exp_avg_sq + start, v);
    }

    C copy[N];
#pragma unroll
    for (u32 k = 0; k < N; ++k) {
        float updated = widen(p[k]);
        update<DUAL>(coeffs, widen(g[k]), updated, m[k], v[k]);
        p[k] = narrow<P>(updated);
        copy[k] = narrow<C>(updated);
    }

    if (N == 1 || aligned) {
        store_pieces<N>(b.param + start, p);
        store_pieces<N>(b.exp_avg + start, m);
        store_pieces<N>(b.exp_avg_sq + start, v);
        if constexpr (Writes<C>::copy) store_pieces<N>(b.copy + start, copy);
    } else if constexpr (N == VEC) {
        store_by_phase(b.param + start, p);
        store_pieces<N>(b.exp_avg + start, m);
        store_by_phase(b.exp_avg_sq + start, v);
        if constexpr (Writes<C>::copy) store_by_phase(b.copy + start, copy);
    }
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

// One unit a thread, blocks = ceil(len / (BLOCK * VEC)) + 1: a head and a tail are 2 * (VEC - 1) units beyond len / VEC at most.
template <bool DUAL, typename P, typename G, typename C>
__device__ __forceinline__ void step_flat(const Buffers<P, G, C> &b, const StepCoeffs &coeffs) {
    const Layout layout = layout_of(b);
    const u64 unit = u64(blockIdx.x) * BLOCK + threadIdx.x;
    if (unit < layout.units) step_unit<DUAL>(b, layout, unit, coeffs);
}

// The chunk of a list that this block serves. The table holds, for n tensors and as arrays one after the other,
//   u64: param[n] grad[n] exp_avg[n] exp_avg_sq[n] copy[n] len[n]    u32: first_chunk[n] set[n] span_tensor[spans]
// Tensor i owns ceil(len[i] / CHUNK) chunks, from first_chunk[i] on. The tensor of every SPAN-th chunk is in span_tensor; a later one of
// the span may be of one of the tensors that follow. Empty tensors are the last.
template <typename P, typename G, typename C>
__device__ __forceinline__ Buffers<P, G, C> chunk_of(const u64 *table, u64 n, u32 &set) {
    const u32 *const first_chunk = reinterpret_cast<const u32 *>(table + 6 * n);
    const u32 first = first_chunk[2 * n + blockIdx.x / SPAN];
    u32 tensor = first;
    // Loads that do not wait for each other.
#pragma unroll
    for (u32 i = 1; i < SPAN; ++i) {
        if (first + i < n && first_chunk[first + i] <= blockIdx.x) tensor = first + i;
    }
    const u64 begin = u64(blockIdx.x - first_chunk[tensor]) * CHUNK;
    set = first_chunk[n + tensor];

    const u64 *const field = table + tensor;
    P *const param = load_address<P>(field);
    const G *const grad = load_address<const G>(field + n);
    float *const exp_avg = load_address<float>(field + 2 * n);
    float *const exp_avg_sq = load_address<float>(field + 3 * n);
    C *const copy = load_address<C>(field + 4 * n);
    const u64 left = field[5 * n] - begin;
    // Without a gradient the tensor is left alone: an empty chunk, so that no load waits for a branch on another.
    const u64 most = grad == nullptr ? 0 : CHUNK;
    return {param + begin, grad + begin, exp_avg + begin, exp_avg_sq + begin, copy + begin, min(left, most)};
}

// One chunk a block, blocks = all chunks.
template <typename P, typename G, typename C>
__device__ __forceinline__ void step_list(const u64 *table, u32 tensors, const StepCoeffs *sets_device, const u32 *skips,
                                          const StepSets &sets) {
    u32 set;
    const Buffers<P, G, C> b = chunk_of<P, G, C>(table, tensors, set);
    // Not an empty chunk as well: on sm_75 that takes 20 registers more.
    if (skips != nullptr && skips[set] != NOT_SKIPPED) return;
    const Layout layout = layout_of(b);

    // Not by the choice of an address: the argument would be copied to memory to have one.
    StepCoeffs coeffs;
    if (sets_device != nullptr) {
        coeffs = sets_device[set];
    } else {
        coeffs = sets.set[set];
    }
#pragma unroll 1
    for (u32 unit = threadIdx.x; unit < layout.units; unit += BLOCK) step_unit<true>(b, layout, unit, coeffs);
}

// Sets the masters of a table's tensors whose first update this is: `param` there, from the parameters, which are `copy`.
// MASTERS_BLOCKS blocks a tensor.
template <typename C>
__device__ __forceinline__ void set_masters(const u64 *table, u64 n, const ControlState *states) {
    const u32 tensor = blockIdx.x / MASTERS_BLOCKS;
    const u32 set = reinterpret_cast<const u32 *>(table + 6 * n)[n + tensor];
    if (states[set].masters != MASTERS_BEING_SET) return;

    const u64 *const field = table + tensor;
    float *const master = load_address<float>(field);
    const C *const param = load_address<const C>(field + 4 * n);
    const u64 len = field[5 * n];
    const u64 first = u64(blockIdx.x % MASTERS_BLOCKS) * BLOCK + threadIdx.x;
#pragma unroll 1
    for (u64 k = first; k < len; k += MASTERS_BLOCKS * BLOCK) master[k] = widen(param[k]);
}

// Moving bytes: the 16-bit formats, and groups of elements in pieces as wide as an address allows. None of the rule's arithmetic.
//
// No CUDA header is used, so that NVRTC compiles this without any.

#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// Elements that a thread handles together: one 16-byte access of a float stream, one 8-byte access of a 16-bit stream.
// Every access of a warp then covers one unbroken range. Eight would make 16 bytes of the 16-bit streams, but split the float
// streams beside them (the moments always) into accesses 32 bytes apart, whose stores fill half of each sector that they touch.
// Tuned on nothing: no GPU has run it.
// An enumerator, since NVRTC would put a constexpr variable into the PTX.
enum : u32 { VEC = 4 };

struct Bf16 {
    u16 bits;
};

struct F16 {
    u16 bits;
};

// Stands for the copy that most kernels don't write.
struct NoCopy {};

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ float widen(Bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

__device__ __forceinline__ float widen(F16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

// Narrowing rounds to nearest even, keeps subnormals, overflows to infinity, and turns a NaN into a quiet NaN.
template <typename T>
__device__ __forceinline__ T narrow(float x);

template <>
__device__ __forceinline__ float narrow(float x) {
    return x;
}

template <>
__device__ __forceinline__ NoCopy narrow(float) {
    return {};
}

// In integers: the instruction for it needs sm_80.
template <>
__device__ __forceinline__ Bf16 narrow(float x) {
    const u32 bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const u32 odd = (bits >> 16) & 1;
    const u32 rounded = nan ? bits | 0x400000u : bits + 0x7fffu + odd;
    return {u16(rounded >> 16)};
}

template <>
__device__ __forceinline__ F16 narrow(float x) {
    F16 narrowed;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(x));
    return narrowed;
}

// Where an address stands between two multiples of VEC elements, in elements.
template <typename T>
__device__ __forceinline__ u32 phase(const T *address) {
    return u32(u64(address) / sizeof(T)) % VEC;
}

// What one access moves: N elements.
template <u32 N, typename T>
struct alignas(N * sizeof(T)) Piece {
    T at[N];
};

// A piece of a 16-bit format as a number.
template <u32 N>
struct Word;

template <>
struct Word<2> {
    using Type = u32;
};

template <>
struct Word<4> {
    using Type = u64;
};

// Moves COUNT elements in pieces of N.
template <u32 N, u32 COUNT, typename T>
__device__ __forceinline__ void load_pieces(const T *from, T (&to)[COUNT]) {
#pragma unroll
    for (u32 k = 0; k < COUNT; k += N) {
        const Piece<N, T> piece = *reinterpret_cast<const Piece<N, T> *>(from + k);
#pragma unroll
        for (u32 j = 0; j < N; ++j) to[k + j] = piece.at[j];
    }
}

template <u32 N, u32 COUNT, typename T>
__device__ __forceinline__ void store_pieces(T *to, const T (&from)[COUNT]) {
#pragma unroll
    for (u32 k = 0; k < COUNT; k += N) {
        if constexpr (sizeof(T) == 2 && N > 1) {
            // The compiler splits a piece into its elements where the memory is only written.
            using Bits = typename Word<N>::Type;
            Bits word = 0;
#pragma unroll
            for (u32 j = 0; j < N; ++j) word |= Bits(from[k + j].bits) << (16 * j);
            *reinterpret_cast<Bits *>(to + k) = word;
        } else {
            Piece<N, T> piece;
#pragma unroll
            for (u32 j = 0; j < N; ++j) piece.at[j] = from[k + j];
            *reinterpret_cast<Piece<N, T> *>(to + k) = piece;
        }
    }
}

// Moves a group in the widest pieces that its address allows.
template <typename T>
__device__ __forceinline__ void load_by_phase(const T *from, T (&to)[VEC]) {
    const u32 off = phase(from);
    if (off == 0) {
        load_pieces<VEC>(from, to);
    } else if (off == VEC / 2) {
        load_pieces<VEC / 2>(from, to);
    } else {
        load_pieces<1>(from, to);
    }
}

template <typename T>
__device__ __forceinline__ void store_by_phase(T *to, const T (&from)[VEC]) {
    const u32 off = phase(to);
    if (off == 0) {
        store_pieces<VEC>(to, from);
    } else if (off == VEC / 2) {
        store_pieces<VEC / 2>(to, from);
    } else {
        store_pieces<1>(to, from);
    }
}

// Reads an address of global memory from a table. The compiler is told so: it would take accesses through it as generic.
template <typename T>
__device__ __forceinline__ T *load_address(const u64 *from) {
    void *const address = *reinterpret_cast<void *const *>(from);
    __builtin_assume(__isGlobal(address));
    return static_cast<T *>(address);
}

// Loads and stores: the 16-bit formats, and groups of elements in pieces as wide as an address
// allows. The arithmetic of the rule is in update.cuh.
//
// No CUDA header is included, so that NVRTC compiles this without any.

#pragma once

#include "tuning.cuh"

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// Elements in one access: 16 bytes of a float stream, 8 bytes of a 16-bit stream. Every access of a
// warp then covers one contiguous range. With eight, a 16-bit stream would have accesses of 16
// bytes. But the float streams beside it, such as the moments of every variant, would be split into
// accesses 32 bytes apart, and their stores would fill half of each sector. An enumerator, since
// NVRTC would put a constexpr variable into the PTX.
enum : u32 { VEC = 4 };

struct Bf16 {
    u16 bits;
};

struct F16 {
    u16 bits;
};

// The format of the master in variants without masters.
struct NoMaster {};

__device__ __forceinline__ float widen(float x) { return x; }

__device__ __forceinline__ float widen(Bf16 x) { return __uint_as_float(u32(x.bits) << 16); }

__device__ __forceinline__ float widen(F16 x) {
    float wide;
    asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
    return wide;
}

// Narrowing rounds to nearest even, keeps subnormals, overflows to infinity, and makes a NaN a
// quiet NaN.
template <typename T>
__device__ __forceinline__ T narrow(float x);

template <>
__device__ __forceinline__ float narrow(float x) {
    return x;
}

template <>
__device__ __forceinline__ Bf16 narrow(float x) {
#if NATIVE_BF16
    Bf16 narrowed;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(x));
    return narrowed;
#else
    // Uses integers, since sm_75 has no instruction for it.
    const u32 bits = __float_as_uint(x);
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const u32 odd = (bits >> 16) & 1;
    const u32 rounded = nan ? bits | 0x400000u : bits + 0x7fffu + odd;
    return {u16(rounded >> 16)};
#endif
}

template <>
__device__ __forceinline__ F16 narrow(float x) {
    F16 narrowed;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrowed.bits) : "f"(x));
    return narrowed;
}

// The offset of an address from the last multiple of VEC elements, in elements.
template <typename T>
__device__ __forceinline__ u32 phase(const T *address) {
    return u32(u64(address) / sizeof(T)) % VEC;
}

// The elements of one access: N of them.
template <u32 N, typename T>
struct alignas(N * sizeof(T)) Piece {
    T at[N];
};

// The bits of a piece, as one integer or as two.
template <u32 BYTES>
struct Word;

template <>
struct Word<2> {
    using Type = u16;
};

template <>
struct Word<4> {
    using Type = u32;
};

template <>
struct Word<8> {
    using Type = u64;
};

struct alignas(16) Words {
    u64 low;
    u64 high;
};

template <>
struct Word<16> {
    using Type = Words;
};

#if STREAMING >= 1
// Streaming accesses. Without a header, NVRTC has no intrinsics for them.
__device__ __forceinline__ void load_streaming(const u16 *from, u16 &to) { asm volatile("ld.global.cs.u16 %0, [%1];" : "=h"(to) : "l"(from)); }
__device__ __forceinline__ void load_streaming(const u32 *from, u32 &to) { asm volatile("ld.global.cs.u32 %0, [%1];" : "=r"(to) : "l"(from)); }
__device__ __forceinline__ void load_streaming(const u64 *from, u64 &to) { asm volatile("ld.global.cs.u64 %0, [%1];" : "=l"(to) : "l"(from)); }
__device__ __forceinline__ void load_streaming(const Words *from, Words &to) {
    asm volatile("ld.global.cs.v2.u64 {%0, %1}, [%2];" : "=l"(to.low), "=l"(to.high) : "l"(from));
}

__device__ __forceinline__ void store_streaming(u16 *to, u16 word) { asm volatile("st.global.cs.u16 [%0], %1;" ::"l"(to), "h"(word) : "memory"); }
__device__ __forceinline__ void store_streaming(u32 *to, u32 word) { asm volatile("st.global.cs.u32 [%0], %1;" ::"l"(to), "r"(word) : "memory"); }
__device__ __forceinline__ void store_streaming(u64 *to, u64 word) { asm volatile("st.global.cs.u64 [%0], %1;" ::"l"(to), "l"(word) : "memory"); }
__device__ __forceinline__ void store_streaming(Words *to, Words word) {
    asm volatile("st.global.cs.v2.u64 [%0], {%1, %2};" ::"l"(to), "l"(word.low), "l"(word.high) : "memory");
}
#endif

template <u32 N, typename T>
__device__ __forceinline__ Piece<N, T> load_piece(const T *from) {
#if STREAMING >= 2
    typename Word<sizeof(Piece<N, T>)>::Type word;
    load_streaming(reinterpret_cast<decltype(word) const *>(from), word);
    Piece<N, T> piece;
    memcpy(&piece, &word, sizeof(piece));
    return piece;
#else
    return *reinterpret_cast<const Piece<N, T> *>(from);
#endif
}

template <typename W, typename T>
__device__ __forceinline__ void store_word(T *to, W word) {
#if STREAMING >= 1
    store_streaming(reinterpret_cast<W *>(to), word);
#else
    *reinterpret_cast<W *>(to) = word;
#endif
}

// Moves COUNT elements in pieces of N.
template <u32 N, u32 COUNT, typename T>
__device__ __forceinline__ void load_pieces(const T *from, T (&to)[COUNT]) {
#pragma unroll
    for (u32 k = 0; k < COUNT; k += N) {
        const Piece<N, T> piece = load_piece<N>(from + k);
#pragma unroll
        for (u32 j = 0; j < N; ++j) to[k + j] = piece.at[j];
    }
}

template <u32 N, u32 COUNT, typename T>
__device__ __forceinline__ void store_pieces(T *to, const T (&from)[COUNT]) {
#pragma unroll
    for (u32 k = 0; k < COUNT; k += N) {
        if constexpr (sizeof(T) == 2 && N > 1) {
            // As one integer: the compiler would split a piece into elements if the memory is only
            // written.
            using Bits = typename Word<N * sizeof(T)>::Type;
            Bits word = 0;
#pragma unroll
            for (u32 j = 0; j < N; ++j) word |= Bits(from[k + j].bits) << (16 * j);
            store_word(to + k, word);
        } else {
            Piece<N, T> piece;
#pragma unroll
            for (u32 j = 0; j < N; ++j) piece.at[j] = from[k + j];
#if STREAMING >= 1
            typename Word<sizeof(piece)>::Type word;
            memcpy(&word, &piece, sizeof(piece));
            store_word(to + k, word);
#else
            store_word(to + k, piece);
#endif
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

// An address of global memory that was read from memory. Tells the compiler so, which would
// otherwise use generic accesses. The compiler accepts this for a pointer only, not for an integer
// that is cast to one.
template <typename T>
__device__ __forceinline__ T *global(void *address) {
    __builtin_assume(__isGlobal(address));
    return static_cast<T *>(address);
}

template <typename T>
__device__ __forceinline__ T *load_address(const u64 *from) {
    return global<T>(*reinterpret_cast<void *const *>(from));
}

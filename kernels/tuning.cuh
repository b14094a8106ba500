// The constants that may be tuned. A define can set each of them, for sweeps. No bit of a result
// depends on any of them.
//
// docs/src/performance/cuda.md derives them. No GPU has confirmed them.

#pragma once

// Threads in a block.
#ifndef BLOCK
#define BLOCK 256
#endif

// The least number of blocks that fit on a multiprocessor, for flat steps and for lists: 4 blocks
// of 256 threads leave 64 registers to a thread, 5 blocks leave 48.
#ifndef FLAT_BLOCKS_PER_SM
#define FLAT_BLOCKS_PER_SM 4
#endif
#ifndef LIST_BLOCKS_PER_SM
#define LIST_BLOCKS_PER_SM 5
#endif

// Groups of VEC elements that a thread serves together: it issues the loads of all groups before it
// uses the first.
#ifndef FLAT_GROUPS
#define FLAT_GROUPS 2
#endif
#ifndef LIST_GROUPS
#define LIST_GROUPS 1
#endif

// Elements in a chunk, which one block of a list serves. A multiple of BLOCK * VEC * LIST_GROUPS.
#ifndef CHUNK
#define CHUNK 4096
#endif

// Chunks that share an entry in a list's table. With 1, the entry is the chunk's tensor, and there
// is no search.
#ifndef SPAN
#define SPAN 1
#endif

// How many blocks ahead a block of a list prefetches the table into the L2 cache: more than run at
// a time. 0 for no prefetch.
#ifndef AHEAD
#define AHEAD 2048
#endif

// Cache hints: 0 for none, 1 for streaming stores, 2 for streaming loads and stores (evict first).
#ifndef STREAMING
#define STREAMING 0
#endif

// 1 to narrow to bf16 with the instruction for it, which needs sm_80.
#ifndef NATIVE_BF16
#define NATIVE_BF16 0
#endif

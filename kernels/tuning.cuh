// Constants to tune. Sweeps set them by defines; no bit of a result depends on them.
//
// Derived in docs/src/performance/cuda.md. No GPU has confirmed them.

#pragma once

// Threads of a block.
#ifndef BLOCK
#define BLOCK 256
#endif

// The least number of blocks that a multiprocessor must be able to hold, for flat steps and for
// lists: 4 of 256 threads leave 64 registers to each, 5 leave 48.
#ifndef FLAT_BLOCKS_PER_SM
#define FLAT_BLOCKS_PER_SM 4
#endif
#ifndef LIST_BLOCKS_PER_SM
#define LIST_BLOCKS_PER_SM 5
#endif

// Groups of VEC elements that a thread takes together: it issues the loads of all before it uses
// the first.
#ifndef FLAT_GROUPS
#define FLAT_GROUPS 2
#endif
#ifndef LIST_GROUPS
#define LIST_GROUPS 1
#endif

// Elements of a list that one block serves; a multiple of BLOCK * VEC * LIST_GROUPS.
#ifndef CHUNK
#define CHUNK 4096
#endif

// Chunks that share an entry of a list's table. With 1 the entry is the chunk's tensor, and nothing
// is searched.
#ifndef SPAN
#define SPAN 1
#endif

// How many blocks ahead a block of a list brings the table into the L2 cache: more blocks than run
// at a time with these constants. 0 for no prefetch.
#ifndef AHEAD
#define AHEAD 2048
#endif

// Cache hints: 0 for none, 1 for streaming stores, 2 for streaming loads and stores (evict first).
#ifndef STREAMING
#define STREAMING 0
#endif

// 1 to narrow to bf16 by its own instruction, which needs sm_80.
#ifndef NATIVE_BF16
#define NATIVE_BF16 0
#endif

//! dualadam: the DualAdam optimizer's step, on the CPU and on CUDA.
//!
//! Status. Every function that can fail returns a `dualadam_status`, 0 for success.
//! `dualadam_last_error` copies out what was wrong. A call that fails has written nothing, unless
//! the description of the error says otherwise.
//!
//! Errors. A function may return these for each argument of such a kind. The functions' own lists
//! leave them out:
//!
//! - A pointer: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`.
//! - A struct: also `DUALADAM_STATUS_SIZE`.
//! - An array: also `DUALADAM_STATUS_TOO_MANY` and `DUALADAM_STATUS_MEMORY` for one beyond all
//!   memory. An empty array may be null. The structs of an array have one size.
//! - A config: also what `dualadam_config_validate` returns.
//! - A handle: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`.
//!
//! `DUALADAM_STATUS_PANIC` may come from any function. It is a bug of the library.
//!
//! Structs begin with their size, so that they can grow: a program works with a later library. The
//! library fills them in first, with the size that the program's header knows, as in
//! `dualadam_config_init(&config, sizeof config)`. A struct whose size is larger than the library
//! knows must have zeros beyond that.
//!
//! Handles are numbers. One that was freed is refused with `DUALADAM_STATUS_STALE_HANDLE`, whatever
//! was made since. A call that is under way in another thread when its handle is freed goes on to
//! its end.
//!
//! Pointers. The library keeps nothing that a pointer leads to after a call, except addresses of
//! device memory. It checks what can be checked of a pointer: null, alignment, overlap, buffers
//! beyond the last address. The caller must give memory of the stated length.
//!
//! Threads. All functions may be called from any thread. Calls with the same state, list or control
//! wait for each other. Structs that a call only reads may be read by other calls at the same time.
//!
//! Streams. `stream` is a CUstream or a cudaStream_t; null is the default stream.

// Checks and status codes, no logic: that is the library's. A panic ends at the border, as a
// status.

#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)
)]
#![expect(non_camel_case_types, reason = "the names are those of C")]

mod arguments;
mod config;
mod cpu;
mod cuda;
mod handles;
mod init;
mod results;
mod state;
mod status;
mod types;
mod version;

pub use config::*;
pub use cpu::*;
pub use cuda::*;
pub use handles::{dualadam_cuda_control, dualadam_cuda_kernels, dualadam_cuda_list, dualadam_state};
pub use init::*;
pub use state::*;
pub use status::*;
pub use types::*;
pub use version::*;

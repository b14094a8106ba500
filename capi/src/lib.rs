//! dualadam: the DualAdam optimizer's step, on the CPU and on CUDA.
//!
//! Status. Every function that can fail returns a `dualadam_status`, 0 for success.
//! `dualadam_last_error` copies out what was wrong. A call that fails has written, changed and
//! enqueued nothing, unless the description of the error says otherwise.
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
//! - A path, which is in UTF-8: `DUALADAM_STATUS_UTF8`.
//! - The number of a device, a group or a tensor, from 0: `DUALADAM_STATUS_POSITION`.
//! - A stream: `DUALADAM_STATUS_CUDA_CONTEXT` for one of another context than the kernels'.
//!
//! Any function that uses the CUDA driver may return `DUALADAM_STATUS_CUDA_DRIVER`, also for
//! earlier work on the device that failed, and `DUALADAM_STATUS_CUDA_PTX` where it loads kernels.
//! `DUALADAM_STATUS_PANIC` may come from any function. It is a bug of the library.
//!
//! Required of every call. The functions' own lists say what is required beyond that:
//!
//! - A struct can be read for as many bytes as its size says. So can each struct of an array, and
//!   each struct that one points to. An array of numbers has as many as its count says.
//! - A place for a result can be written: one for structs for `size` bytes each, which is their
//!   sizeof, one for numbers for as many as its count says.
//! - A path is null or a C string.
//! - `stream` is a live CUstream or cudaStream_t, or null for the default stream.
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
//! CUDA graphs. Steps can be captured. A graph may outlive the list, the control and the kernels of
//! its steps: the device memory that it uses stays until it is destroyed, and the library must stay
//! loaded until then. Lists and controls may be freed while any stream is being captured: that
//! waits for nothing, and their memory is freed after their last step, in the order of a stream.
//!
//! Pointers. The library keeps nothing that a pointer leads to after a call, except addresses of
//! device memory. It checks what can be checked of a pointer: null, alignment, overlap, buffers
//! beyond the last address. The caller must give memory of the stated length.
//!
//! Threads. All functions may be called from any thread. Calls with the same state, list or control
//! wait for each other. Structs that a call only reads may be read by other calls at the same time.

// Checks and status codes, no logic: that is the library's. A panic ends at the border, as a
// status.

#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::print_stdout,
        clippy::print_stderr,
        clippy::dbg_macro
    )
)]
#![expect(non_camel_case_types, reason = "the names are those of C")]
#![expect(clippy::missing_safety_doc, reason = "what every call requires is said once, above")]

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

//! dualadam: the fused step of the DualAdam optimizer, on the CPU and on CUDA devices.
//!
//! DualAdam blends Adam's update with an inverse update. The weight alpha of the inverse update
//! falls from 1 to 0 during training; from then on the update is Adam's. The source is Algorithm 1
//! of T. Shi, L. Chen, L. Jin and M. Zhou, "Combining Adam and its Inverse Counterpart to Enhance
//! Generalization of Deep Learning Optimizers", arXiv 2603.07122 (2026). `dualadam_coeffs` states
//! the arithmetic, operation by operation.
//!
//! # Contents
//!
//! - `dualadam_config_...`: hyperparameters, and the coefficients of one step.
//! - `dualadam_cpu_...`: steps of tensors in the host's memory.
//! - `dualadam_cuda_...`: steps of tensors in device memory, on the caller's stream.
//! - `dualadam_state_...`: moments, masters and step counts in the host's memory, saved to a file
//!   and resumed from it.
//! - `dualadam_status_name` and `dualadam_last_error`: what went wrong.
//!
//! # Example
//!
//! A program that trains two parameters on the CPU:
//!
//! ```c
//! #include <dualadam.h>
//! #include <stdio.h>
//!
//! int main(void)
//! {
//!     float param[2] = {1.0f, -2.0f}, grad[2], exp_avg[2] = {0}, exp_avg_sq[2] = {0};
//!     dualadam_config config;
//!     dualadam_tensor tensor;
//!     dualadam_coeffs coeffs;
//!     char text[512];
//!
//!     dualadam_config_init(&config, sizeof config);
//!     config.switching_rate = 1.0 / 160; // plain Adam from step 160 of 1,000 on
//!     dualadam_tensor_init(&tensor, sizeof tensor);
//!     tensor.param = param;
//!     tensor.grad = grad;
//!     tensor.exp_avg = exp_avg;
//!     tensor.exp_avg_sq = exp_avg_sq;
//!     tensor.len = 2;
//!     for (uint64_t step = 1; step <= 1000; step++) {
//!         for (int i = 0; i < 2; i++)
//!             grad[i] = 2.0f * param[i]; // of the loss param[0]^2 + param[1]^2
//!         if (dualadam_config_coeffs(&config, step, 1.0, &coeffs, sizeof coeffs) != 0 ||
//!             dualadam_cpu_step(&tensor, &coeffs) != 0) {
//!             dualadam_last_error(text, sizeof text, NULL);
//!             fprintf(stderr, "%s\n", text);
//!             return 1;
//!         }
//!     }
//!     return 0;
//! }
//! ```
//!
//! # Versioned structs
//!
//! Each struct begins with its size in bytes, and grows only at its end. So a program that was
//! compiled with this header works with later libraries. Let the `_init` function of a struct fill
//! it in before you set fields: `dualadam_config_init(&config, sizeof config)`.
//!
//! A field that an older program's struct lacks counts as 0, and 0 means what earlier versions did.
//! If a struct is larger than the library knows, its further bytes must be 0.
//!
//! # Statuses and the last error
//!
//! Every function that can fail returns a `dualadam_status`: 0 for success, otherwise one of the
//! `DUALADAM_STATUS_` numbers. `dualadam_last_error` copies out the text of the thread's last
//! error. It names the argument, the requirement and the value. A call that fails has written,
//! changed and enqueued nothing, unless the description of the error says otherwise.
//!
//! Argument errors. A function may return these for each argument of the kind:
//!
//! - A pointer: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`.
//! - A struct: those of a pointer, and `DUALADAM_STATUS_SIZE`.
//! - An array of structs: those of a struct; `DUALADAM_STATUS_TOO_MANY` for more structs than the
//!   address space has room for; `DUALADAM_STATUS_MEMORY`. An empty array may be null. All structs
//!   of an array have the same size.
//! - A config: those of a struct, and what `dualadam_config_validate` returns.
//! - A handle: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`.
//! - A path, which is in UTF-8 on every system: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_UTF8`.
//! - The number of a device, a group or a tensor, from 0: `DUALADAM_STATUS_POSITION`.
//! - A stream: `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of another context than the kernels'.
//!
//! Any function that uses the CUDA driver may return `DUALADAM_STATUS_CUDA_DRIVER`, also for
//! earlier work on the device that failed. One that loads kernels may return
//! `DUALADAM_STATUS_CUDA_PTX`. Any function may return `DUALADAM_STATUS_PANIC`, which is a bug of
//! the library. The lists of the functions leave all of these out.
//!
//! # Requirements
//!
//! The library checks what it can of a pointer: null, alignment, overlap, and that no buffer ends
//! beyond the last address. The caller must see to the rest. Every call requires this; functions
//! that require more list it under "Required":
//!
//! - A struct that is read can be read for as many bytes as its size says. The same holds for each
//!   struct of an array and for each struct that a struct points to.
//! - An array of numbers that is read has as many numbers as its count says.
//! - A place for results can be written: a place for structs for `size` bytes each, which is their
//!   sizeof; a place for numbers for as many numbers as its count says.
//! - A path is null or a C string.
//! - `stream` is a live CUstream or cudaStream_t, or null for the legacy default stream.
//!
//! After a call returns, the library refers to none of the caller's host memory. It keeps addresses
//! of device memory: in lists, in controls and in enqueued work.
//!
//! # Handles
//!
//! A handle is a number that stands for an object of the library. It is never 0. The library
//! refuses a handle that was freed with `DUALADAM_STATUS_STALE_HANDLE`, whatever was made since. If
//! a thread frees a handle while another thread's call uses it, that call goes on to its end.
//!
//! # Threads
//!
//! - Any thread may call any function.
//! - Calls with the same state, list or control wait for each other.
//! - Several calls may read the same structs at the same time.
//! - Each thread has its own last error.
//! - A process made by fork has none of its parent's threads. There, a step on the CPU of more than
//!   32,768 elements never returns if the parent made one before the fork.
//!
//! # Streams and CUDA graphs
//!
//! A function with a `stream` enqueues its work there. It waits for the device only where its
//! description says so. It leaves the thread's current context as it was. The caller must order the
//! work against other uses of the same device memory.
//!
//! Steps can be captured in a CUDA graph. The graph may outlive the list, the control and the
//! kernels of its steps: the library keeps the device memory that the graph uses until the graph is
//! destroyed. The library must stay loaded until then. Lists and controls may be freed while a
//! stream is being captured. Freeing them does not wait: the driver frees their memory after their
//! last step, in the order of a stream.

// This package checks arguments and maps errors to statuses. The logic is the library's. A panic
// becomes a status before it reaches the caller.

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
#![expect(clippy::missing_safety_doc, reason = "the introduction states once what every call requires")]

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

//! The functions of the C library: checks and status codes, no logic. C programs see them through `include/dualadam.h`, which is made
//! from these files.
//!
//! Rust programs have no use for them but to test them.
//!
//! What every function keeps to:
//!
//! - It returns a status; the text that goes with one is copied out by [`dualadam_last_error`].
//! - Structs begin with their size, so that fields can be added; the library fills them in first, and is told the size that the
//!   caller's header knows.
//! - Handles are numbers. One that was freed is refused, and so is one of another kind of object.
//! - A panic ends here, as a status.
//! - Pointers are the caller's: all that can be told of them is checked before anything is written.

#![expect(non_camel_case_types, reason = "the names are those of C")]

mod arguments;
mod config;
mod control;
mod cpu;
mod cuda;
mod handles;
mod state;
mod status;
mod types;

pub use config::*;
pub use control::*;
pub use cpu::*;
pub use cuda::*;
pub use handles::{dualadam_cuda_control, dualadam_cuda_kernels, dualadam_cuda_list, dualadam_state};
pub use state::*;
pub use status::*;
pub use types::*;

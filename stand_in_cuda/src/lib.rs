//! A test instrument, not a product: it runs PTX on the CPU behind a stand-in libcuda, so that the
//! real host path of a CUDA program can be tested without a GPU. The README beside this crate says
//! what it checks and what it does not model.

#![deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

pub mod client;
pub mod exec;
pub mod memory;
pub mod ptx;

mod decode;
mod driver;
mod op;
mod scalar;

pub use op::{Kernel, Param};

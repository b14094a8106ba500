//! The C library, called as C calls it: layouts, results, bad input, handles, threads, and the CUDA functions on a stand-in driver.

#![cfg(all(feature = "capi", target_os = "linux"))]

use testkit as common;

mod bad_input;
mod calls;
#[cfg(feature = "cuda")]
mod control;
#[cfg(feature = "cuda")]
mod cuda;
mod layout;
mod surface;
mod threads;
mod work;

//! The C library, called as C calls it: layouts, results, bad input, handles, threads, and the CUDA
//! functions on a stand-in driver.

#![cfg(target_os = "linux")]

mod bad_input;
mod calls;
mod control;
mod cuda;
mod layout;
mod surface;
mod threads;
mod work;

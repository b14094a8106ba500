//! The C library, called as C calls it: layouts, results, bad input, handles, threads, and the CUDA
//! functions on a stand-in driver.

#![cfg(target_os = "linux")]

mod bad_input;
mod calls;
mod control;
mod cuda;
#[path = "../../../tests/common/data.rs"]
#[expect(dead_code, reason = "only the configurations are used")]
mod data;
mod layout;
mod surface;
mod threads;
mod work;

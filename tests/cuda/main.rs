//! The CUDA backend, whole: the host layer through cudarc into a stand-in driver, which runs the embedded kernels on the CPU.
//!
//! All results are compared with the CPU backend, bit for bit. The stand-in checks every access of the kernels and every order between
//! streams, and runs work as late as it may.

#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "../common/mod.rs"]
mod common;

mod bad_input;
mod buffers;
mod control;
mod failures;
mod flat;
mod gpu;
mod graphs;
mod interrupted;
mod lists;
mod owner;

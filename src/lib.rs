#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::dbg_macro)
)]

#[cfg(feature = "capi")]
pub mod capi;
mod coeffs;
mod combination;
mod config;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dtype;
mod error;
mod overlap;
mod owner;
mod raw;
pub mod reference;
mod schedule;
#[cfg(any(feature = "cuda", feature = "webgpu"))]
mod sets;
mod state;
mod state_file;
#[cfg(feature = "webgpu")]
pub mod webgpu;

pub use coeffs::StepCoeffs;
pub use combination::{Formats, Variant};
pub use config::{DualAdamConfig, InverseTerm, WeightDecay};
pub use dtype::{Dtype, Element, GradOf, HalfElement};
pub use error::{Error, StateProblem, WgpuProblem};
pub use half;
pub use raw::{RawBuffer, RawTensor};
pub use schedule::SwitchSchedule;
pub use state::{State, TensorLayout, TensorState};
pub use state_file::FORMAT_VERSION;

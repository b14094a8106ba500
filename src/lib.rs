#![doc = include_str!("../README.md")]
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

// rule, tensor, ledger, checkpoint, then the backends, then error: each uses only those before it.
mod checkpoint;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod ledger;
mod rule;
mod steering;
mod tensor;
#[cfg(feature = "webgpu")]
pub mod webgpu;

#[cfg(feature = "files")]
pub use checkpoint::FORMAT_VERSION;
pub use checkpoint::{Arrays, State, StateError, StateProblem};
pub use error::Error;
pub use half;
pub use ledger::{CoeffsTable, Ledger, TensorSpec};
pub use rule::{ConfigError, DualAdamConfig, InverseTerm, StepCoeffs, SwitchSchedule, WeightDecay, reference};
pub use steering::{SkipReason, Steering};
pub use tensor::{
    ArgumentError, Dtype, Element, Formats, GradOf, HalfElement, ListError, RawBuffer, RawTensor, Role, TensorError,
    TensorProblem, Variant,
};

//! The CUDA backend: hand-written kernels on buffers in device memory that the caller owns.
//!
//! - [`step`] and [`step_with_copy`] take one tensor's flat buffers as cudarc's views, [`Kernels::step_raw`] as plain addresses.
//! - [`TensorList`] serves any number of tensors of mixed types, each with its own coefficient set, in one launch per type combination.
//! - [`DualAdam`] owns the moments and counts the steps.
//!
//! A step is enqueued on a stream, the caller's, and returns at once: nothing waits for the device. The result has the bits of the
//! [`cpu`](crate::cpu) backend (NaNs as a class), whatever the grouping into lists, the alignment or the launch.
//!
//! Nothing is needed to build this but Rust; libcuda is looked for when [`Kernels`] are made, and its absence is
//! [`Error::NoDriver`](crate::Error::NoDriver). Every failure of the driver is an [`Error`](crate::Error) with its code. After one that
//! says that the device is lost, such as an illegal address, every later call fails in the same way, as the driver lays down.

mod checks;
mod control;
mod controlled;
mod driver;
mod kernels;
mod launch;
mod list;
mod memory;
mod optimizer;
mod slices;
mod staging;
mod table;
mod tensor;
mod types;

pub use checks::{RawBuffer, RawTensor};
pub use control::{Control, ControlGroup, ControlSet, RawLr, RawScalars, SetReport, SkipReason};
pub use controlled::Scalars;
pub use cudarc;
pub use kernels::Kernels;
pub use list::TensorList;
pub use optimizer::DualAdam;
pub use slices::{step, step_with_copy};
pub use tensor::{Grads, ParamsMut};

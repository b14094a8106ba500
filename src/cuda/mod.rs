//! The CUDA backend: hand-written kernels on buffers in device memory that the caller owns.
//!
//! - [`step`] takes one tensor's flat buffers as cudarc's views, [`Kernels::step_raw`] as plain
//!   addresses.
//! - [`TensorList`] takes any number of tensors of mixed formats, each with its own coefficients,
//!   in one launch per [variant](crate::Variant).
//! - [`DualAdam`] owns the moments and counts the steps.
//! - [`Control`] keeps learning rates and step counters in device memory, for steps that the device
//!   steers, and [`CapturableDualAdam`] is the optimizer with such steps: see below.
//!
//! A step is enqueued on a stream of the caller's and returns at once: nothing waits for the
//! device. The result has the bits of the [`cpu`](crate::cpu) backend (NaNs as a class), whatever
//! the grouping into lists, the alignment or the launch.
//!
//! # Control on the device
//!
//! With mixed precision, or in a CUDA graph, the host does not know what the step will be. The loss
//! scale, the clip factor and whether the gradients are finite are computed on the device, and a
//! graph is launched many times with the arguments of its capture. So
//! [`TensorList::step_controlled`] and [`CapturableDualAdam`] let the device form the coefficients.
//!
//! A kernel with one thread for each coefficient set reads the set's counter, its group's
//! hyperparameters and lr, and the caller's scalars. It does in f64 what
//! [`DualAdamConfig::coeffs_scaled`](crate::DualAdamConfig::coeffs_scaled) does, checks included,
//! with the same operations in the same order, so that the bits are the same. It writes the
//! coefficients that the list kernels read, and advances the counter; or it writes that the set is
//! skipped, and leaves the counter. Nothing is read back, and nothing waits. [`Control::report`],
//! or [`CapturableDualAdam::report`], tells afterwards what was skipped, and why.
//!
//! - The caller gives the scalars, such as torch's `grad_scale` and `found_inf`; any may be
//!   missing. The caller may also keep counters (u64) and learning rates (f32 or f64). The library
//!   does not look for infinities itself.
//! - A graph keeps addresses, not values: [`Control::set_lr`] or the caller writes new values into
//!   device memory between its launches.
//! - A step that is captured gets tensor descriptors of its own. So the gradients may be at new
//!   addresses in each capture, as they are where PyTorch captures a whole iteration, and nothing
//!   that comes later changes what a graph reads.
//! - A graph may outlive the list, the control or the optimizer: memory that it may use stays until
//!   the graph, and what was made of it, is destroyed. A later allocation of the library then frees
//!   it, if the [`Kernels`] are still there.
//! - No call waits for the whole context by itself. The driver may wait where it loads a module, or
//!   allocates or frees pinned memory: in the calls that make kernels, lists, controls and
//!   optimizers, and where the last clone of [`Kernels`] is dropped.
//! - Dropping a list, a control or an optimizer waits for nothing. Device memory is freed after its
//!   last use, in the order of a stream; on a device without memory pools, a later allocation of
//!   the library frees it. What is made later takes over pinned memory.
//! - All of it can be done while another thread captures, in any capture mode.
//!
//! # The driver
//!
//! Building this needs nothing but Rust. libcuda is looked for when [`Kernels`] are made, and its
//! absence is [`CudaError::NoDriver`]. A toolkit's stub that is found before it is
//! [`CudaError::StubDriver`]. Every failure of the driver is a [`CudaError`] with its code. After
//! one that says that the device is lost, such as an illegal address, every later call fails in the
//! same way, as the driver documents.

// error, driver, event, pool, memory, staging, stream, module, kernels, launch, buffer, flat,
// table, list, control, optimizer: each uses only those before it.
mod buffer;
mod control;
mod driver;
mod error;
mod event;
mod flat;
mod kernels;
mod launch;
mod list;
mod memory;
mod module;
mod optimizer;
mod pool;
mod staging;
mod stream;
mod table;

pub use buffer::{Buffer, BufferMut, Tensor};
pub use control::{Control, ControlGroup, ControlSet, RawLr, RawScalars, SetReport};
pub use cudarc;
pub use error::{AddressProblem, ControlAddress, CudaArgument, CudaError, PtxError};
pub use flat::step;
pub use kernels::Kernels;
pub use list::TensorList;
pub use optimizer::{CapturableDualAdam, DualAdam, Scalars};

//! The CUDA backend: kernels that step tensors in device memory.
//!
//! A step is enqueued on a stream, and the call returns without waiting for the device. Except for
//! NaN payloads, the step has the bits of the [`cpu`](crate::cpu) backend, whatever the alignment,
//! the launch and the grouping into lists. [`StepCoeffs`](crate::StepCoeffs) states the arithmetic.
//!
//! No GPU has run these kernels yet. So far the tests, and the examples on these pages, run the
//! shipped PTX in an interpreter behind a stand-in for the driver.
//!
//! # Which function when
//!
//! | what you have | call |
//! | --- | --- |
//! | parameters and gradients as cudarc's slices, no optimizer state | [`DualAdam`], which owns the moments and counts the steps |
//! | the same, with CUDA graphs, or with found-inf flags on the device | [`CapturableDualAdam`], from [`DualAdam::into_capturable`] |
//! | all buffers of one tensor as cudarc's slices | [`step`] |
//! | all buffers of one tensor as addresses | [`Kernels::step_raw`] |
//! | the addresses of many tensors | [`TensorList`]: one launch for each [variant](crate::Variant) |
//! | the same, with CUDA graphs, or with scalars on the device | [`TensorList::step_controlled`] with a [`Control`] |
//! | masters, and 16-bit parameters that other code has written | [`DualAdam::sync_masters`], [`sync_master`], [`Kernels::sync_master_raw`] |
//!
//! All of them start from [`Kernels`], the kernels in a CUDA context.
//!
//! # Examples
//!
//! ```
//! use dualadam::DualAdamConfig;
//! use dualadam::cuda::{DualAdam, Kernels};
//!
//! # let _gpu = testkit::stand_in_or_return!();
//! let kernels = Kernels::new(0)?;
//! let stream = kernels.context().default_stream();
//! let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[1024])?;
//! let mut w = stream.clone_htod(&[1.0_f32; 1024])?;
//! for _ in 0..10 {
//!     let grad = stream.clone_htod(&[0.5_f32; 1024])?; // from a backward pass
//!     optimizer.step([(&mut w).into()], [Some((&grad).into())])?;
//! }
//! assert_eq!(optimizer.state()?.ledger.step(0)?, 10);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Ownership
//!
//! - The caller owns the context, the streams, the parameters and the gradients. [`DualAdam`] owns
//!   moments and masters; with the other calls the caller owns these, too.
//! - Calls that take cudarc's types borrow them until the work is enqueued, and are safe. Calls
//!   that take addresses are `unsafe`: the memory must live until the work has run.
//! - Dropping a list, a control or an optimizer waits for nothing. Its memory is freed after its
//!   last use: in the order of a stream, or by a later allocation of the library where a graph used
//!   the memory or the device has no memory pools. Pinned memory is kept and reused.
//! - Dropping the last clone of [`Kernels`] may wait for the device.
//!
//! # Ordering
//!
//! - Work is ordered as CUDA orders it: by the stream. An optimizer uses one stream for everything.
//! - cudarc orders uses of its slices on its own streams. The caller must order uses of plain
//!   addresses, and uses of one list or one control on several streams.
//! - No call waits for the whole context by itself. The driver may wait where it loads a module, or
//!   allocates or frees pinned memory: in the calls that make kernels, lists, controls and
//!   optimizers, and where the last clone of [`Kernels`] is dropped.
//! - A step that has changes to send, such as new addresses of gradients, blocks only when all four
//!   staging slots are in flight. Calls that read from the device wait for the stream.
//!
//! # Coefficients on the device
//!
//! With mixed precision or CUDA graphs, the host does not know all of a step when it enqueues it.
//! The loss scale, the clip factor and the found-inf flag are computed on the device, and a graph
//! repeats the arguments of its capture. [`TensorList::step_controlled`] and [`CapturableDualAdam`]
//! form the coefficients on the device:
//!
//! 1. A kernel with one thread for each coefficient set reads the set's step counter, the
//!    hyperparameters and learning rate of its group, and the caller's scalars.
//! 2. It computes in f64 what
//!    [`DualAdamConfig::coeffs_scaled`](crate::DualAdamConfig::coeffs_scaled) computes, with the
//!    same checks and the same operations in the same order. So the bits are the same.
//! 3. It writes the coefficients and advances the counter. If the step cannot be made, it writes
//!    that the set is skipped, and leaves the counter.
//! 4. The list kernels read the coefficients.
//!
//! [`Control::report`] and [`CapturableDualAdam::report`] tell afterwards which steps were skipped
//! and why. The caller provides the scalars, such as torch's `grad_scale` and `found_inf`; each may
//! be missing. The library does not look for infinities in the gradients. Step counters (u64) and
//! learning rates (f32 or f64) may also lie in the caller's memory.
//!
//! # Captures
//!
//! CUDA graphs can capture steps. A graph keeps addresses and arguments, so what it repeats depends
//! on the call:
//!
//! | call | before the capture | each launch of the graph |
//! | --- | --- | --- |
//! | [`step`], [`Kernels::step_raw`] | [`Kernels::prepare`], or a step | repeats the coefficients |
//! | [`sync_master`], [`Kernels::sync_master_raw`] | [`Kernels::prepare`], or a step | compares again |
//! | [`TensorList::step_raw`] | nothing | repeats the coefficients |
//! | [`DualAdam::step`] | a step | repeats the coefficients; only the capture counts as a step |
//! | [`TensorList::step_controlled`] | nothing | forms new coefficients and counts |
//! | [`CapturableDualAdam::step`] | [`CapturableDualAdam::prepare`], or a step | forms new coefficients and counts |
//!
//! - [`Control::set_lr`], or a write of the caller to device memory, changes the learning rate
//!   between launches.
//! - Each captured step of a list has descriptors of its own. So the gradients may be at new
//!   addresses in each capture, as in PyTorch, and later steps change nothing that a graph reads.
//! - A graph may outlive the list, the control or the optimizer. The memory that it uses stays
//!   until the graph and everything instantiated from it are destroyed. A later allocation of the
//!   library frees it, if the [`Kernels`] still exist.
//! - Calls of the library in one thread do not invalidate captures in other threads, in any capture
//!   mode.
//!
//! # Limits
//!
//! | | |
//! | --- | --- |
//! | formats | those of the [variants](crate::Variant), the same on all backends |
//! | alignment | that of the element type |
//! | elements of a flat step | (2³¹ - 2) · 2048 |
//! | a list, for each variant | 2³¹ - 1 pieces of 4,096 elements |
//! | tensors of a list, sets of a control | 2³² - 1 |
//! | coefficients of a step | 96, or one for each tensor |
//! | device | compute capability 7.5 or newer |
//! | driver | CUDA 11.4 or newer; libcuda is opened when [`Kernels`] are made |
//!
//! # Errors
//!
//! Every failure is a [`CudaError`] that names the argument, or the driver's function and its code.
//! A call that fails has launched nothing, except after [`CudaError::Driver`], where its
//! documentation says what holds. A missing libcuda is [`CudaError::NoDriver`], and a toolkit's
//! stub in its place is [`CudaError::StubDriver`]. After an error that means that the device is
//! lost, such as an illegal address, all later calls in the context fail in the same way.

// In the order error, driver, event, pool, memory, staging, stream, module, kernels, launch,
// buffer, flat, sync, table, list, control, optimizer, each module uses only those before it.
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
mod sync;
mod table;

pub use buffer::{Buffer, BufferMut, Tensor};
pub use control::{Control, ControlGroup, ControlSet, RawLr, RawScalars, SetReport};
pub use cudarc;
pub use error::{AddressProblem, ControlAddress, CudaArgument, CudaError, PtxError};
pub use flat::step;
pub use kernels::Kernels;
pub use list::TensorList;
pub use optimizer::{CapturableDualAdam, DualAdam, Scalars};
pub use sync::sync_master;

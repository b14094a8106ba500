//! The WebGPU backend: WGSL shaders that step tensors in wgpu buffers, encoded into a compute pass
//! of the caller.
//!
//! The shaders have run on Mesa's lavapipe, a Vulkan driver on the CPU, and not yet on a GPU.
//!
//! # Which function when
//!
//! - [`Pipelines`] holds the compiled shaders for a device that the caller made. The library never
//!   picks an adapter.
//! - [`DualAdam`] owns the moments and masters, counts the steps, and saves and loads the state
//!   files of all backends.
//! - [`TensorList`] steps any number of tensors with moments that the caller keeps, each with its
//!   own coefficients. A single tensor is a list of one.
//! - [`wgpu`] is the crate whose types the calls take.
//!
//! # Examples
//!
//! ```
//! use dualadam::webgpu::{Binding, DualAdam, Pipelines, wgpu};
//! use dualadam::{Dtype, DualAdamConfig};
//!
//! # let (device, queue) = testkit::webgpu_or_return!();
//! # let w = testkit::webgpu_buffer!(device, [1.0_f32; 1024]);
//! # let gradients = testkit::webgpu_buffer!(device, [0.5_f32; 1024]);
//! // `device` and `queue` are the program's; `w` and `gradients` are buffers of 1,024 f32.
//! let pipelines = Pipelines::new(&device)?;
//! let mut optimizer = DualAdam::new(&pipelines, DualAdamConfig::default(), &[1024])?;
//! let (w, grad) = (Binding::new(&w, Dtype::F32), Binding::new(&gradients, Dtype::F32));
//! for _ in 0..10 {
//!     let mut encoder = device.create_command_encoder(&Default::default());
//!     // The backward pass would be encoded here.
//!     let mut pass = encoder.begin_compute_pass(&Default::default());
//!     optimizer.step(&mut pass, [w], [Some(grad)])?;
//!     drop(pass);
//!     queue.submit([encoder.finish()]);
//! }
//! assert_eq!(optimizer.state(&queue)?.ledger.step(0)?, 10);
//! # Ok::<(), dualadam::Error>(())
//! ```
//!
//! # Ownership
//!
//! - The caller owns the device, the queue, the encoder, the pass, the parameters and the
//!   gradients.
//! - A list keeps its buffers alive. An optimizer has its moments and masters in buffers of its
//!   own.
//! - A `queue` that a method takes must be that of the pipelines' device.
//!
//! # Ordering
//!
//! - A step is only encoded: it neither submits nor waits. Many steps can share a pass and a
//!   submit.
//! - [`DualAdam`] counts a step when it is encoded. Submit every pass once, in the order of
//!   encoding.
//! - WebGPU orders the dispatches of a pass and the passes of a queue, so the caller need not.
//! - [`DualAdam::state`] waits for its own copies and for nothing that is submitted later.
//!   [`DualAdam::read_state`] can be awaited instead.
//! - A captured step, as in CUDA graphs, has no counterpart in WebGPU.
//!
//! # Accuracy
//!
//! WGSL promises no bits: a driver may fuse operations, reassociate them, flush subnormals, and
//! divide to 2.5 units in the last place. So a result may differ from that of the
//! [`cpu`](crate::cpu) backend. On one device it is the same in every run, however tensors are
//! grouped into lists and steps into submits. Loads and stores of bf16 and f16 use integers and
//! have the CPU's bits.
//!
//! These bound the error of one step, against exact arithmetic on the same state. U is 2⁻²⁴, and
//! the other names are those of [`StepCoeffs`](crate::StepCoeffs):
//!
//! ```text
//! G = |grad_scale·grad| + l2·|p|
//! M = |m| + one_minus_beta1·(G + |m|)
//! V = v + one_minus_beta2·(G² + v)
//!
//! error of m ≤ 8·U·M + 2^-125
//! error of v ≤ 12·U·V + 2^-125
//! error of p ≤ 1.5·U·|p| + 40·U·(M·w + decay·|p|)
//! ```
//!
//! - The bound of p holds if V is at most twice the new v, ε is at least 3e-12·inv_sqrt_bc2, and α
//!   is below 1. Without L2 decay, the first is true for β2 ≥ 2/3.
//! - The bounds hold for G below 1.84e19. From there on, `v` may saturate at the largest finite
//!   f32.
//! - A 16-bit parameter lies between the narrowed ends of the interval.
//! - A driver may assume that no value is infinite or NaN.
//!
//! The bounds follow from the accuracy that WGSL states for each operation.
//! `docs/src/internals/webgpu-accuracy.md` in the repository derives them.
//!
//! # Limits
//!
//! | | |
//! | --- | --- |
//! | formats | those of the [variants](crate::Variant), the same on all backends |
//! | alignment of a buffer's elements | the device's `min_storage_buffer_offset_alignment`, mostly 256 bytes |
//! | device | the limits in [`required_limits`] are enough; a default device has them |
//! | masters | five storage buffers in a shader stage; [`wgpu::Limits::default`] has eight |
//! | size of a tensor | what fits in a buffer of the device; if it exceeds the largest binding, it takes several dispatches |
//!
//! On a device with [`wgpu::Features::IMMEDIATES`] and at least 40 bytes of them, the coefficients
//! travel among the commands. On other devices, each step creates a small uniform buffer.
//!
//! # Errors
//!
//! A call that fails has encoded nothing. Every failure is a [`WebGpuError`]. wgpu reports some
//! errors only later, to the device's error scope or handler: a pass of another device when the
//! pass ends, and a destroyed or mapped buffer at the submit.
//!
//! # Browsers
//!
//! A browser cannot block. Await [`DualAdam::read_state`], and keep the bytes of `State::to_bytes`
//! (feature `files`). There, all errors of wgpu go to the device's error handler.

mod arenas;
mod checks;
mod coeffs;
mod device;
mod error;
mod layout;
mod limits;
mod list;
mod optimizer;
mod pipelines;
mod readback;
mod shaders;
mod tensor;

pub use error::{BindingProblem, WebGpuError, WgpuError, WgpuProblem};
pub use limits::required_limits;
pub use list::TensorList;
pub use optimizer::DualAdam;
pub use pipelines::Pipelines;
pub use tensor::{Binding, Tensor};
pub use wgpu;

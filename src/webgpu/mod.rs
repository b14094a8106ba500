//! The WebGPU backend: WGSL shaders on buffers of the caller's, encoded into the caller's own
//! compute pass.
//!
//! - [`Pipelines`] are the compiled shaders on a device that the caller made. The library never
//!   picks an adapter.
//! - [`TensorList`] serves any number of tensors of mixed formats, each with its own coefficients;
//!   a flat buffer is a list of one. [`TensorList::encode`] only encodes: it never submits or
//!   waits, and many steps can share one submit.
//! - [`DualAdam`] owns the moments and masters, in buffers of its own, counts the steps, and saves
//!   and resumes the files of all backends.
//! - [`wgpu`] is the crate whose types the calls take.
//!
//! # What is promised
//!
//! WGSL promises no bits. A driver may fuse, reassociate and flush subnormals, and divides to 2.5
//! units in the last place; so the result may differ from the [`cpu`](crate::cpu) backend's. On one
//! device it is the same in every run, however tensors are grouped into lists and steps into
//! submits. Loading and storing bf16 and f16 is in integers, and exact.
//!
//! With U = 2⁻²⁴ and the names of [`StepCoeffs`](crate::StepCoeffs), one step from the same state
//! is off from exact arithmetic by at most
//!
//! ```text
//! of m: 8·U·M + 2^-125     G = |grad_scale·grad| + l2·|p|, M = |m| + one_minus_beta1·(G + |m|)
//! of v: 12·U·V + 2^-125    V = v + one_minus_beta2·(G² + v)
//! of p: 1.5·U·|p| + 40·U·(M·w + decay·|p|)
//! ```
//!
//! The bound of p requires that V is at most twice the new v (without L2 decay it is for β2 ≥ 2/3),
//! that ε is at least 3e-12·inv_sqrt_bc2, and that α is below 1. The bounds are the sums of WGSL's
//! error bounds of each operation; `docs/src/internals/webgpu-accuracy.md` in the repository derives
//! them. A 16-bit parameter lies between the narrowed ends of that interval.
//!
//! That is for G below 1.84e19; from there on `v` may be the largest finite f32 instead, at which
//! it saturates.
//!
//! A driver may assume that no value is infinite or NaN.
//!
//! # Limits
//!
//! [`required_limits`] are enough for all but masters, which need five storage buffers a shader
//! stage; [`wgpu::Limits::default`] has eight. A tensor that is larger than a binding may be is
//! stepped in several dispatches. Where the device has [`wgpu::Features::IMMEDIATES`] and 40 bytes
//! of them, the coefficients travel among the commands; elsewhere each call of
//! [`TensorList::encode`] makes a small uniform buffer.
//!
//! # Browsers
//!
//! Nobody can wait there: await [`DualAdam::read_state`], and keep the bytes of `State::to_bytes`
//! (feature `files`). Errors of wgpu go to the device's handler.

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

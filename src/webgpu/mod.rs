//! The WebGPU backend: WGSL shaders on buffers of the caller's, encoded into the caller's own compute pass.
//!
//! - [`Pipelines`] are the compiled shaders on a device that the caller made. The library never picks an adapter.
//! - [`TensorList`] serves any number of tensors of mixed types, each with its own coefficient set; a flat buffer is a list of one.
//!   [`TensorList::encode`] only encodes: it never submits or waits, and many steps can share one submit.
//! - [`wgpu`] is the crate whose types the calls take.
//!
//! WGSL promises no bits. A driver may fuse, reassociate and flush subnormals, so the result may differ from the
//! [`cpu`](crate::cpu) backend's within a bound; on one device it is the same in every run. Storing in bf16 and f16 is in integers, and
//! exact.
//!
//! # Limits
//!
//! [`required_limits`] are enough for all but masters with a copy, which need five storage buffers a shader stage;
//! [`wgpu::Limits::default`] has eight. A tensor that is larger than a binding may be is stepped in several dispatches. Where the
//! device has [`wgpu::Features::IMMEDIATES`] and 40 bytes of them, the coefficients travel among the commands; elsewhere each call of
//! [`TensorList::encode`] makes a small uniform buffer.

mod arenas;
mod capture;
mod checks;
mod coeffs;
mod layout;
mod limits;
mod list;
mod optimizer;
mod pipelines;
mod readback;
mod shaders;
mod tensor;

pub use limits::required_limits;
pub use list::TensorList;
pub use optimizer::DualAdam;
pub use pipelines::Pipelines;
pub use tensor::{BufferView, Moment, Tensor};
pub use wgpu;

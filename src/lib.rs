//! Fused kernels for the DualAdam optimizer, with a safe API over buffers that the caller owns.
//!
//! DualAdam is Algorithm 1 of [arXiv 2603.07122](https://arxiv.org/abs/2603.07122). It blends Adam
//! with inverse Adam, whose steps are large where gradients are large. The weight α of inverse Adam
//! falls from 1 to 0 during training; once it is 0, the update is plain Adam. In step `t` of a
//! parameter θ with gradient g:
//!
//! ```text
//! m = β1·m + (1-β1)·g        m̂ = m/(1-β1^t)
//! v = β2·v + (1-β2)·g²       v̂ = v/(1-β2^t)
//! θ = θ - lr·(α·m̂·√v̂ + (1-α)·m̂/(√v̂ + ε))
//! ```
//!
//! One pass over memory updates both moments and the parameter, weight decay included.
//!
//! # Examples
//!
//! [`cpu::DualAdam`] keeps the moments and counts the steps. It borrows parameters and gradients
//! for each step:
//!
//! ```
//! use dualadam::{DualAdamConfig, SwitchSchedule, cpu};
//!
//! // α falls from 1 to 0 over the first 80 of 500 steps.
//! let config = DualAdamConfig::default().with_lr(0.05).with_schedule(SwitchSchedule::linear_until(80));
//! let (mut weight, mut bias) = (vec![1.0_f32, -2.0, 3.0], vec![0.5_f32]);
//! let mut optimizer = cpu::DualAdam::new(config, &[weight.len(), bias.len()])?;
//! for _ in 0..500 {
//!     // The gradients of the loss (|weight|² + |bias|²)/2. Yours come from a backward pass.
//!     let (weight_grad, bias_grad) = (weight.clone(), bias.clone());
//!     optimizer.step(
//!         [(&mut weight).into(), (&mut bias).into()],
//!         [Some((&weight_grad).into()), Some((&bias_grad).into())],
//!     )?;
//! }
//! assert!(weight.iter().chain(&bias).all(|x| x.abs() < 0.01));
//! # Ok::<(), dualadam::Error>(())
//! ```
//!
//! # Which function to use
//!
//! | you have | [`cpu`] | [`cuda`] | [`webgpu`] |
//! | --- | --- | --- | --- |
//! | parameters and gradients | [`DualAdam`](cpu::DualAdam) | [`DualAdam`][cuda-optimizer] | [`DualAdam`][webgpu-optimizer] |
//! | also the moments of one tensor | [`step`](cpu::step), [`step_with_master`](cpu::step_with_master) | [`step`][cuda-step] | [`TensorList`][webgpu-list] of one |
//! | also the moments of many tensors | [`step_list`](cpu::step_list) | [`TensorList`][cuda-list] | [`TensorList`][webgpu-list] |
//! | addresses only | [`step_raw`](cpu::step_raw), [`TensorList`](cpu::TensorList) | [`step_raw`][cuda-raw], [`TensorList`][cuda-list] | |
//! | scalars on the device, or a CUDA graph | | [`CapturableDualAdam`][cuda-capturable], [`Control`][cuda-control] | |
//!
//! - A step with masters overwrites the 16-bit parameters. `sync_masters` of the optimizers, and
//!   `sync_master` of [`cpu`] and [`cuda`], first take over what other code wrote there:
//!   [`cpu::sync_master`].
//! - A program that keeps the moments also forms the coefficients of each step.
//!   [`DualAdamConfig::coeffs`] forms them for a step number; a [`Ledger`] keeps groups and steps
//!   of many tensors.
//! - Steps belong to tensors, and α follows the tensor's own step. The optimizers and the lists of
//!   addresses skip a tensor without a gradient: its parameters, moments and step stay as they are.
//!
//! # What the parts are
//!
//! | part | types |
//! | --- | --- |
//! | hyperparameters | [`DualAdamConfig`], [`SwitchSchedule`], [`WeightDecay`], [`InverseTerm`] |
//! | scalars of a step | [`StepCoeffs`]; [`Steering`] and [`SkipReason`] for loss scaling and clipping |
//! | formats of buffers | [`Dtype`], [`Element`], [`HalfElement`], [`GradOf`], [`Formats`], [`Variant`], and [`half`] for bf16 and f16 |
//! | buffers | [`Role`], [`RawBuffer`], [`RawTensor`], and `Buffer` and `Tensor` of each backend |
//! | bookkeeping | [`Ledger`], [`CoeffsTable`], [`TensorSpec`] |
//! | saving and resuming | [`State`], [`Arrays`] |
//! | errors | [`Error`], to which the error of every part converts |
//! | the oracle | [`mod@reference`]: Algorithm 1 in f64, against which the backends are tested |
//!
//! # What is promised
//!
//! - **Bits.** [`StepCoeffs`] states every operation of a step and its rounding. The CPU backend
//!   gives exactly these results, NaNs as a class: for any number of threads, any grouping into
//!   lists, any alignment, and with or without vector instructions. The CUDA backend gives the bits
//!   of the CPU backend. So far, its kernels have run on an interpreter of their PTX only, not on a
//!   GPU. WebGPU promises no bits but a bound on the error of each quantity.
//! - **Accuracy.** The tests compare each step with [`mod@reference`]. Each quantity stays within
//!   the error that its roundings can add up to.
//! - **Errors.** Each error is typed and names the argument, the requirement and the value. A call
//!   checks all its arguments before it writes anything, so that a call that fails has written
//!   nothing. [`Error`] lists the exceptions.
//! - **Memory.** [`cpu::step`] and the other steps over the caller's buffers own nothing and
//!   allocate nothing; [`cpu`] lists them.
//! - **Resuming.** A [`State`] that is saved and loaded goes on bit for bit, on the CPU and on
//!   CUDA. All backends read and write the same files.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `rayon` | yes | threads for the CPU backend; the bits are the same without |
//! | `files` | yes | `State::save`, `State::load`, `State::to_bytes` and `State::from_bytes` |
//! | `cuda` | no | the module `cuda`; needs no CUDA toolkit to build and opens libcuda at run time |
//! | `webgpu` | no | the module `webgpu`, without any of wgpu's own backends |
//! | `webgpu-native` | no | `webgpu` with wgpu's Vulkan, Metal and DX12, each on the systems that have it |
//!
//! On wasm, `files` adds the bytes of a state but no access to files.
//!
//! # Formats
//!
//! | parameters | gradients | f32 masters |
//! | --- | --- | --- |
//! | f32 | f32, bf16 or f16 | no |
//! | bf16 | bf16 or f32 | with or without |
//! | f16 | f16 or f32 | with or without |
//!
//! Moments are f32. A master is the f32 tensor that is updated for a 16-bit parameter; the step
//! writes its rounding to the parameter in the same pass. [`Variant::all`] lists the combinations.
//!
//! # Further reading
//!
//! - T. Shi, L. Chen, L. Jin and M. Zhou, "Combining Adam and its Inverse Counterpart to Enhance
//!   Generalization of Deep Learning Optimizers",
//!   [arXiv 2603.07122](https://arxiv.org/abs/2603.07122), 2026.
//! - The book in `docs/` of the repository: guides, how the library works, measurements, and how to
//!   contribute.
//!
// A module that is not built has no page to link to.
#![cfg_attr(
    feature = "cuda",
    doc = "
[`cuda`]: crate::cuda
[cuda-optimizer]: crate::cuda::DualAdam
[cuda-step]: crate::cuda::step
[cuda-list]: crate::cuda::TensorList
[cuda-raw]: crate::cuda::Kernels::step_raw
[cuda-capturable]: crate::cuda::CapturableDualAdam
[cuda-control]: crate::cuda::Control
"
)]
#![cfg_attr(
    not(feature = "cuda"),
    doc = "
[`cuda`]: #features
[cuda-optimizer]: #features
[cuda-step]: #features
[cuda-list]: #features
[cuda-raw]: #features
[cuda-capturable]: #features
[cuda-control]: #features
"
)]
#![cfg_attr(
    feature = "webgpu",
    doc = "
[`webgpu`]: crate::webgpu
[webgpu-optimizer]: crate::webgpu::DualAdam
[webgpu-list]: crate::webgpu::TensorList
"
)]
#![cfg_attr(
    not(feature = "webgpu"),
    doc = "
[`webgpu`]: #features
[webgpu-optimizer]: #features
[webgpu-list]: #features
"
)]
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

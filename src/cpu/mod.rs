//! The CPU backend. It is always built, and its bits are those that the CUDA backend is compared
//! with.
//!
//! | | moments | tensors | buffers |
//! | --- | --- | --- | --- |
//! | [`DualAdam`] | its own; it counts the steps | many | slices |
//! | [`step`], [`step_with_master`] | the caller's | one | slices |
//! | [`step_list`] | the caller's | many | slices |
//! | [`step_raw`] | the caller's | one | addresses |
//! | [`TensorList`], [`step_list_raw`] | the caller's | many | addresses |
//!
//! [`sync_master`] and [`sync_master_raw`] take over into f32 masters what other code wrote into
//! their 16-bit parameters; [`DualAdam::sync_masters`] does so for all tensors.
//!
//! # Bits
//!
//! A step makes the operations that [`StepCoeffs`] states. The result is the same to the bit (NaNs
//! as a class) on every processor, for any number of threads, any grouping into lists and any
//! alignment. On x86-64 and aarch64 it does not depend on the rounding mode and the treatment of
//! subnormals that the calling thread has set.
//!
//! Special values follow IEEE 754. A NaN or infinite gradient makes its own element NaN or infinite
//! and changes no other element.
//!
//! # Threads
//!
//! A call with more than 32,768 elements in all ([`MAX_SEQUENTIAL`]) runs on the current rayon
//! pool. To choose the threads, call it inside `rayon::ThreadPool::install`. A smaller call, a call
//! in [`sequential`], and every call without the feature `rayon` run on the calling thread.
//!
//! A process made by `fork` has only the thread that called it. The pools of its parent have no
//! threads there, and a call that runs on one of them never returns. In such a process, make larger
//! calls in [`sequential`], or inside a pool that the process itself has made.
//!
//! # Allocations
//!
//! - [`step`], [`step_with_master`], [`step_list`], [`step_raw`], [`TensorList::step_raw`],
//!   [`TensorList::update`], [`sync_master`] and [`sync_master_raw`] do not allocate.
//! - [`TensorList::new`] allocates some 520 bytes for each tensor, as does each call of
//!   [`step_list_raw`], which makes a list.
//! - [`DualAdam::step`] allocates in its first call. A later call does so only if its tensors are
//!   at more different steps than before, so that it needs more coefficients.
//! - rayon allocates a block for its queue in about one of 60 calls from outside its pool. A call
//!   inside `rayon::ThreadPool::install` allocates nothing.

mod buffer;
mod kernels;
mod list;
mod loops;
mod optimizer;
mod parts;
mod sync;
mod threads;
mod update;

pub use buffer::{Buffer, BufferMut, Tensor};
pub use list::{TensorList, step_list, step_list_raw, step_raw};
pub use optimizer::DualAdam;
pub use sync::{sync_master, sync_master_raw, sync_master_raw_with};
pub use threads::{MAX_SEQUENTIAL, sequential};

use crate::rule::StepCoeffs;
use crate::tensor::{Element, GradOf, HalfElement, RawTensor, TensorError};
use buffer::{check_lens, raw, raw_mut};
use kernels::Job;

/// One DualAdam step of one tensor, in one pass over its buffers.
///
/// - `param`: the parameters. Read and written.
/// - `grad`: the gradients. Only read.
/// - `exp_avg`, `exp_avg_sq`: the first and second moments, 0 before the first step. Read and
///   written.
/// - `coeffs`: the coefficients of this step, which
///   [`DualAdamConfig::coeffs`](crate::DualAdamConfig::coeffs) forms. The
///   operations are those of [`StepCoeffs`].
///
/// All buffers have the same length, which may be 0.
///
/// # Errors
///
/// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a buffer has another length than
///   `param`. Nothing is written.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, cpu};
///
/// let config = DualAdamConfig::adam();
/// let (mut x, mut exp_avg, mut exp_avg_sq) = ([1.0_f32, -2.0], [0.0; 2], [0.0; 2]);
/// for step in 1..=3 {
///     let grad = x.map(|x| 2.0 * x);
///     cpu::step(&mut x, &grad, &mut exp_avg, &mut exp_avg_sq, &config.coeffs(step)?)?;
/// }
/// assert!((x[0] - 0.997).abs() < 1e-6 && (x[1] + 1.997).abs() < 1e-6);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub fn step<P: Element, G: GradOf<P>>(
    param: &mut [P],
    grad: &[G],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    coeffs: &StepCoeffs,
) -> Result<(), TensorError> {
    flat(param, grad, exp_avg, exp_avg_sq, None, coeffs)
}

/// [`step`] of 16-bit parameters that have f32 masters, in the same pass.
///
/// 16 bits alone lose most small updates. The step updates `master`, and writes its value to
/// `param`, rounded once to nearest even. `param` is not read: the caller sets the masters from the
/// parameters before the first step. The other arguments are those of [`step`].
///
/// # Errors
///
/// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a buffer has another length than
///   `param`. Nothing is written.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, cpu};
/// use half::bf16;
///
/// let (mut param, mut master) = ([bf16::ONE], [1.0_f32]);
/// let (grad, mut exp_avg, mut exp_avg_sq) = ([bf16::ONE], [0.0], [0.0]);
/// let coeffs = DualAdamConfig::adam().coeffs(1)?;
/// cpu::step_with_master(&mut param, &grad, &mut exp_avg, &mut exp_avg_sq, &mut master, &coeffs)?;
/// assert_eq!(master, [0.999]);
/// assert_eq!(param, [bf16::ONE]); // bf16 is too coarse for this step; the master keeps it
/// # Ok::<(), dualadam::Error>(())
/// ```
pub fn step_with_master<P: HalfElement, G: GradOf<P>>(
    param: &mut [P],
    grad: &[G],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    master: &mut [f32],
    coeffs: &StepCoeffs,
) -> Result<(), TensorError> {
    flat(param, grad, exp_avg, exp_avg_sq, Some(master), coeffs)
}

fn flat<P: Element, G: Element>(
    param: &mut [P],
    grad: &[G],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    master: Option<&mut [f32]>,
    coeffs: &StepCoeffs,
) -> Result<(), TensorError> {
    let lens =
        [Some(grad.len()), Some(exp_avg.len()), Some(exp_avg_sq.len()), master.as_ref().map(|master| master.len())];
    check_lens(0, param.len(), lens)?;
    let moments = (raw_mut(exp_avg), raw_mut(exp_avg_sq));
    let mut tensor = RawTensor::new(param.len() as u64, raw_mut(param), raw(grad), moments.0, moments.1);
    tensor.master = master.map(raw_mut);
    let variant = tensor.variant(0)?;
    // SAFETY: `variant` is that of the tensor's formats. The buffers are slices of its length and
    // formats, which this call borrows.
    unsafe { Job { tensor, variant, sets_master: false }.run(coeffs) };
    Ok(())
}

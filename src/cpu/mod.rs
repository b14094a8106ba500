//! The CPU backend: the embedded default, and the yardstick for the GPUs.
//!
//! - [`step`] and [`step_with_master`] take one tensor's flat buffers as slices, [`step_raw`] as
//!   addresses.
//! - [`step_list`] takes any number of tensors of mixed formats, each with its own coefficients;
//!   [`TensorList`] by address.
//! - [`DualAdam`] owns the moments and counts the steps.
//!
//! [`step`], [`step_with_master`], [`step_raw`], [`step_list`], and the steps and updates of a
//! [`TensorList`] do not allocate. Making such a list does, and so does [`step_list_raw`], which
//! makes one for each call: some 630 bytes a tensor. rayon's queue, which takes work from outside
//! its pool, grows by a block once in some 60 calls.
//!
//! Work above some 32,000 elements runs on the current rayon pool: install a pool of your own to
//! choose the threads. Without the feature `rayon` it stays on the calling thread. The result is
//! the same to the bit (NaNs as a class) for any number of threads, any processor, any grouping
//! into lists, and, on x86-64 and aarch64, whatever rounding mode and handling of subnormals the
//! calling thread has set.
//!
//! Special values follow IEEE 754: a NaN or infinite gradient makes its own element NaN or infinite
//! and touches no other.

mod buffer;
mod kernels;
mod list;
mod loops;
mod optimizer;
mod threads;
mod update;

pub use buffer::{Buffer, BufferMut, Tensor};
pub use list::{TensorList, step_list, step_list_raw, step_raw};
pub use optimizer::DualAdam;

use crate::rule::StepCoeffs;
use crate::tensor::{Element, GradOf, HalfElement, RawTensor, TensorError};
use buffer::{check_lens, raw, raw_mut};
use kernels::Job;

/// One DualAdam step over flat buffers, in one pass.
///
/// All four buffers have one length, which may be 0. `param` and the moments are read and written;
/// the rule is that of [`StepCoeffs`].
///
/// # Errors
///
/// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a buffer's length differs from the
///   parameters'. Nothing is written then.
///
/// # Example
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

/// [`step`] of 16-bit parameters with f32 masters, in the same pass.
///
/// A model in bf16 or f16 needs that: alone, 16 bits lose most small updates. The master is what is
/// updated, and `param` gets its value, rounded once to nearest even; `param` is never read.
///
/// # Errors
///
/// As [`step`].
///
/// # Example
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
/// assert_eq!(param, [bf16::ONE]); // the step is smaller than bf16 can show; the master kept it
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
    // SAFETY: the buffers are slices of the tensor's length and formats, borrowed for this call.
    unsafe { Job { tensor, variant, sets_master: false }.run(coeffs) };
    Ok(())
}

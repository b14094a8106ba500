//! The CPU backend: the embedded default, and the yardstick for the GPUs.
//!
//! [`step`] and [`step_with_copy`] take one tensor's flat buffers, [`step_list`] any number of tensors of mixed types, each
//! with its own coefficient set. They own nothing and allocate nothing; rayon's queue, which takes work from outside its pool, grows by
//! a block once in some 60 calls. [`DualAdam`] owns the moments and counts the steps.
//!
//! Work above some 32,000 elements runs on the current rayon pool: install a pool of your own to choose the threads. The
//! result is the same to the bit (NaNs as a class) for any number of threads, any processor and any grouping into lists.
//!
//! Special values follow IEEE 754: a NaN or infinite gradient makes its own element NaN or infinite and touches no other.

mod launch;
mod list;
mod optimizer;
mod tensor;
mod update;

pub use list::{TensorList, step_list_raw, step_raw};
pub use optimizer::DualAdam;
pub use tensor::{CopyMut, Grads, ParamsMut, Tensor, step_list};

use crate::dtype::{Element, GradOf, HalfElement};
use crate::{Error, StepCoeffs};
use launch::{NO_COPY, Streams};

/// One DualAdam step over flat buffers, in one pass.
///
/// All four buffers have one length, which may be 0. `params` and the moments are read and written; the rule is that of
/// [`StepCoeffs`].
///
/// # Errors
///
/// [`Error::Length`] if a buffer's length differs from the parameters'; nothing is written then.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, cpu};
///
/// let config = DualAdamConfig::adam();
/// let (mut x, mut exp_avg, mut exp_avg_sq) = ([1.0_f32, -2.0], [0.0; 2], [0.0; 2]);
/// for step in 1..=3 {
///     let grads = x.map(|x| 2.0 * x);
///     cpu::step(&mut x, &grads, &mut exp_avg, &mut exp_avg_sq, &config.coeffs(step)?)?;
/// }
/// assert!((x[0] - 0.997).abs() < 1e-6 && (x[1] + 1.997).abs() < 1e-6);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub fn step<P: Element, G: GradOf<P>>(
    params: &mut [P],
    grads: &[G],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    coeffs: &StepCoeffs,
) -> Result<(), Error> {
    let mut copy = NO_COPY;
    let copy = &mut copy[..params.len()];
    let streams = Streams { params, grads, exp_avg, exp_avg_sq, copy };
    streams.check(0)?;
    streams.run(coeffs);
    Ok(())
}

/// [`step`] over f32 masters that also writes each new parameter, narrowed once, into `copy`, in the same pass.
///
/// This is what a model in bf16 or f16 needs: alone, 16 bits lose most small updates. `copy` is only written.
///
/// # Errors
///
/// [`Error::Length`] if a buffer's length differs from the masters'; nothing is written then.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, cpu};
/// use half::bf16;
///
/// let (mut master, mut model) = ([1.0_f32], [bf16::ONE]);
/// let (grads, mut exp_avg, mut exp_avg_sq) = ([bf16::ONE], [0.0], [0.0]);
/// let coeffs = DualAdamConfig::adam().coeffs(1)?;
/// cpu::step_with_copy(&mut master, &mut model, &grads, &mut exp_avg, &mut exp_avg_sq, &coeffs)?;
/// assert_eq!(master, [0.999]);
/// assert_eq!(model, [bf16::ONE]); // the step is smaller than bf16 can show; the master kept it
/// # Ok::<(), dualadam::Error>(())
/// ```
pub fn step_with_copy<C: HalfElement, G: GradOf<f32> + GradOf<C>>(
    masters: &mut [f32],
    copy: &mut [C],
    grads: &[G],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
    coeffs: &StepCoeffs,
) -> Result<(), Error> {
    let streams = Streams { params: masters, grads, exp_avg, exp_avg_sq, copy };
    streams.check(0)?;
    streams.run(coeffs);
    Ok(())
}

//! Configurations, the weight of the inverse branch, and coefficients.

use dualadam::DualAdamConfig;

use crate::arguments::read;
use crate::results::{Out, StructOut};
use crate::status::{Failure, border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_config};

/// Reads a config, whose values may be out of range still.
///
/// # Safety
///
/// - `config` can be read for as many bytes as its size says.
pub(crate) unsafe fn read_config(config: *const dualadam_config) -> Result<DualAdamConfig, Failure> {
    // SAFETY: `config` can be read for its size (this function's requirement).
    unsafe { read("config", config) }?.convert("config".into())
}

/// Checks every field, also as the float that the kernels will see, for every step at once. The
/// functions that take a config check it too.
///
/// # Errors
///
/// - `DUALADAM_STATUS_ENUM` for an unknown number of a decay, an inverse term or a schedule, or a
///   `maximize` that is not 0 or 1.
/// - `DUALADAM_STATUS_VALUE` for the first field that is NaN, infinite, negative or out of range,
///   an eps that rounds to 0, an lr with which lr / (1 - beta1) / eps overflows, or a weight_decay
///   that is not 0 without a kind.
///
/// # Safety
///
/// - `config` can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_validate(config: *const dualadam_config) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (this function's requirement).
        let config = unsafe { read_config(config) }?;
        Ok(config.validate()?)
    })
}

/// Writes alpha, the weight of the inverse branch in a tensor's `step`-th update, in 0..1. Step 0
/// gives the value before the first.
///
/// # Safety
///
/// - `config` can be read for as many bytes as its size says.
/// - `alpha` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_alpha(
    config: *const dualadam_config,
    step: u64,
    alpha: *mut f64,
) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (the first requirement).
        let config = unsafe { read_config(config) }?;
        let out = Out::new("alpha", alpha)?;
        config.validate()?;
        // SAFETY: `alpha` can be written (the second requirement).
        unsafe { out.write(config.schedule.alpha(step)) };
        Ok(())
    })
}

/// Writes the first step whose alpha is 0, from which on the update is plain Adam. `exists` gets 1,
/// or 0 if there is no such step; `step` is 0 then.
///
/// # Safety
///
/// - `config` can be read for as many bytes as its size says.
/// - `step` and `exists` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_first_adam_step(
    config: *const dualadam_config,
    step: *mut u64,
    exists: *mut u32,
) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (the first requirement).
        let config = unsafe { read_config(config) }?;
        let (step, exists) = (Out::new("step", step)?, Out::new("exists", exists)?);
        config.validate()?;
        let first = config.schedule.first_adam_step();
        // SAFETY: `step` and `exists` can be written (the second requirement).
        unsafe {
            step.write(first.unwrap_or(0));
            exists.write(first.is_some().into());
        }
        Ok(())
    })
}

/// Writes the coefficients of a tensor's `step`-th update, for gradients that are first multiplied
/// by `grad_multiplier`: 1, a clip factor, the inverse of a loss scale, or their product. `size` is
/// sizeof(dualadam_coeffs).
///
/// # Errors
///
/// - `DUALADAM_STATUS_STEP_ZERO` for step 0: steps count from 1.
/// - `DUALADAM_STATUS_VALUE` for a multiplier that is NaN, infinite or negative, or above 0 and 0
///   or infinite as a float.
///
/// # Safety
///
/// - `config` can be read for as many bytes as its size says.
/// - `coeffs` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_coeffs(
    config: *const dualadam_config,
    step: u64,
    grad_multiplier: f64,
    coeffs: *mut dualadam_coeffs,
    size: usize,
) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (the first requirement).
        let config = unsafe { read_config(config) }?;
        let out = StructOut::new("coeffs", coeffs, size)?;
        let made = config.coeffs_scaled(step, grad_multiplier)?;
        // SAFETY: `coeffs` can be written for `size` bytes (the second requirement).
        unsafe { out.write(dualadam_coeffs::from(&made)) };
        Ok(())
    })
}

//! Configurations, the weight of the inverse branch, and coefficients.

use crate::arguments::{check_pointer, read};
use crate::results::{give, give_struct};
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_config};

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
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_validate(config: *const dualadam_config) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (required of every call).
        let config = unsafe { read("config", config) }?;
        Ok(config.validate()?)
    })
}

/// Writes alpha, the weight of the inverse branch in a tensor's `step`-th update, in 0..1. Step 0
/// gives the value before the first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_alpha(
    config: *const dualadam_config,
    step: u64,
    alpha: *mut f64,
) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (required of every call).
        let config = unsafe { read("config", config) }?;
        let make = || Ok(config.validate().map(|()| config.schedule.alpha(step))?);
        // SAFETY: `alpha` can be written (required of every call).
        unsafe { give("alpha", alpha, make) }
    })
}

/// Writes the first step whose alpha is 0, from which on the update is plain Adam. `exists` gets 1,
/// or 0 if there is no such step; `step` is 0 then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_first_adam_step(
    config: *const dualadam_config,
    step: *mut u64,
    exists: *mut u32,
) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (required of every call).
        let config = unsafe { read("config", config) }?;
        check_pointer("step".into(), step)?;
        check_pointer("exists".into(), exists)?;
        config.validate()?;
        let first = config.schedule.first_adam_step();
        // SAFETY: `step` and `exists` can be written (required of every call) and are aligned.
        unsafe {
            step.write(first.unwrap_or(0));
            exists.write(first.is_some().into());
        }
        Ok(())
    })
}

/// Writes the coefficients of a tensor's `step`-th update, for gradients that are first multiplied
/// by `grad_multiplier`: 1, a clip factor, the inverse of a loss scale, or their product.
///
/// # Errors
///
/// - `DUALADAM_STATUS_STEP_ZERO` for step 0: steps count from 1.
/// - `DUALADAM_STATUS_VALUE` for a multiplier that is NaN, infinite or negative, or above 0 and 0
///   or infinite as a float.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_coeffs(
    config: *const dualadam_config,
    step: u64,
    grad_multiplier: f64,
    coeffs: *mut dualadam_coeffs,
    size: usize,
) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (required of every call).
        let config = unsafe { read("config", config) }?;
        let make = || Ok(dualadam_coeffs::from(&config.coeffs_scaled(step, grad_multiplier)?));
        // SAFETY: `coeffs` can be written for `size` bytes (required of every call).
        unsafe { give_struct("coeffs", coeffs, size, make) }
    })
}

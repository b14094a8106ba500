//! Configs, the weight alpha of the inverse update, and coefficients.

use crate::arguments::{check_pointer, read};
use crate::results::{give, give_struct};
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_config};

/// Checks every field of a config, also after rounding to float, for all steps at once. Functions
/// that take a config do the same check.
///
/// # Errors
///
/// - Argument errors of a struct (see the head of this file).
/// - `DUALADAM_STATUS_ENUM` for an unknown `weight_decay_kind`, `inverse_term` or `schedule`, or a
///   `maximize` that is not 0 or 1.
/// - `DUALADAM_STATUS_VALUE` for the first field that is NaN or out of the range that the struct
///   states.
/// - `DUALADAM_STATUS_VALUE` for an lr so large that lr / (1 - beta1) * (1 / eps + eps) or
///   lr * weight_decay overflows as a float.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_validate(config: *const dualadam_config) -> dualadam_status {
    border(|| {
        // SAFETY: `config` can be read for its size (required of every call).
        let config = unsafe { read("config", config) }?;
        Ok(config.validate()?)
    })
}

/// Writes alpha, the weight of the inverse update in a tensor's `step`-th update, from 0 to 1. The
/// schedule of the config gives it. Step 0 stands for the time before the first update.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
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

/// Writes the first step whose alpha is 0. From that step on, the update is plain Adam. `exists`
/// gets 1, or 0 if there is no such step; `step` gets 0 in that case.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
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

/// Writes the coefficients of a tensor's `step`-th update. `step` counts the updates of that tensor
/// and begins at 1. `size` is sizeof(dualadam_coeffs).
///
/// The step multiplies the gradients by `grad_multiplier` first: 1, a clip factor, the inverse of a
/// loss scale, or their product.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_STEP_ZERO` for step 0.
/// - `DUALADAM_STATUS_VALUE` for a `grad_multiplier` that is NaN, infinite or negative, or that is
///   above 0 and rounds to 0 or to infinity as a float.
///
/// # Example
///
/// ```c
/// dualadam_coeffs coeffs;
/// double multiplier = 1.0 / 1024; // of a loss that was multiplied by 1,024
/// dualadam_config_coeffs(config, step, multiplier, &coeffs, sizeof coeffs);
/// ```
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

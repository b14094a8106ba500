//! Configurations, the weight of the inverse branch, and coefficients.

use std::ptr;

use crate::DualAdamConfig;

use super::arguments::{Out, StructOut, read};
use super::status::{Failure, border, dualadam_status};
use super::types::dualadam_tensor_layout;
use super::types::{DUALADAM_DTYPE_F32, DUALADAM_DTYPE_NONE, dualadam_coeffs, dualadam_config, dualadam_tensor};

/// Reads a configuration; its values may be out of range still.
///
/// # Safety
///
/// As for [`read`].
unsafe fn read_config(config: *const dualadam_config) -> Result<DualAdamConfig, Failure> {
    // SAFETY: as this function requires.
    unsafe { read("config", config) }?.convert("config".into())
}

/// Fills in the defaults. Call it as `dualadam_config_init(&config, sizeof config)`.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `config` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_init(config: *mut dualadam_config, size: usize) -> dualadam_status {
    border(|| {
        let out = StructOut::new("config", config, size)?;
        let made = dualadam_config::new(out.size(), &DualAdamConfig::default());
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Fills in null buffers of 0 elements, parameters and gradients of type F32, no copy, and set 0. Call it as
/// `dualadam_tensor_init(&tensor, sizeof tensor)`.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `tensor` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_tensor_init(tensor: *mut dualadam_tensor, size: usize) -> dualadam_status {
    border(|| {
        let out = StructOut::new("tensor", tensor, size)?;
        let made = dualadam_tensor {
            size: out.size(),
            params: ptr::null_mut(),
            grads: ptr::null(),
            exp_avg: ptr::null_mut(),
            exp_avg_sq: ptr::null_mut(),
            copy: ptr::null_mut(),
            len: 0,
            params_dtype: DUALADAM_DTYPE_F32,
            grads_dtype: DUALADAM_DTYPE_F32,
            copy_dtype: DUALADAM_DTYPE_NONE,
            set: 0,
        };
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Fills in 0 elements, group 0 and no masters. Call it as `dualadam_tensor_layout_init(&layout, sizeof layout)`.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `layout` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_tensor_layout_init(
    layout: *mut dualadam_tensor_layout,
    size: usize,
) -> dualadam_status {
    border(|| {
        let out = StructOut::new("layout", layout, size)?;
        let made = dualadam_tensor_layout { size: out.size(), len: 0, group: 0, has_master: 0 };
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Checks every field, also as the float that the kernels will see, for every step at once. The functions that take a config check it
/// as well.
///
/// Threads: any; the struct is only read.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`, `DUALADAM_STATUS_ENUM`;
/// `DUALADAM_STATUS_VALUE` for the first field that is NaN, infinite, negative or out of range, an eps that rounds to 0, an lr with which
/// lr / (1 - beta1) / eps overflows, or a weight_decay that is not 0 without a kind.
///
/// # Safety
///
/// `config` can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_validate(config: *const dualadam_config) -> dualadam_status {
    border(|| {
        // SAFETY: as this function requires.
        let config = unsafe { read_config(config) }?;
        Ok(config.validate()?)
    })
}

/// Writes alpha, the weight of the inverse branch in a tensor's `step`-th update, in 0..1. Step 0 gives the value before the first.
///
/// Threads: any; the config is only read.
///
/// Errors: as `dualadam_config_validate`; `DUALADAM_STATUS_NULL` or `DUALADAM_STATUS_MISALIGNED` for `alpha`.
///
/// # Safety
///
/// `config` can be read for as many bytes as its size says; `alpha` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_alpha(
    config: *const dualadam_config,
    step: u64,
    alpha: *mut f64,
) -> dualadam_status {
    border(|| {
        // SAFETY: as this function requires.
        let config = unsafe { read_config(config) }?;
        let out = Out::new("alpha", alpha)?;
        config.validate()?;
        // SAFETY: as this function requires.
        unsafe { out.write(config.schedule.alpha(step)) };
        Ok(())
    })
}

/// Writes the first step whose alpha is 0, from which on the update is plain Adam. `exists` gets 1, or 0 if there is no such step;
/// `step` is 0 then.
///
/// Threads: any; the config is only read.
///
/// Errors: as `dualadam_config_validate`; `DUALADAM_STATUS_NULL` or `DUALADAM_STATUS_MISALIGNED` for `step` and `exists`.
///
/// # Safety
///
/// `config` can be read for as many bytes as its size says; `step` and `exists` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_first_adam_step(
    config: *const dualadam_config,
    step: *mut u64,
    exists: *mut u32,
) -> dualadam_status {
    border(|| {
        // SAFETY: as this function requires.
        let config = unsafe { read_config(config) }?;
        let (step, exists) = (Out::new("step", step)?, Out::new("exists", exists)?);
        config.validate()?;
        let first = config.schedule.first_adam_step();
        // SAFETY: as this function requires.
        unsafe {
            step.write(first.unwrap_or(0));
            exists.write(first.is_some().into());
        }
        Ok(())
    })
}

/// Writes the coefficients of a tensor's `step`-th update, for gradients that are first multiplied by `grad_multiplier`: 1, a clip
/// factor, the inverse of a loss scale, or their product. `size` is sizeof(dualadam_coeffs).
///
/// Threads: any; the config is only read.
///
/// Errors: as `dualadam_config_validate`; `DUALADAM_STATUS_STEP_ZERO`: steps count from 1; `DUALADAM_STATUS_VALUE` for a multiplier that
/// is NaN, infinite or negative, or above 0 and 0 or infinite as a float; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or
/// `DUALADAM_STATUS_SIZE` for `coeffs`.
///
/// # Safety
///
/// `config` can be read for as many bytes as its size says; `coeffs` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_coeffs(
    config: *const dualadam_config,
    step: u64,
    grad_multiplier: f64,
    coeffs: *mut dualadam_coeffs,
    size: usize,
) -> dualadam_status {
    border(|| {
        // SAFETY: as this function requires.
        let config = unsafe { read_config(config) }?;
        let out = StructOut::new("coeffs", coeffs, size)?;
        let made = dualadam_coeffs::new(out.size(), &config.coeffs_scaled(step, grad_multiplier)?);
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

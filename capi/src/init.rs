//! Functions that fill in a struct, before the program sets its own values.

use std::ptr;

use dualadam::DualAdamConfig;

use crate::arguments::Versioned;
use crate::results::StructOut;
use crate::status::{border, dualadam_status};
use crate::types::*;

/// Writes a struct of the caller's version.
///
/// # Safety
///
/// - `to` can be written for `size` bytes.
unsafe fn fill<T: Versioned>(name: &'static str, to: *mut T, size: usize, value: T) -> dualadam_status {
    border(|| {
        let out = StructOut::new(name, to, size)?;
        // SAFETY: `to` can be written for `size` bytes (this function's requirement).
        unsafe { out.write(value) };
        Ok(())
    })
}

/// Fills in the defaults: `dualadam_config_init(&config, sizeof config)`.
///
/// # Safety
///
/// - `config` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_init(config: *mut dualadam_config, size: usize) -> dualadam_status {
    let value = dualadam_config::from(&DualAdamConfig::default());
    // SAFETY: `config` can be written for `size` bytes (this function's requirement).
    unsafe { fill("config", config, size, value) }
}

/// Fills in null buffers of 0 elements, parameters and gradients of type F32, no copy, and set 0:
/// `dualadam_tensor_init(&tensor, sizeof tensor)`.
///
/// # Safety
///
/// - `tensor` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_tensor_init(tensor: *mut dualadam_tensor, size: usize) -> dualadam_status {
    let value = dualadam_tensor {
        size,
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
    // SAFETY: `tensor` can be written for `size` bytes (this function's requirement).
    unsafe { fill("tensor", tensor, size, value) }
}

/// Fills in 0 elements, group 0 and no masters:
/// `dualadam_tensor_layout_init(&layout, sizeof layout)`.
///
/// # Safety
///
/// - `layout` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_tensor_layout_init(
    layout: *mut dualadam_tensor_layout,
    size: usize,
) -> dualadam_status {
    let value = dualadam_tensor_layout { size, len: 0, group: 0, has_master: 0 };
    // SAFETY: `layout` can be written for `size` bytes (this function's requirement).
    unsafe { fill("layout", layout, size, value) }
}

/// Fills in nulls: `dualadam_cuda_control_group_init(&group, sizeof group)`. Set `config` then.
///
/// # Safety
///
/// - `group` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_group_init(
    group: *mut dualadam_cuda_control_group,
    size: usize,
) -> dualadam_status {
    let value = dualadam_cuda_control_group { size, config: ptr::null(), lr_f32: ptr::null(), lr_f64: ptr::null() };
    // SAFETY: `group` can be written for `size` bytes (this function's requirement).
    unsafe { fill("group", group, size, value) }
}

/// Fills in group 0 and a counter in the control's memory:
/// `dualadam_cuda_control_set_init(&set, sizeof set)`.
///
/// # Safety
///
/// - `set` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_init(
    set: *mut dualadam_cuda_control_set,
    size: usize,
) -> dualadam_status {
    let value = dualadam_cuda_control_set { size, group: 0, step: ptr::null_mut() };
    // SAFETY: `set` can be written for `size` bytes (this function's requirement).
    unsafe { fill("set", set, size, value) }
}

/// Fills in nulls: `dualadam_cuda_scalars_init(&scalars, sizeof scalars)`.
///
/// # Safety
///
/// - `scalars` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_scalars_init(
    scalars: *mut dualadam_cuda_scalars,
    size: usize,
) -> dualadam_status {
    let none = ptr::null();
    let value = dualadam_cuda_scalars { size, loss_scale: none, clip_factor: none, found_inf: none };
    // SAFETY: `scalars` can be written for `size` bytes (this function's requirement).
    unsafe { fill("scalars", scalars, size, value) }
}

//! Functions that fill in a struct, before the program sets its own values.

use bytemuck::Zeroable;
use dualadam::DualAdamConfig;

use crate::results::{Answer as _, give_struct};
use crate::status::{border, dualadam_status};
use crate::types::*;

/// Fills in the defaults: `dualadam_config_init(&config, sizeof config)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_init(config: *mut dualadam_config, size: usize) -> dualadam_status {
    // SAFETY: `config` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("config", config, size, || dualadam_config::of(DualAdamConfig::default())) })
}

/// Fills in null buffers of 0 elements, parameters and gradients of type F32, no masters, and
/// coefficients 0: `dualadam_tensor_init(&tensor, sizeof tensor)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_tensor_init(tensor: *mut dualadam_tensor, size: usize) -> dualadam_status {
    let (param_dtype, grad_dtype) = (DUALADAM_DTYPE_F32, DUALADAM_DTYPE_F32);
    let value = dualadam_tensor { param_dtype, grad_dtype, ..Zeroable::zeroed() };
    // SAFETY: `tensor` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("tensor", tensor, size, || Ok(value)) })
}

/// Fills in 0 elements, group 0 and no masters: `dualadam_tensor_spec_init(&spec, sizeof spec)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_tensor_spec_init(spec: *mut dualadam_tensor_spec, size: usize) -> dualadam_status {
    // SAFETY: `spec` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("spec", spec, size, || Ok(Zeroable::zeroed())) })
}

/// Fills in nulls: `dualadam_cuda_control_group_init(&group, sizeof group)`. Set `config` then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_group_init(
    group: *mut dualadam_cuda_control_group,
    size: usize,
) -> dualadam_status {
    // SAFETY: `group` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("group", group, size, || Ok(Zeroable::zeroed())) })
}

/// Fills in group 0 and a counter in the control's memory:
/// `dualadam_cuda_control_set_init(&set, sizeof set)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_init(
    set: *mut dualadam_cuda_control_set,
    size: usize,
) -> dualadam_status {
    // SAFETY: `set` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("set", set, size, || Ok(Zeroable::zeroed())) })
}

/// Fills in nulls: `dualadam_cuda_scalars_init(&scalars, sizeof scalars)`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_scalars_init(
    scalars: *mut dualadam_cuda_scalars,
    size: usize,
) -> dualadam_status {
    // SAFETY: `scalars` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("scalars", scalars, size, || Ok(Zeroable::zeroed())) })
}

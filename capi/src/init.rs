//! Functions that fill in a struct, before the program sets its own values.

use bytemuck::Zeroable;
use dualadam::DualAdamConfig;

use crate::results::{Answer as _, give_struct};
use crate::status::{border, dualadam_status};
use crate::types::*;

/// Fills in a config with the defaults that its fields state. `size` is sizeof(dualadam_config).
///
/// # Errors
///
/// - Argument errors (see the head of this file).
///
/// # Example
///
/// ```c
/// dualadam_config config;
/// dualadam_config_init(&config, sizeof config);
/// config.lr = 3e-4;
/// config.weight_decay_kind = DUALADAM_DECAY_DECOUPLED;
/// config.weight_decay = 0.01;
/// config.switching_rate = 1.0 / 1600; // plain Adam from step 1,600 on
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_config_init(config: *mut dualadam_config, size: usize) -> dualadam_status {
    // SAFETY: `config` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("config", config, size, || dualadam_config::of(DualAdamConfig::default())) })
}

/// Fills in a tensor with null buffers of 0 elements, F32 parameters and gradients, no masters, and
/// coefficient set 0. `size` is sizeof(dualadam_tensor).
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_tensor_init(tensor: *mut dualadam_tensor, size: usize) -> dualadam_status {
    let (param_dtype, grad_dtype) = (DUALADAM_DTYPE_F32, DUALADAM_DTYPE_F32);
    let value = dualadam_tensor { param_dtype, grad_dtype, ..Zeroable::zeroed() };
    // SAFETY: `tensor` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("tensor", tensor, size, || Ok(value)) })
}

/// Fills in a spec with 0 elements, group 0 and no masters. `size` is sizeof(dualadam_tensor_spec).
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_tensor_spec_init(spec: *mut dualadam_tensor_spec, size: usize) -> dualadam_status {
    // SAFETY: `spec` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("spec", spec, size, || Ok(Zeroable::zeroed())) })
}

/// Fills in a group of a control with nulls. The caller must then set `config`. `size` is
/// sizeof(dualadam_cuda_control_group).
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_group_init(
    group: *mut dualadam_cuda_control_group,
    size: usize,
) -> dualadam_status {
    // SAFETY: `group` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("group", group, size, || Ok(Zeroable::zeroed())) })
}

/// Fills in a set of a control with group 0 and a counter in the control's own memory. `size` is
/// sizeof(dualadam_cuda_control_set).
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_init(
    set: *mut dualadam_cuda_control_set,
    size: usize,
) -> dualadam_status {
    // SAFETY: `set` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("set", set, size, || Ok(Zeroable::zeroed())) })
}

/// Fills in scalars with nulls. `size` is sizeof(dualadam_cuda_scalars).
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_scalars_init(
    scalars: *mut dualadam_cuda_scalars,
    size: usize,
) -> dualadam_status {
    // SAFETY: `scalars` can be written for `size` bytes (required of every call).
    border(|| unsafe { give_struct("scalars", scalars, size, || Ok(Zeroable::zeroed())) })
}

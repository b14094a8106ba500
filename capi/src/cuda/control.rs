//! Controls: learning rates, step counters and what skips a step lie in device memory.

use std::ffi::c_void;

use dualadam::cuda::{Control, Kernels};

use crate::arguments::{read, read_all};
use crate::handles::{Locked, dualadam_cuda_control, dualadam_cuda_kernels, get, insert_locked, lock, remove};
use crate::results::{Answer as _, give, give_struct};
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_config, dualadam_cuda_control_group, dualadam_cuda_control_set};

/// Makes a control: coefficient sets whose hyperparameters, learning rates and step counters lie in
/// device memory. Steps that it controls need nothing of the host, can be skipped by the device,
/// and go on counting when a CUDA graph that captured them is launched again. Waits until all is
/// there.
///
/// `groups` is an array of the parameter groups, `sets` one of the coefficient sets, of which each
/// tensor of a list names one by its `coeffs_index`. All counters that are not the caller's are 0.
/// The control keeps the kernels. It serves one list.
///
/// Capture: allowed while any stream is being captured.
///
/// # Errors
///
/// - `DUALADAM_STATUS_EMPTY` for no set at all.
/// - `DUALADAM_STATUS_POSITION` for a set's group that is not there.
/// - `DUALADAM_STATUS_CUDA_ADDRESS` for a counter or lr that is misaligned, a counter that overlaps
///   another or an lr, or a group with both an lr of type float and one of type double.
/// - `DUALADAM_STATUS_TOO_MANY` or `DUALADAM_STATUS_MEMORY` for more than can be.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_new(
    kernels: dualadam_cuda_kernels,
    groups: *const dualadam_cuda_control_group,
    group_count: usize,
    sets: *const dualadam_cuda_control_set,
    set_count: usize,
    control: *mut dualadam_cuda_control,
) -> dualadam_status {
    border(|| {
        let kernels: Kernels = get(kernels)?;
        let make = || {
            // SAFETY: the structs and configs can be read for their sizes (required of every call).
            let (groups, sets) =
                unsafe { (read_all("groups", groups, group_count)?, read_all("sets", sets, set_count)?) };
            Ok(insert_locked(Control::new(&kernels, &groups, &sets)?))
        };
        // SAFETY: `control` can be written (required of every call).
        unsafe { give("control", control, make) }
    })
}

/// Frees a control.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_control_free(control: dualadam_cuda_control) -> dualadam_status {
    border(|| remove::<Locked<Control>>(control))
}

/// Writes the config of a control's group as the host knows it: with the lr that
/// `dualadam_cuda_control_set_lr` or `dualadam_cuda_control_set_config` last gave it. Nothing is
/// read from the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_config(
    control: dualadam_cuda_control,
    group: usize,
    config: *mut dualadam_config,
    size: usize,
) -> dualadam_status {
    border(|| {
        let control: Locked<Control> = get(control)?;
        let make = || dualadam_config::of(lock(&control).config(group)?);
        // SAFETY: `config` can be written for `size` bytes (required of every call).
        unsafe { give_struct("config", config, size, make) }
    })
}

/// Sets the learning rate of a group for the steps that come later on `stream`, also for those of
/// CUDA graphs. The call does not allocate. It blocks only when all four changes before are still
/// in flight.
///
/// # Errors
///
/// - `DUALADAM_STATUS_VALUE` for an lr that is not valid with the rest of the config.
/// - `DUALADAM_STATUS_CUDA_CALLERS_LR` if the lr lies in the caller's memory.
/// - `DUALADAM_STATUS_CUDA_DRIVER`: the device may have the old or the new lr.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_lr(
    control: dualadam_cuda_control,
    group: usize,
    lr: f64,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control: Locked<Control> = get(control)?;
        // SAFETY: `stream` is live (required of every call), and the steps are ordered (required of
        // a control's calls).
        Ok(unsafe { lock(&control).set_lr(group, lr, stream) }?)
    })
}

/// Sets the whole config of a group for the steps that come later on `stream`, also for those of
/// CUDA graphs. An lr in the caller's memory stays the one that is read.
///
/// # Errors
///
/// - As `dualadam_cuda_control_set_lr`, other than `DUALADAM_STATUS_CUDA_CALLERS_LR`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_config(
    control: dualadam_cuda_control,
    group: usize,
    config: *const dualadam_config,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control: Locked<Control> = get(control)?;
        // SAFETY: `config` can be read for its size (required of every call).
        let config = unsafe { read("config", config) }?;
        // SAFETY: `stream` is live (required of every call), and the steps are ordered (required of
        // a control's calls).
        Ok(unsafe { lock(&control).set_config(group, config, stream) }?)
    })
}

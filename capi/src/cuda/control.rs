//! Controls: learning rates, hyperparameters and step counters in device memory.

use std::ffi::c_void;

use dualadam::cuda::{Control, Kernels};

use crate::arguments::{read, read_all};
use crate::handles::{Locked, dualadam_cuda_control, dualadam_cuda_kernels, get, insert_locked, lock, remove};
use crate::results::{Answer as _, give, give_struct};
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_config, dualadam_cuda_control_group, dualadam_cuda_control_set};

/// Makes a control: parameter groups and coefficient sets whose hyperparameters, learning rates and
/// step counters lie in device memory. `dualadam_cuda_list_step_controlled` makes steps with it.
/// The host does not take part in such a step, the device can skip it, and a CUDA graph that
/// captured it counts on in each launch. The call waits until all is in device memory.
///
/// `groups` is an array of `group_count` structs, `sets` an array of `set_count` structs. Each
/// tensor of a list names a set by its `coeffs_index`. A control serves one list. Counters in the
/// control's own memory begin at 0. The control keeps what it needs of `kernels`, which may be
/// freed before it.
///
/// Capture: the call is allowed while a stream is being captured.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_EMPTY` for no set.
/// - `DUALADAM_STATUS_POSITION` for a set whose `group` is not below `group_count`.
/// - `DUALADAM_STATUS_CUDA_ADDRESS` for a counter or learning rate that is misaligned, a counter
///   that overlaps another counter or a learning rate, or a group with both `lr_f32` and `lr_f64`.
/// - `DUALADAM_STATUS_TOO_MANY` for more than 2^32 - 1 sets.
///
/// # Example
///
/// One group whose learning rate the caller's own kernels write, `lr` being its device address:
///
/// ```c
/// dualadam_cuda_control_group group;
/// dualadam_cuda_control_set set;
/// dualadam_cuda_control control;
/// dualadam_cuda_control_group_init(&group, sizeof group);
/// dualadam_cuda_control_set_init(&set, sizeof set);
/// group.config = config;
/// group.lr_f32 = lr;
/// dualadam_cuda_control_new(kernels, &group, 1, &set, 1, &control);
/// dualadam_cuda_list_step_controlled(list, control, NULL, stream);
/// ```
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

/// Frees a control. The call does not wait for the device: the control's memory is freed after its
/// last step, and after the last CUDA graph that captured a step.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_control_free(control: dualadam_cuda_control) -> dualadam_status {
    border(|| remove::<Locked<Control>>(control))
}

/// Writes the config of a control's group as the host knows it: with the lr that
/// `dualadam_cuda_control_set_lr` or `dualadam_cuda_control_set_config` set last. `size` is
/// sizeof(dualadam_config). The call reads nothing from the device.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
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

/// Sets the learning rate of a group, for later steps on `stream` and for later launches of CUDA
/// graphs there. The call does not allocate. It blocks only when all four staging slots are in
/// flight, each with an earlier change.
///
/// # Errors
///
/// - Argument errors (see the head of this file), and those that `dualadam_cuda_control` lists.
/// - `DUALADAM_STATUS_VALUE` for an `lr` that is not valid with the rest of the config.
/// - `DUALADAM_STATUS_CUDA_CALLERS_LR` if the group's learning rate lies in the caller's memory.
/// - `DUALADAM_STATUS_CUDA_DRIVER`. The device may have the old or the new learning rate.
///
/// # Safety
///
/// - As `dualadam_cuda_control` lists.
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

/// Sets the whole config of a group, for later steps on `stream` and for later launches of CUDA
/// graphs there. If the group's learning rate lies in the caller's memory, steps go on reading it
/// there.
///
/// # Errors
///
/// - As `dualadam_cuda_control_set_lr`, without `DUALADAM_STATUS_CUDA_CALLERS_LR`.
///
/// # Safety
///
/// - As `dualadam_cuda_control` lists.
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

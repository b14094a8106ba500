//! Controls: learning rates, step counters and what skips a step lie in device memory.

use std::ffi::c_void;

use dualadam::Error;
use dualadam::cuda::{Control, ControlGroup, ControlSet, RawLr};

use super::kernels;
use crate::arguments::{Place, collect, read};
use crate::config::read_config;
use crate::handles::{self, Locked, dualadam_cuda_control, dualadam_cuda_kernels, lock};
use crate::results::{Out, StructOut};
use crate::status::{Failure, border, dualadam_status};
use crate::types::{address_of, dualadam_config, dualadam_cuda_control_group, dualadam_cuda_control_set};

pub(super) fn get(control: dualadam_cuda_control) -> Result<Locked<Control>, Failure> {
    handles::get("control", control)
}

impl dualadam_cuda_control_group {
    /// The group, with the config that it points to.
    ///
    /// # Safety
    ///
    /// - The config can be read for as many bytes as its size says.
    unsafe fn convert(&self, place: Place) -> Result<ControlGroup, Failure> {
        let at = place.field("config");
        // SAFETY: the config can be read for its size (this function's requirement).
        let config = unsafe { read(at, self.config) }?.convert(at)?;
        let lr = match (address_of(self.lr_f32), address_of(self.lr_f64)) {
            (0, 0) => None,
            (lr, 0) => Some(RawLr::F32(lr)),
            (0, lr) => Some(RawLr::F64(lr)),
            (_, address) => {
                let (argument, requirement) = (format!("lr_f64 of {place}"), "be null where lr_f32 is not".into());
                return Err(Error::Address { argument, requirement, address }.into());
            }
        };
        Ok(ControlGroup { config, lr })
    }
}

/// Makes a control: coefficient sets whose hyperparameters, learning rates and step counters lie in
/// device memory. Steps that it controls need nothing of the host, can be skipped by the device,
/// and go on counting when a CUDA graph that captured them is launched again. Waits until all is
/// there.
///
/// `groups` is an array of the parameter groups, `sets` one of the coefficient sets, which the
/// `set` of a list's tensors counts. All counters that are not the caller's are 0. `control` gets
/// the handle; free it with `dualadam_cuda_control_free`. The control keeps the kernels. It serves
/// one list.
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
/// - `DUALADAM_STATUS_CUDA_PTX` if the driver refuses the kernel that prepares sets.
/// - `DUALADAM_STATUS_CUDA_DRIVER`.
///
/// # Safety
///
/// - Each struct, and the config of each group, can be read for as many bytes as its size says.
/// - `control` can be written.
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
        let kernels = kernels::get(kernels)?;
        let out = Out::new("control", control)?;
        // SAFETY: the structs and configs can be read for their sizes (the first requirement).
        let (groups, sets) = unsafe {
            let groups = collect("groups", groups, group_count, |_, place, group| group.convert(place))?;
            (groups, collect("sets", sets, set_count, |_, _, set| Ok(ControlSet::from(set)))?)
        };
        let made = Control::new(&kernels, &groups, &sets)?;
        // SAFETY: `control` can be written (the second requirement).
        unsafe { out.write(handles::insert_locked(made)) };
        Ok(())
    })
}

/// Frees a control; the handle is stale from then on. The call waits for nothing: the control's
/// memory is freed after its last step, in the order of a stream. So a control may be freed while
/// any stream is being captured. A CUDA graph that captured steps with it may still be launched:
/// the memory stays until the graph is destroyed. The library must stay loaded until then.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_control_free(control: dualadam_cuda_control) -> dualadam_status {
    border(|| handles::remove::<Locked<Control>>("control", control))
}

/// Writes the config of a control's group, numbered from 0, as the host knows it: with the lr that
/// `dualadam_cuda_control_set_lr` or `dualadam_cuda_control_set_config` last gave it. Nothing is
/// read from the device. `size` is sizeof(dualadam_config).
///
/// # Errors
///
/// - `DUALADAM_STATUS_POSITION` if there is no such group.
///
/// # Safety
///
/// - `config` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_config(
    control: dualadam_cuda_control,
    group: usize,
    config: *mut dualadam_config,
    size: usize,
) -> dualadam_status {
    border(|| {
        let control = get(control)?;
        let out = StructOut::new("config", config, size)?;
        let made = dualadam_config::from(&lock(&control).config(group)?);
        // SAFETY: `config` can be written for `size` bytes (this function's requirement).
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Sets the learning rate of a group, numbered from 0, for the steps that come later on `stream`,
/// also for those of CUDA graphs. The call does not allocate. It blocks only when all four changes
/// before are still in flight.
///
/// Capture: not on a stream that is being captured. Change it between the launches of a graph.
///
/// # Errors
///
/// Nothing is changed then, except after `DUALADAM_STATUS_CUDA_DRIVER`.
///
/// - `DUALADAM_STATUS_POSITION` if there is no such group.
/// - `DUALADAM_STATUS_VALUE` for an lr that is not valid with the rest of the config.
/// - `DUALADAM_STATUS_CUDA_CALLERS_LR` if the lr lies in the caller's memory.
/// - `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of another context.
/// - `DUALADAM_STATUS_CUDA_CAPTURED`.
/// - `DUALADAM_STATUS_CUDA_DRIVER`: the device may have the old or the new lr.
///
/// # Safety
///
/// - `stream` is null or live.
/// - Steps with this control on other streams, or of graphs there, are ordered before or after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_lr(
    control: dualadam_cuda_control,
    group: usize,
    lr: f64,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control = get(control)?;
        // SAFETY: `stream` is live, and the steps are ordered (this function's requirements).
        Ok(unsafe { lock(&control).set_lr(group, lr, stream) }?)
    })
}

/// Sets the whole config of a group, numbered from 0, for the steps that come later on `stream`,
/// also for those of CUDA graphs. An lr in the caller's memory stays the one that is read.
///
/// Capture: not on a stream that is being captured. Change it between the launches of a graph.
///
/// # Errors
///
/// - As `dualadam_cuda_control_set_lr`, other than `DUALADAM_STATUS_CUDA_CALLERS_LR`.
///
/// # Safety
///
/// - `config` can be read for as many bytes as its size says.
/// - As for `dualadam_cuda_control_set_lr`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_config(
    control: dualadam_cuda_control,
    group: usize,
    config: *const dualadam_config,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control = get(control)?;
        // SAFETY: `config` can be read for its size (the first requirement).
        let config = unsafe { read_config(config) }?;
        // SAFETY: `stream` is live, and the steps are ordered (the second requirement).
        Ok(unsafe { lock(&control).set_config(group, config, stream) }?)
    })
}

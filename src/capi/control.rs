//! Steps over device memory that the device controls: learning rates, step counters and what skips a step lie there.

use std::ffi::c_void;
use std::ptr;

use super::arguments::StructOut;
use super::handles::{dualadam_cuda_control, dualadam_cuda_kernels, dualadam_cuda_list};
use super::status::{border, dualadam_status};
use super::types::{
    dualadam_coeffs, dualadam_config, dualadam_cuda_control_group, dualadam_cuda_control_set, dualadam_cuda_scalars,
    dualadam_cuda_set_report,
};

/// Fills in nulls. Call it as `dualadam_cuda_control_group_init(&group, sizeof group)`, and set `config` then.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `group` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_group_init(
    group: *mut dualadam_cuda_control_group,
    size: usize,
) -> dualadam_status {
    border(|| {
        let out = StructOut::new("group", group, size)?;
        let size = out.size();
        let made = dualadam_cuda_control_group { size, config: ptr::null(), lr_f32: ptr::null(), lr_f64: ptr::null() };
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Fills in group 0 and no counter of the caller's. Call it as `dualadam_cuda_control_set_init(&set, sizeof set)`.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `set` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_init(
    set: *mut dualadam_cuda_control_set,
    size: usize,
) -> dualadam_status {
    border(|| {
        let out = StructOut::new("set", set, size)?;
        let made = dualadam_cuda_control_set { size: out.size(), group: 0, step: ptr::null_mut() };
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Fills in nulls. Call it as `dualadam_cuda_scalars_init(&scalars, sizeof scalars)`.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `scalars` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_scalars_init(
    scalars: *mut dualadam_cuda_scalars,
    size: usize,
) -> dualadam_status {
    border(|| {
        let out = StructOut::new("scalars", scalars, size)?;
        let (size, none) = (out.size(), ptr::null());
        let made = dualadam_cuda_scalars { size, loss_scale: none, clip_factor: none, found_inf: none };
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Makes a control: coefficient sets whose hyperparameters, learning rates and step counters lie in device memory. Steps that it controls
/// need nothing of the host, can be skipped by the device, and go on counting when a CUDA graph that captured them is launched again.
/// Waits until all is there.
///
/// `groups` is an array of the parameter groups, `sets` one of the coefficient sets, which the `set` of a list's tensors counts; the sizes
/// in each array alike. All counters that are not the caller's are 0. `control` gets the handle, which is to be given back with
/// `dualadam_cuda_control_free`. The control keeps the kernels. It serves one list.
///
/// Capture: allowed while any stream is being captured.
///
/// Threads: any; the structs are only read.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or
/// `DUALADAM_STATUS_SIZE` for the arrays, a group's config and `control`; as `dualadam_config_validate`, for each config;
/// `DUALADAM_STATUS_EMPTY` for no set at all; `DUALADAM_STATUS_POSITION` for a set's group that is not there;
/// `DUALADAM_STATUS_CUDA_ADDRESS` for a counter or lr that is misaligned, a counter that overlaps another or an lr, or a group with both an
/// lr of type float and one of type double; `DUALADAM_STATUS_TOO_MANY` or `DUALADAM_STATUS_MEMORY` for more than can be;
/// `DUALADAM_STATUS_CUDA_PTX` if the driver refuses the kernel that prepares sets; `DUALADAM_STATUS_CUDA_DRIVER`;
/// `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
///
/// # Safety
///
/// Each struct, and the config of each group, can be read for as many bytes as its size says; `control` can be written. Counters and
/// learning rates are looked at later only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_new(
    kernels: dualadam_cuda_kernels,
    groups: *const dualadam_cuda_control_group,
    group_count: usize,
    sets: *const dualadam_cuda_control_set,
    set_count: usize,
    control: *mut dualadam_cuda_control,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::new(kernels, (groups, group_count), (sets, set_count), control) })
}

/// Frees a control; the handle is stale from then on. Nothing is waited for: the control's memory is freed after its last step, in the order
/// of a stream. So it may be freed while any stream is being captured. A CUDA graph that captured steps with it may still be launched: the
/// memory stays until the graph is destroyed. The library must stay loaded until then.
///
/// Threads: any; a call with the same control that is under way in another thread goes on to its end.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, also for one that was freed before; `DUALADAM_STATUS_HANDLE_KIND`;
/// `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_control_free(control: dualadam_cuda_control) -> dualadam_status {
    border(|| work::free(control))
}

/// Writes the config of a control's group, numbered from 0, as the host knows it: with the lr that it was last given by
/// `dualadam_cuda_control_set_lr` or `dualadam_cuda_control_set_config`. Nothing is read from the device. `size` is
/// sizeof(dualadam_config).
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_POSITION` if there is no such group;
/// `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for `config`; `DUALADAM_STATUS_UNSUPPORTED` from a
/// library without CUDA.
///
/// # Safety
///
/// `config` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_config(
    control: dualadam_cuda_control,
    group: usize,
    config: *mut dualadam_config,
    size: usize,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::config(control, group, config, size) })
}

/// Sets the learning rate of a group, numbered from 0, for the steps that come later on `stream`, also for those of CUDA graphs. The call
/// does not allocate, and does not wait for the device unless none of the four changes before has reached it yet.
///
/// Capture: not on a stream that is being captured. Change it between the launches of a graph.
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_POSITION` if there is no such group;
/// `DUALADAM_STATUS_VALUE` for an lr that is not valid with the rest of the config; `DUALADAM_STATUS_CUDA_CALLERS_LR` if it lies in the
/// caller's memory; `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of another context; `DUALADAM_STATUS_CUDA_CAPTURED`. Nothing is changed
/// then. `DUALADAM_STATUS_CUDA_DRIVER`: the device may have the old or the new one. `DUALADAM_STATUS_UNSUPPORTED` from a library without
/// CUDA.
///
/// # Safety
///
/// `stream` is null or live, and steps with this control on other streams, or of graphs there, are ordered before or after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_lr(
    control: dualadam_cuda_control,
    group: usize,
    lr: f64,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::set_lr(control, group, lr, stream) })
}

/// Sets the whole config of a group, numbered from 0, for the steps that come later on `stream`, also for those of CUDA graphs. An lr in the
/// caller's memory stays what is read.
///
/// Capture: not on a stream that is being captured. Change it between the launches of a graph.
///
/// Threads: any; waits for other calls with the same control. The config is only read.
///
/// Errors: as `dualadam_cuda_control_set_lr`, but for `DUALADAM_STATUS_CUDA_CALLERS_LR`; as `dualadam_config_validate`.
///
/// # Safety
///
/// `config` can be read for as many bytes as its size says; else as for `dualadam_cuda_control_set_lr`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_config(
    control: dualadam_cuda_control,
    group: usize,
    config: *const dualadam_config,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::set_config(control, group, config, stream) })
}

/// Reads the step counters of all sets, the caller's own ones too, after the work before on `stream`, which it waits for.
///
/// `steps` has room for `count` numbers, which is how many sets the control has.
///
/// Capture: not on a stream that is being captured.
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_NULL` or `DUALADAM_STATUS_MISALIGNED` for
/// `steps`; `DUALADAM_STATUS_COUNT` for another count; `DUALADAM_STATUS_CUDA_INTERRUPTED`; `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of
/// another context; `DUALADAM_STATUS_CUDA_CAPTURED`; `DUALADAM_STATUS_CUDA_DRIVER`; `DUALADAM_STATUS_UNSUPPORTED` from a library without
/// CUDA.
///
/// # Safety
///
/// `steps` can be written. `stream` is null or live, steps with this control on other streams are ordered before or after, and the caller's
/// own counters are live memory of the kernels' context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_steps(
    control: dualadam_cuda_control,
    steps: *mut u64,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::steps(control, steps, count, stream) })
}

/// Sets the step counters of all sets, the caller's own ones too, for the steps that come later on `stream`: to resume, or to make a
/// control usable again after `DUALADAM_STATUS_CUDA_INTERRUPTED`. The tensors of an interrupted step are the caller's to restore. May wait
/// for the work before on `stream`.
///
/// `steps` has `count` numbers, which is how many sets the control has.
///
/// Capture: not on a stream that is being captured.
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: as `dualadam_cuda_control_steps`, but for `DUALADAM_STATUS_CUDA_INTERRUPTED`. After `DUALADAM_STATUS_CUDA_DRIVER` some counters
/// may be set.
///
/// # Safety
///
/// `steps` can be read; else as for `dualadam_cuda_control_steps`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_steps(
    control: dualadam_cuda_control,
    steps: *const u64,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::set_steps(control, steps, count, stream) })
}

/// Reads what became of each set's steps, after the work before on `stream`, which it waits for: how many were made and skipped, and why
/// the last one was.
///
/// `reports` has room for `count` structs of `size` bytes, sizeof(dualadam_cuda_set_report); `count` is how many sets the control has.
///
/// Capture: not on a stream that is being captured.
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: as `dualadam_cuda_control_steps`; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for `reports`.
///
/// # Safety
///
/// `reports` can be written for `count` times `size` bytes; else as for `dualadam_cuda_control_steps`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_report(
    control: dualadam_cuda_control,
    reports: *mut dualadam_cuda_set_report,
    size: usize,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::report(control, reports, size, count, stream) })
}

/// Reads the coefficients of each set's last step that was not skipped, after the work before on `stream`, which it waits for. All are 0
/// before the first.
///
/// `coeffs` has room for `count` structs of `size` bytes, sizeof(dualadam_coeffs); `count` is how many sets the control has.
///
/// Capture: not on a stream that is being captured.
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: as `dualadam_cuda_control_steps`; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for `coeffs`.
///
/// # Safety
///
/// `coeffs` can be written for `count` times `size` bytes; else as for `dualadam_cuda_control_steps`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_coeffs(
    control: dualadam_cuda_control,
    coeffs: *mut dualadam_coeffs,
    size: usize,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::coeffs(control, coeffs, size, count, stream) })
}

/// One DualAdam step of every tensor of a list that has a gradient, enqueued on `stream`; what it does is decided on the device. `control`
/// has the sets that the tensors name, `scalars` is what else steers the step, or null for nothing else.
///
/// A small kernel advances the counter of each set that a tensor with a gradient names, and forms its coefficients with the bits of
/// `dualadam_config_coeffs`, for the multiplier clip_factor / loss_scale. A set whose step cannot be made is skipped instead: no byte of its
/// tensors nor its counter changes, and `dualadam_cuda_control_report` says why.
///
/// The call does not allocate or read from the device. It blocks only when the changes of all four steps before are still in flight.
///
/// Capture: the step can be captured in a CUDA graph, also if it is the first and with new addresses; it takes new device memory then, which
/// stays until the graph is destroyed. The graph keeps the tensors, which of them have gradients, and the addresses in `scalars`. It reads
/// learning rates, configs and counters when it is launched. It may outlive list, control and kernels.
///
/// Threads: any; waits for other calls with the same list or control. The struct is only read.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for
/// `scalars`; `DUALADAM_STATUS_INDEX` for a tensor whose set is not in the control; `DUALADAM_STATUS_CUDA_CONTEXT` for a control or a stream
/// of another context; `DUALADAM_STATUS_CUDA_ADDRESS` for a scalar that is not aligned to 4 bytes; `DUALADAM_STATUS_CUDA_INTERRUPTED`.
/// Nothing is enqueued then. `DUALADAM_STATUS_CUDA_DRIVER` if the driver refuses a copy, memory or a launch, or if earlier work on the device failed. If the coefficients were prepared by then, counters have advanced of
/// tensors that were not stepped, and the control refuses to go on with `DUALADAM_STATUS_CUDA_INTERRUPTED` until
/// `dualadam_cuda_control_set_steps`. `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
///
/// # Safety
///
/// `scalars` is null or can be read for as many bytes as its size says. `stream` is null or live. As for `dualadam_cuda_list_step`, also for
/// each time that a graph with this step is launched. The addresses in `scalars`, and those that the control was given, are memory of the
/// kernels' context until the work has run, which nothing in the list writes. The uses of one control are ordered among each other, and one
/// list has it at a time: a step advances all its counters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_step_controlled(
    list: dualadam_cuda_list,
    control: dualadam_cuda_control,
    scalars: *const dualadam_cuda_scalars,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::list_step(list, control, scalars, stream) })
}

#[cfg(feature = "cuda")]
mod work {
    use std::ffi::c_void;
    use std::slice;
    use std::sync::{Arc, Mutex};

    use crate::Error;
    use crate::capi::arguments::{Out, Place, StructOut, StructsOut, Versioned, check_pointer, collect, read};
    use crate::capi::cuda::List;
    use crate::capi::handles::{self, Object, lock};
    use crate::capi::status::Failure;
    use crate::capi::types::*;
    use crate::cuda::{Control, ControlGroup, ControlSet, Kernels, RawLr, RawScalars, SetReport, SkipReason};

    fn address<T>(pointer: *const T) -> u64 {
        pointer.addr() as u64
    }

    impl dualadam_cuda_control_group {
        /// # Safety
        ///
        /// The config can be read for as many bytes as its size says.
        unsafe fn convert(&self, place: Place) -> Result<ControlGroup, Failure> {
            let at = place.field("config");
            // SAFETY: as this function requires.
            let config = unsafe { read(at, self.config) }?.convert(at)?;
            let lr = match (address(self.lr_f32), address(self.lr_f64)) {
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

    impl From<dualadam_cuda_control_set> for ControlSet {
        fn from(set: dualadam_cuda_control_set) -> Self {
            let step = (!set.step.is_null()).then(|| address(set.step));
            Self { group: set.group, step }
        }
    }

    fn number_of(reason: Option<SkipReason>) -> u32 {
        match reason {
            None => DUALADAM_SKIP_NONE,
            Some(SkipReason::FoundInf) => DUALADAM_SKIP_FOUND_INF,
            Some(SkipReason::LossScale) => DUALADAM_SKIP_LOSS_SCALE,
            Some(SkipReason::ClipFactor) => DUALADAM_SKIP_CLIP_FACTOR,
            Some(SkipReason::Multiplier) => DUALADAM_SKIP_MULTIPLIER,
            Some(SkipReason::Lr) => DUALADAM_SKIP_LR,
            Some(SkipReason::Step) => DUALADAM_SKIP_STEP,
        }
    }

    fn get(control: u64) -> Result<Arc<Mutex<Control>>, Failure> {
        handles::get("control", control)
    }

    fn check_count(list: &'static str, control: &Control, actual: usize) -> Result<(), Failure> {
        let expected = control.len();
        if actual == expected { Ok(()) } else { Err(Error::Count { list, expected, actual }.into()) }
    }

    pub(super) unsafe fn new(
        kernels: u64,
        (groups, group_count): (*const dualadam_cuda_control_group, usize),
        (sets, set_count): (*const dualadam_cuda_control_set, usize),
        control: *mut u64,
    ) -> Result<(), Failure> {
        let kernels: Kernels = handles::get("kernels", kernels)?;
        let out = Out::new("control", control)?;
        // SAFETY: as this function requires.
        let (groups, sets) = unsafe {
            let groups = collect("groups", groups, group_count, |_, place, group| {
                dualadam_cuda_control_group::convert(&group, place)
            });
            let set = |_, _, set: dualadam_cuda_control_set| Ok(ControlSet::from(set));
            (groups?, collect("sets", sets, set_count, set)?)
        };
        let made = Control::new(&kernels, &groups, &sets)?;
        // SAFETY: as this function requires.
        unsafe { out.write(handles::insert(Object::Control(Arc::new(Mutex::new(made))))) };
        Ok(())
    }

    pub(super) fn free(control: u64) -> Result<(), Failure> {
        handles::remove::<Arc<Mutex<Control>>>("control", control)
    }

    pub(super) unsafe fn config(
        control: u64,
        group: usize,
        config: *mut dualadam_config,
        size: usize,
    ) -> Result<(), Failure> {
        let control = get(control)?;
        let out = StructOut::new("config", config, size)?;
        let made = dualadam_config::new(out.size(), &lock(&control).config(group)?);
        // SAFETY: as this function requires.
        unsafe { out.write(made) };
        Ok(())
    }

    pub(super) unsafe fn set_lr(control: u64, group: usize, lr: f64, stream: *mut c_void) -> Result<(), Failure> {
        let control = get(control)?;
        // SAFETY: as this function requires.
        Ok(unsafe { lock(&control).set_lr(group, lr, stream) }?)
    }

    pub(super) unsafe fn set_config(
        control: u64,
        group: usize,
        config: *const dualadam_config,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control = get(control)?;
        // SAFETY: as this function requires.
        let config = unsafe { read("config", config) }?.convert("config".into())?;
        // SAFETY: as this function requires.
        Ok(unsafe { lock(&control).set_config(group, config, stream) }?)
    }

    pub(super) unsafe fn steps(
        control: u64,
        steps: *mut u64,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control = get(control)?;
        check_pointer("steps".into(), steps)?;
        let control = lock(&control);
        check_count("steps", &control, count)?;
        // SAFETY: as this function requires; as many as the control has sets.
        unsafe {
            let read = control.steps(stream)?;
            steps.copy_from_nonoverlapping(read.as_ptr(), read.len());
        }
        Ok(())
    }

    pub(super) unsafe fn set_steps(
        control: u64,
        steps: *const u64,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control = get(control)?;
        check_pointer("steps".into(), steps)?;
        let mut control = lock(&control);
        check_count("steps", &control, count)?;
        // SAFETY: as this function requires; as many as the control has sets.
        Ok(unsafe { control.set_steps(slice::from_raw_parts(steps, count), stream) }?)
    }

    /// Writes a struct for each set.
    ///
    /// # Safety
    ///
    /// As for [`dualadam_cuda_control_report`](super::dualadam_cuda_control_report).
    unsafe fn write_reports<T: Versioned>(
        control: u64,
        (name, to): (&'static str, *mut T),
        (size, count): (usize, usize),
        stream: *mut c_void,
        convert: impl Fn(usize, &SetReport) -> T,
    ) -> Result<(), Failure> {
        let control = get(control)?;
        let out = StructsOut::new(name, to, size)?;
        let control = lock(&control);
        check_count(name, &control, count)?;
        // SAFETY: as this function requires; as many as the control has sets.
        unsafe {
            let reports = control.report(stream)?;
            let size = out.size();
            out.write(reports.iter().map(|report| convert(size, report)));
        }
        Ok(())
    }

    pub(super) unsafe fn report(
        control: u64,
        reports: *mut dualadam_cuda_set_report,
        size: usize,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let convert = |size, &SetReport { step, skipped, last_skip, .. }: &_| {
            let last_skip = number_of(last_skip);
            dualadam_cuda_set_report { size, step, skipped, last_skip, reserved: 0 }
        };
        // SAFETY: as this function requires.
        unsafe { write_reports(control, ("reports", reports), (size, count), stream, convert) }
    }

    pub(super) unsafe fn coeffs(
        control: u64,
        coeffs: *mut dualadam_coeffs,
        size: usize,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let convert = |size, report: &SetReport| dualadam_coeffs::new(size, &report.coeffs);
        // SAFETY: as this function requires.
        unsafe { write_reports(control, ("coeffs", coeffs), (size, count), stream, convert) }
    }

    pub(super) unsafe fn list_step(
        list: u64,
        control: u64,
        scalars: *const dualadam_cuda_scalars,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let (list, control): (Arc<Mutex<List>>, _) = (handles::get("list", list)?, get(control)?);
        let scalars = if scalars.is_null() {
            RawScalars::default()
        } else {
            // SAFETY: as this function requires.
            let scalars = unsafe { read("scalars", scalars) }?;
            let [loss_scale, clip_factor, found_inf] =
                [scalars.loss_scale, scalars.clip_factor, scalars.found_inf].map(address);
            RawScalars { loss_scale, clip_factor, found_inf }
        };
        // The list first, here and below: two calls with the same two handles never wait for each other.
        let (mut list, mut control) = (lock(&list), lock(&control));
        // SAFETY: as this function requires.
        Ok(unsafe { list.list.step_controlled(&mut control, &scalars, stream) }?)
    }
}

/// The header is the same for every build, so that the functions are there without CUDA too.
#[cfg(not(feature = "cuda"))]
mod work {
    use std::ffi::c_void;

    use crate::capi::status::Failure;
    use crate::capi::types::*;

    const UNSUPPORTED: Result<(), Failure> = Err(Failure::Unsupported { feature: "cuda" });

    pub(super) unsafe fn new(
        _: u64,
        _: (*const dualadam_cuda_control_group, usize),
        _: (*const dualadam_cuda_control_set, usize),
        _: *mut u64,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) fn free(_: u64) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn config(_: u64, _: usize, _: *mut dualadam_config, _: usize) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn set_lr(_: u64, _: usize, _: f64, _: *mut c_void) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn set_config(
        _: u64,
        _: usize,
        _: *const dualadam_config,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn steps(_: u64, _: *mut u64, _: usize, _: *mut c_void) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn set_steps(_: u64, _: *const u64, _: usize, _: *mut c_void) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn report(
        _: u64,
        _: *mut dualadam_cuda_set_report,
        _: usize,
        _: usize,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn coeffs(
        _: u64,
        _: *mut dualadam_coeffs,
        _: usize,
        _: usize,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn list_step(
        _: u64,
        _: u64,
        _: *const dualadam_cuda_scalars,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }
}

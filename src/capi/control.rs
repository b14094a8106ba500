//! Steps that are controlled on a CUDA device: learning rates, loss scale, found-inf flag and step counters in its memory.

use std::ffi::c_void;
use std::ptr;

#[cfg(feature = "cuda")]
pub(super) use work::Control;

use super::arguments::StructOut;
use super::handles::{dualadam_cuda_control, dualadam_cuda_kernels, dualadam_cuda_list};
use super::status::{border, dualadam_status};
use super::types::{
    dualadam_coeffs, dualadam_config, dualadam_control_group, dualadam_control_set, dualadam_scalars,
    dualadam_set_report,
};

/// Fills in nulls: no config yet, and a learning rate that is the config's. Call it as
/// `dualadam_control_group_init(&group, sizeof group)`.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `group` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_control_group_init(
    group: *mut dualadam_control_group,
    size: usize,
) -> dualadam_status {
    border(|| {
        let out = StructOut::new("group", group, size)?;
        let (config, lr_f32, lr_f64) = (ptr::null(), ptr::null(), ptr::null());
        let made = dualadam_control_group { size: out.size(), config, lr_f32, lr_f64 };
        // SAFETY: the caller's promise.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Fills in group 0 and no counter of the caller's. Call it as `dualadam_control_set_init(&set, sizeof set)`.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `set` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_control_set_init(set: *mut dualadam_control_set, size: usize) -> dualadam_status {
    border(|| {
        let out = StructOut::new("set", set, size)?;
        let made = dualadam_control_set { size: out.size(), step: ptr::null_mut(), group: 0 };
        // SAFETY: the caller's promise.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Fills in nulls: no loss scale, no clip factor, and no found-inf flag. Call it as `dualadam_scalars_init(&scalars, sizeof scalars)`.
///
/// Threads: any; the struct is the caller's.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// `scalars` can be written for `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_scalars_init(scalars: *mut dualadam_scalars, size: usize) -> dualadam_status {
    border(|| {
        let out = StructOut::new("scalars", scalars, size)?;
        let (loss_scale, clip_factor, found_inf) = (ptr::null(), ptr::null(), ptr::null());
        let made = dualadam_scalars { size: out.size(), loss_scale, clip_factor, found_inf };
        // SAFETY: the caller's promise.
        unsafe { out.write(made) };
        Ok(())
    })
}

/// Makes a control: the coefficient sets of a list, formed on the device from what lies there, so that nothing waits for the host and a
/// CUDA graph goes on counting. Waits until it is in device memory. Counters that are not the caller's begin at 0.
///
/// `groups` and `sets` are arrays, their structs' sizes alike. `control` gets the handle, which is to be given back with
/// `dualadam_cuda_control_free`. The control keeps the kernels, and serves one list at a time.
///
/// Threads: any; the structs are only read.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or
/// `DUALADAM_STATUS_SIZE` for a struct, a config or `control`; `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_VALUE` for a config;
/// `DUALADAM_STATUS_EMPTY` for no set at all; `DUALADAM_STATUS_POSITION` for a set whose group is not there;
/// `DUALADAM_STATUS_CUDA_ADDRESS` for a counter or lr that is misaligned, or a counter that overlaps another counter or an lr, and for a
/// group with both kinds of lr; `DUALADAM_STATUS_TOO_MANY`; `DUALADAM_STATUS_CUDA_DRIVER`; `DUALADAM_STATUS_UNSUPPORTED` from a library
/// without CUDA.
///
/// # Safety
///
/// Each struct can be read for as many bytes as its size says; `control` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_new(
    kernels: dualadam_cuda_kernels,
    groups: *const dualadam_control_group,
    group_count: usize,
    sets: *const dualadam_control_set,
    set_count: usize,
    control: *mut dualadam_cuda_control,
) -> dualadam_status {
    // SAFETY: the caller's promise.
    border(|| unsafe { work::control_new(kernels, (groups, group_count), (sets, set_count), control) })
}

/// One DualAdam step of every tensor of a list that has a gradient, with coefficients that the device forms, enqueued on `stream`.
///
/// A small kernel advances the counter of each set that a tensor with a gradient names, and forms its coefficients with the bits of
/// `dualadam_config_coeffs`, the multiplier being clip factor / loss scale. A set whose step cannot be made is skipped: no byte of its
/// tensors nor its counter changes, and `dualadam_cuda_control_report` says why. The reasons are the DUALADAM_SKIP_ numbers.
///
/// `scalars` may be null, as may each of its pointers. The call does not read from the device or allocate, and waits only as
/// `dualadam_cuda_list_step` does. A step of unchanged addresses and gradients can be captured in a CUDA graph, whose launches go on
/// counting: make one step before the capture. The graph keeps the addresses in `scalars`; learning rates, configs and counters it reads
/// when it is launched. Memory of the list's and of the control's own that was captured is never freed, so that the graph may outlive both,
/// but not the kernels.
///
/// Threads: any; waits for other calls with the same list or control.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for the
/// struct; `DUALADAM_STATUS_CUDA_ADDRESS` for a scalar that is not aligned to 4 bytes; `DUALADAM_STATUS_INDEX` for a tensor whose set is
/// not in the control; `DUALADAM_STATUS_CUDA_CONTEXT` for a control or a stream of another context; `DUALADAM_STATUS_CUDA_CAPTURED` for
/// what cannot be captured; `DUALADAM_STATUS_CUDA_INTERRUPTED`. Nothing is enqueued then. `DUALADAM_STATUS_CUDA_DRIVER` if the driver
/// refuses a copy or a launch, or if earlier work on the device failed; if counters have advanced of tensors that were not stepped, the
/// control answers `DUALADAM_STATUS_CUDA_INTERRUPTED` until `dualadam_cuda_control_set_steps`. `DUALADAM_STATUS_UNSUPPORTED` from a library
/// without CUDA.
///
/// # Safety
///
/// The struct can be read for as many bytes as its size says. `stream` is null or live. From now until the work has run, and each time
/// that a graph with it runs, the buffers are as for `dualadam_cuda_list_step`; the scalars, and the caller's own counters and learning
/// rates, are device memory of the kernels' context that nothing in the list writes; and other uses of the control are ordered before or
/// after.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_step_controlled(
    list: dualadam_cuda_list,
    control: dualadam_cuda_control,
    scalars: *const dualadam_scalars,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: the caller's promise.
    border(|| unsafe { work::list_step_controlled(list, control, scalars, stream) })
}

/// Sets the learning rate of a group for the steps that come later on `stream`, also for those of graphs. Waits for the device only where
/// the four changes before have not reached it yet.
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_POSITION` if there is no such group;
/// `DUALADAM_STATUS_VALUE` if `lr` is not valid with the rest of the config; `DUALADAM_STATUS_CUDA_CALLERS_LR` if it lies in the caller's
/// memory; `DUALADAM_STATUS_CUDA_CONTEXT`, `DUALADAM_STATUS_CUDA_CAPTURED`. `DUALADAM_STATUS_CUDA_DRIVER`: the device may have the old or
/// the new one then. `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
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
    // SAFETY: the caller's promise.
    border(|| unsafe { work::control_set_lr(control, group, lr, stream) })
}

/// Sets the config of a group for the steps that come later on `stream`, also for those of graphs. Where the learning rate lies in the
/// caller's memory, the config's own is not used, but must be valid.
///
/// Threads: any; waits for other calls with the same control. The struct is only read.
///
/// Errors: as `dualadam_cuda_control_set_lr`, but that a learning rate of the caller's stays; `DUALADAM_STATUS_NULL`,
/// `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_SIZE`, `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_VALUE` for the config.
///
/// # Safety
///
/// As for `dualadam_cuda_control_set_lr`; `config` can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_config(
    control: dualadam_cuda_control,
    group: usize,
    config: *const dualadam_config,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: the caller's promise.
    border(|| unsafe { work::control_set_config(control, group, config, stream) })
}

/// Reads the step counters of all sets into the array `steps` of `count` numbers in the host's memory. Waits for the work before on `stream`.
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_NULL` or `DUALADAM_STATUS_MISALIGNED` for
/// `steps`; `DUALADAM_STATUS_COUNT` for another number than there are sets; `DUALADAM_STATUS_CUDA_CONTEXT`,
/// `DUALADAM_STATUS_CUDA_CAPTURED`, `DUALADAM_STATUS_CUDA_INTERRUPTED`, `DUALADAM_STATUS_CUDA_DRIVER`; `DUALADAM_STATUS_UNSUPPORTED` from
/// a library without CUDA.
///
/// # Safety
///
/// `steps` can be written. `stream` is null or live, steps with this control on other streams are ordered before or after, and the caller's
/// own counters are live memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_steps(
    control: dualadam_cuda_control,
    steps: *mut u64,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: the caller's promise.
    border(|| unsafe { work::control_steps(control, steps, count, stream) })
}

/// Sets the step counters of all sets, the caller's own ones too, for the steps that come later on `stream`. May wait for the work before on
/// it. After an interrupted step it makes the control usable again; the tensors that the step was not made of are the caller's to restore.
///
/// `steps` is an array of `count` numbers in the host's memory.
///
/// Threads: any; waits for other calls with the same control.
///
/// Errors: as `dualadam_cuda_control_steps`, but for `DUALADAM_STATUS_CUDA_INTERRUPTED`.
///
/// # Safety
///
/// As for `dualadam_cuda_control_steps`, but that `steps` can be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_steps(
    control: dualadam_cuda_control,
    steps: *const u64,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: the caller's promise.
    border(|| unsafe { work::control_set_steps(control, steps, count, stream) })
}

/// What became of each set's steps, into the array `reports` of `count` structs of `size` bytes each, as the caller's header knows them:
/// `dualadam_cuda_control_report(control, reports, sizeof reports[0], count, stream)`. Waits for the work before on `stream`.
///
/// Threads: any; waits for other calls with the same control. The structs are the caller's.
///
/// Errors: as `dualadam_cuda_control_steps`, and `DUALADAM_STATUS_SIZE`.
///
/// # Safety
///
/// As for `dualadam_cuda_control_steps`; `reports` can be written for `count * size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_report(
    control: dualadam_cuda_control,
    reports: *mut dualadam_set_report,
    size: usize,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: the caller's promise.
    border(|| unsafe { work::control_report(control, reports, size, count, stream) })
}

/// The coefficients of each set's last step that was not skipped, all 0 before it, into the array `coeffs` of `count` structs of `size`
/// bytes each. Waits for the work before on `stream`.
///
/// Threads: any; waits for other calls with the same control. The structs are the caller's.
///
/// Errors: as `dualadam_cuda_control_report`.
///
/// # Safety
///
/// As for `dualadam_cuda_control_report`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_coeffs(
    control: dualadam_cuda_control,
    coeffs: *mut dualadam_coeffs,
    size: usize,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: the caller's promise.
    border(|| unsafe { work::control_coeffs(control, coeffs, size, count, stream) })
}

/// Frees a control; the handle is stale from then on. Waits for the work in the context. A graph that captured its steps may still be
/// launched, as long as the kernels live.
///
/// Threads: any; a call with the same control that is under way in another thread goes on to its end.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, also for one that was freed before; `DUALADAM_STATUS_HANDLE_KIND`;
/// `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_control_free(control: dualadam_cuda_control) -> dualadam_status {
    border(|| work::control_free(control))
}

#[cfg(feature = "cuda")]
mod work {
    use std::ffi::c_void;
    use std::slice;
    use std::sync::{Arc, Mutex};

    use crate::Error;
    use crate::capi::arguments::{Out, Place, StructOuts, check_pointer, collect, read};
    use crate::capi::cuda::List;
    use crate::capi::handles::{self, Object, lock};
    use crate::capi::status::Failure;
    use crate::capi::types::{
        dualadam_coeffs, dualadam_config, dualadam_control_group, dualadam_control_set, dualadam_scalars,
        dualadam_set_report,
    };
    use crate::cuda::{self, ControlGroup, ControlSet, Kernels, RawLr, RawScalars, SetReport};

    /// What a handle of a control stands for.
    pub(in crate::capi) struct Control(cuda::Control);

    type Shared = Arc<Mutex<Control>>;

    impl dualadam_control_group {
        /// # Safety
        ///
        /// `config` is null, misaligned, or can be read.
        unsafe fn convert(&self, group: usize) -> Result<ControlGroup, Failure> {
            // SAFETY: the caller's promise.
            let config = unsafe { read(Place::entry("config of groups", group), self.config) }?;
            let config = config.convert(Place::entry("config of groups", group))?;
            let lr = match (self.lr_f32.addr() as u64, self.lr_f64.addr() as u64) {
                (0, 0) => None,
                (address, 0) => Some(RawLr::F32(address)),
                (0, address) => Some(RawLr::F64(address)),
                (_, address) => {
                    let argument = format!("lr_f64 of groups[{group}]");
                    let requirement = "be null where lr_f32 is not".to_owned();
                    return Err(Error::Address { argument, requirement, address }.into());
                }
            };
            Ok(ControlGroup { config, lr })
        }
    }

    impl dualadam_control_set {
        fn convert(&self) -> ControlSet {
            let step = self.step.addr() as u64;
            ControlSet { group: usize::try_from(self.group).unwrap_or(usize::MAX), step: (step != 0).then_some(step) }
        }
    }

    impl dualadam_set_report {
        fn new(size: usize, report: &SetReport) -> Self {
            let last_skip = report.last_skip.map_or(0, cuda::SkipReason::number);
            Self { size, step: report.step, skipped: report.skipped, last_skip: last_skip.into() }
        }
    }

    pub(super) unsafe fn control_new(
        kernels: u64,
        (groups, group_count): (*const dualadam_control_group, usize),
        (sets, set_count): (*const dualadam_control_set, usize),
        control: *mut u64,
    ) -> Result<(), Failure> {
        let kernels: Kernels = handles::get("kernels", kernels)?;
        let out = Out::new("control", control)?;
        // SAFETY: the caller's promise.
        let (groups, sets) = unsafe {
            let groups = collect("groups", groups, group_count, |index, _, group| group.convert(index))?;
            (groups, collect("sets", sets, set_count, |_, _, set| Ok(set.convert()))?)
        };
        let made = Control(cuda::Control::new(&kernels, &groups, &sets)?);
        // SAFETY: the caller's promise.
        unsafe { out.write(handles::insert(Object::Control(Arc::new(Mutex::new(made))))) };
        Ok(())
    }

    pub(super) unsafe fn list_step_controlled(
        list: u64,
        control: u64,
        scalars: *const dualadam_scalars,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let list: Arc<Mutex<List>> = handles::get("list", list)?;
        let control: Shared = handles::get("control", control)?;
        let scalars = if scalars.is_null() {
            RawScalars::default()
        } else {
            // SAFETY: the caller's promise.
            let scalars = unsafe { read("scalars", scalars) }?;
            let address = |scalar: *const f32| scalar.addr() as u64;
            RawScalars {
                loss_scale: address(scalars.loss_scale),
                clip_factor: address(scalars.clip_factor),
                found_inf: address(scalars.found_inf),
            }
        };
        // Always in this order, so that two calls cannot wait for each other.
        let (mut list, mut control) = (lock(&list), lock(&control));
        // SAFETY: the caller's promise.
        Ok(unsafe { list.list().step_controlled(&mut control.0, &scalars, stream) }?)
    }

    pub(super) unsafe fn control_set_lr(
        control: u64,
        group: usize,
        lr: f64,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control: Shared = handles::get("control", control)?;
        // SAFETY: the caller's promise.
        Ok(unsafe { lock(&control).0.set_lr(group, lr, stream) }?)
    }

    pub(super) unsafe fn control_set_config(
        control: u64,
        group: usize,
        config: *const dualadam_config,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control: Shared = handles::get("control", control)?;
        // SAFETY: the caller's promise.
        let config = unsafe { read("config", config) }?.convert("config".into())?;
        // SAFETY: the caller's promise.
        Ok(unsafe { lock(&control).0.set_config(group, config, stream) }?)
    }

    /// Fails unless an array has a place for each set.
    fn check_count(list: &'static str, control: &Control, actual: usize) -> Result<(), Failure> {
        let expected = control.0.len();
        if actual == expected { Ok(()) } else { Err(Error::Count { list, expected, actual }.into()) }
    }

    pub(super) unsafe fn control_steps(
        control: u64,
        steps: *mut u64,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control: Shared = handles::get("control", control)?;
        check_pointer("steps".into(), steps)?;
        let control = lock(&control);
        check_count("steps", &control, count)?;
        // SAFETY: the caller's promise.
        let read = unsafe { control.0.steps(stream) }?;
        // SAFETY: the caller's promise; there are `count` of them, as was checked.
        unsafe { steps.copy_from_nonoverlapping(read.as_ptr(), read.len()) };
        Ok(())
    }

    pub(super) unsafe fn control_set_steps(
        control: u64,
        steps: *const u64,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control: Shared = handles::get("control", control)?;
        check_pointer("steps".into(), steps)?;
        let mut control = lock(&control);
        check_count("steps", &control, count)?;
        // SAFETY: the caller's promise; as many as there are sets, which fit into memory.
        let steps = unsafe { slice::from_raw_parts(steps, count) };
        // SAFETY: the caller's promise.
        Ok(unsafe { control.0.set_steps(steps, stream) }?)
    }

    pub(super) unsafe fn control_report(
        control: u64,
        reports: *mut dualadam_set_report,
        size: usize,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control: Shared = handles::get("control", control)?;
        let out = StructOuts::new("reports", reports, size)?;
        let control = lock(&control);
        check_count("reports", &control, count)?;
        // SAFETY: the caller's promise.
        let read = unsafe { control.0.report(stream) }?;
        // SAFETY: the caller's promise; there are `count` of them, as was checked.
        unsafe { out.write(read.iter().map(|report| dualadam_set_report::new(size, report))) };
        Ok(())
    }

    pub(super) unsafe fn control_coeffs(
        control: u64,
        coeffs: *mut dualadam_coeffs,
        size: usize,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let control: Shared = handles::get("control", control)?;
        let out = StructOuts::new("coeffs", coeffs, size)?;
        let control = lock(&control);
        check_count("coeffs", &control, count)?;
        // SAFETY: the caller's promise.
        let read = unsafe { control.0.report(stream) }?;
        // SAFETY: the caller's promise; there are `count` of them, as was checked.
        unsafe { out.write(read.iter().map(|report| dualadam_coeffs::new(size, &report.coeffs))) };
        Ok(())
    }

    pub(super) fn control_free(control: u64) -> Result<(), Failure> {
        handles::remove::<Shared>("control", control)
    }
}

/// The header is the same for every build, so that the functions are there without CUDA too.
#[cfg(not(feature = "cuda"))]
mod work {
    use std::ffi::c_void;

    use crate::capi::status::Failure;
    use crate::capi::types::{
        dualadam_coeffs, dualadam_config, dualadam_control_group, dualadam_control_set, dualadam_scalars,
        dualadam_set_report,
    };

    const UNSUPPORTED: Result<(), Failure> = Err(Failure::Unsupported { feature: "cuda" });

    pub(super) unsafe fn control_new(
        _: u64,
        _: (*const dualadam_control_group, usize),
        _: (*const dualadam_control_set, usize),
        _: *mut u64,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn list_step_controlled(
        _: u64,
        _: u64,
        _: *const dualadam_scalars,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn control_set_lr(_: u64, _: usize, _: f64, _: *mut c_void) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn control_set_config(
        _: u64,
        _: usize,
        _: *const dualadam_config,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn control_steps(_: u64, _: *mut u64, _: usize, _: *mut c_void) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn control_set_steps(_: u64, _: *const u64, _: usize, _: *mut c_void) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn control_report(
        _: u64,
        _: *mut dualadam_set_report,
        _: usize,
        _: usize,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn control_coeffs(
        _: u64,
        _: *mut dualadam_coeffs,
        _: usize,
        _: usize,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) fn control_free(_: u64) -> Result<(), Failure> {
        UNSUPPORTED
    }
}

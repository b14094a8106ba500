//! The step counters and reports of a control's sets.

use std::ffi::c_void;
use std::slice;

use dualadam::ListError;
use dualadam::cuda::{Control, SetReport};

use crate::arguments::check_pointer;
use crate::handles::{Locked, dualadam_cuda_control, get, lock};
use crate::results::{Answer, give_structs};
use crate::status::{Failure, border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_cuda_set_report};

/// Fails unless an array has one entry for each set of a control.
fn check_count(list: &'static str, control: &Control, actual: usize) -> Result<(), Failure> {
    let expected = control.len();
    if actual == expected { Ok(()) } else { Err(ListError::Count { list, expected, actual }.into()) }
}

/// Reads the step counters of all sets from the device, also those in the caller's memory. `steps`
/// is an array of `count` numbers, one for each set. The call waits for earlier work on `stream`.
///
/// # Errors
///
/// - Argument errors (see the head of this file), and those that `dualadam_cuda_control` lists.
/// - `DUALADAM_STATUS_CUDA_INTERRUPTED` if the driver failed in the middle of an earlier step.
///
/// # Safety
///
/// - As `dualadam_cuda_control` lists.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_steps(
    control: dualadam_cuda_control,
    steps: *mut u64,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control: Locked<Control> = get(control)?;
        check_pointer("steps".into(), steps)?;
        let control = lock(&control);
        check_count("steps", &control, count)?;
        // SAFETY: `stream` is live (required of every call). The steps are ordered, and the
        // counters live (required of a control's calls).
        let read = unsafe { control.steps(stream) }?;
        // SAFETY: `steps` has room for `count` numbers (required of every call), which is how many
        // there are.
        unsafe { steps.copy_from_nonoverlapping(read.as_ptr(), read.len()) };
        Ok(())
    })
}

/// Sets the step counters of all sets, also those in the caller's memory, for later steps on
/// `stream`: to resume a run, or to make a control usable again after
/// `DUALADAM_STATUS_CUDA_INTERRUPTED`. The caller must also restore the tensors of an interrupted
/// step. `steps` is an array of `count` numbers, one for each set. The call may wait for earlier
/// work on `stream`.
///
/// # Errors
///
/// - Argument errors (see the head of this file), and those that `dualadam_cuda_control` lists.
/// - `DUALADAM_STATUS_CUDA_DRIVER`. Some counters may have been set.
///
/// # Safety
///
/// - As `dualadam_cuda_control` lists.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_steps(
    control: dualadam_cuda_control,
    steps: *const u64,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control: Locked<Control> = get(control)?;
        check_pointer("steps".into(), steps)?;
        let mut control = lock(&control);
        check_count("steps", &control, count)?;
        // SAFETY: `steps` can be read for `count` numbers (required of every call); a control has
        // no more sets than memory has room for.
        let steps = unsafe { slice::from_raw_parts(steps, count) };
        // SAFETY: `stream` is live (required of every call). The steps are ordered, and the
        // counters live (required of a control's calls).
        Ok(unsafe { control.set_steps(steps, stream) }?)
    })
}

/// Writes a struct for each set.
///
/// # Safety
///
/// - `to` can be written for `size` bytes, for each set.
/// - `stream` is live, and what is required of a control's calls holds.
unsafe fn write_reports<T: Answer<SetReport>>(
    control: dualadam_cuda_control,
    (name, to): (&'static str, *mut T),
    (size, count): (usize, usize),
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control: Locked<Control> = get(control)?;
        let make = || {
            let control = lock(&control);
            check_count(name, &control, count)?;
            // SAFETY: `stream` is live, the steps are ordered and the counters live (the second
            // requirement).
            let reports = unsafe { control.report(stream) }?;
            reports.into_iter().map(T::of).collect::<Result<Vec<_>, _>>()
        };
        // SAFETY: `to` can be written for `size` bytes for each set (the first requirement).
        unsafe { give_structs(name, to, size, make) }
    })
}

/// Reads from the device how many steps of each set were made and skipped, and why the last one was
/// skipped. `reports` is an array of `count` structs, one for each set. `size` is
/// sizeof(dualadam_cuda_set_report). The call waits for earlier work on `stream`.
///
/// # Errors
///
/// - Argument errors (see the head of this file), and those that `dualadam_cuda_control` lists.
/// - `DUALADAM_STATUS_CUDA_INTERRUPTED` if the driver failed in the middle of an earlier step.
///
/// # Safety
///
/// - As `dualadam_cuda_control` lists.
///
/// # Example
///
/// ```c
/// dualadam_cuda_set_report report;
/// dualadam_cuda_control_report(control, &report, sizeof report, 1, stream);
/// if (report.last_skip == DUALADAM_SKIP_FOUND_INF)
///     printf("%llu steps were skipped\n", (unsigned long long)report.skipped);
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_report(
    control: dualadam_cuda_control,
    reports: *mut dualadam_cuda_set_report,
    size: usize,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: `reports` can be written, and `stream` is live (required of every call). The rest is
    // required of a control's calls.
    unsafe { write_reports(control, ("reports", reports), (size, count), stream) }
}

/// Reads from the device the coefficients of the last step of each set that was not skipped. All
/// are 0 before the first step. `coeffs` is an array of `count` structs, one for each set. `size`
/// is sizeof(dualadam_coeffs). The call waits for earlier work on `stream`.
///
/// # Errors
///
/// - Argument errors (see the head of this file), and those that `dualadam_cuda_control` lists.
/// - `DUALADAM_STATUS_CUDA_INTERRUPTED` if the driver failed in the middle of an earlier step.
///
/// # Safety
///
/// - As `dualadam_cuda_control` lists.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_coeffs(
    control: dualadam_cuda_control,
    coeffs: *mut dualadam_coeffs,
    size: usize,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: `coeffs` can be written, and `stream` is live (required of every call). The rest is
    // required of a control's calls.
    unsafe { write_reports(control, ("coeffs", coeffs), (size, count), stream) }
}

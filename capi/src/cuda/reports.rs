//! What a control's sets count and report: read from the device, and set again.

use std::ffi::c_void;
use std::slice;

use dualadam::Error;
use dualadam::cuda::{Control, SetReport};

use super::control::get;
use crate::arguments::{Versioned, check_pointer};
use crate::handles::{dualadam_cuda_control, lock};
use crate::results::StructOut;
use crate::status::{Failure, border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_cuda_set_report};

/// Fails unless an array has an entry for each of a control's sets.
fn check_count(list: &'static str, control: &Control, actual: usize) -> Result<(), Failure> {
    let expected = control.len();
    if actual == expected { Ok(()) } else { Err(Error::Count { list, expected, actual }.into()) }
}

/// Reads the step counters of all sets, the caller's own ones too, after the work before on
/// `stream`, for which it waits.
///
/// `steps` has room for `count` numbers; `count` is how many sets the control has.
///
/// Capture: not on a stream that is being captured.
///
/// # Errors
///
/// - `DUALADAM_STATUS_COUNT` for another count.
/// - `DUALADAM_STATUS_CUDA_INTERRUPTED`.
/// - `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of another context.
/// - `DUALADAM_STATUS_CUDA_CAPTURED`.
/// - `DUALADAM_STATUS_CUDA_DRIVER`.
///
/// # Safety
///
/// - `steps` can be written for `count` numbers.
/// - `stream` is null or live.
/// - Steps with this control on other streams are ordered before or after.
/// - The caller's own counters are live memory of the kernels' context.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_steps(
    control: dualadam_cuda_control,
    steps: *mut u64,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control = get(control)?;
        check_pointer("steps".into(), steps)?;
        let control = lock(&control);
        check_count("steps", &control, count)?;
        // SAFETY: `stream` and the counters are live, and the steps are ordered (the last three
        // requirements).
        let read = unsafe { control.steps(stream) }?;
        // SAFETY: `steps` has room for `count` numbers (the first requirement), which is how many
        // there are.
        unsafe { steps.copy_from_nonoverlapping(read.as_ptr(), read.len()) };
        Ok(())
    })
}

/// Sets the step counters of all sets, the caller's own ones too, for the steps that come later on
/// `stream`: to resume, or to make a control usable again after `DUALADAM_STATUS_CUDA_INTERRUPTED`.
/// The caller must restore the tensors of an interrupted step. May wait for the work before on
/// `stream`.
///
/// `steps` has `count` numbers; `count` is how many sets the control has.
///
/// Capture: not on a stream that is being captured.
///
/// # Errors
///
/// - As `dualadam_cuda_control_steps`, other than `DUALADAM_STATUS_CUDA_INTERRUPTED`. After
///   `DUALADAM_STATUS_CUDA_DRIVER` some counters may be set.
///
/// # Safety
///
/// - `steps` can be read for `count` numbers.
/// - As for `dualadam_cuda_control_steps`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_set_steps(
    control: dualadam_cuda_control,
    steps: *const u64,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control = get(control)?;
        check_pointer("steps".into(), steps)?;
        let mut control = lock(&control);
        check_count("steps", &control, count)?;
        // SAFETY: `steps` can be read for `count` numbers (the first requirement); a control has no
        // more sets than memory has room for.
        let steps = unsafe { slice::from_raw_parts(steps, count) };
        // SAFETY: `stream` and the counters are live, and the steps are ordered (the second
        // requirement).
        Ok(unsafe { control.set_steps(steps, stream) }?)
    })
}

/// Writes a struct for each set.
///
/// # Safety
///
/// - `to` can be written for `size` bytes, for each set.
/// - As for [`dualadam_cuda_control_steps`].
unsafe fn write_reports<T: Versioned + for<'a> From<&'a SetReport>>(
    control: dualadam_cuda_control,
    (name, to): (&'static str, *mut T),
    (size, count): (usize, usize),
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let control = get(control)?;
        let out = StructOut::new(name, to, size)?;
        let control = lock(&control);
        check_count(name, &control, count)?;
        // SAFETY: `stream` and the counters are live, and the steps are ordered (the second
        // requirement).
        let reports = unsafe { control.report(stream) }?;
        // SAFETY: `to` can be written for `size` bytes for each set (the first requirement).
        unsafe { out.write_all(reports.iter().map(T::from)) };
        Ok(())
    })
}

/// Reads what became of each set's steps, after the work before on `stream`, for which it waits:
/// how many were made and skipped, and why the last one was skipped.
///
/// `reports` has room for `count` structs of `size` bytes, sizeof(dualadam_cuda_set_report);
/// `count` is how many sets the control has.
///
/// Capture: not on a stream that is being captured.
///
/// # Errors
///
/// - As `dualadam_cuda_control_steps`.
///
/// # Safety
///
/// - `reports` can be written for `count` times `size` bytes.
/// - As for `dualadam_cuda_control_steps`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_report(
    control: dualadam_cuda_control,
    reports: *mut dualadam_cuda_set_report,
    size: usize,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: the requirements are the same.
    unsafe { write_reports(control, ("reports", reports), (size, count), stream) }
}

/// Reads the coefficients of each set's last step that was not skipped, after the work before on
/// `stream`, for which it waits. All are 0 before the first.
///
/// `coeffs` has room for `count` structs of `size` bytes, sizeof(dualadam_coeffs); `count` is how
/// many sets the control has.
///
/// Capture: not on a stream that is being captured.
///
/// # Errors
///
/// - As `dualadam_cuda_control_steps`.
///
/// # Safety
///
/// - `coeffs` can be written for `count` times `size` bytes.
/// - As for `dualadam_cuda_control_steps`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_control_coeffs(
    control: dualadam_cuda_control,
    coeffs: *mut dualadam_coeffs,
    size: usize,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: the requirements are the same.
    unsafe { write_reports(control, ("coeffs", coeffs), (size, count), stream) }
}

//! Lists of tensors in device memory, and their steps.

use std::ffi::c_void;

use dualadam::cuda::{Control, Kernels, RawScalars, TensorList};
use dualadam::{ListError, RawTensor, StepCoeffs};

use crate::arguments::{read, read_all, read_into};
use crate::handles::{Locked, dualadam_cuda_control, dualadam_cuda_kernels, dualadam_cuda_list};
use crate::handles::{get, insert_locked, lock, remove};
use crate::results::give;
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_cuda_scalars, dualadam_tensor};

/// A list, and room for what calls read, so that they need not allocate.
pub(crate) struct List {
    list: TensorList,
    tensors: Vec<RawTensor>,
    coeffs: Vec<StepCoeffs>,
}

/// Makes a list of tensors that are stepped together, in one launch per combination of types. Loads
/// the kernels, puts the descriptors into device memory and waits until they are there.
///
/// `tensors` is an array of `count` structs, with device addresses. A tensor whose gradients are
/// null is skipped, and its other addresses are not used. The list keeps the kernels.
///
/// # Errors
///
/// - As `dualadam_cuda_step`, for each tensor, but two gradients may share memory.
/// - `DUALADAM_STATUS_EMPTY` for no tensor at all.
/// - `DUALADAM_STATUS_TOO_MANY` for more than a launch can serve.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_new(
    kernels: dualadam_cuda_kernels,
    tensors: *const dualadam_tensor,
    count: usize,
    list: *mut dualadam_cuda_list,
) -> dualadam_status {
    border(|| {
        let kernels: Kernels = get(kernels)?;
        let make = || {
            // SAFETY: the structs can be read for their sizes (required of every call).
            let tensors = unsafe { read_all("tensors", tensors, count) }?;
            let list = TensorList::new(&kernels, &tensors)?;
            let coeffs = Vec::with_capacity(list.most_coeffs());
            Ok(insert_locked(List { list, tensors, coeffs }))
        };
        // SAFETY: `list` can be written (required of every call).
        unsafe { give("list", list, make) }
    })
}

/// Takes over new addresses and indices of coefficients of the same tensors, such as of new
/// gradients. The device gets what changed with the next step. The call does not allocate or wait
/// for the device.
///
/// # Errors
///
/// - As `dualadam_cuda_list_new`.
/// - `DUALADAM_STATUS_COUNT` for another number of tensors.
/// - `DUALADAM_STATUS_FIXED` for other lengths or types.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_update(
    list: dualadam_cuda_list,
    tensors: *const dualadam_tensor,
    count: usize,
) -> dualadam_status {
    border(|| {
        let list: Locked<List> = get(list)?;
        let List { list, tensors: room, .. } = &mut *lock(&list);
        if count != list.len() {
            return Err(ListError::Count { list: "tensors", expected: list.len(), actual: count }.into());
        }
        // SAFETY: the structs can be read for their sizes (required of every call).
        unsafe { read_into(room, "tensors", tensors, count) }?;
        Ok(list.update(room)?)
    })
}

/// One DualAdam step of every tensor of a list that has a gradient, with the coefficients
/// `coeffs[tensor.coeffs_index]`, enqueued on `stream`.
///
/// `coeffs` is an array of `coeffs_count` structs: at most as many as the list has tensors, or 96
/// if that is more. The call does not allocate. It blocks only when the changes of all four steps
/// before are still in flight.
///
/// Capture: the graph keeps addresses and coefficients as they are now, in new device memory.
///
/// # Errors
///
/// - `DUALADAM_STATUS_INDEX` for a tensor whose coefficients are not there.
/// - `DUALADAM_STATUS_TOO_MANY` for more coefficients than the list takes.
/// - `DUALADAM_STATUS_CUDA_DRIVER`: the launches for some of the combinations of types may have
///   been made.
///
/// # Safety
///
/// - From now until the work has run, each buffer of each tensor that has a gradient is device
///   memory of the kernels' context, of the tensor's length.
/// - What else uses that memory, such as other steps of the list, is ordered before or after this
///   work.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_step(
    list: dualadam_cuda_list,
    coeffs: *const dualadam_coeffs,
    coeffs_count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let list: Locked<List> = get(list)?;
        let List { list, coeffs: room, .. } = &mut *lock(&list);
        if coeffs_count > list.most_coeffs() {
            let (limit, actual) = (list.most_coeffs() as u64, coeffs_count as u64);
            return Err(ListError::TooMany { list: "coeffs", limit, actual }.into());
        }
        // SAFETY: the structs can be read for their sizes (required of every call).
        unsafe { read_into(room, "coeffs", coeffs, coeffs_count) }?;
        // SAFETY: `stream` is live (required of every call), and the buffers are there and ordered
        // (this function's requirements).
        Ok(unsafe { list.step_raw(room, stream) }?)
    })
}

/// One DualAdam step of every tensor of a list that has a gradient, enqueued on `stream`; what it
/// does is decided on the device. `control` has a set for each `coeffs_index` of the tensors.
/// `scalars` is what else steers the step, or null for nothing else.
///
/// A small kernel advances the counter of each set that a tensor with a gradient names, and forms
/// the set's coefficients with the bits of `dualadam_config_coeffs`, for the multiplier clip_factor
/// / loss_scale. A set whose step cannot be made is skipped instead: neither its tensors nor its
/// counter change, and `dualadam_cuda_control_report` says why.
///
/// The call does not allocate or read from the device. It blocks only when the changes of all four
/// steps before are still in flight.
///
/// Capture: also of the first step, and with new addresses. The graph keeps the tensors, which of
/// them have gradients, and the addresses in `scalars`, in new device memory. It reads learning
/// rates, configs and counters when it is launched.
///
/// # Errors
///
/// - `DUALADAM_STATUS_INDEX` for a tensor whose set is not in the control.
/// - `DUALADAM_STATUS_CUDA_CONTEXT` for a control of another context.
/// - `DUALADAM_STATUS_CUDA_ADDRESS` for a scalar that is not aligned to 4 bytes.
/// - `DUALADAM_STATUS_CUDA_INTERRUPTED`.
/// - `DUALADAM_STATUS_CUDA_DRIVER`: counters may have advanced of tensors that were not stepped;
///   every later use of the control returns `DUALADAM_STATUS_CUDA_INTERRUPTED` then, until
///   `dualadam_cuda_control_set_steps`.
///
/// # Safety
///
/// - The buffers are as `dualadam_cuda_list_step` requires, also each time that a graph with this
///   step is launched.
/// - The addresses in `scalars`, and those that the control was given, are memory of the kernels'
///   context until the work has run, and nothing in the list writes that memory.
/// - The uses of one control are ordered among each other, and all are with one list: a step
///   advances all its counters.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_step_controlled(
    list: dualadam_cuda_list,
    control: dualadam_cuda_control,
    scalars: *const dualadam_cuda_scalars,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let (list, control): (Locked<List>, Locked<Control>) = (get(list)?, get(control)?);
        let scalars = if scalars.is_null() {
            RawScalars::default()
        } else {
            // SAFETY: `scalars` can be read for its size (required of every call).
            unsafe { read("scalars", scalars) }?
        };
        // Always the list first, so that two calls with the same two handles never deadlock.
        let (mut list, mut control) = (lock(&list), lock(&control));
        // SAFETY: `stream` is live (required of every call), and the memory is there and ordered
        // (this function's requirements).
        Ok(unsafe { list.list.step_controlled(&mut control, &scalars, stream) }?)
    })
}

/// Frees a list.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_list_free(list: dualadam_cuda_list) -> dualadam_status {
    border(|| remove::<Locked<List>>(list))
}

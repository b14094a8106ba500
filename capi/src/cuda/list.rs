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

/// A list, and room for the structs that calls read, so that they do not allocate.
pub(crate) struct List {
    list: TensorList,
    tensors: Vec<RawTensor>,
    coeffs: Vec<StepCoeffs>,
}

/// Makes a list of tensors in device memory that are stepped together, with one launch for each
/// combination of element types. The call loads the kernels, copies descriptors of the tensors to
/// device memory, and waits until they are there.
///
/// `tensors` is an array of `count` structs with device addresses. The list skips a tensor whose
/// `grad` is null, and does not look at its other addresses. The list keeps what it needs of
/// `kernels`, which may be freed before it.
///
/// # Errors
///
/// - As `dualadam_cpu_step`, for each tensor; but two gradients may share memory, and any
///   `coeffs_index` is allowed.
/// - `DUALADAM_STATUS_EMPTY` for an array without a tensor.
/// - `DUALADAM_STATUS_TOO_MANY` for more tensors or elements than a launch can have.
///
/// # Example
///
/// ```c
/// dualadam_cuda_list list;
/// dualadam_coeffs coeffs;
/// dualadam_cuda_list_new(kernels, tensors, count, &list);
/// for (uint64_t step = 1; step <= 1000; step++) {
///     // enqueue the backward pass on the stream
///     dualadam_config_coeffs(config, step, 1.0, &coeffs, sizeof coeffs);
///     dualadam_cuda_list_step(list, &coeffs, 1, stream);
/// }
/// dualadam_cuda_list_free(list);
/// ```
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

/// Gives a list new addresses and coefficient sets of the same tensors, such as the addresses of
/// new gradients. The next step sends the changes to the device. The call neither allocates nor
/// waits for the device.
///
/// # Errors
///
/// - As `dualadam_cuda_list_new`.
/// - `DUALADAM_STATUS_COUNT` for another number of tensors.
/// - `DUALADAM_STATUS_FIXED` for another length or other element types of a tensor.
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

/// Enqueues one DualAdam step of each tensor of a list that has a gradient on `stream`, with the
/// coefficients `coeffs[tensor.coeffs_index]`. The result has the bits of a `dualadam_cpu_step` of
/// each tensor.
///
/// `coeffs` is an array of `coeffs_count` structs: at most 96, or as many as the list has tensors
/// if those are more. The call does not allocate. It blocks only when all four staging slots are in
/// flight, each with the changes of an earlier step.
///
/// Capture: the graph keeps the addresses and coefficients of this call, in device memory that the
/// call allocates.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_INDEX` for a tensor whose `coeffs_index` is not below `coeffs_count`.
/// - `DUALADAM_STATUS_TOO_MANY` for more coefficients than the list takes.
/// - `DUALADAM_STATUS_CUDA_DRIVER`. The tensors of some combinations of element types may have been
///   stepped.
///
/// # Safety
///
/// - Until the work has run, also in each launch of a graph, each buffer of each tensor that has a
///   gradient is device memory of the kernels' context, of the tensor's length and types.
/// - The caller orders the work before or after other uses of that memory, such as other steps of
///   the list.
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

/// Enqueues one DualAdam step of each tensor of a list that has a gradient on `stream`. The device
/// forms the coefficients and decides whether the step is made. `control` has a set for each
/// `coeffs_index` of the tensors. `scalars` is null, or has the addresses of a loss scale, a clip
/// factor and found-inf.
///
/// A small kernel runs first, for each set that a tensor with a gradient names. It adds 1 to the
/// set's counter and forms the set's coefficients, with the bits of `dualadam_config_coeffs` for
/// the multiplier clip_factor / loss_scale. If the step cannot be made, the device skips the set:
/// neither its tensors nor its counter change. The DUALADAM_SKIP_ numbers are the reasons, and
/// `dualadam_cuda_control_report` reads them.
///
/// The call neither allocates nor reads from the device. It blocks only when all four staging slots
/// are in flight, each with the changes of an earlier step.
///
/// Capture: also of the first step, and with new addresses. The graph keeps the tensors, which of
/// them have gradients, and the addresses in `scalars`, in device memory that the call allocates.
/// Each launch of the graph reads learning rates, configs and counters again, and counts on.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_INDEX` for a tensor whose `coeffs_index` is not below the number of sets.
/// - `DUALADAM_STATUS_CUDA_CONTEXT` for a control of another context.
/// - `DUALADAM_STATUS_CUDA_ADDRESS` for a scalar that is not aligned to 4 bytes.
/// - `DUALADAM_STATUS_CUDA_INTERRUPTED` if the driver failed in the middle of an earlier step.
/// - `DUALADAM_STATUS_CUDA_DRIVER`. Counters may have advanced without a step of their tensors. If
///   so, later uses of the control return `DUALADAM_STATUS_CUDA_INTERRUPTED` until
///   `dualadam_cuda_control_set_steps`. A graph whose capture failed so must not be launched.
///
/// # Safety
///
/// - The buffers are as `dualadam_cuda_list_step` requires.
/// - Until the work has run, also in each launch of a graph, the addresses in `scalars` and those
///   that the control was given are device memory of the kernels' context. No tensor of the list
///   overlaps that memory.
/// - The caller orders all uses of a control. All of them are with one list, since a step advances
///   the counters of that list's tensors.
///
/// # Example
///
/// `found_inf` is the address of a float in device memory:
///
/// ```c
/// dualadam_cuda_scalars scalars;
/// dualadam_cuda_scalars_init(&scalars, sizeof scalars);
/// scalars.found_inf = found_inf;
/// dualadam_cuda_list_step_controlled(list, control, &scalars, stream);
/// ```
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
        // The order is fixed, so that two calls with the same two handles cannot deadlock.
        let (mut list, mut control) = (lock(&list), lock(&control));
        // SAFETY: `stream` is live (required of every call), and the memory is there and ordered
        // (this function's requirements).
        Ok(unsafe { list.list.step_controlled(&mut control, &scalars, stream) }?)
    })
}

/// Frees a list. The call does not wait for the device: the list's memory is freed after its last
/// step, and after the last CUDA graph that captured a step.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_list_free(list: dualadam_cuda_list) -> dualadam_status {
    border(|| remove::<Locked<List>>(list))
}

//! Lists of tensors in device memory, and their steps.

use std::ffi::c_void;

use dualadam::cuda::{Control, RawScalars, RawTensor, TensorList};
use dualadam::{Error, StepCoeffs};

use super::kernels;
use crate::arguments::{Place, collect, read, read_all};
use crate::handles::{self, Locked, dualadam_cuda_control, dualadam_cuda_kernels, dualadam_cuda_list, lock};
use crate::results::Out;
use crate::status::{Failure, border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_cuda_scalars, dualadam_tensor};

/// A list, and room for what calls read, so that they need not allocate.
pub(crate) struct List {
    list: TensorList,
    tensors: Vec<RawTensor>,
    sets: Vec<StepCoeffs>,
}

fn get(list: dualadam_cuda_list) -> Result<Locked<List>, Failure> {
    handles::get("list", list)
}

/// Makes a list of tensors that are stepped together, in one launch per combination of types. Loads
/// the kernels, puts the descriptors into device memory and waits until they are there.
///
/// `tensors` is an array of `count` structs, with device addresses. A tensor whose gradients are
/// null is skipped, and its other addresses are not used. `list` gets the handle; free it with
/// `dualadam_cuda_list_free`. The list keeps the kernels.
///
/// # Errors
///
/// - As `dualadam_cuda_step`, for each tensor, but two gradients may share memory.
/// - `DUALADAM_STATUS_EMPTY` for no tensor at all.
/// - `DUALADAM_STATUS_TOO_MANY` for more than a launch can serve.
///
/// # Safety
///
/// - Each struct can be read for as many bytes as its size says.
/// - `list` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_new(
    kernels: dualadam_cuda_kernels,
    tensors: *const dualadam_tensor,
    count: usize,
    list: *mut dualadam_cuda_list,
) -> dualadam_status {
    border(|| {
        let kernels = kernels::get(kernels)?;
        let out = Out::new("list", list)?;
        // SAFETY: the structs can be read for their sizes (the first requirement).
        let tensors = unsafe { collect("tensors", tensors, count, |_, place, tensor| tensor.raw(place)) }?;
        let list = TensorList::new(&kernels, &tensors)?;
        let sets = Vec::with_capacity(list.most_sets());
        // SAFETY: `list` can be written (the second requirement).
        unsafe { out.write(handles::insert_locked(List { list, tensors, sets })) };
        Ok(())
    })
}

/// Takes over new addresses and sets of the same tensors, such as of new gradients. The device gets
/// what changed with the next step. The call does not allocate or wait for the device.
///
/// # Errors
///
/// The list stays as it was then.
///
/// - As `dualadam_cuda_list_new`.
/// - `DUALADAM_STATUS_COUNT` for another number of tensors.
/// - `DUALADAM_STATUS_FIXED` for other lengths or types.
///
/// # Safety
///
/// - Each struct can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_update(
    list: dualadam_cuda_list,
    tensors: *const dualadam_tensor,
    count: usize,
) -> dualadam_status {
    border(|| {
        let list = get(list)?;
        let List { list, tensors: room, .. } = &mut *lock(&list);
        if count != list.len() {
            return Err(Error::Count { list: "tensors", expected: list.len(), actual: count }.into());
        }
        room.clear();
        // SAFETY: the structs can be read for their sizes (this function's requirement).
        for (index, tensor) in unsafe { read_all("tensors", tensors, count) }?.enumerate() {
            room.push(tensor?.raw(Place::entry("tensors", index))?);
        }
        Ok(list.update(room)?)
    })
}

/// One DualAdam step of every tensor of a list that has a gradient, with the coefficients
/// `sets[tensor.set]`, enqueued on `stream`.
///
/// `sets` is an array of `count` structs: at most as many as the list has tensors, or 96 if that is
/// more. The call does not allocate. It blocks only when the changes of all four steps before are
/// still in flight.
///
/// Capture: the step can be captured in a CUDA graph, which keeps addresses, sets and coefficients
/// as they are now. It takes new device memory then, which stays until the graph is destroyed. The
/// library must stay loaded until then.
///
/// # Errors
///
/// Nothing is enqueued then, except after `DUALADAM_STATUS_CUDA_DRIVER`.
///
/// - `DUALADAM_STATUS_INDEX` for a tensor whose set is not there.
/// - `DUALADAM_STATUS_TOO_MANY` for more sets than the list takes.
/// - `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of another context.
/// - `DUALADAM_STATUS_CUDA_DRIVER` if the driver refuses a copy, memory or a launch, or if earlier
///   work on the device failed. The launches for some of the combinations of types may have been
///   made.
///
/// # Safety
///
/// - Each struct can be read for as many bytes as its size says.
/// - `stream` is null or live.
/// - From now until the work has run, each buffer of each tensor that has a gradient is device
///   memory of the kernels' context, of the tensor's length.
/// - What else uses that memory, such as other steps of the list, is ordered before or after this
///   work.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_step(
    list: dualadam_cuda_list,
    sets: *const dualadam_coeffs,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let list = get(list)?;
        let List { list, sets: room, .. } = &mut *lock(&list);
        if count > list.most_sets() {
            let (limit, actual) = (list.most_sets() as u64, count as u64);
            return Err(Error::TooMany { list: "sets", limit, actual }.into());
        }
        room.clear();
        // SAFETY: the structs can be read for their sizes (the first requirement).
        for coeffs in unsafe { read_all("sets", sets, count) }? {
            room.push(coeffs?.into());
        }
        // SAFETY: `stream` is live, and the buffers are there and ordered (the other requirements).
        Ok(unsafe { list.step_raw(room, stream) }?)
    })
}

/// One DualAdam step of every tensor of a list that has a gradient, enqueued on `stream`; what it
/// does is decided on the device. `control` has the sets that the tensors name. `scalars` is what
/// else steers the step, or null for nothing else.
///
/// A small kernel advances the counter of each set that a tensor with a gradient names, and forms
/// the set's coefficients with the bits of `dualadam_config_coeffs`, for the multiplier clip_factor
/// / loss_scale. A set whose step cannot be made is skipped instead: neither its tensors nor its
/// counter change, and `dualadam_cuda_control_report` says why.
///
/// The call does not allocate or read from the device. It blocks only when the changes of all four
/// steps before are still in flight.
///
/// Capture: the step can be captured in a CUDA graph, also if it is the first and with new
/// addresses. It takes new device memory then, which stays until the graph is destroyed. The graph
/// keeps the tensors, which of them have gradients, and the addresses in `scalars`. It reads
/// learning rates, configs and counters when it is launched. It may outlive list, control and
/// kernels.
///
/// # Errors
///
/// Nothing is enqueued then, except after `DUALADAM_STATUS_CUDA_DRIVER`.
///
/// - `DUALADAM_STATUS_INDEX` for a tensor whose set is not in the control.
/// - `DUALADAM_STATUS_CUDA_CONTEXT` for a control or a stream of another context.
/// - `DUALADAM_STATUS_CUDA_ADDRESS` for a scalar that is not aligned to 4 bytes.
/// - `DUALADAM_STATUS_CUDA_INTERRUPTED`.
/// - `DUALADAM_STATUS_CUDA_DRIVER` if the driver refuses a copy, memory or a launch, or if earlier
///   work on the device failed. Counters may have advanced of tensors that were not stepped; every
///   later use of the control returns `DUALADAM_STATUS_CUDA_INTERRUPTED` then, until
///   `dualadam_cuda_control_set_steps`.
///
/// # Safety
///
/// - `scalars` is null or can be read for as many bytes as its size says.
/// - `stream` is null or live.
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
        let (list, control): (_, Locked<Control>) = (get(list)?, handles::get("control", control)?);
        let scalars = if scalars.is_null() {
            RawScalars::default()
        } else {
            // SAFETY: `scalars` can be read for its size (the first requirement).
            unsafe { read("scalars", scalars) }?.into()
        };
        // Always the list first, so that two calls with the same two handles never deadlock.
        let (mut list, mut control) = (lock(&list), lock(&control));
        // SAFETY: `stream` is live, and the memory is there and ordered (the other requirements).
        Ok(unsafe { list.list.step_controlled(&mut control, &scalars, stream) }?)
    })
}

/// Frees a list; the handle is stale from then on. The call waits for nothing: the list's memory is
/// freed after its last step, in the order of a stream. So a list may be freed while any stream is
/// being captured. A CUDA graph that captured its steps may still be launched.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_list_free(list: dualadam_cuda_list) -> dualadam_status {
    border(|| handles::remove::<Locked<List>>("list", list))
}

//! Steps over buffers in a CUDA device's memory, enqueued on the caller's streams.

use std::ffi::c_void;

#[cfg(feature = "cuda")]
pub(super) use work::List;

use super::handles::{dualadam_cuda_kernels, dualadam_cuda_list};
use super::status::{border, dualadam_status};
use super::types::{dualadam_coeffs, dualadam_tensor};

/// Makes the kernels for the primary context of a device, numbered from 0: the context that the CUDA runtime, PyTorch and most other
/// programs use. The driver compiles the kernels of a combination of types when a list or a step first needs them, which takes a moment.
/// libcuda is opened by the first call.
///
/// `kernels` gets the handle, which is to be given back with `dualadam_cuda_kernels_free`. This and every other call leaves the thread's
/// current context as it found it.
///
/// Threads: any.
///
/// Errors: `DUALADAM_STATUS_CUDA_NO_DRIVER`, `DUALADAM_STATUS_CUDA_STUB_DRIVER`, `DUALADAM_STATUS_CUDA_OLD_DRIVER`,
/// `DUALADAM_STATUS_CUDA_DRIVER`; `DUALADAM_STATUS_POSITION` if there is no such device; `DUALADAM_STATUS_NULL` or
/// `DUALADAM_STATUS_MISALIGNED` for `kernels`; `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
///
/// # Safety
///
/// `kernels` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_new(
    device: usize,
    kernels: *mut dualadam_cuda_kernels,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::kernels_new(device, kernels) })
}

/// Makes the kernels for the context that is current in the calling thread. The context stays its owner's.
///
/// `kernels` gets the handle, which is to be given back with `dualadam_cuda_kernels_free`.
///
/// Threads: any.
///
/// Errors: as `dualadam_cuda_kernels_new`, but for the device; `DUALADAM_STATUS_CUDA_DRIVER` where no context is current.
///
/// # Safety
///
/// `kernels` can be written. A context that is not a device's primary one is not destroyed before the kernels, and all lists made from
/// them, are freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_in_current_context(
    kernels: *mut dualadam_cuda_kernels,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::kernels_in_current_context(kernels) })
}

/// Loads ahead what `dualadam_cuda_step` needs for tensors of the types of `tensor`, of which nothing else is looked at. A step that is
/// captured in a CUDA graph needs it, unless a step or a list with these types came before.
///
/// Threads: any. The struct is only read.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or
/// `DUALADAM_STATUS_SIZE` for the struct; `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_TYPES` for the types; `DUALADAM_STATUS_CUDA_PTX` if the
/// driver refuses the kernels; `DUALADAM_STATUS_CUDA_DRIVER`; `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
///
/// # Safety
///
/// The struct can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_prepare(
    kernels: dualadam_cuda_kernels,
    tensor: *const dualadam_tensor,
) -> dualadam_status {
    // SAFETY: the struct can be read, as this function requires.
    border(|| unsafe { work::kernels_prepare(kernels, tensor) })
}

/// Frees the kernels; the handle is stale from then on. What the driver has loaded stays loaded until the context ends, so that CUDA graphs
/// may outlive the kernels. Where these are the last ones of a context, and nothing made from them is left, the driver may wait for the
/// device, and memory that a CUDA graph still uses stays allocated until the context ends.
///
/// Threads: any; a call with the same kernels that is under way in another thread goes on to its end.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, also for one that was freed before; `DUALADAM_STATUS_HANDLE_KIND`;
/// `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_kernels_free(kernels: dualadam_cuda_kernels) -> dualadam_status {
    border(|| work::kernels_free(kernels))
}

/// One DualAdam step over one tensor in device memory, enqueued on `stream`; returns at once. The call does not allocate or wait, but for
/// the first one with a combination of types, which loads its kernels. It can be captured in a CUDA graph, which keeps the coefficients as
/// they are now; `dualadam_cuda_kernels_prepare` loads the kernels ahead. The bits are those of `dualadam_cpu_step`.
///
/// The pointers in `tensor` are device addresses; a CUdeviceptr is one as well. `stream` is a CUstream or a cudaStream_t; null is the
/// default stream.
///
/// Threads: any, at the same time too. The structs are only read.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or
/// `DUALADAM_STATUS_SIZE` for a struct; `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_TYPES` for the types; `DUALADAM_STATUS_NULL`,
/// `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_EXTENT`, `DUALADAM_STATUS_TOO_MANY` or `DUALADAM_STATUS_OVERLAP` for the buffers;
/// `DUALADAM_STATUS_INDEX` for a set that is not 0; `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of another context;
/// `DUALADAM_STATUS_CUDA_CAPTURED` in a capture where the kernels are not loaded; `DUALADAM_STATUS_CUDA_PTX` if the driver refuses them.
/// Nothing is enqueued then. `DUALADAM_STATUS_CUDA_DRIVER` if the driver refuses the launch, or if earlier work on the device failed.
/// `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
///
/// # Safety
///
/// The structs can be read for as many bytes as their sizes say. `stream` is null or live. From now until the work has run, each buffer is
/// device memory of the kernels' context, of `len` elements of its type, and what else uses it is ordered before or after this work.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_step(
    kernels: dualadam_cuda_kernels,
    tensor: *const dualadam_tensor,
    coeffs: *const dualadam_coeffs,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::step(kernels, tensor, coeffs, stream) })
}

/// Makes a list of tensors that are stepped together, in one launch per combination of types. Loads the kernels, puts the descriptors
/// into device memory and waits until they are there.
///
/// `tensors` is an array of `count` structs, their sizes alike, of device addresses. A null gradient leaves its tensor alone, and its other
/// addresses are not looked at. `list` gets the handle, which is to be given back with `dualadam_cuda_list_free`. The list keeps the
/// kernels.
///
/// Threads: any; the structs are only read.
///
/// Errors: as `dualadam_cuda_step`, but that two gradients may share memory; `DUALADAM_STATUS_EMPTY` for no tensor at all;
/// `DUALADAM_STATUS_TOO_MANY` for more than a launch can serve; `DUALADAM_STATUS_NULL` or `DUALADAM_STATUS_MISALIGNED` for `list`.
///
/// # Safety
///
/// Each struct can be read for as many bytes as its size says; `list` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_new(
    kernels: dualadam_cuda_kernels,
    tensors: *const dualadam_tensor,
    count: usize,
    list: *mut dualadam_cuda_list,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::list_new(kernels, tensors, count, list) })
}

/// Takes over new addresses and sets of the same tensors, such as of new gradients. The device gets what changed with the next step. The
/// call does not allocate or wait for the device.
///
/// Threads: any; waits for other calls with the same list. The structs are only read.
///
/// Errors: as `dualadam_cuda_list_new`; `DUALADAM_STATUS_COUNT` for another number of tensors, `DUALADAM_STATUS_FIXED` for other lengths or
/// types. The list stays as it was then.
///
/// # Safety
///
/// Each struct can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_update(
    list: dualadam_cuda_list,
    tensors: *const dualadam_tensor,
    count: usize,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::list_update(list, tensors, count) })
}

/// One DualAdam step of every tensor of a list that has a gradient, with the coefficients `sets[tensor.set]`, enqueued on `stream`.
///
/// `sets` is an array of `count` structs, their sizes alike: at most as many as the list has tensors, or 96 if that is more. The call does
/// not allocate. It blocks only when the changes of all four steps before are still in flight.
///
/// Capture: the step can be captured in a CUDA graph, which keeps addresses, sets and coefficients as they are now. It takes new device
/// memory then, which stays until the graph is destroyed. The library must stay loaded until then.
///
/// Threads: any; waits for other calls with the same list.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, `DUALADAM_STATUS_HANDLE_KIND`; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or
/// `DUALADAM_STATUS_SIZE` for the sets; `DUALADAM_STATUS_INDEX` for a tensor whose set is not there; `DUALADAM_STATUS_TOO_MANY`;
/// `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of another context. Nothing is
/// enqueued then. `DUALADAM_STATUS_CUDA_DRIVER` if the driver refuses a copy, memory or a launch, or if earlier work on the device failed: the
/// launches for some of the combinations of types may have been made. `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
///
/// # Safety
///
/// Each struct can be read for as many bytes as its size says. `stream` is null or live. From now until the work has run, each buffer of
/// each tensor that has a gradient is device memory of the kernels' context, of the tensor's length, and what else uses it, other steps of
/// the list too, is ordered before or after this work.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_list_step(
    list: dualadam_cuda_list,
    sets: *const dualadam_coeffs,
    count: usize,
    stream: *mut c_void,
) -> dualadam_status {
    // SAFETY: as this function requires.
    border(|| unsafe { work::list_step(list, sets, count, stream) })
}

/// Frees a list; the handle is stale from then on. Nothing is waited for: the list's memory is freed after its last step, in the order of a
/// stream. So it may be freed while any stream is being captured. A CUDA graph that captured its steps may still be launched.
///
/// Threads: any; a call with the same list that is under way in another thread goes on to its end.
///
/// Errors: `DUALADAM_STATUS_STALE_HANDLE`, also for one that was freed before; `DUALADAM_STATUS_HANDLE_KIND`;
/// `DUALADAM_STATUS_UNSUPPORTED` from a library without CUDA.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_list_free(list: dualadam_cuda_list) -> dualadam_status {
    border(|| work::list_free(list))
}

#[cfg(feature = "cuda")]
mod work {
    use std::ffi::c_void;
    use std::sync::{Arc, Mutex};

    use crate::capi::arguments::{Out, Place, collect, read, read_all};
    use crate::capi::handles::{self, Object, lock};
    use crate::capi::status::Failure;
    use crate::capi::types::{dualadam_coeffs, dualadam_tensor};
    use crate::cuda::{Kernels, RawBuffer, RawTensor, TensorList};
    use crate::{Error, StepCoeffs};

    /// A list, and room for what calls read, so that they need not allocate.
    pub(in crate::capi) struct List {
        pub(in crate::capi) list: TensorList,
        tensors: Vec<RawTensor>,
        sets: Vec<StepCoeffs>,
    }

    impl dualadam_tensor {
        fn raw(&self, place: Place) -> Result<RawTensor, Failure> {
            let (params, grads, copy) = self.types(place)?;
            Ok(RawTensor {
                params: RawBuffer { address: self.params.addr() as u64, dtype: params },
                grads: RawBuffer { address: self.grads.addr() as u64, dtype: grads },
                exp_avg: self.exp_avg.addr() as u64,
                exp_avg_sq: self.exp_avg_sq.addr() as u64,
                copy: copy.map(|dtype| RawBuffer { address: self.copy.addr() as u64, dtype }),
                len: self.len,
                set: self.set as usize,
            })
        }
    }

    pub(super) unsafe fn kernels_new(device: usize, kernels: *mut u64) -> Result<(), Failure> {
        let out = Out::new("kernels", kernels)?;
        let made = Kernels::new(device)?;
        // SAFETY: as this function requires.
        unsafe { out.write(handles::insert(Object::Kernels(made))) };
        Ok(())
    }

    pub(super) unsafe fn kernels_in_current_context(kernels: *mut u64) -> Result<(), Failure> {
        let out = Out::new("kernels", kernels)?;
        // SAFETY: as this function requires.
        let made = unsafe { Kernels::in_current_context() }?;
        // SAFETY: as this function requires.
        unsafe { out.write(handles::insert(Object::Kernels(made))) };
        Ok(())
    }

    pub(super) unsafe fn kernels_prepare(kernels: u64, tensor: *const dualadam_tensor) -> Result<(), Failure> {
        let kernels: Kernels = handles::get("kernels", kernels)?;
        // SAFETY: the struct can be read, as `dualadam_cuda_kernels_prepare` requires.
        let tensor: dualadam_tensor = unsafe { read("tensor", tensor) }?;
        let (params, grads, copy) = tensor.types("tensor".into())?;
        kernels.prepare(params, grads, copy)?;
        Ok(())
    }

    pub(super) fn kernels_free(kernels: u64) -> Result<(), Failure> {
        handles::remove::<Kernels>("kernels", kernels)
    }

    pub(super) unsafe fn step(
        kernels: u64,
        tensor: *const dualadam_tensor,
        coeffs: *const dualadam_coeffs,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let kernels: Kernels = handles::get("kernels", kernels)?;
        // SAFETY: as this function requires.
        let (tensor, coeffs) = unsafe { (read("tensor", tensor)?, read("coeffs", coeffs)?) };
        let tensor = tensor.raw("tensor".into())?;
        // SAFETY: as this function requires.
        Ok(unsafe { kernels.step_raw(&tensor, &coeffs.into(), stream) }?)
    }

    pub(super) unsafe fn list_new(
        kernels: u64,
        tensors: *const dualadam_tensor,
        count: usize,
        list: *mut u64,
    ) -> Result<(), Failure> {
        let kernels: Kernels = handles::get("kernels", kernels)?;
        let out = Out::new("list", list)?;
        // SAFETY: as this function requires.
        let tensors =
            unsafe { collect("tensors", tensors, count, |_, place, tensor| dualadam_tensor::raw(&tensor, place)) }?;
        let list = TensorList::new(&kernels, &tensors)?;
        let sets = Vec::with_capacity(list.most_sets());
        let object = Object::List(Arc::new(Mutex::new(List { list, tensors, sets })));
        // SAFETY: as this function requires.
        unsafe { out.write(handles::insert(object)) };
        Ok(())
    }

    pub(super) unsafe fn list_update(list: u64, tensors: *const dualadam_tensor, count: usize) -> Result<(), Failure> {
        let list: Arc<Mutex<List>> = handles::get("list", list)?;
        let List { list, tensors: room, .. } = &mut *lock(&list);
        if count != list.len() {
            return Err(Error::Count { list: "tensors", expected: list.len(), actual: count }.into());
        }
        room.clear();
        // SAFETY: as this function requires.
        for (index, tensor) in unsafe { read_all("tensors", tensors, count) }?.enumerate() {
            room.push(tensor?.raw(Place::entry("tensors", index))?);
        }
        Ok(list.update(room)?)
    }

    pub(super) unsafe fn list_step(
        list: u64,
        sets: *const dualadam_coeffs,
        count: usize,
        stream: *mut c_void,
    ) -> Result<(), Failure> {
        let list: Arc<Mutex<List>> = handles::get("list", list)?;
        let List { list, sets: room, .. } = &mut *lock(&list);
        if count > list.most_sets() {
            let (limit, actual) = (list.most_sets() as u64, count as u64);
            return Err(Error::TooMany { list: "sets", limit, actual }.into());
        }
        room.clear();
        // SAFETY: as this function requires.
        for coeffs in unsafe { read_all("sets", sets, count) }? {
            room.push(coeffs?.into());
        }
        // SAFETY: as this function requires.
        Ok(unsafe { list.step_raw(room, stream) }?)
    }

    pub(super) fn list_free(list: u64) -> Result<(), Failure> {
        handles::remove::<Arc<Mutex<List>>>("list", list)
    }
}

/// The header is the same for every build, so that the functions are there without CUDA too.
#[cfg(not(feature = "cuda"))]
mod work {
    use std::ffi::c_void;

    use crate::capi::status::Failure;
    use crate::capi::types::{dualadam_coeffs, dualadam_tensor};

    const UNSUPPORTED: Result<(), Failure> = Err(Failure::Unsupported { feature: "cuda" });

    pub(super) unsafe fn kernels_new(_: usize, _: *mut u64) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn kernels_in_current_context(_: *mut u64) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn kernels_prepare(_: u64, _: *const dualadam_tensor) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) fn kernels_free(_: u64) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn step(
        _: u64,
        _: *const dualadam_tensor,
        _: *const dualadam_coeffs,
        _: *mut c_void,
    ) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn list_new(_: u64, _: *const dualadam_tensor, _: usize, _: *mut u64) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn list_update(_: u64, _: *const dualadam_tensor, _: usize) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) unsafe fn list_step(_: u64, _: *const dualadam_coeffs, _: usize, _: *mut c_void) -> Result<(), Failure> {
        UNSUPPORTED
    }

    pub(super) fn list_free(_: u64) -> Result<(), Failure> {
        UNSUPPORTED
    }
}

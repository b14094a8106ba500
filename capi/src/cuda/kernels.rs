//! Kernels in a CUDA context, and steps over one tensor.

use std::ffi::c_void;

use dualadam::cuda::Kernels;

use crate::arguments::read;
use crate::handles::{self, dualadam_cuda_kernels};
use crate::results::Out;
use crate::status::{Failure, border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_tensor};

pub(super) fn get(kernels: dualadam_cuda_kernels) -> Result<Kernels, Failure> {
    handles::get("kernels", kernels)
}

/// Makes the kernels for the primary context of a device, numbered from 0: the context that the
/// CUDA runtime, PyTorch and most other programs use. The driver compiles the kernels of a
/// combination of types when a list or a step first needs them, which takes a moment. The first
/// call opens libcuda.
///
/// `kernels` gets the handle; free it with `dualadam_cuda_kernels_free`. This and every other call
/// leaves the thread's current context as it found it.
///
/// # Errors
///
/// - `DUALADAM_STATUS_CUDA_NO_DRIVER`, `DUALADAM_STATUS_CUDA_STUB_DRIVER`,
///   `DUALADAM_STATUS_CUDA_OLD_DRIVER` or `DUALADAM_STATUS_CUDA_DRIVER`.
/// - `DUALADAM_STATUS_POSITION` if there is no such device.
///
/// # Safety
///
/// - `kernels` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_new(
    device: usize,
    kernels: *mut dualadam_cuda_kernels,
) -> dualadam_status {
    border(|| {
        let out = Out::new("kernels", kernels)?;
        let made = Kernels::new(device)?;
        // SAFETY: `kernels` can be written (this function's requirement).
        unsafe { out.write(handles::insert(made)) };
        Ok(())
    })
}

/// Makes the kernels for the context that is current in the calling thread. The caller still owns
/// the context.
///
/// `kernels` gets the handle; free it with `dualadam_cuda_kernels_free`.
///
/// # Errors
///
/// - As `dualadam_cuda_kernels_new`, other than for the device.
/// - `DUALADAM_STATUS_CUDA_DRIVER` where no context is current.
///
/// # Safety
///
/// - `kernels` can be written.
/// - A context that is not a device's primary one is not destroyed before the kernels, and all
///   lists and controls made from them, are freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_in_current_context(
    kernels: *mut dualadam_cuda_kernels,
) -> dualadam_status {
    border(|| {
        let out = Out::new("kernels", kernels)?;
        // SAFETY: the context outlives the kernels (the second requirement).
        let made = unsafe { Kernels::in_current_context() }?;
        // SAFETY: `kernels` can be written (the first requirement).
        unsafe { out.write(handles::insert(made)) };
        Ok(())
    })
}

/// Loads ahead what `dualadam_cuda_step` needs for tensors of the types of `tensor`, of which
/// nothing else is used. A step that is captured in a CUDA graph needs it, unless a step or a list
/// with these types came before.
///
/// # Errors
///
/// - `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_TYPES` for the types.
/// - `DUALADAM_STATUS_CUDA_PTX` if the driver refuses the kernels.
/// - `DUALADAM_STATUS_CUDA_DRIVER`.
///
/// # Safety
///
/// - `tensor` can be read for as many bytes as its size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_prepare(
    kernels: dualadam_cuda_kernels,
    tensor: *const dualadam_tensor,
) -> dualadam_status {
    border(|| {
        let kernels = get(kernels)?;
        // SAFETY: `tensor` can be read for its size (this function's requirement).
        let (params, grads, copy) = unsafe { read("tensor", tensor) }?.types("tensor".into())?;
        Ok(kernels.prepare(params, grads, copy)?)
    })
}

/// Frees the kernels; the handle is stale from then on. What the driver has loaded stays loaded
/// until the context ends, so that CUDA graphs may outlive the kernels. Where these are the last
/// kernels of a context, and nothing made from them is left, the driver may wait for the device,
/// and memory that a CUDA graph still uses stays allocated until the context ends.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_kernels_free(kernels: dualadam_cuda_kernels) -> dualadam_status {
    border(|| handles::remove::<Kernels>("kernels", kernels))
}

/// One DualAdam step over one tensor in device memory, enqueued on `stream`; returns at once. The
/// bits are those of `dualadam_cpu_step`. The call does not allocate or wait, except the first one
/// with a combination of types, which loads its kernels.
///
/// The pointers in `tensor` are device addresses; a CUdeviceptr is one as well.
///
/// Capture: the step can be captured in a CUDA graph, which keeps the coefficients as they are now.
/// `dualadam_cuda_kernels_prepare` loads the kernels ahead.
///
/// # Errors
///
/// Nothing is enqueued then.
///
/// - `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_TYPES` for the types.
/// - `DUALADAM_STATUS_INDEX` for a set that is not 0.
/// - `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_EXTENT`,
///   `DUALADAM_STATUS_TOO_MANY` or `DUALADAM_STATUS_OVERLAP` for the buffers.
/// - `DUALADAM_STATUS_CUDA_CONTEXT` for a stream of another context.
/// - `DUALADAM_STATUS_CUDA_CAPTURED` in a capture where the kernels are not loaded.
/// - `DUALADAM_STATUS_CUDA_PTX` if the driver refuses the kernels.
/// - `DUALADAM_STATUS_CUDA_DRIVER` if the driver refuses the launch, or if earlier work on the
///   device failed.
///
/// # Safety
///
/// - The structs can be read for as many bytes as their sizes say.
/// - `stream` is null or live.
/// - From now until the work has run, each buffer is device memory of the kernels' context, of
///   `len` elements of its type.
/// - What else uses that memory is ordered before or after this work.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_step(
    kernels: dualadam_cuda_kernels,
    tensor: *const dualadam_tensor,
    coeffs: *const dualadam_coeffs,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let kernels = get(kernels)?;
        // SAFETY: the structs can be read for their sizes (the first requirement).
        let (tensor, coeffs) = unsafe { (read("tensor", tensor)?, read("coeffs", coeffs)?) };
        let tensor = tensor.raw("tensor".into())?;
        // SAFETY: `stream` is live, and the buffers are there and ordered (the other requirements).
        Ok(unsafe { kernels.step_raw(&tensor, &coeffs.into(), stream) }?)
    })
}

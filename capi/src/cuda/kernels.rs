//! Kernels in a CUDA context, and steps over one tensor.

use std::ffi::c_void;

use dualadam::cuda::Kernels;

use crate::arguments::read;
use crate::handles::{dualadam_cuda_kernels, get, insert, remove};
use crate::results::give;
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_tensor};

/// Makes the kernels for the primary context of a device: the context that the CUDA runtime,
/// PyTorch and most other programs use. The driver compiles the kernels of a combination of types
/// when a list or a step first needs them, which takes a moment. The first call opens libcuda.
/// This and every other call leaves the thread's current context as it found it.
///
/// # Errors
///
/// - `DUALADAM_STATUS_CUDA_NO_DRIVER`, `DUALADAM_STATUS_CUDA_STUB_DRIVER` or
///   `DUALADAM_STATUS_CUDA_OLD_DRIVER`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_new(
    device: usize,
    kernels: *mut dualadam_cuda_kernels,
) -> dualadam_status {
    border(|| {
        // SAFETY: `kernels` can be written (required of every call).
        unsafe { give("kernels", kernels, || Ok(insert(Kernels::new(device)?))) }
    })
}

/// Makes the kernels for the context that is current in the calling thread. The caller still owns
/// the context.
///
/// # Errors
///
/// - As `dualadam_cuda_kernels_new`.
/// - `DUALADAM_STATUS_CUDA_DRIVER` where no context is current.
///
/// # Safety
///
/// - A context that is not a device's primary one is not destroyed before the kernels, and all
///   lists and controls made from them, are freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_in_current_context(
    kernels: *mut dualadam_cuda_kernels,
) -> dualadam_status {
    border(|| {
        // SAFETY: the context outlives the kernels (this function's requirement).
        let make = || Ok(insert(unsafe { Kernels::in_current_context() }?));
        // SAFETY: `kernels` can be written (required of every call).
        unsafe { give("kernels", kernels, make) }
    })
}

/// Loads ahead what `dualadam_cuda_step` needs for tensors of the types of `tensor`, of which
/// nothing else is used. A step that is captured in a CUDA graph needs it, unless a step or a list
/// with these types came before.
///
/// # Errors
///
/// - `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_TYPES` for the types.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_kernels_prepare(
    kernels: dualadam_cuda_kernels,
    tensor: *const dualadam_tensor,
) -> dualadam_status {
    border(|| {
        let kernels: Kernels = get(kernels)?;
        // SAFETY: `tensor` can be read for its size (required of every call).
        let tensor = unsafe { read("tensor", tensor) }?;
        Ok(kernels.prepare(tensor.formats())?)
    })
}

/// Frees the kernels. What the driver has loaded stays loaded until the context ends. Where these
/// are the last kernels of a context, and nothing made from them is left, the driver may wait for
/// the device, and memory that a CUDA graph still uses stays allocated until the context ends.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_kernels_free(kernels: dualadam_cuda_kernels) -> dualadam_status {
    border(|| remove::<Kernels>(kernels))
}

/// One DualAdam step over one tensor in device memory, enqueued on `stream`; returns at once. The
/// bits are those of `dualadam_cpu_step`. The call does not allocate or wait, except the first one
/// with a combination of types, which loads its kernels.
///
/// The pointers in `tensor` are device addresses; a CUdeviceptr is one as well.
///
/// Capture: the graph keeps the coefficients as they are now. `dualadam_cuda_kernels_prepare` loads
/// the kernels ahead.
///
/// # Errors
///
/// - As `dualadam_cpu_step`.
/// - `DUALADAM_STATUS_CUDA_CAPTURED` in a capture where the kernels are not loaded.
///
/// # Safety
///
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
        let kernels: Kernels = get(kernels)?;
        // SAFETY: the structs can be read for their sizes (required of every call).
        let (tensor, coeffs) = unsafe { (read("tensor", tensor)?, read("coeffs", coeffs)?) };
        // SAFETY: `stream` is live (required of every call), and the buffers are there and ordered
        // (this function's requirements).
        Ok(unsafe { kernels.step_raw(&tensor, &coeffs, stream) }?)
    })
}

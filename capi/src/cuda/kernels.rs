//! Kernels in a CUDA context, and steps over one tensor.

use std::ffi::c_void;

use dualadam::cuda::Kernels;

use crate::arguments::read;
use crate::handles::{dualadam_cuda_kernels, get, insert, remove};
use crate::results::give;
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_tensor, param_and_master};

/// Makes the kernels for the primary context of a device, the one that the CUDA runtime and PyTorch
/// use. `device` is the number of the device, from 0. The first call of the process opens libcuda.
///
/// The driver compiles the kernels of a combination of element types when a list or a step first
/// needs them, or when `dualadam_cuda_kernels_prepare` asks for them. That takes some time.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_CUDA_NO_DRIVER` where libcuda is missing.
/// - `DUALADAM_STATUS_CUDA_STUB_DRIVER` or `DUALADAM_STATUS_CUDA_OLD_DRIVER` for a libcuda that
///   cannot run the kernels.
///
/// # Example
///
/// ```c
/// dualadam_cuda_kernels kernels;
/// dualadam_cuda_kernels_new(0, &kernels);
/// // lists, controls and steps
/// dualadam_cuda_kernels_free(kernels);
/// ```
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

/// Makes the kernels for the context that is current in the calling thread. The caller keeps
/// ownership of the context. In all else it is as `dualadam_cuda_kernels_new`.
///
/// # Errors
///
/// - As `dualadam_cuda_kernels_new`.
/// - `DUALADAM_STATUS_CUDA_DRIVER` where no context is current.
///
/// # Safety
///
/// - A context that is not the primary one of its device is destroyed only after the kernels are
///   freed, and all lists and controls made from them.
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

/// Loads the kernels that steps of tensors with the element types of `tensor` need. The call uses
/// nothing else of `tensor`. A `dualadam_cuda_step` under capture needs it, unless a step or a list
/// with these types was made before.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_ENUM` for an element type that is no DUALADAM_DTYPE_ number.
/// - `DUALADAM_STATUS_TYPES` for a combination of element types without a kernel.
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

/// Frees kernels. Lists and controls made from them keep what they need. The driver keeps loaded
/// code until the context ends.
///
/// If these are the last kernels of a context, and no list or control is left, the driver may wait
/// for the device. Memory that a CUDA graph still uses then stays allocated until the context ends.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_cuda_kernels_free(kernels: dualadam_cuda_kernels) -> dualadam_status {
    border(|| remove::<Kernels>(kernels))
}

/// Enqueues one DualAdam step of one tensor in device memory on `stream`. The result has the bits
/// of `dualadam_cpu_step`. The pointers in `tensor` are device addresses, such as a CUdeviceptr
/// cast to a pointer.
///
/// The call neither allocates nor waits, except that the first call with a combination of element
/// types loads its kernels.
///
/// Capture: the graph keeps the addresses and coefficients of this call.
///
/// # Errors
///
/// - As `dualadam_cpu_step`.
/// - `DUALADAM_STATUS_CUDA_CAPTURED` under capture, if the kernels are not loaded yet.
///
/// # Safety
///
/// - Until the work has run, also in each launch of a graph, each buffer is device memory of the
///   kernels' context, of `len` elements of its type.
/// - The caller orders the work before or after other uses of that memory.
///
/// # Example
///
/// ```c
/// dualadam_coeffs coeffs;
/// dualadam_config_coeffs(config, step, 1.0, &coeffs, sizeof coeffs);
/// dualadam_cuda_step(kernels, tensor, &coeffs, stream);
/// ```
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

/// Enqueues on `stream` that the masters of one tensor in device memory take over what other code
/// wrote into its parameters. `dualadam_cpu_sync_master` states the rule; the result has its bits,
/// except for those of NaNs. The pointers in `tensor` are device addresses.
///
/// The call neither allocates nor waits, except that the first use of the kernels loads them.
///
/// Capture: the graph keeps the addresses, and compares again in each launch.
///
/// # Errors
///
/// - As `dualadam_cpu_sync_master`.
/// - `DUALADAM_STATUS_CUDA_CAPTURED` under capture, if the kernels are not loaded yet. A step with
///   the same types of parameters and masters loads them, as does `dualadam_cuda_kernels_prepare`.
///
/// # Safety
///
/// - Until the work has run, also in each launch of a graph, both buffers are device memory of the
///   kernels' context, of `len` elements of their types.
/// - The caller orders the work before or after other uses of that memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cuda_sync_master(
    kernels: dualadam_cuda_kernels,
    tensor: *const dualadam_tensor,
    stream: *mut c_void,
) -> dualadam_status {
    border(|| {
        let kernels: Kernels = get(kernels)?;
        // SAFETY: the struct can be read for its size (required of every call).
        let tensor = unsafe { read("tensor", tensor) }?;
        let (param, master) = param_and_master(&tensor)?;
        // SAFETY: `stream` is live (required of every call), and the buffers are there and ordered
        // (this function's requirements).
        Ok(unsafe { kernels.sync_master_raw(tensor.len, param, master, stream) }?)
    })
}

//! Steps of tensors in the host's memory.

use dualadam::cpu;

use crate::arguments::{read, read_all};
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_tensor};

/// Makes one DualAdam step of one tensor, in one pass over its buffers. `dualadam_coeffs` states
/// the arithmetic.
///
/// The call does not allocate. It splits a tensor of more than 32,768 elements over the threads of
/// the process's pool. The pool has as many threads as there are processors, or as the environment
/// variable RAYON_NUM_THREADS says when the library first needs the pool. The result has the same
/// bits for any number of threads and on any processor.
///
/// # Errors
///
/// - Argument errors (see the head of this file).
/// - `DUALADAM_STATUS_ENUM` for an element type that is no DUALADAM_DTYPE_ number.
/// - `DUALADAM_STATUS_TYPES` for a combination of element types without a kernel.
/// - `DUALADAM_STATUS_INDEX` for a `coeffs_index` that is not 0.
/// - `DUALADAM_STATUS_NULL` or `DUALADAM_STATUS_MISALIGNED` for a buffer.
/// - `DUALADAM_STATUS_EXTENT` or `DUALADAM_STATUS_TOO_MANY` for a buffer that is longer than memory
///   has room for.
/// - `DUALADAM_STATUS_OVERLAP` for two buffers that share memory.
///
/// # Safety
///
/// - Each buffer is memory of `len` elements of its type.
/// - Nothing else uses that memory during the call.
///
/// # Example
///
/// ```c
/// dualadam_tensor tensor;
/// dualadam_coeffs coeffs;
/// dualadam_tensor_init(&tensor, sizeof tensor);
/// tensor.param = param;
/// tensor.grad = grad;
/// tensor.exp_avg = exp_avg;
/// tensor.exp_avg_sq = exp_avg_sq;
/// tensor.len = len;
/// dualadam_config_coeffs(config, step, 1.0, &coeffs, sizeof coeffs);
/// dualadam_cpu_step(&tensor, &coeffs);
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cpu_step(
    tensor: *const dualadam_tensor,
    coeffs: *const dualadam_coeffs,
) -> dualadam_status {
    border(|| {
        // SAFETY: the structs can be read for their sizes (required of every call).
        let (tensor, coeffs) = unsafe { (read("tensor", tensor)?, read("coeffs", coeffs)?) };
        // SAFETY: the buffers are memory that nothing else uses (this function's requirement).
        Ok(unsafe { cpu::step_raw(&tensor, &coeffs) }?)
    })
}

/// Makes one DualAdam step of each tensor of a list that has a gradient, with the coefficients
/// `coeffs[tensor.coeffs_index]`. The tensors may differ in length and types.
///
/// `tensors` and `coeffs` are arrays of `tensor_count` and `coeffs_count` structs. The list skips a
/// tensor whose `grad` is null. The result has the bits of a `dualadam_cpu_step` of each tensor.
/// The call allocates some 630 bytes for each tensor.
///
/// # Errors
///
/// - As `dualadam_cpu_step`, for each tensor; but two gradients may share memory.
/// - `DUALADAM_STATUS_INDEX` for a `coeffs_index` that is not below `coeffs_count`.
///
/// # Safety
///
/// - Each buffer of each tensor with a gradient is memory of the tensor's `len` elements of its
///   type.
/// - Nothing else uses that memory during the call.
///
/// # Example
///
/// Two tensors of parameter groups with different configs:
///
/// ```c
/// dualadam_coeffs coeffs[2];
/// tensors[0].coeffs_index = 0;
/// tensors[1].coeffs_index = 1;
/// dualadam_config_coeffs(&configs[0], step, 1.0, &coeffs[0], sizeof coeffs[0]);
/// dualadam_config_coeffs(&configs[1], step, 1.0, &coeffs[1], sizeof coeffs[1]);
/// dualadam_cpu_step_list(tensors, 2, coeffs, 2);
/// ```
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cpu_step_list(
    tensors: *const dualadam_tensor,
    tensor_count: usize,
    coeffs: *const dualadam_coeffs,
    coeffs_count: usize,
) -> dualadam_status {
    border(|| {
        // SAFETY: the arrays' structs can be read for their sizes (required of every call).
        let (tensors, coeffs) =
            unsafe { (read_all("tensors", tensors, tensor_count)?, read_all("coeffs", coeffs, coeffs_count)?) };
        // SAFETY: the buffers are memory that nothing else uses (this function's requirement).
        Ok(unsafe { cpu::step_list_raw(&tensors, &coeffs) }?)
    })
}

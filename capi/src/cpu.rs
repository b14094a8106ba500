//! Steps over buffers in the host's memory.

use dualadam::cpu;

use crate::arguments::{read, read_all};
use crate::status::{border, dualadam_status};
use crate::types::{dualadam_coeffs, dualadam_tensor};

/// One DualAdam step over one tensor, in one pass over its buffers, with the given coefficients.
///
/// The call allocates nothing. A tensor of more than some 32,000 elements is split over the threads
/// of the process's pool: as many as there are processors, or as the environment variable
/// RAYON_NUM_THREADS says when the first such tensor is stepped. The result has the same bits for
/// any number of threads and any processor.
///
/// # Errors
///
/// - `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_TYPES` for the types.
/// - `DUALADAM_STATUS_INDEX` for a `coeffs_index` that is not 0.
/// - `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_EXTENT`,
///   `DUALADAM_STATUS_TOO_MANY` or `DUALADAM_STATUS_OVERLAP` for the buffers.
///
/// # Safety
///
/// - Each buffer is memory of `len` elements of its type, which nothing else uses meanwhile.
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

/// One DualAdam step over a list of tensors of any sizes and types, each with the coefficients
/// `coeffs[tensor.coeffs_index]`. Tensors without gradients are skipped. The result has the bits of
/// a `dualadam_cpu_step` for each tensor.
///
/// `tensors` and `coeffs` are arrays of `tensor_count` and `coeffs_count` structs. The call
/// allocates some 630 bytes for each tensor.
///
/// # Errors
///
/// - As `dualadam_cpu_step`, for each tensor.
/// - `DUALADAM_STATUS_INDEX` for coefficients that are not there.
///
/// # Safety
///
/// - Each buffer of each tensor with gradients is memory of the tensor's `len` elements of its
///   type, which nothing else uses meanwhile.
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

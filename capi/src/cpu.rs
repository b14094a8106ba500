//! Steps over buffers in the host's memory.

use dualadam::{StepCoeffs, cpu};

use crate::arguments::{collect, read};
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
/// Nothing is written then.
///
/// - `DUALADAM_STATUS_ENUM` or `DUALADAM_STATUS_TYPES` for the types.
/// - `DUALADAM_STATUS_INDEX` for a set that is not 0.
/// - `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_EXTENT`,
///   `DUALADAM_STATUS_TOO_MANY` or `DUALADAM_STATUS_OVERLAP` for the buffers.
///
/// # Safety
///
/// - The structs can be read for as many bytes as their sizes say.
/// - Each buffer is memory of `len` elements of its type, which nothing else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cpu_step(
    tensor: *const dualadam_tensor,
    coeffs: *const dualadam_coeffs,
) -> dualadam_status {
    border(|| {
        // SAFETY: the structs can be read for their sizes (the first requirement).
        let (tensor, coeffs) = unsafe { (read("tensor", tensor)?, read("coeffs", coeffs)?) };
        let tensor = tensor.raw("tensor".into())?;
        // SAFETY: the buffers are memory that nothing else uses (the second requirement).
        Ok(unsafe { cpu::step_raw(&tensor, &coeffs.into()) }?)
    })
}

/// One DualAdam step over a list of tensors of any sizes and types, each with the coefficients
/// `sets[tensor.set]`. Tensors without gradients are skipped. The result has the bits of a
/// `dualadam_cpu_step` for each tensor.
///
/// `tensors` and `sets` are arrays of `tensor_count` and `set_count` structs. The call allocates
/// some 250 bytes for each tensor.
///
/// # Errors
///
/// Nothing is written then.
///
/// - As `dualadam_cpu_step`, for each tensor.
/// - `DUALADAM_STATUS_INDEX` for a set that is not there.
///
/// # Safety
///
/// - Each struct can be read for as many bytes as its size says.
/// - Each buffer of each tensor with gradients is memory of the tensor's `len` elements of its
///   type, which nothing else uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cpu_step_list(
    tensors: *const dualadam_tensor,
    tensor_count: usize,
    sets: *const dualadam_coeffs,
    set_count: usize,
) -> dualadam_status {
    border(|| {
        // SAFETY: the arrays' structs can be read for their sizes (the first requirement).
        let (tensors, sets) = unsafe {
            let tensors = collect("tensors", tensors, tensor_count, |_, place, tensor| tensor.raw(place))?;
            (tensors, collect("sets", sets, set_count, |_, _, coeffs| Ok(StepCoeffs::from(coeffs)))?)
        };
        // SAFETY: the buffers are memory that nothing else uses (the second requirement).
        Ok(unsafe { cpu::step_list_raw(&tensors, &sets) }?)
    })
}

//! Steps over buffers in the host's memory.

use std::slice;

use half::{bf16, f16};

use crate::cpu::{self, CopyMut, Grads, ParamsMut, Tensor};
use crate::overlap::{self, BUFFERS, Span};
use crate::{Dtype, Error, StepCoeffs};

use super::arguments::{Place, collect, read};
use super::status::{Failure, border, dualadam_status};
use super::types::{Types, dualadam_coeffs, dualadam_tensor};

/// One DualAdam step over one tensor, in one pass over its buffers, with the given coefficients. Nothing is allocated; a tensor of more
/// than some 32,000 elements is split over the threads of the process's pool (as many as there are processors, or as the environment
/// variable RAYON_NUM_THREADS says when the first is stepped). The result is the same to the bit for any number of threads and any
/// processor.
///
/// Threads: any, at the same time too, if no buffer that one call writes is used by another. The structs are only read.
///
/// Errors: `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED` or `DUALADAM_STATUS_SIZE` for a struct; `DUALADAM_STATUS_ENUM` or
/// `DUALADAM_STATUS_TYPES` for the types; `DUALADAM_STATUS_NULL`, `DUALADAM_STATUS_MISALIGNED`, `DUALADAM_STATUS_EXTENT`,
/// `DUALADAM_STATUS_TOO_MANY` or `DUALADAM_STATUS_OVERLAP` for the buffers; `DUALADAM_STATUS_INDEX` for a set that is not 0. Nothing is
/// written then.
///
/// # Safety
///
/// The structs can be read for as many bytes as their sizes say; each buffer is memory of `len` elements of its type, which nothing else
/// uses meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cpu_step(
    tensor: *const dualadam_tensor,
    coeffs: *const dualadam_coeffs,
) -> dualadam_status {
    border(|| {
        // SAFETY: as this function requires.
        let (tensor, coeffs) = unsafe { (read("tensor", tensor)?, read("coeffs", coeffs)?) };
        let types = types_of(&tensor, "tensor".into(), 0)?;
        let mut spans = [const { None }; BUFFERS.len()];
        for (span, place) in spans_of(&tensor, types, 0).zip(&mut spans) {
            *place = Some(span?);
        }
        let used = spans.iter().flatten().count();
        let mut spans = spans.map(|span| span.unwrap_or(Span { memory: (), start: 0, end: 0, tensor: 0, buffer: 0 }));
        overlap::check(&mut spans[..used])?;
        // SAFETY: the buffers are there, aligned, no longer than can be and apart; the rest is as this function requires.
        let tensor = unsafe { borrow(&tensor, types) };
        Ok(cpu::step_list(&mut [tensor], &[StepCoeffs::from(coeffs)])?)
    })
}

/// One DualAdam step over a list of tensors of any sizes and types, each with the coefficients `sets[tensor.set]`. Tensors without
/// gradients are left alone. The result has the bits of a `dualadam_cpu_step` per tensor. The call allocates some 500 bytes a tensor.
///
/// `tensors` and `sets` are arrays of `tensor_count` and `set_count` structs, the sizes in each array alike; an empty array may be null.
///
/// Threads: any, at the same time too, if no buffer that one call writes is used by another. The structs are only read.
///
/// Errors: as `dualadam_cpu_step`, for the first tensor with one; `DUALADAM_STATUS_INDEX` for a set that is not there;
/// `DUALADAM_STATUS_TOO_MANY` or `DUALADAM_STATUS_MEMORY` for arrays beyond all memory. Nothing is written then.
///
/// # Safety
///
/// As for `dualadam_cpu_step`, for each struct and each tensor.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_cpu_step_list(
    tensors: *const dualadam_tensor,
    tensor_count: usize,
    sets: *const dualadam_coeffs,
    set_count: usize,
) -> dualadam_status {
    border(|| {
        // SAFETY: as this function requires.
        let (tensors, sets) = unsafe {
            let tensors = collect("tensors", tensors, tensor_count, |index, place, mut tensor: dualadam_tensor| {
                if tensor.grads.is_null() {
                    tensor.len = 0;
                }
                Ok((types_of(&tensor, place, index)?, tensor))
            })?;
            (tensors, collect("sets", sets, set_count, |_, _, coeffs| Ok(StepCoeffs::from(coeffs)))?)
        };
        let mut spans = Vec::with_capacity(tensors.len() * BUFFERS.len());
        for (index, (types, tensor)) in tensors.iter().enumerate() {
            for span in spans_of(tensor, *types, index) {
                spans.push(span?);
            }
        }
        overlap::check(&mut spans)?;
        // SAFETY: the buffers are there, aligned, no longer than can be and apart; the rest is as this function requires.
        let mut tensors: Vec<_> = tensors.iter().map(|(types, tensor)| unsafe { borrow(tensor, *types) }).collect();
        Ok(cpu::step_list(&mut tensors, &sets)?)
    })
}

/// The types, of which only the copy's is certain to be one that there can be.
fn types_of(tensor: &dualadam_tensor, place: Place, index: usize) -> Result<Types, Failure> {
    let (params, grads, copy) = tensor.types(place)?;
    if copy == Some(Dtype::F32) {
        return Err(Error::Types { tensor: index, params, grads, copy }.into());
    }
    Ok((params, grads, copy))
}

/// The bytes of the buffers that a step uses, each checked by itself; none of an empty tensor.
fn spans_of(
    tensor: &dualadam_tensor,
    (params, grads, copy): Types,
    index: usize,
) -> impl Iterator<Item = Result<Span<()>, Failure>> {
    let len = tensor.len;
    let buffers = [
        Some((tensor.params.addr(), params)),
        Some((tensor.grads.addr(), grads)),
        Some((tensor.exp_avg.addr(), Dtype::F32)),
        Some((tensor.exp_avg_sq.addr(), Dtype::F32)),
        copy.map(|copy| (tensor.copy.addr(), copy)),
    ];
    let buffers = buffers.into_iter().enumerate().filter(move |_| len > 0);
    buffers.filter_map(|(buffer, used)| used.map(|used| (buffer, used))).map(move |(buffer, (address, dtype))| {
        let span = Span::at(index, buffer, address as u64, len, dtype.size())?;
        let limit = (isize::MAX as usize / dtype.size()) as u64;
        if len > limit {
            return Err(Error::TooMany { list: "the elements of a buffer", limit, actual: len }.into());
        }
        Ok(span)
    })
}

/// The tensor as slices.
///
/// # Safety
///
/// [`types_of`] and [`spans_of`] must have passed the tensor and [`overlap::check`] the spans; the buffers must be there, and no one else's meanwhile.
unsafe fn borrow<'a>(tensor: &dualadam_tensor, (params, grads, copy): Types) -> Tensor<'a> {
    let (p, g, c, len) = (tensor.params, tensor.grads, tensor.copy, tensor.len as usize);
    // SAFETY: as this function requires.
    unsafe {
        Tensor {
            params: match params {
                Dtype::F32 => ParamsMut::F32(slice_mut(p.cast(), len)),
                Dtype::Bf16 => ParamsMut::Bf16(slice_mut(p.cast(), len)),
                Dtype::F16 => ParamsMut::F16(slice_mut(p.cast(), len)),
            },
            grads: match grads {
                Dtype::F32 => Grads::F32(slice(g.cast::<f32>(), len)),
                Dtype::Bf16 => Grads::Bf16(slice(g.cast::<bf16>(), len)),
                Dtype::F16 => Grads::F16(slice(g.cast::<f16>(), len)),
            },
            exp_avg: slice_mut(tensor.exp_avg, len),
            exp_avg_sq: slice_mut(tensor.exp_avg_sq, len),
            copy: match copy {
                None | Some(Dtype::F32) => None,
                Some(Dtype::Bf16) => Some(CopyMut::Bf16(slice_mut(c.cast(), len))),
                Some(Dtype::F16) => Some(CopyMut::F16(slice_mut(c.cast(), len))),
            },
            set: tensor.set as usize,
        }
    }
}

/// # Safety
///
/// As for [`slice::from_raw_parts`], but that the address of an empty slice may be anything.
unsafe fn slice<'a, T>(address: *const T, len: usize) -> &'a [T] {
    // SAFETY: as this function requires.
    if len == 0 { &[] } else { unsafe { slice::from_raw_parts(address, len) } }
}

/// # Safety
///
/// As for [`slice::from_raw_parts_mut`], but that the address of an empty slice may be anything.
unsafe fn slice_mut<'a, T>(address: *mut T, len: usize) -> &'a mut [T] {
    // SAFETY: as this function requires.
    if len == 0 { &mut [] } else { unsafe { slice::from_raw_parts_mut(address, len) } }
}

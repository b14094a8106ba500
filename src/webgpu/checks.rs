//! Checks of buffers before they are bound.

use crate::tensor::{Role, Span, check_overlap};

use super::error::{BindingProblem, WebGpuError};
use super::limits::DeviceLimits;
use super::tensor::{Binding, Tensor};

/// The size of a binding must be a multiple of this, in bytes.
const WORD: u64 = 4;

/// Checks every buffer of a list and every pair of buffers. O(n log n).
pub(super) fn check_all(limits: &DeviceLimits, tensors: &[Tensor<'_>]) -> Result<(), WebGpuError> {
    let mut spans = Vec::with_capacity(tensors.len() * Role::COUNT);
    for (index, tensor) in tensors.iter().enumerate() {
        if tensor.variant(index)?.is_none() {
            continue;
        }
        if tensor.master.is_some() {
            limits.check_masters()?;
        }
        for (role, binding) in Role::ARRAY.into_iter().zip(tensor.bindings()) {
            let Some(binding) = binding else { continue };
            let span = span_of(limits, index, role, binding, tensor.len);
            spans.push(span.map_err(|problem| WebGpuError::of_buffer(index, role, problem))?);
        }
    }
    Ok(check_overlap(&mut spans)?)
}

/// Fails if the parameters of a tensor of `len` elements cannot be bound.
pub(super) fn check_param(
    limits: &DeviceLimits,
    tensor: usize,
    param: Binding<'_>,
    len: u64,
) -> Result<(), WebGpuError> {
    let checked = span_of(limits, tensor, Role::Param, param, len);
    checked.map(|_| ()).map_err(|problem| WebGpuError::of_buffer(tensor, Role::Param, problem))
}

/// The bytes of a tensor in its buffer. Fails if the buffer cannot be bound.
fn span_of<'a>(
    limits: &DeviceLimits,
    tensor: usize,
    role: Role,
    binding: Binding<'a>,
    len: u64,
) -> Result<Span<&'a wgpu::Buffer>, BindingProblem> {
    let Binding { buffer: memory, offset, dtype, slice } = binding;
    if !memory.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(BindingProblem::Usage { actual: memory.usage() });
    }
    let align = limits.storage_alignment;
    if !offset.is_multiple_of(align) {
        return Err(BindingProblem::Offset { align, offset });
    }
    let bytes = u128::from(len) * dtype.size() as u128;
    let required = u128::from(offset) + bytes.next_multiple_of(WORD.into());
    if required > memory.size().into() {
        return Err(BindingProblem::BufferSize { len, dtype, offset, required, actual: memory.size() });
    }
    // Neither overflows, since the buffer has this size.
    let end = offset + bytes as u64;
    match slice.filter(|&(slice_start, slice_end)| offset < slice_start || end > slice_end) {
        Some((start, end)) => Err(BindingProblem::Slice { len, dtype, offset, start, end }),
        None => Ok(Span { memory, start: offset, end, tensor, role }),
    }
}

/// The size of a window's binding in bytes, rounded up to whole words.
pub(super) fn bound_bytes(elements: u64, size: usize) -> u64 {
    (elements * size as u64).next_multiple_of(WORD)
}

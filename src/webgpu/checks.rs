//! What must hold of buffers before they are bound.

use crate::Error;
use crate::overlap::{self, BUFFERS, Span};

use super::limits::DeviceLimits;
use super::tensor::{BufferView, Tensor};

/// What a binding's size must be a multiple of.
const WORD: u64 = 4;

/// Checks every buffer of a list and every pair of buffers. O(n log n).
pub(super) fn check_all(limits: &DeviceLimits, tensors: &[Tensor<'_>]) -> Result<(), Error> {
    let mut spans = Vec::with_capacity(tensors.len() * BUFFERS.len());
    for (index, tensor) in tensors.iter().enumerate() {
        let Some(variant) = tensor.variant(index)? else { continue };
        if variant.has_master() && !limits.has_copy() {
            return Err(limits.missing_copy());
        }
        for (buffer, view) in tensor.views().into_iter().enumerate() {
            if let Some(view) = view {
                spans.push(span_of(limits, index, buffer, view, tensor.len)?);
            }
        }
    }
    overlap::check(&mut spans)
}

/// The bytes of a view, if it can be bound.
fn span_of<'a>(
    limits: &DeviceLimits,
    tensor: usize,
    place: usize,
    view: BufferView<'a>,
    len: u64,
) -> Result<Span<&'a wgpu::Buffer>, Error> {
    let BufferView { buffer: memory, offset, dtype } = view;
    let buffer = BUFFERS[place];
    if !memory.usage().contains(wgpu::BufferUsages::STORAGE) {
        return Err(Error::Usage { tensor, buffer, actual: format!("{:?}", memory.usage()) });
    }
    let align = limits.storage_alignment;
    if !offset.is_multiple_of(align) {
        return Err(Error::Offset { tensor, buffer, align, offset });
    }
    let bytes = u128::from(len) * dtype.size() as u128;
    let required = u128::from(offset) + bytes.next_multiple_of(WORD.into());
    if required > memory.size().into() {
        return Err(Error::BufferSize { tensor, buffer, len, dtype, offset, required, actual: memory.size() });
    }
    // The buffer is as large, so that these fit.
    let end = offset + bytes as u64;
    Ok(Span { memory, start: offset, end, tensor, buffer: place })
}

/// The bytes of a window's binding: whole words.
pub(super) fn bound_bytes(elements: u64, size: usize) -> u64 {
    (elements * size as u64).next_multiple_of(WORD)
}

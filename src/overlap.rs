//! Buffers of a list's tensors that share memory, though one of them is written.

use crate::Error;

/// A tensor's buffers, in the order of the kernels' arguments.
pub(crate) const BUFFERS: [&str; 5] = ["params", "grads", "exp_avg", "exp_avg_sq", "copy"];
/// The only one that is not written.
pub(crate) const GRADS: usize = 1;

/// The bytes of one buffer, in a memory of addresses of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<M> {
    pub(crate) memory: M,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) tensor: usize,
    /// Position in [`BUFFERS`].
    pub(crate) buffer: usize,
}

impl Span<()> {
    /// The bytes of a buffer by address, if there can be such a buffer.
    pub(crate) fn at(tensor: usize, buffer: usize, address: u64, len: u64, size: usize) -> Result<Self, Error> {
        let name = BUFFERS[buffer];
        if address == 0 {
            return Err(Error::Null { tensor, buffer: name });
        }
        if !address.is_multiple_of(size as u64) {
            return Err(Error::Misaligned { tensor, buffer: name, address, align: size });
        }
        let end = len.checked_mul(size as u64).and_then(|bytes| address.checked_add(bytes));
        let end = end.ok_or(Error::Extent { tensor, buffer: name, address, len, size })?;
        Ok(Self { memory: (), start: address, end, tensor, buffer })
    }
}

impl<M: Copy + Ord> Span<M> {
    pub(crate) fn is_written(&self) -> bool {
        self.buffer != GRADS
    }

    /// The error for two that overlap.
    pub(crate) fn overlap(&self, other: &Self) -> Error {
        Error::Overlap {
            tensor: self.tensor,
            buffer: BUFFERS[self.buffer],
            other_tensor: other.tensor,
            other_buffer: BUFFERS[other.buffer],
            address: self.start.max(other.start),
        }
    }

    fn ends_after(&self, other: Option<Self>) -> bool {
        other.is_none_or(|other| (self.memory, self.end) > (other.memory, other.end))
    }
}

/// Fails if two of them overlap and one of the two is written. Sorts them by memory and address. O(n log n).
pub(crate) fn check<M: Copy + Ord>(spans: &mut [Span<M>]) -> Result<(), Error> {
    spans.sort_unstable_by_key(|span| (span.memory, span.start));
    // In the order of their starts, a buffer overlaps an earlier one exactly if it starts before the furthest end so far.
    let (mut furthest, mut furthest_written): (Option<Span<M>>, Option<Span<M>>) = (None, None);
    for &span in &*spans {
        let before = if span.is_written() { furthest } else { furthest_written };
        if let Some(other) = before.filter(|other| other.memory == span.memory && span.start < other.end) {
            return Err(span.overlap(&other));
        }
        if span.ends_after(furthest) {
            furthest = Some(span);
        }
        if span.is_written() && span.ends_after(furthest_written) {
            furthest_written = Some(span);
        }
    }
    Ok(())
}

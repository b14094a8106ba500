//! The check that no written buffer of a list shares memory with another buffer.

use super::error::{TensorError, TensorProblem};
use super::raw::RawBuffer;
use super::role::Role;

/// The bytes of one buffer, in a memory `M` that has addresses of its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span<M> {
    pub(crate) memory: M,
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) tensor: usize,
    pub(crate) role: Role,
}

impl Span<()> {
    /// The bytes of a buffer of `len` elements, if its address and extent are possible.
    pub(crate) fn of_buffer(tensor: usize, role: Role, buffer: RawBuffer, len: u64) -> Result<Self, TensorError> {
        let RawBuffer { address, dtype } = buffer;
        let (size, align) = (dtype.size() as u32, dtype.size());
        let failed = |problem| TensorError::of_buffer(tensor, role, problem);
        if address == 0 {
            return Err(failed(TensorProblem::Null));
        }
        if !address.is_multiple_of(align as u64) {
            return Err(failed(TensorProblem::Misaligned { address, align }));
        }
        let end = len.checked_mul(size.into()).and_then(|bytes| address.checked_add(bytes));
        let end = end.ok_or_else(|| failed(TensorProblem::Extent { address, len, size }))?;
        Ok(Self { memory: (), start: address, end, tensor, role })
    }
}

impl<M: Copy + Ord> Span<M> {
    /// The error for this buffer, which overlaps `other`.
    pub(crate) fn overlap(&self, other: &Self) -> TensorError {
        let problem = TensorProblem::Overlap {
            other_tensor: other.tensor,
            other_buffer: other.role,
            address: self.start.max(other.start),
        };
        TensorError::of_buffer(self.tensor, self.role, problem)
    }

    fn ends_after(&self, other: Option<Self>) -> bool {
        other.is_none_or(|other| (self.memory, self.end) > (other.memory, other.end))
    }
}

/// Returns an error if two buffers overlap and one of them is written. Sorts them by memory and
/// address. O(n log n).
pub(crate) fn check_overlap<M: Copy + Ord>(spans: &mut [Span<M>]) -> Result<(), TensorError> {
    spans.sort_unstable_by_key(|span| (span.memory, span.start));
    // In the order of starts, a buffer overlaps an earlier one exactly if it starts before the
    // furthest end so far.
    let (mut furthest, mut furthest_written): (Option<Span<M>>, Option<Span<M>>) = (None, None);
    for &span in &*spans {
        let before = if span.role.is_written() { furthest } else { furthest_written };
        if let Some(other) = before.filter(|other| other.memory == span.memory && span.start < other.end) {
            return Err(span.overlap(&other));
        }
        if span.ends_after(furthest) {
            furthest = Some(span);
        }
        if span.role.is_written() && span.ends_after(furthest_written) {
            furthest_written = Some(span);
        }
    }
    Ok(())
}

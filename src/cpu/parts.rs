//! The division of tensors into parts that threads can share.

use std::ops::Range;

use crate::tensor::RawTensor;

use super::threads::MAX_SEQUENTIAL;

/// The number of elements of a part: large enough that handing it to a thread costs little beside
/// it, small enough to balance the threads.
pub(super) const PART: u64 = MAX_SEQUENTIAL;

/// The alignment of the body of a part, in bytes: a cache line.
pub(super) const ALIGNMENT: usize = 64;

/// The parts of a list of tensors: each has [`PART`] elements of the tensors one after the other,
/// and the last has the rest.
#[derive(Debug, Default)]
pub(super) struct Parts {
    /// For each tensor, the number of elements up to its end.
    ends: Vec<u64>,
}

impl Parts {
    /// Divides tensors of these lengths. Allocates only if there are more than before.
    pub(super) fn set(&mut self, lens: impl Iterator<Item = u64>) {
        let mut end = 0_u64;
        self.ends.clear();
        self.ends.extend(lens.map(|len| {
            end = end.saturating_add(len);
            end
        }));
    }

    /// The number of parts.
    pub(super) fn count(&self) -> usize {
        count_of(self.ends.last().copied().unwrap_or(0))
    }

    /// The tensors of a part, each with the range of its elements that belong to the part, which
    /// is not empty.
    pub(super) fn tensors_of(&self, part: usize) -> impl Iterator<Item = (usize, Range<u64>)> + '_ {
        let Range { start, end } = range_of(part, self.ends.last().copied().unwrap_or(0));
        let first = self.ends.partition_point(|&tensor_end| tensor_end <= start);
        let begin_of = |index: usize| if index == 0 { 0 } else { self.ends[index - 1] };
        let ranges = (first..self.ends.len()).take_while(move |&index| begin_of(index) < end).map(move |index| {
            let begin = begin_of(index);
            (index, start.max(begin) - begin..end.min(self.ends[index]) - begin)
        });
        ranges.filter(|(_, range)| !range.is_empty())
    }
}

/// The number of parts of this many elements.
pub(super) fn count_of(elements: u64) -> usize {
    elements.div_ceil(PART) as usize
}

/// The elements of a part of `elements` elements.
pub(super) fn range_of(part: usize, elements: u64) -> Range<u64> {
    let start = part as u64 * PART;
    start..elements.min(start.saturating_add(PART))
}

/// A range of a tensor's elements, moved so that it begins and ends at a cache line of the first
/// moment, and that neighbouring ranges still meet.
///
/// Vectors that straddle cache lines are slower. The allocator places large buffers 16 bytes after
/// a cache line, all in the same way, so that one head aligns all f32 buffers, which are most of
/// the traffic.
pub(super) fn aligned(range: Range<u64>, tensor: &RawTensor) -> Range<u64> {
    let (align, size) = (ALIGNMENT as u64, tensor.exp_avg.dtype.size() as u64);
    let head = tensor.exp_avg.address.wrapping_neg() % align / size;
    let bound = |element: u64| {
        if element == tensor.len {
            return element;
        }
        // A multiple of 64 elements, so that ranges of 16-bit buffers are whole lines as well where
        // these buffers begin as those of f32 do.
        let body = element.saturating_sub(head) / 64 * 64;
        if body == 0 { 0 } else { head + body }
    };
    bound(range.start)..bound(range.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, RawBuffer};

    /// Lists whose tensors end before, at and behind the ends of parts.
    const LISTS: [&[u64]; 8] = [
        &[],
        &[0],
        &[1],
        &[PART],
        &[PART + 1],
        &[0, 3 * PART + 7, 0, 1, PART - 8, 0],
        &[PART - 1, 1, PART, 5, 2 * PART],
        &[1000; 100],
    ];

    /// Whether ranges, in this order, have each element of the tensors once.
    fn assert_tiled(lens: &[u64], ranges: impl Iterator<Item = (usize, Range<u64>)>) {
        let mut next = vec![0; lens.len()];
        for (tensor, range) in ranges {
            assert!(range.start == next[tensor] && range.end >= range.start, "{tensor}: {range:?} of {lens:?}");
            next[tensor] = range.end;
        }
        assert_eq!(next, lens);
    }

    #[test]
    fn parts_have_each_element_once() {
        for lens in LISTS {
            let mut parts = Parts::default();
            parts.set(lens.iter().copied());
            let elements: u64 = lens.iter().sum();
            assert_eq!(parts.count() as u64, elements.div_ceil(PART));
            for part in 0..parts.count() {
                let of_part: u64 = parts.tensors_of(part).map(|(_, range)| range.end - range.start).sum();
                assert_eq!(of_part, PART.min(elements - part as u64 * PART));
            }
            assert_tiled(lens, (0..parts.count()).flat_map(|part| parts.tensors_of(part)));
        }
    }

    #[test]
    fn aligned_ranges_meet_at_cache_lines() {
        for (dtype, address) in [(Dtype::F32, 4096), (Dtype::F32, 4112), (Dtype::F32, 4100), (Dtype::Bf16, 4098)] {
            let buffer = RawBuffer::new(address, dtype);
            for lens in LISTS {
                let mut parts = Parts::default();
                parts.set(lens.iter().copied());
                let of = |(index, range): (usize, Range<u64>)| {
                    let tensor = RawTensor::new(lens[index], buffer, buffer, buffer, buffer);
                    let range = aligned(range, &tensor);
                    let is_aligned = (address + range.end * dtype.size() as u64).is_multiple_of(ALIGNMENT as u64);
                    assert!(is_aligned || range.end == lens[index] || range.is_empty(), "{range:?}");
                    (index, range)
                };
                assert_tiled(lens, (0..parts.count()).flat_map(|part| parts.tensors_of(part)).map(of));
            }
        }
    }
}

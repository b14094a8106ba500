//! The descriptors of tensors as the list kernels read them, and which of them have changed since
//! the device got them.

use std::collections::BTreeMap;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::tensor::{ListError, RawTensor, Role, Variant};

use super::launch::{CHUNK, MAX_BLOCKS, SPAN};

/// The descriptor of a tensor, laid out as in `kernels/step.cuh`.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct Record {
    /// In the order of [`Role::ALL`].
    addresses: [u64; Role::COUNT],
    len: u64,
    first_chunk: u32,
    coeffs_index: u32,
    sets_master: u64,
}

const RECORD_BYTES: usize = size_of::<Record>();

/// The descriptors of the tensors of one variant, which one launch serves: a [`Record`] for each
/// tensor, and then, as `u32`, the tensor of every [`SPAN`]-th chunk. That is 64 bytes for a tensor
/// and 4 bytes for 4,096 elements.
///
/// A block finds its tensor with one load. All loads about the tensor depend on that load only. A
/// [`SPAN`] of 8 would make the second part eight times smaller, but would put one more memory
/// latency before each block's data.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) variant: Variant,
    /// The tensors' positions in the list. Empty tensors come last, so that a span has chunks of at
    /// most [`SPAN`] tensors.
    pub(super) members: Vec<usize>,
    /// The first chunk of each tensor.
    first_chunks: Vec<u32>,
    pub(super) chunks: u32,
    /// The offset of the table, in bytes from the first table.
    pub(super) start: usize,
    /// The offset of its records in a staging slot, in bytes.
    staged: usize,
    /// The records that have changed since the device got them.
    changed: Range<usize>,
}

/// The tables of a list.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) tables: Vec<Table>,
    /// The table of each tensor, and the tensor's position in it.
    places: Vec<(u32, u32)>,
    /// For each tensor, whether the next step sets its masters from its parameters.
    sets_master: Vec<bool>,
    /// The size of all tables, in bytes.
    pub(super) bytes: usize,
    /// The size of a staging slot for all records, in bytes.
    pub(super) staged_bytes: usize,
}

impl Tables {
    /// The tables of these tensors; `variants` has the variant of each.
    pub(super) fn new(tensors: &[RawTensor], variants: &[Variant]) -> Result<Self, ListError> {
        let limit = u64::from(u32::MAX);
        if tensors.len() as u64 > limit {
            return Err(ListError::TooMany { list: "tensors", limit, actual: tensors.len() as u64 });
        }
        let mut members: BTreeMap<Variant, Vec<usize>> = BTreeMap::new();
        for (index, &variant) in variants.iter().enumerate() {
            members.entry(variant).or_default().push(index);
        }
        let (places, sets_master) = (vec![(0, 0); tensors.len()], vec![false; tensors.len()]);
        let mut made = Self { tables: vec![], places, sets_master, bytes: 0, staged_bytes: 0 };
        for (number, (variant, mut members)) in members.into_iter().enumerate() {
            members.sort_by_key(|&member| tensors[member].len == 0);
            for (position, &member) in members.iter().enumerate() {
                made.places[member] = (number as u32, position as u32);
            }
            let chunks = chunks_of(members.iter().map(|&member| tensors[member].len))?;
            let first_chunks = members.iter().scan(0, |next, &member| {
                let first = *next;
                *next += tensors[member].len.div_ceil(CHUNK) as u32;
                Some(first)
            });
            let first_chunks = first_chunks.collect();
            let (start, staged) = (made.bytes, made.staged_bytes);
            let table = Table { variant, members, first_chunks, chunks, start, staged, changed: 0..0 };
            made.bytes += table.bytes().next_multiple_of(RECORD_BYTES);
            made.staged_bytes += RECORD_BYTES * table.members.len();
            made.tables.push(table);
        }
        Ok(made)
    }

    /// The content of all tables, [`bytes`](Self::bytes) long.
    pub(super) fn build(&self, tensors: &[RawTensor]) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes];
        for table in &self.tables {
            let (records, spans) = bytes[table.start..][..table.bytes()].split_at_mut(table.record_bytes());
            table.write(0..table.members.len(), tensors, &self.sets_master, records);
            table.write_spans(spans);
        }
        bytes
    }

    /// Whether any record has changed since the device got it.
    pub(super) fn have_changes(&self) -> bool {
        self.tables.iter().any(|table| !table.changed.is_empty())
    }

    pub(super) fn mark_sent(&mut self) {
        self.tables.iter_mut().for_each(|table| table.changed = 0..0);
    }

    /// Notes that the record of a tensor has changed.
    pub(super) fn mark_changed(&mut self, index: usize) {
        let (table, position) = self.places[index];
        let (changed, position) = (&mut self.tables[table as usize].changed, position as usize);
        *changed = if changed.start == changed.end {
            position..position + 1
        } else {
            changed.start.min(position)..changed.end.max(position + 1)
        };
    }

    /// Sets whether the next step sets a tensor's masters from its parameters.
    pub(super) fn set_sets_master(&mut self, index: usize, sets_master: bool) {
        if self.sets_master[index] != sets_master {
            self.sets_master[index] = sets_master;
            self.mark_changed(index);
        }
    }

    /// Writes the changed records into a staging slot and calls `send` for each contiguous part,
    /// with its offset in bytes from the first table.
    pub(super) fn stage<E>(
        &self,
        tensors: &[RawTensor],
        slot: &mut [u8],
        mut send: impl FnMut(&[u8], usize) -> Result<(), E>,
    ) -> Result<(), E> {
        for table in self.tables.iter().filter(|table| !table.changed.is_empty()) {
            let Range { start, end } = table.changed;
            let part = &mut slot[table.staged + RECORD_BYTES * start..table.staged + RECORD_BYTES * end];
            table.write(start..end, tensors, &self.sets_master, part);
            send(part, table.start + RECORD_BYTES * start)?;
        }
        Ok(())
    }
}

impl Table {
    /// Writes the records of a range of the members.
    fn write(&self, entries: Range<usize>, tensors: &[RawTensor], sets_master: &[bool], bytes: &mut [u8]) {
        let first_chunks = &self.first_chunks[entries.clone()];
        for ((&member, &first_chunk), bytes) in
            self.members[entries].iter().zip(first_chunks).zip(bytes.chunks_exact_mut(RECORD_BYTES))
        {
            let tensor = &tensors[member];
            let record = Record {
                addresses: tensor.addresses(),
                len: tensor.len,
                first_chunk,
                // Fits, since the step checks that it is below the number of coefficients.
                coeffs_index: tensor.coeffs_index as u32,
                sets_master: sets_master[member].into(),
            };
            bytes.copy_from_slice(bytemuck::bytes_of(&record));
        }
    }

    /// Writes the tensor of every span's first chunk.
    fn write_spans(&self, bytes: &mut [u8]) {
        let ends = self.first_chunks.iter().skip(1).copied().chain([self.chunks]);
        let mut spans = bytes.as_chunks_mut().0.iter_mut();
        for (position, (&first, end)) in self.first_chunks.iter().zip(ends).enumerate() {
            let count = end.div_ceil(SPAN) - first.div_ceil(SPAN);
            spans.by_ref().take(count as usize).for_each(|tensor| *tensor = (position as u32).to_ne_bytes());
        }
    }

    fn record_bytes(&self) -> usize {
        RECORD_BYTES * self.members.len()
    }

    fn bytes(&self) -> usize {
        self.record_bytes() + 4 * self.chunks.div_ceil(SPAN) as usize
    }
}

fn chunks_of(mut lens: impl Iterator<Item = u64>) -> Result<u32, ListError> {
    let chunks = lens.try_fold(0_u64, |chunks, len| chunks.checked_add(len.div_ceil(CHUNK)));
    match chunks {
        Some(chunks) if chunks <= MAX_BLOCKS => Ok(chunks as u32),
        _ => Err(ListError::TooMany {
            list: "the chunks of 4,096 elements of a list's tensors of one variant",
            limit: MAX_BLOCKS,
            actual: chunks.unwrap_or(u64::MAX),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{Dtype, RawBuffer};

    fn tensor(at: u64, len: u64, coeffs_index: usize, has_master: bool) -> RawTensor {
        let f32_at = RawBuffer::f32;
        let param = RawBuffer::new(at, if has_master { Dtype::Bf16 } else { Dtype::F32 });
        let tensor = RawTensor::new(len, param, f32_at(at + 1), f32_at(at + 2), f32_at(at + 3));
        let tensor = tensor.with_coeffs_index(coeffs_index);
        if has_master { tensor.with_master(f32_at(at + 4)) } else { tensor }
    }

    fn tables(tensors: &[RawTensor]) -> Tables {
        let variants: Vec<_> = tensors.iter().map(|tensor| tensor.variant(0).unwrap()).collect();
        Tables::new(tensors, &variants).unwrap()
    }

    fn words<const N: usize>(bytes: &[u8]) -> Vec<u64> {
        let wide = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, &byte| (number << 8) | u64::from(byte));
        bytes.chunks(N).map(wide).collect()
    }

    #[test]
    fn the_layout_is_that_of_the_kernels() {
        let tensors = [
            tensor(100, 4097, 7, false),
            tensor(200, 10, 8, true),
            tensor(300, 0, 9, false),
            tensor(400, 4096, 1, false),
        ];
        let mut made = tables(&tensors);
        made.set_sets_master(1, true);
        let bytes = made.build(&tensors);
        assert_eq!((made.tables.len(), bytes.len()), (2, made.bytes));
        let [first, second] = &made.tables[..] else { panic!("two tables") };
        assert_eq!((first.members.as_slice(), first.chunks), ([0, 3, 2].as_slice(), 3));
        // In words of eight bytes, the first chunk is the low half and the index of the
        // coefficients the high half.
        let records = [
            [100, 101, 102, 103, 0, 4097, 7 << 32, 0],
            [400, 401, 402, 403, 0, 4096, (1 << 32) + 2, 0],
            [300, 301, 302, 303, 0, 0, (9 << 32) + 3, 0],
        ];
        assert_eq!(words::<8>(&bytes[..3 * 64]), records.concat());
        assert_eq!(words::<4>(&bytes[3 * 64..][..12]), [0, 0, 1]);
        assert_eq!((second.start, second.start % 64), (4 * 64, 0));
        assert_eq!(words::<8>(&bytes[second.start..][..64]), [200, 201, 202, 203, 204, 10, 8 << 32, 1]);
    }

    #[test]
    fn each_span_has_the_tensor_of_its_first_chunk() {
        let chunks = [7, 2, 32, 1, 1, 1, 1, 1, 1, 1, 1, 3];
        let lens = chunks.map(|chunks| (chunks - 1) * CHUNK + 1);
        let tensors: Vec<_> = lens.into_iter().map(|len| tensor(100, len, 0, false)).collect();
        let made = tables(&tensors);
        let bytes = made.build(&tensors);
        let of_chunks: Vec<u64> =
            (0..).zip(chunks).flat_map(|(tensor, chunks)| vec![tensor; chunks as usize]).collect();
        let of_spans: Vec<u64> = of_chunks.into_iter().step_by(SPAN as usize).collect();
        assert_eq!(words::<4>(&bytes[64 * tensors.len()..][..4 * of_spans.len()]), of_spans);
    }

    #[test]
    fn changes_are_the_records_between_the_first_and_the_last() {
        let mut tensors = [
            tensor(100, 1, 0, false),
            tensor(200, 2, 0, true),
            tensor(300, 3, 0, false),
            tensor(400, 4, 0, false),
            tensor(500, 5, 0, false),
        ];
        let mut made = tables(&tensors);
        assert!(!made.have_changes());
        tensors[3] = RawTensor { exp_avg: RawBuffer::f32(999), coeffs_index: 5, ..tensors[3] };
        made.mark_changed(3);
        made.mark_changed(2);
        made.set_sets_master(1, false);
        let mut slot = vec![0; made.staged_bytes];
        let mut sent = vec![];
        let send = |bytes: &[u8], to: usize| {
            sent.push((to, words::<8>(bytes)));
            Ok::<(), ListError>(())
        };
        made.stage(&tensors, &mut slot, send).unwrap();
        let records = [[300, 301, 302, 303, 0, 3, 1, 0], [400, 401, 999, 403, 0, 4, (5 << 32) + 2, 0]];
        assert_eq!(sent, [(64, records.concat())]);
        made.mark_sent();
        assert!(!made.have_changes());
        made.set_sets_master(1, true);
        assert!(made.have_changes());
    }

    #[test]
    fn too_many_chunks_are_refused() {
        let most = MAX_BLOCKS * CHUNK;
        assert_eq!(chunks_of([most].into_iter()).unwrap(), i32::MAX as u32);
        for lens in [[most, 1], [u64::MAX, u64::MAX]] {
            assert!(matches!(chunks_of(lens.into_iter()), Err(ListError::TooMany { .. })));
        }
    }
}

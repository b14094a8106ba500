//! The descriptors of tensors as the list kernels read them, and which of them the device does not have yet.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::combination::Combination;
use crate::{Error, RawTensor};

use super::launch::{CHUNK, MAX_BLOCKS, SPAN};

/// What may change from step to step: five addresses and the coefficient set.
const FIELDS: usize = 6;
const SET: usize = 5;

/// The descriptors of the tensors of one type combination, which one launch serves.
///
/// For n tensors they are these arrays, one after the other, as `kernels/step.cuh` says:
/// `u64` param\[n\], grad\[n\], exp_avg\[n\], exp_avg_sq\[n\], copy\[n\], len\[n\]; `u32` first_chunk\[n\], set\[n\],
/// span_tensor\[spans\]. That is 56 bytes a tensor and 4 for 32,768 elements.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) combination: Combination,
    /// The tensors' positions in the list, the empty ones last: so each span has the chunks of [`SPAN`] tensors at most.
    pub(super) members: Vec<usize>,
    pub(super) chunks: u32,
    /// Where the table begins, in bytes after the first one.
    pub(super) start: usize,
    /// Where its part that may change begins in a staging slot.
    staged: usize,
    /// The entries of each field that the device does not have yet.
    changed: [Range<usize>; FIELDS],
}

/// The tables of a list.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) tables: Vec<Table>,
    /// Each tensor's table and its position there.
    places: Vec<(u32, u32)>,
    /// The bytes of all tables.
    pub(super) bytes: usize,
    /// The bytes of a staging slot for them.
    pub(super) staged_bytes: usize,
}

impl Tables {
    /// The tables of these tensors, of which the device has none yet.
    pub(super) fn new(tensors: &[RawTensor]) -> Result<Self, Error> {
        let limit = u64::from(u32::MAX);
        if tensors.len() as u64 > limit {
            return Err(Error::TooMany { list: "tensors", limit, actual: tensors.len() as u64 });
        }
        let mut members: BTreeMap<Combination, Vec<usize>> = BTreeMap::new();
        for (index, tensor) in tensors.iter().enumerate() {
            members.entry(tensor.combination(index)?).or_default().push(index);
        }
        let mut made = Self { tables: vec![], places: vec![(0, 0); tensors.len()], bytes: 0, staged_bytes: 0 };
        for (number, (combination, mut members)) in members.into_iter().enumerate() {
            members.sort_by_key(|&member| tensors[member].len == 0);
            for (position, &member) in members.iter().enumerate() {
                made.places[member] = (number as u32, position as u32);
            }
            let chunks = chunks_of(members.iter().map(|&member| tensors[member].len))?;
            let (start, staged) = (made.bytes, made.staged_bytes);
            let table = Table { combination, members, chunks, start, staged, changed: Default::default() };
            made.bytes += table.bytes().next_multiple_of(16);
            made.staged_bytes += table.head_bytes().next_multiple_of(16);
            made.tables.push(table);
        }
        Ok(made)
    }

    /// All tables as the device has them, [`bytes`](Self::bytes) in all.
    pub(super) fn build(&self, tensors: &[RawTensor]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes);
        for table in &self.tables {
            bytes.resize(table.start, 0);
            bytes.extend(table.build(tensors));
        }
        bytes.resize(self.bytes, 0);
        bytes
    }

    /// Whether the device lacks anything.
    pub(super) fn have_changes(&self) -> bool {
        self.tables.iter().any(|table| table.changed.iter().any(|changed| !changed.is_empty()))
    }

    pub(super) fn mark_sent(&mut self) {
        self.tables.iter_mut().for_each(|table| table.changed = Default::default());
    }

    /// Notes what differs between a tensor's old and new descriptor.
    pub(super) fn mark_changes(&mut self, index: usize, old: &RawTensor, new: &RawTensor) {
        let (table, position) = self.places[index];
        let position = position as usize;
        let changed = &mut self.tables[table as usize].changed;
        for ((old, new), changed) in fields(old).into_iter().zip(fields(new)).zip(changed) {
            if old == new {
                continue;
            }
            *changed = if changed.start == changed.end {
                position..position + 1
            } else {
                changed.start.min(position)..changed.end.max(position + 1)
            };
        }
    }
}

impl Table {
    /// The whole table.
    fn build(&self, tensors: &[RawTensor]) -> Vec<u8> {
        let mut bytes = vec![0; self.bytes()];
        let n = self.members.len();
        let (head, span_tensor) = bytes.split_at_mut(self.head_bytes());
        for field in 0..FIELDS {
            self.write(field, 0..n, tensors, &mut head[self.bytes_of(field, 0..n)]);
        }
        let (lens, first_chunks) = (self.lens_at(), self.first_chunks_at());
        let mut chunks = 0_u32;
        let mut spans = span_tensor.as_chunks_mut().0.iter_mut();
        for (position, &member) in self.members.iter().enumerate() {
            let len = tensors[member].len;
            head[lens + 8 * position..][..8].copy_from_slice(&len.to_ne_bytes());
            head[first_chunks + 4 * position..][..4].copy_from_slice(&chunks.to_ne_bytes());
            let before = chunks.div_ceil(SPAN);
            chunks += len.div_ceil(CHUNK) as u32;
            let first_in = chunks.div_ceil(SPAN) - before;
            spans.by_ref().take(first_in as usize).for_each(|tensor| *tensor = (position as u32).to_ne_bytes());
        }
        bytes
    }

    /// Writes what the device lacks into a staging slot, and hands on each part with the place that it belongs to, in bytes after the
    /// start of the first table.
    pub(super) fn stage<E>(
        &self,
        tensors: &[RawTensor],
        slot: &mut [u8],
        mut send: impl FnMut(&[u8], usize) -> Result<(), E>,
    ) -> Result<(), E> {
        for (field, entries) in self.changed.iter().enumerate().filter(|(_, entries)| !entries.is_empty()) {
            let bytes = self.bytes_of(field, entries.clone());
            let staged = self.staged + bytes.start..self.staged + bytes.end;
            let part = &mut slot[staged];
            self.write(field, entries.clone(), tensors, part);
            send(part, self.start + bytes.start)?;
        }
        Ok(())
    }

    fn write(&self, field: usize, entries: Range<usize>, tensors: &[RawTensor], bytes: &mut [u8]) {
        let size = entry_bytes(field);
        for (&member, bytes) in self.members[entries].iter().zip(bytes.chunks_exact_mut(size)) {
            // A set fits in 32 bits, of which the first four bytes are on the little-endian hosts that CUDA has.
            bytes.copy_from_slice(&fields(&tensors[member])[field].to_le_bytes()[..size]);
        }
    }

    fn bytes(&self) -> usize {
        self.head_bytes() + 4 * self.chunks.div_ceil(SPAN) as usize
    }

    /// The bytes before the spans, which hold all that may change.
    fn head_bytes(&self) -> usize {
        (6 * 8 + 2 * 4) * self.members.len()
    }

    fn lens_at(&self) -> usize {
        5 * 8 * self.members.len()
    }

    fn first_chunks_at(&self) -> usize {
        6 * 8 * self.members.len()
    }

    /// Where entries of a field are in the table.
    fn bytes_of(&self, field: usize, entries: Range<usize>) -> Range<usize> {
        let n = self.members.len();
        let start = if field == SET { self.first_chunks_at() + 4 * n } else { 8 * n * field };
        let size = entry_bytes(field);
        start + size * entries.start..start + size * entries.end
    }
}

fn entry_bytes(field: usize) -> usize {
    if field == SET { 4 } else { 8 }
}

fn fields(tensor: &RawTensor) -> [u64; FIELDS] {
    let [params, grads, exp_avg, exp_avg_sq, copy] = tensor.addresses();
    [params, grads, exp_avg, exp_avg_sq, copy, tensor.set as u64]
}

fn chunks_of(mut lens: impl Iterator<Item = u64>) -> Result<u32, Error> {
    let chunks = lens.try_fold(0_u64, |chunks, len| chunks.checked_add(len.div_ceil(CHUNK)));
    match chunks {
        Some(chunks) if chunks <= MAX_BLOCKS => Ok(chunks as u32),
        _ => Err(Error::TooMany {
            list: "the chunks of 4,096 elements of a list's tensors of one type combination",
            limit: MAX_BLOCKS,
            actual: chunks.unwrap_or(u64::MAX),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::cuda::RawBuffer;

    fn tensor(at: u64, len: u64, set: usize, copy: bool) -> RawTensor {
        let raw = |address, dtype| RawBuffer { address, dtype };
        RawTensor {
            params: raw(at, Dtype::F32),
            grads: raw(at + 1, Dtype::F32),
            exp_avg: at + 2,
            exp_avg_sq: at + 3,
            copy: copy.then_some(raw(at + 4, Dtype::Bf16)),
            len,
            set,
        }
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
        let made = Tables::new(&tensors).unwrap();
        assert_eq!(made.tables.len(), 2);
        let table = made.tables[0].build(&tensors);
        assert_eq!((made.tables[0].members.as_slice(), made.tables[0].chunks), ([0, 3, 2].as_slice(), 3));
        let (addresses, rest) = table.split_at(6 * 8 * 3);
        let expected =
            [100, 400, 300, 101, 401, 301, 102, 402, 302, 103, 403, 303, 0, 0, 0, 4097, 4096, 0].map(|x: u64| x);
        assert_eq!(words::<8>(addresses), expected);
        assert_eq!(words::<4>(rest), [0, 2, 3, 7, 1, 9, 0]);
        assert_eq!(words::<8>(&made.tables[1].build(&tensors)[4 * 8..5 * 8]), [204]);
    }

    #[test]
    fn each_span_has_the_tensor_of_its_first_chunk() {
        // In chunks: the first of tensor 1 is the last of a span, tensor 2 has four whole spans, the next eight have one chunk each.
        let chunks = [7, 2, 32, 1, 1, 1, 1, 1, 1, 1, 1, 3];
        let lens = chunks.map(|chunks| (chunks - 1) * CHUNK + 1);
        let tensors: Vec<_> = lens.into_iter().map(|len| tensor(100, len, 0, false)).collect();
        let made = Tables::new(&tensors).unwrap();
        let table = made.tables[0].build(&tensors);
        assert_eq!(table.len(), 56 * tensors.len() + 4 * 7);
        assert_eq!(words::<4>(&table[56 * tensors.len()..]), [0, 1, 2, 2, 2, 2, 10]);
    }

    #[test]
    fn changes_are_what_differs() {
        let mut tensors = [tensor(100, 1, 0, false), tensor(200, 2, 0, true), tensor(300, 3, 0, false)];
        let mut made = Tables::new(&tensors).unwrap();
        assert!(!made.have_changes());
        let new = RawTensor { exp_avg: 999, set: 5, ..tensors[2] };
        made.mark_changes(2, &tensors[2], &new);
        tensors[2] = new;
        let mut slot = vec![0; made.staged_bytes];
        let mut sent = vec![];
        let send = |bytes: &[u8], to: usize| {
            sent.push((to, bytes.to_vec()));
            Ok::<(), Error>(())
        };
        made.tables[0].stage(&tensors, &mut slot, send).unwrap();
        assert_eq!(sent, [(2 * 16 + 8, 999_u64.to_le_bytes().to_vec()), (6 * 16 + 8 + 4, vec![5, 0, 0, 0])]);
        made.mark_sent();
        assert!(!made.have_changes());
    }

    #[test]
    fn too_many_chunks_are_refused() {
        let most = MAX_BLOCKS * CHUNK;
        assert_eq!(chunks_of([most].into_iter()).unwrap(), i32::MAX as u32);
        for lens in [[most, 1], [u64::MAX, u64::MAX]] {
            assert!(matches!(chunks_of(lens.into_iter()), Err(Error::TooMany { .. })));
        }
    }
}

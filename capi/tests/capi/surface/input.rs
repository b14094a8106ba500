//! The bytes that decide which function is called, and with which numbers.

use super::{MOST, MOST_BYTES};

/// The bytes that decide. After the last one, zeros.
pub(super) struct Input<'a>(pub(super) &'a [u8]);

impl Input<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let taken = N.min(self.0.len());
        bytes[..taken].copy_from_slice(&self.0[..taken]);
        self.0 = &self.0[taken..];
        bytes
    }

    pub(super) fn byte(&mut self) -> usize {
        self.bytes::<1>()[0].into()
    }

    pub(super) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    pub(super) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }

    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.byte() % n == n - 1
    }

    /// A place among so many bytes: mostly aligned, at times not, seldom none.
    pub(super) fn place(&mut self, len: usize) -> Option<usize> {
        let at = self.u32() as usize % len;
        match self.byte() % 32 {
            30 => Some(at),
            31 => None,
            _ => Some(at & !15),
        }
    }

    /// Mostly one of these numbers, at times any.
    pub(super) fn number(&mut self, usual: &[u32]) -> u32 {
        if self.one_in(16) { self.u32() } else { usual[self.byte() % usual.len()] }
    }

    pub(super) fn real(&mut self, usual: &[f64]) -> f64 {
        const ODD: [f64; 8] = [-1.0, -0.0, f64::NAN, f64::INFINITY, f64::MAX, 1e-300, 1.0, f64::MIN_POSITIVE];
        match self.byte() % 16 {
            14 => ODD[self.byte() % ODD.len()],
            15 => f64::from_bits(self.u64()),
            _ => usual[self.byte() % usual.len()],
        }
    }

    pub(super) fn step(&mut self) -> u64 {
        match self.byte() % 4 {
            0 => self.u64(),
            1 => [0, 1, u64::MAX][self.byte() % 3],
            _ => 1 + self.byte() as u64,
        }
    }

    /// The size of a struct: mostly the right one.
    pub(super) fn size(&mut self, known: usize) -> usize {
        match self.byte() % 16 {
            12 => known.wrapping_add(8 * (self.byte() % 32)),
            13 => self.u32() as usize % 6000,
            14 => [0, 1, 8, known.wrapping_sub(8), known.wrapping_add(1), MOST_BYTES, MOST_BYTES + 8, usize::MAX]
                [self.byte() % 8],
            15 => self.u64() as usize,
            _ => known,
        }
    }

    /// The size of a struct of that type: mostly the right one.
    pub(super) fn struct_size<T>(&mut self) -> usize {
        self.size(size_of::<T>())
    }

    /// The position of a group or tensor: mostly the first.
    pub(super) fn position(&mut self) -> usize {
        self.number(&[0, 0, 0, 0, 1, 2, 3]) as usize
    }

    /// How many sets or groups a control has: mostly one.
    pub(super) fn control_count(&mut self) -> usize {
        if self.one_in(8) { self.count() } else { 1 + self.byte() % 8 / 7 }
    }

    /// How many structs an array has: few, or more than any memory.
    pub(super) fn count(&mut self) -> usize {
        match self.byte() % 16 {
            14 => [usize::MAX, 1 << 60, 1 << 56, 1 << 50][self.byte() % 4],
            byte => byte % (MOST + 1),
        }
    }
}

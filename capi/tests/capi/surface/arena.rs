//! The memory that the pointers in calls point into.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr;

use super::input::Input;
use super::{MOST, MOST_BYTES};

/// At least this many bytes follow every pointer into the arena.
pub(super) const SLACK: usize = (MOST + 1) * MOST_BYTES;
const ARENA: usize = 16 * 1024 + SLACK;

/// Memory that any call may read and write, so it is accessed through raw pointers only.
pub(super) struct Arena {
    start: *mut u8,
    /// What the arena must hold if the call fails.
    before: Vec<u8>,
}

impl Arena {
    const LAYOUT: Layout = Layout::new::<[u64; ARENA / 8]>();

    pub(super) fn new() -> Self {
        // SAFETY: the layout's size is not 0.
        let start = unsafe { alloc_zeroed(Self::LAYOUT) };
        assert!(!start.is_null());
        Self { start, before: vec![0; ARENA] }
    }

    /// Whether nothing but [`put`](Self::put) has written since [`remember`](Self::remember).
    pub(super) fn is_untouched(&self) -> bool {
        // SAFETY: nothing writes the arena while the slice lives.
        unsafe { std::slice::from_raw_parts(self.start, ARENA) == self.before }
    }

    pub(super) fn clear(&mut self) {
        // SAFETY: the arena has `ARENA` bytes.
        unsafe { self.start.write_bytes(0, ARENA) };
    }

    /// Must be called before a call's structs are written.
    pub(super) fn remember(&mut self) {
        // SAFETY: both have `ARENA` bytes.
        unsafe { self.before.as_mut_ptr().copy_from_nonoverlapping(self.start, ARENA) };
    }

    pub(super) fn place<T>(&self, input: &mut Input<'_>) -> *mut T {
        input.place(ARENA - SLACK).map_or(ptr::null_mut(), |at| self.start.wrapping_add(at).cast())
    }

    /// Writes structs for a call to read, `stride` bytes apart. A call that fails must leave them
    /// as they are.
    pub(super) fn put<T: Copy>(&mut self, to: *mut T, values: &[T], stride: usize) {
        for (index, value) in values.iter().enumerate().filter(|_| !to.is_null()) {
            let stride = if stride <= MOST_BYTES { stride } else { 0 };
            let at = to.addr() - self.start.addr() + index * stride;
            // SAFETY: `SLACK` bytes follow `to`, and `before` is as long as the arena.
            unsafe {
                to.byte_add(index * stride).write_unaligned(*value);
                let before = self.before.as_mut_ptr().add(at);
                before.copy_from_nonoverlapping(self.start.add(at), size_of::<T>());
            }
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.start, Self::LAYOUT) };
    }
}

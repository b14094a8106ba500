//! The memory that the pointers of calls point into.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr;

use super::input::Input;
use super::{MOST, MOST_BYTES};

/// Behind any pointer into the arena there are as many bytes.
pub(super) const SLACK: usize = (MOST + 1) * MOST_BYTES;
const ARENA: usize = 16 * 1024 + SLACK;

/// Memory that every call may read and write anywhere. It is accessed only through raw pointers.
pub(super) struct Arena {
    start: *mut u8,
    /// What the arena must contain if the call fails.
    before: Vec<u8>,
}

impl Arena {
    const LAYOUT: Layout = Layout::new::<[u64; ARENA / 8]>();

    pub(super) fn new() -> Self {
        // SAFETY: the layout has a size.
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
        // SAFETY: the arena has that many bytes.
        unsafe { self.start.write_bytes(0, ARENA) };
    }

    /// To be called before a call's structs are put.
    pub(super) fn remember(&mut self) {
        // SAFETY: both have that many bytes.
        unsafe { self.before.as_mut_ptr().copy_from_nonoverlapping(self.start, ARENA) };
    }

    pub(super) fn place<T>(&self, input: &mut Input<'_>) -> *mut T {
        input.place(ARENA - SLACK).map_or(ptr::null_mut(), |at| self.start.wrapping_add(at).cast())
    }

    /// Writes structs one after the other, each the first one's size apart, where they are to be
    /// read. A call that fails leaves them there.
    pub(super) fn put<T: Copy>(&mut self, to: *mut T, values: &[T], stride: usize) {
        for (index, value) in values.iter().enumerate().filter(|_| !to.is_null()) {
            let stride = if stride <= MOST_BYTES { stride } else { 0 };
            let at = to.addr() - self.start.addr() + index * stride;
            // SAFETY: a place has as much room behind it, and `before` is as long as the arena.
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
        // SAFETY: the memory was allocated with this layout.
        unsafe { dealloc(self.start, Self::LAYOUT) };
    }
}

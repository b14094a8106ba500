//! An allocator that counts allocations and passes them on to the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the allocations of the threads under test, not those of the test harness's own threads. A
/// test makes it the global allocator.
pub struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// Puts this thread under test.
pub fn count_this_thread() {
    COUNTED.set(true);
}

/// The number of allocations that this thread and all threads under test make while `work` runs.
pub fn allocations_of(work: impl FnOnce()) -> usize {
    let before = COUNTED.replace(true);
    ALLOCATIONS.store(0, Ordering::Relaxed);
    work();
    COUNTED.set(before);
    ALLOCATIONS.load(Ordering::Relaxed)
}

fn count() {
    // A thread that is ending may have dropped its thread-locals; it is not under test.
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: this function's requirements are those of `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: this function's requirements are those of `System`'s.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: this function's requirements are those of `System`'s.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: this function's requirements are those of `System`'s.
        unsafe { System.dealloc(block, layout) }
    }
}

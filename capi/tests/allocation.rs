//! A step of one tensor, and the coefficients for it, allocate nothing: counted by an allocator
//! that stands in for the system's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::mem::MaybeUninit;

use dualadam_capi::*;

/// Counts what each thread allocates; the test harness has threads of its own.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no thread-locals any more, and is not under test.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call is passed on to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's obligations are the system allocator's.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_step_allocates_nothing() {
    let (mut p, g, mut m, mut v) = (vec![1.0_f32; 1000], vec![0.5_f32; 1000], vec![0.0; 1000], vec![0.0; 1000]);
    let (mut config, mut tensor) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: the structs have these sizes, and are filled.
    let (config, mut tensor) = unsafe {
        assert_eq!(dualadam_config_init(config.as_mut_ptr(), size_of::<dualadam_config>()), DUALADAM_STATUS_OK);
        assert_eq!(dualadam_tensor_init(tensor.as_mut_ptr(), size_of::<dualadam_tensor>()), DUALADAM_STATUS_OK);
        (config.assume_init(), tensor.assume_init())
    };
    (tensor.param, tensor.grad) = (p.as_mut_ptr().cast(), g.as_ptr().cast());
    (tensor.exp_avg, tensor.exp_avg_sq) = (m.as_mut_ptr().cast(), v.as_mut_ptr().cast());
    tensor.len = 1000;
    let mut coeffs = MaybeUninit::uninit();
    let mut step = |step| {
        // SAFETY: the structs and the buffers are there.
        unsafe {
            let size = size_of::<dualadam_coeffs>();
            assert_eq!(dualadam_config_coeffs(&config, step, 1.0, coeffs.as_mut_ptr(), size), DUALADAM_STATUS_OK);
            assert_eq!(dualadam_cpu_step(&tensor, coeffs.as_ptr()), DUALADAM_STATUS_OK);
        }
    };
    let allocations_of = |work: &mut dyn FnMut()| {
        let before = ALLOCATIONS.get();
        work();
        ALLOCATIONS.get() - before
    };
    // The counter counts.
    assert_eq!(allocations_of(&mut || drop(std::hint::black_box(Box::new(1)))), 1);
    // The processor's features are looked up in the first step.
    step(1);
    assert_eq!(allocations_of(&mut || (2..=200).for_each(&mut step)), 0);
}

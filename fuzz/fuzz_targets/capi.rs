//! Calls the C library with arguments that the fuzzer's bytes decide: see
//! `capi/tests/capi/surface/`.

#![no_main]

use std::cell::RefCell;
use std::ffi::c_char;

use libfuzzer_sys::fuzz_target;

#[path = "../../capi/tests/capi/surface/mod.rs"]
mod surface;

/// An allocation that is too large returns null, as it does without the sanitizer.
#[unsafe(no_mangle)]
extern "C" fn __asan_default_options() -> *const c_char {
    c"allocator_may_return_null=1".as_ptr()
}

thread_local! {
    static SURFACE: RefCell<surface::Surface> = RefCell::new(surface::Surface::new());
}

fuzz_target!(|bytes: &[u8]| {
    SURFACE.with_borrow_mut(|surface| {
        let before = surface.calls >> 20;
        surface.run(bytes);
        if surface.calls >> 20 != before {
            eprintln!("{} calls, {} of them did something", surface.calls, surface.successes);
        }
    });
});

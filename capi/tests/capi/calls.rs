//! Calls as a C program makes them.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::ptr;

use dualadam_capi::*;

/// The text of this thread's last error.
pub(crate) fn last_error() -> String {
    let mut needed = 0;
    // SAFETY: only the length is asked for.
    assert_eq!(unsafe { dualadam_last_error(ptr::null_mut(), 0, &mut needed) }, DUALADAM_STATUS_OK);
    let mut buffer = vec![0_u8; needed];
    // SAFETY: the buffer has that length.
    let status = unsafe { dualadam_last_error(buffer.as_mut_ptr().cast(), buffer.len(), ptr::null_mut()) };
    assert_eq!(status, DUALADAM_STATUS_OK);
    CStr::from_bytes_with_nul(&buffer).unwrap().to_str().unwrap().to_owned()
}

pub(crate) fn name(status: dualadam_status) -> &'static str {
    // SAFETY: a C string that stays.
    unsafe { CStr::from_ptr(dualadam_status_name(status)) }.to_str().unwrap()
}

/// Fails with the library's text unless all went well.
#[track_caller]
pub(crate) fn ok(status: dualadam_status) {
    assert!(status == DUALADAM_STATUS_OK, "{}: {}", name(status), last_error());
}

/// Fails unless the call failed so, with that text.
#[track_caller]
pub(crate) fn fails(status: dualadam_status, expected: dualadam_status, text: &str) {
    assert!(status == expected, "{}, not {}: {}", name(status), name(expected), last_error());
    assert_eq!(last_error(), text);
}

/// The struct that a call fills, which is given the struct's place and size.
///
/// # Safety
///
/// - `fill` writes the whole struct, or fails.
pub(crate) unsafe fn filled<T>(fill: impl FnOnce(*mut T, usize) -> dualadam_status) -> T {
    let mut filled = MaybeUninit::uninit();
    ok(fill(filled.as_mut_ptr(), size_of::<T>()));
    // SAFETY: `fill` has not failed (`ok`), so it has written the struct (its requirement).
    unsafe { filled.assume_init() }
}

pub(crate) fn config() -> dualadam_config {
    // SAFETY: the struct has that size, and is filled.
    unsafe { filled(|config, size| dualadam_config_init(config, size)) }
}

pub(crate) fn tensor() -> dualadam_tensor {
    // SAFETY: the struct has that size, and is filled.
    unsafe { filled(|tensor, size| dualadam_tensor_init(tensor, size)) }
}

pub(crate) fn spec(len: u64) -> dualadam_tensor_spec {
    // SAFETY: the struct has that size, and is filled.
    let spec = unsafe { filled(|spec, size| dualadam_tensor_spec_init(spec, size)) };
    dualadam_tensor_spec { len, ..spec }
}

pub(crate) fn coeffs(config: &dualadam_config, step: u64, grad_multiplier: f64) -> dualadam_coeffs {
    // SAFETY: the struct has that size, and is filled.
    unsafe { filled(|coeffs, size| dualadam_config_coeffs(config, step, grad_multiplier, coeffs, size)) }
}

/// A state with one group and one tensor.
pub(crate) fn state(len: u64) -> dualadam_state {
    let mut state = 0;
    // SAFETY: the structs and the place are there.
    ok(unsafe { dualadam_state_new(&config(), 1, &spec(len), 1, &mut state) });
    state
}

pub(crate) fn state_tensor(state: dualadam_state, tensor: usize) -> dualadam_tensor_state {
    // SAFETY: the struct has that size, and is filled.
    unsafe { filled(|values, size| dualadam_state_tensor(state, tensor, values, size)) }
}

/// Four buffers of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Buffers {
    pub(crate) p: Vec<f32>,
    pub(crate) g: Vec<f32>,
    pub(crate) m: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Buffers {
    pub(crate) fn new(seed: usize, len: usize) -> Self {
        let value = |i: usize| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0;
        let vector = |from: usize| (0..len).map(|i| value(i + from)).collect::<Vec<_>>();
        Self { p: vector(0), g: vector(7), m: vec![0.0; len], v: vec![0.0; len] }
    }

    pub(crate) fn tensor(&mut self) -> dualadam_tensor {
        dualadam_tensor {
            param: self.p.as_mut_ptr().cast(),
            grad: self.g.as_ptr().cast(),
            exp_avg: self.m.as_mut_ptr().cast(),
            exp_avg_sq: self.v.as_mut_ptr().cast(),
            len: self.p.len() as u64,
            ..tensor()
        }
    }
}

//! Calls as a C program makes them.

use std::ffi::CStr;
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

pub(crate) fn config() -> dualadam_config {
    let mut config = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    unsafe {
        ok(dualadam_config_init(config.as_mut_ptr(), size_of::<dualadam_config>()));
        config.assume_init()
    }
}

pub(crate) fn tensor() -> dualadam_tensor {
    let mut tensor = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    unsafe {
        ok(dualadam_tensor_init(tensor.as_mut_ptr(), size_of::<dualadam_tensor>()));
        tensor.assume_init()
    }
}

pub(crate) fn spec(len: u64) -> dualadam_tensor_spec {
    let mut spec = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    let mut spec = unsafe {
        ok(dualadam_tensor_spec_init(spec.as_mut_ptr(), size_of::<dualadam_tensor_spec>()));
        spec.assume_init()
    };
    spec.len = len;
    spec
}

pub(crate) fn coeffs(config: &dualadam_config, step: u64, grad_multiplier: f64) -> dualadam_coeffs {
    let mut coeffs = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    unsafe {
        ok(dualadam_config_coeffs(config, step, grad_multiplier, coeffs.as_mut_ptr(), size_of::<dualadam_coeffs>()));
        coeffs.assume_init()
    }
}

/// A state with one group and one tensor.
pub(crate) fn state(len: u64) -> dualadam_state {
    let mut state = 0;
    // SAFETY: the structs and the place are there.
    ok(unsafe { dualadam_state_new(&config(), 1, &spec(len), 1, &mut state) });
    state
}

pub(crate) fn state_tensor(state: dualadam_state, tensor: usize) -> dualadam_tensor_state {
    let mut values = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    unsafe {
        ok(dualadam_state_tensor(state, tensor, values.as_mut_ptr(), size_of::<dualadam_tensor_state>()));
        values.assume_init()
    }
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

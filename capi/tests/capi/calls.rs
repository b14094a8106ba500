//! Calls as a C program makes them.

use std::ffi::CStr;
use std::ptr;

use bytemuck::Zeroable;
use dualadam_capi::*;

/// The text of this thread's last error.
pub(crate) fn last_error() -> String {
    let mut needed = 0;
    // SAFETY: with no buffer, the call writes only the length.
    assert_eq!(unsafe { dualadam_last_error(ptr::null_mut(), 0, &mut needed) }, DUALADAM_STATUS_OK);
    let mut buffer = vec![0_u8; needed];
    // SAFETY: the buffer has that length.
    let status = unsafe { dualadam_last_error(buffer.as_mut_ptr().cast(), buffer.len(), ptr::null_mut()) };
    assert_eq!(status, DUALADAM_STATUS_OK);
    CStr::from_bytes_with_nul(&buffer).unwrap().to_str().unwrap().to_owned()
}

pub(crate) fn name(status: dualadam_status) -> &'static str {
    // SAFETY: the name is a C string that stays valid.
    unsafe { CStr::from_ptr(dualadam_status_name(status)) }.to_str().unwrap()
}

/// Fails with the text of the library's error unless the call succeeded.
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
pub(crate) fn filled<T: Zeroable>(fill: impl FnOnce(*mut T, usize) -> dualadam_status) -> T {
    let mut filled = T::zeroed();
    ok(fill(&mut filled, size_of::<T>()));
    filled
}

pub(crate) fn config() -> dualadam_config {
    // SAFETY: the struct has that size.
    filled(|config, size| unsafe { dualadam_config_init(config, size) })
}

pub(crate) fn tensor() -> dualadam_tensor {
    // SAFETY: the struct has that size.
    filled(|tensor, size| unsafe { dualadam_tensor_init(tensor, size) })
}

pub(crate) fn spec(len: u64) -> dualadam_tensor_spec {
    // SAFETY: the struct has that size.
    let spec = filled(|spec, size| unsafe { dualadam_tensor_spec_init(spec, size) });
    dualadam_tensor_spec { len, ..spec }
}

pub(crate) fn coeffs(config: &dualadam_config, step: u64, grad_multiplier: f64) -> dualadam_coeffs {
    // SAFETY: the struct has that size.
    filled(|coeffs, size| unsafe { dualadam_config_coeffs(config, step, grad_multiplier, coeffs, size) })
}

/// The coefficients without their size.
pub(crate) fn fields(coeffs: &dualadam_coeffs) -> [f32; 10] {
    let dualadam_coeffs { one_minus_beta1, one_minus_beta2, inv_sqrt_bc2, eps, inverse_eps, .. } = *coeffs;
    let dualadam_coeffs { inverse_scale, adam_scale, decay, l2, grad_scale, .. } = *coeffs;
    [one_minus_beta1, one_minus_beta2, inv_sqrt_bc2, eps, inverse_eps, inverse_scale, adam_scale, decay, l2, grad_scale]
}

/// A state with one group and one tensor.
pub(crate) fn state(len: u64) -> dualadam_state {
    let mut state = 0;
    // SAFETY: the structs and the result live through the call.
    ok(unsafe { dualadam_state_new(&config(), 1, &spec(len), 1, &mut state) });
    state
}

pub(crate) fn state_tensor(state: dualadam_state, tensor: usize) -> dualadam_tensor_state {
    // SAFETY: the struct has that size.
    filled(|values, size| unsafe { dualadam_state_tensor(state, tensor, values, size) })
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

    /// A step on the CPU.
    pub(crate) fn step(&mut self, set: &dualadam_coeffs) {
        // SAFETY: the buffers are as long as the tensor says.
        ok(unsafe { dualadam_cpu_step(&self.tensor(), set) });
    }
}

//! Pointers to structs and results, configs, and numbers that are no status.

use std::ptr;

use dualadam_capi::*;

use crate::calls::*;

/// A pointer that is not null and is aligned for bytes only.
fn odd<T>(pointer: *mut T) -> *mut T {
    pointer.wrapping_byte_add(1)
}

#[test]
fn pointers_to_structs_and_results() {
    let mut config = config();
    let set = coeffs(&config, 1, 1.0);
    let (mut alpha, mut step, mut exists, mut len) = (0.5, 6, 7, 8);
    let config = &raw mut config;
    let (alpha, step, exists, len) = (&raw mut alpha, &raw mut step, &raw mut exists, &raw mut len);
    let (null, misaligned) = (DUALADAM_STATUS_NULL, DUALADAM_STATUS_MISALIGNED);
    let odd_text = |name: &str, align: usize, address: usize| {
        format!("{name} must be aligned to {align} bytes, got address {:#x}", address + 1)
    };
    // SAFETY: the call is refused before it reads or writes anything.
    unsafe {
        let size = size_of::<dualadam_config>();
        fails(dualadam_config_init(ptr::null_mut(), size), null, "config must not be null");
        fails(dualadam_config_init(odd(config), size), misaligned, &odd_text("config", 8, config.addr()));
        let text = "the size of config must be 104, or more with zeros beyond that, got 96";
        fails(dualadam_config_init(config, 96), DUALADAM_STATUS_SIZE, text);
        fails(dualadam_tensor_init(ptr::null_mut(), 72), null, "tensor must not be null");
        fails(dualadam_tensor_spec_init(ptr::null_mut(), 24), null, "spec must not be null");
        fails(dualadam_config_validate(ptr::null()), null, "config must not be null");
        fails(dualadam_config_alpha(config, 1, ptr::null_mut()), null, "alpha must not be null");
        fails(dualadam_config_alpha(config, 1, odd(alpha)), misaligned, &odd_text("alpha", 8, alpha.addr()));
        fails(dualadam_config_first_adam_step(config, ptr::null_mut(), exists), null, "step must not be null");
        fails(dualadam_config_first_adam_step(config, step, ptr::null_mut()), null, "exists must not be null");
        fails(dualadam_config_coeffs(config, 1, 1.0, ptr::null_mut(), 48), null, "coeffs must not be null");
        fails(dualadam_cpu_step(ptr::null(), &set), null, "tensor must not be null");
        fails(dualadam_cpu_step(&tensor(), ptr::null()), null, "coeffs must not be null");
        fails(dualadam_cpu_step_list(ptr::null(), 1, &set, 1), null, "tensors[0] must not be null");
        fails(dualadam_cpu_step_list(ptr::null(), 0, ptr::null(), 1), null, "coeffs[0] must not be null");
        let one = tensor();
        // No object has more than isize::MAX bytes.
        let limit = isize::MAX as usize / 72;
        let text = format!("tensors must number at most {limit}, got {}", usize::MAX);
        fails(dualadam_cpu_step_list(&one, usize::MAX, &set, 1), DUALADAM_STATUS_TOO_MANY, &text);
        let text = format!("out of memory: {} tensors are needed", 1_u64 << 50);
        fails(dualadam_cpu_step_list(&one, 1 << 50, &set, 1), DUALADAM_STATUS_MEMORY, &text);
        fails(dualadam_state_new(config, 1, &spec(1), 1, ptr::null_mut()), null, "state must not be null");
        assert_eq!(dualadam_last_error(ptr::null_mut(), 1, ptr::null_mut()), null);
        assert_eq!(dualadam_last_error(ptr::null_mut(), 0, odd(len)), misaligned);
        assert_eq!(last_error(), "state must not be null");
        assert_eq!((*alpha, *step, *exists, *len), (0.5, 6, 7, 8));
    }
}

#[test]
fn configs() {
    let refused = |change: fn(&mut dualadam_config), status, text: &str| {
        let mut config = config();
        change(&mut config);
        let mut alpha = 0.5;
        let (mut handle, mut step, mut exists) = (9, 6, 7);
        let mut out = coeffs(&crate::calls::config(), 1, 1.0);
        let before = out;
        // SAFETY: the structs and the results live through the call.
        unsafe {
            fails(dualadam_config_validate(&config), status, text);
            fails(dualadam_config_alpha(&config, 1, &mut alpha), status, text);
            fails(dualadam_config_first_adam_step(&config, &mut step, &mut exists), status, text);
            fails(dualadam_config_coeffs(&config, 1, 1.0, &mut out, 48), status, text);
            let field = text.split([' ']).next().unwrap_or_default();
            let requirement = text.split_once(" must ").map(|(_, requirement)| requirement).unwrap_or_default();
            let named = format!("{field} of groups[0] must {requirement}");
            fails(dualadam_state_new(&config, 1, ptr::null(), 0, &mut handle), status, &named);
        }
        assert_eq!((alpha, handle, step, exists), (0.5, 9, 6, 7));
        assert_eq!(out.adam_scale, before.adam_scale);
    };
    let (value, unknown) = (DUALADAM_STATUS_VALUE, DUALADAM_STATUS_ENUM);
    refused(|c| c.lr = -1.0, value, "lr must be finite and at least 0, got -1.0");
    refused(|c| c.beta2 = 1.0, value, "beta2 must be at least 0 and below 1, got 1.0");
    refused(|c| c.eps = f64::NAN, value, "eps must be finite and above 0 as an f32, got NaN");
    refused(|c| c.switching_rate = 1.5, value, "switching_rate must lie in 0..=1, got 1.5");
    refused(|c| c.schedule = 2, value, "period must be at least 1, got 0.0");
    let text = "weight_decay of config must be 0 where weight_decay_kind is DUALADAM_DECAY_NONE, got 0.1";
    refused(|c| c.weight_decay = 0.1, value, text);
    let text = "weight_decay_kind of config must be a DUALADAM_DECAY_ number, 0 to 2, got 3";
    refused(|c| c.weight_decay_kind = 3, unknown, text);
    let text = "inverse_term of config must be a DUALADAM_INVERSE_TERM_ number, 0 or 1, got 2";
    refused(|c| c.inverse_term = 2, unknown, text);
    let text = "schedule of config must be a DUALADAM_SCHEDULE_ number, 0 to 3, got 4294967295";
    refused(|c| c.schedule = u32::MAX, unknown, text);
    refused(|c| c.maximize = 2, unknown, "maximize of config must be 0 or 1, got 2");

    let mut out = coeffs(&config(), 1, 1.0);
    // SAFETY: the structs live through the call.
    let mut status = |step, multiplier| unsafe { dualadam_config_coeffs(&config(), step, multiplier, &mut out, 48) };
    fails(status(0, 1.0), DUALADAM_STATUS_STEP_ZERO, "step must be at least 1, got 0");
    fails(status(1, f64::NAN), value, "grad_multiplier must be finite and at least 0, got NaN");
}

#[test]
fn unknown_statuses_have_a_name() {
    for status in [-1, 9, 10, 19, 22, 23, 34, 69, 70, 71, 73, i32::MAX, i32::MIN] {
        assert_eq!(name(status), "unknown status");
    }
}

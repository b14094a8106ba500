//! What must not be is refused with a status and a text that names argument and value, and nothing
//! is written.

use std::ffi::{CString, c_char};
use std::ptr;

use dualadam::Variant;
use dualadam_capi::*;

use crate::calls::*;

/// A pointer that is not null and not aligned for anything but bytes.
fn odd<T>(pointer: *mut T) -> *mut T {
    pointer.wrapping_byte_add(1)
}

/// A step of one tensor that must fail, whether alone or in a list.
#[track_caller]
fn step_fails(change: impl Fn(&mut dualadam_tensor), status: dualadam_status, text: &str) {
    let mut buffers = Buffers::new(0, 8);
    let before = buffers.clone();
    let set = coeffs(&config(), 1, 1.0);
    let mut tensor = buffers.tensor();
    change(&mut tensor);
    // SAFETY: refused before any buffer is looked at.
    fails(unsafe { dualadam_cpu_step(&tensor, &set) }, status, text);
    // In a list, gradients that are null are fine.
    if !tensor.grad.is_null() {
        let mut first = Buffers::new(1, 8);
        let before = first.clone();
        let tensors = [first.tensor(), tensor];
        let text = text.replace("tensor 0", "tensor 1").replace("of tensor must", "of tensors[1] must");
        let text = text.replace("size of tensor must be 72", "size of tensors[1] must be 72");
        // SAFETY: as above.
        fails(unsafe { dualadam_cpu_step_list(tensors.as_ptr(), 2, &set, 1) }, status, &text);
        assert_eq!(first, before);
    }
    assert_eq!(buffers, before);
}

#[test]
fn buffers() {
    step_fails(|t| t.param = ptr::null_mut(), DUALADAM_STATUS_NULL, "param of tensor 0 must not be null");
    step_fails(|t| t.grad = ptr::null(), DUALADAM_STATUS_NULL, "grad of tensor 0 must not be null");
    step_fails(|t| t.exp_avg = ptr::null_mut(), DUALADAM_STATUS_NULL, "exp_avg of tensor 0 must not be null");
    step_fails(|t| t.exp_avg_sq = ptr::null_mut(), DUALADAM_STATUS_NULL, "exp_avg_sq of tensor 0 must not be null");
    let no_master =
        |t: &mut dualadam_tensor| (t.param_dtype, t.master_dtype) = (DUALADAM_DTYPE_BF16, DUALADAM_DTYPE_F32);
    step_fails(no_master, DUALADAM_STATUS_NULL, "master of tensor 0 must not be null");
    let at = |address: usize| ptr::without_provenance_mut(address);
    let text = "exp_avg of tensor 0 must be aligned to 4 bytes, got address 0x1002";
    step_fails(|t| t.exp_avg = at(0x1002), DUALADAM_STATUS_MISALIGNED, text);
    let half = |t: &mut dualadam_tensor| t.grad_dtype = DUALADAM_DTYPE_BF16;
    let text = "grad of tensor 0 must be aligned to 2 bytes, got address 0x1001";
    step_fails(
        |t| {
            half(t);
            t.grad = ptr::without_provenance(0x1001);
        },
        DUALADAM_STATUS_MISALIGNED,
        text,
    );
    let end = "param of tensor 0 must end within 2^64 bytes, got 8 elements of 4 bytes at 0xfffffffffffffff0";
    step_fails(|t| t.param = ptr::without_provenance_mut(usize::MAX - 15), DUALADAM_STATUS_EXTENT, end);
    let status = |len: u64| {
        let mut buffers = Buffers::new(0, 8);
        let tensor = dualadam_tensor { len, ..buffers.tensor() };
        // SAFETY: refused before any buffer is looked at.
        unsafe { dualadam_cpu_step(&tensor, &coeffs(&config(), 1, 1.0)) }
    };
    assert_eq!(status(u64::MAX), DUALADAM_STATUS_TOO_MANY);
    assert_eq!(status(1 << 62), DUALADAM_STATUS_TOO_MANY);
    let limit = isize::MAX as u64 / 4;
    let text = format!("tensor 0 must have at most {limit} elements, got {}", limit + 1);
    fails(status(limit + 1), DUALADAM_STATUS_TOO_MANY, &text);
}

#[test]
fn overlaps() {
    let status = DUALADAM_STATUS_OVERLAP;
    // Buffers of 8 in one memory, 8 apart.
    let mut memory = [0.5_f32; 80];
    let start = memory.as_mut_ptr();
    let good = dualadam_tensor {
        param: start.cast(),
        grad: start.wrapping_add(16).cast(),
        exp_avg: start.wrapping_add(32).cast(),
        exp_avg_sq: start.wrapping_add(48).cast(),
        len: 8,
        ..tensor()
    };
    for (change, names) in [
        ((|t| t.grad = t.param) as fn(&mut dualadam_tensor), ["grad", "param"]),
        (|t| t.exp_avg = t.param.wrapping_byte_add(28), ["exp_avg", "param"]),
        (|t| t.exp_avg_sq = t.grad.cast_mut().wrapping_byte_sub(28), ["exp_avg_sq", "grad"]),
        (
            |t| {
                (t.param_dtype, t.grad_dtype) = (DUALADAM_DTYPE_BF16, DUALADAM_DTYPE_BF16);
                (t.master, t.master_dtype) = (t.exp_avg, DUALADAM_DTYPE_F32);
            },
            ["master", "exp_avg"],
        ),
    ] {
        let mut tensor = good;
        change(&mut tensor);
        // SAFETY: refused before any buffer is looked at.
        assert_eq!(unsafe { dualadam_cpu_step(&tensor, &coeffs(&config(), 1, 1.0)) }, status);
        let text = last_error();
        assert!(names.iter().all(|name| text.contains(&format!("{name} of tensor 0"))), "{text}");
        // SAFETY: the memory is there, and only read.
        assert!((0..80).all(|at| unsafe { start.add(at).read() } == 0.5));
    }
    // Two tensors of a list.
    let mut buffers = [Buffers::new(0, 8), Buffers::new(1, 8)];
    let before = buffers.clone();
    let mut tensors = buffers.each_mut().map(Buffers::tensor);
    tensors[1].exp_avg = tensors[0].exp_avg_sq.wrapping_byte_add(28);
    let set = coeffs(&config(), 1, 1.0);
    // SAFETY: refused before any buffer is looked at.
    assert_eq!(unsafe { dualadam_cpu_step_list(tensors.as_ptr(), 2, &set, 1) }, status);
    let text = format!(
        "exp_avg of tensor 1 must not overlap exp_avg_sq of tensor 0, both have address {:#x}",
        tensors[1].exp_avg.addr()
    );
    assert_eq!(last_error(), text);
    assert_eq!(buffers, before);
    // Side by side is fine; so are gradients that are shared.
    let mut memory = [0.5_f32; 32];
    let start = memory.as_mut_ptr();
    let at = |index: usize| start.wrapping_add(index);
    let tensor = |p, g, m, v| dualadam_tensor {
        param: at(p).cast(),
        grad: at(g).cast(),
        exp_avg: at(m).cast(),
        exp_avg_sq: at(v).cast(),
        len: 4,
        ..tensor()
    };
    let tensors = [tensor(0, 4, 8, 12), tensor(16, 4, 20, 24)];
    // SAFETY: the structs and the buffers are there.
    ok(unsafe { dualadam_cpu_step_list(tensors.as_ptr(), 2, &set, 1) });
}

#[test]
fn types_sizes_and_indices() {
    let text = "param_dtype of tensor must be a DUALADAM_DTYPE_ number, 1 to 3, got 4";
    step_fails(|t| t.param_dtype = 4, DUALADAM_STATUS_ENUM, text);
    let text = "grad_dtype of tensor must be a DUALADAM_DTYPE_ number, 1 to 3, got 0";
    step_fails(|t| t.grad_dtype = 0, DUALADAM_STATUS_ENUM, text);
    let text = "master_dtype of tensor must be a DUALADAM_DTYPE_ number, 1 to 3, got 4294967295";
    step_fails(|t| t.master_dtype = u32::MAX, DUALADAM_STATUS_ENUM, text);
    // A master without a type is not ignored.
    let text = "master_dtype of tensor must be a DUALADAM_DTYPE_ number, 1 to 3, got 0";
    step_fails(|t| t.master = t.param, DUALADAM_STATUS_ENUM, text);
    let variants: Vec<_> = Variant::all().map(Variant::name).collect();
    let rule = format!("tensor 0 must have the formats of a variant ({}), got", variants.join(", "));
    let mixed = |t: &mut dualadam_tensor| (t.param_dtype, t.grad_dtype) = (DUALADAM_DTYPE_BF16, DUALADAM_DTYPE_F16);
    let text = format!("{rule} bf16 param, f16 grad, f32 exp_avg, f32 exp_avg_sq");
    step_fails(mixed, DUALADAM_STATUS_TYPES, &text);
    let mut room = [0.0_f32; 8];
    let master = room.as_mut_ptr();
    let text = format!("{rule} f32 param, f32 grad, f32 exp_avg, f32 exp_avg_sq, f32 master");
    step_fails(|t| (t.master, t.master_dtype) = (master.cast(), DUALADAM_DTYPE_F32), DUALADAM_STATUS_TYPES, &text);
    let text = format!("{rule} bf16 param, f32 grad, f32 exp_avg, f32 exp_avg_sq, bf16 master");
    let half_master = |t: &mut dualadam_tensor| {
        t.param_dtype = DUALADAM_DTYPE_BF16;
        (t.master, t.master_dtype) = (master.cast(), DUALADAM_DTYPE_BF16);
    };
    step_fails(half_master, DUALADAM_STATUS_TYPES, &text);
    let text = "tensor 0 must have a coeffs_index below 1, got 1";
    step_fails(|t| t.coeffs_index = 1, DUALADAM_STATUS_INDEX, text);

    // A step of nothing tells whether there is a kernel.
    let nothing = |param_dtype, grad_dtype| {
        let tensor = dualadam_tensor { param_dtype, grad_dtype, ..tensor() };
        // SAFETY: there are no elements.
        unsafe { dualadam_cpu_step(&tensor, &coeffs(&config(), 1, 1.0)) }
    };
    ok(nothing(DUALADAM_DTYPE_F16, DUALADAM_DTYPE_F32));
    assert_eq!(nothing(DUALADAM_DTYPE_F16, DUALADAM_DTYPE_BF16), DUALADAM_STATUS_TYPES);

    for size in [0, 8, 64, 71, 73, 76, 4104, usize::MAX] {
        let mut buffers = Buffers::new(0, 8);
        let tensor = dualadam_tensor { size, ..buffers.tensor() };
        // SAFETY: refused before any buffer is looked at.
        let status = unsafe { dualadam_cpu_step(&tensor, &coeffs(&config(), 1, 1.0)) };
        let text = format!("the size of tensor must be 72, or more with zeros beyond that, got {size}");
        fails(status, DUALADAM_STATUS_SIZE, &text);
    }
    // The structs of an array have one size.
    let mut three = [coeffs(&config(), 1, 1.0); 3];
    three[2].size = 56;
    // SAFETY: refused before anything else is read.
    let status = unsafe { dualadam_cpu_step_list(ptr::null(), 0, three.as_ptr(), 3) };
    fails(status, DUALADAM_STATUS_SIZE, "the size of coeffs[2] must be 48, or more with zeros beyond that, got 56");
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
    // SAFETY: refused before anything is read or written.
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
        let limit = (isize::MAX as usize - (&raw const one).addr()) / 72;
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
        // SAFETY: the structs and the places are there.
        unsafe {
            fails(dualadam_config_validate(&config), status, text);
            fails(dualadam_config_alpha(&config, 1, &mut alpha), status, text);
            fails(dualadam_config_first_adam_step(&config, &mut step, &mut exists), status, text);
            fails(dualadam_config_coeffs(&config, 1, 1.0, &mut out, 48), status, text);
            let named = text.replace("of config must", "of groups[0] must");
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
    let text = "weight_decay must be 0 where weight_decay_kind is DUALADAM_DECAY_NONE, got 0.1";
    refused(|c| c.weight_decay = 0.1, value, text);
    let text = "weight_decay_kind of config must be a DUALADAM_DECAY_ number, 0 to 2, got 3";
    refused(|c| c.weight_decay_kind = 3, unknown, text);
    let text = "inverse_term of config must be a DUALADAM_INVERSE_TERM_ number, 0 or 1, got 2";
    refused(|c| c.inverse_term = 2, unknown, text);
    let text = "schedule of config must be a DUALADAM_SCHEDULE_ number, 0 to 3, got 4294967295";
    refused(|c| c.schedule = u32::MAX, unknown, text);
    refused(|c| c.maximize = 2, unknown, "maximize of config must be 0 or 1, got 2");

    let mut out = coeffs(&config(), 1, 1.0);
    // SAFETY: the structs are there.
    let mut status = |step, multiplier| unsafe { dualadam_config_coeffs(&config(), step, multiplier, &mut out, 48) };
    fails(status(0, 1.0), DUALADAM_STATUS_STEP_ZERO, "step must be at least 1, got 0");
    fails(status(1, f64::NAN), value, "grad_multiplier must be finite and at least 0, got NaN");
}

#[test]
fn states() {
    let mut handle = 9;
    let mut status = |spec: dualadam_tensor_spec| {
        // SAFETY: the structs and the place are there.
        let status = unsafe { dualadam_state_new(&config(), 1, &spec, 1, &mut handle) };
        assert_eq!(handle, 9);
        status
    };
    let with = |group, has_master| dualadam_tensor_spec { group, has_master, ..spec(4) };
    fails(status(with(1, 0)), DUALADAM_STATUS_INDEX, "tensor 0 must have a group below 1, got 1");
    fails(status(with(0, 2)), DUALADAM_STATUS_ENUM, "has_master of tensors[0] must be 0 or 1, got 2");
    for len in [1 << 50, u64::MAX / 4, u64::MAX] {
        let bytes = len.saturating_mul(4);
        let text = format!("tensor 0 must fit in memory, each of its arrays needs {bytes} bytes");
        fails(status(spec(len)), DUALADAM_STATUS_MEMORY, &text);
    }

    let state = state(4);
    let mut config = config();
    config.lr = -1.0;
    let (mut count, mut values) = (9, state_tensor(state, 0));
    let position = DUALADAM_STATUS_POSITION;
    let mut read = config;
    // SAFETY: the structs and the places are there.
    unsafe {
        fails(dualadam_state_config(state, 1, &mut read, 104), position, "group must be below 1, got 1");
        fails(dualadam_state_tensor(state, 7, &mut values, 56), position, "tensor must be below 1, got 7");
        fails(dualadam_state_set_config(state, 1, &crate::calls::config()), position, "group must be below 1, got 1");
        let text = "lr must be finite and at least 0, got -1.0";
        fails(dualadam_state_set_config(state, 0, &config), DUALADAM_STATUS_VALUE, text);
        fails(
            dualadam_state_counts(state, &mut count, ptr::null_mut()),
            DUALADAM_STATUS_NULL,
            "tensors must not be null",
        );
        assert_eq!((count, read.lr), (9, -1.0));
        ok(dualadam_state_config(state, 0, &mut read, 104));
    }
    assert_eq!(read.lr, 1e-3);
    fails(dualadam_state_set_step(state, 1, 5, 0), position, "tensor must be below 1, got 1");
    let text = "master_is_set of the arguments must be 0 or 1, got 2";
    fails(dualadam_state_set_step(state, 0, 5, 2), DUALADAM_STATUS_ENUM, text);
    let text = "master of tensor 0 must be there to be set, the tensor has none";
    fails(dualadam_state_set_step(state, 0, 5, 1), DUALADAM_STATUS_VALUE, text);
    assert_eq!(state_tensor(state, 0).step, 0);
    ok(dualadam_state_free(state));
}

#[test]
fn handles() {
    let stale = DUALADAM_STATUS_STALE_HANDLE;
    let first = state(1);
    ok(dualadam_state_free(first));
    let text = |handle: u64| {
        format!("state must be a live handle, got {handle:#x}: it was never given out, or what it stood for is freed")
    };
    fails(dualadam_state_free(first), stale, &text(first));
    // Another object may take its place, but not its handle.
    let live: Vec<_> = (0..10).map(|_| state(1)).collect();
    assert!(!live.contains(&first));
    fails(dualadam_state_set_step(first, 0, 1, 0), stale, &text(first));
    let near = live.iter().flat_map(|&live| [live ^ (1 << 32), live ^ (2 << 32), live + 100]);
    for handle in near.chain([0, 1, u64::MAX, 1 << 32, (1 << 32) - 1]) {
        fails(dualadam_state_free(handle), stale, &text(handle));
    }
    let (mut count, mut config, mut values) = (0, config(), state_tensor(live[0], 0));
    // SAFETY: the structs and the places are there.
    unsafe {
        assert_eq!(dualadam_state_counts(first, &mut count, &mut count), stale);
        assert_eq!(dualadam_state_config(first, 0, &mut config, 104), stale);
        assert_eq!(dualadam_state_set_config(first, 0, &config), stale);
        assert_eq!(dualadam_state_tensor(first, 0, &mut values, 56), stale);
        assert_eq!(dualadam_state_save(first, c"x".as_ptr()), stale);
    }
    live.into_iter().for_each(|live| ok(dualadam_state_free(live)));
}

#[test]
fn paths_and_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        std::fs::write(folder.path().join(name), content).unwrap();
        CString::new(folder.path().join(name).to_str().unwrap()).unwrap()
    };
    let load = |path: *const c_char| {
        let mut state = 9;
        // SAFETY: null or a C string, and a place.
        let status = unsafe { dualadam_state_load(path, &mut state) };
        assert!(status == DUALADAM_STATUS_OK || state == 9);
        status
    };
    let state = state(2);
    fails(load(ptr::null()), DUALADAM_STATUS_NULL, "file must not be null");
    let latin1 = c"gr\xfc\xdfe".as_ptr();
    fails(load(latin1), DUALADAM_STATUS_UTF8, "file must be UTF-8, got byte 0xfc at position 2");
    // SAFETY: null or C strings.
    unsafe {
        fails(dualadam_state_save(state, ptr::null()), DUALADAM_STATUS_NULL, "file must not be null");
        let text = "file must be UTF-8, got byte 0xfc at position 2";
        fails(dualadam_state_save(state, latin1), DUALADAM_STATUS_UTF8, text);
        assert_eq!(dualadam_state_save(state, c"".as_ptr()), DUALADAM_STATUS_IO);
        assert_eq!(dualadam_state_save(state, c"/nowhere/state".as_ptr()), DUALADAM_STATUS_IO);
    }
    assert_eq!(load(c"/nowhere/state".as_ptr()), DUALADAM_STATUS_IO);
    assert_eq!(load(file("short", b"123").as_ptr()), DUALADAM_STATUS_STATE_TOO_SHORT);
    assert_eq!(load(file("other", b"12345678").as_ptr()), DUALADAM_STATUS_STATE_CHECKSUM);
    assert_eq!(load(file("empty", &[0; 4]).as_ptr()), DUALADAM_STATUS_STATE_MALFORMED);

    let whole = file("whole", b"");
    // SAFETY: a C string.
    ok(unsafe { dualadam_state_save(state, whole.as_ptr()) });
    let bytes = std::fs::read(folder.path().join("whole")).unwrap();
    let at = bytes.windows(11).position(|bytes| bytes == b"version\\\":1").unwrap() + 10;
    let mut later = bytes.clone();
    later[at] = b'9';
    let body = later.len() - 4;
    let crc = crc32fast::hash(&later[..body]);
    later[body..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(load(file("later", &later).as_ptr()), DUALADAM_STATUS_STATE_VERSION);
    assert!(last_error().ends_with("its format version must be 1, it is 9"), "{}", last_error());

    // Into a state that is there, of the same tensors only.
    let resume = |state, path: *const c_char| {
        // SAFETY: null or a C string.
        unsafe { dualadam_state_resume(state, path) }
    };
    ok(resume(state, whole.as_ptr()));
    let longer = crate::calls::state(3);
    assert_eq!(resume(longer, whole.as_ptr()), DUALADAM_STATUS_STATE_LAYOUT);
    let text = "tensor 0 must be 3 elements in group 0 without masters, it is 2 elements in group 0 without masters";
    assert!(last_error().ends_with(text), "{}", last_error());
    assert_eq!(resume(longer, ptr::null()), DUALADAM_STATUS_NULL);
    assert_eq!(resume(longer, c"/nowhere/state".as_ptr()), DUALADAM_STATUS_IO);
    assert_eq!(resume(longer, file("damaged", b"12345678").as_ptr()), DUALADAM_STATUS_STATE_CHECKSUM);
    ok(dualadam_state_free(longer));
    assert_eq!(resume(longer, whole.as_ptr()), DUALADAM_STATUS_STALE_HANDLE);

    // SAFETY: the state's array has two elements.
    unsafe { state_tensor(state, 0).exp_avg_sq.write(-1.0) };
    // SAFETY: a C string.
    let status = unsafe { dualadam_state_save(state, whole.as_ptr()) };
    fails(status, DUALADAM_STATUS_VALUE, "exp_avg_sq of tensor 0 must be at least 0 everywhere, got -1.0");
    assert_eq!(std::fs::read(folder.path().join("whole")).unwrap(), bytes);
    ok(dualadam_state_free(state));
}

#[test]
fn unknown_statuses_have_a_name() {
    for status in [-1, 9, 10, 19, 22, 23, 34, 69, 70, 71, 73, i32::MAX, i32::MIN] {
        assert_eq!(name(status), "unknown status");
    }
}

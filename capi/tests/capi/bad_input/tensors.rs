//! Bad tensors, in a step of their own and in a list.

use std::ffi::c_void;
use std::ptr;

use dualadam::Variant;
use dualadam_capi::*;

use crate::calls::*;

/// A step that must fail, unless there are no elements.
fn step(tensor: &dualadam_tensor) -> dualadam_status {
    // SAFETY: refused before any buffer is accessed, or there are no elements.
    unsafe { dualadam_cpu_step(tensor, &coeffs(&config(), 1, 1.0)) }
}

/// A tensor with its four buffers in one allocation, at these elements.
fn tensor_at(memory: *mut f32, elements: [usize; 4], len: u64) -> dualadam_tensor {
    let [param, grad, exp_avg, exp_avg_sq] = elements.map(|at| memory.wrapping_add(at).cast::<c_void>());
    dualadam_tensor { param, grad, exp_avg, exp_avg_sq, len, ..tensor() }
}

/// A step of one tensor that must fail, whether alone or in a list.
#[track_caller]
fn step_fails(change: impl Fn(&mut dualadam_tensor), status: dualadam_status, text: &str) {
    let mut buffers = Buffers::new(0, 8);
    let before = buffers.clone();
    let set = coeffs(&config(), 1, 1.0);
    let mut tensor = buffers.tensor();
    change(&mut tensor);
    fails(step(&tensor), status, text);
    // In a list, gradients may be null.
    if !tensor.grad.is_null() {
        let mut first = Buffers::new(1, 8);
        let before = first.clone();
        let tensors = [first.tensor(), tensor];
        let text = text.replace("tensor 0", "tensor 1").replace("of tensor must", "of tensors[1] must");
        let text = text.replace("size of tensor must be 72", "size of tensors[1] must be 72");
        // SAFETY: refused before any buffer is accessed.
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
        step(&dualadam_tensor { len, ..buffers.tensor() })
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
    // Buffers of 8 elements in one allocation, with 8 elements between them.
    let mut memory = [0.5_f32; 80];
    let start = memory.as_mut_ptr();
    let good = tensor_at(start, [0, 16, 32, 48], 8);
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
        assert_eq!(step(&tensor), status);
        let text = last_error();
        assert!(names.iter().all(|name| text.contains(&format!("{name} of tensor 0"))), "{text}");
        // SAFETY: the memory is live, and only read.
        assert!((0..80).all(|at| unsafe { start.add(at).read() } == 0.5));
    }
    // Buffers of two tensors in a list.
    let mut buffers = [Buffers::new(0, 8), Buffers::new(1, 8)];
    let before = buffers.clone();
    let mut tensors = buffers.each_mut().map(Buffers::tensor);
    tensors[1].exp_avg = tensors[0].exp_avg_sq.wrapping_byte_add(28);
    let set = coeffs(&config(), 1, 1.0);
    // SAFETY: refused before any buffer is accessed.
    assert_eq!(unsafe { dualadam_cpu_step_list(tensors.as_ptr(), 2, &set, 1) }, status);
    let text = format!(
        "exp_avg of tensor 1 must not overlap exp_avg_sq of tensor 0, both have address {:#x}",
        tensors[1].exp_avg.addr()
    );
    assert_eq!(last_error(), text);
    assert_eq!(buffers, before);
    // Buffers may be adjacent, and gradients may share memory.
    let mut memory = [0.5_f32; 32];
    let start = memory.as_mut_ptr();
    let tensors = [tensor_at(start, [0, 4, 8, 12], 4), tensor_at(start, [16, 4, 20, 24], 4)];
    // SAFETY: the structs and the buffers are live.
    ok(unsafe { dualadam_cpu_step_list(tensors.as_ptr(), 2, &set, 1) });
}

#[test]
fn masters() {
    let (mut param, mut master) = ([0_u16; 16], [1.0_f32; 8]);
    let good = dualadam_tensor {
        param: param.as_mut_ptr().cast(),
        param_dtype: DUALADAM_DTYPE_BF16,
        master: master.as_mut_ptr().cast(),
        master_dtype: DUALADAM_DTYPE_F32,
        len: 8,
        ..tensor()
    };
    // SAFETY: the struct is live; its buffers are not accessed if the call is refused.
    let sync = |tensor: dualadam_tensor| unsafe { dualadam_cpu_sync_master(&tensor) };
    let text = "master_dtype of tensor must be DUALADAM_DTYPE_F32, got 0";
    let without = dualadam_tensor { master: ptr::null_mut(), master_dtype: DUALADAM_DTYPE_NONE, ..good };
    fails(sync(without), DUALADAM_STATUS_ENUM, text);
    let text = "param_dtype of tensor must be a DUALADAM_DTYPE_ number, 1 to 3, got 9";
    fails(sync(dualadam_tensor { param_dtype: 9, ..good }), DUALADAM_STATUS_ENUM, text);
    for (param_dtype, master_dtype) in [(DUALADAM_DTYPE_F32, DUALADAM_DTYPE_F32), (2, DUALADAM_DTYPE_BF16)] {
        assert_eq!(sync(dualadam_tensor { param_dtype, master_dtype, ..good }), DUALADAM_STATUS_TYPES);
        assert_eq!(sync(dualadam_tensor { param_dtype, master_dtype, len: 0, ..good }), DUALADAM_STATUS_TYPES);
    }
    let text = "master of tensor 0 must not be null";
    fails(sync(dualadam_tensor { master: ptr::null_mut(), ..good }), DUALADAM_STATUS_NULL, text);
    let text = "param of tensor 0 must not be null";
    fails(sync(dualadam_tensor { param: ptr::null_mut(), ..good }), DUALADAM_STATUS_NULL, text);
    let odd = dualadam_tensor { param: good.param.wrapping_byte_add(1), ..good };
    assert_eq!(sync(odd), DUALADAM_STATUS_MISALIGNED);
    assert_eq!(sync(dualadam_tensor { param: good.master, ..good }), DUALADAM_STATUS_OVERLAP);
    assert_eq!(sync(dualadam_tensor { len: u64::MAX, ..good }), DUALADAM_STATUS_TOO_MANY);
    assert_eq!(sync(dualadam_tensor { size: 8, ..good }), DUALADAM_STATUS_SIZE);
    // SAFETY: a null pointer is refused.
    assert_eq!(unsafe { dualadam_cpu_sync_master(ptr::null()) }, DUALADAM_STATUS_NULL);
    assert_eq!(master, [1.0; 8]);
    ok(sync(dualadam_tensor { param: ptr::null_mut(), master: ptr::null_mut(), len: 0, ..good }));
    ok(sync(good));
    assert_eq!(master, [0.0; 8]);
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
    step_fails(|t| t.coeffs_index = 1, DUALADAM_STATUS_INDEX, "tensor 0 must have a coeffs_index below 1, got 1");

    // A step of an empty tensor still fails if there is no kernel for its formats.
    let nothing = |param_dtype, grad_dtype| step(&dualadam_tensor { param_dtype, grad_dtype, ..tensor() });
    ok(nothing(DUALADAM_DTYPE_F16, DUALADAM_DTYPE_F32));
    assert_eq!(nothing(DUALADAM_DTYPE_F16, DUALADAM_DTYPE_BF16), DUALADAM_STATUS_TYPES);

    for size in [0, 8, 64, 71, 73, 76, 4104, usize::MAX] {
        let mut buffers = Buffers::new(0, 8);
        let text = format!("the size of tensor must be 72, or more with zeros beyond that, got {size}");
        fails(step(&dualadam_tensor { size, ..buffers.tensor() }), DUALADAM_STATUS_SIZE, &text);
    }
    // The structs of an array have one size.
    let mut three = [coeffs(&config(), 1, 1.0); 3];
    three[2].size = 56;
    // SAFETY: refused before anything else is read.
    let status = unsafe { dualadam_cpu_step_list(ptr::null(), 0, three.as_ptr(), 3) };
    fails(status, DUALADAM_STATUS_SIZE, "the size of coeffs[2] must be that of coeffs[0], 48, got 56");
}

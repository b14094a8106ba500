//! What the functions of a control refuse.

use std::ffi::c_void;
use std::ptr;

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam_capi::*;

use super::{Memory, NO_REPORT, World, assert_clean, group, report, scalars, set};
use crate::calls::*;

#[test]
fn what_cannot_be_right_is_refused() {
    let world = World::new();
    let (kernels, raw) = (world.kernels, world.raw());
    let mut groups = world.groups();
    let sets = [set(0), set(1)];
    let mut handle = 9;
    // SAFETY: the structs and the places are there; what is wrong is refused before it is used.
    unsafe {
        let mut new = |groups: *const _, group_count, sets: *const _, set_count| {
            dualadam_cuda_control_new(kernels, groups, group_count, sets, set_count, &mut handle)
        };
        let (g, s) = (groups.as_ptr(), sets.as_ptr());
        fails(new(g, 2, s, 0), DUALADAM_STATUS_EMPTY, "sets must have at least one entry, got none");
        fails(new(g, 1, s, 2), DUALADAM_STATUS_POSITION, "set 1 must have a group below 1, got 1");
        fails(new(ptr::null(), 1, s, 2), DUALADAM_STATUS_NULL, "groups[0] must not be null");
        fails(new(g, 2, ptr::null(), 1), DUALADAM_STATUS_NULL, "sets[0] must not be null");
        assert_eq!(new(g, 2, s, usize::MAX), DUALADAM_STATUS_TOO_MANY, "{}", last_error());
        assert_eq!(new(g, 1 << 50, s, 2), DUALADAM_STATUS_MEMORY);
        let odd = |size| dualadam_cuda_control_set { size, ..set(0) };
        let text = "the size of sets[0] must be 24, or more with zeros beyond that, got 16";
        fails(new(g, 2, &odd(16), 1), DUALADAM_STATUS_SIZE, text);
        let with = |group| [group, groups[1]];
        let no_config = with(dualadam_cuda_control_group { config: ptr::null(), ..groups[0] });
        fails(new(no_config.as_ptr(), 2, s, 2), DUALADAM_STATUS_NULL, "config of groups[0] must not be null");
        let bad = |config: &dualadam_config, status, text: &str| {
            let groups = [groups[0], group(config)];
            let mut handle = 9;
            fails(dualadam_cuda_control_new(kernels, groups.as_ptr(), 2, s, 2, &mut handle), status, text);
            assert_eq!(handle, 9);
        };
        let text = "schedule of config of groups[1] must be a DUALADAM_SCHEDULE_ number, 0 to 3, got 7";
        bad(&dualadam_config { schedule: 7, ..config() }, DUALADAM_STATUS_ENUM, text);
        let text = "the size of config of groups[1] must be 104, or more with zeros beyond that, got 8";
        bad(&dualadam_config { size: 8, ..config() }, DUALADAM_STATUS_SIZE, text);
        let text = "lr of groups[1] must be finite and at least 0, got -1.0";
        bad(&dualadam_config { lr: -1.0, ..config() }, DUALADAM_STATUS_VALUE, text);

        let address = DUALADAM_STATUS_CUDA_ADDRESS;
        let at = |address: usize| ptr::without_provenance_mut::<c_void>(address);
        let step = |address| dualadam_cuda_control_set { step: at(address).cast(), ..set(0) };
        fails(new(g, 2, &step(0x1004), 1), address, "step of set 0 must be aligned to 8 bytes, got address 0x1004");
        let text = "step of set 0 must not overlap step of set 1, got address 0x1008";
        fails(new(g, 2, [step(0x1008); 2].as_ptr(), 2), address, text);
        groups[0].lr_f32 = at(0x1002).cast();
        fails(new(groups.as_ptr(), 2, s, 2), address, "lr of group 0 must be aligned to 4 bytes, got address 0x1002");
        groups[0].lr_f32 = at(0x1000).cast();
        groups[0].lr_f64 = at(0x2000).cast();
        let text = "lr_f64 of groups[0] must be null where lr_f32 is not, got address 0x2000";
        fails(new(groups.as_ptr(), 2, s, 2), address, text);
        assert_eq!(handle, 9);
        let text = "control must not be null";
        fails(dualadam_cuda_control_new(kernels, g, 2, s, 2, ptr::null_mut()), DUALADAM_STATUS_NULL, text);
        fails(dualadam_cuda_control_group_init(ptr::null_mut(), 32), DUALADAM_STATUS_NULL, "group must not be null");
        fails(dualadam_cuda_control_set_init(ptr::null_mut(), 24), DUALADAM_STATUS_NULL, "set must not be null");
        fails(dualadam_cuda_scalars_init(ptr::null_mut(), 32), DUALADAM_STATUS_NULL, "scalars must not be null");
    }
    let lr = Memory::new(&[0.25_f32]);
    let mut groups = world.groups();
    groups[1].lr_f32 = lr.pointer();
    let (control, list) = world.control_and_list(&groups, &sets);
    let mut one = NO_REPORT;
    let (mut steps, mut made, mut found) = ([9; 3], coeffs(&config(), 1, 1.0), config());
    // SAFETY: the handles, structs and memory live until the end of the test.
    unsafe {
        let set_lr = |group, lr| dualadam_cuda_control_set_lr(control, group, lr, raw);
        fails(set_lr(2, 0.1), DUALADAM_STATUS_POSITION, "group must be below 2, got 2");
        fails(set_lr(0, f64::NAN), DUALADAM_STATUS_VALUE, "lr must be finite and at least 0, got NaN");
        let text = "the lr of group 1 must not be set here: it is read from the caller's memory, write it there";
        fails(set_lr(1, 0.1), DUALADAM_STATUS_CUDA_CALLERS_LR, text);
        let set_config = |group, config: *const _| dualadam_cuda_control_set_config(control, group, config, raw);
        assert_eq!(set_config(2, &config()), DUALADAM_STATUS_POSITION);
        assert_eq!(set_config(0, ptr::null()), DUALADAM_STATUS_NULL);
        assert_eq!(set_config(0, &dualadam_config { eps: 0.0, ..config() }), DUALADAM_STATUS_VALUE);
        assert_eq!(dualadam_cuda_control_config(control, 2, &mut found, 104), DUALADAM_STATUS_POSITION);
        assert_eq!(dualadam_cuda_control_config(control, 0, &mut found, 96), DUALADAM_STATUS_SIZE);
        assert_eq!(dualadam_cuda_control_config(control, 0, ptr::null_mut(), 104), DUALADAM_STATUS_NULL);
        let text = "steps must have 2 entries, got 3";
        fails(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 3, raw), DUALADAM_STATUS_COUNT, text);
        fails(dualadam_cuda_control_set_steps(control, steps.as_ptr(), 3, raw), DUALADAM_STATUS_COUNT, text);
        assert_eq!(dualadam_cuda_control_steps(control, ptr::null_mut(), 2, raw), DUALADAM_STATUS_NULL);
        assert_eq!(dualadam_cuda_control_set_steps(control, ptr::null(), 2, raw), DUALADAM_STATUS_NULL);
        let odd: *mut u64 = steps.as_mut_ptr().wrapping_byte_add(4);
        assert_eq!(dualadam_cuda_control_steps(control, odd, 2, raw), DUALADAM_STATUS_MISALIGNED);
        assert_eq!(dualadam_cuda_control_set_steps(control, odd, 2, raw), DUALADAM_STATUS_MISALIGNED);
        let text = "reports must have 2 entries, got 1";
        fails(dualadam_cuda_control_report(control, &mut one, 32, 1, raw), DUALADAM_STATUS_COUNT, text);
        assert_eq!(dualadam_cuda_control_report(control, &mut one, 24, 2, raw), DUALADAM_STATUS_SIZE);
        assert_eq!(dualadam_cuda_control_report(control, ptr::null_mut(), 32, 2, raw), DUALADAM_STATUS_NULL);
        let text = "coeffs must have 2 entries, got 1";
        fails(dualadam_cuda_control_coeffs(control, &mut made, 48, 1, raw), DUALADAM_STATUS_COUNT, text);
        assert_eq!(dualadam_cuda_control_coeffs(control, ptr::null_mut(), 48, 2, raw), DUALADAM_STATUS_NULL);
        assert_eq!((one.step, steps, found.lr), (9, [9; 3], 1e-3));

        let step = |list, control, scalars: *const _| dualadam_cuda_list_step_controlled(list, control, scalars, raw);
        let at = |address: usize| ptr::without_provenance::<f32>(address);
        for (name, wrong) in [
            ("loss_scale", dualadam_cuda_scalars { loss_scale: at(0x1002), ..scalars() }),
            ("clip_factor", dualadam_cuda_scalars { clip_factor: at(0x1002), ..scalars() }),
            ("found_inf", dualadam_cuda_scalars { found_inf: at(0x1002), ..scalars() }),
        ] {
            let text = format!("{name} must be aligned to 4 bytes, got address 0x1002");
            fails(step(list, control, &wrong), DUALADAM_STATUS_CUDA_ADDRESS, &text);
        }
        let wrong = dualadam_cuda_scalars { size: 24, ..scalars() };
        assert_eq!(step(list, control, &wrong), DUALADAM_STATUS_SIZE);
        assert_eq!(step(list, control, (&raw const wrong).wrapping_byte_add(4)), DUALADAM_STATUS_MISALIGNED);
        let text = format!("control must be a handle of a CUDA control, got {list:#x}, which is one of a CUDA list");
        fails(step(list, list, ptr::null()), DUALADAM_STATUS_HANDLE_KIND, &text);
        let text = format!("list must be a handle of a CUDA list, got {control:#x}, which is one of a CUDA control");
        fails(step(control, control, ptr::null()), DUALADAM_STATUS_HANDLE_KIND, &text);
        assert_eq!(dualadam_cuda_control_free(list), DUALADAM_STATUS_HANDLE_KIND);
        assert_eq!(dualadam_cuda_list_free(control), DUALADAM_STATUS_HANDLE_KIND);

        let small = super::control(kernels, &groups, &sets[..1]);
        let text = "tensor 1 must have a coeffs_index below 1, got 1";
        fails(step(list, small, ptr::null()), DUALADAM_STATUS_INDEX, text);
        ok(dualadam_cuda_control_free(small));

        world.stand_in.set("devices", 2);
        let other = CudaContext::new(1).unwrap();
        let foreign = other.new_stream().unwrap();
        other.bind_to_thread().unwrap();
        let mut kernels_there = 0;
        ok(dualadam_cuda_kernels_in_current_context(&mut kernels_there));
        let there = super::control(kernels_there, &world.groups(), &sets);
        world.context.bind_to_thread().unwrap();
        let text = "control must belong to the kernels' CUDA context, it belongs to another";
        fails(step(list, there, ptr::null()), DUALADAM_STATUS_CUDA_CONTEXT, text);
        let raw = foreign.cu_stream().cast();
        let context = DUALADAM_STATUS_CUDA_CONTEXT;
        assert_eq!(dualadam_cuda_list_step_controlled(list, control, ptr::null(), raw), context);
        assert_eq!(dualadam_cuda_control_set_lr(control, 0, 0.5, raw), context);
        assert_eq!(dualadam_cuda_control_set_config(control, 0, &config(), raw), context);
        assert_eq!(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, raw), context);
        assert_eq!(dualadam_cuda_control_set_steps(control, steps.as_ptr(), 2, raw), context);
        ok(dualadam_cuda_control_free(there));
        ok(dualadam_cuda_kernels_free(kernels_there));
        drop((foreign, other));
        world.context.bind_to_thread().unwrap();
    }
    assert_eq!(report(control, 2, world.raw()), [(0, 0, 0); 2]);
    world.assert_same();
    world.free(control, list);
    // SAFETY: the structs live through the call; all handles are stale.
    unsafe {
        let (stale, raw) = (DUALADAM_STATUS_STALE_HANDLE, world.raw());
        assert_eq!(dualadam_cuda_control_free(control), stale);
        assert_eq!(dualadam_cuda_control_config(control, 0, &mut found, 104), stale);
        assert_eq!(dualadam_cuda_control_set_lr(control, 0, 0.1, raw), stale);
        assert_eq!(dualadam_cuda_control_set_config(control, 0, &config(), raw), stale);
        assert_eq!(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, raw), stale);
        assert_eq!(dualadam_cuda_control_set_steps(control, steps.as_ptr(), 2, raw), stale);
        assert_eq!(dualadam_cuda_control_report(control, &mut one, 32, 1, raw), stale);
        assert_eq!(dualadam_cuda_control_coeffs(control, &mut made, 48, 1, raw), stale);
        assert_eq!(dualadam_cuda_list_step_controlled(list, control, ptr::null(), raw), stale);
        let status = dualadam_cuda_control_new(kernels, groups.as_ptr(), 2, sets.as_ptr(), 2, &mut handle);
        assert_eq!((status, handle), (stale, 9));
    }
    assert_clean(&world.stand_in);
}

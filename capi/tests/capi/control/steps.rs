//! Steps that the device controls: their bits, captured ones, and one that the driver interrupts.

use std::ptr;

use dualadam_capi::*;

use super::{Memory, NO_REPORT, World, assert_clean, bits, control, list, read_coeffs, report, scalars, set};
use crate::calls::*;

/// Through the switch, with learning rates and a counter in the caller's memory and in the
/// control's, and with steps that are skipped.
#[test]
fn controlled_steps_have_the_bits_of_the_cpu() {
    let mut world = World::new();
    let raw = world.raw();
    let (lr, counter) = (Memory::new(&[0.25_f32]), Memory::new(&[4_u64]));
    let values = [8.0_f32, 0.5, 0.0].map(|value| Memory::new(&[value]));
    let mut groups = world.groups();
    groups[1].lr_f32 = lr.pointer();
    let sets = [set(0), dualadam_cuda_control_set { step: counter.pointer(), ..set(1) }];
    let (control, list) = world.control_and_list(&groups, &sets);
    let [loss_scale, clip_factor, found_inf] = values.each_ref().map(|value| value.pointer::<f32>().cast_const());
    let scalars = dualadam_cuda_scalars { loss_scale, clip_factor, found_inf, ..scalars() };
    assert_eq!(report(control, 2, raw), [(0, 0, 0), (4, 0, 0)]);
    assert_eq!(read_coeffs(control, 2, raw), [[0; 10]; 2]);

    // SAFETY: the structs, the buffers and the stream live until all work has run.
    let step = |scalars| unsafe { dualadam_cuda_list_step_controlled(list, control, scalars, raw) };
    for t in 1..=6 {
        let multiplier = if t == 3 { 1.0 } else { 0.0625 };
        ok(step(if t == 3 { ptr::null() } else { &scalars }));
        let of_second = dualadam_config { lr: 0.25, ..world.configs[1] };
        let sets = [coeffs(&world.configs[0], t, multiplier), coeffs(&of_second, t + 4, multiplier)];
        world.expect(sets);
        world.assert_same();
        assert_eq!(read_coeffs(control, 2, raw), sets.each_ref().map(bits), "{t}");
    }
    assert_eq!(counter.read::<u64>(1)[0], 10);

    // Each reason; the smallest number where there are several.
    let skips = [
        (2, f32::NAN, DUALADAM_SKIP_FOUND_INF),
        (0, 0.0, DUALADAM_SKIP_LOSS_SCALE),
        (1, -1.0, DUALADAM_SKIP_CLIP_FACTOR),
        (1, f32::MAX, DUALADAM_SKIP_MULTIPLIER),
    ];
    values[0].write(&[0.5_f32]);
    for (skipped, (place, value, reason)) in (1..).zip(skips) {
        let before: f32 = values[place].read(1)[0];
        values[place].write(&[value]);
        ok(step(&scalars));
        assert_eq!(report(control, 2, raw), [(6, skipped, reason), (10, skipped, reason)]);
        values[place].write(&[before]);
    }
    lr.write(&[f32::INFINITY]);
    let full = [u64::MAX, 10];
    // SAFETY: the numbers live through the call.
    ok(unsafe { dualadam_cuda_control_set_steps(control, full.as_ptr(), 2, raw) });
    ok(step(&scalars));
    assert_eq!(report(control, 2, raw), [(u64::MAX, 5, DUALADAM_SKIP_STEP), (10, 5, DUALADAM_SKIP_LR)]);
    world.assert_same();

    // Changes: lr and the whole config, and back to the first steps.
    let third = dualadam_config { beta1: 0.5, lr: 0.125, ..world.configs[0] };
    let mut found = config();
    let mut steps = [9; 2];
    // SAFETY: the structs and the numbers live through the call.
    unsafe {
        ok(dualadam_cuda_control_set_steps(control, [6, 10].as_ptr(), 2, raw));
        ok(dualadam_cuda_control_set_config(control, 1, &third, raw));
        ok(dualadam_cuda_control_set_lr(control, 0, 0.75, raw));
        ok(dualadam_cuda_control_config(control, 0, &mut found, size_of::<dualadam_config>()));
        assert_eq!((found.lr, found.switching_rate, found.size), (0.75, 0.25, size_of::<dualadam_config>()));
        lr.write(&[2.0_f32]);
        ok(step(ptr::null()));
        ok(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, raw));
    }
    assert_eq!(steps, [7, 11]);
    let first = dualadam_config { lr: 0.75, ..world.configs[0] };
    world.expect([coeffs(&first, 7, 1.0), coeffs(&dualadam_config { lr: 2.0, ..third }, 11, 1.0)]);
    world.assert_same();

    world.free(control, list);
    // The modules are the context's, which this test holds.
    assert_eq!((world.stand_in.live("module"), world.stand_in.live("pinned")), (2, 0));
    assert_clean(&world.stand_in);
}

/// A lr of type double in the caller's memory.
#[test]
fn the_lr_may_be_a_double() {
    let mut world = World::new();
    let lr = Memory::new(&[0.1_f64]);
    let mut groups = world.groups();
    groups[1].lr_f64 = lr.pointer();
    let (control, list) = world.control_and_list(&groups, &[set(0), set(1)]);
    // SAFETY: the buffers and the stream live until all work has run.
    ok(unsafe { dualadam_cuda_list_step_controlled(list, control, ptr::null(), world.raw()) });
    let second = dualadam_config { lr: 0.1, ..world.configs[1] };
    world.expect([coeffs(&world.configs[0], 1, 1.0), coeffs(&second, 1, 1.0)]);
    world.assert_same();
    assert_clean(&world.stand_in);
    world.free(control, list);
}

/// The very first step is captured; list, control and kernels are freed, and the graph goes on
/// counting.
#[test]
fn a_graph_outlives_what_it_captured() {
    let mut world = World::new();
    let raw = world.raw();
    let found_inf = Memory::new(&[0.0_f32]);
    let counter = Memory::new(&[0_u64]);
    let sets = [set(0), dualadam_cuda_control_set { step: counter.pointer(), ..set(1) }];
    let control = control(world.kernels, &world.groups(), &sets);
    let mut missing = world.tensors;
    missing[1].grad = ptr::null();
    let list = list(world.kernels, &missing);
    let scalars = dualadam_cuda_scalars { found_inf: found_inf.pointer(), ..scalars() };
    // SAFETY: the structs, the buffers and the stream live until all work has run.
    unsafe {
        let step = || dualadam_cuda_list_step_controlled(list, control, &scalars, raw);
        // A gradient that the list did not have when it was made.
        ok(dualadam_cuda_list_update(list, world.tensors.as_ptr(), 2));
        let nothing = world.capture(|| {
            let captured = DUALADAM_STATUS_CUDA_CAPTURED;
            assert_eq!(dualadam_cuda_control_set_lr(control, 0, 0.1, raw), captured);
            assert_eq!(dualadam_cuda_control_set_config(control, 0, &config(), raw), captured);
            assert_eq!(dualadam_cuda_control_steps(control, [0; 2].as_mut_ptr(), 2, raw), captured);
            assert_eq!(dualadam_cuda_control_set_steps(control, [0; 2].as_ptr(), 2, raw), captured);
            let mut reports = [NO_REPORT; 2];
            assert_eq!(dualadam_cuda_control_report(control, reports.as_mut_ptr(), 32, 2, raw), captured);
            assert_eq!(reports[0].step, 9);
        });
        drop(nothing);
        let graph = world.capture(|| ok(step()));
        assert_eq!(report(control, 2, raw), [(0, 0, 0); 2]);
        graph.launch().unwrap();
        ok(dualadam_cuda_control_set_lr(control, 0, 0.75, raw));
        world.expect([coeffs(&world.configs[0], 1, 1.0), coeffs(&world.configs[1], 1, 1.0)]);
        ok(dualadam_cuda_control_free(control));
        assert_eq!(dualadam_cuda_control_free(control), DUALADAM_STATUS_STALE_HANDLE);
        assert_eq!(step(), DUALADAM_STATUS_STALE_HANDLE);
        ok(dualadam_cuda_list_free(list));
        ok(dualadam_cuda_kernels_free(world.kernels));
        for t in 2..=6 {
            found_inf.write(&[if t == 4 { 1.0_f32 } else { 0.0 }]);
            graph.launch().unwrap();
            let t = if t > 4 { t - 1 } else { t };
            if found_inf.read::<f32>(1)[0] == 0.0 {
                let first = dualadam_config { lr: 0.75, ..world.configs[0] };
                world.expect([coeffs(&first, t, 1.0), coeffs(&world.configs[1], t, 1.0)]);
            }
        }
    }
    world.assert_same();
    assert_eq!(counter.read::<u64>(1)[0], 5);
    assert_eq!(world.stand_in.live("module"), 2);
    assert_clean(&world.stand_in);
}

/// The driver fails between the counters and the tensors.
#[test]
fn an_interrupted_control_says_so_until_its_steps_are_set() {
    let world = World::new();
    let raw = world.raw();
    let (control, list) = world.control_and_list(&world.groups(), &[set(0), set(1)]);
    let mut steps = [9; 2];
    // SAFETY: the structs, the buffers and the stream live until all work has run.
    unsafe {
        let step = || dualadam_cuda_list_step_controlled(list, control, ptr::null(), raw);
        world.stand_in.fail("cuLaunchKernel", 2, 719);
        fails(step(), DUALADAM_STATUS_CUDA_DRIVER, "cuLaunchKernel failed with CUDA_ERROR_LAUNCH_FAILED (719)");
        let interrupted = DUALADAM_STATUS_CUDA_INTERRUPTED;
        assert_eq!(step(), interrupted);
        assert!(last_error().ends_with("they no longer fit the tensors"), "{}", last_error());
        assert_eq!(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, raw), interrupted);
        let mut one = [NO_REPORT; 2];
        assert_eq!(dualadam_cuda_control_report(control, one.as_mut_ptr(), 32, 2, raw), interrupted);
        assert_eq!((one[0].step, steps), (9, [9; 2]));
        ok(dualadam_cuda_control_set_steps(control, [3, 4].as_ptr(), 2, raw));
        ok(step());
        ok(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, raw));
    }
    assert_eq!(steps, [4, 5]);
    assert_clean(&world.stand_in);
    world.free(control, list);
}

//! The CUDA functions whose steps the device controls, on the stand-in driver.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
use dualadam::cuda::cudarc::driver::{CudaContext, CudaGraph, CudaStream, result, sys};
use dualadam_capi::*;
use stand_in_cuda::client::StandIn;

use crate::calls::*;
use crate::cuda::{OnDevice, kernels, start};

fn group(config: &dualadam_config) -> dualadam_cuda_control_group {
    let mut group = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    let mut group = unsafe {
        ok(dualadam_cuda_control_group_init(group.as_mut_ptr(), size_of::<dualadam_cuda_control_group>()));
        group.assume_init()
    };
    group.config = config;
    group
}

fn set(group: usize) -> dualadam_cuda_control_set {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    let mut set = unsafe {
        ok(dualadam_cuda_control_set_init(set.as_mut_ptr(), size_of::<dualadam_cuda_control_set>()));
        set.assume_init()
    };
    set.group = group;
    set
}

fn scalars() -> dualadam_cuda_scalars {
    let mut scalars = std::mem::MaybeUninit::uninit();
    // SAFETY: the struct has that size, and is filled.
    unsafe {
        ok(dualadam_cuda_scalars_init(scalars.as_mut_ptr(), size_of::<dualadam_cuda_scalars>()));
        scalars.assume_init()
    }
}

fn control(
    kernels: dualadam_cuda_kernels,
    groups: &[dualadam_cuda_control_group],
    sets: &[dualadam_cuda_control_set],
) -> dualadam_cuda_control {
    let mut control = 0;
    // SAFETY: the structs and the place are there.
    ok(unsafe {
        dualadam_cuda_control_new(kernels, groups.as_ptr(), groups.len(), sets.as_ptr(), sets.len(), &mut control)
    });
    control
}

fn list(kernels: dualadam_cuda_kernels, tensors: &[dualadam_tensor]) -> dualadam_cuda_list {
    let mut list = 0;
    // SAFETY: the structs and the place are there.
    ok(unsafe { dualadam_cuda_list_new(kernels, tensors.as_ptr(), tensors.len(), &mut list) });
    list
}

/// Updates, skipped steps and the last reason of each set.
fn report(control: dualadam_cuda_control, count: usize, stream: *mut c_void) -> Vec<(u64, u64, u32)> {
    let one = dualadam_cuda_set_report { size: 0, step: 9, skipped: 9, last_skip: 9, reserved: 9 };
    let mut reports = vec![one; count];
    let size = size_of_val(&one);
    // SAFETY: there is room.
    ok(unsafe { dualadam_cuda_control_report(control, reports.as_mut_ptr(), size, count, stream) });
    assert!(reports.iter().all(|report| report.size == size && report.reserved == 0));
    reports.iter().map(|report| (report.step, report.skipped, report.last_skip)).collect()
}

/// The coefficients of each set, without their sizes, as bits.
fn read_coeffs(control: dualadam_cuda_control, count: usize, stream: *mut c_void) -> Vec<[u32; 10]> {
    let mut found = vec![coeffs(&config(), 1, 1.0); count];
    // SAFETY: there is room.
    ok(unsafe { dualadam_cuda_control_coeffs(control, found.as_mut_ptr(), 48, count, stream) });
    assert!(found.iter().all(|found| found.size == 48));
    found.iter().map(bits).collect()
}

fn bits(coeffs: &dualadam_coeffs) -> [u32; 10] {
    let dualadam_coeffs { one_minus_beta1, one_minus_beta2, inv_sqrt_bc2, eps, inverse_eps, .. } = *coeffs;
    let dualadam_coeffs { inverse_scale, adam_scale, decay, l2, grad_scale, .. } = *coeffs;
    [one_minus_beta1, one_minus_beta2, inv_sqrt_bc2, eps, inverse_eps, inverse_scale, adam_scale, decay, l2, grad_scale]
        .map(f32::to_bits)
}

/// A value in device memory. A context must be current.
struct Value(u64);

impl Value {
    fn new<T: bytemuck::Pod>(value: T) -> Self {
        // SAFETY: a context is current.
        let made = Self(unsafe { result::malloc_sync(8) }.unwrap());
        made.write(value);
        made
    }

    /// Waits for everything before.
    fn write<T: bytemuck::Pod>(&self, value: T) {
        // SAFETY: a context is current; the memory is large enough.
        unsafe {
            sys::cuCtxSynchronize().result().unwrap();
            result::memcpy_htod_sync(self.0, &[value]).unwrap();
            sys::cuCtxSynchronize().result().unwrap();
        }
    }

    fn read<T: bytemuck::Pod>(&self) -> T {
        let mut value = [T::zeroed()];
        // SAFETY: a context is current; the memory is large enough.
        unsafe {
            sys::cuCtxSynchronize().result().unwrap();
            result::memcpy_dtoh_sync(&mut value, self.0).unwrap();
        }
        value[0]
    }

    fn pointer<T>(&self) -> *mut T {
        ptr::without_provenance_mut(self.0 as usize)
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: a context is current, and nothing uses the memory any more.
        unsafe { result::free_sync(self.0) }.unwrap();
    }
}

fn assert_clean(stand_in: &StandIn) {
    assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
}

/// What a test is about: a device, a stream, kernels, two tensors of two sets there and on the
/// host.
struct World {
    host: [Buffers; 2],
    device: [OnDevice; 2],
    tensors: [dualadam_tensor; 2],
    configs: [dualadam_config; 2],
    kernels: dualadam_cuda_kernels,
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    stand_in: StandIn,
}

impl World {
    fn new() -> Self {
        let stand_in = start();
        let context = CudaContext::new(0).unwrap();
        let stream = context.new_stream().unwrap();
        let host = [Buffers::new(0, 1000), Buffers::new(1, 37)];
        let device = host.each_ref().map(OnDevice::new);
        let mut tensors = device.each_ref().map(OnDevice::tensor);
        tensors[1].coeffs_index = 1;
        let first = dualadam_config { switching_rate: 0.25, ..config() };
        let (weight_decay_kind, weight_decay) = (DUALADAM_DECAY_DECOUPLED, 0.1);
        let configs = [first, dualadam_config { weight_decay_kind, weight_decay, lr: 0.5, ..first }];
        Self { host, device, tensors, configs, kernels: kernels(), stream, context, stand_in }
    }

    fn raw(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    fn groups(&self) -> [dualadam_cuda_control_group; 2] {
        self.configs.each_ref().map(group)
    }

    /// The step on the CPU.
    fn expect(&mut self, sets: [dualadam_coeffs; 2]) {
        let mut tensors = self.host.each_mut().map(Buffers::tensor);
        tensors[1].coeffs_index = 1;
        // SAFETY: the structs and the buffers are there.
        ok(unsafe { dualadam_cpu_step_list(tensors.as_ptr(), 2, sets.as_ptr(), 2) });
    }

    #[track_caller]
    fn assert_same(&self) {
        assert!(self.device.each_ref().map(OnDevice::read) == self.host);
    }

    fn capture(&self, work: impl FnOnce()) -> CudaGraph {
        self.stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
        work();
        self.stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap().unwrap()
    }
}

/// Through the switch, with learning rates and a counter in the caller's memory and in the
/// control's, and with steps that are skipped.
#[test]
fn controlled_steps_have_the_bits_of_the_cpu() {
    let mut world = World::new();
    let raw = world.raw();
    let (lr, counter) = (Value::new(0.25_f32), Value::new(4_u64));
    let values = [8.0_f32, 0.5, 0.0].map(Value::new);
    let mut groups = world.groups();
    groups[1].lr_f32 = lr.pointer();
    let sets = [set(0), dualadam_cuda_control_set { step: counter.pointer(), ..set(1) }];
    let control = control(world.kernels, &groups, &sets);
    let list = list(world.kernels, &world.tensors);
    let [loss_scale, clip_factor, found_inf] = values.each_ref().map(|value| value.pointer::<f32>().cast_const());
    let scalars = dualadam_cuda_scalars { loss_scale, clip_factor, found_inf, ..scalars() };
    assert_eq!(report(control, 2, raw), [(0, 0, 0), (4, 0, 0)]);
    assert_eq!(read_coeffs(control, 2, raw), [[0; 10]; 2]);

    // SAFETY: the structs, the buffers and the stream are there until all has run.
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
    assert_eq!(counter.read::<u64>(), 10);

    // Each reason; the smallest number where there are several.
    let skips = [
        (2, f32::NAN, DUALADAM_SKIP_FOUND_INF),
        (0, 0.0, DUALADAM_SKIP_LOSS_SCALE),
        (1, -1.0, DUALADAM_SKIP_CLIP_FACTOR),
        (1, f32::MAX, DUALADAM_SKIP_MULTIPLIER),
    ];
    values[0].write(0.5_f32);
    for (skipped, (place, value, reason)) in (1..).zip(skips) {
        let before: f32 = values[place].read();
        values[place].write(value);
        ok(step(&scalars));
        assert_eq!(report(control, 2, raw), [(6, skipped, reason), (10, skipped, reason)]);
        values[place].write(before);
    }
    lr.write(f32::INFINITY);
    let full = [u64::MAX, 10];
    // SAFETY: the numbers are there.
    ok(unsafe { dualadam_cuda_control_set_steps(control, full.as_ptr(), 2, raw) });
    ok(step(&scalars));
    assert_eq!(report(control, 2, raw), [(u64::MAX, 5, DUALADAM_SKIP_STEP), (10, 5, DUALADAM_SKIP_LR)]);
    world.assert_same();

    // Changes: lr and the whole config, and back to the first steps.
    let third = dualadam_config { beta1: 0.5, lr: 0.125, ..world.configs[0] };
    let mut found = config();
    let mut steps = [9; 2];
    // SAFETY: the structs and the numbers are there.
    unsafe {
        ok(dualadam_cuda_control_set_steps(control, [6, 10].as_ptr(), 2, raw));
        ok(dualadam_cuda_control_set_config(control, 1, &third, raw));
        ok(dualadam_cuda_control_set_lr(control, 0, 0.75, raw));
        ok(dualadam_cuda_control_config(control, 0, &mut found, size_of::<dualadam_config>()));
        assert_eq!((found.lr, found.switching_rate, found.size), (0.75, 0.25, size_of::<dualadam_config>()));
        lr.write(2.0_f32);
        ok(step(ptr::null()));
        ok(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, raw));
    }
    assert_eq!(steps, [7, 11]);
    let first = dualadam_config { lr: 0.75, ..world.configs[0] };
    world.expect([coeffs(&first, 7, 1.0), coeffs(&dualadam_config { lr: 2.0, ..third }, 11, 1.0)]);
    world.assert_same();

    ok(dualadam_cuda_control_free(control));
    ok(dualadam_cuda_list_free(list));
    ok(dualadam_cuda_kernels_free(world.kernels));
    // The modules are the context's, which this test holds.
    assert_eq!((world.stand_in.live("module"), world.stand_in.live("pinned")), (2, 0));
    assert_clean(&world.stand_in);
}

/// A lr of type double in the caller's memory.
#[test]
fn the_lr_may_be_a_double() {
    let mut world = World::new();
    let lr = Value::new(0.1_f64);
    let mut groups = world.groups();
    groups[1].lr_f64 = lr.pointer();
    let control = control(world.kernels, &groups, &[set(0), set(1)]);
    let list = list(world.kernels, &world.tensors);
    // SAFETY: the buffers and the stream are there until all has run.
    ok(unsafe { dualadam_cuda_list_step_controlled(list, control, ptr::null(), world.raw()) });
    let second = dualadam_config { lr: 0.1, ..world.configs[1] };
    world.expect([coeffs(&world.configs[0], 1, 1.0), coeffs(&second, 1, 1.0)]);
    world.assert_same();
    assert_clean(&world.stand_in);
    ok(dualadam_cuda_control_free(control));
    ok(dualadam_cuda_list_free(list));
    ok(dualadam_cuda_kernels_free(world.kernels));
}

/// The very first step is captured; list, control and kernels are freed, and the graph goes on
/// counting.
#[test]
fn a_graph_outlives_what_it_captured() {
    let mut world = World::new();
    let raw = world.raw();
    let found_inf = Value::new(0.0_f32);
    let counter = Value::new(0_u64);
    let sets = [set(0), dualadam_cuda_control_set { step: counter.pointer(), ..set(1) }];
    let control = control(world.kernels, &world.groups(), &sets);
    let mut missing = world.tensors;
    missing[1].grad = ptr::null();
    let list = list(world.kernels, &missing);
    let scalars = dualadam_cuda_scalars { found_inf: found_inf.pointer(), ..scalars() };
    // SAFETY: the structs, the buffers and the stream are there until all has run.
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
            let mut reports = [dualadam_cuda_set_report { size: 0, step: 9, skipped: 9, last_skip: 9, reserved: 9 }; 2];
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
            found_inf.write(if t == 4 { 1.0_f32 } else { 0.0 });
            graph.launch().unwrap();
            let t = if t > 4 { t - 1 } else { t };
            if found_inf.read::<f32>() == 0.0 {
                let first = dualadam_config { lr: 0.75, ..world.configs[0] };
                world.expect([coeffs(&first, t, 1.0), coeffs(&world.configs[1], t, 1.0)]);
            }
        }
    }
    world.assert_same();
    assert_eq!(counter.read::<u64>(), 5);
    assert_eq!(world.stand_in.live("module"), 2);
    assert_clean(&world.stand_in);
}

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
        fails(new(g, 1, s, 2), DUALADAM_STATUS_POSITION, "group must be below 1, got 1");
        fails(new(ptr::null(), 1, s, 2), DUALADAM_STATUS_NULL, "groups[0] must not be null");
        fails(new(g, 2, ptr::null(), 1), DUALADAM_STATUS_NULL, "sets[0] must not be null");
        let many = new(g, 2, s, usize::MAX);
        assert_eq!(many, DUALADAM_STATUS_TOO_MANY, "{}", last_error());
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
        let text = "lr must be finite and at least 0, got -1.0";
        bad(&dualadam_config { lr: -1.0, ..config() }, DUALADAM_STATUS_VALUE, text);

        let address = DUALADAM_STATUS_CUDA_ADDRESS;
        let at = |address: usize| ptr::without_provenance_mut::<c_void>(address);
        let step = |address| dualadam_cuda_control_set { step: at(address).cast(), ..set(0) };
        let text = "step of set 0 must be aligned to 8 bytes, got address 0x1004";
        fails(new(g, 2, &step(0x1004), 1), address, text);
        let text = "step of set 0 must not overlap step of set 1, got address 0x1008";
        fails(new(g, 2, [step(0x1008); 2].as_ptr(), 2), address, text);
        groups[0].lr_f32 = at(0x1002).cast();
        let text = "lr of group 0 must be aligned to 4 bytes, got address 0x1002";
        fails(new(groups.as_ptr(), 2, s, 2), address, text);
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
    let lr = Value::new(0.25_f32);
    let mut groups = world.groups();
    groups[1].lr_f32 = lr.pointer();
    let control = control(kernels, &groups, &sets);
    let list = list(kernels, &world.tensors);
    let mut one = dualadam_cuda_set_report { size: 32, step: 9, skipped: 9, last_skip: 9, reserved: 9 };
    let (mut steps, mut made, mut found) = ([9; 3], coeffs(&config(), 1, 1.0), config());
    // SAFETY: as above.
    unsafe {
        let set_lr = |group, lr| dualadam_cuda_control_set_lr(control, group, lr, raw);
        fails(set_lr(2, 0.1), DUALADAM_STATUS_POSITION, "group must be below 2, got 2");
        let text = "lr must be finite and at least 0, got NaN";
        fails(set_lr(0, f64::NAN), DUALADAM_STATUS_VALUE, text);
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
        let odd = (&raw const wrong).wrapping_byte_add(4);
        assert_eq!(step(list, control, odd), DUALADAM_STATUS_MISALIGNED);
        let text = format!("control must be a handle of a CUDA control, got {list:#x}, which is one of a CUDA list");
        fails(step(list, list, ptr::null()), DUALADAM_STATUS_HANDLE_KIND, &text);
        let text = format!("list must be a handle of a CUDA list, got {control:#x}, which is one of a CUDA control");
        fails(step(control, control, ptr::null()), DUALADAM_STATUS_HANDLE_KIND, &text);
        assert_eq!(dualadam_cuda_control_free(list), DUALADAM_STATUS_HANDLE_KIND);
        assert_eq!(dualadam_cuda_list_free(control), DUALADAM_STATUS_HANDLE_KIND);

        let small = self::control(kernels, &groups, &sets[..1]);
        let text = "tensor 1 must have a coeffs_index below 1, got 1";
        fails(step(list, small, ptr::null()), DUALADAM_STATUS_INDEX, text);
        ok(dualadam_cuda_control_free(small));

        world.stand_in.set("devices", 2);
        let other = CudaContext::new(1).unwrap();
        let foreign = other.new_stream().unwrap();
        other.bind_to_thread().unwrap();
        let mut kernels_there = 0;
        ok(dualadam_cuda_kernels_in_current_context(&mut kernels_there));
        let there = self::control(kernels_there, &world.groups(), &sets);
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
    ok(dualadam_cuda_control_free(control));
    ok(dualadam_cuda_list_free(list));
    ok(dualadam_cuda_kernels_free(kernels));
    // SAFETY: the structs are there; all handles are stale.
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

/// The driver fails between the counters and the tensors.
#[test]
fn an_interrupted_control_says_so_until_its_steps_are_set() {
    let world = World::new();
    let raw = world.raw();
    let control = control(world.kernels, &world.groups(), &[set(0), set(1)]);
    let list = list(world.kernels, &world.tensors);
    let mut steps = [9; 2];
    // SAFETY: the structs, the buffers and the stream are there until all has run.
    unsafe {
        let step = || dualadam_cuda_list_step_controlled(list, control, ptr::null(), raw);
        world.stand_in.fail("cuLaunchKernel", 2, 719);
        fails(step(), DUALADAM_STATUS_CUDA_DRIVER, "cuLaunchKernel failed with CUDA_ERROR_LAUNCH_FAILED (719)");
        let interrupted = DUALADAM_STATUS_CUDA_INTERRUPTED;
        assert_eq!(step(), interrupted);
        assert!(last_error().ends_with("its step counters no longer fit the tensors"), "{}", last_error());
        assert_eq!(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, raw), interrupted);
        let mut one = [dualadam_cuda_set_report { size: 32, step: 9, skipped: 9, last_skip: 9, reserved: 9 }; 2];
        assert_eq!(dualadam_cuda_control_report(control, one.as_mut_ptr(), 32, 2, raw), interrupted);
        assert_eq!((one[0].step, steps), (9, [9; 2]));
        ok(dualadam_cuda_control_set_steps(control, [3, 4].as_ptr(), 2, raw));
        ok(step());
        ok(dualadam_cuda_control_steps(control, steps.as_mut_ptr(), 2, raw));
    }
    assert_eq!(steps, [4, 5]);
    assert_clean(&world.stand_in);
    ok(dualadam_cuda_control_free(control));
    ok(dualadam_cuda_list_free(list));
    ok(dualadam_cuda_kernels_free(world.kernels));
}

/// Threads with a list and a control of their own, which all also step the same list with the same
/// control and ask for its report; a control that all of them free is freed once.
#[test]
fn threads_share_a_control() {
    const THREADS: usize = 4;
    const STEPS: u64 = 8;
    let stand_in = start();
    let context = CudaContext::new(0).unwrap();
    let kernels = kernels();
    let host: [Buffers; THREADS + 1] = std::array::from_fn(|i| Buffers::new(i, 40 + i));
    let device = host.each_ref().map(OnDevice::new);
    let config = config();
    let shared_control = control(kernels, &[group(&config)], &[set(0)]);
    let shared_list = list(kernels, &[device[THREADS].tensor()]);
    let places = device.each_ref().map(|device| (device.addresses, device.len));
    let freed: usize = std::thread::scope(|scope| {
        let work = |(addresses, len)| {
            move || {
                let on_device = std::mem::ManuallyDrop::new(OnDevice { addresses, len });
                let own = control(kernels, &[group(&config)], &[set(0)]);
                let list = list(kernels, &[on_device.tensor()]);
                let stream = ptr::null_mut();
                for t in 1..=STEPS {
                    // SAFETY: the buffers are there; all is in the order of the default stream.
                    unsafe {
                        ok(dualadam_cuda_list_step_controlled(list, own, ptr::null(), stream));
                        ok(dualadam_cuda_list_step_controlled(shared_list, shared_control, ptr::null(), stream));
                        ok(dualadam_cuda_control_set_lr(shared_control, 0, 1e-3, stream));
                    }
                    assert_eq!(report(own, 1, stream), [(t, 0, 0)]);
                    assert!(report(shared_control, 1, stream)[0].0 >= t);
                }
                ok(dualadam_cuda_control_free(own));
                assert_eq!(dualadam_cuda_control_free(own), DUALADAM_STATUS_STALE_HANDLE);
                ok(dualadam_cuda_list_free(list));
            }
        };
        let threads: Vec<_> = places[..THREADS].iter().map(|&place| scope.spawn(work(place))).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(report(shared_control, 1, ptr::null_mut()), [(THREADS as u64 * STEPS, 0, 0)]);
        let free = || usize::from(dualadam_cuda_control_free(shared_control) == DUALADAM_STATUS_OK);
        let threads = [(); THREADS].map(|()| scope.spawn(free));
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(freed, 1);
    let mut host = host;
    for (index, host) in host.iter_mut().enumerate() {
        let steps = if index == THREADS { THREADS as u64 * STEPS } else { STEPS };
        // SAFETY: the structs and the buffers are there.
        (1..=steps).for_each(|t| ok(unsafe { dualadam_cpu_step(&host.tensor(), &coeffs(&config, t, 1.0)) }));
    }
    context.bind_to_thread().unwrap();
    assert!(device.each_ref().map(OnDevice::read) == host);
    ok(dualadam_cuda_list_free(shared_list));
    ok(dualadam_cuda_kernels_free(kernels));
    drop(device);
    assert_clean(&stand_in);
}

//! What is left when something fails or ends early: nothing, and nothing that is still in use is gone.

use dualadam::cuda::cudarc::driver::result;
use dualadam::cuda::cudarc::driver::sys::{self, CUresult};
use dualadam::cuda::{Control, ControlGroup, ControlSet, CudaError, DualAdam, Kernels, RawScalars, TensorList};
use dualadam::{DualAdamConfig, State, TensorSpec};

use crate::bodies::buffers::{COMBINATIONS, Device, Host};
use crate::bodies::control::{Run, switching};
use crate::bodies::gpu::Gpu;
use crate::bodies::graphs::step_on;
use crate::common::data::Inputs;
use crate::failures::{self, at_each_call, stand_in};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["leaks":
    nothing_is_left_of_what_could_not_be_made,
    what_could_not_be_sent_is_dropped_at_once,
    sources_may_go_when_a_call_returns,
    streams_may_end_before_what_used_them,
    a_counter_that_could_not_be_awaited_is_dropped_at_once,
    nothing_is_left_of_lives_that_end_while_steps_are_to_come,
];

/// A tensor, and nothing that the library makes.
struct World {
    device: Device,
    host: Host,
    gpu: Gpu,
}

impl World {
    fn new() -> Self {
        let gpu = failures::gpu();
        let host = Host::new(COMBINATIONS[8], &Inputs::random(1, 300), [0; 5], 0);
        let device = host.upload(&gpu);
        Self { device, host, gpu }
    }
}

type Maker = fn(&World) -> Result<(), CudaError>;

fn make_list(world: &World) -> Result<(), CudaError> {
    TensorList::new(&world.gpu.kernels, &[world.device.raw(&world.host)]).map(drop)
}

fn make_control(world: &World) -> Result<(), CudaError> {
    let group = ControlGroup::new(DualAdamConfig::default());
    Control::new(&world.gpu.kernels, &[group], &[ControlSet::new(0)]).map(drop)
}

fn state() -> State {
    let mut state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(300).with_master()]).unwrap();
    state.arrays[0].exp_avg.fill(0.25);
    state.arrays[0].exp_avg_sq.fill(0.5);
    state
}

/// From a state, with device control, prepared for a capture.
fn make_optimizer(world: &World) -> Result<(), CudaError> {
    let optimizer = DualAdam::from_state(&world.gpu.kernels, &world.gpu.stream, &state())?;
    let mut optimizer = optimizer.into_capturable()?;
    let raw = world.device.raw(&world.host);
    optimizer.prepare_raw(&[raw.param], &[Some(raw.grad)])
}

/// At each call that fails: what was made is counted once all is dropped, made again and dropped again.
fn nothing_is_left_of_what_could_not_be_made() {
    for make in [make_list, make_control, make_optimizer] as [Maker; 3] {
        let settle = |world: &World| {
            for _ in 0..2 {
                make(world).unwrap();
                world.gpu.context.synchronize().unwrap();
            }
            ["memory", "pinned", "event", "stream", "module"].map(|kind| stand_in(&world.gpu).live(kind))
        };
        let mut failures = 0;
        let prepare = || {
            let world = World::new();
            let counts = settle(&world);
            (counts, world)
        };
        let verify = |(before, world): ([u64; 5], World), result: Result<(), CudaError>| {
            // Where all was made, the call that failed was one that frees. Memory is kept whose upload could not be waited for.
            if let Err(error) = &result {
                failures += 1;
                let mut after = settle(&world);
                let may_be_kept = matches!(error, CudaError::Driver { call: "cuStreamSynchronize", .. });
                after[0] -= u64::from(may_be_kept && after[0] > before[0]);
                assert_eq!(after, before, "{error:?}");
            }
            world.gpu.assert_clean();
        };
        at_each_call(prepare, |(_, world)| &world.gpu, |(_, world)| make(world), verify);
        assert!(failures >= 10, "{failures}");
    }
}

/// A step that fails may have sent something. Nobody waits for it before list and control are dropped and their memory is used anew.
fn what_could_not_be_sent_is_dropped_at_once() {
    let prepare = || {
        let gpu = failures::gpu();
        let mut run = Run::new(&gpu, &[300, 5, 17], &switching());
        step_on(&gpu.stream, &mut run, RawScalars::default());
        gpu.context.synchronize().unwrap();
        let mut raw = run.raw();
        // Which sets are active changes, too.
        raw[0].grad.address = 0;
        run.list.update(&raw).unwrap();
        (run, gpu)
    };
    let work = |(run, gpu): &mut (Run, Gpu)| {
        // SAFETY: the stand-in checks each access.
        unsafe { run.list.step_controlled(&mut run.control, &RawScalars::default(), gpu.raw_stream()) }
    };
    let verify = |(run, gpu): (Run, Gpu), _: Result<(), CudaError>| {
        let Run { list, control, devices, .. } = run;
        drop((list, control));
        drop(Run::new(&gpu, &[300, 5, 17], &switching()));
        gpu.context.synchronize().unwrap();
        gpu.assert_clean();
        drop(devices);
    };
    at_each_call(prepare, |(_, gpu)| gpu, work, verify);
}

/// The driver reads what the library gives it only when the copy runs. By then the library's sources are gone, unless it waits.
fn sources_may_go_when_a_call_returns() {
    let World { gpu, device, mut host } = World::new();
    stand_in(&gpu).set("reads_pageable_late", 1);
    let config = [DualAdamConfig::default()];
    let mut optimizer = {
        let mut state = state();
        let made = DualAdam::from_state(&gpu.kernels, &gpu.stream, &state).unwrap();
        state.arrays[0].exp_avg.fill(f32::NAN);
        made
    };
    assert_eq!(optimizer.state().unwrap(), state());
    let (mut exp_avg, mut exp_avg_sq) = (vec![0.125; 300], vec![0.75; 300]);
    optimizer.set_moments(0, 5, &exp_avg, &exp_avg_sq).unwrap();
    exp_avg.fill(f32::NAN);
    exp_avg_sq.fill(f32::NAN);
    let mut optimizer = optimizer.into_capturable().unwrap();
    optimizer.set_config(0, config[0].with_lr(0.5)).unwrap();
    let found = optimizer.state().unwrap();
    let (step, tensor) = (found.ledger.step(0).unwrap(), &found.arrays[0]);
    assert_eq!((step, &tensor.exp_avg, &tensor.exp_avg_sq), (5, &vec![0.125; 300], &vec![0.75; 300]));
    assert_eq!(found.ledger.groups(), [config[0].with_lr(0.5)]);

    let raw = device.raw(&host);
    let mut list = TensorList::new(&gpu.kernels, &[raw]).unwrap();
    let coeffs = [config[0].coeffs(1).unwrap()];
    // SAFETY: the stand-in checks each access.
    unsafe { list.step_raw(&coeffs, gpu.raw_stream()) }.unwrap();
    host.step(&coeffs);
    stand_in(&gpu).set("reads_pageable_late", 0);
    device.assert_same(&gpu, &host, "a list");
    gpu.assert_clean();
}

/// Whoever made the stream destroys it while steps are to come, and then drops what made them.
fn streams_may_end_before_what_used_them() {
    let World { gpu, device, mut host } = World::new();
    let mut stream = std::ptr::null_mut();
    // SAFETY: a place for the handle; 1 is for a stream that the null stream does not wait for.
    assert_eq!(unsafe { sys::cuStreamCreate(&mut stream, 1) }, CUresult::CUDA_SUCCESS);
    gpu.context.synchronize().unwrap();
    let raw = device.raw(&host);
    let others = host.upload(&gpu);
    let other = others.raw(&host);
    let mut list = TensorList::new(&gpu.kernels, &[raw]).unwrap();
    let coeffs = [DualAdamConfig::default().coeffs(1).unwrap()];
    // SAFETY: the stream lives until it is destroyed below.
    let borrowed = unsafe { gpu.context.wrap_borrowed_stream(stream) };
    let layout = [TensorSpec::new(300).with_master()];
    let mut optimizer = DualAdam::with_groups(&gpu.kernels, &borrowed, &[DualAdamConfig::default()], &layout).unwrap();
    // SAFETY: the stand-in checks each access.
    unsafe {
        list.step_raw(&coeffs, stream.cast()).unwrap();
        optimizer.step_raw(&[other.param], &[Some(other.grad)], 1.0).unwrap();
        result::stream::destroy(stream).unwrap();
    }
    let pending = stand_in(&gpu).pending();
    drop((list, optimizer, borrowed));
    assert!(pending > 0 && stand_in(&gpu).pending() >= pending, "nothing waits");
    drop(TensorList::new(&gpu.kernels, &[raw]).unwrap());
    gpu.context.synchronize().unwrap();
    host.step(&coeffs);
    device.assert_same(&gpu, &host, "after the end");
    gpu.assert_clean();
}

/// The counter's upload is enqueued, and its wait fails; then the optimizer is dropped.
fn a_counter_that_could_not_be_awaited_is_dropped_at_once() {
    let World { gpu, device, host } = World::new();
    let raw = device.raw(&host);
    // The waits for the moments, and that for the counter.
    for nth in 1..=3 {
        let layout = [TensorSpec::new(300).with_master()];
        let optimizer =
            DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[DualAdamConfig::default()], &layout).unwrap();
        let mut optimizer = optimizer.into_capturable().unwrap();
        // SAFETY: the stand-in checks each access.
        unsafe { optimizer.step_raw(&[raw.param], &[Some(raw.grad)], &RawScalars::default()) }.unwrap();
        gpu.context.synchronize().unwrap();
        stand_in(&gpu).fail("cuStreamSynchronize", nth, failures::CODE);
        assert!(optimizer.set_moments(0, 7, &[0.5; 300], &[0.5; 300]).is_err(), "wait {nth}");
        drop(optimizer);
        // The device may do the frees before the copies that nothing orders before them.
        drop(TensorList::new(&gpu.kernels, &[raw]).unwrap());
        stand_in(&gpu).run_pending();
        assert!(stand_in(&gpu).violations().is_empty(), "wait {nth}: {:#?}", stand_in(&gpu).violations());
    }
    gpu.assert_clean();
}

/// Optimizer and kernels are dropped while the last step is to come; the context is somebody else's, and stays.
fn nothing_is_left_of_lives_that_end_while_steps_are_to_come() {
    for pools in [1, 0] {
        let stand_in = failures::start();
        stand_in.set_attribute(115, pools);
        let gpu = Gpu::new(Some(stand_in));
        let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 30), [0; 5], 0);
        let device = host.upload(&gpu);
        let raw = device.raw(&host);
        let Gpu { kernels, stream, context, stand_in } = gpu;
        drop(kernels);
        let stand_in = stand_in.unwrap();
        let before = stand_in.live("memory");
        for _ in 0..4 {
            let kernels = Kernels::new(0).unwrap();
            let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[30]).unwrap();
            // SAFETY: the stand-in checks each access.
            unsafe { optimizer.step_raw(&[raw.param], &[Some(raw.grad)], 1.0) }.unwrap();
            drop((optimizer, kernels));
            context.synchronize().unwrap();
            assert_eq!(stand_in.live("memory"), before, "pools: {pools}");
        }
        let gpu = Gpu { kernels: Kernels::new(0).unwrap(), stream, context, stand_in: Some(stand_in) };
        drop(device);
        gpu.assert_clean();
    }
}

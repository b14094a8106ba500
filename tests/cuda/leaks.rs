//! Failures and early ends leak nothing, and free nothing that is still in use.

use dualadam::cuda::cudarc::driver::result;
use dualadam::cuda::cudarc::driver::sys::{self, CUresult};
use dualadam::cuda::{Control, ControlGroup, ControlSet, CudaError, DualAdam, Kernels, RawScalars, TensorList};
use dualadam::{DualAdamConfig, State, TensorSpec};

use crate::bodies::{Gpu, Run, Twin, step_owner, switching};
use crate::failures::{self, at_each_call};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["leaks":
    failed_constructors_leak_nothing,
    lists_and_controls_may_be_dropped_after_a_failed_step,
    optimizers_dropped_while_steps_are_pending_leak_nothing,
    ; on a device:
    sources_may_go_when_a_call_returns,
    streams_may_end_before_what_used_them,
    a_counter_that_could_not_be_awaited_is_dropped_at_once,
];

fn spec() -> TensorSpec {
    TensorSpec::new(300).with_master()
}

fn state() -> State {
    let mut state = State::new(&[DualAdamConfig::default()], &[spec()]).unwrap();
    state.arrays[0].exp_avg.fill(0.25);
    state.arrays[0].exp_avg_sq.fill(0.5);
    state
}

/// At each call that fails: objects are counted after all is dropped, made again and dropped again.
fn failed_constructors_leak_nothing() {
    let group = || ControlGroup::new(DualAdamConfig::default());
    type Maker<'a> = &'a dyn Fn(&Twin, &Gpu) -> Result<(), CudaError>;
    let makers: [Maker<'_>; 3] = [
        &|twin, gpu| TensorList::new(&gpu.kernels, &[twin.raw()]).map(drop),
        &|_, gpu| Control::new(&gpu.kernels, &[group()], &[ControlSet::new(0)]).map(drop),
        // An optimizer from a state, made capturable and prepared for a capture.
        &|twin, gpu| {
            let mut optimizer = DualAdam::from_state(&gpu.kernels, &gpu.stream, &state())?.into_capturable()?;
            let raw = twin.raw();
            optimizer.prepare_raw(&[raw.param], &[Some(raw.grad)])
        },
    ];
    for make in makers {
        let settle = |(twin, gpu): &(Twin, Gpu)| {
            for _ in 0..2 {
                make(twin, gpu).unwrap();
                gpu.context.synchronize().unwrap();
            }
            ["memory", "pinned", "event", "stream", "module"].map(|kind| gpu.stand_in().live(kind))
        };
        let mut failures = 0;
        let prepare = || {
            let gpu = failures::gpu();
            let world = (Twin::of(&gpu, "bf16_bf16_master", 300), gpu);
            (settle(&world), world)
        };
        let verify = |(before, world): ([u64; 5], (Twin, Gpu)), result: Result<(), CudaError>| {
            // If making succeeded, the call that failed was one that frees. If the wait for an
            // upload failed, its memory is kept.
            if let Err(error) = &result {
                failures += 1;
                let mut after = settle(&world);
                let may_be_kept = matches!(error, CudaError::Driver { call: "cuStreamSynchronize", .. });
                after[0] -= u64::from(may_be_kept && after[0] > before[0]);
                assert_eq!(after, before, "{error:?}");
            }
            world.1.assert_clean();
        };
        at_each_call("*", prepare, |(_, (_, gpu))| gpu.stand_in(), |(_, (twin, gpu))| make(twin, gpu), verify);
        assert!(failures >= 10, "{failures}");
    }
}

/// A step that fails may have enqueued copies. List and control are dropped, and their memory is
/// used again, without a wait for them.
fn lists_and_controls_may_be_dropped_after_a_failed_step() {
    let prepare = || {
        let gpu = failures::gpu();
        let mut run = Run::new(&gpu, &[300, 5, 17], &switching());
        run.launch(&gpu.stream);
        gpu.context.synchronize().unwrap();
        // The active sets change, too.
        run.leave_out(|tensor| tensor == 0).unwrap();
        (run, gpu)
    };
    let work = |(run, gpu): &mut (Run, Gpu)| run.try_launch(&gpu.stream, RawScalars::default());
    let verify = |(run, gpu): (Run, Gpu), _: Result<(), CudaError>| {
        let Run { list, control, twins, .. } = run;
        drop((list, control));
        drop(Run::new(&gpu, &[300, 5, 17], &switching()));
        gpu.context.synchronize().unwrap();
        gpu.assert_clean();
        drop(twins);
    };
    at_each_call("*", prepare, |(_, gpu)| gpu.stand_in(), work, verify);
}

/// The driver reads the source of a copy only when the copy runs. By then the library's source is
/// gone, unless the library waits.
fn sources_may_go_when_a_call_returns(gpu: &Gpu) {
    let mut twin = Twin::of(gpu, "bf16_bf16_master", 300);
    gpu.stand_in().set("reads_pageable_late", 1);
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

    let mut list = gpu.list(std::slice::from_ref(&twin));
    let coeffs = [config[0].coeffs(1).unwrap()];
    gpu.step_list(&mut list, &coeffs).unwrap();
    twin.expect(&coeffs);
    gpu.stand_in().set("reads_pageable_late", 0);
    twin.assert_same(gpu, "a list");
}

/// A program destroys its stream while steps are pending, and then drops the objects that made
/// them.
fn streams_may_end_before_what_used_them(gpu: &Gpu) {
    let mut twin = Twin::of(gpu, "bf16_bf16_master", 300);
    let mut stream = std::ptr::null_mut();
    // SAFETY: the pointer is to a local variable; 1 makes a stream that the null stream does not
    // wait for.
    assert_eq!(unsafe { sys::cuStreamCreate(&mut stream, 1) }, CUresult::CUDA_SUCCESS);
    gpu.context.synchronize().unwrap();
    let other = Twin::new(gpu, twin.host.clone());
    let raw = twin.raw();
    let mut list = TensorList::new(&gpu.kernels, &[raw]).unwrap();
    let coeffs = [DualAdamConfig::default().coeffs(1).unwrap()];
    // SAFETY: the stream lives until it is destroyed below.
    let borrowed = unsafe { gpu.context.wrap_borrowed_stream(stream) };
    let mut optimizer =
        DualAdam::with_groups(&gpu.kernels, &borrowed, &[DualAdamConfig::default()], &[spec()]).unwrap();
    // SAFETY: the stand-in checks each access.
    unsafe {
        list.step_raw(&coeffs, stream.cast()).unwrap();
        step_owner(&mut optimizer, &other.raw()).unwrap();
        result::stream::destroy(stream).unwrap();
    }
    let pending = gpu.stand_in().pending();
    drop((list, optimizer, borrowed));
    assert!(pending > 0 && gpu.stand_in().pending() >= pending, "nothing is pending");
    drop(TensorList::new(&gpu.kernels, &[raw]).unwrap());
    gpu.context.synchronize().unwrap();
    twin.expect(&coeffs);
    twin.assert_same(gpu, "after the end");
}

/// The counter's upload is enqueued, and the wait for it fails; then the optimizer is dropped.
fn a_counter_that_could_not_be_awaited_is_dropped_at_once(gpu: &Gpu) {
    let twin = Twin::of(gpu, "bf16_bf16_master", 300);
    let raw = twin.raw();
    // The waits for the moments, and that for the counter.
    for nth in 1..=3 {
        let mut optimizer = gpu.optimizer(&[spec()]).unwrap().into_capturable().unwrap();
        step_owner(&mut optimizer, &raw).unwrap();
        gpu.context.synchronize().unwrap();
        gpu.stand_in().fail("cuStreamSynchronize", nth, failures::CODE);
        assert!(optimizer.set_moments(0, 7, &[0.5; 300], &[0.5; 300]).is_err(), "wait {nth}");
        drop(optimizer);
        // Nothing orders these copies before the frees, so the device may free first.
        drop(TensorList::new(&gpu.kernels, &[raw]).unwrap());
        gpu.stand_in().run_pending();
        assert!(gpu.stand_in().violations().is_empty(), "wait {nth}: {:#?}", gpu.stand_in().violations());
    }
}

/// Optimizer and kernels are dropped while the last step is pending. Another owner keeps the
/// context alive.
fn optimizers_dropped_while_steps_are_pending_leak_nothing() {
    for pools in [1, 0] {
        let gpu = failures::gpu_with_pools(pools);
        let twin = Twin::of(&gpu, "f32_f32", 30);
        let raw = twin.raw();
        let Gpu { kernels, stream, context, stand_in } = gpu;
        drop(kernels);
        let stand_in = stand_in.unwrap();
        let before = stand_in.live("memory");
        for _ in 0..4 {
            let kernels = Kernels::new(0).unwrap();
            let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[30]).unwrap();
            step_owner(&mut optimizer, &raw).unwrap();
            drop((optimizer, kernels));
            context.synchronize().unwrap();
            assert_eq!(stand_in.live("memory"), before, "pools: {pools}");
        }
        let gpu = Gpu { kernels: Kernels::new(0).unwrap(), stream, context, stand_in: Some(stand_in) };
        drop(twin);
        gpu.assert_clean();
    }
}

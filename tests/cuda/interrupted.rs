//! Controlled steps with a driver that fails: at each call in turn.

use dualadam::cuda::{CudaError, DualAdam, RawScalars, Scalars};
use dualadam::{DualAdamConfig, TensorSpec, cpu};

use crate::bodies::control::{Run, report, step, switching};
use crate::bodies::gpu::Gpu;
use crate::common::data::{Inputs, narrow};
use crate::failures::{self, CODE, at_each_call, is_of_the_driver, stand_in};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["interrupted":
    controlled_lists_fail_with_the_drivers_code_at_every_call_and_say_what_holds,
    an_interrupted_control_goes_on_when_its_steps_are_set,
    changes_of_a_control_fail_with_the_drivers_code_at_every_call,
    a_change_that_failed_is_not_remembered,
    controlled_optimizers_stay_consistent_at_every_failing_call,
];

struct World {
    run: Run,
    gpu: Gpu,
}

/// A step that sends all it can: an address, which sets are active, and a learning rate before it. Either nothing has happened, or
/// the control says that its counters are ahead of the tensors.
fn controlled_lists_fail_with_the_drivers_code_at_every_call_and_say_what_holds() {
    let prepare = || {
        let gpu = failures::gpu();
        // Two combinations, two sets, and one that is left alone.
        World { run: Run::new(&gpu, &[300, 20, 12, 40, 5, 6], &switching()), gpu }
    };
    let has_gradient = |tensor: usize| tensor < 4;
    let work = |World { run, gpu }: &mut World| {
        let mut raw = run.raw();
        raw.iter_mut().enumerate().filter(|(i, _)| !has_gradient(*i)).for_each(|(_, raw)| raw.grad.address = 0);
        run.list.update(&raw)?;
        // SAFETY: the stand-in checks each access.
        unsafe { run.list.step_controlled(&mut run.control, &RawScalars::default(), gpu.raw_stream()) }
    };
    let (mut untouched, mut interrupted) = (0, 0);
    let verify = |world: World, result: Result<(), CudaError>| {
        let World { gpu, mut run } = world;
        gpu.context.synchronize().unwrap();
        let prepared = stand_in(&gpu).launches().iter().any(|launch| launch.0 == "prepare_sets");
        match (&result, prepared) {
            (Ok(()), _) => run.expect(&[1e-2; 2], 1.0, has_gradient),
            // As if it had not been called.
            (Err(_), false) => {
                run.assert_same(&gpu, "untouched");
                untouched += 1;
            }
            (Err(_), true) => {
                interrupted += 1;
                let stream = gpu.raw_stream();
                // SAFETY: the stream lives, and nothing is launched before all is well again.
                unsafe {
                    let step = run.list.step_controlled(&mut run.control, &RawScalars::default(), stream);
                    assert!(matches!(step, Err(CudaError::Interrupted)), "{step:?}");
                    assert!(matches!(run.control.report(stream), Err(CudaError::Interrupted)));
                    assert!(matches!(run.control.steps(stream), Err(CudaError::Interrupted)));
                    run.control.set_steps(&[0; 3], stream).unwrap();
                }
                // The tensors are the caller's to restore.
                let fresh = Run::new(&gpu, &[300, 20, 12, 40, 5, 6], &switching());
                let before = std::mem::replace(&mut run, fresh);
                drop(before);
            }
        }
        step(&gpu, &mut run.list, &mut run.control, RawScalars::default());
        // Where the list was made anew it has all gradients.
        let is_new = result.is_err() && prepared;
        run.expect(&[1e-2; 2], 1.0, |tensor| is_new || has_gradient(tensor));
        run.assert_same(&gpu, "the next step");
        gpu.assert_clean();
    };
    at_each_call(prepare, |world| &world.gpu, work, verify);
    // Which is current, the stream's context, capturing, a copy and an event for the sets, copies of addresses and an event for the
    // list, prepare_sets; then the first and the other lists' launches.
    assert!(untouched >= 8 && interrupted >= 2, "{untouched} {interrupted}");
}

/// After a driver's failure in the middle the control goes on once its steps are set.
fn an_interrupted_control_goes_on_when_its_steps_are_set() {
    let gpu = failures::gpu();
    let mut run = Run::new(&gpu, &[300, 20], &switching()[..1]);
    step(&gpu, &mut run.list, &mut run.control, RawScalars::default());
    run.expect(&[1e-2], 1.0, |_| true);
    // prepare_sets and the first tensor's list are launched, the second's is not.
    stand_in(&gpu).fail("cuLaunchKernel", 3, CODE);
    // SAFETY: the stand-in checks each access.
    let failed = unsafe { run.list.step_controlled(&mut run.control, &RawScalars::default(), gpu.raw_stream()) };
    assert!(is_of_the_driver(&failed.unwrap_err()));
    // SAFETY: the stream lives.
    unsafe { run.control.set_steps(&[1], gpu.raw_stream()) }.unwrap();
    assert_eq!(report(&gpu, &run.control)[0].step, 1);
    // In a capture nothing has run: the counters are what they were.
    let mut run = Run::new(&gpu, &[300, 20], &switching()[..1]);
    use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
    use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    gpu.stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    stand_in(&gpu).fail("cuLaunchKernel", 3, CODE);
    // SAFETY: the stand-in checks each access.
    let failed = unsafe { run.list.step_controlled(&mut run.control, &RawScalars::default(), gpu.raw_stream()) };
    assert!(is_of_the_driver(&failed.unwrap_err()));
    let _ = gpu.stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap();
    step(&gpu, &mut run.list, &mut run.control, RawScalars::default());
    run.expect(&[1e-2], 1.0, |_| true);
    run.assert_same(&gpu, "after the capture");
    gpu.assert_clean();
}

fn changes_of_a_control_fail_with_the_drivers_code_at_every_call() {
    let config = DualAdamConfig::default().with_lr(0.5);
    let prepare = || {
        let gpu = failures::gpu();
        World { run: Run::new(&gpu, &[30, 2], &switching()[..1]), gpu }
    };
    let work = |World { run, gpu }: &mut World| {
        // SAFETY: the stream lives.
        unsafe {
            run.control.set_steps(&[0], gpu.raw_stream())?;
            run.control.set_config(0, config, gpu.raw_stream())?;
            run.control.set_lr(0, 0.25, gpu.raw_stream())
        }
    };
    let mut failures = 0;
    let verify = |world: World, result: Result<(), CudaError>| {
        let World { gpu, mut run } = world;
        failures += usize::from(result.is_err());
        // Once more, and all is as it should be.
        // SAFETY: the stream lives.
        unsafe {
            run.control.set_config(0, config, gpu.raw_stream()).unwrap();
            run.control.set_lr(0, 0.25, gpu.raw_stream()).unwrap();
        }
        step(&gpu, &mut run.list, &mut run.control, RawScalars::default());
        let expected = config.with_lr(0.25).coeffs(1).unwrap();
        assert_eq!(report(&gpu, &run.control)[0].coeffs, expected);
        gpu.assert_clean();
    };
    at_each_call(prepare, |world| &world.gpu, work, verify);
    // Of each: the capture mode, which is current, the stream's context, capturing, a copy; of the first a wait for the stream; of the
    // others an event.
    assert_eq!(failures, 18);
}

fn a_change_that_failed_is_not_remembered() {
    let gpu = failures::gpu();
    let mut run = Run::new(&gpu, &[30, 2], &switching()[..1]);
    let before = run.control.config(0).unwrap();
    stand_in(&gpu).fail("cuMemcpyHtoDAsync_v2", 1, CODE);
    // SAFETY: the stream lives.
    let failed = unsafe { run.control.set_config(0, before.with_betas(0.5, 0.5), gpu.raw_stream()) };
    assert!(is_of_the_driver(&failed.unwrap_err()));
    assert_eq!(run.control.config(0).unwrap(), before);
    stand_in(&gpu).fail("cuMemcpyHtoDAsync_v2", 1, CODE);
    // SAFETY: the stream lives.
    let failed = unsafe { run.control.set_lr(0, 0.5, gpu.raw_stream()) };
    assert!(is_of_the_driver(&failed.unwrap_err()));
    assert_eq!(run.control.config(0).unwrap(), before);
    step(&gpu, &mut run.list, &mut run.control, RawScalars::default());
    run.expect(&[1e-2], 1.0, |_| true);
    run.assert_same(&gpu, "unchanged");
    gpu.assert_clean();
}

/// The optimizer with device control: a step that failed was made, or was not, or is known to be in between.
fn controlled_optimizers_stay_consistent_at_every_failing_call() {
    let functions = [
        "cuCtxGetCurrent",
        "cuStreamGetCtx",
        "cuStreamIsCapturing",
        "cuThreadExchangeStreamCaptureMode",
        "cuMemAllocAsync",
        "cuMemsetD8Async",
        "cuMemHostAlloc",
        "cuEventCreate",
        "cuEventRecord",
        "cuStreamSynchronize",
        "cuMemcpyHtoDAsync_v2",
        "cuLaunchKernel",
    ];
    let mut interruptions = 0;
    for function in functions {
        let mut failed = 0;
        for nth in 1.. {
            let gpu = failures::gpu();
            let lens = [300, 20];
            let layout = lens.map(|len| TensorSpec::new(len).with_master());
            let config = DualAdamConfig::default();
            let mut on_cpu = cpu::DualAdam::with_groups(&[config], &layout).unwrap();
            let params = lens.map(|len| Inputs::random(9, len).p);
            let (mut p, mut q) =
                (narrow::<dualadam::half::bf16>(&params[0]), narrow::<dualadam::half::f16>(&params[1]));
            let (mut device_p, mut device_q) = (gpu.stream.clone_htod(&p).unwrap(), gpu.stream.clone_htod(&q).unwrap());
            let grads = lens.map(|len| Inputs::random(10, len).grad);
            let device_grads = grads.each_ref().map(|grads| gpu.stream.clone_htod(grads).unwrap());
            let make = || DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[config], &layout).unwrap();
            let optimizer = make();
            gpu.context.synchronize().unwrap();

            let before = stand_in(&gpu).calls(function);
            stand_in(&gpu).fail(function, nth, CODE);
            let mut errors = 0;
            let mut optimizer = optimizer.into_capturable().unwrap_or_else(|error| {
                assert!(is_of_the_driver(&error), "{function} {nth}: {error:?}");
                errors += 1;
                make().into_capturable().unwrap()
            });
            let mut is_interrupted = false;
            for missing in [None, Some(1), None] {
                let mut tensors = 0..;
                let on_device =
                    device_grads.each_ref().map(|grads| (tensors.next() != missing).then_some(grads.into()));
                let result =
                    optimizer.step([(&mut device_p).into(), (&mut device_q).into()], on_device, &Scalars::default());
                match result {
                    Ok(()) => {
                        assert!(!is_interrupted);
                        let mut tensors = 0..;
                        let on_host = grads.each_ref().map(|grads| (tensors.next() != missing).then_some(grads.into()));
                        on_cpu.step([(&mut p).into(), (&mut q).into()], on_host).unwrap();
                    }
                    Err(CudaError::Interrupted) if is_interrupted => {}
                    Err(error) => {
                        assert!(is_of_the_driver(&error), "{function} {nth}: {error:?}");
                        errors += 1;
                        is_interrupted = matches!(optimizer.report(), Err(CudaError::Interrupted));
                    }
                }
            }
            let happened = stand_in(&gpu).calls(function) - before >= nth;
            failed += errors;
            // The failure cannot be called off, and must not meet the test's own calls.
            if !happened {
                break;
            }
            if is_interrupted {
                interruptions += 1;
                assert!(matches!(optimizer.state(), Err(CudaError::Interrupted)));
                // A state makes it whole again, whatever the driver had done.
                let folder = tempfile::tempdir().unwrap();
                on_cpu.save(folder.path().join("state")).unwrap();
                optimizer.load(folder.path().join("state")).unwrap();
                assert_eq!(optimizer.state().unwrap(), *on_cpu.state());
            } else {
                let state = optimizer.state().unwrap();
                assert_eq!(state.ledger, on_cpu.state().ledger, "{function} {nth}");
                for (tensor, (found, expected)) in state.arrays.iter().zip(&on_cpu.state().arrays).enumerate() {
                    assert_eq!(found, expected, "{function} {nth}, tensor {tensor}");
                }
                assert_eq!(gpu.stream.clone_dtoh(&device_p).unwrap(), p);
                assert_eq!(gpu.stream.clone_dtoh(&device_q).unwrap(), q);
            }
            gpu.assert_clean();
        }
        assert!(failed > 0, "no {function} failed");
    }
    // In each of three steps the launches after the first, of two lists.
    assert_eq!(interruptions, 6);
}

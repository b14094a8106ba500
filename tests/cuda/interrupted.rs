//! Controlled steps with a driver that fails at each call in turn.

use std::iter::zip;

use dualadam::DualAdamConfig;
use dualadam::cuda::{CudaError, RawScalars};
use testkit::state::temporary;

use crate::bodies::control::{report, set_steps};
use crate::bodies::{Gpu, Models, Run, THREAD_LOCAL, switching};
use crate::failures::{self, CODE, FUNCTIONS, MASTERS, at_each_call, is_of_the_driver};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["interrupted":
    controlled_lists_fail_with_the_drivers_code_at_every_call_and_say_what_holds,
    changes_of_a_control_fail_with_the_drivers_code_at_every_call,
    controlled_optimizers_stay_consistent_at_every_failing_call,
    ; on a device:
    a_control_is_not_interrupted_in_a_capture,
    a_change_that_failed_is_not_remembered,
];

#[track_caller]
fn assert_interrupted<T>(result: Result<T, CudaError>) {
    let Err(error) = result else { panic!("not refused") };
    assert!(matches!(error, CudaError::Interrupted), "{error:?}");
}

/// A step that sends all it can: an address, the active sets, and a learning rate before it. After
/// a failure, either nothing has happened, or the control says that its counters are ahead of the
/// tensors.
fn controlled_lists_fail_with_the_drivers_code_at_every_call_and_say_what_holds() {
    let prepare = || {
        let gpu = failures::gpu();
        // Six variants and three sets. The tensors of the third set get no gradient.
        (Run::new(&gpu, &[300, 20, 12, 40, 5, 6], &switching()), gpu)
    };
    let has_gradient = |tensor: usize| tensor < 4;
    let work = |(run, gpu): &mut (Run, Gpu)| {
        run.leave_out(|tensor| !has_gradient(tensor))?;
        run.try_launch(&gpu.stream, RawScalars::default())
    };
    let (mut untouched, mut interrupted) = (0, 0);
    let verify = |world: (Run, Gpu), result: Result<(), CudaError>| {
        // Locals are dropped in reverse order: the stand-in last.
        let (gpu, mut run) = (world.1, world.0);
        gpu.context.synchronize().unwrap();
        let prepared = gpu.stand_in().launches().iter().any(|launch| launch.0 == "prepare_sets");
        match (&result, prepared) {
            (Ok(()), _) => run.expect_of(has_gradient),
            // As if the step had not been called.
            (Err(_), false) => {
                run.assert_same(&gpu, "untouched");
                untouched += 1;
            }
            (Err(_), true) => {
                interrupted += 1;
                assert_interrupted(run.try_launch(&gpu.stream, RawScalars::default()));
                // SAFETY: the stream lives.
                unsafe {
                    assert_interrupted(run.control.report(gpu.raw_stream()));
                    assert_interrupted(run.control.steps(gpu.raw_stream()));
                }
                set_steps(&gpu, &mut run.control, &[5, 6, 7]);
                let steps: Vec<_> = report(&gpu, &run.control).iter().map(|set| set.step).collect();
                assert_eq!(steps, [5, 6, 7]);
                run.try_launch(&gpu.stream, RawScalars::default()).unwrap();
                let after: Vec<_> = report(&gpu, &run.control).iter().map(|set| set.step).collect();
                assert!(zip(&after, &steps).all(|(after, before)| after - before <= 1) && after != steps, "{after:?}");
                // The caller must restore the tensors.
                let fresh = Run::new(&gpu, &[300, 20, 12, 40, 5, 6], &switching());
                drop(std::mem::replace(&mut run, fresh));
            }
        }
        run.launch(&gpu.stream);
        // A new list has all gradients.
        let is_new = result.is_err() && prepared;
        run.expect_of(|tensor| is_new || has_gradient(tensor));
        run.assert_same(&gpu, "the next step");
        gpu.assert_clean();
    };
    at_each_call("*", prepare, |(_, gpu)| gpu.stand_in(), work, verify);
    // Before prepare_sets has run: the current context, the stream's context, whether it is
    // captured, a copy and an event for the sets, copies of addresses and an event for the list,
    // and prepare_sets itself. After it: the launches of the lists.
    assert!(untouched >= 8 && interrupted >= 2, "{untouched} {interrupted}");
}

/// If the driver fails in a capture, nothing has run, and the counters are unchanged.
fn a_control_is_not_interrupted_in_a_capture(gpu: &Gpu) {
    // prepare_sets and the first tensor's list are launched, the second's is not.
    let mut run = Run::new(gpu, &[300, 20], &switching()[..1]);
    use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
    gpu.stream.begin_capture(THREAD_LOCAL).unwrap();
    gpu.stand_in().fail("cuLaunchKernel", 3, CODE);
    assert!(is_of_the_driver(&run.try_launch(&gpu.stream, RawScalars::default()).unwrap_err()));
    let _ = gpu.stream.end_capture(Flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH).unwrap();
    run.step(gpu);
    run.assert_same(gpu, "after the capture");
}

fn changes_of_a_control_fail_with_the_drivers_code_at_every_call() {
    let config = DualAdamConfig::default().with_lr(0.5);
    let prepare = || {
        let gpu = failures::gpu();
        (Run::new(&gpu, &[30, 2], &switching()[..1]), gpu)
    };
    let work = |(run, gpu): &mut (Run, Gpu)| {
        // SAFETY: the stream lives.
        unsafe {
            run.control.set_steps(&[0], gpu.raw_stream())?;
            run.control.set_config(0, config, gpu.raw_stream())?;
            run.control.set_lr(0, 0.25, gpu.raw_stream())
        }
    };
    let mut failures = 0;
    let verify = |world: (Run, Gpu), result: Result<(), CudaError>| {
        // Locals are dropped in reverse order: the stand-in last.
        let (gpu, mut run) = (world.1, world.0);
        failures += usize::from(result.is_err());
        // A second call succeeds.
        // SAFETY: the stream lives.
        unsafe {
            run.control.set_config(0, config, gpu.raw_stream()).unwrap();
            run.control.set_lr(0, 0.25, gpu.raw_stream()).unwrap();
        }
        run.launch(&gpu.stream);
        assert_eq!(report(&gpu, &run.control)[0].coeffs, config.with_lr(0.25).coeffs(1).unwrap());
        gpu.assert_clean();
    };
    at_each_call("*", prepare, |(_, gpu)| gpu.stand_in(), work, verify);
    // In each change: the capture mode, the current context, the stream's context, whether it is
    // captured, a copy. In the first change also a wait for the stream; in the others an event.
    assert_eq!(failures, 18);
}

fn a_change_that_failed_is_not_remembered(gpu: &Gpu) {
    let mut run = Run::new(gpu, &[30, 2], &switching()[..1]);
    let before = run.control.config(0).unwrap();
    gpu.stand_in().fail("cuMemcpyHtoDAsync_v2", 1, CODE);
    // SAFETY: the stream lives.
    let failed = unsafe { run.control.set_config(0, before.with_betas(0.5, 0.5), gpu.raw_stream()) };
    assert!(is_of_the_driver(&failed.unwrap_err()));
    assert_eq!(run.control.config(0).unwrap(), before);
    gpu.stand_in().fail("cuMemcpyHtoDAsync_v2", 1, CODE);
    assert!(is_of_the_driver(&run.set_lr(gpu, 0, 0.5).unwrap_err()));
    assert_eq!(run.control.config(0).unwrap(), before);
    run.step(gpu);
    run.assert_same(gpu, "unchanged");
}

/// After a step of a capturable optimizer has failed, the step was made, or was not, or the
/// optimizer says that it was interrupted.
fn controlled_optimizers_stay_consistent_at_every_failing_call() {
    let mut interruptions = 0;
    for function in FUNCTIONS {
        let mut failed = 0;
        for nth in 1.. {
            let gpu = failures::gpu();
            let mut models = Models::new(&gpu.stream, &[DualAdamConfig::default()], &MASTERS);
            let optimizer = models.optimizer(&gpu.kernels);
            gpu.context.synchronize().unwrap();

            let before = gpu.stand_in().calls(function);
            gpu.stand_in().fail(function, nth, CODE);
            let mut errors = 0;
            let mut optimizer = optimizer.into_capturable().unwrap_or_else(|error| {
                assert!(is_of_the_driver(&error), "{function} {nth}: {error:?}");
                errors += 1;
                models.optimizer(&gpu.kernels).into_capturable().unwrap()
            });
            let mut is_interrupted = false;
            for missing in [None, Some(1), None] {
                let is_missing = |tensor| Some(tensor) == missing;
                match models.launch(&mut optimizer, is_missing) {
                    Ok(()) => {
                        assert!(!is_interrupted);
                        models.expect(is_missing);
                    }
                    Err(CudaError::Interrupted) if is_interrupted => {}
                    Err(error) => {
                        assert!(is_of_the_driver(&error), "{function} {nth}: {error:?}");
                        errors += 1;
                        is_interrupted = matches!(optimizer.report(), Err(CudaError::Interrupted));
                    }
                }
            }
            let happened = gpu.stand_in().calls(function) - before >= nth;
            failed += errors;
            // The failure is still armed and cannot be disarmed, so the calls below would meet it.
            if !happened {
                break;
            }
            if is_interrupted {
                interruptions += 1;
                assert_interrupted(optimizer.state());
                // Loading a state makes the optimizer consistent again, whatever the driver had
                // done.
                let (_folder, path) = temporary();
                models.cpu.save(&path).unwrap();
                optimizer.load(&path).unwrap();
                assert_eq!(optimizer.state().unwrap(), *models.cpu.state());
            } else {
                models.assert_same(&optimizer, &format!("{function} {nth}"));
            }
            gpu.assert_clean();
        }
        assert!(failed > 0, "no {function} failed");
    }
    // In each of three steps, the launches of two lists, which follow that of prepare_sets.
    assert_eq!(interruptions, 6);
}

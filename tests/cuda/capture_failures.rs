//! Captures in which a call fails, or that are invalid already. They must not affect other
//! captures.

use std::sync::Arc;

use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as Flags;
use dualadam::cuda::cudarc::driver::sys::{self, CUresult};
use dualadam::cuda::cudarc::driver::{CudaStream, result};
use dualadam::cuda::{CudaError, RawScalars};
use dualadam::{DualAdamConfig, TensorSpec};

use crate::bodies::{GLOBAL, Gpu, RELAXED, Run, capture, switching};
use crate::failures::{self, at_each_call};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["capture_failures":
    a_captured_step_fails_at_every_call_and_spoils_no_other_capture,
    the_thread_has_its_capture_mode_back,
    ; on a device:
    a_step_in_a_capture_that_has_failed_allocates_nothing,
    the_null_stream_is_refused_while_a_stream_that_waits_for_it_is_captured,
    preparing_without_gradients_is_enough_for_a_capture,
];

struct Captures {
    run: Run,
    other: Arc<CudaStream>,
    gpu: Gpu,
}

impl Captures {
    /// A list and its control that have made a step, a capture of them in progress, and a foreign
    /// capture in the global mode.
    fn new() -> Self {
        let gpu = failures::gpu();
        let mut run = Run::new(&gpu, &[300, 5], &switching());
        run.step(&gpu);
        let other = gpu.context.new_stream().unwrap();
        gpu.stream.begin_capture(RELAXED).unwrap();
        other.begin_capture(GLOBAL).unwrap();
        Self { run, other, gpu }
    }
}

fn a_captured_step_fails_at_every_call_and_spoils_no_other_capture() {
    let work = |Captures { run, gpu, .. }: &mut Captures| run.try_launch(&gpu.stream, RawScalars::default());
    let mut failures = 0;
    let verify = |world: Captures, result: Result<(), CudaError>| {
        // Locals are dropped in reverse order: the stand-in last.
        let Captures { gpu, other, mut run } = world;
        other.end_capture(Flags(0)).expect("the other capture");
        let graph = gpu.stream.end_capture(Flags(0));
        match result {
            Ok(()) => {
                graph.unwrap().unwrap().launch().unwrap();
                run.expect_all();
            }
            Err(_) => failures += 1,
        }
        run.step(&gpu);
        run.assert_same(&gpu, "after a failure");
        drop(run);
        gpu.assert_clean();
    };
    at_each_call("*", Captures::new, |world| world.gpu.stand_in(), work, verify);
    // The calls that must not fail: the capture mode and the current context, twice each; the
    // stream's context; whether it is captured; the event, the memory, the copy and the wait for
    // the tables; three launches. The calls that tie memory to the graph may fail.
    assert_eq!(failures, 13);
}

fn a_step_in_a_capture_that_has_failed_allocates_nothing(gpu: &Gpu) {
    let mut run = failures::run(gpu);
    gpu.stream.begin_capture(GLOBAL).unwrap();
    assert!(gpu.context.synchronize().is_err());
    let before = gpu.stand_in().live("memory");
    for _ in 0..2 {
        let step = run.try_launch(&gpu.stream, RawScalars::default());
        let Err(error @ CudaError::Driver { code: 901, .. }) = step else { panic!("{step:?}") };
        assert_eq!(error.to_string(), "cuStreamIsCapturing failed with CUDA_ERROR_STREAM_CAPTURE_INVALIDATED (901)");
    }
    assert_eq!(gpu.stand_in().live("memory"), before);
    assert!(gpu.stream.end_capture(Flags(0)).is_err());
    run.step(gpu);
    run.assert_same(gpu, "after the capture");
}

/// The library relaxes the thread's capture mode for its own calls. Afterwards the caller's mode
/// holds again, whether the step was made or not.
fn the_thread_has_its_capture_mode_back() {
    for fails in [false, true] {
        let gpu = failures::gpu();
        let mut run = failures::run(&gpu);
        gpu.stream.begin_capture(GLOBAL).unwrap();
        if fails {
            gpu.stand_in().fail("cuMemAllocAsync", 1, failures::CODE);
        }
        assert_eq!(run.try_launch(&gpu.stream, RawScalars::default()).is_err(), fails);
        // SAFETY: the driver refuses the call.
        assert_eq!(unsafe { result::malloc_sync(4) }.unwrap_err().0, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert!(gpu.stream.end_capture(Flags(0)).is_err());
        gpu.assert_clean();
    }
}

fn the_null_stream_is_refused_while_a_stream_that_waits_for_it_is_captured(gpu: &Gpu) {
    let mut run = failures::run(gpu);
    let null = std::ptr::null_mut();
    let mut blocking = null;
    // SAFETY: the pointer is to a local variable.
    assert_eq!(unsafe { sys::cuStreamCreate(&mut blocking, 0) }, CUresult::CUDA_SUCCESS);
    // SAFETY: the stream was made above.
    unsafe { result::stream::begin_capture(blocking, GLOBAL) }.unwrap();
    let raw = run.raw()[0];
    gpu.prepare("f32_f32").unwrap();
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    // SAFETY: the stand-in checks each access.
    let steps = unsafe {
        [
            run.list.step_controlled(&mut run.control, &RawScalars::default(), null.cast()),
            run.list.step_raw(&[coeffs], null.cast()),
            gpu.kernels.step_raw(&raw, &coeffs, null.cast()),
        ]
    };
    for step in steps {
        let Err(CudaError::Driver { code: 906, call: "cuStreamIsCapturing", .. }) = step else { panic!("{step:?}") };
    }
    // SAFETY: as above; the graph is destroyed with the context.
    unsafe { result::stream::end_capture(blocking) }.expect("the foreign capture");
    run.step(gpu);
    run.assert_same(gpu, "after the capture");
}

/// Gradients are missing, as after `zero_grad(set_to_none=True)`.
fn preparing_without_gradients_is_enough_for_a_capture(gpu: &Gpu) {
    let run = failures::run(gpu);
    let raw = run.raw()[0];
    let mut optimizer = gpu.optimizer(&[TensorSpec::new(300)]).unwrap().into_capturable().unwrap();
    optimizer.prepare_raw(&[raw.param], &[None]).unwrap();
    let graph = capture(&gpu.stream, GLOBAL, || {
        // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
        unsafe { optimizer.step_raw(&[raw.param], &[Some(raw.grad)], &RawScalars::default()) }.unwrap();
    });
    graph.launch().unwrap();
    assert_eq!(optimizer.step_of(0).unwrap(), 1);
}

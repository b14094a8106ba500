//! A driver that fails at each call in turn, permanently, or from the start.

use std::ptr;
use std::sync::Arc;

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam::cuda::{self, Control, CudaError, DualAdam, Kernels, TensorList};
use dualadam::{DualAdamConfig, TensorSpec};
use stand_in_cuda::client::StandIn;
use testkit::{Inputs, Tensor, Variant, formats};

use crate::bodies::flat::upload;
use crate::bodies::gpu::set_current;
use crate::bodies::{Gpu, Memory, Models, Run, Twin, bad_input, owner, refused, switching, twin};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["failures":
    kernels_fail_with_the_drivers_code_at_every_call,
    flat_steps_fail_with_the_drivers_code_at_every_call,
    lists_fail_with_the_drivers_code_at_every_call_and_recover,
    the_owner_stays_consistent_at_every_failing_call,
    masters_can_be_brought_up_to_date_again_after_a_failure,
    a_lost_device_stays_an_error,
    another_context_is_sound_where_the_primary_one_is_lost,
    unsuitable_drivers_are_refused,
    the_current_context_is_restored_when_all_is_dropped,
    ; on a device:
    steps_that_cannot_be_ordered_are_not_launched,
];

/// Starts the stand-in afresh for one test.
pub(crate) fn start() -> StandIn {
    StandIn::start().unwrap_or_else(|error| panic!("{error}"))
}

/// The stand-in's first device.
pub(crate) fn gpu() -> Gpu {
    Gpu::new(Some(start()))
}

/// Runs a test on the stand-in's first device, and checks afterwards that nothing went wrong there.
pub(crate) fn on_device(test: impl FnOnce(&Gpu)) {
    let gpu = gpu();
    test(&gpu);
    gpu.assert_clean();
}

/// The stand-in's first device, with stream-ordered memory (`pools` is 1) or without (0).
pub(crate) fn gpu_with_pools(pools: i32) -> Gpu {
    let stand_in = start();
    stand_in.set_attribute(115, pools);
    Gpu::new(Some(stand_in))
}

/// A controlled list of one tensor.
pub(crate) fn run(gpu: &Gpu) -> Run {
    Run::new(gpu, &[300], &switching()[..1])
}

/// `CUDA_ERROR_LAUNCH_FAILED`.
pub(crate) const CODE: i32 = 719;

pub(crate) fn is_of_the_driver(error: &CudaError) -> bool {
    let (code, name) = match error {
        CudaError::Driver { code, name, .. } => (code, name),
        CudaError::Ptx(error) => (&error.code, &error.name),
        _ => return false,
    };
    *code == CODE && (name == "CUDA_ERROR_LAUNCH_FAILED" || name == "an unknown error")
}

/// Runs `work` once for each of its calls of the driver's `function` (`*` for any function), and
/// lets that call fail. For each run, `prepare` makes a world of its own, and `verify` checks it.
pub(crate) fn at_each_call<W>(
    function: &str,
    mut prepare: impl FnMut() -> W,
    of: impl Fn(&W) -> &StandIn,
    mut work: impl FnMut(&mut W) -> Result<(), CudaError>,
    mut verify: impl FnMut(W, Result<(), CudaError>),
) {
    for nth in 1.. {
        let mut world = prepare();
        let before = of(&world).calls(function);
        of(&world).fail(function, nth, CODE);
        let result = work(&mut world);
        let happened = of(&world).calls(function) - before >= nth;
        if let Err(error) = &result {
            assert!(happened && is_of_the_driver(error), "{function} {nth}: {error:?}");
        }
        // The failure is still armed and cannot be disarmed, so the calls in `verify` would meet
        // it.
        if !happened {
            return;
        }
        verify(world, result);
    }
}

fn kernels_fail_with_the_drivers_code_at_every_call() {
    let work = |_: &mut StandIn| {
        let kernels = Kernels::new(0)?;
        Variant::all().try_for_each(|variant| kernels.prepare(variant.formats()))
    };
    let mut failures = 0;
    let verify = |stand_in: StandIn, result: Result<(), CudaError>| {
        failures += usize::from(result.is_err());
        assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
    };
    at_each_call("*", start, |stand_in| stand_in, work, verify);
    assert!(failures > 4 * Variant::COUNT, "each module was loaded, and its kernels looked up: {failures}");
}

fn flat_steps_fail_with_the_drivers_code_at_every_call() {
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let prepare = || {
        let gpu = self::gpu();
        let twin = Twin::of(&gpu, "f32_f32", 100);
        set_current(ptr::null_mut());
        (twin, gpu)
    };
    let work = |(twin, gpu): &mut (Twin, Gpu)| gpu.step(&twin.raw(), &coeffs);
    let mut failures = 0;
    let verify = |(mut twin, gpu): (Twin, Gpu), result: Result<(), CudaError>| {
        gpu.context.bind_to_thread().unwrap();
        match result {
            Ok(()) => twin.expect(&[coeffs]),
            Err(_) => failures += 1,
        }
        twin.assert_same(&gpu, "after a failure");
        drop(twin);
    };
    at_each_call("*", prepare, |(_, gpu)| gpu.stand_in(), work, verify);
    // The calls that must not fail: the capture mode, the current context, the push, the stream's
    // context, whether it is captured; the module with its three kernels, and the capture mode and
    // the current context for them; the launch. The pop may fail.
    assert_eq!(failures, 12);
}

/// Tensors of two variants, with more sets than fit in an argument.
struct ListWorld {
    list: Option<TensorList>,
    twins: Vec<Twin>,
    spare: Memory,
    gpu: Gpu,
}

impl ListWorld {
    fn new() -> Self {
        let gpu = self::gpu();
        let formats = ["f32_f32", "bf16_bf16_master"].map(formats);
        let tensor = |i: usize| Tensor::padded(formats[i % 2], &Inputs::random(i as u64, i % 9), [0; 5]).with_set(i);
        let (twins, spare) = (Twin::all(&gpu, (0..100).map(tensor)), gpu.memory(&[0; 64]));
        Self { list: None, twins, spare, gpu }
    }
}

/// A list's step that sends everything it can: new addresses, and new sets, more than fit in an
/// argument.
fn lists_fail_with_the_drivers_code_at_every_call_and_recover() {
    let sets: Vec<_> = (1..=100).map(|step| DualAdamConfig::default().coeffs(step).unwrap()).collect();
    let work = |ListWorld { list, twins, spare, gpu }: &mut ListWorld| {
        let mut raw = twin::raw(twins);
        let list = list.insert(TensorList::new(&gpu.kernels, &raw)?);
        // Tensor 7 gets a gradient of zeros at another address, and another set.
        (raw[7].grad.address, raw[7].coeffs_index) = (spare.address, 3);
        twins[7].host.grad.bytes_mut().fill(0);
        twins[7].host.set = 3;
        list.update(&raw)?;
        gpu.step_list(list, &sets)
    };
    let mut recovered = 0;
    let verify = |world: ListWorld, result: Result<(), CudaError>| {
        // Locals are dropped in reverse order: the stand-in last.
        let ListWorld { gpu, list, mut twins, spare: _spare } = world;
        gpu.context.synchronize().unwrap();
        let launched = gpu.stand_in().launches().len();
        assert_eq!(result.is_ok(), launched == 2);
        // The variants are launched in their order.
        twins.iter_mut().enumerate().filter(|(i, _)| i % 2 < launched).for_each(|(_, twin)| twin.expect(&sets));
        if let (Some(mut list), Err(_)) = (list, result) {
            // What could not be sent is not forgotten: this step sends it.
            gpu.step_list(&mut list, &sets).unwrap();
            twins.iter_mut().for_each(|twin| twin.expect(&sets));
            recovered += 1;
        }
        twins.iter().enumerate().for_each(|(i, twin)| twin.assert_same_but_grads(&gpu, &format!("tensor {i}")));
        twins[7].host.set_grads(&Inputs::random(7, 7).grad);
        twins[7].assert_same(&gpu, "the gradient elsewhere");
        gpu.assert_clean();
    };
    at_each_call("*", ListWorld::new, |world| world.gpu.stand_in(), work, verify);
    // The capture mode, the current context, the stream's context, whether it is captured, copies
    // of a record and of sets, the event of the copies, two launches.
    assert_eq!(recovered, 9);
}

/// A model whose tensors both have masters.
pub(crate) const MASTERS: [(&str, usize, usize); 2] = [("bf16_f32_master", 300, 0), ("f16_f32_master", 20, 0)];

/// The driver functions that an optimizer calls. They fail by name, because the calls with which a
/// test uploads gradients in each step must not fail.
pub(crate) const FUNCTIONS: [&str; 12] = [
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

/// After a failure, each tensor's step and moments are those after a step that was made, or those
/// before it.
fn the_owner_stays_consistent_at_every_failing_call() {
    type World = (Option<DualAdam>, Models, Gpu);
    for function in FUNCTIONS {
        let prepare = || {
            let gpu = self::gpu();
            (None::<DualAdam>, Models::new(&gpu.stream, &[DualAdamConfig::default()], &MASTERS), gpu)
        };
        let mut failed = 0;
        let work = |(optimizer, models, gpu): &mut World| {
            let optimizer = optimizer.insert(gpu.optimizer(&models.host.tensor_specs()).inspect_err(|_| failed += 1)?);
            let mut result = Ok(());
            for _ in 0..3 {
                let launched = models.launch(optimizer, |_| false);
                let step_of = |tensor| optimizer.step_of(tensor).unwrap();
                let done = [0, 1].map(|tensor| step_of(tensor) > models.cpu.step_of(tensor).unwrap());
                models.expect(|tensor| !done[tensor]);
                match launched {
                    Ok(()) => assert_eq!(done, [true, true]),
                    Err(error) if is_of_the_driver(&error) => (failed, result) = (failed + 1, Err(error)),
                    Err(error) => panic!("{function}: {error:?}"),
                }
            }
            result
        };
        // The world is dropped in the order of its fields: the stand-in last.
        let verify = |world: World, result| {
            let ((Some(optimizer), models, gpu), what) = (&world, format!("{function}: {result:?}")) else { return };
            let state = optimizer.state().unwrap();
            assert_eq!(state.ledger, models.cpu.state().ledger, "{what}");
            for (tensor, (found, expected)) in state.arrays.iter().zip(&models.cpu.state().arrays).enumerate() {
                if state.ledger.step(tensor).unwrap() > 0 {
                    assert_eq!(found, expected, "{what}, tensor {tensor}");
                }
            }
            models.assert_same_params(&what);
            gpu.assert_clean();
        };
        at_each_call(function, prepare, |(_, _, gpu)| gpu.stand_in(), work, verify);
        assert!(failed > 0, "no {function} failed");
    }
}

/// cudarc only records an error if it cannot make a stream wait. The step must not be launched
/// then.
fn steps_that_cannot_be_ordered_are_not_launched(gpu: &Gpu) {
    // SAFETY: nothing was allocated while event tracking was off.
    unsafe { gpu.context.enable_event_tracking() };
    let [mut p, g, mut m, mut v] = [0; 4].map(|_| upload(&gpu.context, &[1.0_f32; 4]));
    let mut optimizer = gpu.optimizer(&[TensorSpec::new(4)]).unwrap();
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();

    gpu.stand_in().fail("cuStreamWaitEvent", 1, CODE);
    let mut tensor = cuda::Tensor::new(&mut p, &g, &mut m, &mut v);
    let flat = cuda::step(&gpu.kernels, &gpu.stream, &mut tensor, &coeffs);
    assert!(matches!(flat, Err(CudaError::Driver { code: CODE, .. })), "{flat:?}");
    gpu.stand_in().fail("cuStreamWaitEvent", 1, CODE);
    let owned = optimizer.step([(&mut p).into()], [Some((&g).into())]);
    assert!(matches!(owned, Err(CudaError::Driver { code: CODE, .. })), "{owned:?}");
    assert_eq!((gpu.stand_in().calls("cuLaunchKernel"), optimizer.step_of(0).unwrap()), (0, 0));

    // cudarc now counts the uploads as ordered, so the test itself waits for them.
    gpu.context.synchronize().unwrap();
    optimizer.step([(&mut p).into()], [Some((&g).into())]).unwrap();
    assert_eq!(gpu.stand_in().calls("cuLaunchKernel"), 1);
}

/// Each tensor's masters are up to date or as they were, so that the call can be repeated.
fn masters_can_be_brought_up_to_date_again_after_a_failure() {
    let prepare = || {
        let gpu = gpu();
        let mut models = Models::new(&gpu.stream, &[DualAdamConfig::default()], &MASTERS);
        let mut optimizer = models.optimizer(&gpu.kernels);
        models.step(&mut optimizer, |_| false);
        models.clamp(0.5);
        (optimizer, models, gpu)
    };
    let mut failures = 0;
    let verify = |(mut optimizer, mut models, gpu): (DualAdam, Models, Gpu), result: Result<(), CudaError>| {
        if result.is_err() {
            failures += 1;
            models.sync_masters(&mut optimizer).unwrap();
        }
        models.expect_synced();
        models.assert_same(&optimizer, "after a failure");
        drop((optimizer, models));
        gpu.assert_clean();
    };
    let work = |(optimizer, models, _): &mut (DualAdam, Models, Gpu)| models.sync_masters(optimizer);
    at_each_call("*", prepare, |(_, _, gpu)| gpu.stand_in(), work, verify);
    // The capture mode and the current context, for the buffers and again for the launches; the
    // stream's context, whether it is captured, two launches.
    assert_eq!(failures, 8);
}

fn a_lost_device_stays_an_error() {
    let gpu = self::gpu();
    let mut models = owner::models(&gpu);
    let mut optimizer = models.optimizer(&gpu.kernels);
    models.set_grads(1);
    models.step(&mut optimizer, |_| false);
    gpu.context.synchronize().unwrap();
    // The stand-in notices that there is no memory at these addresses.
    let tensor = Tensor::filled(formats("f32_f32"), 4).raw_at([0x100, 0x140, 0x180, 0x1c0, 0]);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    gpu.step(&tensor, &coeffs).unwrap();
    let lost = |result: Result<(), CudaError>| match result {
        Err(CudaError::Driver { code: 700, name, .. }) => assert_eq!(name, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        result => panic!("{result:?}"),
    };
    lost(optimizer.state().map(|_| ()));
    lost(gpu.step(&tensor, &coeffs));
    lost(TensorList::new(&gpu.kernels, &[tensor]).map(|_| ()));
    lost(optimizer.set_moments(0, 1, &vec![0.0; 5000], &vec![0.0; 5000]));
    assert_eq!(optimizer.step_of(0).unwrap(), 1);
}

/// The caller's own context is current, and the device's primary context has failed.
fn another_context_is_sound_where_the_primary_one_is_lost() {
    let gpu = self::gpu();
    let other = gpu.other_context();
    let twin = Twin::of(&gpu, "f32_f32", 30);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    gpu.stand_in().fail("execute", 1, 700);
    gpu.step(&twin.raw(), &coeffs).unwrap();
    assert!(gpu.context.synchronize().is_err());
    let Gpu { kernels, stream, context, stand_in } = gpu;
    drop(kernels);
    set_current(other.cu_ctx().cast());
    // SAFETY: the context lives until the kernels are dropped.
    let [made, again] = [0, 1].map(|_| unsafe { Kernels::in_current_context() }.unwrap());
    assert_eq!(made.context().cu_ctx(), other.cu_ctx());
    assert!(Arc::ptr_eq(made.context(), again.context()));
    // The memory is lost with its context.
    std::mem::forget(twin);
    drop((made, again, other, stream, context));
    drop(stand_in);
}

fn unsuitable_drivers_are_refused() {
    let stand_in = start();
    stand_in.set_driver_version(11_030);
    let error = Kernels::new(0).unwrap_err();
    assert!(matches!(error, CudaError::OldDriver { required: 11_040, found: 11_030 }));
    assert_eq!(error.to_string(), "the CUDA driver must support CUDA 11.4, it supports 11.3");
    stand_in.set_driver_version(11_040);
    drop(Kernels::new(0).unwrap());
    // A toolkit's stub library returns this error from every call.
    stand_in.fail("cuDriverGetVersion", 1, 34);
    assert!(matches!(Kernels::new(0), Err(CudaError::StubDriver)));

    refused::position(Kernels::new(5), "device", 2, 5);
    refused::position(Kernels::new(1 << 32), "device", 2, 1 << 32);

    // Compute capability 7.0. The driver may accept later what it refused once.
    let kernels = Kernels::new(0).unwrap();
    stand_in.set_attribute(75, 7);
    stand_in.set_attribute(76, 0);
    for _ in 0..2 {
        match kernels.prepare(formats("f32_f32")) {
            Err(CudaError::Ptx(error)) => {
                assert_eq!((error.code, error.name.as_str()), (209, "CUDA_ERROR_NO_BINARY_FOR_GPU"));
                assert!(error.origin.contains("13.0") && error.log.contains("sm_75"), "{error}");
            }
            result => panic!("{result:?}"),
        }
    }
    refused::empty(Control::new(&kernels, &[], &[]), "sets");
    stand_in.set_attribute(76, 5);
    kernels.prepare(formats("f32_f32")).unwrap();
    drop(kernels);
    stand_in.set("devices", 0);
    assert!(matches!(Kernels::new(0), Err(CudaError::Driver { call: "cuInit", code: 100, .. })));
}

fn the_current_context_is_restored_when_all_is_dropped() {
    let stand_in = start();
    stand_in.set("devices", 2);
    let other = CudaContext::new(1).unwrap();
    bad_input::check_current_context(&other, || Kernels::new(0).unwrap());
    assert_eq!(["module", "memory", "pinned"].map(|kind| stand_in.live(kind)), [0; 3], "all went with the context");
    assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
}

//! A driver that fails: at each call in turn, for good, or before anything could start.

use dualadam::cuda::cudarc::driver::CudaContext;
use dualadam::cuda::{self, Control, CudaError, DualAdam, Kernels, PtxError, TensorList};
use dualadam::{ArgumentError, Dtype, DualAdamConfig, Formats, ListError, RawBuffer, RawTensor};

use std::ptr;
use std::sync::Arc;

use stand_in_cuda::client::StandIn;

use crate::bodies::bad_input;
use crate::bodies::buffers::{COMBINATIONS, Device, Host};
use crate::bodies::flat::upload;
use crate::bodies::gpu::{Gpu, Memory, set_current};
use crate::bodies::owner::{self, Model};
use crate::common::data::Inputs;

pub(crate) const TESTS: &[(&str, fn())] = bodies!["failures":
    kernels_fail_with_the_drivers_code_at_every_call,
    flat_steps_fail_with_the_drivers_code_at_every_call,
    lists_fail_with_the_drivers_code_at_every_call_and_recover,
    the_owner_stays_consistent_at_every_failing_call,
    steps_that_cannot_be_ordered_are_not_launched,
    a_lost_device_stays_an_error,
    another_context_is_sound_where_the_primary_one_is_lost,
    drivers_that_cannot_do_it_are_refused,
    the_current_context_is_restored_when_all_is_dropped,
];

/// The stand-in, reset, for one test.
pub(crate) fn start() -> StandIn {
    StandIn::start().unwrap_or_else(|error| panic!("{error}"))
}

/// The stand-in's first device.
pub(crate) fn gpu() -> Gpu {
    Gpu::new(Some(start()))
}

pub(crate) fn stand_in(gpu: &Gpu) -> &StandIn {
    gpu.stand_in.as_ref().unwrap()
}

/// Launch failed.
pub(crate) const CODE: i32 = 719;

pub(crate) fn is_of_the_driver(error: &CudaError) -> bool {
    let (code, name) = match error {
        CudaError::Driver { code, name, .. } => (code, name),
        CudaError::Ptx(error) => (&error.code, &error.name),
        _ => return false,
    };
    *code == CODE && (name == "CUDA_ERROR_LAUNCH_FAILED" || name == "an unknown error")
}

/// Lets every driver call of `work` fail in turn, each in a world of its own that `prepare` makes, and then looks at the world.
pub(crate) fn at_each_call<W>(
    mut prepare: impl FnMut() -> W,
    of: impl Fn(&W) -> &Gpu,
    mut work: impl FnMut(&mut W) -> Result<(), CudaError>,
    mut verify: impl FnMut(W, Result<(), CudaError>),
) {
    for nth in 1.. {
        let mut world = prepare();
        let before = stand_in(of(&world)).calls("*");
        stand_in(of(&world)).fail("*", nth, CODE);
        let result = work(&mut world);
        let happened = stand_in(of(&world)).calls("*") - before >= nth;
        if let Err(error) = &result {
            assert!(happened && is_of_the_driver(error), "call {nth}: {error:?}");
        }
        // The failure cannot be called off, and must not meet the test's own calls.
        if !happened {
            return;
        }
        verify(world, result);
    }
}

fn kernels_fail_with_the_drivers_code_at_every_call() {
    let mut failures = 0;
    for nth in 1.. {
        let stand_in = start();
        stand_in.fail("*", nth, CODE);
        let result = Kernels::new(0).and_then(|kernels| {
            COMBINATIONS.into_iter().try_for_each(|formats| kernels.prepare(formats))?;
            Ok(kernels)
        });
        let happened = stand_in.calls("*") >= nth;
        if let Err(error) = &result {
            assert!(happened && is_of_the_driver(error), "call {nth}: {error:?}");
            failures += 1;
        }
        drop(result);
        if !happened {
            break;
        }
        assert!(stand_in.violations().is_empty(), "call {nth}: {:#?}", stand_in.violations());
    }
    assert!(failures > 4 * 11, "each module was loaded, and its kernels looked up: {failures}");
}

struct FlatWorld {
    device: Device,
    host: Host,
    gpu: Gpu,
}

fn flat_steps_fail_with_the_drivers_code_at_every_call() {
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let prepare = || {
        let gpu = self::gpu();
        let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 100), [0; 5], 0);
        let device = host.upload(&gpu);
        set_current(ptr::null_mut());
        FlatWorld { device, host, gpu }
    };
    let work = |FlatWorld { device, host, gpu }: &mut FlatWorld| {
        // SAFETY: the stand-in checks each access.
        unsafe { gpu.kernels.step_raw(&device.raw(host), &coeffs, gpu.raw_stream()) }
    };
    let mut failures = 0;
    let verify = |world: FlatWorld, result: Result<(), CudaError>| {
        // Dropped in the opposite order: the stand-in last.
        let FlatWorld { gpu, device, mut host } = world;
        gpu.context.bind_to_thread().unwrap();
        match result {
            Ok(()) => host.step(&[coeffs]),
            Err(_) => failures += 1,
        }
        device.assert_same(&gpu, &host, "after a failure");
    };
    at_each_call(prepare, |world| &world.gpu, work, verify);
    // The capture mode, which is current, push, the stream's context, whether it is captured, the module with its three kernels, the
    // capture mode and which is current for them, the launch; not the pop.
    assert_eq!(failures, 12);
}

/// Tensors of two combinations, with more sets than fit in an argument.
struct ListWorld {
    list: Option<TensorList>,
    devices: Vec<Device>,
    hosts: Vec<Host>,
    spare: Memory,
    gpu: Gpu,
}

impl ListWorld {
    fn new() -> Self {
        let gpu = self::gpu();
        let types = [COMBINATIONS[0], COMBINATIONS[8]];
        let host = |i: usize| Host::new(types[i % 2], &Inputs::random(i as u64, i % 9), [0; 5], i);
        let hosts: Vec<_> = (0..100).map(host).collect();
        let devices = hosts.iter().map(|host| host.upload(&gpu)).collect();
        let spare = gpu.memory(&[0; 64]);
        Self { list: None, devices, hosts, spare, gpu }
    }
}

/// A list's step that sends everything it can: new addresses, new sets, more than fit in an argument.
fn lists_fail_with_the_drivers_code_at_every_call_and_recover() {
    let config = DualAdamConfig::default();
    let sets: Vec<_> = (1..=100).map(|step| config.coeffs(step).unwrap()).collect();
    let work = |world: &mut ListWorld| {
        let ListWorld { list, devices, hosts, spare, gpu } = world;
        let mut raw: Vec<_> = devices.iter().zip(&*hosts).map(|(device, host)| device.raw(host)).collect();
        let list = list.insert(TensorList::new(&gpu.kernels, &raw)?);
        // Tensor 7 gets zeros for a gradient, elsewhere, and another set.
        raw[7].grad.address = spare.address;
        raw[7].coeffs_index = 3;
        hosts[7].buffers[1].bytes_mut().fill(0);
        hosts[7].set = 3;
        list.update(&raw)?;
        // SAFETY: the stand-in checks each access.
        unsafe { list.step_raw(&sets, gpu.raw_stream()) }
    };
    let mut recovered = 0;
    let verify = |world: ListWorld, result: Result<(), CudaError>| {
        // Dropped in the opposite order: the stand-in last.
        let ListWorld { gpu, list, devices, mut hosts, spare: _spare } = world;
        gpu.context.synchronize().unwrap();
        let launched = stand_in(&gpu).launches().len();
        assert_eq!(result.is_ok(), launched == 2);
        // The combinations are launched in their order.
        hosts.iter_mut().enumerate().filter(|(i, _)| i % 2 < launched).for_each(|(_, host)| host.step(&sets));
        if let (Some(mut list), Err(_)) = (list, result) {
            // What failed was not forgotten: this step sends it.
            // SAFETY: the stand-in checks each access.
            unsafe { list.step_raw(&sets, gpu.raw_stream()) }.unwrap();
            hosts.iter_mut().for_each(|host| host.step(&sets));
            recovered += 1;
        }
        hosts[7].buffers[1] = Host::new(COMBINATIONS[8], &Inputs::random(7, 7), [0; 5], 7).buffers[1].clone();
        for (i, (device, host)) in devices.iter().zip(&hosts).enumerate() {
            device.assert_same(&gpu, host, &format!("tensor {i}"));
        }
        gpu.assert_clean();
    };
    at_each_call(ListWorld::new, |world| &world.gpu, work, verify);
    // The capture mode, which is current, the stream's context, capturing, copies of a record and of sets, the event of the copies, two
    // launches.
    assert_eq!(recovered, 9);
}

/// After a failure the owner's steps and moments are those of a step that was made or was not, tensor by tensor.
fn the_owner_stays_consistent_at_every_failing_call() {
    // The calls of the test itself, which uploads gradients in each step, are not to fail: the failure comes by function.
    let functions = [
        "cuCtxGetCurrent",
        "cuStreamGetCtx",
        "cuThreadExchangeStreamCaptureMode",
        "cuMemAllocAsync",
        "cuMemHostAlloc",
        "cuEventCreate",
        "cuStreamSynchronize",
        "cuMemcpyHtoDAsync_v2",
        "cuLaunchKernel",
        "cuMemsetD8Async",
    ];
    for function in functions {
        let mut failed = 0;
        for nth in 1.. {
            let gpu = self::gpu();
            let lens = [300, 20];
            let layout = lens.map(|len| dualadam::TensorSpec::new(len).with_master());
            let mut on_cpu = dualadam::cpu::DualAdam::with_groups(&[DualAdamConfig::default()], &layout).unwrap();
            let params = lens.map(|len| Inputs::random(9, len).p);
            let (mut p, mut q) = (
                crate::common::data::narrow::<dualadam::half::bf16>(&params[0]),
                crate::common::data::narrow::<dualadam::half::f16>(&params[1]),
            );
            let (mut device_p, mut device_q) = (gpu.stream.clone_htod(&p).unwrap(), gpu.stream.clone_htod(&q).unwrap());
            let grads = lens.map(|len| Inputs::random(10, len).grad);
            let device_grads = grads.each_ref().map(|grads| gpu.stream.clone_htod(grads).unwrap());
            gpu.context.synchronize().unwrap();

            let before = stand_in(&gpu).calls(function);
            stand_in(&gpu).fail(function, nth, CODE);
            let made = DualAdam::with_groups(&gpu.kernels, &gpu.stream, &[DualAdamConfig::default()], &layout);
            let mut optimizer = match made {
                Ok(made) => made,
                Err(error) => {
                    assert!(is_of_the_driver(&error), "{function} {nth}: {error:?}");
                    failed += 1;
                    continue;
                }
            };
            let mut errors = 0;
            for _ in 0..3 {
                let on_device = device_grads.each_ref().map(|grads| Some(grads.into()));
                let result = optimizer.step([(&mut device_p).into(), (&mut device_q).into()], on_device);
                let steps = [0, 1].map(|tensor| optimizer.step_of(tensor).unwrap());
                let done = [0, 1].map(|tensor| steps[tensor] > on_cpu.step_of(tensor).unwrap());
                match result {
                    Ok(()) => assert_eq!(done, [true, true]),
                    Err(error) => {
                        assert!(is_of_the_driver(&error), "{function} {nth}: {error:?}");
                        errors += 1;
                    }
                }
                let on_host = [0, 1].map(|tensor| done[tensor].then(|| (&grads[tensor]).into()));
                on_cpu.step([(&mut p).into(), (&mut q).into()], on_host).unwrap();
            }
            let happened = stand_in(&gpu).calls(function) - before >= nth;
            failed += errors;
            if !happened {
                break;
            }
            let state = optimizer.state().unwrap();
            assert_eq!(state.ledger, on_cpu.state().ledger, "{function} {nth}");
            for (tensor, (found, expected)) in state.arrays.iter().zip(&on_cpu.state().arrays).enumerate() {
                if state.ledger.step(tensor).unwrap() > 0 {
                    assert_eq!(found, expected, "{function} {nth}, tensor {tensor}");
                }
            }
            assert_eq!(gpu.stream.clone_dtoh(&device_p).unwrap(), p);
            assert_eq!(gpu.stream.clone_dtoh(&device_q).unwrap(), q);
            gpu.assert_clean();
        }
        assert!(failed > 0, "no {function} failed");
    }
}

/// cudarc only notes that a stream could not be made to wait; the step must not run then.
fn steps_that_cannot_be_ordered_are_not_launched() {
    let gpu = self::gpu();
    // SAFETY: nothing was allocated while it was off.
    unsafe { gpu.context.enable_event_tracking() };
    let [mut p, g, mut m, mut v] = [0; 4].map(|_| upload(&gpu.context, &[1.0_f32; 4]));
    let mut optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[4]).unwrap();
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();

    stand_in(&gpu).fail("cuStreamWaitEvent", 1, CODE);
    let mut tensor = cuda::Tensor::new(&mut p, &g, &mut m, &mut v);
    let flat = cuda::step(&gpu.kernels, &gpu.stream, &mut tensor, &coeffs);
    assert!(matches!(flat, Err(CudaError::Driver { code: CODE, .. })), "{flat:?}");
    stand_in(&gpu).fail("cuStreamWaitEvent", 1, CODE);
    let owned = optimizer.step([(&mut p).into()], [Some((&g).into())]);
    assert!(matches!(owned, Err(CudaError::Driver { code: CODE, .. })), "{owned:?}");
    assert_eq!((stand_in(&gpu).calls("cuLaunchKernel"), optimizer.step_of(0).unwrap()), (0, 0));

    // cudarc takes the uploads for ordered by now.
    gpu.context.synchronize().unwrap();
    optimizer.step([(&mut p).into()], [Some((&g).into())]).unwrap();
    assert_eq!(stand_in(&gpu).calls("cuLaunchKernel"), 1);
    gpu.assert_clean();
}

fn a_lost_device_stays_an_error() {
    let gpu = self::gpu();
    let mut model = Model::new(&gpu);
    let mut optimizer = owner::optimizer(&gpu).unwrap();
    model.step(&gpu, &mut optimizer, 1, |_| false).unwrap();
    gpu.context.synchronize().unwrap();
    let tensor = |address| {
        let [param, grad, exp_avg, exp_avg_sq] = [0_u64, 64, 128, 192].map(|at| RawBuffer::f32(address + at));
        RawTensor::new(4, param, grad, exp_avg, exp_avg_sq)
    };
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    // SAFETY: nobody else would; the stand-in notices that there is no memory.
    let launch = unsafe { gpu.kernels.step_raw(&tensor(0x100), &coeffs, gpu.raw_stream()) };
    launch.unwrap();
    let lost = |result: Result<(), CudaError>| match result {
        Err(CudaError::Driver { code: 700, name, .. }) => assert_eq!(name, "CUDA_ERROR_ILLEGAL_ADDRESS"),
        result => panic!("{result:?}"),
    };
    lost(optimizer.state().map(|_| ()));
    // SAFETY: as above.
    lost(unsafe { gpu.kernels.step_raw(&tensor(0x100), &coeffs, gpu.raw_stream()) });
    lost(TensorList::new(&gpu.kernels, &[tensor(0x100)]).map(|_| ()));
    lost(optimizer.set_moments(0, 1, &vec![0.0; 5000], &vec![0.0; 5000]));
    assert_eq!(optimizer.step_of(0).unwrap(), 1);
}

/// The caller's own context is current, and the primary one of the device has failed.
fn another_context_is_sound_where_the_primary_one_is_lost() {
    let gpu = self::gpu();
    let other = gpu.other_context();
    let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 30), [0; 5], 0);
    let device = host.upload(&gpu);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    stand_in(&gpu).fail("execute", 1, 700);
    // SAFETY: the stand-in checks each access.
    unsafe { gpu.kernels.step_raw(&device.raw(&host), &coeffs, gpu.raw_stream()) }.unwrap();
    assert!(gpu.context.synchronize().is_err());
    let Gpu { kernels, stream, context, stand_in } = gpu;
    drop(kernels);
    set_current(other.cu_ctx().cast());
    // SAFETY: the context lives until the kernels are dropped.
    let [made, again] = [0, 1].map(|_| unsafe { Kernels::in_current_context() }.unwrap());
    assert_eq!(made.context().cu_ctx(), other.cu_ctx());
    assert!(Arc::ptr_eq(made.context(), again.context()));
    // The memory is lost with its context.
    std::mem::forget(device);
    drop((made, again, other, stream, context));
    drop(stand_in);
}

fn drivers_that_cannot_do_it_are_refused() {
    let stand_in = start();
    stand_in.set_driver_version(11_030);
    let error = Kernels::new(0).unwrap_err();
    assert!(matches!(error, CudaError::OldDriver { required: 11_040, found: 11_030 }));
    assert_eq!(error.to_string(), "the CUDA driver must support CUDA 11.4, it supports 11.3");
    stand_in.set_driver_version(11_040);
    drop(Kernels::new(0).unwrap());
    // A toolkit's stub answers so to every call.
    stand_in.fail("cuDriverGetVersion", 1, 34);
    assert!(matches!(Kernels::new(0), Err(CudaError::StubDriver)));

    assert!(matches!(
        Kernels::new(5),
        Err(CudaError::Argument(ArgumentError::List(ListError::Position { list: "device", value: 5, .. })))
    ));
    assert!(matches!(
        Kernels::new(1 << 32),
        Err(CudaError::Argument(ArgumentError::List(ListError::Position { list: "device", .. })))
    ));

    // Compute capability 7.0. What the driver refuses once it may take later.
    let kernels = Kernels::new(0).unwrap();
    stand_in.set_attribute(75, 7);
    stand_in.set_attribute(76, 0);
    for _ in 0..2 {
        match kernels.prepare(Formats::new(Dtype::F32, Dtype::F32)) {
            Err(CudaError::Ptx(error)) => {
                let PtxError { code, name, origin, log, .. } = *error;
                assert_eq!((code, name.as_str()), (209, "CUDA_ERROR_NO_BINARY_FOR_GPU"));
                assert!(origin.contains("13.0") && log.contains("sm_75"), "{origin}: {log}");
            }
            result => panic!("{result:?}"),
        }
    }
    assert!(matches!(
        Control::new(&kernels, &[], &[]),
        Err(CudaError::Argument(ArgumentError::List(ListError::Empty { .. })))
    ));
    stand_in.set_attribute(76, 5);
    kernels.prepare(Formats::new(Dtype::F32, Dtype::F32)).unwrap();
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

//! Masters that take over what other code wrote into their parameters.

use std::collections::BTreeSet;

use dualadam::cuda::{self, CudaError, DualAdam, Kernels};
use dualadam::half::bf16;
use dualadam::{
    DualAdamConfig, Error, ListError, RawBuffer, RawTensor, Role, SwitchSchedule, TensorProblem, TensorSpec,
};
use testkit::data::{Inputs, SIZES, narrow};
use testkit::masters::{self, VARIANTS, changed};
use testkit::raw::{bf16_at, f32_at, good};
use testkit::{Tensor, Variant};

use super::flat::{MOST_ON_THE_STAND_IN, copied, read, upload};
use super::refused::refused;
use super::twin::Optimizer;
use super::{Body, GLOBAL, Gpu, Models, THREAD_LOCAL, Twin, capture, refused};

use TensorProblem::{Extent, MasterFormats, Misaligned, Null, Overlap};

pub(crate) const TESTS: &[Body] = bodies!["masters":
    every_pattern_of_a_parameter_follows_the_rule,
    every_variant_and_size_follows_the_rule,
    every_misalignment_follows_the_rule,
    the_call_is_captured_once_kernels_are_loaded,
    the_call_only_enqueues,
    slices_wait_for_other_streams,
    bad_input_launches_nothing,
    steps_go_on_from_clamped_parameters,
    a_graph_may_clamp_and_step,
    a_graph_may_outlive_the_optimizer,
    masters_live_until_they_are_up_to_date,
    an_optimizer_refuses_bad_input_as_a_whole,
];

/// Brings the masters of a tensor in device memory up to date.
fn by_address(gpu: &Gpu) -> impl Fn(&mut Tensor) {
    |tensor| {
        let twin = Twin::new(gpu, tensor.clone());
        if let Some(stand_in) = &gpu.stand_in {
            assert!(stand_in.set_read_only(twin.memory[0].address, tensor.param.bytes().len(), true));
        }
        sync(gpu, &twin.raw()).unwrap();
        *tensor = twin.found(gpu);
    }
}

fn sync(gpu: &Gpu, tensor: &RawTensor) -> Result<(), CudaError> {
    let RawTensor { len, param, master, .. } = *tensor;
    // SAFETY: buffers that are not refused are as long as the tensor, and nothing else uses them;
    // the stand-in checks each access.
    unsafe { gpu.kernels.sync_master_raw(len, param, master.unwrap(), gpu.raw_stream()) }
}

fn every_pattern_of_a_parameter_follows_the_rule(gpu: &Gpu) {
    masters::patterns(&by_address(gpu), &VARIANTS, 1 << 14);
    gpu.assert_clean();
}

/// Each variant's kernel, where only its kernels are loaded.
fn every_variant_and_size_follows_the_rule(gpu: &Gpu) {
    let most = if gpu.stand_in.is_some() { MOST_ON_THE_STAND_IN } else { usize::MAX };
    for names in [["bf16_bf16_master", "f16_f16_master"], ["bf16_f32_master", "f16_f32_master"]] {
        let context = gpu.other_context();
        let kernels = Kernels::in_context(&context).unwrap();
        context.bind_to_thread().unwrap();
        let stream = context.new_stream().unwrap();
        let other = Gpu { kernels, stream, context, stand_in: None };
        names.into_iter().for_each(|name| other.prepare(name).unwrap());
        masters::sizes(&by_address(&other), SIZES.into_iter().filter(|&size| size <= most));
        other.assert_clean();
    }
    gpu.assert_clean();
    if let Some(stand_in) = &gpu.stand_in {
        let names: BTreeSet<_> = stand_in.launches().into_iter().map(|launch| launch.0).collect();
        let with_masters = Variant::all().filter(|variant| variant.formats().master.is_some());
        let expected: BTreeSet<_> = with_masters.map(|variant| format!("sync_master_{}", variant.name())).collect();
        assert_eq!(names, expected, "each kernel ran");
    }
}

fn every_misalignment_follows_the_rule(gpu: &Gpu) {
    let lens: Vec<_> = (0..10).chain([261, 2051]).collect();
    masters::misalignments(&by_address(gpu), 4, &lens);
    gpu.assert_clean();
}

/// Each launch of a graph compares again.
fn the_call_is_captured_once_kernels_are_loaded(gpu: &Gpu) {
    let mut twin = Twin::new(gpu, changed("bf16_bf16_master", 100, [0; 5], |i| i % 7 == 0));
    let raw = twin.raw();
    drop(capture(&gpu.stream, GLOBAL, || {
        let error = sync(gpu, &raw).unwrap_err();
        assert!(error.to_string().contains("loads its kernels"), "{error}");
        refused::captured(Err::<(), _>(error));
    }));
    gpu.prepare("bf16_f32_master").unwrap(); // any variant with the same parameters and masters
    let graph = capture(&gpu.stream, GLOBAL, || sync(gpu, &raw).unwrap());
    twin.assert_same(gpu, "captured only");
    for round in 0..3 {
        twin.host.param = changed("bf16_bf16_master", 100, [0; 5], |i| i % 7 == round).param;
        gpu.write(&twin.memory[0], twin.host.param.bytes());
        graph.launch().unwrap();
        masters::by_contract(&mut twin.host);
        twin.assert_same(gpu, &format!("launch {round}"));
    }
}

fn the_call_only_enqueues(gpu: &Gpu) {
    let mut twin = Twin::new(gpu, changed("f16_f16_master", 5000, [0; 5], |i| i % 2 == 0));
    gpu.prepare("f16_f16_master").unwrap();
    gpu.launching_only([1, 0, 1, 1, 1, 2], || sync(gpu, &twin.raw()).unwrap());
    if let Some(stand_in) = &gpu.stand_in {
        assert_eq!(stand_in.pending(), 1);
    }
    masters::by_contract(&mut twin.host);
    twin.assert_same(gpu, "late");
}

/// Slices are of streams of their own, with cudarc's own ordering between them.
fn slices_wait_for_other_streams(gpu: &Gpu) {
    // SAFETY: nothing was allocated while event tracking was off.
    unsafe { gpu.context.enable_event_tracking() };
    let mut master = Inputs::random(1, 1030).p;
    let mut param = narrow::<bf16>(&master);
    (0..1030).step_by(3).for_each(|i| param[i] = bf16::NEG_ONE);
    let (mut device_param, mut device_master) = (upload(&gpu.context, &param), upload(&gpu.context, &master));
    cuda::sync_master(&gpu.kernels, &gpu.stream, &device_param, &mut device_master).unwrap();
    device_param.stream().clone().memset_zeros(&mut device_param).unwrap();
    let found = copied(&device_master);
    dualadam::cpu::sync_master(&param, &mut master).unwrap();
    assert_eq!(read(&found), master);

    let short = device_param.slice(..1000);
    let result = cuda::sync_master(&gpu.kernels, &gpu.stream, short, &mut device_master);
    refused::length(result, 0, Role::Master, 1000, 1030);
}

fn bad_input_launches_nothing(gpu: &Gpu) {
    const BEYOND: u64 = u64::MAX - 127;
    let (param, master) = (good().param, good().master.unwrap());
    let stream = gpu.raw_stream();
    // SAFETY: refused before anything is launched, or empty.
    let sync = |len, param, master| unsafe { gpu.kernels.sync_master_raw(len, param, master, stream) };
    for (param, master) in [(f32_at(0x1400), master), (param, bf16_at(0x1000))] {
        let problem = MasterFormats { param: param.dtype, master: master.dtype };
        refused::problem(sync(64, param, master), 0, None, problem);
    }
    for (param, master, buffer, problem) in [
        (bf16_at(0), master, Role::Param, Null),
        (param, f32_at(0), Role::Master, Null),
        (bf16_at(0x1401), master, Role::Param, Misaligned { address: 0x1401, align: 2 }),
        (param, f32_at(0x1002), Role::Master, Misaligned { address: 0x1002, align: 4 }),
        (param, f32_at(BEYOND), Role::Master, Extent { address: BEYOND, len: 64, size: 4 }),
        (bf16_at(0x1000), f32_at(0x107c), Role::Master, overlap(0x107c)),
    ] {
        refused::problem(sync(64, param, master), 0, buffer, problem);
    }
    let huge = refused(sync(1 << 43, bf16_at(1 << 61), f32_at(1 << 62)));
    assert!(matches!(huge, Error::List(ListError::TooMany { .. })), "{huge:?}");
    sync(0, bf16_at(1), f32_at(0)).unwrap();

    let other = gpu.other_context();
    let foreign = other.new_stream().unwrap();
    // SAFETY: refused before anything is launched.
    let result = unsafe { gpu.kernels.sync_master_raw(64, param, master, foreign.cu_stream().cast()) };
    refused::context(result, "stream");
    let (param, mut master) = (foreign.alloc_zeros::<bf16>(4).unwrap(), gpu.stream.alloc_zeros::<f32>(4).unwrap());
    refused::context(cuda::sync_master(&gpu.kernels, &gpu.stream, &param, &mut master), "param of tensor 0");
    gpu.assert_nothing_launched();
}

fn overlap(address: u64) -> TensorProblem {
    Overlap { other_tensor: 0, other_buffer: Role::Param, address }
}

fn models(gpu: &Gpu) -> Models {
    let specs = [
        ("bf16_f32_master", 1030, 0),
        ("f32_f32", 50, 0),
        ("f16_f16_master", 7, 0),
        ("bf16_f32_master", 0, 0),
        ("f16_f32_master", 33, 0),
    ];
    let config = DualAdamConfig::adamw(0.1).with_lr(0.05).with_schedule(SwitchSchedule::linear_until(4));
    Models::new(&gpu.stream, &[config], &specs)
}

/// Parameters are clamped between steps, on the device and on the host, also before a tensor's
/// first update. Both kinds of optimizer have the CPU's bits.
fn steps_go_on_from_clamped_parameters(gpu: &Gpu) {
    let run = |models: &mut Models, optimizer: &mut dyn Steps| {
        for round in 0..8 {
            models.set_grads(round);
            // Tensor 4 has its first update late.
            optimizer.step(models, &|tensor| tensor == 4 && round < 3);
            models.clamp(0.5);
            optimizer.sync(models);
            optimizer.assert_same(models, &format!("round {round}"));
        }
    };
    let mut models = self::models(gpu);
    let mut optimizer = models.optimizer(&gpu.kernels);
    run(&mut models, &mut optimizer);
    let mut models = self::models(gpu);
    let mut capturable = models.optimizer(&gpu.kernels).into_capturable().unwrap();
    run(&mut models, &mut capturable);
}

/// An optimizer of either kind.
trait Steps {
    fn step(&mut self, models: &mut Models, missing: &dyn Fn(usize) -> bool);
    fn sync(&mut self, models: &mut Models);
    fn assert_same(&self, models: &Models, what: &str);
}

impl<T: Optimizer> Steps for T {
    fn step(&mut self, models: &mut Models, missing: &dyn Fn(usize) -> bool) {
        models.step(self, missing);
    }

    fn sync(&mut self, models: &mut Models) {
        models.sync_masters(self).unwrap();
        models.expect_synced();
    }

    fn assert_same(&self, models: &Models, what: &str) {
        models.assert_same(self, what);
    }
}

/// Both a step and the call are in a graph; the parameters change between its launches.
fn a_graph_may_clamp_and_step(gpu: &Gpu) {
    let mut models = models(gpu);
    let mut optimizer = models.optimizer(&gpu.kernels).into_capturable().unwrap();
    models.step(&mut optimizer, |_| false);
    let graph = capture(&gpu.stream, THREAD_LOCAL, || {
        models.sync_masters(&mut optimizer).unwrap();
        models.launch(&mut optimizer, |_| false).unwrap();
    });
    for round in 0..3 {
        models.clamp(0.5);
        graph.launch().unwrap();
        models.expect_synced();
        models.expect(|_| false);
        models.assert_same(&optimizer, &format!("launch {round}"));
    }
}

/// A graph keeps the masters that it writes, and an optimizer that is dropped leaves them.
fn a_graph_may_outlive_the_optimizer(gpu: &Gpu) {
    let mut models = models(gpu);
    let mut optimizer = models.optimizer(&gpu.kernels);
    models.step(&mut optimizer, |_| false);
    let graph = capture(&gpu.stream, THREAD_LOCAL, || models.sync_masters(&mut optimizer).unwrap());
    drop(optimizer);
    drop(models.optimizer(&gpu.kernels)); // an allocation, which frees what is no longer used
    graph.launch().unwrap();
    gpu.assert_clean();
}

/// Memory is freed after the last use, not after the last step.
fn masters_live_until_they_are_up_to_date(gpu: &Gpu) {
    let mut models = models(gpu);
    let mut optimizer = models.optimizer(&gpu.kernels);
    models.step(&mut optimizer, |_| false);
    gpu.context.synchronize().unwrap();
    models.sync_masters(&mut optimizer).unwrap();
    drop(optimizer);
    drop(models.optimizer(&gpu.kernels));
    gpu.assert_clean();
}

fn an_optimizer_refuses_bad_input_as_a_whole(gpu: &Gpu) {
    let other = gpu.other_context();
    let specs = [TensorSpec::new(4).with_master(), TensorSpec::new(4).with_master().with_name("bias")];
    let mut state = dualadam::State::new(&[DualAdamConfig::adam()], &specs).unwrap();
    (0..2).for_each(|tensor| state.ledger.set_master_is_set(tensor, true).unwrap());
    let mut optimizer = DualAdam::from_state(&gpu.kernels, &gpu.stream, &state).unwrap();
    let first = gpu.stream.clone_htod(&[bf16::ONE; 4]).unwrap();
    let floats = gpu.stream.clone_htod(&[1.0_f32; 4]).unwrap();
    refused::count(optimizer.sync_masters([(&first).into()]), "params", 2, 1);
    let short = first.slice(..3);
    refused::length(optimizer.sync_masters([(&first).into(), short.into()]), 1, Role::Param, 4, 3);
    let problem = MasterFormats { param: dualadam::Dtype::F32, master: dualadam::Dtype::F32 };
    refused::problem(optimizer.sync_masters([(&first).into(), (&floats).into()]), 1, None, problem);
    let foreign = other.new_stream().unwrap().alloc_zeros::<bf16>(4).unwrap();
    let result = optimizer.sync_masters([(&first).into(), (&foreign).into()]);
    refused::context(result, "param of tensor 1 (bias)");
    // SAFETY: refused before anything is launched.
    let result = unsafe { optimizer.sync_masters_raw(&[bf16_at(0x1000), bf16_at(0)]) };
    refused::problem(result, 1, Role::Param, Null);
    // SAFETY: as above.
    refused::count(unsafe { optimizer.sync_masters_raw(&[RawBuffer::f32(0)]) }, "params", 2, 1);
    gpu.assert_nothing_launched();
    assert_eq!(optimizer.state().unwrap(), state);
    optimizer.sync_masters([(&first).into(), (&first).into()]).unwrap();
    assert!(optimizer.state().unwrap().arrays.iter().all(|arrays| arrays.master == Some(vec![1.0; 4])));
}

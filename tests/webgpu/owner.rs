//! The owning optimizer: the bits of lists made by hand, files that resume anywhere, and states
//! read while other work goes on.

use std::ops::Range;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dualadam::webgpu::{Binding, BindingProblem, DualAdam, WgpuProblem, required_limits, wgpu};
use dualadam::{
    Dtype, DualAdamConfig, Formats, Role, State, StateError, StateProblem, SwitchSchedule, TensorProblem, TensorSpec,
    WeightDecay, cpu,
};
use pollster::block_on;
use testkit::contract::same;
use testkit::device::DeviceTest;
use testkit::model::{Model, Spec, wide};
use testkit::state::{assert_holds, bits, temporary};
use testkit::{Inputs, Tensor as Host, Values, Variant, formats};

use crate::refused::refused;
use crate::{Device, Gpu, STORAGE, Uploaded, refused};

pub(crate) const TESTS: &[DeviceTest<Gpu>] = &[
    ("owner_has_the_bits_of_lists", has_the_bits_of_lists),
    ("owner_sets_masters_exactly", sets_masters_exactly),
    ("owner_follows_changed_types", |gpu| follows_changed_types(&gpu.device)),
    ("owner_takes_moments", |gpu| takes_moments(&gpu.device)),
    ("owner_resumes_bit_for_bit", |gpu| resumes_bit_for_bit(&gpu.device)),
    ("owner_shares_files_with_the_cpu", |gpu| shares_files_with_the_cpu(&gpu.device)),
    ("owner_reads_while_other_work_goes_on", |gpu| reads_while_other_work_goes_on(&gpu.device)),
    ("owner_reads_large_states_in_pieces", |gpu| reads_large_states_in_pieces(&gpu.device)),
    ("owner_refuses_bad_input_and_stays", refuses_bad_input_and_stays),
    ("owner_refuses_damaged_files_and_stays", |gpu| refuses_damaged_files_and_stays(&gpu.device)),
    ("owner_on_small_devices", on_small_devices),
    ("owner_names_tensors_in_errors", |gpu| names_tensors_in_errors(&gpu.device)),
    ("owner_on_a_lost_device", on_a_lost_device),
];

/// Lengths of whole quads and tails, of nothing, and of more than a workgroup.
const LENS: [usize; 6] = [1030, 4, 3, 0, 1, 2048];

fn groups() -> [DualAdamConfig; 2] {
    let dual = DualAdamConfig::default().with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(8));
    [dual, DualAdamConfig::adam().with_weight_decay(WeightDecay::Decoupled(0.1))]
}

/// A model's parameters on a device, and its gradients of three rounds.
struct Models {
    host: Model,
    params: Vec<wgpu::Buffer>,
    grads: [Vec<wgpu::Buffer>; 3],
}

impl Models {
    /// A tensor of every variant and length.
    fn all(device: &Device) -> Self {
        let each = LENS.into_iter().flat_map(|len| Variant::all().map(move |variant| (variant.formats(), len)));
        Self::new(
            device,
            each.zip([0, 1].into_iter().cycle()).map(|((formats, len), group)| Spec { formats, len, group }),
        )
    }

    /// Tensors of these variants.
    fn of(device: &Device, names: &[&str], len: usize, group: usize) -> Self {
        Self::new(device, names.iter().map(|name| Spec { formats: formats(name), len, group }))
    }

    fn new(device: &Device, specs: impl Iterator<Item = Spec>) -> Self {
        let host = Model::new(&specs.collect::<Vec<_>>(), wide);
        let upload = |values: &Values| device.buffer(values.bytes());
        let grads = [0, 1, 2].map(|round| host.grads(round, |_| true).iter().flatten().map(upload).collect());
        Self { params: host.params.iter().map(upload).collect(), grads, host }
    }

    fn params(&self) -> Vec<Binding<'_>> {
        let of = |(buffer, spec): (_, &Spec)| Binding::new(buffer, spec.formats.param);
        self.params.iter().zip(&self.host.specs).map(of).collect()
    }

    /// The gradients of step `t`, every fourth of which is missing.
    fn grads(&self, t: usize) -> Vec<Option<Binding<'_>>> {
        let of =
            |(i, spec): (usize, &Spec)| has_grads(i, t).then(|| Binding::new(&self.grads[t % 3][i], spec.formats.grad));
        self.host.specs.iter().enumerate().map(of).collect()
    }

    fn optimizer(&self, device: &Device) -> DualAdam {
        DualAdam::with_groups(device.pipelines(), &groups(), &self.host.tensor_specs()).unwrap()
    }

    /// Steps `t`, all in one pass.
    fn run(&self, device: &Device, optimizer: &mut DualAdam, steps: Range<usize>) {
        device.submit(|pass| {
            steps.for_each(|t| optimizer.step_scaled(pass, self.params(), self.grads(t), 0.5).unwrap());
        });
    }

    fn read(&self, device: &Device) -> Vec<Vec<u8>> {
        self.params.iter().map(|params| device.read(params)).collect()
    }

    /// The state, and the parameters' bytes.
    fn results(&self, device: &Device, optimizer: &DualAdam) -> (State, Vec<Vec<u8>>) {
        (optimizer.state(&device.queue).unwrap(), self.read(device))
    }
}

fn has_grads(index: usize, t: usize) -> bool {
    !(index + t).is_multiple_of(4)
}

fn has_the_bits_of_lists(gpu: &Gpu) {
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let models = Models::all(device);
        let mut optimizer = models.optimizer(device);
        // Passes of one step and of several, in which masters are set at first.
        [0..3, 3..4, 4..12].into_iter().for_each(|steps| models.run(device, &mut optimizer, steps));
        let (state, params) = models.results(device, &optimizer);

        for (index, (spec, before)) in models.host.specs.iter().zip(&models.host.params).enumerate() {
            let (uploaded, mut step) = (Uploaded::new(device, &Host::fresh(spec.formats, before)), 0);
            for t in (0..12).filter(|&t| has_grads(index, t)) {
                step += 1;
                let coeffs = groups()[spec.group].coeffs_scaled(step, 0.5).unwrap();
                device.step(&device.list(&[uploaded.tensor().with_grad(models.grads(t)[index])]), &[coeffs]);
            }
            let by_hand = uploaded.download(device);
            let what = format!("tensor {index}, {}", by_hand.types());
            let ledger = &state.ledger;
            assert_eq!((ledger.step(index).unwrap(), ledger.spec(index).unwrap()), (step, &spec.of_tensor()), "{what}");
            assert_eq!(ledger.master_is_set(index).unwrap(), by_hand.master.is_some(), "{what}");
            assert_holds(&state, index, &by_hand, &what);
            let expected = by_hand.param.bytes();
            let (content, behind) = params[index].split_at(expected.len());
            assert_eq!(content, expected, "{what}");
            assert!(behind.iter().all(|&byte| byte == 0xa5), "{what}: {behind:x?}");
            // A single 16-bit parameter may round to its old value.
            assert!(spec.len < 1000 || content != before.bytes(), "{what}: unchanged");
        }
    }
}

/// Every 16-bit pattern, and a tail, whole and in windows of 128 elements.
fn sets_masters_exactly(gpu: &Gpu) {
    let windows = wgpu::Limits { max_storage_buffer_binding_size: 512, ..wgpu::Limits::default() };
    let windows = gpu.open(wgpu::Features::empty(), windows);
    for device in [Some(&gpu.device), Some(&windows), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        Variant::all().map(Variant::formats).filter(|formats| formats.master.is_some()).for_each(|formats| {
            check_masters(device, formats);
        });
    }
}

/// The masters of parameters of all patterns after a step with gradients of 0, which moves nothing.
fn check_masters(device: &Device, formats: Formats) {
    let patterns: Vec<u16> = (0..=u16::MAX).chain([0x3f80, 0x1234, 0x8001]).collect();
    let values = Values::from_bits(formats.param, &patterns);
    let params = device.buffer(values.bytes());
    let grads = device.buffer(&vec![0; 4 * patterns.len()]);
    let (params, grads) = (Binding::new(&params, formats.param), Binding::new(&grads, formats.grad));
    let specs = [TensorSpec::new(patterns.len()).with_master()];
    let mut optimizer = DualAdam::with_groups(device.pipelines(), &groups(), &specs).unwrap();
    assert!(!optimizer.state(&device.queue).unwrap().ledger.master_is_set(0).unwrap());
    device.submit(|pass| optimizer.step(pass, [params], [Some(grads)]).unwrap());
    let masters = optimizer.state(&device.queue).unwrap().arrays.remove(0).master.unwrap();
    for (expected, found) in values.wide().into_iter().zip(masters) {
        // The step after the masters are set may flush a subnormal, as any WGSL operation may.
        let flushed = expected.is_subnormal() && found == 0.0;
        assert!(flushed || same(found, expected), "{formats}: {found:e}, not {expected:e}");
    }
}

/// A parameter and its gradient become bf16, first in a step without a gradient.
fn follows_changed_types(device: &Device) {
    let [wide, narrow, again] = ["f32_f32", "bf16_bf16", "bf16_bf16"].map(|name| Models::of(device, &[name], 1030, 0));
    let mut changing = wide.optimizer(device);
    wide.run(device, &mut changing, 1..3);
    let state = changing.state(&device.queue).unwrap();
    device.submit(|pass| changing.step(pass, narrow.params(), [None]).unwrap());
    assert_eq!(changing.state(&device.queue).unwrap(), state);
    narrow.run(device, &mut changing, 1..3);
    let mut fresh = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    again.run(device, &mut fresh, 1..3);
    assert_eq!(narrow.results(device, &changing), again.results(device, &fresh));
    assert_eq!(changing.step_of(0).unwrap(), 4);
}

fn takes_moments(device: &Device) {
    let models = Models::all(device);
    let mut optimizer = models.optimizer(device);
    let inputs = Inputs::random(1, 1030);
    optimizer.set_moments(&device.queue, 7, 100, &inputs.m, &inputs.v).unwrap();
    let mut expected = State::new(&groups(), &models.host.tensor_specs()).unwrap();
    expected.ledger.set_step(7, 100).unwrap();
    (expected.arrays[7].exp_avg, expected.arrays[7].exp_avg_sq) = (inputs.m.clone(), inputs.v.clone());
    assert_eq!(optimizer.state(&device.queue).unwrap(), expected);
    assert_eq!(optimizer.step_of(7).unwrap(), 100);

    let negative: Vec<f32> = inputs.v.iter().map(|v| -v).collect();
    let mut set = |tensor, m: &[f32], v: &[f32]| optimizer.set_moments(&device.queue, tensor, 1, m, v);
    refused::length(set(7, &inputs.m[1..], &inputs.v), 7, Role::ExpAvg, 1030, 1029);
    refused::problem(set(7, &inputs.m, &negative), 7, Role::ExpAvgSq, TensorProblem::Negative { value: negative[0] });
    let count = models.params.len();
    refused::position(set(count, &inputs.m, &inputs.v), "tensor", count, count);
    assert_eq!(optimizer.state(&device.queue).unwrap(), expected);
}

fn resumes_bit_for_bit(device: &Device) {
    let (_folder, path) = temporary();
    let (models, twins) = (Models::all(device), Models::all(device));
    let mut whole = models.optimizer(device);
    models.run(device, &mut whole, 0..3);
    whole.set_lr(1, 1e-4).unwrap();
    models.run(device, &mut whole, 3..9);
    let whole = models.results(device, &whole);

    let mut first = twins.optimizer(device);
    twins.run(device, &mut first, 0..3);
    first.save(&device.queue, &path).unwrap();
    let mut second = twins.optimizer(device);
    // The second optimizer has a list and moments already, which the file replaces.
    device.submit(|pass| second.step(pass, models.params(), vec![None; models.params.len()]).unwrap());
    second.load(&device.queue, &path).unwrap();
    assert_eq!(second.state(&device.queue).unwrap(), first.state(&device.queue).unwrap());
    second.set_lr(1, 1e-4).unwrap();
    twins.run(device, &mut second, 3..5);
    let state = second.state(&device.queue).unwrap();
    let mut third = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    twins.run(device, &mut third, 5..9);
    assert_eq!(third.config(1).unwrap().lr, 1e-4);
    assert!(twins.results(device, &third) == whole);
}

/// A state that a CPU optimizer has after some steps, with bits of all kinds, some of its masters
/// set and some not.
fn cpu_optimizer() -> cpu::DualAdam {
    let specs = [("f32_f32", 1030, 0), ("f32_f32", 0, 0), ("bf16_f32_master", 7, 1), ("bf16_f32_master", 3, 0)];
    let mut model = Model::new(&specs.map(|(name, len, group)| Spec { formats: formats(name), len, group }), wide);
    let mut optimizer = cpu::DualAdam::with_groups(&groups(), &model.tensor_specs()).unwrap();
    for _ in 0..3 {
        let grads = model.grads(0, |tensor| tensor != 3);
        model.step(&mut optimizer, &grads, 1.0).unwrap();
    }
    let special = [f32::MIN_POSITIVE / 8.0, -0.0, f32::INFINITY];
    optimizer.set_moments(3, u64::MAX - 1, &special, &[0.0, 1e-45, f32::MAX]).unwrap();
    optimizer.set_lr(1, 1.234_567_890_123e-5).unwrap();
    optimizer
}

#[track_caller]
fn assert_same_state(found: &State, expected: &State) {
    assert_eq!(bits(found), bits(expected));
}

fn shares_files_with_the_cpu(device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let [from_cpu, from_webgpu] = ["cpu", "webgpu"].map(|name| folder.path().join(name));
    let mut on_cpu = cpu_optimizer();
    on_cpu.save(&from_cpu).unwrap();

    let state = State::load(&from_cpu).unwrap();
    let taken = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    assert_same_state(&taken.state(&device.queue).unwrap(), on_cpu.state());
    let specs: Vec<_> = on_cpu.state().ledger.specs().cloned().collect();
    let mut loaded = DualAdam::with_groups(device.pipelines(), &[DualAdamConfig::adam(); 2], &specs).unwrap();
    loaded.load(&device.queue, &from_cpu).unwrap();
    assert_same_state(&loaded.state(&device.queue).unwrap(), on_cpu.state());

    loaded.save(&device.queue, &from_webgpu).unwrap();
    assert_eq!(std::fs::read(&from_webgpu).unwrap(), std::fs::read(&from_cpu).unwrap());
    let before = on_cpu.state().clone();
    on_cpu.load(&from_webgpu).unwrap();
    assert_same_state(on_cpu.state(), &before);
}

fn reads_while_other_work_goes_on(device: &Device) {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let (models, others) = (Models::all(device), Models::all(device));
    let (mut optimizer, mut other) = (models.optimizer(device), others.optimizer(device));
    models.run(device, &mut optimizer, 0..4);
    let expected = optimizer.state(&device.queue).unwrap();

    // Polled by hand, with other work submitted before, between and after.
    others.run(device, &mut other, 0..4);
    let mut read = pin!(is_send(optimizer.read_state(&device.queue)));
    let mut steps = 4;
    let state = loop {
        others.run(device, &mut other, steps..steps + 2);
        steps += 2;
        if let Poll::Ready(state) = read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            break state.unwrap();
        }
        device.device.poll(wgpu::PollType::Poll).unwrap();
    };
    assert_same_state(&state, &expected);

    // Awaited by one thread, polled by another.
    assert_same_state(&device.awaited(is_send(optimizer.read_state(&device.queue))).unwrap(), &expected);

    // A read that is dropped leaves the optimizer usable. Two reads may run at once.
    drop(optimizer.read_state(&device.queue));
    let (mut one, mut two) = (pin!(optimizer.read_state(&device.queue)), pin!(optimizer.read_state(&device.queue)));
    device.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    for read in [one.as_mut(), two.as_mut()] {
        assert_same_state(&block_on(read).unwrap(), &expected);
    }
    // None of this disturbed the other work.
    let twins = Models::all(device);
    let mut twin = twins.optimizer(device);
    twins.run(device, &mut twin, 0..steps);
    assert!(twins.results(device, &twin) == others.results(device, &other));
}

/// 128 MiB of moments, read in pieces. A piece may begin within an array and contain the ends of
/// several.
fn reads_large_states_in_pieces(device: &Device) {
    let lens = [(64 << 20) / 4 + 3, 5];
    let mut state = State::new(&groups(), &lens.map(TensorSpec::new)).unwrap();
    for (number, tensor) in state.arrays.iter_mut().enumerate() {
        tensor.exp_avg.iter_mut().enumerate().for_each(|(i, m)| *m = (i + number) as f32 - 1e6);
        tensor.exp_avg_sq.iter_mut().enumerate().for_each(|(i, v)| *v = (3 * i + number) as f32);
    }
    let optimizer = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    assert!(optimizer.state(&device.queue).unwrap() == state);
    assert!(device.awaited(optimizer.read_state(&device.queue)).unwrap() == state);
}

fn refuses_bad_input_and_stays(gpu: &Gpu) {
    let device = &gpu.device;
    let names = ["f32_f32", "bf16_bf16_master", "f32_f32"];
    let (good, twin) = (Models::of(device, &names, 1030, 0), Models::of(device, &names, 1030, 0));
    let (mut optimizer, mut twin_optimizer) = (good.optimizer(device), twin.optimizer(device));
    good.run(device, &mut optimizer, 1..2);
    twin.run(device, &mut twin_optimizer, 1..2);
    let before = good.results(device, &optimizer);

    let (params, grads) = (good.params(), good.grads(1));
    let (short, large) = (device.buffer(&[0; 4 * 1029]), device.empty(8192, STORAGE));
    let unusable = device.empty(4 * 1030, wgpu::BufferUsages::COPY_DST);
    let foreign = gpu.open(wgpu::Features::empty(), required_limits()).buffer(&[0; 4 * 1030]);
    let f32_of = |buffer| Binding::new(buffer, Dtype::F32);
    let with_params = |index: usize, view| {
        let mut params = params.clone();
        params[index] = view;
        params
    };
    let with_grads = |index: usize, view| {
        let mut grads = grads.clone();
        grads[index] = Some(view);
        grads
    };
    device.submit(|pass| {
        let mut step = |params: &[_], grads: &[_]| optimizer.step(pass, params.iter().copied(), grads.iter().copied());
        refused::count(step(&params[..2], &grads), "params", 3, 2);
        refused::count(step(&params, &grads[..1]), "grads", 3, 1);
        refused::buffer_size(step(&with_params(2, f32_of(&short)), &grads), 2, Role::Param, 4120, 4116);
        refused::buffer_size(step(&params, &with_grads(1, f32_of(&short))), 1, Role::Grad, 4120, 4116);
        let usage = wgpu::BufferUsages::COPY_DST;
        refused::usage(step(&with_params(0, f32_of(&unusable)), &grads), 0, Role::Param, usage);
        let inside = f32_of(&large).with_offset(4);
        refused::offset(step(&params, &with_grads(0, inside)), 0, Role::Grad, 256, 4);
        // Masters of f32 parameters, and a pair of formats without a shader.
        let masters_of_f32 = step(&with_params(1, f32_of(&large)), &grads);
        refused::formats(masters_of_f32, 1, Formats::new(Dtype::F32, Dtype::Bf16).with_master(Dtype::F32));
        let f16_for_bf16 = step(&params, &with_grads(1, Binding::new(&large, Dtype::F16)));
        refused::formats(f16_for_bf16, 1, Formats::new(Dtype::Bf16, Dtype::F16).with_master(Dtype::F32));
        refused::overlap(step(&params, &with_grads(0, params[2])));
        refused::overlap(step(&with_params(0, params[2]), &grads));
        let (_, tensor, problem) = refused::by_wgpu(step(&params, &with_grads(2, f32_of(&foreign))));
        assert!(matches!((tensor, &problem), (Some(2), WgpuProblem::Validation(_))), "{tensor:?}, {problem:?}");
        refused::value(optimizer.step_scaled(pass, params.clone(), grads.clone(), f64::NAN), "grad_multiplier");
    });
    refused::value(optimizer.set_lr(0, -1.0), "lr");
    refused::position(optimizer.set_config(2, DualAdamConfig::adam()), "group", 2, 2);
    refused::position(optimizer.step_of(3), "tensor", 3, 3);
    assert!(good.results(device, &optimizer) == before);

    // A step beyond the largest count.
    let mut state = before.0.clone();
    state.ledger.set_step(2, u64::MAX).unwrap();
    let mut full = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    device.submit(|pass| refused::step_overflow(full.step(pass, params.clone(), grads.clone()), 2));
    assert!(full.state(&device.queue).unwrap() == state);

    good.run(device, &mut optimizer, 2..5);
    twin.run(device, &mut twin_optimizer, 2..5);
    assert!(good.results(device, &optimizer) == twin.results(device, &twin_optimizer));

    refused::group_value(DualAdam::new(device.pipelines(), DualAdamConfig::adam().with_eps(-1.0), &[1]), 0, "eps");
    refused::group(DualAdam::with_groups(device.pipelines(), &groups(), &[TensorSpec::new(1).in_group(2)]), 0, 2, 2);
    state.arrays[0].exp_avg_sq.pop();
    refused::length(DualAdam::from_state(device.pipelines(), &device.queue, &state), 0, Role::ExpAvgSq, 1030, 1029);
}

fn refuses_damaged_files_and_stays(device: &Device) {
    let (folder, path) = temporary();
    let models = Models::of(device, &["bf16_bf16_master"], 1030, 1);
    let mut optimizer = models.optimizer(device);
    models.run(device, &mut optimizer, 1..3);
    let before = models.results(device, &optimizer);
    let missing = refused::state_error(optimizer.load(&device.queue, &path));
    assert!(matches!(missing, StateError::Io { action: "read", .. }), "{missing:?}");
    optimizer.save(&device.queue, &path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let damaged = refused::file_problem(optimizer.load(&device.queue, &path));
    assert!(matches!(damaged, StateProblem::Checksum { .. }), "{damaged:?}");
    // Good files of other models: of another length, of another group, without masters.
    let own = TensorSpec::new(1030).in_group(1).with_master();
    assert_eq!(models.host.tensor_specs(), std::slice::from_ref(&own));
    let shorter = TensorSpec::new(1029).in_group(1).with_master();
    for spec in [shorter, own.clone().in_group(0), TensorSpec::new(1030).in_group(1)] {
        cpu::DualAdam::with_groups(&groups(), &[spec]).unwrap().save(&path).unwrap();
        let foreign = refused::file_problem(optimizer.load(&device.queue, &path));
        assert!(matches!(foreign, StateProblem::Layout { .. }), "{foreign:?}");
    }
    assert!(models.results(device, &optimizer) == before);
    let nowhere = refused::state_error(optimizer.save(&device.queue, folder.path().join("no/such/folder")));
    assert!(matches!(nowhere, StateError::Io { .. }), "{nowhere:?}");
}

fn on_small_devices(gpu: &Gpu) {
    let masters = [TensorSpec::new(8).with_master()];
    let four = gpu.open(wgpu::Features::empty(), required_limits());
    refused::limit(DualAdam::with_groups(four.pipelines(), &groups(), &masters), 5, 4);
    let state = State::new(&groups(), &masters).unwrap();
    refused::limit(DualAdam::from_state(four.pipelines(), &four.queue, &state), 5, 4);

    // Tensors that share no buffer, in windows of 1,024 elements.
    let small = gpu.open_small();
    let step = |device: &Device| {
        let models =
            Models::new(device, Variant::all().map(|variant| Spec { formats: variant.formats(), len: 4096, group: 0 }));
        let mut optimizer = models.optimizer(device);
        models.run(device, &mut optimizer, 1..4);
        models.results(device, &optimizer)
    };
    assert!(step(&small) == step(&gpu.device));
    let problem = BindingProblem::ArraySize { limit: 16384, len: 4097 };
    let too_long = DualAdam::new(small.pipelines(), DualAdamConfig::adam(), &[4096, 4097]);
    refused::binding(too_long, (1, Role::ExpAvg), problem);
    let specs = [TensorSpec::new(4096), TensorSpec::new(4097).with_name("embedding")];
    assert_eq!(
        refused(DualAdam::with_groups(small.pipelines(), &groups(), &specs)).to_string(),
        "exp_avg of tensor 1 (embedding) must fit in a buffer of 16384 bytes (max_buffer_size), got 4097 elements of f32"
    );
}

/// Problems of bindings and of tensors.
fn names_tensors_in_errors(device: &Device) {
    let specs = [TensorSpec::new(8).with_name("bias")];
    let mut optimizer = DualAdam::with_groups(device.pipelines(), &groups(), &specs).unwrap();
    let buffer = device.buffer(&[0; 28]);
    let of = |dtype| Binding::new(&buffer, dtype);
    device.submit(|pass| {
        let mut begins = |param, grad, begin: &str| {
            let error = refused(optimizer.step(pass, [of(param)], [Some(of(grad))]));
            assert!(error.to_string().starts_with(begin), "{error}");
        };
        begins(Dtype::F32, Dtype::F32, "param of tensor 0 (bias) must be in a buffer of at least 32 bytes");
        begins(Dtype::F16, Dtype::Bf16, "tensor 0 (bias) must have the formats of a variant (f32_f32, ");
    });
    let error = refused(optimizer.set_moments(&device.queue, 0, 1, &[0.0; 7], &[0.0; 8]));
    assert_eq!(error.to_string(), "exp_avg of tensor 0 (bias) must have 8 elements, got 7");
}

fn on_a_lost_device(gpu: &Gpu) {
    // Lost before the call, and while a read is in progress.
    let device = gpu.open(wgpu::Features::empty(), wgpu::Limits::default());
    let models = Models::of(&device, &["f32_f32", "bf16_bf16_master"], 1030, 0);
    let mut optimizer = models.optimizer(&device);
    models.run(&device, &mut optimizer, 1..3);
    let state = optimizer.state(&device.queue).unwrap();
    let (params, grads) = (models.params(), models.grads(1));
    let mut encoder = device.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());

    let read = optimizer.read_state(&device.queue);
    device.device.destroy();
    refused::lost_device(device.awaited(read));
    let (folder, path) = temporary();
    state.save(&path).unwrap();
    let moments = vec![0.0; 1030];
    refused::lost_device(optimizer.state(&device.queue));
    refused::lost_device(optimizer.save(&device.queue, folder.path().join("other")));
    refused::lost_device(block_on(optimizer.read_state(&device.queue)));
    refused::lost_device(optimizer.load(&device.queue, &path));
    refused::lost_device(optimizer.set_moments(&device.queue, 0, 9, &moments, &moments));
    refused::lost_device(optimizer.step(&mut pass, params, grads));
    refused::lost_device(DualAdam::from_state(device.pipelines(), &device.queue, &state));
    refused::lost_device(DualAdam::new(device.pipelines(), DualAdamConfig::adam(), &[1]));
    assert!(!folder.path().join("other").exists());
    for tensor in [0, 1] {
        assert_eq!(optimizer.step_of(tensor), state.ledger.step(tensor));
    }
}

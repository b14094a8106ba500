//! The owning optimizer: the bits of lists made by hand, files that resume anywhere, and states read while other work goes on.

use std::ops::Range;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dualadam::webgpu::{BufferView, DualAdam, Tensor, required_limits, wgpu};
use dualadam::{
    Dtype, DualAdamConfig, Error, State, StateProblem, SwitchSchedule, TensorLayout, TensorState, WeightDecay,
    WgpuProblem, cpu,
};
use pollster::block_on;
use testkit::contract::same;
use testkit::data::Inputs;
use testkit::device::DeviceTest;
use testkit::model::{Model, Spec, wide};
use testkit::refused::{self, refused};
use testkit::state::{bits, float_bits, temporary};
use testkit::tensor::Tensor as Host;
use testkit::values::Values;
use testkit::variant::{Variant, formats};

use crate::gpu::{Device, Gpu, STORAGE};
use crate::host::Uploaded;

pub(crate) const TESTS: &[DeviceTest<Gpu>] = &[
    ("owner_has_the_bits_of_lists", has_the_bits_of_lists),
    ("owner_sets_masters_exactly", sets_masters_exactly),
    ("owner_follows_changed_types", follows_changed_types),
    ("owner_takes_moments", takes_moments),
    ("owner_resumes_bit_for_bit", resumes_bit_for_bit),
    ("owner_shares_files_with_the_cpu", shares_files_with_the_cpu),
    ("owner_reads_while_other_work_goes_on", reads_while_other_work_goes_on),
    ("owner_reads_large_states_in_pieces", reads_large_states_in_pieces),
    ("owner_refuses_bad_input_and_stays", refuses_bad_input_and_stays),
    ("owner_refuses_damaged_files_and_stays", refuses_damaged_files_and_stays),
    ("owner_on_small_devices", on_small_devices),
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

    fn params(&self) -> Vec<BufferView<'_>> {
        let of = |(buffer, spec): (_, &Spec)| BufferView::new(buffer, spec.formats.param);
        self.params.iter().zip(&self.host.specs).map(of).collect()
    }

    /// The gradients of step `t`, every fourth of which is missing.
    fn grads(&self, t: usize) -> Vec<Option<BufferView<'_>>> {
        let of = |(i, spec): (usize, &Spec)| {
            has_grads(i, t).then(|| BufferView::new(&self.grads[t % 3][i], spec.formats.grad))
        };
        self.host.specs.iter().enumerate().map(of).collect()
    }

    fn optimizer(&self, device: &Device) -> DualAdam {
        DualAdam::with_groups(device.pipelines(), &groups(), &self.host.layout()).unwrap()
    }

    /// Steps `t`, all in one pass.
    fn run(&self, device: &Device, optimizer: &mut DualAdam, steps: Range<usize>) {
        device.submit(|pass| {
            for t in steps {
                optimizer.step_scaled(pass, &self.params(), &self.grads(t), 0.5).unwrap();
            }
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
        for steps in [0..3, 3..4, 4..12] {
            models.run(device, &mut optimizer, steps);
        }
        let (state, params) = models.results(device, &optimizer);

        for (index, (spec, before)) in models.host.specs.iter().zip(&models.host.params).enumerate() {
            let zeros = vec![0.0; spec.len];
            let inputs = Inputs { p: before.wide(), grad: zeros.clone(), m: zeros.clone(), v: zeros };
            let host = Host { param: before.clone(), ..Host::new(spec.formats, &inputs) };
            let (uploaded, mut step) = (Uploaded::new(device, &host), 0);
            for t in (0..12).filter(|&t| has_grads(index, t)) {
                step += 1;
                let coeffs = groups()[spec.group].coeffs_scaled(step, 0.5).unwrap();
                device.step(&device.list(&[Tensor { grads: models.grads(t)[index], ..uploaded.tensor() }]), &[coeffs]);
            }
            let by_hand = uploaded.download(device);
            let what = format!("tensor {index}, {}", by_hand.types());
            let found = &state.tensors[index];
            assert_eq!((found.step, found.group), (step, spec.group), "{what}");
            assert_eq!(float_bits(&found.exp_avg), float_bits(&by_hand.exp_avg.wide()), "{what}");
            assert_eq!(float_bits(&found.exp_avg_sq), float_bits(&by_hand.exp_avg_sq.wide()), "{what}");
            assert_eq!(found.master_is_set, found.master.is_some(), "{what}");
            let master = by_hand.master.as_ref().map(Values::wide);
            assert_eq!(found.master.as_deref().map(float_bits), master.as_deref().map(float_bits), "{what}");
            let expected = by_hand.param.bytes();
            let (content, behind) = params[index].split_at(expected.len());
            assert_eq!(content, expected, "{what}");
            assert!(behind.iter().all(|&byte| byte == 0xa5), "{what}: {behind:x?}");
            // One 16-bit parameter may stay where it is.
            assert!(spec.len < 1000 || content != before.bytes(), "{what}: it did not move");
        }
    }
}

/// Every 16-bit pattern, and a tail, whole and in windows of 128 elements.
fn sets_masters_exactly(gpu: &Gpu) {
    let windows = wgpu::Limits { max_storage_buffer_binding_size: 512, ..wgpu::Limits::default() };
    let windows = gpu.open(wgpu::Features::empty(), windows);
    for device in [Some(&gpu.device), Some(&windows), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        [Dtype::Bf16, Dtype::F16].into_iter().for_each(|dtype| check_masters(device, dtype));
    }
}

/// The masters of parameters of all patterns after a step with gradients of 0, which moves nothing.
fn check_masters(device: &Device, dtype: Dtype) {
    let patterns: Vec<u16> = (0..=u16::MAX).chain([0x3f80, 0x1234, 0x8001]).collect();
    let values = Values::from_bits(dtype, &patterns);
    let params = device.buffer(values.bytes());
    let grads = device.buffer(&vec![0; 4 * patterns.len()]);
    let (params, grads) = (BufferView::new(&params, dtype), BufferView::new(&grads, Dtype::F32));
    let layout = [TensorLayout::new(patterns.len()).with_master()];
    let mut optimizer = DualAdam::with_groups(device.pipelines(), &groups(), &layout).unwrap();
    let before = optimizer.state(&device.queue).unwrap();
    assert!(!before.tensors[0].master_is_set);
    device.submit(|pass| optimizer.step(pass, &[params], &[Some(grads)]).unwrap());
    let masters = optimizer.state(&device.queue).unwrap().tensors.remove(0).master.unwrap();
    for (expected, found) in values.wide().into_iter().zip(masters) {
        // The step that follows may flush a subnormal, as any operation of WGSL.
        let flushed = expected.is_subnormal() && found == 0.0;
        assert!(flushed || same(found, expected), "{dtype}: {found:e}, not {expected:e}");
    }
}

/// A parameter that becomes bf16, a gradient that does, and a tensor whose type is told only while it has no gradient.
fn follows_changed_types(gpu: &Gpu) {
    let device = &gpu.device;
    let [wide, narrow, again] = ["f32_f32", "bf16_bf16", "bf16_bf16"].map(|name| Models::of(device, &[name], 1030, 0));
    let mut changing = wide.optimizer(device);
    wide.run(device, &mut changing, 1..3);
    let state = changing.state(&device.queue).unwrap();
    device.submit(|pass| changing.step(pass, &narrow.params(), &[None]).unwrap());
    assert_eq!(changing.state(&device.queue).unwrap(), state);
    narrow.run(device, &mut changing, 1..3);
    let mut fresh = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    again.run(device, &mut fresh, 1..3);
    assert_eq!(narrow.results(device, &changing), again.results(device, &fresh));
    assert_eq!(changing.step_of(0).unwrap(), 4);
}

fn takes_moments(gpu: &Gpu) {
    let device = &gpu.device;
    let models = Models::all(device);
    let mut optimizer = models.optimizer(device);
    let inputs = Inputs::random(1, 1030);
    optimizer.set_moments(&device.queue, 7, 100, &inputs.m, &inputs.v).unwrap();
    let mut expected = State::new(&groups(), &models.host.layout()).unwrap();
    let (group, exp_avg, exp_avg_sq) = (expected.tensors[7].group, inputs.m.clone(), inputs.v.clone());
    expected.tensors[7] = TensorState { group, step: 100, exp_avg, exp_avg_sq, ..expected.tensors[7].clone() };
    assert_eq!(optimizer.state(&device.queue).unwrap(), expected);
    assert_eq!(optimizer.step_of(7).unwrap(), 100);

    let negative: Vec<f32> = inputs.v.iter().map(|v| -v).collect();
    let mut set = |tensor, m: &[f32], v: &[f32]| optimizer.set_moments(&device.queue, tensor, 1, m, v);
    refused::length(set(7, &inputs.m[1..], &inputs.v), 7, "exp_avg", 1030, 1029);
    refused::value(set(7, &inputs.m, &negative), "exp_avg_sq");
    let count = models.params.len();
    refused::position(set(count, &inputs.m, &inputs.v), "tensor", count, count);
    assert_eq!(optimizer.state(&device.queue).unwrap(), expected);
}

fn resumes_bit_for_bit(gpu: &Gpu) {
    let device = &gpu.device;
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
    // A list and moments of its own, which the file replaces.
    device.submit(|pass| second.step(pass, &models.params(), &vec![None; models.params.len()]).unwrap());
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

/// A state that a CPU optimizer has after some steps, with bits of all kinds, some of its masters set and some not.
fn cpu_optimizer() -> cpu::DualAdam {
    let specs = [("f32_f32", 1030, 0), ("f32_f32", 0, 0), ("bf16_f32_master", 7, 1), ("bf16_f32_master", 3, 0)];
    let mut model = Model::new(&specs.map(|(name, len, group)| Spec { formats: formats(name), len, group }), wide);
    let mut optimizer = cpu::DualAdam::with_groups(&groups(), &model.layout()).unwrap();
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

fn shares_files_with_the_cpu(gpu: &Gpu) {
    let device = &gpu.device;
    let folder = tempfile::tempdir().unwrap();
    let [from_cpu, from_webgpu] = ["cpu", "webgpu"].map(|name| folder.path().join(name));
    let mut on_cpu = cpu_optimizer();
    on_cpu.save(&from_cpu).unwrap();

    let state = State::load(&from_cpu).unwrap();
    let taken = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    assert_same_state(&taken.state(&device.queue).unwrap(), on_cpu.state());
    let layout = [(1030, 0, false), (0, 0, false), (7, 1, true), (3, 0, true)];
    let layout = layout.map(|(len, group, master)| TensorLayout { len, group, master });
    let mut loaded = DualAdam::with_groups(device.pipelines(), &[DualAdamConfig::adam(); 2], &layout).unwrap();
    loaded.load(&device.queue, &from_cpu).unwrap();
    assert_same_state(&loaded.state(&device.queue).unwrap(), on_cpu.state());

    loaded.save(&device.queue, &from_webgpu).unwrap();
    assert_eq!(std::fs::read(&from_webgpu).unwrap(), std::fs::read(&from_cpu).unwrap());
    let before = on_cpu.state().clone();
    on_cpu.load(&from_webgpu).unwrap();
    assert_same_state(on_cpu.state(), &before);
}

fn reads_while_other_work_goes_on(gpu: &Gpu) {
    fn is_send<T: Send>(value: T) -> T {
        value
    }
    let device = &gpu.device;
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
    let state = device.awaited(is_send(optimizer.read_state(&device.queue))).unwrap();
    assert_same_state(&state, &expected);

    // A reading that is given up leaves the optimizer usable; so does one of two at once.
    drop(optimizer.read_state(&device.queue));
    let (mut one, mut two) = (pin!(optimizer.read_state(&device.queue)), pin!(optimizer.read_state(&device.queue)));
    device.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    for read in [one.as_mut(), two.as_mut()] {
        assert_same_state(&block_on(read).unwrap(), &expected);
    }
    // Nothing of it disturbed the other work.
    let twins = Models::all(device);
    let mut twin = twins.optimizer(device);
    twins.run(device, &mut twin, 0..steps);
    assert!(twins.results(device, &twin) == others.results(device, &other));
}

/// 128 MiB of moments; pieces begin in the middle of an array, and a piece has ends of several.
fn reads_large_states_in_pieces(gpu: &Gpu) {
    let device = &gpu.device;
    let lens = [(64 << 20) / 4 + 3, 5];
    let mut state = State::new(&groups(), &lens.map(TensorLayout::new)).unwrap();
    for (number, tensor) in state.tensors.iter_mut().enumerate() {
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
    let f32_of = |buffer| BufferView::new(buffer, Dtype::F32);
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
        let mut step = |params: &[_], grads: &[_]| optimizer.step(pass, params, grads);
        refused::count(step(&params[..2], &grads), "params", 3, 2);
        refused::count(step(&params, &grads[..1]), "grads", 3, 1);
        refused::buffer_size(step(&with_params(2, f32_of(&short)), &grads), 2, "params", 4120, 4116);
        refused::buffer_size(step(&params, &with_grads(1, f32_of(&short))), 1, "grads", 4120, 4116);
        refused::usage(step(&with_params(0, f32_of(&unusable)), &grads), 0, "params");
        let inside = BufferView { offset: 4, ..f32_of(&large) };
        refused::offset(step(&params, &with_grads(0, inside)), 0, "grads", 256, 4);
        // Masters of f32 parameters, and a pair of types without a shader.
        let masters_of_f32 = step(&with_params(1, f32_of(&large)), &grads);
        refused::types(masters_of_f32, 1, Dtype::F32, Dtype::Bf16, Some(Dtype::F32));
        let f16_for_bf16 = step(&params, &with_grads(1, BufferView::new(&large, Dtype::F16)));
        refused::types(f16_for_bf16, 1, Dtype::F32, Dtype::F16, Some(Dtype::Bf16));
        refused::overlap(step(&params, &with_grads(0, params[2])));
        refused::overlap(step(&with_params(0, params[2]), &grads));
        let error = refused(step(&params, &with_grads(2, f32_of(&foreign))));
        let is_expected = matches!(error, Error::Wgpu { tensor: Some(2), problem: WgpuProblem::Validation(_), .. });
        assert!(is_expected, "{error:?}");
        refused::value(optimizer.step_scaled(pass, &params, &grads, f64::NAN), "grad_multiplier");
    });
    refused::value(optimizer.set_lr(0, -1.0), "lr");
    refused::position(optimizer.set_config(2, DualAdamConfig::adam()), "group", 2, 2);
    refused::position(optimizer.step_of(3), "tensor", 3, 3);
    assert!(good.results(device, &optimizer) == before);

    // A step that cannot be counted.
    let mut state = before.0.clone();
    state.tensors[2].step = u64::MAX;
    let mut full = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    device.submit(|pass| refused::step_overflow(full.step(pass, &params, &grads), 2));
    assert!(full.state(&device.queue).unwrap() == state);

    good.run(device, &mut optimizer, 2..5);
    twin.run(device, &mut twin_optimizer, 2..5);
    assert!(good.results(device, &optimizer) == twin.results(device, &twin_optimizer));

    refused::value(DualAdam::new(device.pipelines(), DualAdamConfig::adam().with_eps(-1.0), &[1]), "eps");
    let layout = [TensorLayout::new(1).in_group(2)];
    refused::index(DualAdam::with_groups(device.pipelines(), &groups(), &layout), 0, "group", 2, 2);
    state.tensors[0].exp_avg_sq.pop();
    let uneven = DualAdam::from_state(device.pipelines(), &device.queue, &state);
    refused::length(uneven, 0, "exp_avg_sq", 1030, 1029);
}

fn refuses_damaged_files_and_stays(gpu: &Gpu) {
    let device = &gpu.device;
    let (folder, path) = temporary();
    let models = Models::of(device, &["bf16_bf16_master"], 1030, 1);
    let mut optimizer = models.optimizer(device);
    models.run(device, &mut optimizer, 1..3);
    let before = models.results(device, &optimizer);
    let refused = |optimizer: &mut DualAdam, path: &Path| refused(optimizer.load(&device.queue, path));

    let error = refused(&mut optimizer, &path);
    assert!(matches!(error, Error::Io { action: "read", .. }), "{error:?}");
    optimizer.save(&device.queue, &path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = refused(&mut optimizer, &path);
    assert!(matches!(error, Error::State { problem: StateProblem::Checksum { .. }, .. }), "{error:?}");
    // Good files of other models: of another length, of another group, without masters.
    let own = models.host.layout()[0];
    for layout in
        [TensorLayout { len: 1029, ..own }, TensorLayout { group: 0, ..own }, TensorLayout { master: false, ..own }]
    {
        cpu::DualAdam::with_groups(&groups(), &[layout]).unwrap().save(&path).unwrap();
        let error = refused(&mut optimizer, &path);
        assert!(matches!(error, Error::State { problem: StateProblem::Layout { .. }, .. }), "{error:?}");
    }
    assert!(models.results(device, &optimizer) == before);
    let nowhere = optimizer.save(&device.queue, folder.path().join("no/such/folder")).unwrap_err();
    assert!(matches!(nowhere, Error::Io { .. }), "{nowhere:?}");
}

fn on_small_devices(gpu: &Gpu) {
    let masters = [TensorLayout::new(8).with_master()];
    let four = gpu.open(wgpu::Features::empty(), required_limits());
    refused::limit(DualAdam::with_groups(four.pipelines(), &groups(), &masters), 5, 4);
    let state = State::new(&groups(), &masters).unwrap();
    refused::limit(DualAdam::from_state(four.pipelines(), &four.queue, &state), 5, 4);

    // Tensors that share no buffer, in windows of 1,024 elements.
    let limits = wgpu::Limits {
        max_buffer_size: 1 << 14,
        max_storage_buffer_binding_size: 1 << 12,
        max_uniform_buffer_binding_size: 1 << 12,
        ..wgpu::Limits::default()
    };
    let small = gpu.open(wgpu::Features::empty(), limits);
    let step = |device: &Device| {
        let models = Models::of(device, &["f32_f32", "bf16_bf16_master", "f32_bf16"], 4096, 0);
        let mut optimizer = models.optimizer(device);
        models.run(device, &mut optimizer, 1..4);
        models.results(device, &optimizer)
    };
    assert!(step(&small) == step(&gpu.device));
    let error = refused(DualAdam::new(small.pipelines(), DualAdamConfig::adam(), &[4096, 4097]));
    assert!(matches!(error, Error::ArraySize { tensor: 1, array: "exp_avg", limit: 16384, len: 4097 }), "{error:?}");
}

fn on_a_lost_device(gpu: &Gpu) {
    // Lost before the call, and while a reading is under way.
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
    refused::lost_device(optimizer.step(&mut pass, &params, &grads));
    refused::lost_device(DualAdam::from_state(device.pipelines(), &device.queue, &state));
    refused::lost_device(DualAdam::new(device.pipelines(), DualAdamConfig::adam(), &[1]));
    assert!(!folder.path().join("other").exists());
    let steps = [0, 1].map(|tensor: usize| state.tensors[tensor].step);
    assert_eq!([0, 1].map(|tensor| optimizer.step_of(tensor).unwrap()), steps);
}

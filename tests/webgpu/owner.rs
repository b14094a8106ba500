//! The owning optimizer: the bits of lists made by hand, files that resume anywhere, and states read while other work goes on.

use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use dualadam::half::{bf16, f16};
use dualadam::webgpu::{
    Binding, BindingProblem, DualAdam, Pipelines, TensorList, WebGpuError, WgpuProblem, required_limits, wgpu,
};
use dualadam::{
    ArgumentError, ConfigError, Dtype, DualAdamConfig, Element, ListError, Role, State, StateError, StateProblem,
    SwitchSchedule, TensorProblem, TensorSpec, WeightDecay, cpu,
};
use pollster::block_on;

use crate::gpu::{Device, Gpu, STORAGE};
use crate::host::{COMBINATIONS, Host, Types, Values};
use testkit::data::Inputs;
use testkit::device::DeviceTest;

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

/// A model's tensor beside an optimizer: its types, its parameters, and its gradients of three steps.
struct Model {
    types: Types,
    layout: TensorSpec,
    /// Of the parameters where there are no masters, else of the copy.
    params: (wgpu::Buffer, Dtype),
    grads: [wgpu::Buffer; 3],
    /// The same on the host, before the first step.
    before: Values,
}

impl Model {
    fn new(device: &Device, types: Types, len: usize, group: usize, seed: u64) -> Self {
        let (params, grads, copy) = types;
        let inputs = [0, 1, 2].map(|k| Inputs::random(seed + k, len));
        let before = Values::new(copy.unwrap_or(params), &inputs[0].p);
        let layout = TensorSpec::new(len).in_group(group);
        Self {
            types,
            layout: if copy.is_some() { layout.with_master() } else { layout },
            params: (device.buffer(before.bytes()), before.dtype()),
            grads: inputs.map(|inputs| device.buffer(Values::new(grads, &inputs.grad).bytes())),
            before,
        }
    }

    fn view(&self) -> Binding<'_> {
        Binding::new(&self.params.0, self.params.1)
    }

    /// The gradients of step `t`, every fourth of which is missing.
    fn grads(&self, index: usize, t: usize) -> Option<Binding<'_>> {
        let view = Binding::new(&self.grads[t % 3], self.types.1);
        has_grads(index, t).then_some(view)
    }

    /// What a list by hand has at first.
    fn host(&self) -> Host {
        let zeros = vec![0.0; self.layout.len];
        let (params, grads, copy) = self.types;
        let wide = Inputs { p: self.before.wide(), grad: zeros.clone(), m: zeros.clone(), v: zeros };
        let host = Host::new((params, grads, copy), &wide, 0);
        Host { copy: copy.map(|_| self.before.clone()), ..host }
    }

    fn read(&self, device: &Device) -> Vec<u8> {
        device.read(&self.params.0)
    }
}

fn has_grads(index: usize, t: usize) -> bool {
    !(index + t).is_multiple_of(4)
}

/// A tensor of every combination and length.
fn models(device: &Device) -> Vec<Model> {
    let of = |i: usize| Model::new(device, COMBINATIONS[i % 11], LENS[i / 11], i % 2, 10 * i as u64);
    (0..11 * LENS.len()).map(of).collect()
}

fn optimizer(device: &Device, models: &[Model]) -> DualAdam {
    let layout: Vec<_> = models.iter().map(|model| model.layout.clone()).collect();
    DualAdam::with_groups(&Pipelines::new(&device.device).unwrap(), &groups(), &layout).unwrap()
}

/// Steps `t`, all in one pass.
fn run(device: &Device, optimizer: &mut DualAdam, models: &[Model], steps: impl Iterator<Item = usize>) {
    let params: Vec<_> = models.iter().map(Model::view).collect();
    device.submit(|pass| {
        for t in steps {
            let grads: Vec<_> = models.iter().enumerate().map(|(index, model)| model.grads(index, t)).collect();
            optimizer.step_scaled(pass, params.iter().copied(), grads, 0.5).unwrap();
        }
    });
}

/// The state, and the parameters' bytes.
fn results(device: &Device, optimizer: &DualAdam, models: &[Model]) -> (State, Vec<Vec<u8>>) {
    (optimizer.state(&device.queue).unwrap(), models.iter().map(|model| model.read(device)).collect())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn has_the_bits_of_lists(gpu: &Gpu) {
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let models = models(device);
        let mut optimizer = optimizer(device, &models);
        // Passes of one step and of several, in which masters are set at first.
        for steps in [0..3, 3..4, 4..12] {
            run(device, &mut optimizer, &models, steps);
        }
        let (state, params) = results(device, &optimizer, &models);

        let pipelines = Pipelines::new(&device.device).unwrap();
        for (index, model) in models.iter().enumerate() {
            let (uploaded, mut step) = (model.host().upload(device), 0);
            for t in (0..12).filter(|&t| has_grads(index, t)) {
                let tensor = uploaded.tensor().with_grad(model.grads(index, t));
                step += 1;
                let coeffs = groups()[model.layout.group].coeffs_scaled(step, 0.5).unwrap();
                let list = TensorList::new(&pipelines, &[tensor]).unwrap();
                device.submit(|pass| list.encode(pass, &[coeffs]).unwrap());
            }
            let by_hand = uploaded.download(device, &model.host());
            let what = format!("tensor {index}, {:?}, {} elements", model.types, model.layout.len);
            let (found, ledger) = (&state.arrays[index], &state.ledger);
            assert_eq!((ledger.step(index).unwrap(), ledger.spec(index).unwrap()), (step, &model.layout), "{what}");
            assert_eq!(bits(&found.exp_avg), bits(&by_hand.m.wide()), "{what}");
            assert_eq!(bits(&found.exp_avg_sq), bits(&by_hand.v.wide()), "{what}");
            assert_eq!(ledger.master_is_set(index).unwrap(), found.master.is_some(), "{what}");
            let copy = by_hand.copy.as_ref();
            assert_eq!(found.master.as_deref().map(bits), copy.map(|_| bits(&by_hand.p.wide())), "{what}");
            let expected = copy.unwrap_or(&by_hand.p).bytes();
            let (content, behind) = params[index].split_at(expected.len());
            assert_eq!(content, expected, "{what}");
            assert!(behind.iter().all(|&byte| byte == 0xa5), "{what}: {behind:x?}");
            // One 16-bit parameter may stay where it is.
            assert!(model.layout.len < 1000 || content != model.before.bytes(), "{what}: it did not move");
        }
    }
}

/// Every 16-bit pattern, and a tail, whole and in windows of 128 elements.
fn sets_masters_exactly(gpu: &Gpu) {
    let windows = wgpu::Limits { max_storage_buffer_binding_size: 512, ..wgpu::Limits::default() };
    let windows = gpu.open(wgpu::Features::empty(), windows);
    for device in [Some(&gpu.device), Some(&windows), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        check_masters(device, Dtype::Bf16, |bits| bf16::from_bits(bits).widen());
        check_masters(device, Dtype::F16, |bits| f16::from_bits(bits).widen());
    }
}

/// The masters of parameters of all patterns after a step with gradients of 0, which moves nothing.
fn check_masters(device: &Device, dtype: Dtype, widen: impl Fn(u16) -> f32) {
    let patterns: Vec<u16> = (0..=u16::MAX).chain([0x3f80, 0x1234, 0x8001]).collect();
    let params = device.buffer(bytemuck::cast_slice(&patterns));
    let grads = device.buffer(&vec![0; 4 * patterns.len()]);
    let (params, grads) = (Binding::new(&params, dtype), Binding::new(&grads, Dtype::F32));
    let layout = [TensorSpec::new(patterns.len()).with_master()];
    let pipelines = Pipelines::new(&device.device).unwrap();
    let mut optimizer = DualAdam::with_groups(&pipelines, &groups(), &layout).unwrap();
    let before = optimizer.state(&device.queue).unwrap();
    assert!(!before.ledger.master_is_set(0).unwrap());
    device.submit(|pass| optimizer.step(pass, [params], [Some(grads)]).unwrap());
    let masters = optimizer.state(&device.queue).unwrap().arrays.remove(0).master.unwrap();
    for (&pattern, found) in patterns.iter().zip(masters) {
        let expected = widen(pattern);
        // The step that follows may flush a subnormal, as any operation of WGSL.
        let flushed = expected.is_subnormal() && found == 0.0;
        let same = found.to_bits() == expected.to_bits() || (found.is_nan() && expected.is_nan()) || flushed;
        assert!(same, "{dtype} {pattern:#06x}: {found:e}, not {expected:e}");
    }
}

/// A parameter that becomes bf16, a gradient that does, and a tensor whose type is told only while it has no gradient.
fn follows_changed_types(gpu: &Gpu) {
    let device = &gpu.device;
    let wide = Model::new(device, COMBINATIONS[0], 1030, 0, 1);
    let narrow = Model::new(device, COMBINATIONS[3], 1030, 0, 1);
    let mut changing = optimizer(device, std::slice::from_ref(&wide));
    run(device, &mut changing, std::slice::from_ref(&wide), 1..3);
    let state = changing.state(&device.queue).unwrap();
    device.submit(|pass| changing.step(pass, [narrow.view()], [None]).unwrap());
    assert_eq!(changing.state(&device.queue).unwrap(), state);
    run(device, &mut changing, std::slice::from_ref(&narrow), 1..3);
    let pipelines = Pipelines::new(&device.device).unwrap();
    let mut fresh = DualAdam::from_state(&pipelines, &device.queue, &state).unwrap();
    let again = Model::new(device, COMBINATIONS[3], 1030, 0, 1);
    run(device, &mut fresh, std::slice::from_ref(&again), 1..3);
    assert_eq!(changing.state(&device.queue).unwrap(), fresh.state(&device.queue).unwrap());
    assert_eq!(narrow.read(device), again.read(device));
    assert_eq!(changing.step_of(0).unwrap(), 4);
}

fn takes_moments(gpu: &Gpu) {
    let device = &gpu.device;
    let mut optimizer = optimizer(device, &models(device));
    let inputs = Inputs::random(1, 1030);
    optimizer.set_moments(&device.queue, 7, 100, &inputs.m, &inputs.v).unwrap();
    let mut expected = optimizer_state_at_first(device);
    expected.ledger.set_step(7, 100).unwrap();
    expected.arrays[7].exp_avg = inputs.m.clone();
    expected.arrays[7].exp_avg_sq = inputs.v.clone();
    assert_eq!(optimizer.state(&device.queue).unwrap(), expected);
    assert_eq!(optimizer.step_of(7).unwrap(), 100);

    let negative: Vec<f32> = inputs.v.iter().map(|v| -v).collect();
    for (tensor, m, v) in [(7, &inputs.m[1..], &inputs.v[..]), (7, &inputs.m, &negative), (66, &inputs.m, &inputs.v)] {
        let error = optimizer.set_moments(&device.queue, tensor, 1, m, v).unwrap_err();
        let is_expected = match &error {
            WebGpuError::Argument(ArgumentError::Tensor(error)) => {
                matches!(error.problem, TensorProblem::Length { .. } | TensorProblem::Negative { .. })
            }
            error => matches!(error, WebGpuError::Argument(ArgumentError::List(ListError::Position { len: 66, .. }))),
        };
        assert!(is_expected, "{error:?}");
    }
    assert_eq!(optimizer.state(&device.queue).unwrap(), expected);
}

/// What an optimizer for the models has before its first step.
fn optimizer_state_at_first(device: &Device) -> State {
    let layout: Vec<_> = models(device).iter().map(|model| model.layout.clone()).collect();
    State::new(&groups(), &layout).unwrap()
}

fn resumes_bit_for_bit(gpu: &Gpu) {
    let device = &gpu.device;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let (models, twins) = (models(device), models(device));
    let mut whole = optimizer(device, &models);
    run(device, &mut whole, &models, 0..3);
    whole.set_lr(1, 1e-4).unwrap();
    run(device, &mut whole, &models, 3..9);
    let whole = results(device, &whole, &models);

    let mut first = optimizer(device, &twins);
    run(device, &mut first, &twins, 0..3);
    first.save(&device.queue, &path).unwrap();
    let mut second = optimizer(device, &twins);
    // A list and moments of its own, which the file replaces.
    device.submit(|pass| {
        let params: Vec<_> = models.iter().map(Model::view).collect();
        second.step(pass, params.iter().copied(), vec![None; params.len()]).unwrap();
    });
    second.load(&device.queue, &path).unwrap();
    assert_eq!(second.state(&device.queue).unwrap(), first.state(&device.queue).unwrap());
    second.set_lr(1, 1e-4).unwrap();
    run(device, &mut second, &twins, 3..5);
    let state = second.state(&device.queue).unwrap();
    let mut third = DualAdam::from_state(&Pipelines::new(&device.device).unwrap(), &device.queue, &state).unwrap();
    run(device, &mut third, &twins, 5..9);
    assert_eq!(third.config(1).unwrap().lr, 1e-4);
    assert!(results(device, &third, &twins) == whole);
}

/// A state that a CPU optimizer has after some steps, with bits of all kinds, some of its masters set and some not.
fn cpu_optimizer() -> cpu::DualAdam {
    let layout = [
        TensorSpec::new(1030),
        TensorSpec::new(0),
        TensorSpec::new(7).in_group(1).with_master(),
        TensorSpec::new(3).with_master(),
    ];
    let mut optimizer = cpu::DualAdam::with_groups(&groups(), &layout).unwrap();
    let inputs = [1030, 0, 7, 3].map(|len| Inputs::random(5, len));
    let [mut a, mut b] = [0, 1].map(|k: usize| inputs[k].p.clone());
    let [mut c, mut d] = [2, 3].map(|k: usize| inputs[k].p.iter().map(|&p| bf16::narrow(p)).collect::<Vec<_>>());
    for _ in 0..3 {
        let params = [(&mut a).into(), (&mut b).into(), (&mut c).into(), (&mut d).into()];
        let grads = [0, 1, 2].map(|k: usize| Some((&inputs[k].grad).into()));
        let [grads_a, grads_b, grads_c] = grads;
        optimizer.step(params, [grads_a, grads_b, grads_c, None]).unwrap();
    }
    let special = [f32::MIN_POSITIVE / 8.0, -0.0, f32::INFINITY];
    optimizer.set_moments(3, u64::MAX - 1, &special, &[0.0, 1e-45, f32::MAX]).unwrap();
    optimizer.set_lr(1, 1.234_567_890_123e-5).unwrap();
    optimizer
}

/// Equality of bits, which tells -0 from 0.
fn assert_same_state(a: &State, b: &State) {
    assert_eq!(a, b);
    for (a, b) in a.arrays.iter().zip(&b.arrays) {
        assert_eq!((bits(&a.exp_avg), bits(&a.exp_avg_sq)), (bits(&b.exp_avg), bits(&b.exp_avg_sq)));
        assert_eq!(a.master.as_deref().map(bits), b.master.as_deref().map(bits));
    }
}

fn shares_files_with_the_cpu(gpu: &Gpu) {
    let device = &gpu.device;
    let folder = tempfile::tempdir().unwrap();
    let [from_cpu, from_webgpu] = ["cpu", "webgpu"].map(|name| folder.path().join(name));
    let mut on_cpu = cpu_optimizer();
    on_cpu.save(&from_cpu).unwrap();

    let pipelines = Pipelines::new(&device.device).unwrap();
    let state = State::load(&from_cpu).unwrap();
    let taken = DualAdam::from_state(&pipelines, &device.queue, &state).unwrap();
    assert_same_state(&taken.state(&device.queue).unwrap(), on_cpu.state());
    let layout: Vec<_> = on_cpu.state().ledger.specs().cloned().collect();
    let mut loaded = DualAdam::with_groups(&pipelines, &[DualAdamConfig::adam(); 2], &layout).unwrap();
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
    let (models, others) = (models(device), models(device));
    let (mut optimizer, mut other) = (optimizer(device, &models), optimizer(device, &others));
    run(device, &mut optimizer, &models, 0..4);
    let expected = optimizer.state(&device.queue).unwrap();

    // Polled by hand, with other work submitted before, between and after.
    run(device, &mut other, &others, 0..4);
    let mut read = pin!(is_send(optimizer.read_state(&device.queue)));
    let mut steps = 4;
    let state = loop {
        run(device, &mut other, &others, steps..steps + 2);
        steps += 2;
        if let Poll::Ready(state) = read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            break state.unwrap();
        }
        device.device.poll(wgpu::PollType::Poll).unwrap();
    };
    assert_same_state(&state, &expected);

    // Awaited by one thread, polled by another.
    let read = is_send(optimizer.read_state(&device.queue));
    let state = std::thread::scope(|scope| {
        let awaiting = scope.spawn(|| block_on(read).unwrap());
        while !awaiting.is_finished() {
            device.device.poll(wgpu::PollType::Poll).unwrap();
            std::thread::yield_now();
        }
        awaiting.join().unwrap()
    });
    assert_same_state(&state, &expected);

    // A reading that is given up leaves the optimizer usable; so does one of two at once.
    drop(optimizer.read_state(&device.queue));
    let (mut one, mut two) = (pin!(optimizer.read_state(&device.queue)), pin!(optimizer.read_state(&device.queue)));
    device.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
    for read in [one.as_mut(), two.as_mut()] {
        assert_same_state(&block_on(read).unwrap(), &expected);
    }
    // Nothing of it disturbed the other work.
    let twins = self::models(device);
    let mut twin = self::optimizer(device, &twins);
    run(device, &mut twin, &twins, 0..steps);
    assert!(results(device, &twin, &twins) == results(device, &other, &others));
}

/// 128 MiB of moments; pieces begin in the middle of an array, and a piece has ends of several.
fn reads_large_states_in_pieces(gpu: &Gpu) {
    let device = &gpu.device;
    let lens = [(64 << 20) / 4 + 3, 5];
    let pipelines = Pipelines::new(&device.device).unwrap();
    let mut state = State::new(&groups(), &lens.map(TensorSpec::new)).unwrap();
    for (number, tensor) in state.arrays.iter_mut().enumerate() {
        tensor.exp_avg.iter_mut().enumerate().for_each(|(i, m)| *m = (i + number) as f32 - 1e6);
        tensor.exp_avg_sq.iter_mut().enumerate().for_each(|(i, v)| *v = (3 * i + number) as f32);
    }
    let optimizer = DualAdam::from_state(&pipelines, &device.queue, &state).unwrap();
    assert!(optimizer.state(&device.queue).unwrap() == state);
    let read = optimizer.read_state(&device.queue);
    let found = std::thread::scope(|scope| {
        let awaiting = scope.spawn(|| block_on(read).unwrap());
        while !awaiting.is_finished() {
            device.device.poll(wgpu::PollType::Poll).unwrap();
            std::thread::yield_now();
        }
        awaiting.join().unwrap()
    });
    assert!(found == state);
}

fn refuses_bad_input_and_stays(gpu: &Gpu) {
    let device = &gpu.device;
    let (good, twin) =
        [0, 1].map(|_| [0, 8, 0].map(|types| Model::new(device, COMBINATIONS[types], 1030, 0, 7))).into();
    let (mut optimizer, mut twin_optimizer) = (optimizer(device, &good), optimizer(device, &twin));
    run(device, &mut optimizer, &good, 1..2);
    run(device, &mut twin_optimizer, &twin, 1..2);
    let before = results(device, &optimizer, &good);

    let params = good.each_ref().map(Model::view);
    let grads = [0, 1, 2].map(|index: usize| good[index].grads(1 + index, 0));
    let short = device.buffer(&[0; 4 * 1029]);
    let descriptor = wgpu::BufferDescriptor {
        label: None,
        size: 4 * 1030,
        usage: wgpu::BufferUsages::COPY_DST,
        mapped_at_creation: false,
    };
    let unusable = device.device.create_buffer(&descriptor);
    let large =
        device.device.create_buffer(&wgpu::BufferDescriptor { size: 8192, usage: STORAGE, ..descriptor.clone() });
    let foreign = gpu.open(wgpu::Features::empty(), required_limits());
    let foreign = foreign.buffer(&[0; 4 * 1030]);
    let f32_of = |buffer| Binding::new(buffer, Dtype::F32);
    let with_params = |index: usize, view| {
        let mut params = params;
        params[index] = view;
        params
    };
    let with_grads = |index: usize, view| {
        let mut grads = grads;
        grads[index] = Some(view);
        grads
    };
    fn is_binding(e: &WebGpuError, tensor: usize, role: Role, is: fn(&BindingProblem) -> bool) -> bool {
        matches!(e, WebGpuError::Binding { tensor: t, buffer, problem, .. } if (*t, *buffer) == (tensor, role) && is(problem))
    }
    fn problem(e: &WebGpuError) -> Option<(usize, TensorProblem)> {
        match e {
            WebGpuError::Argument(ArgumentError::Tensor(e)) => Some((e.tensor, e.problem)),
            _ => None,
        }
    }
    fn list(e: &WebGpuError) -> Option<ListError> {
        match e {
            WebGpuError::Argument(ArgumentError::List(e)) => Some(*e),
            _ => None,
        }
    }
    type Case<'a> = (Vec<Binding<'a>>, Vec<Option<Binding<'a>>>, f64, fn(&WebGpuError) -> bool);
    let cases: Vec<Case<'_>> = vec![
        (params[..2].to_vec(), grads.to_vec(), 1.0, |e| {
            matches!(list(e), Some(ListError::Count { list: "params", actual: 2, .. }))
        }),
        (params.to_vec(), grads[..1].to_vec(), 1.0, |e| {
            matches!(list(e), Some(ListError::Count { list: "grads", actual: 1, .. }))
        }),
        (params.to_vec(), grads.to_vec(), f64::NAN, |e| {
            matches!(
                e,
                WebGpuError::Argument(ArgumentError::Config(ConfigError::Value { name: "grad_multiplier", .. }))
            )
        }),
        (with_params(2, f32_of(&short)).to_vec(), grads.to_vec(), 1.0, |e| {
            is_binding(e, 2, Role::Param, |p| {
                matches!(p, BindingProblem::BufferSize { required: 4120, actual: 4116, .. })
            })
        }),
        (params.to_vec(), with_grads(1, f32_of(&short)).to_vec(), 1.0, |e| {
            is_binding(e, 1, Role::Grad, |p| matches!(p, BindingProblem::BufferSize { .. }))
        }),
        (with_params(0, f32_of(&unusable)).to_vec(), grads.to_vec(), 1.0, |e| {
            is_binding(e, 0, Role::Param, |p| matches!(p, BindingProblem::Usage { .. }))
        }),
        (params.to_vec(), with_grads(0, f32_of(&large).with_offset(4)).to_vec(), 1.0, |e| {
            is_binding(e, 0, Role::Grad, |p| matches!(p, BindingProblem::Offset { .. }))
        }),
        // Masters of f32 parameters, and a pair of types without a shader.
        (
            with_params(1, f32_of(&large)).to_vec(),
            grads.to_vec(),
            1.0,
            |e| matches!(problem(e), Some((1, TensorProblem::Formats { formats })) if formats.param == Dtype::F32 && formats.master == Some(Dtype::F32)),
        ),
        (params.to_vec(), with_grads(1, Binding::new(&large, Dtype::F16)).to_vec(), 1.0, |e| {
            matches!(problem(e), Some((1, TensorProblem::Formats { .. })))
        }),
        (params.to_vec(), with_grads(0, params[2]).to_vec(), 1.0, |e| {
            matches!(problem(e), Some((_, TensorProblem::Overlap { .. })))
        }),
        (with_params(0, params[2]).to_vec(), grads.to_vec(), 1.0, |e| {
            matches!(problem(e), Some((_, TensorProblem::Overlap { .. })))
        }),
        (
            params.to_vec(),
            with_grads(2, f32_of(&foreign)).to_vec(),
            1.0,
            |e| matches!(e, WebGpuError::Wgpu { tensor: Some(2), problem, .. } if matches!(**problem, WgpuProblem::Validation(_))),
        ),
    ];
    device.submit(|pass| {
        for (number, (params, grads, multiplier, expected)) in cases.iter().enumerate() {
            let error =
                optimizer.step_scaled(pass, params.iter().copied(), grads.iter().copied(), *multiplier).unwrap_err();
            assert!(expected(&error), "case {number}: {error:?}");
        }
    });
    let error = optimizer.set_lr(0, -1.0).unwrap_err();
    assert!(matches!(error, ArgumentError::Config(ConfigError::Value { name: "lr", .. })), "{error:?}");
    let error = optimizer.set_config(2, DualAdamConfig::adam()).unwrap_err();
    assert!(matches!(error, ArgumentError::List(ListError::Position { list: "group", len: 2, value: 2 })), "{error:?}");
    let error = optimizer.step_of(3).unwrap_err();
    assert!(matches!(error, ListError::Position { list: "tensor", len: 3, value: 3 }), "{error:?}");
    assert!(results(device, &optimizer, &good) == before);

    // A step that cannot be counted.
    let mut state = before.0.clone();
    state.ledger.set_step(2, u64::MAX).unwrap();
    let pipelines = Pipelines::new(&device.device).unwrap();
    let mut full = DualAdam::from_state(&pipelines, &device.queue, &state).unwrap();
    device.submit(|pass| {
        let error = full.step(pass, params, grads).unwrap_err();
        assert!(matches!(problem(&error), Some((2, TensorProblem::StepOverflow))), "{error:?}");
    });
    assert!(full.state(&device.queue).unwrap() == state);

    run(device, &mut optimizer, &good, 2..5);
    run(device, &mut twin_optimizer, &twin, 2..5);
    assert!(results(device, &optimizer, &good) == results(device, &twin_optimizer, &twin));

    let error = DualAdam::new(&pipelines, DualAdamConfig::adam().with_eps(-1.0), &[1]).unwrap_err();
    assert!(
        matches!(error, WebGpuError::Argument(ArgumentError::Config(ConfigError::Value { name: "eps", .. }))),
        "{error:?}"
    );
    let error = DualAdam::with_groups(&pipelines, &groups(), &[TensorSpec::new(1).in_group(2)]).unwrap_err();
    assert!(matches!(problem(&error), Some((0, TensorProblem::Group { len: 2, value: 2 }))), "{error:?}");
    state.arrays[0].exp_avg_sq.pop();
    let error = DualAdam::from_state(&pipelines, &device.queue, &state).unwrap_err();
    assert!(matches!(problem(&error), Some((0, TensorProblem::Length { expected: 1030, actual: 1029 }))), "{error:?}");
}

fn refuses_damaged_files_and_stays(gpu: &Gpu) {
    let device = &gpu.device;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    let models = [Model::new(device, COMBINATIONS[8], 1030, 1, 7)];
    let mut optimizer = optimizer(device, &models);
    run(device, &mut optimizer, &models, 1..3);
    let before = results(device, &optimizer, &models);
    let refused = |optimizer: &mut DualAdam, path: &Path| match optimizer.load(&device.queue, path).unwrap_err() {
        WebGpuError::State(error) => *error,
        error => panic!("{error:?}"),
    };

    let error = refused(&mut optimizer, &path);
    assert!(matches!(error, StateError::Io { action: "read", .. }), "{error:?}");
    optimizer.save(&device.queue, &path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = refused(&mut optimizer, &path);
    assert!(
        matches!(&error, StateError::File { problem, .. } if matches!(**problem, StateProblem::Checksum { .. })),
        "{error:?}"
    );
    // Good files of other models: of another length, of another group, without masters.
    let own = models[0].layout.clone();
    let (mut shorter, mut without) = (own.clone(), own.clone());
    (shorter.len, without.has_master) = (1029, false);
    for layout in [shorter, own.in_group(0), without] {
        cpu::DualAdam::with_groups(&groups(), &[layout]).unwrap().save(&path).unwrap();
        let error = refused(&mut optimizer, &path);
        assert!(
            matches!(&error, StateError::File { problem, .. } if matches!(**problem, StateProblem::Layout { .. })),
            "{error:?}"
        );
    }
    assert!(results(device, &optimizer, &models) == before);
    let nowhere = optimizer.save(&device.queue, folder.path().join("no/such/folder")).unwrap_err();
    assert!(matches!(&nowhere, WebGpuError::State(e) if matches!(**e, StateError::Io { .. })), "{nowhere:?}");
}

fn on_small_devices(gpu: &Gpu) {
    let masters = [TensorSpec::new(8).with_master()];
    let four = gpu.open(wgpu::Features::empty(), required_limits());
    let pipelines = Pipelines::new(&four.device).unwrap();
    let is_limit = |error: &WebGpuError| matches!(error, WebGpuError::Limit { required: 5, actual: 4, .. });
    let error = DualAdam::with_groups(&pipelines, &groups(), &masters).unwrap_err();
    assert!(is_limit(&error), "{error:?}");
    let state = State::new(&groups(), &masters).unwrap();
    let error = DualAdam::from_state(&pipelines, &four.queue, &state).unwrap_err();
    assert!(is_limit(&error), "{error:?}");

    // Tensors that share no buffer, in windows of 1,024 elements.
    let limits = wgpu::Limits {
        max_buffer_size: 1 << 14,
        max_storage_buffer_binding_size: 1 << 12,
        max_uniform_buffer_binding_size: 1 << 12,
        ..wgpu::Limits::default()
    };
    let small = gpu.open(wgpu::Features::empty(), limits);
    let step = |device: &Device| {
        let models = [0, 8, 1].map(|types| Model::new(device, COMBINATIONS[types], 4096, 0, 3));
        let mut optimizer = optimizer(device, &models);
        run(device, &mut optimizer, &models, 1..4);
        results(device, &optimizer, &models)
    };
    assert!(step(&small) == step(&gpu.device));
    let pipelines = Pipelines::new(&small.device).unwrap();
    let specs = [TensorSpec::new(4096), TensorSpec::new(4097).with_name("embedding")];
    let error = DualAdam::with_groups(&pipelines, &groups(), &specs).unwrap_err();
    assert!(
        matches!(&error, WebGpuError::Binding { tensor: 1, buffer: Role::ExpAvg, problem, .. } if **problem == BindingProblem::ArraySize { limit: 16384, len: 4097 }),
        "{error:?}"
    );
    assert_eq!(
        error.to_string(),
        "exp_avg of tensor 1 (embedding) must fit in a buffer of 16384 bytes (max_buffer_size), got 4097 elements of f32"
    );
    // Problems of buffers and of tensors are named as well.
    let specs = [TensorSpec::new(8).with_name("bias")];
    let mut named = DualAdam::with_groups(&pipelines, &groups(), &specs).unwrap();
    let buffer = small.buffer(&[0; 28]);
    let of = |dtype| Binding::new(&buffer, dtype);
    small.submit(|pass| {
        let error = named.step(pass, [of(Dtype::F32)], [Some(of(Dtype::F32))]).unwrap_err();
        assert!(error.to_string().starts_with("param of tensor 0 (bias) must be in a buffer of"), "{error}");
        let error = named.step(pass, [of(Dtype::F16)], [Some(of(Dtype::Bf16))]).unwrap_err();
        assert!(error.to_string().starts_with("tensor 0 (bias) must have the formats"), "{error}");
    });
}

fn on_a_lost_device(gpu: &Gpu) {
    let is_lost = |error: &WebGpuError| matches!(error, WebGpuError::Wgpu { problem, .. } if **problem == WgpuProblem::DeviceLost);
    // Lost before the call, and while a reading is under way.
    let open = || gpu.open(wgpu::Features::empty(), wgpu::Limits::default());
    let device = open();
    let models = [0, 8].map(|types| Model::new(&device, COMBINATIONS[types], 1030, 0, 3));
    let mut optimizer = optimizer(&device, &models);
    run(&device, &mut optimizer, &models, 1..3);
    let pipelines = Pipelines::new(&device.device).unwrap();
    let state = optimizer.state(&device.queue).unwrap();
    let (params, grads) = (models.each_ref().map(Model::view), [0, 1].map(|index: usize| models[index].grads(1, 0)));
    let mut encoder = device.device.create_command_encoder(&Default::default());
    let mut pass = encoder.begin_compute_pass(&Default::default());

    let read = optimizer.read_state(&device.queue);
    device.device.destroy();
    let error = std::thread::scope(|scope| {
        let awaiting = scope.spawn(|| block_on(read).unwrap_err());
        while !awaiting.is_finished() {
            device.device.poll(wgpu::PollType::Poll).unwrap();
            std::thread::yield_now();
        }
        awaiting.join().unwrap()
    });
    assert!(is_lost(&error), "{error:?}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("optimizer.safetensors");
    state.save(&path).unwrap();
    let moments = vec![0.0; 1030];
    for error in [
        optimizer.state(&device.queue).map(drop).unwrap_err(),
        optimizer.save(&device.queue, folder.path().join("other")).unwrap_err(),
        block_on(optimizer.read_state(&device.queue)).map(drop).unwrap_err(),
        optimizer.load(&device.queue, &path).unwrap_err(),
        optimizer.set_moments(&device.queue, 0, 9, &moments, &moments).unwrap_err(),
        optimizer.step(&mut pass, params, grads).unwrap_err(),
        DualAdam::from_state(&pipelines, &device.queue, &state).map(drop).unwrap_err(),
        DualAdam::new(&pipelines, DualAdamConfig::adam(), &[1]).map(drop).unwrap_err(),
    ] {
        assert!(is_lost(&error), "{error:?}");
    }
    assert!(!folder.path().join("other").exists());
    assert_eq!(
        [0, 1].map(|tensor| optimizer.step_of(tensor).unwrap()),
        [0, 1].map(|tensor: usize| state.ledger.step(tensor).unwrap())
    );
}

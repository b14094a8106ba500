//! Masters that take over what other code wrote into their parameters. The shaders work on
//! integers, so the results have the contract's bits.

use dualadam::webgpu::{Binding, DualAdam, wgpu};
use dualadam::{Dtype, DualAdamConfig, Role, State, TensorProblem, TensorSpec};
use testkit::data::{Inputs, SIZES};
use testkit::device::DeviceTest;
use testkit::masters::{self, VARIANTS, by_contract};
use testkit::state::bits;
use testkit::{Tensor as Host, Values, formats};

use crate::{Device, Gpu, refused};

pub(crate) const TESTS: &[DeviceTest<Gpu>] = &[
    ("masters_follow_the_rule_for_every_pattern", every_pattern_follows_the_rule),
    ("masters_follow_the_rule_for_every_size", every_size_follows_the_rule),
    ("masters_follow_clamped_parameters", |gpu| steps_go_on_from_clamped_parameters(&gpu.device)),
    ("masters_that_are_not_set_are_left_alone", |gpu| only_masters_that_are_set_are_written(&gpu.device)),
    ("masters_stay_after_bad_input", |gpu| bad_input_encodes_nothing(&gpu.device)),
];

fn config() -> DualAdamConfig {
    DualAdamConfig::adamw(0.1).with_lr(0.05)
}

/// An optimizer whose only tensor has this tensor's masters, which are set.
fn owner_of(device: &Device, host: &Host) -> DualAdam {
    let mut state = State::new(&[config()], &[TensorSpec::new(host.len()).with_master()]).unwrap();
    state.arrays[0].master = Some(host.master.as_ref().unwrap().wide()[host.range(4)].to_vec());
    state.ledger.set_master_is_set(0, true).unwrap();
    DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap()
}

/// Brings the masters of a tensor up to date with an optimizer that has them.
fn by_owner(device: &Device) -> impl Fn(&mut Host) {
    |host| {
        let mut optimizer = owner_of(device, host);
        let param = device.buffer(host.param.bytes());
        device.submit(|pass| optimizer.sync_masters(pass, [Binding::new(&param, host.param.dtype())]).unwrap());
        let state = optimizer.state(&device.queue).unwrap();
        host.master.as_mut().unwrap().write(host.offsets[4], state.arrays[0].master.as_ref().unwrap());
        assert!(device.read(&param).starts_with(host.param.bytes()), "parameters are only read");
    }
}

fn every_pattern_follows_the_rule(gpu: &Gpu) {
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        masters::patterns(&by_owner(device), &VARIANTS, 1 << 16);
    }
}

/// Whole, and in windows of 128 elements.
fn every_size_follows_the_rule(gpu: &Gpu) {
    masters::sizes(&by_owner(&gpu.device), SIZES.into_iter().filter(|&size| size < 100_000));
    let windows = wgpu::Limits { max_storage_buffer_binding_size: 512, ..wgpu::Limits::default() };
    let windows = gpu.open(wgpu::Features::empty(), windows);
    masters::sizes(&by_owner(&windows), [0, 1, 127, 128, 129, 131, 255, 256, 257, 1003]);
}

/// Parameters are clamped between steps. The masters are those of the contract, and the next step
/// is that of an optimizer that was given them.
fn steps_go_on_from_clamped_parameters(device: &Device) {
    for name in VARIANTS {
        let (formats, len) = (formats(name), 1003);
        let mut values = Values::new(formats.param, &Inputs::random(1, len).p);
        let param = device.buffer(values.bytes());
        let binding = Binding::new(&param, formats.param);
        let specs = [TensorSpec::new(len).with_master()];
        let mut optimizer = DualAdam::with_groups(device.pipelines(), &[config()], &specs).unwrap();
        let step = |optimizer: &mut DualAdam, param: Binding<'_>, round| {
            let grad = device.buffer(Values::new(formats.grad, &Inputs::random(round, len).grad).bytes());
            device.submit(|pass| {
                optimizer.step(pass, [param], [Some(Binding::new(&grad, formats.grad))]).unwrap();
            });
        };
        let read = |buffer: &wgpu::Buffer, values: &mut Values| {
            let bytes = values.bytes_mut();
            bytes.copy_from_slice(&device.read(buffer)[..bytes.len()]);
        };
        let mut kept = 0;
        for round in 0..5 {
            step(&mut optimizer, binding, round);
            let mut expected = optimizer.state(&device.queue).unwrap();
            read(&param, &mut values);
            values.map(|x| x.clamp(-1.0, 1.0));
            let mut bytes = values.bytes().to_vec();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            device.queue.write_buffer(&param, 0, &bytes);

            let before = expected.arrays[0].master.take().unwrap();
            let mut host = Host { param: values.clone(), ..Host::new(formats, &Inputs::parameters(before.clone())) };
            by_contract(&mut host);
            let masters = host.master.unwrap().wide();
            kept += before.iter().zip(&masters).filter(|(before, after)| before == after).count();
            expected.arrays[0].master = Some(masters);
            device.submit(|pass| optimizer.sync_masters(pass, [binding]).unwrap());
            assert!(bits(&optimizer.state(&device.queue).unwrap()) == bits(&expected), "{name}, round {round}");

            let mut told = DualAdam::from_state(device.pipelines(), &device.queue, &expected).unwrap();
            let twin = device.buffer(values.bytes());
            step(&mut told, Binding::new(&twin, formats.param), 100 + round);
            step(&mut optimizer, binding, 100 + round);
            let states = [&optimizer, &told].map(|optimizer| bits(&optimizer.state(&device.queue).unwrap()));
            assert!(states[0] == states[1], "{name}, the step after round {round}");
            let found = [&param, &twin].map(|buffer| device.read(buffer)[..2 * len].to_vec());
            assert_eq!(found[0], found[1], "{name}, the step after round {round}");
        }
        assert!(kept > len && kept < 5 * len, "{name}: {kept} masters were kept");
    }
}

/// Tensors before their first update, and without masters, are passed over; their buffers are not
/// looked at.
fn only_masters_that_are_set_are_written(device: &Device) {
    let specs = [TensorSpec::new(3).with_master(), TensorSpec::new(2), TensorSpec::new(2).with_master()];
    let mut optimizer = DualAdam::with_groups(device.pipelines(), &[DualAdamConfig::adam()], &specs).unwrap();
    let ones = |dtype, len| device.buffer(Values::new(dtype, &vec![1.0; len]).bytes());
    let buffers = [(Dtype::Bf16, 3), (Dtype::F32, 2), (Dtype::F16, 2)].map(|(dtype, len)| (ones(dtype, len), dtype));
    let bindings = buffers.each_ref().map(|(buffer, dtype)| Binding::new(buffer, *dtype));
    let before = optimizer.state(&device.queue).unwrap();
    device.submit(|pass| optimizer.sync_masters(pass, bindings).unwrap());
    assert_eq!(optimizer.state(&device.queue).unwrap(), before);

    let grads = [ones(Dtype::Bf16, 3), ones(Dtype::F32, 2)];
    let given = [Some(Binding::new(&grads[0], Dtype::Bf16)), Some(Binding::new(&grads[1], Dtype::F32)), None];
    device.submit(|pass| optimizer.step(pass, bindings, given).unwrap());
    let mut expected = optimizer.state(&device.queue).unwrap();
    let fives = device.buffer(Values::new(Dtype::Bf16, &[5.0; 3]).bytes());
    let nothing = device.empty(0, wgpu::BufferUsages::COPY_DST);
    let bindings = [(&fives, Dtype::Bf16), (&nothing, Dtype::F32), (&nothing, Dtype::F32)];
    let bindings = bindings.map(|(buffer, dtype)| Binding::new(buffer, dtype));
    device.submit(|pass| optimizer.sync_masters(pass, bindings).unwrap());
    expected.arrays[0].master = Some(vec![5.0; 3]);
    assert_eq!(optimizer.state(&device.queue).unwrap(), expected);
}

fn bad_input_encodes_nothing(device: &Device) {
    let specs = [TensorSpec::new(4).with_master(), TensorSpec::new(4).with_master().with_name("bias")];
    let mut state = State::new(&[DualAdamConfig::adam()], &specs).unwrap();
    (0..2).for_each(|tensor| state.ledger.set_master_is_set(tensor, true).unwrap());
    let mut optimizer = DualAdam::from_state(device.pipelines(), &device.queue, &state).unwrap();
    let ones = device.buffer(Values::new(Dtype::Bf16, &[1.0; 4]).bytes());
    let copies = device.empty(8, wgpu::BufferUsages::COPY_DST);
    let good = Binding::new(&ones, Dtype::Bf16);
    device.submit(|pass| {
        let mut sync = |second: Binding<'_>| optimizer.sync_masters(pass, [good, second]);
        let formats = TensorProblem::MasterFormats { param: Dtype::F32, master: Dtype::F32 };
        refused::problem(sync(Binding::new(&ones, Dtype::F32)), 1, None, formats);
        refused::usage(sync(Binding::new(&copies, Dtype::Bf16)), 1, Role::Param, wgpu::BufferUsages::COPY_DST);
        refused::offset(sync(good.with_offset(4)), 1, Role::Param, 256, 4);
        refused::buffer_size(sync(good.with_offset(256)), 1, Role::Param, 264, 8);
        refused::count(optimizer.sync_masters(pass, [good]), "params", 2, 1);
    });
    assert_eq!(optimizer.state(&device.queue).unwrap(), state);
    device.submit(|pass| optimizer.sync_masters(pass, [good, good]).unwrap());
    let state = optimizer.state(&device.queue).unwrap();
    assert!(state.arrays.iter().all(|arrays| arrays.master == Some(vec![1.0; 4])));
}

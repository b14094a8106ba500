//! `sync_master` and `sync_masters` on the CPU, against the rule written a second time.

use dualadam::cpu::{self, Buffer, BufferMut, DualAdam};
use dualadam::half::{bf16, f16};
use dualadam::{Dtype, DualAdamConfig, Role, State, TensorProblem, TensorSpec};
use testkit::data::{Inputs, SIZES, narrow};
use testkit::masters::{self, VARIANTS, by_contract, changed};
use testkit::raw::{bf16_at, f32_at, good};
use testkit::refused;
use testkit::{Tensor, formats};

use TensorProblem::{Extent, MasterFormats, Misaligned, Null, Overlap, TooLong};

fn by_slices(tensor: &mut Tensor) {
    tensor.sync_master().unwrap();
}

fn by_address(tensor: &mut Tensor) {
    let raw = tensor.raw();
    // SAFETY: the addresses are those of the tensor's own buffers, which nothing else uses.
    unsafe { cpu::sync_master_raw(raw.len, raw.param, raw.master.unwrap()) }.unwrap();
}

/// An optimizer with the tensor's arrays, whose masters are set.
fn owner_of(tensor: &Tensor) -> DualAdam {
    let specs = [TensorSpec::new(tensor.len()).with_master()];
    let mut state = State::new(&[DualAdamConfig::adam()], &specs).unwrap();
    state.arrays[0].master = Some(tensor.master.as_ref().unwrap().wide()[tensor.range(4)].to_vec());
    state.ledger.set_master_is_set(0, true).unwrap();
    DualAdam::try_from(state).unwrap()
}

fn by_owner(tensor: &mut Tensor) {
    let mut owner = owner_of(tensor);
    owner.sync_masters([tensor.param.buffer(tensor.range(0))]).unwrap();
    let start = tensor.offsets[4];
    tensor.master.as_mut().unwrap().write(start, owner.state().arrays[0].master.as_ref().unwrap());
}

#[test]
fn every_pattern_of_a_parameter_follows_the_rule() {
    for sync in [by_slices as fn(&mut Tensor), by_address, by_owner] {
        masters::patterns(&sync, &VARIANTS, 1 << 16);
    }
}

#[test]
fn every_size_follows_the_rule() {
    masters::sizes(&by_slices, SIZES);
}

#[test]
fn every_misalignment_follows_the_rule() {
    let lens: Vec<_> = (0..20).chain([63, 64, 65, 129]).collect();
    masters::misalignments(&by_address, 8, &lens);
    masters::misalignments(&by_slices, 3, &lens);
    masters::misalignments(&by_owner, 1, &lens);
}

/// The number of threads changes no bit.
#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let tensors = VARIANTS.map(|name| changed(name, 300_007, [1, 0, 0, 0, 3], |i| i % 1000 < 3));
    for threads in [1, 2, 3, 7] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for tensor in &tensors {
            pool.install(|| masters::check(&by_slices, tensor, &format!("{threads} threads")));
        }
    }
}

/// NaNs: a master that is one and was not changed keeps its bits, and so does the sign of a NaN.
#[test]
fn a_nan_that_was_not_changed_keeps_its_bits() {
    let master = [0x7fc0_1234, 0xffc0_0001, 0x7f80_0001].map(f32::from_bits);
    let mut found = master;
    cpu::sync_master(&narrow::<bf16>(&master), &mut found).unwrap();
    assert_eq!(found.map(f32::to_bits), master.map(f32::to_bits));
    cpu::sync_master(&narrow::<f16>(&master), &mut found).unwrap();
    assert_eq!(found.map(f32::to_bits), master.map(f32::to_bits));
}

/// Wrong lengths and addresses are refused by name, and nothing is written.
#[test]
fn bad_input_is_refused() {
    let mut master = [1.0_f32; 4];
    refused::length(cpu::sync_master(&[bf16::ZERO; 3], &mut master), 0, Role::Master, 3, 4);
    refused::length(cpu::sync_master(&[f16::ZERO; 5], &mut master), 0, Role::Master, 5, 4);
    assert_eq!(master, [1.0; 4]);

    // SAFETY: a pair that is not refused has no elements.
    let sync = |len, param, master| unsafe { cpu::sync_master_raw(len, param, master) };
    let (param, master) = (good().param, good().master.unwrap());
    for (param, master) in [(f32_at(0x1400), master), (param, bf16_at(0x1000)), (f32_at(0), bf16_at(0))] {
        let problem = MasterFormats { param: param.dtype, master: master.dtype };
        refused::problem(sync(64, param, master), 0, None, problem);
        refused::problem(sync(0, param, master), 0, None, problem);
    }
    const BEYOND: u64 = u64::MAX - 127;
    for (param, master, buffer, problem) in [
        (bf16_at(0), master, Role::Param, Null),
        (param, f32_at(0), Role::Master, Null),
        (bf16_at(0x1401), master, Role::Param, Misaligned { address: 0x1401, align: 2 }),
        (param, f32_at(0x1002), Role::Master, Misaligned { address: 0x1002, align: 4 }),
        (bf16_at(BEYOND), master, Role::Param, Extent { address: BEYOND, len: 64, size: 2 }),
        (param, f32_at(BEYOND), Role::Master, Extent { address: BEYOND, len: 64, size: 4 }),
    ] {
        refused::problem(sync(64, param, master), 0, buffer, problem);
    }
    for (param, master, address) in [(0x1000, 0x1000, 0x1000), (0x10fe, 0x1000, 0x10fe), (0x1000, 0x107c, 0x107c)] {
        let overlap = Overlap { other_tensor: 0, other_buffer: Role::Param, address };
        refused::problem(sync(64, bf16_at(param), f32_at(master)), 0, Role::Master, overlap);
    }
    let (limit, actual) = (isize::MAX as u64 / 4, u64::MAX);
    refused::problem(sync(actual, param, master), 0, None, TooLong { limit, actual });
    // An empty tensor's addresses are not looked at.
    sync(0, bf16_at(1), f32_at(0)).unwrap();
}

/// Parameters are clamped between steps. The optimizer takes steps as the flat call that was given
/// the changed masters.
#[test]
fn steps_go_on_from_clamped_parameters() {
    let config = DualAdamConfig::adamw(0.1).with_lr(0.05);
    for name in VARIANTS {
        let mut tensor =
            Tensor::new(formats(name), &Inputs { m: vec![0.0; 1000], v: vec![0.0; 1000], ..Inputs::random(1, 1000) });
        by_contract(&mut tensor); // the masters of the parameters, before the first step
        let mut param = tensor.param.clone();
        let specs = [TensorSpec::new(tensor.len()).with_master()];
        let mut optimizer = DualAdam::with_groups(&[config], &specs).unwrap();
        let mut kept = 0;
        for step in 1..=20 {
            tensor.set_grads(&Inputs::random(100 + step, tensor.len()).grad);
            let grad = tensor.grad.buffer(0..tensor.len());
            optimizer.step([param.all_mut()], [Some(grad)]).unwrap();
            tensor.step_flat(&config.coeffs(step).unwrap()).unwrap();
            for param in [&mut param, &mut tensor.param] {
                param.map(|x| x.clamp(-2.0, 2.0));
            }
            let before = tensor.master.clone().unwrap().wide();
            by_contract(&mut tensor);
            optimizer.sync_masters([param.buffer(0..param.len())]).unwrap();
            let master = tensor.master.as_ref().unwrap().wide();
            assert_eq!(optimizer.state().arrays[0].master.as_ref(), Some(&master), "{name}, step {step}");
            assert_eq!(param, tensor.param, "{name}, step {step}");
            assert!(master.iter().all(|x| x.abs() <= 2.0 + 1.0 / 128.0), "{name}, step {step}");
            kept += before.iter().zip(&master).filter(|(before, after)| before == after).count();
        }
        assert!(kept > 10_000 && kept < 20_000, "{name}: {kept} masters were kept");
    }
}

/// Before its first update a tensor's masters are left alone, and so is a tensor without masters.
#[test]
fn only_masters_that_are_set_are_brought_up_to_date() {
    let specs = [TensorSpec::new(3).with_master(), TensorSpec::new(2), TensorSpec::new(2).with_master()];
    let mut optimizer = DualAdam::with_groups(&[DualAdamConfig::adam()], &specs).unwrap();
    let (mut a, mut b, mut c) = ([bf16::ONE; 3], [1.0_f32; 2], [f16::ONE; 2]);
    let grads = (a, b, c);
    let untouched = optimizer.state().clone();
    optimizer.sync_masters([Buffer::from(&a), (&b).into(), (&c).into()]).unwrap();
    assert_eq!(*optimizer.state(), untouched);

    let params: [BufferMut<'_>; 3] = [(&mut a).into(), (&mut b).into(), (&mut c).into()];
    optimizer.step(params, [Some((&grads.0).into()), Some((&grads.1).into()), None]).unwrap();
    (a[1], b, c) = (bf16::from_f32(5.0), [7.0; 2], [f16::from_f32(9.0); 2]);
    optimizer.sync_masters([Buffer::from(&a), (&b).into(), (&c).into()]).unwrap();
    let masters = optimizer.state().arrays.iter().map(|arrays| arrays.master.clone()).collect::<Vec<_>>();
    assert_eq!(masters, [Some(vec![0.999, 5.0, 0.999]), None, Some(vec![0.0; 2])]);
    // The first update of the last tensor sets its masters from what is there by then.
    optimizer.step([(&mut a).into(), (&mut b).into(), (&mut c).into()], [None, None, Some((&grads.2).into())]).unwrap();
    assert_eq!(optimizer.state().arrays[2].master, Some(vec![8.999; 2]));
}

/// An optimizer refuses wrong lists before it writes the first master.
#[test]
fn an_optimizer_refuses_bad_input_as_a_whole() {
    let specs = [TensorSpec::new(4).with_master(), TensorSpec::new(4).with_master().with_name("bias")];
    let mut state = State::new(&[DualAdamConfig::adam()], &specs).unwrap();
    (0..2).for_each(|tensor| state.ledger.set_master_is_set(tensor, true).unwrap());
    let mut optimizer = DualAdam::try_from(state.clone()).unwrap();
    let first = [bf16::ONE; 4];
    refused::count(optimizer.sync_masters([(&first).into()]), "params", 2, 1);
    refused::count(optimizer.sync_masters([&first; 3].map(Buffer::from)), "params", 2, 3);
    let short = [bf16::ONE; 3];
    refused::length(optimizer.sync_masters([(&first).into(), (&short).into()]), 1, Role::Param, 4, 3);
    let problem = MasterFormats { param: Dtype::F32, master: Dtype::F32 };
    refused::problem(optimizer.sync_masters([(&first).into(), (&[1.0_f32; 4]).into()]), 1, None, problem);
    assert_eq!(*optimizer.state(), state);
    optimizer.sync_masters([(&first).into(), (&first).into()]).unwrap();
    assert!(optimizer.state().arrays.iter().all(|arrays| arrays.master == Some(vec![1.0; 4])));
}

//! Tensors by address on the CPU, alone and in lists: the bits of the contract and of single steps,
//! and what is refused.

use dualadam::cpu::{self, TensorList};
use dualadam::{RawBuffer, RawTensor, StepCoeffs, TensorProblem};
use testkit::laws::{self, by_contract};
use testkit::raw::{self, bf16_at, good, moved, with};
use testkit::{Inputs, Tensor, Variant, formats, refused};

fn f32s(len: usize) -> Tensor {
    Tensor::new(formats("f32_f32"), &Inputs::random(1, len))
}

fn step(list: &mut TensorList, sets: &[StepCoeffs]) {
    // SAFETY: the addresses are those of the tests' tensors, and nothing else uses them.
    unsafe { list.step_raw(sets) }.unwrap();
}

#[test]
fn a_list_gives_the_contract_bits() {
    let thrice = |tensors: &mut [Tensor], sets: &[StepCoeffs]| {
        let raw: Vec<_> = tensors.iter_mut().map(Tensor::raw).collect();
        let mut list = TensorList::new(&raw).unwrap();
        assert_eq!((list.len(), list.is_empty(), list.tensors()), (raw.len(), false, raw.as_slice()));
        (0..3).for_each(|_| step(&mut list, sets));
    };
    let right = |tensors: &mut [Tensor], sets: &[StepCoeffs]| (0..3).for_each(|_| by_contract(tensors, sets));
    // More elements than one thread takes.
    laws::lists(&thrice, &right, &[1, 0, 70_000, 17, 33, 9, 5, 6, 7, 8, 300, 12]);
    assert!(TensorList::new(&[]).unwrap().is_empty());
}

#[test]
fn the_callers_threads_give_the_contract_bits() {
    let backwards = |parts: usize, step_part: &(dyn Fn(usize) + Send + Sync)| (0..parts).rev().for_each(step_part);
    let at_once = |parts: usize, step_part: &(dyn Fn(usize) + Send + Sync)| {
        std::thread::scope(|scope| (0..parts).for_each(|part| drop(scope.spawn(move || step_part(part)))));
    };
    let lens = [1, 0, 70_000, 17, 33, 9, 5, 6, 7, 8, 300, 12];
    let once = |tensors: &mut [Tensor], sets: &[StepCoeffs]| {
        let raw: Vec<_> = tensors.iter_mut().map(Tensor::raw).collect();
        let mut list = TensorList::new(&raw).unwrap();
        // SAFETY: the addresses are those of the tests' tensors, and nothing else uses them. Both
        // functions make each call once, and all have returned then.
        unsafe {
            list.step_raw_with(sets, backwards).unwrap();
            list.step_raw_with(sets, at_once).unwrap();
        }
    };
    let right = |tensors: &mut [Tensor], sets: &[StepCoeffs]| (0..2).for_each(|_| by_contract(tensors, sets));
    laws::lists(&once, &right, &lens);
    // SAFETY: nothing is stepped.
    let refused = unsafe { TensorList::new(&[f32s(1).raw()]).unwrap().step_raw_with(&[], |_, _| unreachable!()) };
    refused::coeffs_index(refused, 0, 0, 0);
}

#[test]
fn new_addresses_are_taken_over_and_a_missing_gradient_leaves_the_tensor_alone() {
    let (mut a, mut b, sets) = (f32s(5), f32s(6).with_set(1), laws::all_sets());
    let mut tensors = [a.raw(), b.raw()];
    let mut list = TensorList::new(&tensors).unwrap();
    let (mut expected, before) = (a.clone(), b.clone());
    let grads = [1.0_f32; 5];
    expected.set_grads(&grads);
    tensors[0].grad.address = grads.as_ptr().expose_provenance() as u64;
    tensors[1].grad.address = 0;
    list.update(&tensors).unwrap();
    step(&mut list, &sets);
    by_contract(std::slice::from_mut(&mut expected), &sets);
    a.set_grads(&grads);
    a.assert_same(&expected, "new gradients");
    assert_eq!(b, before);
}

#[test]
fn a_gradient_may_lie_where_another_buffer_was() {
    let (mut a, mut b, mut elsewhere) = (f32s(5), f32s(5), f32s(5));
    let [first, second] = [a.raw(), b.raw()];
    let mut list = TensorList::new(&[first, second]).unwrap();
    let moved = with(first, |tensor| tensor.param = elsewhere.raw().param);
    let now = [moved, second.with_grad(first.param)];
    list.update(&now).unwrap();
    assert_eq!(list.tensors(), now);
    // But it may not lie where another buffer lies now.
    refused::overlap(list.update(&[moved, second.with_grad(moved.param)]));
    assert_eq!(list.tensors(), now);
}

#[test]
fn bad_tensors_are_refused_and_the_list_stays() {
    raw::wrong_lists(TensorList::new, TensorList::update, TensorList::tensors);
    let limit = isize::MAX as u64 / 4;
    let longer = TensorList::new(&[with(good(), |tensor| tensor.len = limit + 1)]);
    refused::problem(longer, 0, None, TensorProblem::TooLong { limit, actual: limit + 1 });
    let mut list = TensorList::new(&[good(), moved(good(), 0x10_0000).with_coeffs_index(1)]).unwrap();
    // SAFETY: refused before anything is stepped.
    refused::coeffs_index(unsafe { list.step_raw(&laws::all_sets()[..1]) }, 1, 1, 1);
}

/// Every variant, in flat steps and in lists, with more elements than one thread takes.
#[test]
fn steps_by_address_give_the_contract_bits() {
    let flat = |tensors: &mut [Tensor], sets: &[StepCoeffs]| {
        for tensor in tensors {
            // SAFETY: the addresses are those of the tensor.
            unsafe { cpu::step_raw(&tensor.raw().with_coeffs_index(0), &sets[tensor.set]) }.unwrap();
        }
    };
    let list = |tensors: &mut [Tensor], sets: &[StepCoeffs]| {
        let raw: Vec<_> = tensors.iter_mut().map(Tensor::raw).collect();
        // SAFETY: the addresses are those of the tensors.
        unsafe { cpu::step_list_raw(&raw, sets) }.unwrap();
    };
    for step in [&flat as laws::Step<'_>, &list] {
        laws::sizes(step, &by_contract, [0, 9, 1000, 70_000]);
        laws::misalignments(step, &by_contract, 100, 4);
        laws::lists(step, &by_contract, &[70_000, 0, 9, 1000, 17]);
        laws::values(step, &by_contract, &Inputs::random(3, 1000), &laws::all_sets());
    }
    let (mut skipped, mut stepped, sets) = (f32s(4), f32s(4), laws::all_sets());
    let before = skipped.clone();
    let raw = skipped.raw().with_grad(RawBuffer::f32(0)).with_coeffs_index(1);
    // SAFETY: the addresses are those of the tensor that has a gradient.
    unsafe {
        cpu::step_list_raw(&[raw, stepped.raw()], &sets).unwrap();
        cpu::step_list_raw(&[], &[]).unwrap();
    }
    assert_eq!(skipped, before);
    assert_ne!(stepped, before);
    let found = |variant: Variant| Variant::of(Tensor::new(variant.formats(), &Inputs::random(1, 1)).raw().formats());
    Variant::all().for_each(|variant| assert_eq!(found(variant), Some(variant)));
}

#[test]
fn steps_by_address_refuse_bad_tensors() {
    let sets = &laws::all_sets()[..2];
    // SAFETY: refused before any buffer is accessed.
    let alone = |tensor: &RawTensor| unsafe { cpu::step_raw(tensor, &sets[0]) };
    // SAFETY: as above; the tensors that are not refused have no gradient.
    let list = |tensors: &[RawTensor]| unsafe { cpu::step_list_raw(tensors, sets) };
    raw::wrong_tensors(alone, list);
    raw::wrong_tensors(alone, TensorList::new);
    let limit = isize::MAX as u64 / 4;
    for len in [limit + 1, u64::MAX / 4] {
        let (long, too_long) = (with(good(), |t| t.len = len), TensorProblem::TooLong { limit, actual: len });
        refused::problem(alone(&long), 0, None, too_long);
        refused::problem(list(&[moved(good(), 0x10_0000), long]), 1, None, too_long);
    }
    let absent = with(good().with_grad(bf16_at(0)).with_coeffs_index(2), |tensor| tensor.len = limit);
    refused::coeffs_index(list(&[moved(good(), 0x10_0000), absent]), 1, 2, 2);
    list(&[absent.with_coeffs_index(1)]).unwrap();
    let sharing = moved(with(good(), |t| t.param = bf16_at(0x2500)), 0x10_0000);
    refused::overlap(list(&[sharing, with(good(), |t| t.param = sharing.param)]));
}

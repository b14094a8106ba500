//! Tensors by address on the CPU, alone and in lists: the bits of the contract and of single steps,
//! and what is refused.

use dualadam::cpu::{self, TensorList};
use dualadam::{Dtype, Formats, RawBuffer, RawTensor, Role, StepCoeffs, TensorProblem};
use testkit::data::Inputs;
use testkit::laws::{self, by_contract};
use testkit::refused;
use testkit::tensor::Tensor;
use testkit::variant::{Variant, formats};

fn f32s(len: usize) -> Tensor {
    Tensor::new(formats("f32_f32"), &Inputs::random(1, len))
}

/// The same tensor with a change.
fn with(mut tensor: RawTensor, change: impl FnOnce(&mut RawTensor)) -> RawTensor {
    change(&mut tensor);
    tensor
}

fn step(list: &mut TensorList, sets: &[StepCoeffs]) {
    // SAFETY: the tests' tensors have these addresses, and nothing else uses them.
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
    // And not where one lies now.
    refused::overlap(list.update(&[moved, second.with_grad(moved.param)]));
    assert_eq!(list.tensors(), now);
}

#[test]
fn what_cannot_be_right_is_refused_and_the_list_stays() {
    let (mut a, mut b, sets) = (f32s(5), f32s(6).with_set(1), laws::all_sets());
    let tensors = [a.raw(), b.raw()];
    let mut list = TensorList::new(&tensors).unwrap();
    let [first, second] = tensors;
    let cases = [
        (with(second, |tensor| tensor.param.address = 0), "param of tensor 1 must not be null"),
        (with(second, |tensor| tensor.param.address = first.param.address + 2), "must be aligned to 4 bytes"),
        (with(second, |tensor| tensor.param = first.param), "must not overlap"),
        (second.with_grad(first.param), "must not overlap"),
        (
            with(second, |tensor| tensor.grad.dtype = Dtype::Bf16),
            "tensor 1 must keep its formats (f32 param, f32 grad, f32 exp_avg, f32 exp_avg_sq), got f32 param, bf16 grad",
        ),
        (with(second, |tensor| tensor.len = 7), "tensor 1 must keep its length of 6 elements, got 7"),
    ];
    for (wrong, text) in cases {
        let error = list.update(&[first, wrong]).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert_eq!(list.tensors(), tensors);
    }
    refused::count(list.update(&[first]), "tensors", 2, 1);
    let mixed = with(second, |tensor| {
        tensor.param.dtype = Dtype::Bf16;
        tensor.grad = RawBuffer::new(8, Dtype::F16);
    });
    refused::formats(TensorList::new(&[first, mixed]), 1, Formats::new(Dtype::Bf16, Dtype::F16));
    let limit = isize::MAX as u64 / 4;
    let longer = TensorList::new(&[with(first, |tensor| tensor.len = limit + 1)]);
    refused::problem(longer, 0, None, TensorProblem::TooLong { limit, actual: limit + 1 });
    // SAFETY: nothing is stepped.
    refused::coeffs_index(unsafe { list.step_raw(&sets[..1]) }, 1, 1, 1);
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
    }
    let (mut skipped, sets) = (f32s(4), laws::all_sets());
    let before = skipped.clone();
    let raw = skipped.raw().with_grad(RawBuffer::f32(0)).with_coeffs_index(1);
    // SAFETY: there is nothing to step.
    unsafe {
        cpu::step_list_raw(&[raw], &sets).unwrap();
        cpu::step_list_raw(&[], &[]).unwrap();
    }
    assert_eq!(skipped, before);
    Variant::all().for_each(|variant| assert_eq!(Variant::of(variant.formats()), Some(variant)));
}

#[test]
fn steps_by_address_refuse_what_cannot_be_right() {
    let (mut a, mut b) = (f32s(5), f32s(6));
    let (first, second) = (a.raw(), b.raw());
    let before = (a.clone(), b.clone());
    let sets = &laws::all_sets()[..2];
    let limit = isize::MAX as u64 / 4;
    let too_long = format!("tensor # must have at most {limit} elements, got {}", limit + 1);
    let at_the_end = RawBuffer::f32(u64::MAX - 7);
    for (wrong, text) in [
        (with(second, |tensor| tensor.exp_avg.address = 0), "exp_avg of tensor # must not be null"),
        (with(second, |tensor| tensor.param.address += 2), "must be aligned to 4 bytes"),
        (with(second, |tensor| tensor.exp_avg = tensor.param), "must not overlap"),
        (second.with_grad(second.param), "must not overlap"),
        (
            with(second, |tensor| {
                (tensor.param, tensor.grad) = (RawBuffer::new(8, Dtype::F16), RawBuffer::new(8, Dtype::Bf16));
            }),
            "got f16 param, bf16 grad, f32 exp_avg, f32 exp_avg_sq",
        ),
        (with(second, |tensor| tensor.param = at_the_end), "param of tensor # must end within 2^64 bytes"),
        (with(second, |tensor| tensor.len = limit + 1), &too_long),
    ] {
        // SAFETY: refused before any buffer is looked at.
        let errors = unsafe { [cpu::step_raw(&wrong, &sets[0]), cpu::step_list_raw(&[first, wrong], sets)] };
        for (index, error) in errors.map(Result::unwrap_err).into_iter().enumerate() {
            let text = text.replace('#', &index.to_string());
            assert!(error.to_string().contains(&text), "{error}");
        }
    }
    let longest = with(second, |tensor| tensor.len = u64::MAX / 4);
    let absent = with(second.with_grad(RawBuffer::f32(0)).with_coeffs_index(2), |tensor| tensor.len = limit);
    let sharing = with(second, |tensor| tensor.param = first.param);
    // SAFETY: as above.
    unsafe {
        let too_long = TensorProblem::TooLong { limit, actual: u64::MAX / 4 };
        refused::problem(cpu::step_raw(&longest, &sets[0]), 0, None, too_long);
        refused::problem(cpu::step_list_raw(&[first, longest], sets), 1, None, too_long);
        let alone = with(absent.with_coeffs_index(0), |tensor| tensor.len = 6);
        refused::problem(cpu::step_raw(&alone, &sets[0]), 0, Role::Grad, TensorProblem::Null);
        refused::coeffs_index(cpu::step_raw(&second.with_coeffs_index(1), &sets[0]), 0, 1, 1);
        refused::coeffs_index(cpu::step_list_raw(&[first, absent], sets), 1, 2, 2);
        refused::overlap(cpu::step_list_raw(&[first, sharing], sets));
        cpu::step_list_raw(&[absent.with_coeffs_index(1)], sets).unwrap();
    }
    assert_eq!((a, b), before);
}

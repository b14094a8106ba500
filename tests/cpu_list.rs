//! Lists of tensors by address on the CPU: the bits of the contract, and what is refused.

use dualadam::cpu::TensorList;
use dualadam::{Dtype, RawBuffer, RawTensor, StepCoeffs};
use testkit::data::Inputs;
use testkit::laws::{self, by_contract};
use testkit::refused;
use testkit::tensor::Tensor;
use testkit::variant::formats;

fn f32s(len: usize) -> Tensor {
    Tensor::new(formats("f32_f32"), &Inputs::random(1, len))
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
    tensors[0].grads.address = grads.as_ptr().expose_provenance() as u64;
    tensors[1].grads.address = 0;
    list.update(&tensors).unwrap();
    step(&mut list, &sets);
    by_contract(std::slice::from_mut(&mut expected), &sets);
    a.set_grads(&grads);
    a.assert_same(&expected, "new gradients");
    assert_eq!(b, before);
}

#[test]
fn what_cannot_be_right_is_refused_and_the_list_stays() {
    let (mut a, mut b, sets) = (f32s(5), f32s(6).with_set(1), laws::all_sets());
    let tensors = [a.raw(), b.raw()];
    let mut list = TensorList::new(&tensors).unwrap();
    let at = |address, dtype| RawBuffer { address, dtype };
    let [first, second] = tensors;
    let cases = [
        (RawTensor { params: at(0, Dtype::F32), ..second }, "params of tensor 1 must not be null"),
        (RawTensor { params: at(first.params.address + 2, Dtype::F32), ..second }, "must be aligned to 4 bytes"),
        (RawTensor { params: first.params, ..second }, "must not overlap"),
        (RawTensor { grads: first.params, ..second }, "must not overlap"),
        (RawTensor { grads: at(second.grads.address, Dtype::Bf16), ..second }, "must stay f32 parameters with f32"),
        (RawTensor { len: 7, ..second }, "the length of tensor 1 must stay 6, got 7"),
    ];
    for (wrong, text) in cases {
        let error = list.update(&[first, wrong]).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert_eq!(list.tensors(), tensors);
    }
    refused::count(list.update(&[first]), "tensors", 2, 1);
    let mixed = RawTensor { params: at(second.params.address, Dtype::Bf16), grads: at(8, Dtype::F16), ..second };
    refused::types(TensorList::new(&[first, mixed]), 1, Dtype::Bf16, Dtype::F16, None);
    let limit = isize::MAX as u64 / 4;
    let longer = TensorList::new(&[RawTensor { len: limit + 1, ..first }]);
    refused::too_many(longer, "the elements of a buffer", limit, limit + 1);
    // SAFETY: nothing is stepped.
    refused::index(unsafe { list.step_raw(&sets[..1]) }, 1, "set", 1, 1);
}

#[test]
fn steps_by_address_have_the_bits_of_single_steps() {
    let (mut flat, mut single) = (Memory::<f32>::new(70_000), Memory::<f32>::new(70_000));
    let (mut master, mut single_master) = (Memory::<f32>::new(9), Memory::<f32>::new(9));
    let mut alone = Memory::<bf16>::new(4);
    let before = alone.bits();
    for step in 1..4 {
        let sets = sets(step);
        let absent = RawBuffer { address: 0, dtype: Dtype::Bf16 };
        let (skipped, empty) = (RawTensor { grads: absent, ..alone.raw(1) }, RawTensor { len: 0, ..alone.raw(0) });
        let list = [flat.raw(1), master.with_copy(0), skipped, empty];
        // SAFETY: the addresses are those of the memory above.
        unsafe {
            cpu::step_raw(&flat.raw(0), &sets[0]).unwrap();
            cpu::step_list_raw(&list, &sets).unwrap();
        }
        let x = &mut single;
        cpu::step(&mut x.p, &x.g, &mut x.m, &mut x.v, &sets[0]).unwrap();
        cpu::step(&mut x.p, &x.g, &mut x.m, &mut x.v, &sets[1]).unwrap();
        let x = &mut single_master;
        cpu::step_with_copy(&mut x.p, &mut x.copy, &x.g, &mut x.m, &mut x.v, &sets[0]).unwrap();
    }
    assert_eq!((flat.bits(), master.bits()), (single.bits(), single_master.bits()));
    assert_eq!((master.copy, alone.bits()), (single_master.copy, before));
    // SAFETY: there is nothing to step.
    unsafe { cpu::step_list_raw(&[], &[]) }.unwrap();
}

#[test]
fn steps_by_address_refuse_what_cannot_be_right() {
    let (mut a, mut b) = (Memory::<f32>::new(5), Memory::<f32>::new(6));
    let (first, second) = (a.raw(0), b.raw(0));
    let before = (a.bits(), b.bits());
    let sets = sets(1);
    let at = |address, dtype| RawBuffer { address, dtype };
    let limit = isize::MAX as u64 / 4;
    let too_many = format!("the elements of a buffer must number at most {limit}, got {}", limit + 1);
    for (wrong, text) in [
        (RawTensor { exp_avg: 0, ..second }, "exp_avg of tensor # must not be null"),
        (RawTensor { params: at(second.params.address + 2, Dtype::F32), ..second }, "must be aligned to 4 bytes"),
        (RawTensor { exp_avg: second.params.address, ..second }, "must not overlap"),
        (RawTensor { grads: second.params, ..second }, "must not overlap"),
        (
            RawTensor { grads: at(8, Dtype::Bf16), params: at(8, Dtype::F16), ..second },
            "tensor #: f16 parameters with bf16",
        ),
        (RawTensor { len: u64::MAX / 4, ..second }, "params of tensor # must end within 2^64 bytes"),
        (RawTensor { len: limit + 1, ..second }, &too_many),
    ] {
        // SAFETY: refused before any buffer is looked at.
        let errors = unsafe { [cpu::step_raw(&wrong, &sets[0]), cpu::step_list_raw(&[first, wrong], &sets)] };
        for (index, error) in errors.map(Result::unwrap_err).into_iter().enumerate() {
            let text = text.replace('#', &index.to_string());
            assert!(error.to_string().contains(&text), "{error}");
        }
    }
    let absent = RawTensor { grads: at(0, Dtype::F32), len: u64::MAX, set: 2, ..second };
    let sharing = RawTensor { params: first.params, ..second };
    // SAFETY: as above.
    unsafe {
        let null = cpu::step_raw(&RawTensor { set: 0, len: 6, ..absent }, &sets[0]);
        assert!(matches!(null, Err(Error::Null { tensor: 0, buffer: "grads" })), "{null:?}");
        let set = cpu::step_raw(&RawTensor { set: 1, ..second }, &sets[0]);
        assert!(matches!(set, Err(Error::Index { tensor: 0, index: "set", len: 1, value: 1 })), "{set:?}");
        let set = cpu::step_list_raw(&[first, absent], &sets);
        assert!(matches!(set, Err(Error::Index { tensor: 1, index: "set", len: 2, value: 2 })), "{set:?}");
        let overlap = cpu::step_list_raw(&[first, sharing], &sets);
        assert!(matches!(overlap, Err(Error::Overlap { .. })), "{overlap:?}");
        cpu::step_list_raw(&[RawTensor { set: 1, ..absent }], &sets).unwrap();
    }
    assert_eq!((a.bits(), b.bits()), before);
}

//! Lists of tensors by address on the CPU: the bits of single steps, and what is refused.

use dualadam::cpu::{self, TensorList};
use dualadam::half::bf16;
use dualadam::{Dtype, DualAdamConfig, Element, Error, RawBuffer, RawTensor, StepCoeffs};

/// A tensor's memory, f32 or bf16 parameters with gradients of the same type.
struct Memory<P> {
    p: Vec<P>,
    g: Vec<P>,
    m: Vec<f32>,
    v: Vec<f32>,
    copy: Vec<bf16>,
}

impl<P: Element> Memory<P> {
    fn new(len: usize) -> Self {
        let value = |i: usize, k: f32| P::narrow((i as f32 * k).sin());
        let (p, g) = ((0..len).map(|i| value(i, 0.7)).collect(), (0..len).map(|i| value(i, 1.3)).collect());
        Self { p, g, m: vec![0.0; len], v: vec![0.0; len], copy: vec![bf16::ZERO; len] }
    }

    fn raw(&mut self, set: usize) -> RawTensor {
        let of = |address: usize| RawBuffer { address: address as u64, dtype: P::DTYPE };
        RawTensor {
            params: of(self.p.as_mut_ptr().expose_provenance()),
            grads: of(self.g.as_ptr().expose_provenance()),
            exp_avg: self.m.as_mut_ptr().expose_provenance() as u64,
            exp_avg_sq: self.v.as_mut_ptr().expose_provenance() as u64,
            copy: None,
            len: self.p.len() as u64,
            set,
        }
    }

    fn with_copy(&mut self, set: usize) -> RawTensor {
        let address = self.copy.as_mut_ptr().expose_provenance() as u64;
        RawTensor { copy: Some(RawBuffer { address, dtype: Dtype::Bf16 }), ..self.raw(set) }
    }

    fn bits(&self) -> Vec<u32> {
        let p = self.p.iter().map(|p| p.widen().to_bits());
        p.chain(self.m.iter().chain(&self.v).map(|x| x.to_bits())).collect()
    }
}

fn sets(step: u64) -> [StepCoeffs; 2] {
    let config = DualAdamConfig::inv_adam().with_lr(0.01);
    [config.coeffs(step).unwrap(), DualAdamConfig::adamw(0.1).coeffs(step).unwrap()]
}

#[test]
fn a_list_gives_the_bits_of_single_steps() {
    // More elements than one thread takes.
    let lens = [1, 0, 70_000, 17];
    let (mut f32s, mut singles) = (lens.map(Memory::<f32>::new), lens.map(Memory::<f32>::new));
    let (mut half, mut single_half) = (Memory::<bf16>::new(33), Memory::<bf16>::new(33));
    let (mut master, mut single_master) = (Memory::<f32>::new(9), Memory::<f32>::new(9));
    let mut tensors: Vec<_> = f32s.iter_mut().enumerate().map(|(i, memory)| memory.raw(i % 2)).collect();
    tensors.extend([half.raw(1), master.with_copy(0)]);
    let mut list = TensorList::new(&tensors).unwrap();
    assert_eq!((list.len(), list.is_empty(), list.tensors()), (6, false, tensors.as_slice()));
    for step in 1..4 {
        let sets = sets(step);
        // SAFETY: the addresses are those of the memory above.
        unsafe { list.step_raw(&sets) }.unwrap();
        for (i, x) in singles.iter_mut().enumerate() {
            cpu::step(&mut x.p, &x.g, &mut x.m, &mut x.v, &sets[i % 2]).unwrap();
        }
        let x = &mut single_half;
        cpu::step(&mut x.p, &x.g, &mut x.m, &mut x.v, &sets[1]).unwrap();
        let x = &mut single_master;
        cpu::step_with_copy(&mut x.p, &mut x.copy, &x.g, &mut x.m, &mut x.v, &sets[0]).unwrap();
        for (memory, single) in f32s.iter().zip(&singles) {
            assert_eq!(memory.bits(), single.bits());
        }
        assert_eq!((half.bits(), master.bits()), (single_half.bits(), single_master.bits()));
        assert_eq!(master.copy, single_master.copy);
    }
}

#[test]
fn new_addresses_are_taken_over_and_a_missing_gradient_leaves_the_tensor_alone() {
    let (mut a, mut b) = (Memory::<f32>::new(5), Memory::<f32>::new(6));
    let mut tensors = [a.raw(0), b.raw(0)];
    let mut list = TensorList::new(&tensors).unwrap();
    let grads = [1.0_f32; 5];
    tensors[0].grads.address = grads.as_ptr().expose_provenance() as u64;
    tensors[1].grads.address = 0;
    list.update(&tensors).unwrap();
    let before = b.bits();
    // SAFETY: the addresses are those of the memory above.
    unsafe { list.step_raw(&sets(1)) }.unwrap();
    let mut single = Memory::<f32>::new(5);
    cpu::step(&mut single.p, &grads, &mut single.m, &mut single.v, &sets(1)[0]).unwrap();
    assert_eq!((a.bits(), b.bits()), (single.bits(), before));
}

#[test]
fn what_cannot_be_right_is_refused_and_the_list_stays() {
    let (mut a, mut b) = (Memory::<f32>::new(5), Memory::<f32>::new(6));
    let tensors = [a.raw(0), b.raw(1)];
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
    assert!(matches!(list.update(&[first]), Err(Error::Count { expected: 2, actual: 1, .. })));
    let mixed = RawTensor { params: at(second.params.address, Dtype::Bf16), grads: at(8, Dtype::F16), ..second };
    assert!(matches!(TensorList::new(&[first, mixed]), Err(Error::Types { tensor: 1, .. })));
    assert!(matches!(TensorList::new(&[RawTensor { len: u64::MAX / 4, ..first }]), Err(Error::TooMany { .. })));
    // SAFETY: nothing is stepped.
    let answer = unsafe { list.step_raw(&sets(1)[..1]) };
    assert!(matches!(answer, Err(Error::Index { tensor: 1, index: "set", len: 1, value: 1 })));
    assert!(TensorList::new(&[]).is_ok());
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

//! The CPU backend against the contract, bit for bit, and against exact arithmetic, within the contract's error.

use dualadam::cpu::{self, Tensor};
use dualadam::half::{bf16, f16};
use dualadam::{DualAdamConfig, Element, GradOf, HalfElement, StepCoeffs};
use testkit::bound;
use testkit::contract::{self, TINY, same};
use testkit::data::{Inputs, SIZES, configs, narrow};

/// The buffers of one tensor in its own types, each at an offset from its allocation.
struct Case<P, G, C> {
    p: Vec<P>,
    grad: Vec<G>,
    m: Vec<f32>,
    v: Vec<f32>,
    copy: Vec<C>,
    offsets: [usize; 5],
}

impl<P: Element, G: Element, C: Element> Case<P, G, C> {
    fn new(inputs: &Inputs, offsets: [usize; 5]) -> Self {
        let shifted = |values: &[f32], offset: usize| [&vec![77.0; offset], values].concat();
        Self {
            p: narrow(&shifted(&inputs.p, offsets[0])),
            grad: narrow(&shifted(&inputs.grad, offsets[1])),
            m: shifted(&inputs.m, offsets[2]),
            v: shifted(&inputs.v, offsets[3]),
            copy: narrow(&shifted(&inputs.p, offsets[4])),
            offsets,
        }
    }

    /// What the contract makes of each element.
    fn expected(&self, coeffs: &StepCoeffs) -> Vec<contract::Element> {
        let [p, g, m, v, _] = self.offsets;
        let elements = self.p[p..].iter().zip(&self.grad[g..]).zip(&self.m[m..]).zip(&self.v[v..]);
        let update = |(((p, g), &m), &v): (((&P, &G), &f32), &f32)| {
            contract::update(coeffs, contract::Element { p: p.widen(), m, v }, g.widen())
        };
        elements.map(update).collect()
    }

    fn check(&self, expected: &[contract::Element], what: &str) {
        let [p, _, m, v, copy] = self.offsets;
        for (i, x) in expected.iter().enumerate() {
            let (new, narrowed) = (self.p[p + i].widen(), P::narrow(x.p).widen());
            assert!(same(new, narrowed), "{what}, p[{i}]: {new:e}, not {narrowed:e}");
            assert!(same(self.m[m + i], x.m), "{what}, m[{i}]: {:e}, not {:e}", self.m[m + i], x.m);
            assert!(same(self.v[v + i], x.v), "{what}, v[{i}]: {:e}, not {:e}", self.v[v + i], x.v);
            let (new, narrowed) = (self.copy[copy + i].widen(), C::narrow(x.p).widen());
            assert!(same(new, narrowed), "{what}, copy[{i}]: {new:e}, not {narrowed:e}");
        }
        // What lies before each buffer is not the step's to touch.
        assert!(self.p[..p].iter().all(|&x| x.widen() == 77.0), "{what}: wrote before p");
        assert!(self.m[..m].iter().chain(&self.v[..v]).all(|&x| x == 77.0), "{what}: wrote before a moment");
        assert!(self.copy[..copy].iter().all(|&x| x.widen() == 77.0), "{what}: wrote before the copy");
    }
}

/// One flat step without a copy, compared with the contract.
fn check_flat<P: Element, G: GradOf<P>>(inputs: &Inputs, offsets: [usize; 5], coeffs: &StepCoeffs, what: &str) {
    let mut case = Case::<P, G, P>::new(inputs, offsets);
    let expected = case.expected(coeffs);
    let [p, g, m, v, copy] = offsets;
    cpu::step(&mut case.p[p..], &case.grad[g..], &mut case.m[m..], &mut case.v[v..], coeffs).unwrap();
    // The comparison also reads a copy, which here nobody writes.
    let params = case.p[p..].to_vec();
    case.copy[copy..].copy_from_slice(&params);
    case.check(&expected, &format!("{}/{} {what}, offsets {offsets:?}", P::DTYPE, G::DTYPE));
}

/// One flat step with f32 masters and a copy, compared with the contract.
fn check_copy<C: HalfElement, G: GradOf<f32> + GradOf<C>>(
    inputs: &Inputs,
    offsets: [usize; 5],
    coeffs: &StepCoeffs,
    what: &str,
) {
    let mut case = Case::<f32, G, C>::new(inputs, offsets);
    let expected = case.expected(coeffs);
    let [p, g, m, v, copy] = offsets;
    let (masters, copy) = (&mut case.p[p..], &mut case.copy[copy..]);
    cpu::step_with_copy(masters, copy, &case.grad[g..], &mut case.m[m..], &mut case.v[v..], coeffs).unwrap();
    case.check(&expected, &format!("f32/{} with a {} copy {what}, offsets {offsets:?}", G::DTYPE, C::DTYPE));
}

/// Runs a closure-like macro over every type combination that there is.
macro_rules! for_every_combination {
    ($inputs:expr, $offsets:expr, $coeffs:expr, $what:expr) => {{
        let (inputs, offsets, coeffs, what) = ($inputs, $offsets, $coeffs, $what);
        check_flat::<f32, f32>(inputs, offsets, coeffs, what);
        check_flat::<f32, bf16>(inputs, offsets, coeffs, what);
        check_flat::<f32, f16>(inputs, offsets, coeffs, what);
        check_flat::<bf16, bf16>(inputs, offsets, coeffs, what);
        check_flat::<bf16, f32>(inputs, offsets, coeffs, what);
        check_flat::<f16, f16>(inputs, offsets, coeffs, what);
        check_flat::<f16, f32>(inputs, offsets, coeffs, what);
        check_copy::<bf16, f32>(inputs, offsets, coeffs, what);
        check_copy::<bf16, bf16>(inputs, offsets, coeffs, what);
        check_copy::<f16, f32>(inputs, offsets, coeffs, what);
        check_copy::<f16, f16>(inputs, offsets, coeffs, what);
    }};
}

#[test]
fn every_size_gives_the_contract_bits() {
    for (index, &size) in SIZES.iter().enumerate() {
        let (config, t) = configs()[index % configs().len()];
        let what = format!("{size} elements");
        for_every_combination!(&Inputs::random(index as u64, size), [0; 5], &config.coeffs(t).unwrap(), &what);
    }
}

#[test]
fn every_branch_gives_the_contract_bits_for_special_values() {
    let inputs = Inputs::special();
    for (index, (config, t)) in configs().into_iter().enumerate() {
        let what = format!("configuration {index}");
        for_every_combination!(&inputs, [0; 5], &config.coeffs(t).unwrap(), &what);
    }
}

#[test]
fn every_misalignment_gives_the_contract_bits() {
    let inputs = Inputs::random(1, 1025);
    let coeffs = DualAdamConfig::default().coeffs(3).unwrap();
    for buffer in 0..5 {
        for offset in 1..=16 {
            let mut offsets = [0; 5];
            offsets[buffer] = offset;
            for_every_combination!(&inputs, offsets, &coeffs, "misaligned");
        }
    }
    for_every_combination!(&inputs, [1, 2, 3, 5, 7], &coeffs, "misaligned");
}

#[test]
fn gradient_multiplier_gives_the_contract_bits() {
    let coeffs = DualAdamConfig::default().with_maximize(true).coeffs_scaled(5, 1.0 / 3.0).unwrap();
    assert_eq!(coeffs.grad_scale, -(1.0_f32 / 3.0));
    for_every_combination!(&Inputs::random(2, 1000), [0; 5], &coeffs, "scaled");
}

/// Coefficients that no config makes, but callers may: a subnormal scale, and a multiplier of 0.
#[test]
fn hand_made_coefficients_give_the_contract_bits() {
    let valid = DualAdamConfig::authors_code().coeffs(2).unwrap();
    for coeffs in [
        StepCoeffs { inverse_scale: 1e-42, adam_scale: 1e-40, ..valid },
        StepCoeffs { grad_scale: 0.0, ..valid },
        StepCoeffs { decay: 1e-42, l2: 1e-42, ..valid },
        StepCoeffs { one_minus_beta1: f32::NAN, ..valid },
    ] {
        for_every_combination!(&Inputs::special(), [0; 5], &coeffs, "by hand");
    }
}

#[test]
fn a_list_gives_the_bits_of_its_tensors() {
    let sets: Vec<_> = configs().iter().map(|(config, t)| config.coeffs(*t).unwrap()).collect();
    let sizes = [5, 0, 1000, 70_000, 1, 0, 255, 33_000];
    let inputs: Vec<_> = sizes.iter().enumerate().map(|(i, &size)| Inputs::random(i as u64, size)).collect();
    let mut masters: Vec<_> = inputs.iter().map(|inputs| Case::<f32, bf16, bf16>::new(inputs, [0; 5])).collect();
    let mut halves: Vec<_> = inputs.iter().map(|inputs| Case::<f16, f32, f16>::new(inputs, [0; 5])).collect();
    let set = |index: usize| (index * 3) % sets.len();
    let expected: Vec<_> =
        (0..sizes.len()).map(|i| (masters[i].expected(&sets[set(i)]), halves[i].expected(&sets[set(i + 1)]))).collect();
    let mut tensors = Vec::new();
    for (i, (master, half)) in masters.iter_mut().zip(&mut halves).enumerate() {
        tensors.push(Tensor {
            params: (&mut master.p).into(),
            grads: (&master.grad).into(),
            exp_avg: &mut master.m,
            exp_avg_sq: &mut master.v,
            copy: Some((&mut master.copy).into()),
            set: set(i),
        });
        tensors.push(Tensor {
            params: (&mut half.p).into(),
            grads: (&half.grad).into(),
            exp_avg: &mut half.m,
            exp_avg_sq: &mut half.v,
            copy: None,
            set: set(i + 1),
        });
    }
    cpu::step_list(&mut tensors, &sets).unwrap();
    for (i, (master, half)) in masters.iter().zip(&mut halves).enumerate() {
        master.check(&expected[i].0, &format!("tensor {}", 2 * i));
        half.copy.copy_from_slice(&half.p);
        half.check(&expected[i].1, &format!("tensor {}", 2 * i + 1));
    }
}

#[test]
fn an_empty_list_is_fine() {
    cpu::step_list(&mut [], &[]).unwrap();
}

#[test]
fn coefficients_are_rounded_once() {
    for (config, _) in configs() {
        for t in (1..200).chain([1_000, 12_499, 12_500, 100_000, 1 << 40]) {
            bound::check_coeffs(&config, t, &config.coeffs(t).unwrap());
        }
    }
}

/// Every quantity in its own right, from the same f32 state, within the error that the rule's roundings can make.
#[test]
fn one_step_is_within_the_error_bound_of_exact_arithmetic() {
    let mut worst = [0.0_f64; 3];
    for (index, (config, t)) in configs().into_iter().enumerate() {
        let inputs = Inputs::random(100 + index as u64, 20_000);
        let (mut p, mut m, mut v) = (inputs.p.clone(), inputs.m.clone(), inputs.v.clone());
        cpu::step(&mut p, &inputs.grad, &mut m, &mut v, &config.coeffs(t).unwrap()).unwrap();
        for i in 0..inputs.len() {
            let before = contract::Element { p: inputs.p[i], m: inputs.m[i], v: inputs.v[i] };
            let (exact, bound) = bound::exact_and_bound(&config, t, before, inputs.grad[i]);
            let errors = [
                (f64::from(p[i]) - exact.theta, bound.p),
                (f64::from(m[i]) - exact.m, bound.m),
                (f64::from(v[i]) - exact.v, bound.v),
            ];
            for (quantity, (error, bound)) in errors.into_iter().enumerate() {
                let part = error.abs() / bound;
                assert!(
                    part <= 1.0,
                    "configuration {index}, {}[{i}] is off by {error:e}, bound {bound:e}",
                    "pmv".as_bytes()[quantity] as char
                );
                worst[quantity] = worst[quantity].max(part);
            }
        }
    }
    println!("worst part of the bound: p {:.2}, m {:.2}, v {:.2}", worst[0], worst[1], worst[2]);
    assert!(worst.iter().all(|&part| part > 0.3), "a bound that nothing comes near is no bound: {worst:?}");
}

/// The second transcription of `fma` is itself right where its roundings are hardest.
#[test]
fn the_contracts_fma_is_correctly_rounded() {
    let inputs = Inputs::special();
    for ((&a, &b), &c) in inputs.p.iter().zip(&inputs.grad).zip(&inputs.m) {
        assert!(same(contract::fma(a, b, c), a.mul_add(b, c)), "fma({a:e}, {b:e}, {c:e})");
    }
    let inputs = Inputs::random(9, 100_000);
    for ((&a, &b), &c) in inputs.p.iter().zip(&inputs.grad).zip(&inputs.m) {
        let cancelling = -(a * b);
        for c in [c, cancelling, cancelling * (1.0 + f32::EPSILON), TINY as f32, c * 1e-8] {
            assert!(same(contract::fma(a, b, c), a.mul_add(b, c)), "fma({a:e}, {b:e}, {c:e})");
        }
    }
}

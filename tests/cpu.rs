//! The CPU backend against the contract, bit for bit, and against exact arithmetic, within the
//! contract's error.

use std::iter::zip;

use dualadam::{DualAdamConfig, StepCoeffs, WeightDecay, cpu, reference};
use testkit::Variant;
use testkit::bound::{self, Bound};
use testkit::contract::{self, TINY, same};
use testkit::data::{Inputs, SIZES, configs};
use testkit::laws::{self, by_contract, by_cpu};
use testkit::tensor::Tensor;

/// Steps each tensor by the flat call for its types.
fn flat(tensors: &mut [Tensor], sets: &[StepCoeffs]) {
    tensors.iter_mut().for_each(|tensor| tensor.step_flat(&sets[tensor.set]).unwrap());
}

#[test]
fn every_size_gives_the_contract_bits() {
    laws::sizes(&flat, &by_contract, SIZES);
}

/// Every branch; and coefficients that no config makes, but callers may: a subnormal scale, and a
/// multiplier of 0.
#[test]
fn special_values_give_the_contract_bits() {
    let valid = DualAdamConfig::authors_code().coeffs(2).unwrap();
    let changes: [fn(&mut StepCoeffs); 4] = [
        |coeffs| (coeffs.inverse_scale, coeffs.adam_scale) = (1e-42, 1e-40),
        |coeffs| coeffs.grad_scale = 0.0,
        |coeffs| (coeffs.decay, coeffs.l2) = (1e-42, 1e-42),
        |coeffs| coeffs.one_minus_beta1 = f32::NAN,
    ];
    let by_hand = changes.map(|change| {
        let mut coeffs = valid;
        change(&mut coeffs);
        coeffs
    });
    laws::values(&flat, &by_contract, &Inputs::special(), &[&laws::all_sets()[..], &by_hand].concat());
}

/// An infinite gradient makes the first moment infinite, and the parameter with it; the second
/// moment saturates. Elements with such a gradient become that; the others follow the rule.
#[test]
fn nan_and_infinite_gradients_stay_in_their_elements() {
    const INF: f32 = f32::INFINITY;
    let decay = WeightDecay::Decoupled(0.1);
    let (adam, dual, inverse) = (DualAdamConfig::adam(), DualAdamConfig::default(), DualAdamConfig::inv_adam());
    let configs = [adam, adam.with_weight_decay(decay), dual, inverse.with_weight_decay(decay)];
    let sets = configs.map(|config| config.coeffs(3).unwrap());
    for (special, becomes) in [(f32::NAN, [f32::NAN; 3]), (INF, [-INF, INF, f32::MAX]), (-INF, [INF, -INF, f32::MAX])] {
        for coeffs in &sets {
            let contract::Element { p, m, v } =
                contract::update(coeffs, contract::Element { p: 1.0, m: 0.5, v: 0.25 }, special);
            assert!(zip([p, m, v], becomes).all(|(found, expected)| same(found, expected)), "{special}: {p} {m} {v}");
            for variant in Variant::all() {
                let inputs = Inputs { p: vec![1.0], grad: vec![special], m: vec![0.5], v: vec![0.25] };
                let mut tensor = Tensor::new(variant.formats(), &inputs);
                tensor.step_flat(coeffs).unwrap();
                let found = [&tensor.param, &tensor.exp_avg, &tensor.exp_avg_sq].map(|values| values.at(0));
                assert!(zip(found, becomes).all(|(found, expected)| same(found, expected)), "{variant:?}: {found:?}");
            }
        }
        // Vectors and their tail, and more than one thread's share.
        for (len, place) in
            [1, 7, 8, 9, 100, 70_001].into_iter().flat_map(|len| [0, len / 2, len - 1].map(|at| (len, at)))
        {
            let mut grad: Vec<_> = (0..len).map(|i| 0.25 + (i % 5) as f32).collect();
            grad[place] = special;
            let inputs = Inputs { p: vec![1.0; len], grad, m: vec![0.5; len], v: vec![0.25; len] };
            laws::values(&flat, &by_contract, &inputs, &sets);
        }
    }
}

#[test]
fn every_misalignment_gives_the_contract_bits() {
    laws::misalignments(&flat, &by_contract, 1025, 16);
}

#[test]
fn overflowing_gradients_give_the_contract_bits() {
    laws::overflows(&by_cpu, &by_contract);
}

/// A gradient whose square overflows takes the second moment to the largest finite f32 at most, so
/// that no later step makes NaN of it. Without the inverse branch the parameter stays finite too.
#[test]
fn second_moments_saturate() {
    let steps = [(1, None), (2, None), (3, None), (4, Some(0.5)), (4, Some(f32::INFINITY)), (4, Some(f32::NAN))];
    for config in [DualAdamConfig::adam(), DualAdamConfig::adamw(0.1), DualAdamConfig::default()] {
        let Inputs { mut p, mut grad, mut m, mut v } = Inputs::overflowing();
        let is_adam = config.coeffs(1).unwrap().is_adam();
        for (t, other) in steps {
            other.iter().for_each(|&other| grad.fill(other));
            let (coeffs, before) = (config.coeffs(t).unwrap(), v.clone());
            let what = format!("{config:?}, step {t}, gradients {other:?}");
            cpu::step(&mut p, &grad, &mut m, &mut v, &coeffs).unwrap();
            if other.is_some_and(f32::is_nan) {
                assert!([p, m, v].concat().iter().all(|x| x.is_nan()), "{what}");
                break;
            }
            let is_finite = other.is_none_or(f32::is_finite);
            assert!(v.iter().all(|v| v.is_finite()), "{what}: {v:?}");
            assert!(!(is_adam && is_finite) || p.iter().all(|p| p.is_finite()), "{what}: {p:?}");
            for (i, &after) in v.iter().enumerate() {
                let (g, before) = (f64::from(grad[i]), f64::from(before[i]));
                let inner = g * g - before;
                let exact = before + f64::from(coeffs.one_minus_beta2) * inner;
                if inner.max(exact) > f64::from(f32::MAX) {
                    assert_eq!(after, f32::MAX, "{what}, v[{i}]");
                } else {
                    let error = (f64::from(after) - exact).abs();
                    assert!(error <= 3.0 * contract::U * exact, "{what}, v[{i}]: {after:e}, not {exact:e}");
                }
            }
            let saturated = v.iter().filter(|&&v| v == f32::MAX).count();
            assert!(t != 3 || saturated > v.len() / 2, "{saturated} of {} have saturated", v.len());
            // With an ordinary gradient, the second moment falls again.
            assert!(other != Some(0.5) || zip(&v, &before).all(|(after, before)| after < before), "{what}: {v:?}");
        }
    }
}

#[test]
fn gradient_multiplier_gives_the_contract_bits() {
    let coeffs = DualAdamConfig::default().with_maximize(true).coeffs_scaled(5, 1.0 / 3.0).unwrap();
    assert_eq!(coeffs.grad_scale, -(1.0_f32 / 3.0));
    laws::values(&flat, &by_contract, &Inputs::random(2, 1000), &[coeffs]);
}

#[test]
fn a_list_gives_the_contract_bits() {
    laws::lists(&by_cpu, &by_contract, &[5, 0, 1000, 70_000, 1, 0, 255, 33_000, 7, 8, 9, 10, 31, 64, 4097, 12]);
}

#[test]
fn coefficients_are_rounded_once() {
    for (config, _) in configs() {
        for t in (1..200).chain([1_000, 12_499, 12_500, 100_000, 1 << 40]) {
            bound::check_coeffs(&config, t, &config.coeffs(t).unwrap());
        }
    }
}

/// Each quantity by itself, from the same f32 state, is within the error that the rule's roundings
/// can add up to.
#[test]
fn one_step_is_within_the_error_bound_of_exact_arithmetic() {
    let mut worst = [0.0_f64; 3];
    for (index, (config, t)) in configs().into_iter().enumerate() {
        let inputs = Inputs::random(100 + index as u64, 20_000);
        let (mut p, mut m, mut v) = (inputs.p.clone(), inputs.m.clone(), inputs.v.clone());
        cpu::step(&mut p, &inputs.grad, &mut m, &mut v, &config.coeffs(t).unwrap()).unwrap();
        for i in 0..inputs.len() {
            let [theta, m0, v0] = [inputs.p[i], inputs.m[i], inputs.v[i]].map(f64::from);
            let before = reference::Element { theta, m: m0, v: v0 };
            let (exact, bound) = bound::exact_and_bound(&config, t, before, inputs.grad[i], Bound::default());
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
    println!("largest errors as parts of their bounds: p {:.2}, m {:.2}, v {:.2}", worst[0], worst[1], worst[2]);
    assert!(worst.iter().all(|&part| part > 0.3), "no error comes near the bound, so the bound is too wide: {worst:?}");
}

/// The contract's own `fma` is right where rounding is hardest.
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

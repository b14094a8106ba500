//! Tests that every implementation of the step must pass, written once. An implementation is a
//! function that steps tensors, all of them together or one by one.
//!
//! `step` is the implementation under test, and `right` is the one that it must equal, bit for bit.

use dualadam::{DualAdamConfig, StepCoeffs, cpu};

use crate::data::{Inputs, configs};
use crate::tensor::Tensor;
use crate::variant::{Variant, in_turns};

/// Steps each tensor with the coefficients that it names.
pub type Step<'a> = &'a dyn Fn(&mut [Tensor], &[StepCoeffs]);

/// Steps the tensors exactly as the contract states.
pub fn by_contract(tensors: &mut [Tensor], sets: &[StepCoeffs]) {
    tensors.iter_mut().for_each(|tensor| tensor.step_by_contract(&sets[tensor.set]));
}

/// Steps the tensors as a list of the CPU backend.
pub fn by_cpu(tensors: &mut [Tensor], sets: &[StepCoeffs]) {
    cpu::step_list(&mut tensors.iter_mut().map(Tensor::cpu).collect::<Vec<_>>(), sets).unwrap();
}

/// The coefficients of all configurations.
pub fn all_sets() -> Vec<StepCoeffs> {
    configs().iter().map(|(config, step)| config.coeffs(*step).unwrap()).collect()
}

/// Steps the tensors both ways and compares the results.
#[track_caller]
pub fn check(step: Step<'_>, right: Step<'_>, tensors: Vec<Tensor>, sets: &[StepCoeffs], what: &str) {
    let (mut found, mut expected) = (tensors.clone(), tensors);
    step(&mut found, sets);
    right(&mut expected, sets);
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        found.assert_same(expected, &format!("{what}, tensor {i}, set {}", found.set));
    }
}

/// Every variant and size, each with the dual step, with plain Adam and decay, and with one of all
/// configurations in turns.
pub fn sizes(step: Step<'_>, right: Step<'_>, sizes: impl IntoIterator<Item = usize>) {
    let sets = all_sets();
    for (number, size) in sizes.into_iter().enumerate() {
        let inputs = Inputs::random(size as u64, size);
        for variant in Variant::all() {
            let tensor = |set| Tensor::padded(variant.formats(), &inputs, [0; 5]).with_set(set);
            check(step, right, [0, 3, number % sets.len()].map(tensor).into(), &sets, "sizes");
        }
    }
}

/// Every variant over these inputs, with each of the coefficients.
pub fn values(step: Step<'_>, right: Step<'_>, inputs: &Inputs, sets: &[StepCoeffs]) {
    for variant in Variant::all() {
        let tensor = |set| Tensor::padded(variant.formats(), inputs, [set % 4, 0, 0, 1, 0]).with_set(set);
        check(step, right, (0..sets.len()).map(tensor).collect(), sets, "values");
    }
}

/// Every variant, with each buffer alone misaligned, with all buffers at the same offset, and with
/// different offsets; also with short tensors.
pub fn misalignments(step: Step<'_>, right: Step<'_>, len: usize, most: usize) {
    let sets = [configs()[0].0.coeffs(3).unwrap()];
    let alone = (0..5)
        .flat_map(|buffer| (0..=most).map(move |offset| [0, 1, 2, 3, 4].map(|i| if i == buffer { offset } else { 0 })));
    let alike = (1..=most).map(|offset| [offset; 5]);
    let long: Vec<_> = alone.chain(alike).chain([[7, 2, 3, 5, 1]]).map(|offsets| (len, offsets)).collect();
    let short = (0..20).flat_map(|len| [[1, 2, 3, 2, 1], [3; 5]].map(|offsets| (len, offsets)));
    for variant in Variant::all() {
        let tensor = |(len, offsets)| Tensor::padded(variant.formats(), &Inputs::random(7, len), offsets);
        check(step, right, long.iter().copied().chain(short.clone()).map(tensor).collect(), &sets, "misaligned");
    }
}

/// Tensors of these sizes, with variants, offsets and coefficients in turns.
pub fn mixed(sizes: &[usize], set: impl Fn(usize) -> usize) -> Vec<Tensor> {
    let tensor = |(i, &size): (usize, &usize)| {
        Tensor::padded(in_turns(i), &Inputs::random(i as u64, size), [i % 3, i % 4, i % 2, 0, i % 5]).with_set(set(i))
    };
    sizes.iter().enumerate().map(tensor).collect()
}

/// A list of tensors of all variants and configurations, some of them empty.
pub fn lists(step: Step<'_>, right: Step<'_>, sizes: &[usize]) {
    let sets = all_sets();
    check(step, right, mixed(sizes, |i| i * 3 % sets.len()), &sets, "a list");
}

/// Every variant, with gradients whose squares overflow, then with ordinary ones, then with NaN:
/// the second moment is finite until a gradient is NaN, whatever came before.
pub fn overflows(step: Step<'_>, right: Step<'_>) {
    let overflowing = Inputs::overflowing();
    for config in [DualAdamConfig::adam(), DualAdamConfig::adamw(0.1), DualAdamConfig::default()] {
        for variant in Variant::all() {
            let mut tensor = Tensor::new(variant.formats(), &overflowing);
            for (t, grad) in [(1, None), (2, None), (3, None), (4, Some(0.5)), (5, Some(f32::NAN))] {
                if let Some(grad) = grad {
                    tensor.set_grads(&vec![grad; overflowing.len()]);
                }
                let (coeffs, what) = ([config.coeffs(t).unwrap()], format!("overflowing, step {t}"));
                check(step, right, vec![tensor.clone()], &coeffs, &what);
                right(std::slice::from_mut(&mut tensor), &coeffs);
                let is_nan = grad.is_some_and(f32::is_nan);
                let v = tensor.exp_avg_sq.wide();
                assert!(v.iter().all(|v| if is_nan { v.is_nan() } else { v.is_finite() }), "{what}: {v:?}");
            }
        }
    }
}

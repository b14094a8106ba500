//! One step of every combination of types, beside exact arithmetic and beside the CPU's.

use dualadam::webgpu::{Pipelines, TensorList};
use dualadam::{Dtype, DualAdamConfig, SwitchSchedule, WeightDecay};

use crate::bound::{Quantity, bound};
use crate::gpu::{Device, Gpu};
use crate::host::{COMBINATIONS, Host, Values};
use testkit::contract::{Element, U};
use testkit::data::{Inputs, SIZES, SPECIAL, configs};

const NAMES: [&str; 3] = ["p", "m", "v"];

pub(crate) fn uniform_coefficients(gpu: &Gpu) {
    every_combination(&gpu.device);
}

pub(crate) fn immediate_coefficients(gpu: &Gpu) {
    every_combination(&gpu.open_with_immediates().expect("the adapter has no immediates"));
}

fn every_combination(device: &Device) {
    let (pipelines, configs) = (Pipelines::new(&device.device).unwrap(), configs());
    let mut worst = Worst::default();
    for types in COMBINATIONS {
        for (number, size) in SIZES.into_iter().enumerate() {
            let inputs = Inputs::random(size as u64, size);
            // Dual, plain Adam, and in turns each of the others.
            let others: &[usize] = if size > 200_000 { &[] } else { &[2, number % configs.len()] };
            for &config in [&[1], others].concat().iter() {
                let (config, t) = &configs[config];
                let before = Host::new(types, &inputs, 0);
                let after = before.stepped(device, &pipelines, &config.coeffs(*t).unwrap());
                worst.compare(&before, &after, config, *t, &format!("{types:?}, {size} elements, {config:?}"));
            }
        }
    }
    worst.print("every combination and size");
}

/// Every configuration, over values of all magnitudes and over subnormal ones.
pub(crate) fn every_configuration(gpu: &Gpu) {
    let device = &gpu.device;
    let pipelines = Pipelines::new(&device.device).unwrap();
    for (config, t) in configs() {
        let mut worst = Worst::default();
        for seed in 0..4 {
            let mut inputs = Inputs::random(seed, 20_001);
            if seed == 3 {
                let scale = |values: &mut Vec<f32>, by: f32| values.iter_mut().for_each(|value| *value *= by);
                scale(&mut inputs.m, 1e-38);
                scale(&mut inputs.v, 1e-38);
                scale(&mut inputs.grad, 1e-19);
            }
            let before = Host::new(COMBINATIONS[0], &inputs, 0);
            let after = before.stepped(device, &pipelines, &config.coeffs(t).unwrap());
            worst.compare(&before, &after, &config, t, &format!("{config:?}, inputs {seed}"));
        }
        worst.print(&format!("{config:?}"));
    }
}

/// What a driver makes of infinities and NaN is its own affair, but for other elements they mean nothing.
pub(crate) fn special_values_stay_among_themselves(gpu: &Gpu) {
    let device = &gpu.device;
    let pipelines = Pipelines::new(&device.device).unwrap();
    for types in COMBINATIONS {
        let plain = Inputs::random(5, 4 * SPECIAL.len() + 3);
        let mut mixed = plain.clone();
        for (i, &special) in SPECIAL.iter().enumerate() {
            let at = 4 * i + i % 4;
            for values in [&mut mixed.p, &mut mixed.grad, &mut mixed.m] {
                values[at] = special;
            }
            mixed.v[at] = special.abs();
        }
        let coeffs = DualAdamConfig::default().coeffs(3).unwrap();
        let [plain, mixed] =
            [plain, mixed].map(|inputs| Host::new(types, &inputs, 0).stepped(device, &pipelines, &coeffs));
        for i in (0..plain.len).filter(|&i| i >= 4 * SPECIAL.len() || i % 4 != (i / 4) % 4) {
            for (a, b) in [(&plain.p, &mixed.p), (&plain.m, &mixed.m), (&plain.v, &mixed.v)] {
                assert_eq!(a.at(i), b.at(i), "{types:?}, element {i}");
            }
        }
    }
}

/// A parameter that no gradient has reached yet keeps its bits, with every schedule: the root of 0 is 0, and 0 times the step is 0.
pub(crate) fn untouched_parameters_stay(gpu: &Gpu) {
    let device = &gpu.device;
    let pipelines = Pipelines::new(&device.device).unwrap();
    let undecayed = configs().into_iter().filter(|(config, _)| config.weight_decay == WeightDecay::None);
    for (config, t) in undecayed {
        for types in COMBINATIONS {
            let zeros = vec![0.0; 1027];
            let inputs = Inputs { grad: zeros.clone(), m: zeros.clone(), v: zeros, ..Inputs::random(6, 1027) };
            let before = Host::new(types, &inputs, 0);
            let after = before.stepped(device, &pipelines, &config.coeffs(t).unwrap());
            assert_eq!((&after.p, after.m.wide(), after.v.wide()), (&before.p, inputs.m, inputs.v), "{config:?}");
            if let (Some(copy), Values::F32(masters)) = (&after.copy, &after.p) {
                assert_eq!(*copy, Values::new(copy.dtype(), masters), "{config:?}");
            }
        }
    }
}

/// A term whose coefficient is 0 is absent, not 0 times an infinity, which is NaN. A GPU's driver may assume that there is none, so this
/// is asserted where the adapter is a software one.
pub(crate) fn absent_terms_are_absent(gpu: &Gpu) {
    if !gpu.is_software() {
        return;
    }
    let device = &gpu.device;
    let pipelines = Pipelines::new(&device.device).unwrap();
    let plain = Inputs::random(7, 19);
    let infinite = vec![f32::INFINITY; 19];
    // Without either decay, the parameter is in nothing but the difference.
    let without_p = Inputs { p: infinite.clone(), ..plain.clone() };
    // Without the inverse branch, a second moment that overflows leaves no step.
    let without_step = Inputs { grad: vec![1e20; 19], ..plain.clone() };
    for (config, t) in configs() {
        let coeffs = config.coeffs(t).unwrap();
        if coeffs.l2 != 0.0 || coeffs.decay != 0.0 {
            continue;
        }
        let stepped = |inputs| Host::new(COMBINATIONS[0], inputs, 0).stepped(device, &pipelines, &coeffs);
        let (expected, found) = (stepped(&plain), stepped(&without_p));
        let p = Values::F32(infinite.clone());
        assert_eq!((&found.p, &found.m, &found.v), (&p, &expected.m, &expected.v), "{config:?}");
        if coeffs.is_adam() {
            let found = stepped(&without_step);
            assert_eq!((found.p.wide(), found.v.wide()), (plain.p.clone(), infinite.clone()), "{config:?}");
        }
    }
}

/// Steps in one submit are the steps submitted one by one, to the bit, and each of those is within the bound.
pub(crate) fn two_hundred_steps_in_one_submit(gpu: &Gpu) {
    let config = DualAdamConfig::default().with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(100));
    let coeffs: Vec<_> = (1..=200).map(|t| config.coeffs(t).unwrap()).collect();
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let pipelines = Pipelines::new(&device.device).unwrap();
        let mut worst = Worst::default();
        for types in [COMBINATIONS[0], COMBINATIONS[3], COMBINATIONS[8]] {
            let start =
                Host::new(types, &Inputs { m: vec![0.0; 1027], v: vec![0.0; 1027], ..Inputs::random(1, 1027) }, 0);
            let together = start.upload(device);
            let list = TensorList::new(&pipelines, &[together.tensor()]).unwrap();
            device.submit(|pass| coeffs.iter().for_each(|coeffs| list.encode(pass, &[*coeffs]).unwrap()));

            let mut before = start.clone();
            for (t, coeffs) in (1..).zip(&coeffs) {
                let after = before.stepped(device, &pipelines, coeffs);
                worst.compare(&before, &after, &config, t, &format!("{types:?}, step {t}"));
                before = after;
            }
            let together = together.download(device, &start);
            assert_eq!(together.contents(), before.contents(), "{types:?}");
            assert_ne!(together.p, start.p);
        }
        worst.print("200 steps");
    }
}

/// The worst errors met, for each quantity: as a part of the bound, and in units of 2^-24 of the summands. f32 results only.
#[derive(Default)]
struct Worst([(f64, f64); 3]);

impl Worst {
    fn print(&self, what: &str) {
        let part = |((part, units), name): (&(f64, f64), &str)| format!("{name} {part:.2} of it, {units:.1} units");
        let parts: Vec<_> = self.0.iter().zip(NAMES).map(part).collect();
        println!("worst beside the bound, {what}: {}", parts.join("; "));
    }

    /// Fails unless every new value is within the bound of the exact one, and of the CPU's.
    fn compare(&mut self, before: &Host, after: &Host, config: &DualAdamConfig, t: u64, what: &str) {
        assert_eq!(before.grad, after.grad, "{what}");
        let c = config.coeffs(t).unwrap();
        let [p, grad, m, v] = [&before.p, &before.grad, &before.m, &before.v].map(Values::wide);
        let wide = Inputs { p: p.clone(), grad: grad.clone(), m: m.clone(), v: v.clone() };
        let mut cpu = Host::new((Dtype::F32, Dtype::F32, None), &wide, 0);
        cpu.step(&[c]);
        let cpu = [&cpu.p, &cpu.m, &cpu.v].map(Values::wide);
        let found = [&after.p, &after.m, &after.v].map(Values::wide);
        let dtypes = [after.p.dtype(), Dtype::F32, Dtype::F32];
        let copy = after.copy.as_ref().map(|copy| (copy.wide(), Values::new(copy.dtype(), &found[0]).wide()));
        for i in 0..before.len {
            let quantities = bound(config, t, Element { p: p[i], m: m[i], v: v[i] }, grad[i]);
            for (k, Quantity { exact, bound, summands }) in quantities.into_iter().enumerate() {
                let (value, what) = (f64::from(found[k][i]), || format!("{what}, {}[{i}]", NAMES[k]));
                assert!(between(dtypes[k], exact, bound, value), "{}: {value:e}, not {exact:e} ± {bound:e}", what());
                // Its own error is smaller.
                let cpu = f64::from(cpu[k][i]);
                assert!(between(dtypes[k], cpu, 2.0 * bound, value), "{}: {value:e}, the CPU's {cpu:e}", what());
                if dtypes[k] == Dtype::F32 {
                    let error = (value - exact).abs();
                    // What rounding the parameter itself costs is no error of the update.
                    let rounding = if k == 0 { U * exact.abs() } else { 0.0 };
                    let (part, units) = &mut self.0[k];
                    // max keeps the number beside none.
                    (*part, *units) = (part.max(error / bound), units.max((error - rounding) / (U * summands)));
                }
            }
            if let Some((copy, expected)) = &copy {
                assert_eq!(copy[i].to_bits(), expected[i].to_bits(), "{what}, copy[{i}]");
            }
        }
    }
}

/// Whether a value lies in the interval; a 16-bit one, between its narrowed ends.
fn between(dtype: Dtype, center: f64, bound: f64, found: f64) -> bool {
    let end = |value: f64| match dtype {
        Dtype::F32 => value,
        _ => f64::from(Values::new(dtype, &[value as f32]).wide()[0]),
    };
    (end(center - bound)..=end(center + bound)).contains(&found)
}

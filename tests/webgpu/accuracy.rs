//! One step of every variant, compared with exact arithmetic and with the CPU's.

use dualadam::{Dtype, DualAdamConfig, SwitchSchedule, WeightDecay};
use testkit::contract::{Element, U};
use testkit::data::{SIZES, SPECIAL, configs};
use testkit::{Inputs, Tensor as Host, Values, Variant, formats};

use crate::bound::{Quantity, bound};
use crate::{Device, Gpu, Uploaded};

const NAMES: [&str; 3] = ["p", "m", "v"];

pub(crate) fn uniform_coefficients(gpu: &Gpu) {
    every_variant(&gpu.device);
}

pub(crate) fn immediate_coefficients(gpu: &Gpu) {
    every_variant(&gpu.open_with_immediates().expect("the adapter has no immediates"));
}

fn every_variant(device: &Device) {
    let (configs, mut worst) = (configs(), Worst::default());
    for variant in Variant::all() {
        for (number, size) in SIZES.into_iter().enumerate() {
            let before = Host::new(variant.formats(), &Inputs::random(size as u64, size));
            // Dual, plain Adam, and one of the others in turns.
            let others: &[usize] = if size > 200_000 { &[] } else { &[2, number % configs.len()] };
            for &config in [&[1], others].concat().iter() {
                let (config, t) = &configs[config];
                let after = device.stepped(&before, &config.coeffs(*t).unwrap());
                worst.compare(&before, &after, config, *t, &format!("{}, {config:?}", before.types()));
            }
        }
    }
    worst.print("every variant and size");
}

/// Every configuration, over values of all magnitudes and over subnormal ones.
pub(crate) fn every_configuration(device: &Device) {
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
            let before = Host::new(formats("f32_f32"), &inputs);
            let after = device.stepped(&before, &config.coeffs(t).unwrap());
            worst.compare(&before, &after, &config, t, &format!("{config:?}, inputs {seed}"));
        }
        worst.print(&format!("{config:?}"));
    }
}

/// A driver may turn infinities and NaN into anything, but they must not affect other elements.
pub(crate) fn special_values_stay_among_themselves(device: &Device) {
    for variant in Variant::all() {
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
            [plain, mixed].map(|inputs| device.stepped(&Host::new(variant.formats(), &inputs), &coeffs));
        for i in (0..plain.len()).filter(|&i| i >= 4 * SPECIAL.len() || i % 4 != (i / 4) % 4) {
            for (a, b) in plain.buffers().into_iter().zip(mixed.buffers()) {
                assert_eq!(a.at(i).to_bits(), b.at(i).to_bits(), "{}, element {i}", plain.types());
            }
        }
    }
}

/// A parameter that no gradient has reached yet keeps its bits, with every schedule: the root of 0
/// is 0, and 0 times the step is 0.
pub(crate) fn untouched_parameters_stay(device: &Device) {
    for (config, t) in configs().into_iter().filter(|(config, _)| config.weight_decay == WeightDecay::None) {
        for variant in Variant::all() {
            let inputs = Inputs::parameters(Inputs::random(6, 1027).p);
            let mut expected = Host::new(variant.formats(), &inputs);
            let after = device.stepped(&expected, &config.coeffs(t).unwrap());
            if expected.master.is_some() {
                expected.param = Values::new(expected.param.dtype(), &inputs.p);
            }
            assert_eq!(after, expected, "{config:?}");
        }
    }
}

/// A term whose coefficient is 0 is absent, not 0 times an infinity, which is NaN. A GPU's driver
/// may assume that no value is infinite or NaN, so this is tested on software adapters only.
pub(crate) fn absent_terms_are_absent(gpu: &Gpu) {
    if !gpu.is_software() {
        return;
    }
    let device = &gpu.device;
    let plain = Inputs::random(7, 19);
    let infinite = vec![f32::INFINITY; 19];
    // Without decay, the parameter appears only where the step is subtracted from it.
    let without_p = Inputs { p: infinite.clone(), ..plain.clone() };
    // Without the inverse branch, a root that overflows makes the step 0.
    let without_step = Inputs { v: vec![4.0; 19], ..plain.clone() };
    for (config, t) in configs() {
        let coeffs = config.coeffs(t).unwrap();
        if coeffs.l2 != 0.0 || coeffs.decay != 0.0 {
            continue;
        }
        let stepped = |inputs, coeffs| device.stepped(&Host::new(formats("f32_f32"), inputs), &coeffs);
        let (expected, found) = (stepped(&plain, coeffs), stepped(&without_p, coeffs));
        let param = Values::F32(infinite.clone());
        assert_eq!(found, Host { param, ..expected }, "{config:?}");
        if coeffs.is_adam() {
            let mut coeffs = coeffs;
            coeffs.inv_sqrt_bc2 = f32::MAX;
            assert_eq!(stepped(&without_step, coeffs).param.wide(), plain.p, "{config:?}");
        }
    }
}

/// With gradients whose squares overflow, the second moment saturates where the CPU's does.
/// Elsewhere it is near the CPU's, or has saturated because only the square overflows. The next
/// step makes no NaN of it. A GPU's driver may assume that nothing overflows, so this is tested on
/// software adapters only.
pub(crate) fn second_moments_saturate(gpu: &Gpu) {
    if !gpu.is_software() {
        return;
    }
    for config in [DualAdamConfig::adam(), DualAdamConfig::adamw(0.1), DualAdamConfig::default()] {
        let is_adam = config.coeffs(1).unwrap().is_adam();
        // Each step begins where the step before ended; the last two have other gradients.
        let mut host = Host::new(formats("f32_f32"), &Inputs::overflowing());
        for (t, grad) in [(1, None), (2, None), (3, None), (4, Some(0.5)), (5, Some(f32::NAN))] {
            if let Some(grad) = grad {
                host.set_grads(&vec![grad; host.len()]);
            }
            let coeffs = config.coeffs(t).unwrap();
            let found = gpu.device.stepped(&host, &coeffs);
            let [p, m, v] = [&found.param, &found.exp_avg, &found.exp_avg_sq].map(Values::wide);
            if grad.is_some_and(f32::is_nan) {
                assert!([p, m, v].concat().iter().all(|x| x.is_nan()), "{config:?}, NaN");
                break;
            }
            assert!(!is_adam || p.iter().all(|p| p.is_finite()), "{config:?}, step {t}: {p:?}");
            let mut cpu = host.clone();
            cpu.step(&[coeffs]);
            for (i, (&found, expected)) in v.iter().zip(cpu.exp_avg_sq.wide()).enumerate() {
                let (g, before) = (f64::from(host.grad.at(i)), f64::from(host.exp_avg_sq.at(i)));
                let bound = 2.0 * 12.0 * U * (before + f64::from(coeffs.one_minus_beta2) * (g * g + before));
                let is_near = (f64::from(found) - f64::from(expected)).abs() <= bound;
                let has_saturated = found == f32::MAX && g * g > f64::from(f32::MAX);
                assert!(
                    if expected == f32::MAX { has_saturated } else { found.is_finite() && (is_near || has_saturated) },
                    "{config:?}, step {t}, v[{i}]: {found:e}, the CPU's {expected:e}"
                );
            }
            host = found;
        }
    }
}

/// Steps in one submit have the bits of the same steps submitted one by one. Each of the latter is
/// within the bound.
pub(crate) fn two_hundred_steps_in_one_submit(gpu: &Gpu) {
    let config = DualAdamConfig::default().with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(100));
    let coeffs: Vec<_> = (1..=200).map(|t| config.coeffs(t).unwrap()).collect();
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let mut worst = Worst::default();
        for variant in Variant::all() {
            let inputs = Inputs { m: vec![0.0; 1027], v: vec![0.0; 1027], ..Inputs::random(1, 1027) };
            let start = Host::new(variant.formats(), &inputs);
            let together = Uploaded::new(device, &start);
            let list = device.list(&[together.tensor()]);
            device.submit(|pass| coeffs.iter().for_each(|coeffs| list.encode(pass, &[*coeffs]).unwrap()));

            let mut before = start.clone();
            for (t, coeffs) in (1..).zip(&coeffs) {
                let after = device.stepped(&before, coeffs);
                worst.compare(&before, &after, &config, t, &format!("{}, step {t}", variant.name()));
                before = after;
            }
            together.assert_is(device, &before);
            assert_ne!(before.updated(), start.updated());
        }
        worst.print("200 steps");
    }
}

/// The largest errors of each quantity, as parts of the bound, and in units of 2^-24 of the
/// summands. f32 results only.
#[derive(Default)]
struct Worst([(f64, f64); 3]);

impl Worst {
    fn print(&self, what: &str) {
        let part =
            |((part, units), name): (&(f64, f64), &str)| format!("{name} {part:.2} of the bound, {units:.1} units");
        let parts: Vec<_> = self.0.iter().zip(NAMES).map(part).collect();
        println!("largest errors, {what}: {}", parts.join("; "));
    }

    /// Fails unless every new value is within the bound of the exact one, and of the CPU's.
    fn compare(&mut self, before: &Host, after: &Host, config: &DualAdamConfig, t: u64, what: &str) {
        assert_eq!(before.grad, after.grad, "{what}");
        let c = config.coeffs(t).unwrap();
        let of = |tensor: &Host| [tensor.updated(), &tensor.exp_avg, &tensor.exp_avg_sq].map(Values::wide);
        let ([p, m, v], grad) = (of(before), before.grad.wide());
        let wide = Inputs { p: p.clone(), grad: grad.clone(), m: m.clone(), v: v.clone() };
        let mut cpu = Host::new(formats("f32_f32"), &wide);
        cpu.step(&[c]);
        let (cpu, found) = (of(&cpu), of(after));
        let dtypes = [after.updated().dtype(), Dtype::F32, Dtype::F32];
        let param =
            after.master.as_ref().map(|_| (after.param.wide(), Values::new(after.param.dtype(), &found[0]).wide()));
        for i in 0..before.len() {
            let quantities = bound(config, t, Element { p: p[i], m: m[i], v: v[i] }, grad[i]);
            for (k, Quantity { exact, bound, summands }) in quantities.into_iter().enumerate() {
                let (value, what) = (f64::from(found[k][i]), || format!("{what}, {}[{i}]", NAMES[k]));
                assert!(between(dtypes[k], exact, bound, value), "{}: {value:e}, not {exact:e} ± {bound:e}", what());
                // The CPU's own error is within the bound, too.
                let cpu = f64::from(cpu[k][i]);
                assert!(between(dtypes[k], cpu, 2.0 * bound, value), "{}: {value:e}, the CPU's {cpu:e}", what());
                if dtypes[k] == Dtype::F32 {
                    let error = (value - exact).abs();
                    // The rounding of the parameter itself is not an error of the update.
                    let rounding = if k == 0 { U * exact.abs() } else { 0.0 };
                    let (part, units) = &mut self.0[k];
                    // `f64::max` ignores NaN.
                    (*part, *units) = (part.max(error / bound), units.max((error - rounding) / (U * summands)));
                }
            }
            if let Some((param, expected)) = &param {
                assert_eq!(param[i].to_bits(), expected[i].to_bits(), "{what}, param[{i}]");
            }
        }
    }
}

/// Whether a value lies in the interval; for a 16-bit value, between the narrowed ends.
fn between(dtype: Dtype, center: f64, bound: f64, found: f64) -> bool {
    let end = |value: f64| match dtype {
        Dtype::F32 => value,
        _ => f64::from(Values::new(dtype, &[value as f32]).wide()[0]),
    };
    (end(center - bound)..=end(center + bound)).contains(&found)
}

//! One step of every combination, beside the CPU's in f32.
//!
//! The bound is the documented one, twice: the CPU's step has an error of its own.

use dualadam::webgpu::{Pipelines, TensorList};
use dualadam::{Dtype, DualAdamConfig, StepCoeffs};

use crate::common::contract::{TINY, U};
use crate::common::data::{Inputs, configs};
use crate::gpu::{Device, Gpu};
use crate::host::{COMBINATIONS, Host, Values};

const SIZES: [usize; 11] = [0, 1, 2, 3, 4, 5, 255, 1021, 1024, 4098, 100_003];

pub(crate) fn uniform_coefficients(gpu: &Gpu) {
    every_combination(&gpu.device);
}

pub(crate) fn immediate_coefficients(gpu: &Gpu) {
    every_combination(&gpu.open_with_immediates().expect("the adapter has no immediates"));
}

fn every_combination(device: &Device) {
    let pipelines = Pipelines::new(&device.device).unwrap();
    // A β2 of 0 leaves nothing of v; its error is not bounded by what is left.
    let configs: Vec<_> = configs().into_iter().filter(|(config, _)| config.beta2 > 0.0).collect();
    for types in COMBINATIONS {
        for (number, size) in SIZES.into_iter().enumerate() {
            let inputs = Inputs::random(size as u64, size);
            for (config, t) in [&configs[0], &configs[2], &configs[number % configs.len()]] {
                let before = Host::new(types, &inputs, 0);
                let coeffs = config.coeffs(*t).unwrap();
                let uploaded = before.upload(device);
                let list = TensorList::new(&pipelines, &[uploaded.tensor()]).unwrap();
                device.submit(|pass| list.encode(pass, &[coeffs]).unwrap());
                let after = uploaded.download(device, &before);
                compare(&before, &after, &coeffs, &format!("{types:?}, {size} elements, {config:?}"));
            }
        }
    }
}

fn compare(before: &Host, after: &Host, c: &StepCoeffs, what: &str) {
    assert_eq!(before.grad, after.grad, "{what}");
    let (p, grad, m, v) = (before.p.wide(), before.grad.wide(), before.m.wide(), before.v.wide());
    let wide = Inputs { p: p.clone(), grad: grad.clone(), m: m.clone(), v: v.clone() };
    let mut expected = Host::new((Dtype::F32, Dtype::F32, None), &wide, 0);
    expected.step(&[*c]);
    let (expected_p, expected_m, expected_v) = (expected.p.wide(), expected.m.wide(), expected.v.wide());
    let (new_m, new_v) = (after.m.wide(), after.v.wide());
    for i in 0..before.len {
        let (expected_p, expected_m, expected_v) = (expected_p[i], expected_m[i], expected_v[i]);
        let [p, grad, m, v] = [p[i], grad[i], m[i], v[i]].map(f64::from);
        let [l2, decay, lerp_m, lerp_v] = [c.l2, c.decay, c.one_minus_beta1, c.one_minus_beta2].map(f64::from);
        let g = (f64::from(c.grad_scale) * grad).abs() + l2 * p.abs();
        let m_summands = m.abs() + lerp_m * (g + m.abs());
        let v_summands = v + lerp_v * (g * g + v);
        let s = f64::from(expected_v).sqrt() * f64::from(c.inv_sqrt_bc2);
        let w = f64::from(c.adam_scale) / (s + f64::from(c.eps))
            + f64::from(c.inverse_scale) * (s + f64::from(c.inverse_eps));
        let near = |name: &str, found: f32, expected: f32, bound: f64| {
            let off = (f64::from(found) - f64::from(expected)).abs();
            assert!(off <= bound, "{what}, {name}[{i}]: {found:e}, not {expected:e}; off by {off:e}, bound {bound:e}");
        };
        near("m", new_m[i], expected_m, 8.0 * U * m_summands + TINY);
        near("v", new_v[i], expected_v, 8.0 * U * v_summands + TINY);
        let bound = 3.0 * U * p.abs() + 80.0 * U * (m_summands * w + decay * p.abs());
        between(&after.p, i, expected_p, bound, what);
        if let Some(copy) = &after.copy {
            let Values::F32(masters) = &after.p else { panic!("masters are f32") };
            assert_eq!(copy.at(i), Values::new(copy.dtype(), &[masters[i]]), "{what}, copy[{i}]");
        }
    }
}

/// A value of any type lies between the narrowed ends of the f32 interval.
fn between(values: &Values, i: usize, expected: f32, bound: f64, what: &str) {
    let narrowed = |value: f64| Values::new(values.dtype(), &[value as f32]).wide()[0];
    let (low, high) = match values.dtype() {
        Dtype::F32 => (f64::from(expected) - bound, f64::from(expected) + bound),
        _ => (narrowed(f64::from(expected) - bound).into(), narrowed(f64::from(expected) + bound).into()),
    };
    let found = f64::from(values.at(i).wide()[0]);
    assert!((low..=high).contains(&found), "{what}, p[{i}]: {found:e}, not in {low:e}..={high:e}");
}

pub(crate) fn many_steps_in_one_submit(gpu: &Gpu) {
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let pipelines = Pipelines::new(&device.device).unwrap();
        let config = DualAdamConfig::default().with_schedule(dualadam::SwitchSchedule::linear_until(20));
        let steps: Vec<_> = (1..=40).map(|t| config.coeffs(t).unwrap()).collect();
        let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 1027), 0);
        let (together, apart) = (host.upload(device), host.upload(device));
        let list = TensorList::new(&pipelines, &[together.tensor()]).unwrap();
        device.submit(|pass| steps.iter().for_each(|coeffs| list.encode(pass, &[*coeffs]).unwrap()));
        let list = TensorList::new(&pipelines, &[apart.tensor()]).unwrap();
        for coeffs in &steps {
            device.submit(|pass| list.encode(pass, &[*coeffs]).unwrap());
        }
        let (together, apart) = (together.download(device, &host), apart.download(device, &host));
        assert_eq!((&together.p, &together.m, &together.v), (&apart.p, &apart.m, &apart.v));
        assert_ne!(together.p, host.p);
    }
}

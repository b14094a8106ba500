//! Lists have the bits of their tensors stepped alone.

use dualadam::webgpu::{Pipelines, Tensor, TensorList};
use dualadam::{DualAdamConfig, Error, StepCoeffs};

use crate::common::data::Inputs;
use crate::gpu::{Device, Gpu};
use crate::host::{COMBINATIONS, Host, Uploaded};

fn contents(host: &Host) -> [&[u8]; 4] {
    [host.p.bytes(), host.m.bytes(), host.v.bytes(), host.copy.as_ref().map_or(&[], |copy| copy.bytes())]
}

pub(crate) fn mixed_types_and_sets(gpu: &Gpu) {
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let sets = [
            DualAdamConfig::default().coeffs(3).unwrap(),
            DualAdamConfig::adamw(0.1).coeffs(7).unwrap(),
            DualAdamConfig::default().with_lr(1e-2).coeffs(1).unwrap(),
        ];
        let host = |i: usize| Host::new(COMBINATIONS[i % 11], &Inputs::random(i as u64, [0, 3, 1030][i / 11]), i % 3);
        let hosts: Vec<_> = (0..33).map(host).collect();
        let pipelines = Pipelines::new(&device.device).unwrap();
        let step = |tensors: &[Tensor<'_>], sets: &[StepCoeffs]| {
            let list = TensorList::new(&pipelines, tensors).unwrap();
            device.submit(|pass| list.encode(pass, sets).unwrap());
        };
        let (together, alone): (Vec<_>, Vec<_>) =
            hosts.iter().map(|host| (host.upload(device), host.upload(device))).unzip();
        step(&together.iter().map(Uploaded::tensor).collect::<Vec<_>>(), &sets);
        for alone in &alone {
            step(&[Tensor { set: 0, ..alone.tensor() }], &[sets[alone.set]]);
        }
        for ((host, together), alone) in hosts.iter().zip(&together).zip(&alone) {
            let (together, alone) = (together.download(device, host), alone.download(device, host));
            assert_eq!(contents(&together), contents(&alone), "{host:?}");
        }
    }
}

pub(crate) fn nothing_to_do(gpu: &Gpu) {
    let device = &gpu.device;
    let pipelines = Pipelines::new(&device.device).unwrap();
    let list = TensorList::new(&pipelines, &[]).unwrap();
    let host = Host::new(COMBINATIONS[3], &Inputs::random(1, 9), 0);
    let frozen = host.upload(device);
    // What is left alone is not even looked at.
    let tensor = Tensor { grads: None, exp_avg: frozen.tensor().exp_avg_sq, ..frozen.tensor() };
    let without = TensorList::new(&pipelines, &[tensor]).unwrap();
    device.submit(|pass| {
        list.encode(pass, &[]).unwrap();
        without.encode(pass, &[DualAdamConfig::default().coeffs(1).unwrap()]).unwrap();
    });
    assert_eq!(contents(&frozen.download(device, &host)), contents(&host));
}

pub(crate) fn updates(gpu: &Gpu) {
    let device: &Device = &gpu.device;
    let pipelines = Pipelines::new(&device.device).unwrap();
    let coeffs = [DualAdamConfig::default().coeffs(2).unwrap()];
    let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 1030), 0);
    let other = Host::new(COMBINATIONS[1], &Inputs { p: host.p.wide(), ..Inputs::random(2, 1030) }, 0);
    let (a, b) = (host.upload(device), host.upload(device));
    let other = (other.upload(device), other);

    // From no gradient to a bf16 one of another buffer.
    let mut list = TensorList::new(&pipelines, &[Tensor { grads: None, ..a.tensor() }]).unwrap();
    let grads = other.0.tensor().grads;
    list.update(&[Tensor { grads, ..a.tensor() }]).unwrap();
    device.submit(|pass| list.encode(pass, &coeffs).unwrap());
    let fresh = TensorList::new(&pipelines, &[Tensor { grads, ..b.tensor() }]).unwrap();
    device.submit(|pass| fresh.encode(pass, &coeffs).unwrap());
    assert_eq!(contents(&a.download(device, &host)), contents(&b.download(device, &host)));
    assert_ne!(contents(&a.download(device, &host)), contents(&host));

    // What is refused leaves the list as it was.
    let error = list.update(&[]).unwrap_err();
    assert!(matches!(error, Error::Count { expected: 1, actual: 0, .. }), "{error:?}");
    let error = list.update(&[Tensor { len: 1029, ..a.tensor() }]).unwrap_err();
    assert_eq!(error.to_string(), "the length of tensor 0 must stay 1030, got 1029");
    let error = list.update(&[Tensor { grads: Some(a.tensor().params), ..a.tensor() }]).unwrap_err();
    assert!(matches!(error, Error::Overlap { .. }), "{error:?}");
    for list in [&list, &fresh] {
        device.submit(|pass| list.encode(pass, &coeffs).unwrap());
    }
    assert_eq!(contents(&a.download(device, &host)), contents(&b.download(device, &host)));
}

//! Lists have the bits of their tensors stepped alone.

use dualadam::webgpu::{Pipelines, Tensor, TensorList, WebGpuError};
use dualadam::{ArgumentError, DualAdamConfig, ListError, StepCoeffs, SwitchSchedule, TensorProblem};

use crate::gpu::{Device, Gpu};
use crate::host::{COMBINATIONS, Host, Uploaded};
use testkit::data::Inputs;

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
            step(&[alone.tensor().with_coeffs_index(0)], &[sets[alone.set]]);
        }
        for ((host, together), alone) in hosts.iter().zip(&together).zip(&alone) {
            let (together, alone) = (together.download(device, host), alone.download(device, host));
            assert_eq!(together.contents(), alone.contents(), "{host:?}");
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
    let mut tensor = frozen.tensor().with_grad(None);
    tensor.exp_avg = tensor.exp_avg_sq;
    let without = TensorList::new(&pipelines, &[tensor]).unwrap();
    device.submit(|pass| {
        list.encode(pass, &[]).unwrap();
        without.encode(pass, &[DualAdamConfig::default().coeffs(1).unwrap()]).unwrap();
    });
    assert_eq!(frozen.download(device, &host).contents(), host.contents());
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
    let mut list = TensorList::new(&pipelines, &[a.tensor().with_grad(None)]).unwrap();
    let grads = other.0.tensor().grad;
    list.update(&[a.tensor().with_grad(grads)]).unwrap();
    device.submit(|pass| list.encode(pass, &coeffs).unwrap());
    let fresh = TensorList::new(&pipelines, &[b.tensor().with_grad(grads)]).unwrap();
    device.submit(|pass| fresh.encode(pass, &coeffs).unwrap());
    assert_eq!(a.download(device, &host).contents(), b.download(device, &host).contents());
    assert_ne!(a.download(device, &host).contents(), host.contents());

    // What is refused leaves the list as it was.
    let error = list.update(&[]).unwrap_err();
    assert!(
        matches!(error, WebGpuError::Argument(ArgumentError::List(ListError::Count { expected: 1, actual: 0, .. }))),
        "{error:?}"
    );
    let error = list
        .update(&[{
            let mut tensor = a.tensor();
            tensor.len = 1029;
            tensor
        }])
        .unwrap_err();
    assert_eq!(error.to_string(), "tensor 0 must keep its length of 1030 elements, got 1029");
    let error = list.update(&[a.tensor().with_grad(Some(a.tensor().param))]).unwrap_err();
    assert!(
        matches!(&error, WebGpuError::Argument(ArgumentError::Tensor(e)) if matches!(e.problem, TensorProblem::Overlap { .. })),
        "{error:?}"
    );
    // Of other formats only the gradient's may come.
    let mut bf16 = a.tensor().with_grad(None);
    bf16.param.dtype = dualadam::Dtype::Bf16;
    let error = list.update(&[bf16]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor 0 must keep its formats (f32 param, bf16 grad, f32 exp_avg, f32 exp_avg_sq), \
         got bf16 param, bf16 grad, f32 exp_avg, f32 exp_avg_sq"
    );
    for list in [&list, &fresh] {
        device.submit(|pass| list.encode(pass, &coeffs).unwrap());
    }
    assert_eq!(a.download(device, &host).contents(), b.download(device, &host).contents());
}

/// More sets than a driver keeps at hand, used in another order than they are in.
pub(crate) fn a_set_for_each_tensor(gpu: &Gpu) {
    const COUNT: usize = 300;
    let config = DualAdamConfig::default().with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(COUNT as u64 / 2));
    let sets: Vec<_> = (1..=COUNT as u64).map(|t| config.coeffs(t).unwrap()).collect();
    let host = |i: usize| Host::new(COMBINATIONS[i % 11], &Inputs::random(i as u64, 1 + i % 9), COUNT - 1 - i);
    let hosts: Vec<_> = (0..COUNT).map(host).collect();
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let pipelines = Pipelines::new(&device.device).unwrap();
        let uploaded: Vec<_> = hosts.iter().map(|host| host.upload(device)).collect();
        let tensors: Vec<_> = uploaded.iter().map(Uploaded::tensor).collect();
        let list = TensorList::new(&pipelines, &tensors).unwrap();
        device.submit(|pass| list.encode(pass, &sets).unwrap());
        for (host, uploaded) in hosts.iter().zip(&uploaded) {
            let alone = host.stepped(device, &pipelines, &sets[host.set]);
            assert_eq!(uploaded.download(device, host).contents(), alone.contents(), "{host:?}");
        }
    }
}

/// Only changed tensors are bound anew: another's buffer may even be gone. What fails changes none.
pub(crate) fn updates_bind_what_changed(gpu: &Gpu) {
    let device = &gpu.device;
    let pipelines = Pipelines::new(&device.device).unwrap();
    let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 130), 0);
    let coeffs = [DualAdamConfig::default().coeffs(2).unwrap()];
    let [a, b, other] = [0; 3].map(|_| host.upload(device));

    let mut list = TensorList::new(&pipelines, &[a.tensor(), b.tensor()]).unwrap();
    let moved = a.tensor().with_grad(other.tensor().grad).with_coeffs_index(1);
    let gone = host.upload(device);
    gone.grads.0.destroy();
    let error = list.update(&[moved, b.tensor().with_grad(gone.tensor().grad)]).unwrap_err();
    assert!(matches!(error, WebGpuError::Wgpu { tensor: Some(1), .. }), "{error:?}");
    // Neither the gradient nor the set has moved.
    other.grads.0.destroy();
    device.submit(|pass| list.encode(pass, &coeffs).unwrap());
    let expected = host.stepped(device, &pipelines, &coeffs[0]);
    for stepped in [&a, &b] {
        assert_eq!(stepped.download(device, &host).contents(), expected.contents());
    }

    a.params.0.destroy();
    let grads = host.upload(device);
    list.update(&[a.tensor(), b.tensor().with_grad(grads.tensor().grad).with_coeffs_index(5)]).unwrap();
    let error = list.update(&[a.tensor().with_grad(grads.tensor().grad), b.tensor()]).unwrap_err();
    assert!(matches!(error, WebGpuError::Wgpu { tensor: Some(0), .. }), "{error:?}");
}

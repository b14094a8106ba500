//! Lists have the bits of their tensors stepped alone.

use dualadam::{Dtype, DualAdamConfig, StepCoeffs, SwitchSchedule};
use testkit::data::Inputs;
use testkit::laws;
use testkit::tensor::Tensor as Host;
use testkit::variant::{Variant, in_turns};

use crate::gpu::{Device, Gpu};
use crate::host::Uploaded;
use crate::refused::{self, refused};

pub(crate) fn mixed_types_and_sets(gpu: &Gpu) {
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        let sets = [
            DualAdamConfig::default().coeffs(3).unwrap(),
            DualAdamConfig::adamw(0.1).coeffs(7).unwrap(),
            DualAdamConfig::default().with_lr(1e-2).coeffs(1).unwrap(),
        ];
        let hosts = [0, 3, 1030].into_iter().flat_map(|len| (0..Variant::COUNT).map(move |i| host(i, len, i % 3)));
        check(device, hosts.collect(), &sets);
    }
}

/// A tensor of the variants in turns.
fn host(i: usize, len: usize, set: usize) -> Host {
    Host::new(in_turns(i), &Inputs::random(i as u64, len)).with_set(set)
}

/// The law of lists, with steps alone on the same device for what is right.
fn check(device: &Device, hosts: Vec<Host>, sets: &[StepCoeffs]) {
    let together = |hosts: &mut [Host], sets: &[StepCoeffs]| {
        hosts.clone_from_slice(&device.stepped_together(hosts, sets));
    };
    let alone = |hosts: &mut [Host], sets: &[StepCoeffs]| {
        hosts.iter_mut().for_each(|host| *host = device.stepped(host, &sets[host.set]));
    };
    laws::check(&together, &alone, hosts, sets, "a list");
}

pub(crate) fn nothing_to_do(gpu: &Gpu) {
    let device = &gpu.device;
    let frozen = Uploaded::new(device, &host(3, 9, 0));
    // A skipped tensor's buffers are not looked at.
    let mut tensor = frozen.tensor().with_grad(None);
    tensor.exp_avg = tensor.exp_avg_sq;
    device.step(&device.list(&[]), &[]);
    device.step(&device.list(&[tensor]), &[DualAdamConfig::default().coeffs(1).unwrap()]);
    frozen.assert_is(device, &frozen.host);
}

pub(crate) fn updates(gpu: &Gpu) {
    let device: &Device = &gpu.device;
    let coeffs = [DualAdamConfig::default().coeffs(2).unwrap()];
    let [a, b] = [0; 2].map(|_| Uploaded::new(device, &host(0, 1030, 0)));
    let other = Uploaded::new(device, &host(1, 1030, 0));

    // From no gradient to a bf16 one of another buffer.
    let mut list = device.list(&[a.tensor().with_grad(None)]);
    let grad = other.tensor().grad;
    list.update(&[a.tensor().with_grad(grad)]).unwrap();
    device.step(&list, &coeffs);
    let fresh = device.list(&[b.tensor().with_grad(grad)]);
    device.step(&fresh, &coeffs);
    a.assert_is(device, &b.download(device));
    assert_ne!(a.download(device).contents(), a.host.contents());

    // What is refused leaves the list as it was.
    refused::count(list.update(&[]), "tensors", 1, 0);
    let mut shorter = a.tensor();
    shorter.len = 1029;
    let error = refused(list.update(&[shorter]));
    assert_eq!(error.to_string(), "tensor 0 must keep its length of 1030 elements, got 1029");
    refused::overlap(list.update(&[a.tensor().with_grad(Some(a.tensor().param))]));
    // Of the formats only the gradient's may change.
    let mut narrower = a.tensor().with_grad(None);
    narrower.param.dtype = Dtype::Bf16;
    assert_eq!(
        refused(list.update(&[narrower])).to_string(),
        "tensor 0 must keep its formats (f32 param, bf16 grad, f32 exp_avg, f32 exp_avg_sq), \
         got bf16 param, bf16 grad, f32 exp_avg, f32 exp_avg_sq"
    );
    [&list, &fresh].into_iter().for_each(|list| device.step(list, &coeffs));
    a.assert_is(device, &b.download(device));
}

/// More sets than a driver keeps at hand, used in another order than they are in.
pub(crate) fn a_set_for_each_tensor(gpu: &Gpu) {
    const COUNT: usize = 300;
    let config = DualAdamConfig::default().with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(COUNT as u64 / 2));
    let sets: Vec<_> = (1..=COUNT as u64).map(|t| config.coeffs(t).unwrap()).collect();
    let hosts: Vec<_> = (0..COUNT).map(|i| host(i, 1 + i % 9, COUNT - 1 - i)).collect();
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        check(device, hosts.clone(), &sets);
    }
}

/// Only changed tensors are bound anew: another's buffer may even be gone. What fails changes none.
pub(crate) fn updates_bind_what_changed(gpu: &Gpu) {
    let device = &gpu.device;
    let coeffs = [DualAdamConfig::default().coeffs(2).unwrap()];
    let [a, b, other, gone, grads] = [0; 5].map(|_| Uploaded::new(device, &host(0, 130, 0)));

    let mut list = device.list(&[a.tensor(), b.tensor()]);
    let moved = a.tensor().with_grad(other.tensor().grad).with_coeffs_index(1);
    gone.buffers[1].destroy();
    let (_, tensor, _) = refused::by_wgpu(list.update(&[moved, b.tensor().with_grad(gone.tensor().grad)]));
    assert_eq!(tensor, Some(1));
    // Neither the gradient nor the set has moved.
    other.buffers[1].destroy();
    device.step(&list, &coeffs);
    let expected = device.stepped(&a.host, &coeffs[0]);
    [&a, &b].into_iter().for_each(|stepped| stepped.assert_is(device, &expected));

    a.buffers[0].destroy();
    list.update(&[a.tensor(), b.tensor().with_grad(grads.tensor().grad).with_coeffs_index(5)]).unwrap();
    let (_, tensor, _) = refused::by_wgpu(list.update(&[a.tensor().with_grad(grads.tensor().grad), b.tensor()]));
    assert_eq!(tensor, Some(0));
}

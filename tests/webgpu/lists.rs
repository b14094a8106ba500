//! Lists have the bits of their tensors stepped alone.

use dualadam::{Dtype, DualAdamConfig, Formats, StepCoeffs, SwitchSchedule, TensorProblem};
use testkit::variant::in_turns;
use testkit::{Inputs, Tensor as Host, Variant, laws};

use crate::host::bound;
use crate::{Device, Gpu, Uploaded, refused};

/// Tensor `i`, of the variants in turns.
fn host(i: usize, len: usize, set: usize) -> Host {
    Host::new(in_turns(i), &Inputs::random(i as u64, len)).with_set(set)
}

/// Compares a list's step with steps of each tensor alone on the same device.
fn check(device: &Device, hosts: Vec<Host>, sets: &[StepCoeffs]) {
    let together = |hosts: &mut [Host], sets: &[StepCoeffs]| {
        hosts.clone_from_slice(&device.stepped_together(hosts, sets));
    };
    let alone = |hosts: &mut [Host], sets: &[StepCoeffs]| {
        hosts.iter_mut().for_each(|host| *host = device.stepped(host, &sets[host.set]));
    };
    laws::check(&together, &alone, hosts, sets, "a list");
}

pub(crate) fn nothing_to_do(device: &Device) {
    let frozen = Uploaded::new(device, &host(3, 9, 0));
    // A skipped tensor's buffers are not checked.
    let mut tensor = frozen.tensor().with_grad(None);
    tensor.exp_avg = tensor.exp_avg_sq;
    device.step(&device.list(&[]), &[]);
    device.step(&device.list(&[tensor]), &[DualAdamConfig::default().coeffs(1).unwrap()]);
    frozen.assert_is(device, &frozen.host);
}

pub(crate) fn updates(device: &Device) {
    let coeffs = [DualAdamConfig::default().coeffs(2).unwrap()];
    let [a, b] = [0; 2].map(|_| Uploaded::new(device, &host(0, 1030, 0)));
    let other = Uploaded::new(device, &host(1, 1030, 0));

    // The list gets its first gradient: bf16, in another buffer.
    let mut list = device.list(&[a.tensor().with_grad(None)]);
    let grad = other.tensor().grad;
    list.update(&[a.tensor().with_grad(grad)]).unwrap();
    device.step(&list, &coeffs);
    let fresh = device.list(&[b.tensor().with_grad(grad)]);
    device.step(&fresh, &coeffs);
    a.assert_is(device, &b.download(device));
    assert_ne!(a.download(device).contents(), a.host.contents());

    // A refused update leaves the list as it was.
    refused::count(list.update(&[]), "tensors", 1, 0);
    let mut shorter = a.tensor();
    shorter.len = 1029;
    refused::problem(list.update(&[shorter]), 0, None, TensorProblem::FixedLength { expected: 1030, actual: 1029 });
    refused::overlap(list.update(&[a.tensor().with_grad(Some(a.tensor().param))]));
    // Of the formats only the gradient's may change.
    let mut narrower = a.tensor().with_grad(None);
    narrower.param.dtype = Dtype::Bf16;
    let [expected, actual] = [Dtype::F32, Dtype::Bf16].map(|param| Formats::new(param, Dtype::Bf16));
    refused::problem(list.update(&[narrower]), 0, None, TensorProblem::FixedFormats { expected, actual });
    [&list, &fresh].into_iter().for_each(|list| device.step(list, &coeffs));
    a.assert_is(device, &b.download(device));
}

/// Mixed types and lengths, with many sets, used in another order than they are passed in.
pub(crate) fn mixed_types_and_a_set_for_each_tensor(gpu: &Gpu) {
    const COUNT: usize = 300;
    let config = DualAdamConfig::default().with_lr(1e-2).with_schedule(SwitchSchedule::linear_until(COUNT as u64 / 2));
    let mut sets: Vec<_> = (1..=COUNT as u64).map(|t| config.coeffs(t).unwrap()).collect();
    let (dual, adam) = (DualAdamConfig::default(), DualAdamConfig::adamw(0.1));
    sets.extend([(dual, 3), (adam, 7), (dual.with_lr(1e-2), 1)].map(|(config, t)| config.coeffs(t).unwrap()));
    let short = (0..COUNT).map(|i| host(i, 1 + i % 9, COUNT - 1 - i));
    let lens = [0, 3, 1030].into_iter();
    let long = lens.flat_map(|len| (0..Variant::COUNT).map(move |i| host(i, len, COUNT + i % 3)));
    let hosts: Vec<_> = short.chain(long).collect();
    for device in [Some(&gpu.device), gpu.open_with_immediates().as_ref()].into_iter().flatten() {
        check(device, hosts.clone(), &sets);
    }
}

/// Only changed tensors are bound again: an unchanged one's buffer may even be destroyed. An update
/// that fails changes no tensor.
pub(crate) fn updates_bind_what_changed(device: &Device) {
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

// Bytes beside a tensor's elements stay as they are.

const SIZES: [usize; 11] = [1, 2, 3, 4, 5, 7, 128, 257, 1023, 1026, 1029];
/// All offsets in these tests are multiples of this.
const ALIGN: usize = 256;

/// Appends a tensor's arrays, each at a multiple of the alignment and with other bytes behind it.
/// Returns the offsets.
fn place(host: &Host, bytes: &mut Vec<u8>) -> Vec<u64> {
    let mut append = |content: &[u8]| {
        let offset = bytes.len();
        bytes.extend(content);
        bytes.resize((bytes.len() + 1).next_multiple_of(ALIGN), 0xa5);
        offset as u64
    };
    host.contents().into_iter().map(&mut append).collect()
}

/// Every variant and size with all of its arrays in one buffer: the elements are those of a step in
/// buffers of their own, and nothing else in the whole buffer changes. Neither do the gradients,
/// which are bound as if they were written.
pub(crate) fn one_buffer_may_hold_everything(device: &Device) {
    assert!((ALIGN as u32).is_multiple_of(device.device.limits().min_storage_buffer_offset_alignment));
    let coeffs = DualAdamConfig::adamw(0.1).coeffs(4).unwrap();
    let of = |variant: Variant| SIZES.map(|size| Host::new(variant.formats(), &Inputs::random(size as u64, size)));
    let hosts: Vec<_> = Variant::all().flat_map(of).collect();

    let (mut before, mut expected) = (vec![], vec![]);
    let offsets: Vec<_> = hosts.iter().map(|host| place(host, &mut before)).collect();
    let arena = device.buffer(&before);
    let places = offsets.iter().map(|offsets| offsets.iter().map(|&offset| (&arena, offset)).collect::<Vec<_>>());
    let tensors: Vec<_> = hosts.iter().zip(places).map(|(host, places)| bound(host, &places)).collect();
    device.step(&device.list(&tensors), &[coeffs]);

    for host in &hosts {
        place(&device.stepped(host, &coeffs), &mut expected);
    }
    let found = device.read(&arena);
    assert_ne!(found, before);
    if let Some(at) = (0..expected.len()).find(|&at| found[at] != expected[at]) {
        let index = offsets.partition_point(|offsets| offsets[0] <= at as u64) - 1;
        let (found, expected) = (found[at], expected[at]);
        panic!("byte {at} is {found:#x}, not {expected:#x}: {}, {:?}", hosts[index].types(), offsets[index]);
    }
}

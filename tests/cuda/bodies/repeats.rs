//! The same inputs give the same bits, in every run and in every grouping into launches.

use dualadam::StepCoeffs;
use dualadam::cuda::TensorList;

use crate::common::data::Inputs;

use super::Body;
use super::buffers::{COMBINATIONS, Device, Host};
use super::gpu::Gpu;
use super::lists::{all_sets, step};

pub(crate) const TESTS: &[Body] = bodies!["repeats":
    runs_and_groupings_give_the_same_bits,
];

/// Tensors of all combinations, ordinary and with special values, each with a set of its own.
fn hosts(sets: usize) -> Vec<Host> {
    let inputs = [Inputs::random(1, 9001), Inputs::special(), Inputs::random(2, 13)];
    let each = COMBINATIONS.iter().flat_map(|types| inputs.iter().map(move |inputs| (types, inputs)));
    each.enumerate().map(|(i, (&types, inputs))| Host::new(types, inputs, [i % 4, 0, i % 3, 0, 1], i % sets)).collect()
}

/// The bytes of all buffers after `steps` has made two steps of all tensors.
fn run(gpu: &Gpu, sets: &[StepCoeffs], steps: impl Fn(&[Host], &[Device])) -> Vec<Vec<u8>> {
    let hosts = hosts(sets.len());
    let devices: Vec<_> = hosts.iter().map(|host| host.upload(gpu)).collect();
    steps(&hosts, &devices);
    let mut found = hosts;
    for (host, device) in found.iter_mut().zip(&devices) {
        for (buffer, memory) in host.buffers.iter_mut().zip(&device.memory) {
            gpu.read(memory, buffer.bytes_mut());
        }
    }
    found.iter().flat_map(|host| &host.buffers).map(|buffer| buffer.bytes().to_vec()).collect()
}

/// NaNs too: on one device their bits do not change either.
fn runs_and_groupings_give_the_same_bits(gpu: &Gpu) {
    let sets = all_sets();
    let one_by_one = |hosts: &[Host], devices: &[Device]| {
        for _ in 0..2 {
            for (host, device) in hosts.iter().zip(devices) {
                let (mut raw, coeffs) = (device.raw(host), &sets[host.set]);
                raw.coeffs_index = 0;
                // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
                unsafe { gpu.kernels.step_raw(&raw, coeffs, gpu.raw_stream()) }.unwrap();
            }
        }
    };
    // In lists of so many tensors, the last tensor first.
    let in_lists = |most: usize| {
        let sets = &sets;
        move |hosts: &[Host], devices: &[Device]| {
            let raw: Vec<_> = devices.iter().zip(hosts).map(|(device, host)| device.raw(host)).rev().collect();
            let mut lists: Vec<_> = raw.chunks(most).map(|raw| TensorList::new(&gpu.kernels, raw).unwrap()).collect();
            for _ in 0..2 {
                lists.iter_mut().for_each(|list| step(gpu, list, sets));
            }
        }
    };
    let first = run(gpu, &sets, one_by_one);
    assert!(first == run(gpu, &sets, one_by_one), "one by one, again");
    for most in [usize::MAX, usize::MAX, 7, 1] {
        assert!(first == run(gpu, &sets, in_lists(most)), "in lists of {most}");
    }
}

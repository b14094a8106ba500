//! What lies beside a tensor's elements stays as it is.

use dualadam::webgpu::{Binding, Pipelines, Tensor, TensorList, wgpu};
use dualadam::{Dtype, DualAdamConfig};

use crate::gpu::Gpu;
use crate::host::{COMBINATIONS, Host};
use testkit::data::Inputs;

const SIZES: [usize; 11] = [1, 2, 3, 4, 5, 7, 128, 257, 1023, 1026, 1029];
/// What offsets are multiples of in these tests.
const ALIGN: usize = 256;

/// Appends what a tensor has, each array at a multiple of the alignment and with other bytes behind it, and returns the offsets.
fn place(host: &Host, bytes: &mut Vec<u8>) -> Vec<u64> {
    let mut append = |content: &[u8]| {
        let offset = bytes.len();
        bytes.extend(content);
        bytes.resize((bytes.len() + 1).next_multiple_of(ALIGN), 0xa5);
        offset as u64
    };
    host.contents().into_iter().map(&mut append).collect()
}

/// The tensor at these offsets of a buffer.
fn tensor<'a>(host: &Host, buffer: &'a wgpu::Buffer, offsets: &[u64]) -> Tensor<'a> {
    let view = |offset, dtype| Binding::new(buffer, dtype).with_offset(offset);
    let (updated, grad) = (view(offsets[0], host.p.dtype()), Some(view(offsets[1], host.grad.dtype())));
    let (exp_avg, exp_avg_sq) = (view(offsets[2], Dtype::F32), view(offsets[3], Dtype::F32));
    match &host.copy {
        None => Tensor::new(host.len as u64, updated, grad, exp_avg, exp_avg_sq),
        Some(copy) => {
            let param = view(offsets[4], copy.dtype());
            Tensor::new(host.len as u64, param, grad, exp_avg, exp_avg_sq).with_master(updated)
        }
    }
}

/// Every combination and size with all of its arrays in one buffer: the elements are those of a step in buffers of their own, and nothing
/// else in the whole buffer changes. Neither do the gradients, which are bound as if they were written.
pub(crate) fn one_buffer_may_hold_everything(gpu: &Gpu) {
    let device = &gpu.device;
    assert!((ALIGN as u32).is_multiple_of(device.device.limits().min_storage_buffer_offset_alignment));
    let pipelines = Pipelines::new(&device.device).unwrap();
    let coeffs = DualAdamConfig::adamw(0.1).coeffs(4).unwrap();
    let of = |types| SIZES.map(|size| Host::new(types, &Inputs::random(size as u64, size), 0));
    let hosts: Vec<_> = COMBINATIONS.into_iter().flat_map(of).collect();

    let (mut before, mut expected) = (vec![], vec![]);
    let offsets: Vec<_> = hosts.iter().map(|host| place(host, &mut before)).collect();
    let arena = device.buffer(&before);
    let tensors: Vec<_> = hosts.iter().zip(&offsets).map(|(host, offsets)| tensor(host, &arena, offsets)).collect();
    let list = TensorList::new(&pipelines, &tensors).unwrap();
    device.submit(|pass| list.encode(pass, &[coeffs]).unwrap());

    for host in &hosts {
        place(&host.stepped(device, &pipelines, &coeffs), &mut expected);
    }
    let found = device.read(&arena);
    assert_ne!(found, before);
    if let Some(at) = (0..expected.len()).find(|&at| found[at] != expected[at]) {
        let index = offsets.partition_point(|offsets| offsets[0] <= at as u64) - 1;
        let Host { p, grad, copy, len, .. } = &hosts[index];
        let types = (p.dtype(), grad.dtype(), copy.as_ref().map(|copy| copy.dtype()));
        panic!(
            "byte {at} is {:#x}, not {:#x}: {types:?}, {len} elements, {:?}",
            found[at], expected[at], offsets[index]
        );
    }
}

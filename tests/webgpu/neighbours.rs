//! What lies beside a tensor's elements stays as it is.

use dualadam::DualAdamConfig;
use testkit::data::Inputs;
use testkit::tensor::Tensor as Host;
use testkit::variant::Variant;

use crate::gpu::Gpu;
use crate::host::bound;

const SIZES: [usize; 11] = [1, 2, 3, 4, 5, 7, 128, 257, 1023, 1026, 1029];
/// What offsets are multiples of in these tests.
const ALIGN: usize = 256;

/// Appends what a tensor has, each array at a multiple of the alignment and with other bytes behind
/// it, and returns the offsets.
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
pub(crate) fn one_buffer_may_hold_everything(gpu: &Gpu) {
    let device = &gpu.device;
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

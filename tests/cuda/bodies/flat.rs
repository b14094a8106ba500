//! Flat steps.

use std::fmt::Debug;
use std::sync::Arc;

use bytemuck::Pod;
use dualadam::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr};
use dualadam::cuda::{self, Buffer, BufferMut, Kernels};
use dualadam::{DualAdamConfig, Element, GradOf, StepCoeffs};
use testkit::data::{SIZES, narrow};
use testkit::laws::{self, by_cpu};
use testkit::{Formats, Inputs, Tensor, Variant, for_each_variant, formats};

use super::{Body, Gpu, Twin};

pub(crate) const TESTS: &[Body] = bodies!["flat":
    every_variant_and_size_has_the_bits_of_the_cpu,
    large_buffers_have_the_bits_of_the_cpu,
    every_misalignment_has_the_bits_of_the_cpu,
    special_values_have_the_bits_of_the_cpu,
    second_moments_saturate_as_on_the_cpu,
    safe_steps_over_slices_wait_for_other_streams,
    a_step_only_enqueues,
];

/// Sizes at the edges of blocks, which are not among the sizes for all backends.
const EDGES: [usize; 4] = [1023, 1024, 1025, 4096];
/// The stand-in takes a second for a million elements.
pub(crate) const MOST_ON_THE_STAND_IN: usize = 5000;

fn sizes(gpu: &Gpu) -> impl Iterator<Item = usize> {
    let most = if gpu.stand_in.is_some() { MOST_ON_THE_STAND_IN } else { usize::MAX };
    EDGES.into_iter().chain(SIZES).filter(move |&size| size <= most)
}

/// Steps each tensor by the flat call.
pub(crate) fn flat(gpu: &Gpu) -> impl Fn(&mut [Tensor], &[StepCoeffs]) {
    |tensors, sets| {
        for tensor in tensors {
            let twin = Twin::new(gpu, tensor.clone());
            gpu.step(&twin.raw().with_coeffs_index(0), &sets[tensor.set]).unwrap();
            *tensor = twin.found(gpu);
        }
    }
}

fn every_variant_and_size_has_the_bits_of_the_cpu(gpu: &Gpu) {
    laws::sizes(&flat(gpu), &by_cpu, sizes(gpu));
    gpu.assert_clean();
    if let Some(stand_in) = &gpu.stand_in {
        let names: std::collections::BTreeSet<_> = stand_in.launches().into_iter().map(|launch| launch.0).collect();
        assert_eq!(names.len(), 2 * Variant::COUNT, "each flat kernel ran: {names:?}");
    }
}

fn large_buffers_have_the_bits_of_the_cpu(gpu: &Gpu) {
    let inputs = Inputs::random(1, 200_003);
    let tensor = |name| Tensor::padded(formats(name), &inputs, [0; 5]);
    let tensors = ["f32_f32", "bf16_bf16", "bf16_bf16_master"].map(tensor);
    laws::check(&flat(gpu), &by_cpu, tensors.into(), &laws::all_sets(), "large");
    gpu.assert_clean();
    if let Some(stand_in) = &gpu.stand_in {
        // Nearly all f32 accesses are of 16 bytes.
        let stats = stand_in.stats();
        assert!(stats.loads[4] > 200_000 / 4 * 7, "{stats:?}");
    }
}

fn every_misalignment_has_the_bits_of_the_cpu(gpu: &Gpu) {
    laws::misalignments(&flat(gpu), &by_cpu, 261, 8);
}

fn special_values_have_the_bits_of_the_cpu(gpu: &Gpu) {
    laws::values(&flat(gpu), &by_cpu, &Inputs::special(), &laws::all_sets());
}

fn second_moments_saturate_as_on_the_cpu(gpu: &Gpu) {
    laws::overflows(&flat(gpu), &by_cpu);
    gpu.assert_clean();
}

/// Safe steps over cudarc's slices, each of a stream of its own, with cudarc's own ordering between
/// them.
pub(crate) fn check_slices<P, G>(kernels: &Kernels, stream: &Arc<CudaStream>, formats: Formats)
where
    P: Pod + DeviceRepr + Element + PartialEq + Debug,
    G: Pod + DeviceRepr + GradOf<P>,
    for<'a> BufferMut<'a>: From<&'a mut CudaSlice<P>>,
    for<'a> Buffer<'a>: From<&'a CudaSlice<G>>,
{
    let mut tensor = Tensor::new(formats, &Inputs::random(3, 1030));
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let context = stream.context();
    let mut p = upload(context, tensor.param.typed::<P>().unwrap());
    let mut g = upload(context, tensor.grad.typed::<G>().unwrap());
    let floats = |tensor: &Tensor| tensor.buffers()[2..].iter().map(|&values| values.clone()).collect::<Vec<_>>();
    let mut slices: Vec<_> =
        floats(&tensor).iter().map(|values| upload(context, values.typed::<f32>().unwrap())).collect();
    assert_eq!(slices.len(), 2 + usize::from(formats.master.is_some()));
    let [m, v, master @ ..] = &mut slices[..] else { unreachable!("a tensor has two moments") };
    let mut on_device = cuda::Tensor::new(&mut p, &g, m, v);
    if let [master] = master {
        on_device = on_device.with_master(master);
    }
    cuda::step(kernels, stream, &mut on_device, &coeffs).unwrap();
    g.stream().clone().memcpy_htod(&narrow::<G>(&[7.0; 1030]), &mut g).unwrap();
    let (found_p, found) = (copied(&p), slices.iter().map(copied).collect::<Vec<_>>());
    tensor.step_flat(&coeffs).unwrap();
    assert_eq!(read(&found_p), tensor.param.typed::<P>().unwrap());
    for (found, expected) in found.iter().zip(floats(&tensor)) {
        assert_eq!(read(found), expected.typed::<f32>().unwrap());
    }
}

/// A slice on a stream of its own.
pub(crate) fn upload<T: DeviceRepr>(context: &Arc<CudaContext>, values: &[T]) -> CudaSlice<T> {
    context.new_stream().unwrap().clone_htod(values).unwrap()
}

/// A copy on the slice's stream, which the host does not wait for: only cudarc's events order it
/// after a step.
pub(crate) fn copied<T: DeviceRepr>(slice: &impl DevicePtr<T>) -> CudaSlice<T> {
    slice.stream().clone_dtod(slice).unwrap()
}

pub(crate) fn read<T: DeviceRepr>(slice: &CudaSlice<T>) -> Vec<T> {
    let stream = slice.stream();
    let values = stream.clone_dtoh(slice).unwrap();
    stream.synchronize().unwrap();
    values
}

fn safe_steps_over_slices_wait_for_other_streams(gpu: &Gpu) {
    // SAFETY: nothing was allocated while event tracking was off.
    unsafe { gpu.context.enable_event_tracking() };
    let checks: &[fn(&Kernels, &Arc<CudaStream>, Formats)] = &for_each_variant!(check_slices, check_slices);
    assert_eq!(checks.len(), Variant::COUNT);
    Variant::all().zip(checks).for_each(|(variant, check)| check(&gpu.kernels, &gpu.stream, variant.formats()));
}

/// A step only enqueues work: it calls no driver function that could wait.
fn a_step_only_enqueues(gpu: &Gpu) {
    let mut twin = Twin::of(gpu, "bf16_bf16_master", 5000);
    let config = DualAdamConfig::default();
    gpu.prepare("bf16_bf16_master").unwrap();
    gpu.launching_only([5, 0, 5, 5, 5, 10], || {
        for step in 1..=5 {
            let coeffs = config.coeffs(step).unwrap();
            gpu.step(&twin.raw(), &coeffs).unwrap();
            twin.expect(&[coeffs]);
        }
    });
    if let Some(stand_in) = &gpu.stand_in {
        assert_eq!(stand_in.pending(), 5);
    }
    twin.assert_same(gpu, "late");
}

//! Flat steps.

use std::fmt::Debug;
use std::sync::Arc;

use bytemuck::Pod;
use dualadam::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr};
use dualadam::cuda::{self, Buffer, BufferMut, Kernels};
use dualadam::{Dtype, DualAdamConfig, Element, GradOf, HalfElement, StepCoeffs};
use testkit::data::{Inputs, SIZES, narrow};
use testkit::for_each_variant;
use testkit::laws::{self, by_cpu};
use testkit::tensor::Tensor;
use testkit::values::Values;
use testkit::variant::{Formats, Variant, formats};

use super::Body;
use super::gpu::Gpu;
use super::twin::Twin;

pub(crate) const TESTS: &[Body] = bodies!["flat":
    every_variant_and_size_has_the_bits_of_the_cpu,
    large_buffers_have_the_bits_of_the_cpu,
    every_misalignment_has_the_bits_of_the_cpu,
    special_values_have_the_bits_of_the_cpu,
    second_moments_saturate_as_on_the_cpu,
    safe_steps_over_slices_wait_for_other_streams,
    a_step_only_enqueues,
];

/// The edges of blocks, which the sizes of all backends leave out.
const EDGES: [usize; 4] = [1023, 1024, 1025, 4096];
/// The stand-in takes a second for a million elements.
const MOST_ON_THE_STAND_IN: usize = 5000;

fn sizes(gpu: &Gpu) -> impl Iterator<Item = usize> {
    let most = if gpu.stand_in.is_some() { MOST_ON_THE_STAND_IN } else { usize::MAX };
    EDGES.into_iter().chain(SIZES).filter(move |&size| size <= most)
}

/// The flat call for each tensor.
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
pub(crate) fn check_slices<P, G>(kernels: &Kernels, stream: &Arc<CudaStream>)
where
    P: Pod + DeviceRepr + Element + PartialEq + Debug,
    G: Pod + DeviceRepr + GradOf<P>,
    for<'a> BufferMut<'a>: From<&'a mut CudaSlice<P>>,
    for<'a> Buffer<'a>: From<&'a CudaSlice<G>>,
{
    let formats = Formats::new(P::DTYPE, G::DTYPE);
    let (mut tensor, coeffs) = (Tensor::new(formats, &Inputs::random(3, 1030)), coeffs());
    let (mut p, mut g, [mut m, mut v]) = slices::<P, G>(stream, &tensor);
    cuda::step(kernels, stream, &mut cuda::Tensor::new(&mut p, &g, &mut m, &mut v), &coeffs).unwrap();
    g.stream().clone().memcpy_htod(&narrow::<G>(&[7.0; 1030]), &mut g).unwrap();
    let found = (copied(&p), copied(&m), copied(&v));
    tensor.step_flat(&coeffs).unwrap();
    check_read(&found.0, &tensor.param);
    check_read(&found.1, &tensor.exp_avg);
    check_read(&found.2, &tensor.exp_avg_sq);
}

pub(crate) fn check_slices_with_master<P, G>(kernels: &Kernels, stream: &Arc<CudaStream>)
where
    P: Pod + DeviceRepr + HalfElement + PartialEq + Debug,
    G: Pod + DeviceRepr + GradOf<P>,
    for<'a> BufferMut<'a>: From<&'a mut CudaSlice<P>>,
    for<'a> Buffer<'a>: From<&'a CudaSlice<G>>,
{
    let formats = Formats::new(P::DTYPE, G::DTYPE).with_master(Dtype::F32);
    let (mut tensor, coeffs) = (Tensor::new(formats, &Inputs::random(3, 1030)), coeffs());
    let (mut p, g, [mut m, mut v]) = slices::<P, G>(stream, &tensor);
    let mut w = upload(stream.context(), tensor.master.as_mut().unwrap().floats());
    let on_device = cuda::Tensor::new(&mut p, &g, &mut m, &mut v);
    cuda::step(kernels, stream, &mut on_device.with_master(&mut w), &coeffs).unwrap();
    let found = (copied(&p), copied(&m), copied(&v), copied(&w));
    tensor.step_flat(&coeffs).unwrap();
    check_read(&found.0, &tensor.param);
    check_read(&found.1, &tensor.exp_avg);
    check_read(&found.2, &tensor.exp_avg_sq);
    check_read(&found.3, tensor.master.as_ref().unwrap());
}

type Slices<P, G> = (CudaSlice<P>, CudaSlice<G>, [CudaSlice<f32>; 2]);

/// Parameters, gradients and moments, each on a stream of its own.
fn slices<P: Pod + DeviceRepr + Element, G: Pod + DeviceRepr + Element>(
    stream: &CudaStream,
    tensor: &Tensor,
) -> Slices<P, G> {
    let context = stream.context();
    let moment = |values: &Values| upload(context, values.typed::<f32>().unwrap());
    let (p, g) = (tensor.param.typed::<P>().unwrap(), tensor.grad.typed::<G>().unwrap());
    (upload(context, p), upload(context, g), [moment(&tensor.exp_avg), moment(&tensor.exp_avg_sq)])
}

fn check_read<T: Pod + DeviceRepr + Element + PartialEq + Debug>(slice: &CudaSlice<T>, expected: &Values) {
    assert_eq!(read(slice), expected.typed::<T>().unwrap());
}

fn coeffs() -> StepCoeffs {
    DualAdamConfig::default().coeffs(1).unwrap()
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
    // SAFETY: nothing was allocated while it was off.
    unsafe { gpu.context.enable_event_tracking() };
    let checks: &[fn(&Kernels, &Arc<CudaStream>)] = &for_each_variant!(check_slices, check_slices_with_master);
    checks.iter().for_each(|check| check(&gpu.kernels, &gpu.stream));
}

/// A step is only enqueued; it waits for nothing, and the driver is asked for nothing that would.
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

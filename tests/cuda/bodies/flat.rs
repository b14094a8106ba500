//! Flat steps.

use std::sync::Arc;

use dualadam::cuda::{self, Kernels, cudarc};
use dualadam::half::{bf16, f16};
use dualadam::{DualAdamConfig, GradOf, HalfElement, StepCoeffs, cpu};

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr};

use crate::common::data::{Inputs, SIZES, configs, narrow};

use super::Body;
use super::buffers::{COMBINATIONS, Host};
use super::gpu::Gpu;

pub(crate) const TESTS: &[Body] = bodies!["flat":
    every_combination_and_size_has_the_bits_of_the_cpu,
    large_buffers_have_the_bits_of_the_cpu,
    every_misalignment_has_the_bits_of_the_cpu,
    special_values_have_the_bits_of_the_cpu,
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

/// One flat step, compared with the CPU.
pub(crate) fn check(gpu: &Gpu, mut host: Host, coeffs: &StepCoeffs, what: &str) {
    let device = host.upload(gpu);
    // SAFETY: the buffers are as long as the tensors, and nothing else uses them.
    unsafe { gpu.kernels.step_raw(&device.raw(&host), coeffs, gpu.raw_stream()) }.unwrap();
    host.step(&[*coeffs]);
    device.assert_same(gpu, &host, &format!("{what}, {} elements, offsets {:?}", host.len, host.offsets));
}

fn every_combination_and_size_has_the_bits_of_the_cpu(gpu: &Gpu) {
    let dual = DualAdamConfig::default().coeffs(2).unwrap();
    let adam = DualAdamConfig::adamw(0.1).coeffs(3).unwrap();
    for types in COMBINATIONS {
        for size in sizes(gpu) {
            let inputs = Inputs::random(size as u64, size);
            check(gpu, Host::new(types, &inputs, [0; 5], 0), &dual, &format!("{types:?} dual"));
            check(gpu, Host::new(types, &inputs, [0; 5], 0), &adam, &format!("{types:?} adam"));
        }
    }
    gpu.assert_clean();
    if let Some(stand_in) = &gpu.stand_in {
        let names: std::collections::BTreeSet<_> = stand_in.launches().into_iter().map(|launch| launch.0).collect();
        assert_eq!(names.len(), 22, "each flat kernel ran: {names:?}");
    }
}

fn large_buffers_have_the_bits_of_the_cpu(gpu: &Gpu) {
    let inputs = Inputs::random(1, 200_003);
    let coeffs = DualAdamConfig::default().coeffs(2).unwrap();
    for types in [COMBINATIONS[0], COMBINATIONS[3], COMBINATIONS[8]] {
        check(gpu, Host::new(types, &inputs, [0; 5], 0), &coeffs, &format!("{types:?}"));
    }
    gpu.assert_clean();
    if let Some(stand_in) = &gpu.stand_in {
        // Nearly all f32 accesses are of 16 bytes.
        let stats = stand_in.stats();
        assert!(stats.loads[4] > 200_000 / 4 * 7, "{stats:?}");
    }
}

fn every_misalignment_has_the_bits_of_the_cpu(gpu: &Gpu) {
    let inputs = Inputs::random(7, 261);
    let coeffs = DualAdamConfig::default().coeffs(2).unwrap();
    for types in COMBINATIONS {
        for offset in 0..=8 {
            for buffer in 0..5 {
                let mut offsets = [0; 5];
                offsets[buffer] = offset;
                check(gpu, Host::new(types, &inputs, offsets, 0), &coeffs, &format!("{types:?}"));
            }
            check(gpu, Host::new(types, &inputs, [offset; 5], 0), &coeffs, &format!("{types:?}"));
        }
        for size in 0..20 {
            let inputs = Inputs::random(7, size);
            check(gpu, Host::new(types, &inputs, [1, 2, 3, 2, 1], 0), &coeffs, &format!("{types:?}"));
            check(gpu, Host::new(types, &inputs, [3; 5], 0), &coeffs, &format!("{types:?}"));
        }
    }
}

fn special_values_have_the_bits_of_the_cpu(gpu: &Gpu) {
    let inputs = Inputs::special();
    for (index, (config, step)) in configs().into_iter().enumerate() {
        for types in COMBINATIONS {
            let host = Host::new(types, &inputs, [0; 5], 0);
            check(gpu, host, &config.coeffs(step).unwrap(), &format!("{types:?}, configuration {index}"));
        }
    }
}

/// Safe steps over cudarc's slices, each of a stream of its own, with cudarc's own ordering between them.
pub(crate) fn check_slices<P, G>(kernels: &Kernels, stream: &Arc<CudaStream>)
where
    P: bytemuck::Pod + DeviceRepr + dualadam::Element + PartialEq + std::fmt::Debug,
    G: bytemuck::Pod + DeviceRepr + GradOf<P>,
    for<'a> cuda::BufferMut<'a>: From<&'a mut CudaSlice<P>>,
    for<'a> cuda::Buffer<'a>: From<&'a CudaSlice<G>>,
{
    let inputs = Inputs::random(3, 1030);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let (mut p, g) = (narrow::<P>(&inputs.p), narrow::<G>(&inputs.grad));
    let (mut m, mut v) = (inputs.m, inputs.v);

    let context = stream.context();
    let mut device_p = upload(context, &p);
    let mut device_g = upload(context, &g);
    let (mut device_m, mut device_v) = (upload(context, &m), upload(context, &v));
    let mut tensor = cuda::Tensor::new(&mut device_p, &device_g, &mut device_m, &mut device_v);
    cuda::step(kernels, stream, &mut tensor, &coeffs).unwrap();
    device_g.stream().clone().memcpy_htod(&narrow::<G>(&[7.0; 1030]), &mut device_g).unwrap();
    let found = (copied(&device_p), copied(&device_m), copied(&device_v));
    cpu::step(&mut p, &g, &mut m, &mut v, &coeffs).unwrap();

    assert_eq!(read(&found.0), p);
    assert_eq!(read(&found.1), m);
    assert_eq!(read(&found.2), v);
}

pub(crate) fn check_slices_with_master<C, G>(kernels: &Kernels, stream: &Arc<CudaStream>)
where
    C: bytemuck::Pod + DeviceRepr + HalfElement + PartialEq + std::fmt::Debug,
    G: bytemuck::Pod + DeviceRepr + GradOf<C>,
    for<'a> cuda::BufferMut<'a>: From<&'a mut CudaSlice<C>>,
    for<'a> cuda::Buffer<'a>: From<&'a CudaSlice<G>>,
{
    let inputs = Inputs::random(3, 1030);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let (mut p, g, mut c) = (inputs.p.clone(), narrow::<G>(&inputs.grad), narrow::<C>(&inputs.p));
    let (mut m, mut v) = (inputs.m, inputs.v);

    let context = stream.context();
    let (mut device_p, mut device_c) = (upload(context, &p), upload(context, &c));
    let device_g = upload(context, &g);
    let (mut device_m, mut device_v) = (upload(context, &m), upload(context, &v));
    let tensor = cuda::Tensor::new(&mut device_c, &device_g, &mut device_m, &mut device_v);
    cuda::step(kernels, stream, &mut tensor.with_master(&mut device_p), &coeffs).unwrap();
    let found = (copied(&device_p), copied(&device_c), copied(&device_m), copied(&device_v));
    cpu::step_with_master(&mut c, &g, &mut m, &mut v, &mut p, &coeffs).unwrap();

    assert_eq!(read(&found.0), p);
    assert_eq!(read(&found.1), c);
    assert_eq!(read(&found.2), m);
    assert_eq!(read(&found.3), v);
}

/// A slice on a stream of its own.
pub(crate) fn upload<T: DeviceRepr>(context: &Arc<CudaContext>, values: &[T]) -> CudaSlice<T> {
    context.new_stream().unwrap().clone_htod(values).unwrap()
}

/// A copy on the slice's stream, which the host does not wait for: only cudarc's events order it after a step.
pub(crate) fn copied<T: DeviceRepr>(slice: &CudaSlice<T>) -> CudaSlice<T> {
    slice.try_clone().unwrap()
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
    let Gpu { kernels, stream, .. } = gpu;
    check_slices::<f32, f32>(kernels, stream);
    check_slices::<f32, bf16>(kernels, stream);
    check_slices::<f32, f16>(kernels, stream);
    check_slices::<bf16, bf16>(kernels, stream);
    check_slices::<bf16, f32>(kernels, stream);
    check_slices::<f16, f16>(kernels, stream);
    check_slices::<f16, f32>(kernels, stream);
    check_slices_with_master::<bf16, f32>(kernels, stream);
    check_slices_with_master::<bf16, bf16>(kernels, stream);
    check_slices_with_master::<f16, f32>(kernels, stream);
    check_slices_with_master::<f16, f16>(kernels, stream);
}

/// A step is only enqueued; it waits for nothing, and the driver is asked for nothing that would.
fn a_step_only_enqueues(gpu: &Gpu) {
    let mut host = Host::new(COMBINATIONS[8], &Inputs::random(1, 5000), [0; 5], 0);
    let device = host.upload(gpu);
    let config = DualAdamConfig::default();
    gpu.kernels.prepare(COMBINATIONS[8]).unwrap();
    let expected = [
        ("cuCtxGetCurrent", 5),
        ("cuLaunchKernel", 5),
        ("cuStreamGetCtx", 5),
        ("cuStreamIsCapturing", 5),
        ("cuThreadExchangeStreamCaptureMode", 10),
    ];
    gpu.calling_only(&expected, || {
        for step in 1..=5 {
            let coeffs = config.coeffs(step).unwrap();
            // SAFETY: the buffers are as long as the tensors, and nothing else uses them.
            unsafe { gpu.kernels.step_raw(&device.raw(&host), &coeffs, gpu.raw_stream()) }.unwrap();
            host.step(&[coeffs]);
        }
    });
    if let Some(stand_in) = &gpu.stand_in {
        assert_eq!(stand_in.pending(), 5);
    }
    device.assert_same(gpu, &host, "late");
}

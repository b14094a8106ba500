//! Flat steps.

use dualadam::cuda::{self, cudarc};
use dualadam::half::{bf16, f16};
use dualadam::{DualAdamConfig, GradOf, HalfElement, StepCoeffs, cpu};

use cudarc::driver::{CudaSlice, DeviceRepr};

use crate::buffers::{COMBINATIONS, Host};
use crate::common::data::{Inputs, configs, narrow};
use crate::gpu::Gpu;

const SIZES: [usize; 17] = [0, 1, 3, 4, 5, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 4095, 4096, 4097];

/// One flat step, compared with the CPU.
fn check(gpu: &Gpu, mut host: Host, coeffs: &StepCoeffs, what: &str) {
    let device = host.upload(gpu);
    // SAFETY: the stand-in checks each access.
    unsafe { gpu.kernels.step_raw(&device.raw(&host), coeffs, gpu.raw_stream()) }.unwrap();
    host.step(&[*coeffs]);
    device.assert_same(gpu, &host, &format!("{what}, {} elements, offsets {:?}", host.len, host.offsets));
}

#[test]
fn every_combination_and_size_has_the_bits_of_the_cpu() {
    let gpu = Gpu::new();
    let dual = DualAdamConfig::default().coeffs(2).unwrap();
    let adam = DualAdamConfig::adamw(0.1).coeffs(3).unwrap();
    for types in COMBINATIONS {
        for size in SIZES {
            let inputs = Inputs::random(size as u64, size);
            check(&gpu, Host::new(types, &inputs, [0; 5], 0), &dual, &format!("{types:?} dual"));
            check(&gpu, Host::new(types, &inputs, [0; 5], 0), &adam, &format!("{types:?} adam"));
        }
    }
    gpu.assert_clean();
    let names: std::collections::BTreeSet<_> = gpu.stand_in.launches().into_iter().map(|launch| launch.0).collect();
    assert_eq!(names.len(), 22, "each flat kernel ran: {names:?}");
}

#[test]
fn large_buffers_have_the_bits_of_the_cpu() {
    let gpu = Gpu::new();
    let inputs = Inputs::random(1, 200_003);
    let coeffs = DualAdamConfig::default().coeffs(2).unwrap();
    for types in [COMBINATIONS[0], COMBINATIONS[3], COMBINATIONS[8]] {
        check(&gpu, Host::new(types, &inputs, [0; 5], 0), &coeffs, &format!("{types:?}"));
    }
    gpu.assert_clean();
    // Nearly all f32 accesses are of 16 bytes.
    let stats = gpu.stand_in.stats();
    assert!(stats.loads[4] > 200_000 / 4 * 7, "{stats:?}");
}

#[test]
fn every_misalignment_has_the_bits_of_the_cpu() {
    let gpu = Gpu::new();
    let inputs = Inputs::random(7, 261);
    let coeffs = DualAdamConfig::default().coeffs(2).unwrap();
    for types in COMBINATIONS {
        for offset in 0..=8 {
            for buffer in 0..5 {
                let mut offsets = [0; 5];
                offsets[buffer] = offset;
                check(&gpu, Host::new(types, &inputs, offsets, 0), &coeffs, &format!("{types:?}"));
            }
            check(&gpu, Host::new(types, &inputs, [offset; 5], 0), &coeffs, &format!("{types:?}"));
        }
        for size in 0..20 {
            let inputs = Inputs::random(7, size);
            check(&gpu, Host::new(types, &inputs, [1, 2, 3, 2, 1], 0), &coeffs, &format!("{types:?}"));
            check(&gpu, Host::new(types, &inputs, [3; 5], 0), &coeffs, &format!("{types:?}"));
        }
    }
    gpu.assert_clean();
}

#[test]
fn special_values_have_the_bits_of_the_cpu() {
    let gpu = Gpu::new();
    let inputs = Inputs::special();
    for (index, (config, step)) in configs().into_iter().enumerate() {
        for types in COMBINATIONS {
            let host = Host::new(types, &inputs, [0; 5], 0);
            check(&gpu, host, &config.coeffs(step).unwrap(), &format!("{types:?}, configuration {index}"));
        }
    }
    gpu.assert_clean();
}

/// Safe steps over cudarc's slices, each of a stream of its own, with cudarc's own ordering between them.
fn check_slices<P, G>(gpu: &Gpu)
where
    P: bytemuck::Pod + DeviceRepr + dualadam::Element + PartialEq + std::fmt::Debug,
    G: bytemuck::Pod + DeviceRepr + GradOf<P>,
{
    let inputs = Inputs::random(3, 1030);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let (mut p, g) = (narrow::<P>(&inputs.p), narrow::<G>(&inputs.grad));
    let (mut m, mut v) = (inputs.m, inputs.v);

    let mut device_p = upload(gpu, &p);
    let mut device_g = upload(gpu, &g);
    let (mut device_m, mut device_v) = (upload(gpu, &m), upload(gpu, &v));
    let (views_m, views_v) = (&mut device_m.as_view_mut(), &mut device_v.as_view_mut());
    let params = &mut device_p.as_view_mut();
    cuda::step(&gpu.kernels, &gpu.stream, params, &device_g.as_view(), views_m, views_v, &coeffs).unwrap();
    device_g.stream().clone().memcpy_htod(&narrow::<G>(&[7.0; 1030]), &mut device_g).unwrap();
    let found = (copied(&device_p), copied(&device_m), copied(&device_v));
    cpu::step(&mut p, &g, &mut m, &mut v, &coeffs).unwrap();

    assert_eq!(read(&found.0), p);
    assert_eq!(read(&found.1), m);
    assert_eq!(read(&found.2), v);
}

fn check_slices_with_copy<C, G>(gpu: &Gpu)
where
    C: bytemuck::Pod + DeviceRepr + HalfElement + PartialEq + std::fmt::Debug,
    G: bytemuck::Pod + DeviceRepr + GradOf<f32> + GradOf<C>,
{
    let inputs = Inputs::random(3, 1030);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let (mut p, g, mut c) = (inputs.p.clone(), narrow::<G>(&inputs.grad), narrow::<C>(&inputs.p));
    let (mut m, mut v) = (inputs.m, inputs.v);

    let (mut device_p, mut device_c) = (upload(gpu, &p), upload(gpu, &c));
    let device_g = upload(gpu, &g);
    let (mut device_m, mut device_v) = (upload(gpu, &m), upload(gpu, &v));
    let (views_m, views_v) = (&mut device_m.as_view_mut(), &mut device_v.as_view_mut());
    let (masters, copy, grads) = (&mut device_p.as_view_mut(), &mut device_c.as_view_mut(), &device_g.as_view());
    cuda::step_with_copy(&gpu.kernels, &gpu.stream, masters, copy, grads, views_m, views_v, &coeffs).unwrap();
    let found = (copied(&device_p), copied(&device_c), copied(&device_m), copied(&device_v));
    cpu::step_with_copy(&mut p, &mut c, &g, &mut m, &mut v, &coeffs).unwrap();

    assert_eq!(read(&found.0), p);
    assert_eq!(read(&found.1), c);
    assert_eq!(read(&found.2), m);
    assert_eq!(read(&found.3), v);
}

/// A slice on a stream of its own.
pub(crate) fn upload<T: DeviceRepr>(gpu: &Gpu, values: &[T]) -> CudaSlice<T> {
    gpu.context.new_stream().unwrap().clone_htod(values).unwrap()
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

#[test]
fn safe_steps_over_slices_wait_for_other_streams() {
    let gpu = Gpu::new();
    // SAFETY: nothing was allocated while it was off.
    unsafe { gpu.context.enable_event_tracking() };
    check_slices::<f32, f32>(&gpu);
    check_slices::<f32, bf16>(&gpu);
    check_slices::<f32, f16>(&gpu);
    check_slices::<bf16, bf16>(&gpu);
    check_slices::<bf16, f32>(&gpu);
    check_slices::<f16, f16>(&gpu);
    check_slices::<f16, f32>(&gpu);
    check_slices_with_copy::<bf16, f32>(&gpu);
    check_slices_with_copy::<bf16, bf16>(&gpu);
    check_slices_with_copy::<f16, f32>(&gpu);
    check_slices_with_copy::<f16, f16>(&gpu);
    gpu.assert_clean();
}

/// A step is only enqueued; it waits for nothing, and the driver is asked for nothing that would.
#[test]
fn a_step_only_enqueues() {
    let gpu = Gpu::new();
    let mut host = Host::new(COMBINATIONS[8], &Inputs::random(1, 5000), [0; 5], 0);
    let device = host.upload(&gpu);
    let before = gpu.stand_in.call_list();
    let config = DualAdamConfig::default();
    for step in 1..=5 {
        let coeffs = config.coeffs(step).unwrap();
        // SAFETY: the stand-in checks each access.
        unsafe { gpu.kernels.step_raw(&device.raw(&host), &coeffs, gpu.raw_stream()) }.unwrap();
        host.step(&[coeffs]);
    }
    let mut calls = gpu.stand_in.call_list();
    calls.retain(|name, count| before.get(name) != Some(count));
    let names: Vec<_> = calls.keys().map(String::as_str).collect();
    assert_eq!(names, ["cuCtxGetCurrent", "cuLaunchKernel", "cuStreamGetCtx"]);
    assert_eq!(gpu.stand_in.pending(), 5);
    device.assert_same(&gpu, &host, "late");
    gpu.assert_clean();
}

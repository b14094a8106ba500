//! Streams and contexts that somebody else made and keeps.

use std::ffi::c_void;
use std::ptr;

use dualadam::cuda::cudarc::driver::result::stream::{self as driver_stream, StreamKind};
use dualadam::cuda::{DualAdam, Kernels, TensorList};
use dualadam::half::bf16;
use dualadam::{DualAdamConfig, TensorSpec, cpu};

use crate::common::data::Inputs;

use super::Body;
use super::buffers::{COMBINATIONS, Host};
use super::flat::{check_slices, check_slices_with_master};
use super::gpu::Gpu;
use super::lists::{Model, all_sets};

pub(crate) const TESTS: &[Body] = bodies!["streams":
    foreign_streams_are_borrowed,
    the_null_stream_and_the_threads_own_take_steps,
    kernels_work_in_a_context_of_the_callers,
];

/// A flat step and a list's on a stream that is known by its handle only.
fn check_handle(gpu: &Gpu, stream: *mut c_void) {
    let sets = all_sets();
    let mut host = Host::new(COMBINATIONS[8], &Inputs::random(1, 3000), [0; 5], 0);
    let device = host.upload(gpu);
    // SAFETY: the stream is live, the buffers are as long as the tensor, and nothing else uses them.
    unsafe { gpu.kernels.step_raw(&device.raw(&host), &sets[0], stream) }.unwrap();
    host.step(&sets);
    device.assert_same(gpu, &host, "flat");

    let mut model = Model::new(gpu, &[0, 5000, 17, 1024, 3], |i| i);
    let mut list = TensorList::new(&gpu.kernels, &model.raw()).unwrap();
    // SAFETY: as above.
    unsafe { list.step_raw(&sets, stream) }.unwrap();
    model.step(&sets);
    model.assert_same(gpu, "list");
}

/// The owner's steps on a stream that cudarc did not make.
fn check_owner(gpu: &Gpu, stream: *mut c_void) {
    // SAFETY: the stream is live, and so it is when the wrapper and all that is made with it are gone.
    let stream = unsafe { gpu.context.wrap_borrowed_stream(stream.cast()) };
    let (config, layout) = ([DualAdamConfig::default()], [TensorSpec::new(40).with_master()]);
    let mut optimizer = DualAdam::with_groups(&gpu.kernels, &stream, &config, &layout).unwrap();
    let mut on_cpu = cpu::DualAdam::with_groups(&config, &layout).unwrap();
    let (mut params, grads) = ([bf16::ONE; 40], [0.5_f32; 40]);
    let (mut device_params, device_grads) = (stream.clone_htod(&params).unwrap(), stream.clone_htod(&grads).unwrap());
    for _ in 0..3 {
        optimizer.step([(&mut device_params).into()], [Some((&device_grads).into())]).unwrap();
        on_cpu.step([(&mut params).into()], [Some((&grads).into())]).unwrap();
    }
    assert_eq!(optimizer.state().unwrap(), *on_cpu.state());
    assert_eq!(stream.clone_dtoh(&device_params).unwrap(), params);
}

fn foreign_streams_are_borrowed(gpu: &Gpu) {
    for kind in [StreamKind::NonBlocking, StreamKind::Default] {
        let stream = driver_stream::create(kind).unwrap();
        check_handle(gpu, stream.cast());
        check_owner(gpu, stream.cast());
        // SAFETY: made above, and nothing uses it any more. It is still there: nobody else has destroyed it.
        unsafe {
            driver_stream::synchronize(stream).unwrap();
            driver_stream::destroy(stream).unwrap();
        }
    }
}

fn the_null_stream_and_the_threads_own_take_steps(gpu: &Gpu) {
    /// `CU_STREAM_LEGACY` and `CU_STREAM_PER_THREAD`.
    const HANDLES: [usize; 2] = [1, 2];
    check_handle(gpu, ptr::null_mut());
    HANDLES.into_iter().for_each(|handle| check_handle(gpu, ptr::without_provenance_mut(handle)));
}

/// Kernels loaded into a context that is not the primary one, which is then the caller's to end.
fn kernels_work_in_a_context_of_the_callers(gpu: &Gpu) {
    let context = gpu.other_context();
    let kernels = Kernels::in_context(&context).unwrap();
    let stream = context.new_stream().unwrap();
    check_slices::<f32, f32>(&kernels, &stream);
    check_slices::<bf16, bf16>(&kernels, &stream);
    check_slices_with_master::<bf16, bf16>(&kernels, &stream);
    let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[3]).unwrap();
    let (mut params, grads) = (stream.clone_htod(&[1.0_f32; 3]).unwrap(), stream.clone_htod(&[1.0_f32; 3]).unwrap());
    optimizer.step([(&mut params).into()], [Some((&grads).into())]).unwrap();
    let mut expected = [1.0_f32; 3];
    let mut on_cpu = cpu::DualAdam::new(DualAdamConfig::default(), &[3]).unwrap();
    on_cpu.step([(&mut expected).into()], [Some((&[1.0_f32; 3]).into())]).unwrap();
    assert_eq!(stream.clone_dtoh(&params).unwrap(), expected);
    gpu.context.bind_to_thread().unwrap();
}

//! Streams and contexts that the caller made and keeps.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use dualadam::DualAdamConfig;
use dualadam::cuda::Kernels;
use dualadam::cuda::cudarc::driver::CudaStream;
use dualadam::cuda::cudarc::driver::result::stream::{self as driver_stream, StreamKind};
use dualadam::half::bf16;
use testkit::laws::{self, all_sets};
use testkit::variant::formats;

use super::flat::check_slices;
use super::{Body, Gpu, Models, Twin, twin};

pub(crate) const TESTS: &[Body] = bodies!["streams":
    foreign_streams_are_borrowed,
    the_null_stream_and_the_threads_own_take_steps,
    kernels_work_in_the_callers_own_context,
];

/// A flat step and a list's on a stream that is known by its handle only.
fn check_handle(gpu: &Gpu, stream: *mut c_void) {
    let sets = all_sets();
    let mut twin = Twin::of(gpu, "bf16_bf16_master", 3000);
    // SAFETY: the stream is live, the buffers are as long as the tensor, and nothing else uses
    // them.
    unsafe { gpu.kernels.step_raw(&twin.raw(), &sets[0], stream) }.unwrap();
    twin.expect(&sets);
    twin.assert_same(gpu, "flat");

    let mut twins = Twin::all(gpu, laws::mixed(&[0, 5000, 17, 1024, 3], |i| i));
    // SAFETY: as above.
    unsafe { gpu.list(&twins).step_raw(&sets, stream) }.unwrap();
    twins.iter_mut().for_each(|twin| twin.expect(&sets));
    twin::assert_all_same(gpu, &twins, "list");
}

/// The owner's steps on a stream of a context, three of them.
fn check_owner(kernels: &Kernels, stream: &Arc<CudaStream>, variant: &str) {
    let mut models = Models::new(stream, &[DualAdamConfig::default()], &[(variant, 40, 0)]);
    let mut optimizer = models.optimizer(kernels);
    (0..3).for_each(|_| models.step(&mut optimizer, |_| false));
    models.assert_same(&optimizer, "owner");
}

fn foreign_streams_are_borrowed(gpu: &Gpu) {
    for kind in [StreamKind::NonBlocking, StreamKind::Default] {
        let stream = driver_stream::create(kind).unwrap();
        check_handle(gpu, stream.cast());
        // SAFETY: the stream outlives the wrapper and everything that is made with it.
        let wrapped = unsafe { gpu.context.wrap_borrowed_stream(stream) };
        check_owner(&gpu.kernels, &wrapped, "bf16_f32_master");
        drop(wrapped);
        // SAFETY: the stream was made above, and nothing uses it any more. The wrapper has not
        // destroyed it.
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

/// Kernels loaded into a context that is not the primary one, and that the caller destroys.
fn kernels_work_in_the_callers_own_context(gpu: &Gpu) {
    let context = gpu.other_context();
    let kernels = Kernels::in_context(&context).unwrap();
    let stream = context.new_stream().unwrap();
    check_slices::<f32, f32>(&kernels, &stream, formats("f32_f32"));
    check_slices::<bf16, bf16>(&kernels, &stream, formats("bf16_bf16"));
    check_slices::<bf16, bf16>(&kernels, &stream, formats("bf16_bf16_master"));
    check_owner(&kernels, &stream, "f32_f32");
    gpu.context.bind_to_thread().unwrap();
}

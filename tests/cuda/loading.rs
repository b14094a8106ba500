//! Which kernels are loaded, and when.

use std::sync::Barrier;
use std::thread;

use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
use dualadam::cuda::{CudaError, DualAdam, Kernels, TensorList};
use dualadam::{ArgumentError, Dtype, DualAdamConfig, Formats, TensorProblem};

use crate::bodies::buffers::{COMBINATIONS, Host};
use crate::bodies::gpu::Gpu;
use crate::bodies::graphs::capture;
use crate::common::data::Inputs;
use crate::failures::{self, CODE, is_of_the_driver, stand_in};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["loading":
    only_what_is_needed_is_loaded,
    a_load_that_failed_is_tried_again,
    threads_load_once,
    a_flat_step_is_captured_once_its_kernels_are_loaded,
    the_driver_s_cache_folder_may_be_unwritable,
];

fn loads(gpu: &Gpu) -> u64 {
    stand_in(gpu).calls("cuModuleLoadDataEx")
}

fn only_what_is_needed_is_loaded() {
    let gpu = failures::gpu();
    assert_eq!(loads(&gpu), 0, "Kernels::new");
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    for (expected, types) in [(1, 0), (2, 8), (2, 0), (3, 3)] {
        let host = Host::new(COMBINATIONS[types], &Inputs::random(1, 100), [0; 5], 0);
        let device = host.upload(&gpu);
        // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
        unsafe { gpu.kernels.step_raw(&device.raw(&host), &coeffs, gpu.raw_stream()) }.unwrap();
        assert_eq!(loads(&gpu), expected, "a flat step");
        drop(TensorList::new(&gpu.kernels, &[device.raw(&host)]).unwrap());
        assert_eq!(loads(&gpu), expected, "a list of the same types");
        gpu.context.synchronize().unwrap();
    }
    let optimizer = DualAdam::new(&gpu.kernels, &gpu.stream, DualAdamConfig::default(), &[4]).unwrap();
    assert_eq!(loads(&gpu), 3, "an optimizer does not know the types of its tensors");
    let _optimizer = optimizer.into_capturable().unwrap();
    assert_eq!(loads(&gpu), 4, "what forms coefficients");
    gpu.kernels.prepare(Formats::new(Dtype::F16, Dtype::F32)).unwrap();
    assert_eq!(loads(&gpu), 5, "prepare");
    let refused = gpu.kernels.prepare(Formats::new(Dtype::F16, Dtype::Bf16));
    let Err(CudaError::Argument(ArgumentError::Tensor(error))) = refused else { panic!("{refused:?}") };
    assert!(matches!(error.problem, TensorProblem::Formats { .. }), "{error}");
    assert_eq!(loads(&gpu), 5);
}

fn a_load_that_failed_is_tried_again() {
    let gpu = failures::gpu();
    let host = Host::new(COMBINATIONS[0], &Inputs::random(1, 100), [0; 5], 0);
    let device = host.upload(&gpu);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    for function in ["cuModuleLoadDataEx", "cuModuleGetFunction"] {
        stand_in(&gpu).fail(function, 1, CODE);
        // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
        let failed = unsafe { gpu.kernels.step_raw(&device.raw(&host), &coeffs, gpu.raw_stream()) };
        assert!(is_of_the_driver(&failed.unwrap_err()), "{function}");
        stand_in(&gpu).fail(function, 1, CODE);
        assert!(is_of_the_driver(&TensorList::new(&gpu.kernels, &[device.raw(&host)]).unwrap_err()), "{function}");
    }
    gpu.assert_nothing_launched();
    // SAFETY: as above.
    unsafe { gpu.kernels.step_raw(&device.raw(&host), &coeffs, gpu.raw_stream()) }.unwrap();
    gpu.assert_clean();
}

fn threads_load_once() {
    let gpu = failures::gpu();
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let kernels = Kernels::new(0).unwrap();
                start.wait();
                kernels.prepare(Formats::new(Dtype::Bf16, Dtype::Bf16)).unwrap();
            });
        }
    });
    assert_eq!(loads(&gpu), 1);
}

fn a_flat_step_is_captured_once_its_kernels_are_loaded() {
    let gpu = failures::gpu();
    let mut host = Host::new(COMBINATIONS[0], &Inputs::random(1, 100), [0; 5], 0);
    let device = host.upload(&gpu);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    // SAFETY: the buffers are as long as the tensor, and nothing else uses them.
    let step = || unsafe { gpu.kernels.step_raw(&device.raw(&host), &coeffs, gpu.raw_stream()) };
    let refused = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || {
        let refused = step();
        assert!(matches!(refused, Err(CudaError::Captured { .. })), "{refused:?}");
        assert!(refused.unwrap_err().to_string().contains("loads its kernels"));
    });
    drop(refused);
    assert_eq!(loads(&gpu), 0);
    gpu.kernels.prepare(Formats::new(Dtype::F32, Dtype::F32)).unwrap();
    let graph = capture(&gpu.stream, CU_STREAM_CAPTURE_MODE_GLOBAL, || step().unwrap());
    (0..2).for_each(|_| graph.launch().unwrap());
    (0..2).for_each(|_| host.step(&[coeffs]));
    device.assert_same(&gpu, &host, "replayed");
    gpu.assert_clean();
}

/// The driver keeps compiled kernels in a folder where it can. Nothing here depends on that, and the library writes no file itself.
fn the_driver_s_cache_folder_may_be_unwritable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("no folder");
    std::fs::write(&file, b"").unwrap();
    // SAFETY: what else reads variables in this program does so through the standard library, which takes a lock.
    unsafe { std::env::set_var("CUDA_CACHE_PATH", &file) };
    for _ in 0..2 {
        let gpu = failures::gpu();
        gpu.kernels.prepare(Formats::new(Dtype::F32, Dtype::F32)).unwrap();
        assert_eq!(loads(&gpu), 1, "once in a process");
    }
    // SAFETY: as above.
    unsafe { std::env::remove_var("CUDA_CACHE_PATH") };
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

//! Which kernels the library loads, and when.

use std::sync::Barrier;
use std::thread;

use dualadam::cuda::{Kernels, TensorList};
use dualadam::{Dtype, DualAdamConfig, TensorSpec};
use testkit::variant::{Formats, formats};

use crate::bodies::{GLOBAL, Gpu, Twin, capture, refused};
use crate::failures::{self, CODE, is_of_the_driver};

pub(crate) const TESTS: &[(&str, fn())] = bodies!["loading":
    the_drivers_cache_folder_may_be_unwritable,
    ; on a device:
    only_what_is_needed_is_loaded,
    a_load_that_failed_is_tried_again,
    threads_load_once,
    a_flat_step_is_captured_once_its_kernels_are_loaded,
];

fn loads(gpu: &Gpu) -> u64 {
    gpu.stand_in().calls("cuModuleLoadDataEx")
}

fn only_what_is_needed_is_loaded(gpu: &Gpu) {
    assert_eq!(loads(gpu), 0, "Kernels::new");
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    for (expected, name) in [(1, "f32_f32"), (2, "bf16_bf16_master"), (2, "f32_f32"), (3, "bf16_bf16")] {
        let twin = Twin::of(gpu, name, 100);
        gpu.step(&twin.raw(), &coeffs).unwrap();
        assert_eq!(loads(gpu), expected, "a flat step");
        drop(TensorList::new(&gpu.kernels, &[twin.raw()]).unwrap());
        assert_eq!(loads(gpu), expected, "a list of the same types");
        gpu.context.synchronize().unwrap();
    }
    let optimizer = gpu.optimizer(&[TensorSpec::new(4)]).unwrap();
    assert_eq!(loads(gpu), 3, "an optimizer does not know the types of its tensors");
    let _optimizer = optimizer.into_capturable().unwrap();
    assert_eq!(loads(gpu), 4, "the module that forms coefficients");
    gpu.prepare("f16_f32").unwrap();
    assert_eq!(loads(gpu), 5, "prepare");
    let without = Formats::new(Dtype::F16, Dtype::Bf16);
    refused::formats(gpu.kernels.prepare(without), 0, without);
    assert_eq!(loads(gpu), 5);
}

fn a_load_that_failed_is_tried_again(gpu: &Gpu) {
    let twin = Twin::of(gpu, "f32_f32", 100);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    for function in ["cuModuleLoadDataEx", "cuModuleGetFunction"] {
        gpu.stand_in().fail(function, 1, CODE);
        assert!(is_of_the_driver(&gpu.step(&twin.raw(), &coeffs).unwrap_err()), "{function}");
        gpu.stand_in().fail(function, 1, CODE);
        assert!(is_of_the_driver(&TensorList::new(&gpu.kernels, &[twin.raw()]).unwrap_err()), "{function}");
    }
    gpu.assert_nothing_launched();
    gpu.step(&twin.raw(), &coeffs).unwrap();
    gpu.context.synchronize().unwrap();
}

fn threads_load_once(gpu: &Gpu) {
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let kernels = Kernels::new(0).unwrap();
                start.wait();
                kernels.prepare(formats("bf16_bf16")).unwrap();
            });
        }
    });
    assert_eq!(loads(gpu), 1);
}

fn a_flat_step_is_captured_once_its_kernels_are_loaded(gpu: &Gpu) {
    let mut twin = Twin::of(gpu, "f32_f32", 100);
    let coeffs = DualAdamConfig::default().coeffs(1).unwrap();
    let raw = twin.raw();
    let step = || gpu.step(&raw, &coeffs);
    drop(capture(&gpu.stream, GLOBAL, || {
        let error = step().unwrap_err();
        assert!(error.to_string().contains("loads its kernels"), "{error}");
        refused::captured(Err::<(), _>(error));
    }));
    assert_eq!(loads(gpu), 0);
    gpu.prepare("f32_f32").unwrap();
    let graph = capture(&gpu.stream, GLOBAL, || step().unwrap());
    (0..2).for_each(|_| graph.launch().unwrap());
    (0..2).for_each(|_| twin.expect(&[coeffs]));
    twin.assert_same(gpu, "replayed");
}

/// The driver keeps compiled kernels in a folder where it can. Nothing here depends on that, and
/// the library writes no file itself.
fn the_drivers_cache_folder_may_be_unwritable() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("no folder");
    std::fs::write(&file, b"").unwrap();
    // SAFETY: all other code in this program reads environment variables through the standard
    // library, which takes a lock.
    unsafe { std::env::set_var("CUDA_CACHE_PATH", &file) };
    for _ in 0..2 {
        let gpu = failures::gpu();
        gpu.prepare("f32_f32").unwrap();
        assert_eq!(loads(&gpu), 1, "once in a process");
    }
    // SAFETY: as above.
    unsafe { std::env::remove_var("CUDA_CACHE_PATH") };
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

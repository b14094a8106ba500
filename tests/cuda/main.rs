//! The CUDA backend, whole, without a GPU: the host layer through cudarc into a stand-in driver, which runs the embedded kernels on the
//! CPU.
//!
//! The stand-in checks every access of the kernels and every order between streams, and runs work as late as it may. The tests in
//! `bodies` also run on a real device, in `tests/cuda_device.rs`; those in `failures` need a driver that fails when it is told to.

#[cfg(target_os = "linux")]
#[macro_use]
mod bodies;
#[cfg(target_os = "linux")]
#[path = "../common/mod.rs"]
mod common;
#[cfg(target_os = "linux")]
mod failures;
#[cfg(target_os = "linux")]
mod interrupted;
#[cfg(target_os = "linux")]
mod loading;
#[cfg(target_os = "linux")]
mod waits;

#[cfg(target_os = "linux")]
fn main() {
    use libtest_mimic::{Arguments, Trial};

    let on_the_stand_in = |(name, body): bodies::Body| {
        Trial::test(name, move || {
            let gpu = failures::gpu();
            body(&gpu);
            gpu.assert_clean();
            Ok(())
        })
    };
    let failing = |&(name, test): &(&'static str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let with_failures = failures::TESTS.iter().chain(interrupted::TESTS).chain(loading::TESTS).chain(waits::TESTS);
    let trials = bodies::all().into_iter().map(on_the_stand_in).chain(with_failures.map(failing));
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// The stand-in takes libcuda's place as only Linux lets it.
#[cfg(not(target_os = "linux"))]
fn main() {}

//! The whole CUDA backend without a GPU: the host layer calls, through cudarc, a stand-in driver,
//! which runs the embedded kernels on the CPU.
//!
//! The stand-in checks every access of the kernels and every order between streams, and runs work
//! as late as a driver may. The tests in `bodies` also run on a real device, in
//! `tests/cuda_device.rs`; those in `failures` need a driver that fails when it is told to.

#[cfg(target_os = "linux")]
#[macro_use]
mod bodies;
#[cfg(target_os = "linux")]
mod capture_failures;
#[cfg(target_os = "linux")]
mod failures;
#[cfg(target_os = "linux")]
mod interrupted;
#[cfg(target_os = "linux")]
mod leaks;
#[cfg(target_os = "linux")]
mod loading;
#[cfg(target_os = "linux")]
mod waits;

#[cfg(target_os = "linux")]
fn main() {
    use libtest_mimic::{Completion, Trial};
    use std::sync::Arc;
    use testkit::device;

    // Each test makes its own device.
    let device = Ok(Arc::new(()));
    let trial = |name, test: Box<dyn FnOnce() + Send>| {
        device::trial("cuda", &device, name, |()| {
            test();
            Completion::Completed
        })
    };
    let on_the_stand_in = |(name, body): bodies::Body| trial(name, Box::new(move || failures::on_device(body)));
    let failing = |(name, test): (&'static str, fn())| {
        Trial::test(name, move || {
            test();
            Ok(())
        })
    };
    let with_failures =
        [failures::TESTS, capture_failures::TESTS, interrupted::TESTS, leaks::TESTS, loading::TESTS, waits::TESTS];
    let trials = bodies::all().into_iter().map(on_the_stand_in).chain(with_failures.concat().into_iter().map(failing));
    device::conclude(trials.collect()).exit();
}

/// The stand-in can take libcuda's place on Linux only.
#[cfg(not(target_os = "linux"))]
fn main() {}

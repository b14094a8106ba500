//! Tests that need a device: they run where there is one, and show as ignored, with the reason,
//! where there is none.

use std::env;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Completion, Conclusion, Trial};

use crate::require::is_required;

/// A test's name and what it does with the device. It fails by panicking.
pub type DeviceTest<D> = (&'static str, fn(&D));

/// Runs the tests on the device, if there is one; see [`trial`].
pub fn run<D: Send + Sync + 'static>(backend: &str, device: Result<D, String>, tests: &[DeviceTest<D>]) -> Conclusion {
    let device = device.map(Arc::new);
    let trial = |&(name, test): &DeviceTest<D>| {
        trial(backend, &device, name, move |device| {
            test(device);
            Completion::Completed
        })
    };
    conclude(tests.iter().map(trial).collect())
}

/// A test that needs a device. `test` returns whether it ran, and fails by panicking.
///
/// Where `device` is an error, the test is ignored with that reason. It fails instead if the
/// environment variable `DUALADAM_REQUIRE`, a comma-separated list, names this backend.
pub fn trial<D: Send + Sync + 'static>(
    backend: &str,
    device: &Result<Arc<D>, String>,
    name: &str,
    test: impl FnOnce(&D) -> Completion + Send + 'static,
) -> Trial {
    let (device, required) = (device.clone(), is_required(backend));
    Trial::ignorable_test(name, move || match device {
        Ok(_) if is_late() => Ok(Completion::ignored_with(NO_TIME_LEFT)),
        Ok(device) => Ok(test(&device)),
        Err(reason) if required => Err(reason.into()),
        Err(reason) => Ok(Completion::ignored_with(reason)),
    })
}

pub const NO_TIME_LEFT: &str = "no time left";

/// The time from which no test is started: the number of seconds in the environment variable
/// `DUALADAM_SECONDS` after the program's start.
static END: LazyLock<Option<Instant>> = LazyLock::new(|| {
    let seconds: f64 = env::var("DUALADAM_SECONDS").ok()?.parse().ok()?;
    Some(Instant::now() + Duration::try_from_secs_f64(seconds).ok()?)
});

/// Whether it is too late to start another test.
pub fn is_late() -> bool {
    END.is_some_and(|end| Instant::now() >= end)
}

/// Runs the tests that the command line asks for.
pub fn conclude(trials: Vec<Trial>) -> Conclusion {
    LazyLock::force(&END);
    libtest_mimic::run(&Arguments::from_args(), trials)
}

//! Tests that need a device: they run where there is one, and show as ignored, with the reason, where there is none.

use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Conclusion, Trial};

/// A test's name and what it does with the device. It fails by panicking.
pub(crate) type DeviceTest<D> = (&'static str, fn(&D));

/// Runs the tests on the device, if there is one.
///
/// Without one, `device` being the reason, every test is ignored; or fails, where the environment variable
/// `DUALADAM_REQUIRE`, a list of backends with commas between, names this backend.
pub(crate) fn run<D: Send + Sync + 'static>(
    backend: &str,
    device: Result<D, String>,
    tests: &[DeviceTest<D>],
) -> Conclusion {
    let required = is_required(backend);
    let device = device.map(Arc::new);
    let trial = |&(name, test): &DeviceTest<D>| {
        let device = device.clone();
        Trial::ignorable_test(name, move || match device {
            Ok(device) => {
                test(&device);
                Ok(Completion::Completed)
            }
            Err(reason) if required => Err(reason.into()),
            Err(reason) => Ok(Completion::ignored_with(reason)),
        })
    };
    libtest_mimic::run(&Arguments::from_args(), tests.iter().map(trial).collect())
}

fn is_required(backend: &str) -> bool {
    std::env::var("DUALADAM_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name.trim() == backend))
}

//! Parts of a benchmark that may fail without ending the others.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The start of the reason that is given for a part that failed.
const FAILED: &str = "FAILED: ";

/// The reason for a part that was left out for lack of time.
pub(crate) const NO_TIME_LEFT: &str = "no time left";

/// Runs a part of a benchmark. A panic, as for a wrong result, becomes the reason why there is no
/// result.
pub(crate) fn attempt<T>(part: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // Unwinding drops the part's buffers, and no other part uses them.
    catch_unwind(AssertUnwindSafe(part)).unwrap_or_else(|panic| Err(format!("{FAILED}{}", text(panic.as_ref()))))
}

/// Prints whether a benchmark ran out of time. `skipped` has the reasons of the parts that did not
/// run. Returns whether any part failed.
pub(crate) fn end(benchmark: &str, skipped: &[String]) -> bool {
    if skipped.iter().any(|reason| reason.ends_with(NO_TIME_LEFT)) {
        println!("the {benchmark} was cut: {NO_TIME_LEFT}");
    }
    skipped.iter().any(|reason| reason.contains(FAILED))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    // The message of a wrong result can be long.
    text.unwrap_or("it panicked").lines().next().unwrap_or_default().chars().take(200).collect()
}

//! Parts of a benchmark that may fail without ending the others.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the reason of a part that failed begins with.
const FAILED: &str = "FAILED: ";

/// The reason of a part that there was no time for.
pub(crate) const NO_TIME_LEFT: &str = "no time left";

/// Does a part of a benchmark. If it panics, as for a wrong result, that is the reason why it has
/// no result.
pub(crate) fn attempt<T>(part: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // What the part was about is dropped; the others have buffers of their own.
    catch_unwind(AssertUnwindSafe(part)).unwrap_or_else(|panic| Err(format!("{FAILED}{}", text(panic.as_ref()))))
}

/// Says whether the time was too short for all of a benchmark, whose parts had these reasons not to
/// run. Returns whether any of them failed.
pub(crate) fn end(benchmark: &str, skipped: &[String]) -> bool {
    if skipped.iter().any(|reason| reason.ends_with(NO_TIME_LEFT)) {
        println!("the {benchmark} was cut: {NO_TIME_LEFT}");
    }
    skipped.iter().any(|reason| reason.contains(FAILED))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    // A wrong result can be long.
    text.unwrap_or("it panicked").lines().next().unwrap_or_default().chars().take(200).collect()
}

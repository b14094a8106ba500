//! Parts of a benchmark that may fail without ending the others.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What the reason of a part that failed begins with.
const FAILED: &str = "FAILED: ";

/// Does a part of a benchmark. If it panics, as for a wrong result, that is the reason why it has no result.
pub(crate) fn attempt<T>(part: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // What the part was about is dropped; the others have buffers of their own.
    catch_unwind(AssertUnwindSafe(part)).unwrap_or_else(|panic| Err(format!("{FAILED}{}", text(panic.as_ref()))))
}

/// Whether any part failed, of those whose reasons these are.
pub(crate) fn has_failed(skipped: &[String]) -> bool {
    skipped.iter().any(|reason| reason.contains(FAILED))
}

fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    // A wrong result can be long.
    text.unwrap_or("it panicked").lines().next().unwrap_or_default().chars().take(200).collect()
}

//! What must be there.

/// Whether the environment variable `DUALADAM_REQUIRE`, a list of backends with commas between, names this one: its missing device is a
/// failure then.
pub(crate) fn is_required(backend: &str) -> bool {
    std::env::var("DUALADAM_REQUIRE").is_ok_and(|list| list.split(',').any(|name| name.trim() == backend))
}

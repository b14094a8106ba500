//! The backends and parts that must be tested.

/// Whether the environment variable `DUALADAM_REQUIRE`, a comma-separated list, contains this name.
/// It names backends, whose tests then fail if there is no device, and parts that are tested only
/// on request.
pub fn is_required(name: &str) -> bool {
    std::env::var("DUALADAM_REQUIRE").is_ok_and(|list| list.split(',').any(|listed| listed.trim() == name))
}

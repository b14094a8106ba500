//! What must be there.

/// Whether the environment variable `DUALADAM_REQUIRE`, a list with commas between, has this name:
/// of a backend, whose missing device is a failure then, or of a part that is tested only where it
/// is asked for.
pub fn is_required(name: &str) -> bool {
    std::env::var("DUALADAM_REQUIRE").is_ok_and(|list| list.split(',').any(|listed| listed.trim() == name))
}

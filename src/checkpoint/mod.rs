//! The state that an optimizer keeps between steps, its bytes and its file.

mod error;
#[cfg(all(feature = "files", not(target_family = "wasm")))]
mod file;
#[cfg(feature = "files")]
mod format;
mod state;

pub use error::{StateError, StateProblem};
#[cfg(feature = "files")]
pub use format::FORMAT_VERSION;
pub(crate) use state::check_moments;
pub use state::{Arrays, State};

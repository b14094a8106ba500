//! What a call returns, and the text that goes with a failure.

mod codes;
mod failure;
mod last_error;

pub(crate) use codes::c_str;
pub use codes::*;
pub(crate) use failure::Failure;
pub(crate) use last_error::border;
pub use last_error::dualadam_last_error;

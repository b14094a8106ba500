//! Steps over buffers in a CUDA device's memory, enqueued on the caller's streams.

mod control;
mod kernels;
mod list;
mod reports;

pub use control::*;
pub use kernels::*;
pub(crate) use list::List;
pub use list::*;
pub use reports::*;

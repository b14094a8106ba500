//! The structs and numbers of the C interface, and what they mean in Rust.

mod conversions;
mod numbers;
mod structs;

pub(crate) use conversions::{flag, param_and_master};
pub use numbers::*;
pub use structs::*;

//! Helpers that tests and benchmarks share. They use the library's public API only.

// The macro `for_each_variant!`, before the modules that use it.
include!(concat!(env!("OUT_DIR"), "/variants.rs"));

pub mod allocation;
pub mod bound;
pub mod contract;
pub mod data;
pub mod device;
pub mod examples;
pub mod golden;
pub mod laws;
pub mod masters;
pub mod model;
pub mod raw;
pub mod refused;
pub mod require;
pub mod state;
pub mod stats;
pub mod tensor;
pub mod values;
pub mod variant;

// Nearly every test uses these.
pub use data::Inputs;
pub use tensor::Tensor;
pub use values::Values;
pub use variant::{Formats, Variant, formats};

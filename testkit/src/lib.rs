//! What several tests and benchmarks share. No test reaches behind the library's public API through it.

pub mod bound;
pub mod contract;
pub mod data;
pub mod device;
pub mod golden;
pub mod require;

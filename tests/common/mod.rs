//! What several test files share: the golden trajectories, the contract written a second time, its error bound, inputs, devices, and
//! which of them must be there.

#![expect(dead_code, reason = "each test file uses its own part")]

pub(crate) mod bound;
pub(crate) mod contract;
pub(crate) mod data;
pub(crate) mod device;
pub(crate) mod golden;
pub(crate) mod require;

//! The native module of the Python package: objects in, addresses to the library. No arithmetic.

mod config;
mod dlpack;
mod errors;
mod layout;
mod step;
mod threads;
mod torch;

/// What the Python files of the package import.
#[pyo3::pymodule]
mod _dualadam {
    #[pymodule_export]
    use crate::config::{Config, Schedule};
    #[pymodule_export]
    use crate::step::step;
    #[pymodule_export]
    use crate::threads::use_threads;
    #[pymodule_export]
    use crate::torch::Stepper;
}

//! The native module of the Python package. It takes Python objects and passes addresses to the
//! library; it has no arithmetic.

mod config;
mod device;
mod dlpack;
mod errors;
mod layout;
mod step;
mod threads;
mod torch;

/// What the Python files of the package import.
///
/// A step follows references that lists and dicts lend, which the interpreter's lock keeps as they
/// are.
#[pyo3::pymodule(gil_used = true)]
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

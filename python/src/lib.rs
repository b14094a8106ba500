//! The native module of the Python package. It takes Python objects and passes addresses to the
//! library; it has no arithmetic.

#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::dbg_macro
)]

mod config;
mod device;
mod dlpack;
mod errors;
mod layout;
mod openmp;
mod steering;
mod step;
mod threads;
mod torch;

/// The module that the Python files of the package import.
///
/// It uses the interpreter's lock: a step borrows objects from dicts before it takes references to
/// them, and meanwhile only the lock keeps other threads from changing the dicts.
#[pyo3::pymodule(gil_used = true)]
mod _dualadam {
    #[pymodule_export]
    use crate::config::{Config, Schedule};
    #[pymodule_export]
    use crate::openmp::lacks_threads;
    #[pymodule_export]
    use crate::steering::multiplier;
    #[pymodule_export]
    use crate::step::step;
    #[pymodule_export]
    use crate::torch::Stepper;

    #[pymodule_init]
    fn init(_module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        crate::openmp::note_process();
        Ok(())
    }
}

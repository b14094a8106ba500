//! The threads of the CPU backend.

use pyo3::prelude::*;

/// Start the threads that all steps on the CPU in this process use.
///
/// Does nothing if the threads run already, or if the environment variable `RAYON_NUM_THREADS` is
/// set. Without this call, the first step starts as many threads as there are processors.
///
/// Args:
///     threads (int): how many threads.
#[pyfunction]
pub(crate) fn use_threads(threads: usize) {
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // Fails if the threads run already. They stay as they are.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

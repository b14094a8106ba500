//! The threads of the CPU backend.

use pyo3::prelude::*;

/// Starts the threads that steps on the CPU use, in the whole process.
///
/// It does nothing if they run already or if `RAYON_NUM_THREADS` is set. If no one calls it, the
/// first step starts as many threads as there are processors.
#[pyfunction]
pub(crate) fn use_threads(threads: usize) {
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // Fails if there are threads already, which stay.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

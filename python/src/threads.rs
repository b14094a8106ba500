//! The threads of the CPU backend.

use pyo3::prelude::*;

/// Makes the threads that steps on the CPU use, in the whole process, unless there are some already; `RAYON_NUM_THREADS` goes before.
///
/// Without it they are made at the first step, as many as there are processors.
#[pyfunction]
pub(crate) fn use_threads(threads: usize) {
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        // Fails where there are some: they stay.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

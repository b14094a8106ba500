//! The threads of steps on the CPU.
//!
//! The pool is the module's own. A process that was forked has none of its parent's threads, so it
//! gets a pool of its own; rayon's global pool could not be replaced.

use std::num::NonZero;
use std::process;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::available_parallelism;

use dualadam::cpu;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::openmp::{OpenMp, lacks_threads};

/// The pool of this process, or of its parent.
///
/// The lock is only taken while the interpreter's lock is held, and no Python code runs under it.
/// `os.fork` holds the interpreter's lock too, so in a child this lock is never one that a thread
/// of the parent has taken.
static POOL: Mutex<Option<Own>> = Mutex::new(None);

/// A pool, and the process that has its threads.
struct Own {
    process: u32,
    pool: Arc<ThreadPool>,
}

/// Where the work of one step on the CPU runs.
pub(crate) enum Workers {
    /// On the calling thread alone.
    Caller,
    Pool(Arc<ThreadPool>),
    /// On this many threads of torch's OpenMP library.
    OpenMp(OpenMp, usize),
}

impl Workers {
    /// The workers of a step of this many elements. Starts threads if the step needs them and this
    /// process does not have them.
    ///
    /// `threads` is called for larger steps, unless `RAYON_NUM_THREADS` is set. It gives the number
    /// of threads, or None if any pool will do.
    pub(crate) fn of(
        _py: Python<'_>,
        elements: u64,
        threads: impl FnOnce() -> PyResult<Option<usize>>,
    ) -> PyResult<Self> {
        if elements <= cpu::MAX_SEQUENTIAL {
            return Ok(Self::Caller);
        }
        match from_environment().map_or_else(threads, |threads| Ok(Some(threads)))? {
            Some(0 | 1) => Ok(Self::Caller),
            threads => pool(threads),
        }
    }

    /// As [`of`](Self::of), on the threads of torch's OpenMP library if there is one.
    ///
    /// After torch's own operations its threads spin for some milliseconds. Other threads would
    /// compete with them for the processors.
    pub(crate) fn beside_torch(
        py: Python<'_>,
        elements: u64,
        openmp: Option<OpenMp>,
        threads: impl FnOnce() -> PyResult<usize>,
    ) -> PyResult<Self> {
        match openmp.filter(|_| elements > cpu::MAX_SEQUENTIAL && from_environment().is_none()) {
            Some(openmp) if !lacks_threads() => Ok(match threads()? {
                0 | 1 => Self::Caller,
                threads => Self::OpenMp(openmp, threads),
            }),
            _ => Self::of(py, elements, || threads().map(Some)),
        }
    }

    /// Runs `work` with the interpreter detached, on the pool or the calling thread.
    pub(crate) fn run<R: Send>(&self, py: Python<'_>, work: impl FnOnce() -> R + Send) -> R {
        py.detach(|| match self {
            Self::Pool(pool) => pool.install(work),
            Self::Caller | Self::OpenMp(..) => cpu::sequential(work),
        })
    }

    /// Calls `work` once with each number below `count`. The interpreter should be detached.
    pub(crate) fn share(&self, count: usize, work: &(dyn Fn(usize) + Send + Sync)) {
        match self {
            Self::Caller => (0..count).for_each(work),
            Self::Pool(pool) => pool.install(|| (0..count).into_par_iter().with_max_len(1).for_each(work)),
            Self::OpenMp(openmp, threads) => openmp.share(*threads, count, work),
        }
    }
}

/// This process's pool, which has so many threads from now on. The interpreter must be attached.
fn pool(threads: Option<usize>) -> PyResult<Workers> {
    let mut own = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let process = process::id();
    if let Some(parents) = own.take_if(|own| own.process != process) {
        // To drop the pool would wake its threads, which this process does not have, and take locks
        // that they may have held at the fork.
        std::mem::forget(parents);
    }
    let threads = threads.map(|threads| threads.min(rayon::max_num_threads()));
    if let Some(own) = &*own
        && threads.is_none_or(|threads| threads == own.pool.current_num_threads())
    {
        return Ok(Workers::Pool(own.pool.clone()));
    }
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    let processors = || *PROCESSORS.get_or_init(|| available_parallelism().map_or(1, NonZero::get));
    let threads = threads.unwrap_or_else(processors);
    if threads == 1 {
        return Ok(Workers::Caller);
    }
    let pool = ThreadPoolBuilder::new().num_threads(threads).build().map_err(|error| {
        let text = format!("a step on the CPU must be able to start {threads} threads, it cannot: {error}");
        PyRuntimeError::new_err(text)
    })?;
    let pool = Arc::new(pool);
    *own = Some(Own { process, pool: pool.clone() });
    Ok(Workers::Pool(pool))
}

/// The number of threads that the environment asked for when the first larger step read it.
fn from_environment() -> Option<usize> {
    static THREADS: OnceLock<Option<usize>> = OnceLock::new();
    *THREADS.get_or_init(|| {
        let text = std::env::var("RAYON_NUM_THREADS").ok()?;
        text.parse().ok().filter(|&threads| threads > 0)
    })
}

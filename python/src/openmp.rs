//! Work on the threads of the OpenMP library that torch uses.
//!
//! GCC's library has the function `GOMP_parallel`, with which compiled programs start a parallel
//! region. It is part of that library's stable interface, and the libraries of LLVM and Intel have
//! it too.

use std::ffi::{c_uint, c_void};
use std::fs;
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `GOMP_parallel`: calls a function with `data` on so many threads at once, the calling one among
/// them, and returns when all calls have returned. The last argument has flags.
type Parallel = unsafe extern "C" fn(extern "C" fn(*mut c_void), *mut c_void, c_uint, c_uint);

/// The OpenMP library that torch uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenMp(Parallel);

/// The process that imported the module, if it was not made by `fork` alone.
static PROCESS: OnceLock<Option<u32>> = OnceLock::new();

/// The flag `PF_FORKNOEXEC` of Linux: the process has not executed a program since it was forked.
const FORKED: u64 = 0x40;

/// Whether the library of OpenMP may lack its threads in this process, and wait for them: they do
/// not come along when a process is forked.
#[pyo3::pyfunction]
pub(crate) fn lacks_threads() -> bool {
    PROCESS.get() != Some(&Some(process::id()))
}

/// Notes the process, when the module is imported.
pub(crate) fn note_process() {
    PROCESS.get_or_init(|| (!is_forked()).then(process::id));
}

/// Whether this process runs its parent's program, as far as the system says.
fn is_forked() -> bool {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field, in parentheses, may contain anything. The flags are the ninth.
    let flags = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & FORKED != 0)
}

/// What the threads of one region share.
struct Region<'a> {
    next: AtomicUsize,
    count: usize,
    work: &'a (dyn Fn(usize) + Send + Sync),
}

impl OpenMp {
    /// The library whose `GOMP_parallel` has this address. None for 0.
    ///
    /// # Safety
    ///
    /// - The address is 0 or that of the function, which stays loaded.
    pub(crate) unsafe fn at(parallel: usize) -> Option<Self> {
        // SAFETY: a null pointer is None of this type, and any other is the function (this
        // function's requirement).
        let parallel = unsafe { std::mem::transmute::<*const c_void, Option<Parallel>>(parallel as *const c_void) };
        parallel.map(Self)
    }

    /// Calls `work` once with each number below `count`, on at most `threads` threads.
    pub(crate) fn share(&self, threads: usize, count: usize, work: &(dyn Fn(usize) + Send + Sync)) {
        let region = Region { next: AtomicUsize::new(0), count, work };
        let threads = c_uint::try_from(threads.min(count)).unwrap_or(c_uint::MAX);
        // SAFETY: the function is `GOMP_parallel`, whose threads call `run_region` with a pointer
        // to `region`, which lives until all have returned.
        unsafe { (self.0)(run_region, (&raw const region).cast_mut().cast(), threads, 0) };
    }
}

/// What each thread of a region does. A panic ends the process, as in any function of C.
extern "C" fn run_region(region: *mut c_void) {
    // SAFETY: `OpenMp::share` gave the pointer to its region, which outlives this call, and whose
    // parts may be used by several threads.
    let region = unsafe { &*region.cast_const().cast::<Region<'_>>() };
    loop {
        let part = region.next.fetch_add(1, Ordering::Relaxed);
        if part >= region.count {
            return;
        }
        (region.work)(part);
    }
}

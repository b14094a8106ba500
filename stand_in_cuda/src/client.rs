//! For tests: opens the stand-in so that cudarc finds it as libcuda, controls it, and reads what it
//! noted.
//!
//! cudarc opens libcuda by name, `libcuda.so` first. The dynamic linker answers with a library that
//! is already loaded and has that SONAME, as the stand-in does. So it is enough to open the
//! stand-in by its full path before the first call to cudarc.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, c_char};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use libloading::Library;

use crate::exec::Stats;

/// Why the stand-in cannot be used.
#[derive(Debug, Clone)]
pub enum ClientError {
    /// The cdylib is not where cargo puts it; these places were searched.
    NotBuilt(Vec<PathBuf>),
    /// It did not load.
    NotLoaded(String),
    /// Another libcuda was loaded in this process before, and cudarc would use that.
    AnotherIsLoaded,
    /// The folder for child processes could not be made.
    Folder(String),
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotBuilt(places) => write!(f, "the stand-in libcuda is not built, searched {places:?}"),
            Self::NotLoaded(why) => write!(f, "the stand-in libcuda does not load: {why}"),
            Self::AnotherIsLoaded => write!(f, "another libcuda is loaded in this process already"),
            Self::Folder(why) => write!(f, "no folder for the stand-in libcuda: {why}"),
        }
    }
}

impl std::error::Error for ClientError {}

type Name = *const c_char;
type TextFunction = extern "C" fn(*mut u8, usize) -> usize;

/// The control functions of the loaded library.
struct Control {
    reset: extern "C" fn(),
    fail: extern "C" fn(Name, u64, i32),
    calls: extern "C" fn(Name) -> u64,
    call_list: TextFunction,
    launch_list: TextFunction,
    violations: TextFunction,
    set_driver_version: extern "C" fn(i32),
    set_attribute: extern "C" fn(i32, i32),
    set: extern "C" fn(Name, i64) -> bool,
    set_read_only: extern "C" fn(u64, usize, bool) -> bool,
    forget: extern "C" fn(u64, usize) -> bool,
    set_private: extern "C" fn(u64) -> bool,
    stats: extern "C" fn(*mut u64),
    live: extern "C" fn(Name) -> u64,
    pending: extern "C" fn() -> u64,
    run_pending: extern "C" fn(),
}

/// The environment variable with the path of the cdylib, for a program whose own build of the
/// cdylib does not load, such as a fuzzer's.
pub const LIBRARY: &str = "STAND_IN_CUDA_LIBRARY";

/// Where cargo puts the cdylib of a package that a test depends on: beside the test, or one folder
/// up or across. rustdoc puts a documentation test elsewhere, but cargo then names the folder of
/// the dependencies in the linker's search path.
fn places() -> Vec<PathBuf> {
    if let Some(given) = std::env::var_os(LIBRARY) {
        return vec![given.into()];
    }
    let name = "libstand_in_cuda.so";
    let test = std::env::current_exe().unwrap_or_default();
    let folder = test.parent().unwrap_or(Path::new("."));
    let up = folder.parent().unwrap_or(Path::new("."));
    let search_path = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let of_cargo = [folder.to_owned(), up.join("deps"), up.to_owned()].into_iter();
    of_cargo.chain(std::env::split_paths(&search_path)).map(|folder| folder.join(name)).collect()
}

fn find() -> Result<PathBuf, ClientError> {
    places().into_iter().find(|path| path.is_file()).ok_or_else(|| ClientError::NotBuilt(places()))
}

fn open(name: &OsStr) -> Result<Library, ClientError> {
    // SAFETY: the stand-in runs nothing when it is loaded. By the name of libcuda the linker may
    // find another library, which this crate does not call.
    unsafe { Library::new(name) }.map_err(|error| ClientError::NotLoaded(error.to_string()))
}

fn symbol<F: Copy>(library: &Library, name: &str) -> Result<F, ClientError> {
    // SAFETY: the library is the stand-in, and each field of `Control` has the type of the function
    // it is loaded from.
    let found = unsafe { library.get::<F>(name.as_bytes()) };
    found.map(|symbol| *symbol).map_err(|error| ClientError::NotLoaded(error.to_string()))
}

fn load() -> Result<Control, ClientError> {
    // Kept for the life of the process: cudarc holds on to it as well.
    let library: &'static Library = Box::leak(Box::new(open(find()?.as_os_str())?));
    let control = Control {
        reset: symbol(library, "stand_in_reset")?,
        fail: symbol(library, "stand_in_fail")?,
        calls: symbol(library, "stand_in_calls")?,
        call_list: symbol(library, "stand_in_call_list")?,
        launch_list: symbol(library, "stand_in_launch_list")?,
        violations: symbol(library, "stand_in_violations")?,
        set_driver_version: symbol(library, "stand_in_set_driver_version")?,
        set_attribute: symbol(library, "stand_in_set_attribute")?,
        set: symbol(library, "stand_in_set")?,
        set_read_only: symbol(library, "stand_in_set_readonly")?,
        forget: symbol(library, "stand_in_forget")?,
        set_private: symbol(library, "stand_in_set_private")?,
        stats: symbol(library, "stand_in_stats")?,
        live: symbol(library, "stand_in_live")?,
        pending: symbol(library, "stand_in_pending")?,
        run_pending: symbol(library, "stand_in_run_pending")?,
    };
    let by_name = open(OsStr::new("libcuda.so"))?;
    let reset: Result<extern "C" fn(), _> = symbol(&by_name, "stand_in_reset");
    match reset {
        Ok(reset) if reset as usize == control.reset as usize => Ok(control),
        _ => Err(ClientError::AnotherIsLoaded),
    }
}

fn control() -> Result<&'static Control, ClientError> {
    static CONTROL: OnceLock<Result<Control, ClientError>> = OnceLock::new();
    CONTROL.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// Calls with a text argument. A name with a zero byte inside becomes an empty one, which nothing
/// has.
fn named<R>(name: &str, call: impl FnOnce(Name) -> R) -> R {
    let name = CString::new(name).unwrap_or_default();
    call(name.as_ptr())
}

fn text(function: TextFunction) -> String {
    let mut buffer = vec![0u8; 1];
    loop {
        let length = function(buffer.as_mut_ptr(), buffer.len());
        if length < buffer.len() {
            buffer.truncate(length);
            return String::from_utf8_lossy(&buffer).into_owned();
        }
        buffer.resize(length + 1, 0);
    }
}

/// The stand-in, for the length of one test: tests of a process take turns, and each begins with
/// everything reset.
///
/// Make it the first thing in a test, so that contexts and buffers are dropped before it.
pub struct StandIn {
    control: &'static Control,
    _turn: MutexGuard<'static, ()>,
}

impl StandIn {
    /// Waits for the turn, loads the stand-in if this is the first, and resets it.
    ///
    /// # Errors
    ///
    /// When the stand-in is not built or does not load, or when the process has opened another
    /// libcuda before.
    pub fn start() -> Result<Self, ClientError> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let control = control()?;
        (control.reset)();
        Ok(Self { control, _turn: turn })
    }

    /// Makes the `nth` call (1: the next) of a driver function fail with a code, before it does
    /// anything. `"*"` counts the calls of all functions. `"execute"` counts executed tasks, and
    /// its code stays, as after a lost device.
    pub fn fail(&self, function: &str, nth: u64, code: i32) {
        named(function, |name| (self.control.fail)(name, nth, code));
    }

    /// How often a driver function was called, including the calls that were made to fail. `"*"`
    /// counts all functions.
    pub fn calls(&self, function: &str) -> u64 {
        named(function, |name| (self.control.calls)(name))
    }

    /// All driver functions called, and how often.
    pub fn call_list(&self) -> BTreeMap<String, u64> {
        let parse = |line: &str| line.split_once(' ').map(|(name, n)| (name.to_owned(), n.parse().unwrap_or(0)));
        text(self.control.call_list).lines().filter_map(parse).collect()
    }

    /// The kernels that ran, in order: name, blocks, threads a block.
    pub fn launches(&self) -> Vec<(String, u64, u64)> {
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let name = words.next()?.to_owned();
            Some((name, words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        text(self.control.launch_list).lines().filter_map(parse).collect()
    }

    /// The violations so far: faults of kernels, missing order between streams, uses of freed or
    /// destroyed objects.
    pub fn violations(&self) -> Vec<String> {
        text(self.control.violations).lines().map(str::to_owned).collect()
    }

    /// The version that `cuDriverGetVersion` returns, 12080 for CUDA 12.8; it decides which PTX
    /// loads.
    pub fn set_driver_version(&self, version: i32) {
        (self.control.set_driver_version)(version);
    }

    /// A device attribute, by its `CUdevice_attribute` number: 75 and 76 are the compute
    /// capability, 115 memory pools.
    pub fn set_attribute(&self, number: i32, value: i32) {
        (self.control.set_attribute)(number, value);
    }

    /// `devices`, `total_memory`, `patience` or `check_order`; see the README. Returns whether
    /// there is such a setting.
    pub fn set(&self, setting: &str, value: i64) -> bool {
        named(setting, |name| (self.control.set)(name, value))
    }

    /// Forbids writes to device memory, or allows them again. Returns whether it lies in an
    /// allocation.
    pub fn set_read_only(&self, address: u64, bytes: usize, read_only: bool) -> bool {
        (self.control.set_read_only)(address, bytes, read_only)
    }

    /// Makes device memory count as never written. Returns whether it lies in an allocation.
    pub fn forget(&self, address: u64, bytes: usize) -> bool {
        (self.control.forget)(address, bytes)
    }

    /// Lets only launches of graphs touch the allocation at an address, like memory of a graph's
    /// private pool, which PyTorch's allocator hands out during a capture: outside of the graph its
    /// content is undefined or another graph's. Returns whether there is an allocation.
    pub fn set_private(&self, address: u64) -> bool {
        (self.control.set_private)(address)
    }

    /// What all launches together did.
    pub fn stats(&self) -> Stats {
        let mut numbers = [0u64; 12];
        (self.control.stats)(numbers.as_mut_ptr());
        let mut stats = Stats { instructions: numbers[0], threads: numbers[1], ..Stats::default() };
        stats.loads.copy_from_slice(&numbers[2..7]);
        stats.stores.copy_from_slice(&numbers[7..12]);
        stats
    }

    /// How many objects of a kind there are: `memory`, `pinned`, `context`, `stream`, `event`,
    /// `module`, `graph`, `graph_exec`.
    pub fn live(&self, kind: &str) -> u64 {
        named(kind, |name| (self.control.live)(name))
    }

    /// Tasks that were submitted and have not run.
    pub fn pending(&self) -> u64 {
        (self.control.pending)()
    }

    /// Runs everything pending, as a device might at any time, without the host waiting for it.
    pub fn run_pending(&self) {
        (self.control.run_pending)();
    }
}

/// A folder with the stand-in under the names of libcuda, for the `LD_LIBRARY_PATH` of a child
/// process.
///
/// # Errors
///
/// When the stand-in is not built or the folder cannot be written.
pub fn library_folder() -> Result<PathBuf, ClientError> {
    let library = find()?;
    let folder = library.with_file_name("stand_in_libcuda");
    let failed = |error: std::io::Error| ClientError::Folder(error.to_string());
    std::fs::create_dir_all(&folder).map_err(failed)?;
    for name in ["libcuda.so", "libcuda.so.1"] {
        // Written beside and renamed: another test may be reading the old one.
        let fresh = folder.join(format!("{name}.{}", std::process::id()));
        std::fs::copy(&library, &fresh).map_err(failed)?;
        std::fs::rename(&fresh, folder.join(name)).map_err(failed)?;
    }
    Ok(folder)
}

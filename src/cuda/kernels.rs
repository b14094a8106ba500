//! The kernels in a context: shared by all that launch them, and loaded when they are first needed.

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUcontext, CUfunction, CUjit_option, CUmodule};

use crate::combination::Variant;
use crate::{Dtype, Error};

use super::checks::check_capture;
use super::driver::{self, Current, Held, check, keeping_current};
use super::memory::Pool;

// `MODULES` and `CONTROL`, the texts that the build embedded. The driver compiles them for the device.
include!(concat!(env!("OUT_DIR"), "/modules.rs"));
const PTX_ORIGIN: &str = env!("DUALADAM_PTX_ORIGIN");

/// Bytes for what the driver's compiler has to say.
const LOG_BYTES: usize = 16 << 10;

/// The kernels in a CUDA context. Cheap to clone.
///
/// There is a module of kernels for each combination of types. The driver compiles it when a list or a flat step first needs it, or
/// when [`prepare`](Self::prepare) asks for it, which takes a moment. A module stays loaded until the context ends, so that a CUDA
/// graph may outlive the kernels that it captured.
///
/// Keep a clone for as long as you need kernels, or a graph with steps. After the last clone is dropped, new kernels in the same context
/// are compiled again, and memory that a graph still uses stays allocated until the context ends. That last drop may wait for the
/// device; on a device without memory pools it waits for the last steps. No other drop waits.
///
/// Every call leaves the calling thread's current context as it found it.
///
/// # Example
///
/// ```no_run
/// use dualadam::cuda::Kernels;
///
/// let kernels = Kernels::new(0)?;
/// let same = kernels.clone();
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Kernels {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    functions: [OnceLock<Functions>; Variant::COUNT],
    prepare_sets: OnceLock<Function>,
    /// Who loads a module has it, so that nobody loads it as well.
    loading: Mutex<()>,
    pool: Pool,
    context: Held<CudaContext>,
}

/// A kernel that is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(CUfunction);

// SAFETY: a function is a handle, which any thread may use once its context is current there.
unsafe impl Send for Function {}
// SAFETY: as above; nothing changes it after it was loaded.
unsafe impl Sync for Function {}

impl Function {
    pub(super) fn handle(self) -> CUfunction {
        self.0
    }
}

/// The kernels of one variant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Functions {
    pub(super) dual_adam: Function,
    pub(super) adam: Function,
    pub(super) list: Function,
}

/// What is made in which context, by the address of its handle, so that no context has it twice.
static MADE: Mutex<Made> = Mutex::new(Vec::new());

type Made = Vec<(usize, Weak<Inner>)>;

fn made() -> MutexGuard<'static, Made> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernels {
    /// The kernels in the primary context of a device, which the CUDA runtime, PyTorch and most other programs use as well.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`] where libcuda is missing, [`Error::StubDriver`], [`Error::OldDriver`], [`Error::Position`] if there is no such
    /// device, and [`Error::Driver`] for anything else that the driver reports.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        driver::start()?;
        let len = driver::device_count()?;
        if ordinal >= len {
            return Err(Error::Position { list: "device", len, value: ordinal });
        }
        keeping_current(|| {
            let context = CudaContext::new(ordinal).map_err(|error| driver::failed("CudaContext::new", error))?;
            Self::share(Held::new(context))
        })
    }

    /// The kernels in a context of the caller's.
    ///
    /// # Errors
    ///
    /// [`Error::OldDriver`] and [`Error::Driver`], as for [`new`](Self::new).
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::cuda::{Kernels, cudarc::driver::CudaContext};
    ///
    /// let context = CudaContext::new(0)?;
    /// let kernels = Kernels::in_context(&context)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_context(context: &Arc<CudaContext>) -> Result<Self, Error> {
        driver::start()?;
        Self::share(Held::new(context.clone()))
    }

    /// The kernels in the context that is current in the calling thread, whoever made it. The context stays its owner's.
    ///
    /// A current context that is the primary one of its device is retained, as by [`new`](Self::new). Of any other the kernels keep
    /// the handle only.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new); [`Error::Driver`] with `CUDA_ERROR_INVALID_CONTEXT` where no context is current.
    ///
    /// # Safety
    ///
    /// A current context that is not a primary one must not be destroyed before all clones of these kernels, and all that was made
    /// from them, are dropped.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::cuda::Kernels;
    ///
    /// // SAFETY: the program that embeds this one makes its context current, and keeps it to its end.
    /// let kernels = unsafe { Kernels::in_current_context()? };
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn in_current_context() -> Result<Self, Error> {
        driver::start()?;
        let current = driver::current()?;
        let device = driver::current_device()?;
        let failed = |error| driver::failed("CudaContext::from_raw_context", error);
        if let Some(kernels) = Self::find(current, &mut made()) {
            return Ok(kernels);
        }
        keeping_current(|| {
            if driver::primary_is_active(device)?
                && let Ok(primary) = CudaContext::new(device as usize).map(Held::new)
                && primary.cu_ctx() == current
            {
                return Self::share(primary);
            }
            // SAFETY: the context is valid, since it is current, and of this device. The caller keeps it while it is in use (this
            // function's requirement). cudarc never destroys it, since one reference is never dropped.
            let context = unsafe { CudaContext::from_raw_context(device as usize, device, current) }.map_err(failed)?;
            std::mem::forget(context.clone());
            Self::share(Held::new(context))
        })
    }

    /// Those of a context that are there already, or new ones.
    fn share(context: Held<CudaContext>) -> Result<Self, Error> {
        let mut made = made();
        if let Some(kernels) = Self::find(context.cu_ctx(), &mut made) {
            return Ok(kernels);
        }
        let pool = {
            let _current = Current::enter(&context)?;
            Pool::new(&context)?
        };
        let (functions, prepare_sets) = (Default::default(), OnceLock::new());
        let inner = Arc::new(Inner { functions, prepare_sets, loading: Mutex::default(), pool, context });
        made.push((inner.context.cu_ctx().addr(), Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Those of a context that are there already.
    fn find(context: CUcontext, made: &mut Made) -> Option<Self> {
        made.retain(|(_, inner)| inner.strong_count() > 0);
        let (_, inner) = made.iter().find(|(made_in, _)| *made_in == context.addr())?;
        inner.upgrade().map(|inner| Self { inner })
    }

    /// Loads ahead the kernels of a combination of types: all that flat steps and lists of it need. A flat step that is captured in a
    /// CUDA graph needs that, unless a step or a list with these types came before.
    ///
    /// # Errors
    ///
    /// [`Error::Types`] for a combination without kernels, [`Error::Ptx`] if the driver refuses them, such as for a device older than
    /// compute capability 7.5, and [`Error::Driver`] for anything else that the driver reports. The next call tries again then.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::Dtype;
    /// use dualadam::cuda::Kernels;
    ///
    /// let kernels = Kernels::new(0)?;
    /// kernels.prepare(Dtype::Bf16, Dtype::Bf16, None)?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn prepare(&self, params: Dtype, grads: Dtype, copy: Option<Dtype>) -> Result<(), Error> {
        self.functions(Variant::of(0, params, grads, copy)?).map(|_| ())
    }

    /// Whether what is enqueued on `stream`, which is null or a `CUstream`, goes into a CUDA graph.
    ///
    /// # Errors
    ///
    /// [`Error::Context`] for a stream of another context, and [`Error::Driver`] for what the driver reports: a capture that has failed,
    /// or for the null stream, that a stream which waits for it is being captured.
    ///
    /// # Safety
    ///
    /// `stream` is null or a live stream.
    pub unsafe fn is_captured(&self, stream: *mut c_void) -> Result<bool, Error> {
        let _current = self.enter()?;
        // SAFETY: the stream is live, as this function requires, and the context is current.
        unsafe { check_capture(self, stream) }
    }

    /// The context of the kernels: the `CudaContext` value that they were first made with, where there are several for one context.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.inner.context
    }

    /// The kernels of a variant, if they are loaded.
    pub(super) fn loaded(&self, variant: Variant) -> Option<&Functions> {
        self.inner.functions[variant.index()].get()
    }

    /// The kernels of a variant, which are loaded if they are not yet.
    pub(super) fn functions(&self, variant: Variant) -> Result<&Functions, Error> {
        let name = variant.name();
        self.load(&self.inner.functions[variant.index()], MODULES[variant.index()], |module| {
            let function = |kind: &str| module.function(&format!("{kind}_{name}"));
            Ok(Functions { dual_adam: function("dual_adam")?, adam: function("adam")?, list: function("list")? })
        })
    }

    /// The kernel that prepares the sets of controlled steps, which is loaded if it is not yet.
    pub(super) fn prepare_sets(&self) -> Result<Function, Error> {
        self.load(&self.inner.prepare_sets, CONTROL, |module| module.function("prepare_sets")).copied()
    }

    /// What `find` finds in a module, which is loaded once.
    fn load<'a, T>(
        &self,
        found: &'a OnceLock<T>,
        ptx: &str,
        find: impl FnOnce(&Module) -> Result<T, Error>,
    ) -> Result<&'a T, Error> {
        if let Some(found) = found.get() {
            return Ok(found);
        }
        let _loading = self.inner.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = found.get() {
            return Ok(found);
        }
        let _current = self.enter()?;
        let new = find(&Module::load(ptx)?)?;
        Ok(found.get_or_init(|| new))
    }

    /// The memory of the kernels' context.
    pub(super) fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    /// Makes the kernels' context current, and the thread's calls harmless to captures, for as long as the result lives.
    pub(super) fn enter(&self) -> Result<Current, Error> {
        Current::enter(self.context())
    }
}

/// A module in the current context. It is never unloaded, which could block until the device is idle.
#[derive(Debug)]
struct Module(CUmodule);

impl Module {
    /// Loads a module from its text, which is one of the build's. Its context must be current.
    fn load(ptx: &str) -> Result<Self, Error> {
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES)];
        let mut handle = ptr::null_mut();
        // SAFETY: the text ends in a zero byte, as the build's do; each option has its value, of the type that the driver asks for (an address, and a
        // number in place of an address); all of it outlives the call.
        let answer = unsafe {
            let (count, options, values) = (options.len() as u32, options.as_mut_ptr(), values.as_mut_ptr());
            sys::cuModuleLoadDataEx(&mut handle, ptx.as_ptr().cast(), count, options, values)
        };
        match answer.result() {
            Ok(()) => Ok(Self(handle)),
            Err(error) => {
                let log = CStr::from_bytes_until_nul(&log).map_or("".into(), CStr::to_string_lossy);
                let log = if log.trim().is_empty() { "it gave no reason" } else { log.trim() }.to_owned();
                Err(Error::Ptx { code: error.0 as i32, name: driver::name_of(error), origin: PTX_ORIGIN, log })
            }
        }
    }

    fn function(&self, name: &str) -> Result<Function, Error> {
        let mut function = ptr::null_mut();
        // No name has a zero byte; an empty one would not be found.
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded and the name is a C string.
        let answer = unsafe { sys::cuModuleGetFunction(&mut function, self.0, name.as_ptr()) };
        check("cuModuleGetFunction", answer)?;
        Ok(Function(function))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_variant_has_a_module_with_its_kernels() {
        for variant in Variant::all() {
            let (name, ptx) = (variant.name(), MODULES[variant.index()]);
            for kind in ["dual_adam", "adam", "list"] {
                assert!(ptx.contains(&format!(".entry {kind}_{name}(")), "{kind}_{name}");
            }
            assert!(ptx.ends_with('\0'));
        }
        assert!(CONTROL.contains(".entry prepare_sets(") && CONTROL.ends_with('\0'));
    }
}

//! The kernels in a context: loaded once, shared by all that launch them.

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUfunction, CUjit_option, CUmodule};

use crate::Error;
use crate::combination::Combination;

use super::checks::check_capture;
use super::driver::{self, Current, Held, check, keeping_current};
use super::memory::Pool;

/// The text that the build embedded. The driver compiles it for the device.
const PTX: &str = concat!(include_str!(concat!(env!("OUT_DIR"), "/dual_adam.ptx")), "\0");
const PTX_ORIGIN: &str = env!("DUALADAM_PTX_ORIGIN");

/// Bytes for what the driver's compiler has to say.
const LOG_BYTES: usize = 16 << 10;

/// The kernels, loaded into a CUDA context. Cheap to clone.
///
/// They are loaded once per context: the driver compiles them when the first [`Kernels`] of a context is made, which may take a
/// moment, and unloads them with the last clone. No later call loads anything, so that all can be captured in a CUDA graph.
///
/// A graph that was captured needs a clone to live as long as it is launched.
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
    functions: [Functions; Combination::COUNT],
    control: ControlFunctions,
    module: Module,
    pool: Pool,
}

/// The kernels that run before lists whose steps are controlled on the device.
#[derive(Debug, Clone, Copy)]
pub(super) struct ControlFunctions {
    pub(super) prepare_sets: CUfunction,
    pub(super) set_masters_bf16: CUfunction,
    pub(super) set_masters_f16: CUfunction,
}

/// The kernels of one combination of element types.
#[derive(Debug, Clone, Copy)]
pub(super) struct Functions {
    pub(super) dual_adam: CUfunction,
    pub(super) adam: CUfunction,
    pub(super) list: CUfunction,
}

// SAFETY: functions and modules are handles, which any thread may use once their context is current there.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing changes them after they were loaded.
unsafe impl Sync for Inner {}

/// What is loaded, so that no context has it twice.
static LOADED: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

impl Kernels {
    /// The kernels in the primary context of a device, which the CUDA runtime, PyTorch and most other programs use as well.
    ///
    /// # Errors
    ///
    /// [`Error::NoDriver`] where libcuda is missing, [`Error::OldDriver`], [`Error::Position`] if there is no such device,
    /// [`Error::Ptx`] if the driver refuses the kernels, such as for a device older than compute capability 7.5, and
    /// [`Error::Driver`] for anything else that the driver reports.
    pub fn new(ordinal: usize) -> Result<Self, Error> {
        driver::start()?;
        let len = driver::device_count()?;
        if ordinal >= len {
            return Err(Error::Position { list: "device", len, value: ordinal });
        }
        keeping_current(|| {
            let context = CudaContext::new(ordinal).map_err(|error| driver::failed("CudaContext::new", error))?;
            Self::load(Held::new(context))
        })
    }

    /// The kernels in a context of the caller's.
    ///
    /// # Errors
    ///
    /// [`Error::OldDriver`], [`Error::Ptx`] and [`Error::Driver`], as for [`new`](Self::new).
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
        Self::load(Held::new(context.clone()))
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
        keeping_current(|| {
            if driver::primary_is_active(device)? {
                let kernels = Self::new(device as usize)?;
                if kernels.context().cu_ctx() == current {
                    return Ok(kernels);
                }
            }
            // SAFETY: the context is valid, since it is current, and of this device. That it is not destroyed while it is in use is
            // the caller's promise, and that it is never destroyed by cudarc is what the reference that is never dropped is for.
            let context = unsafe { CudaContext::from_raw_context(device as usize, device, current) }.map_err(failed)?;
            std::mem::forget(context.clone());
            Self::load(Held::new(context))
        })
    }

    fn load(context: Held<CudaContext>) -> Result<Self, Error> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.retain(|inner| inner.strong_count() > 0);
        let of_this_context = |inner: &Arc<Inner>| inner.module.context.cu_ctx() == context.cu_ctx();
        if let Some(inner) = loaded.iter().filter_map(Weak::upgrade).find(of_this_context) {
            return Ok(Self { inner });
        }
        let module = Module::load(context)?;
        let none = Functions { dual_adam: ptr::null_mut(), adam: ptr::null_mut(), list: ptr::null_mut() };
        let mut functions = [none; Combination::COUNT];
        for combination in Combination::all() {
            functions[combination.index()] = module.functions(combination)?;
        }
        let control = ControlFunctions {
            prepare_sets: module.function("prepare_sets")?,
            set_masters_bf16: module.function("set_masters_bf16")?,
            set_masters_f16: module.function("set_masters_f16")?,
        };
        let pool = {
            let _current = Current::enter(&module.context)?;
            Pool::new(&module.context)?
        };
        let inner = Arc::new(Inner { functions, control, module, pool });
        loaded.push(Arc::downgrade(&inner));
        Ok(Self { inner })
    }

    /// Whether what is enqueued on `stream`, which is null or a `CUstream`, goes into a CUDA graph.
    ///
    /// # Errors
    ///
    /// [`Error::Context`] for a stream of another context, and [`Error::Driver`] for what the driver reports.
    ///
    /// # Safety
    ///
    /// `stream` is null or a live stream.
    pub unsafe fn is_captured(&self, stream: *mut c_void) -> Result<bool, Error> {
        let _current = self.enter()?;
        // SAFETY: the stream is live, as this function requires, and the context is current.
        unsafe { check_capture(self, stream) }
    }

    /// The context that the kernels are loaded into: the `CudaContext` value that they were first loaded with, where there are several for
    /// one context.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.inner.module.context
    }

    pub(super) fn functions(&self, combination: Combination) -> &Functions {
        &self.inner.functions[combination.index()]
    }

    pub(super) fn control_functions(&self) -> &ControlFunctions {
        &self.inner.control
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

#[derive(Debug)]
struct Module {
    handle: CUmodule,
    context: Held<CudaContext>,
}

impl Module {
    fn load(context: Held<CudaContext>) -> Result<Self, Error> {
        let _current = Current::enter(&context)?;
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(LOG_BYTES)];
        let mut handle = ptr::null_mut();
        // SAFETY: the text ends in a zero byte; each option has its value, of the type that the driver asks for (an address, and a
        // number in place of an address); all of it outlives the call.
        let answer = unsafe {
            let (count, options, values) = (options.len() as u32, options.as_mut_ptr(), values.as_mut_ptr());
            sys::cuModuleLoadDataEx(&mut handle, PTX.as_ptr().cast(), count, options, values)
        };
        match answer.result() {
            Ok(()) => Ok(Self { handle, context }),
            Err(error) => {
                let log = CStr::from_bytes_until_nul(&log).map_or("".into(), CStr::to_string_lossy);
                let log = if log.trim().is_empty() { "it gave no reason" } else { log.trim() }.to_owned();
                Err(Error::Ptx { code: error.0 as i32, name: driver::name_of(error), origin: PTX_ORIGIN, log })
            }
        }
    }

    fn functions(&self, combination: Combination) -> Result<Functions, Error> {
        let function = |kind: &str| self.function(&format!("{kind}_{}", combination.name()));
        Ok(Functions { dual_adam: function("dual_adam")?, adam: function("adam")?, list: function("list")? })
    }

    fn function(&self, name: &str) -> Result<CUfunction, Error> {
        let _current = Current::enter(&self.context)?;
        let mut function = ptr::null_mut();
        // No name has a zero byte; an empty one would not be found.
        let name = CString::new(name).unwrap_or_default();
        // SAFETY: the module is loaded and the name is a C string.
        let answer = unsafe { sys::cuModuleGetFunction(&mut function, self.handle, name.as_ptr()) };
        check("cuModuleGetFunction", answer)?;
        Ok(function)
    }
}

//! The kernels in a context: shared by all that launch them, and loaded when they are first needed.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUcontext;

use crate::tensor::{Formats, ListError, TensorError, TensorProblem, Variant};

use super::driver::{self, Current, Held, keeping_current};
use super::error::CudaError;
use super::module::{Function, Functions, load_prepare_sets};
use super::pool::Pool;
use super::stream::check_capture;

/// The kernels in a CUDA context. Cheap to clone.
///
/// There is a module of kernels for each [variant](Variant). The driver compiles it when a list or
/// a flat step first needs it, or when [`prepare`](Self::prepare) asks for it, which takes a
/// moment. A module stays loaded until the context ends, so that a CUDA graph may outlive the
/// kernels that it captured.
///
/// Keep a clone for as long as you need kernels, or a graph with steps. After the last clone is
/// dropped, new kernels in the same context are compiled again, and memory that a graph still uses
/// stays allocated until the context ends. That last drop may wait for the device; on a device
/// without memory pools it waits for the last steps. No other drop waits.
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
    /// Held while a module is loaded, so that no other thread loads it as well.
    loading: Mutex<()>,
    pool: Arc<Pool>,
}

/// What is made in which context, by the address of its handle, so that no context has it twice.
static MADE: Mutex<Made> = Mutex::new(Vec::new());

type Made = Vec<(usize, Weak<Inner>)>;

fn made() -> MutexGuard<'static, Made> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernels {
    /// The kernels in the primary context of a device, which the CUDA runtime, PyTorch and most
    /// other programs use as well.
    ///
    /// # Errors
    ///
    /// - [`CudaError::NoDriver`] where libcuda is missing.
    /// - [`CudaError::StubDriver`] or [`CudaError::OldDriver`] for a driver that cannot do it.
    /// - [`ListError::Position`] if there is no such device.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    pub fn new(ordinal: usize) -> Result<Self, CudaError> {
        driver::start()?;
        let len = driver::device_count()?;
        if ordinal >= len {
            return Err(ListError::Position { list: "device", len, value: ordinal }.into());
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
    /// - [`CudaError::OldDriver`] and [`CudaError::Driver`], as for [`new`](Self::new).
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
    pub fn in_context(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        driver::start()?;
        Self::share(Held::new(context.clone()))
    }

    /// The kernels in the context that is current in the calling thread, whoever made it. The
    /// context stays its owner's.
    ///
    /// A current context that is the primary one of its device is retained, as by
    /// [`new`](Self::new). Of any other the kernels keep only the handle.
    ///
    /// # Errors
    ///
    /// - As [`new`](Self::new).
    /// - [`CudaError::Driver`] with `CUDA_ERROR_INVALID_CONTEXT` where no context is current.
    ///
    /// # Safety
    ///
    /// - A current context that is not a primary one must not be destroyed before all clones of
    ///   these kernels, and all that was made from them, are dropped.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::cuda::Kernels;
    ///
    /// // SAFETY: the program around this one made its context current, and keeps it to its end.
    /// let kernels = unsafe { Kernels::in_current_context()? };
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn in_current_context() -> Result<Self, CudaError> {
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
            // SAFETY: the context is valid, since it is current, and of this device. The caller
            // keeps it while it is in use (this function's requirement). cudarc never destroys it,
            // since one reference is never dropped.
            let context = unsafe { CudaContext::from_raw_context(device as usize, device, current) }.map_err(failed)?;
            std::mem::forget(context.clone());
            Self::share(Held::new(context))
        })
    }

    /// Those of a context that are there already, or new ones.
    fn share(context: Held<CudaContext>) -> Result<Self, CudaError> {
        let mut made = made();
        if let Some(kernels) = Self::find(context.cu_ctx(), &mut made) {
            return Ok(kernels);
        }
        let pool = Arc::new(Pool::new(&context)?);
        let (functions, prepare_sets) = (Default::default(), OnceLock::new());
        let inner = Arc::new(Inner { functions, prepare_sets, loading: Mutex::default(), pool });
        made.push((context.cu_ctx().addr(), Arc::downgrade(&inner)));
        Ok(Self { inner })
    }

    /// Those of a context that are there already.
    fn find(context: CUcontext, made: &mut Made) -> Option<Self> {
        made.retain(|(_, inner)| inner.strong_count() > 0);
        let (_, inner) = made.iter().find(|(made_in, _)| *made_in == context.addr())?;
        inner.upgrade().map(|inner| Self { inner })
    }

    /// Loads ahead the kernels of the variant with these formats: all that flat steps and lists of
    /// it need.
    ///
    /// A flat step that is captured in a CUDA graph needs that, unless a step or a list of the
    /// variant came before.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::Formats`] for formats without kernels.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels, such as for a device older than
    ///   compute capability 7.5.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// The next call tries again then.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::cuda::Kernels;
    /// use dualadam::{Dtype, Formats};
    ///
    /// let kernels = Kernels::new(0)?;
    /// kernels.prepare(Formats::new(Dtype::Bf16, Dtype::Bf16).with_master(Dtype::F32))?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn prepare(&self, formats: Formats) -> Result<(), CudaError> {
        let problem = TensorProblem::Formats { formats };
        let variant = Variant::of(formats).ok_or_else(|| TensorError::of_tensor(0, problem))?;
        self.functions(variant).map(|_| ())
    }

    /// Whether what is enqueued on `stream`, which is null or a `CUstream`, goes into a CUDA graph.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Context`] for a stream of another context.
    /// - [`CudaError::Driver`] for what the driver reports: a capture that has failed, or for the
    ///   null stream, that a stream which waits for it is being captured.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    pub unsafe fn is_captured(&self, stream: *mut c_void) -> Result<bool, CudaError> {
        let _current = self.enter()?;
        // SAFETY: the stream is live (this function's requirement), and the context is current.
        unsafe { check_capture(self.context(), stream) }
    }

    /// The context of the kernels: the `CudaContext` value that they were first made with, where
    /// there are several for one context.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        self.inner.pool.context()
    }

    /// The kernels of a variant, if they are loaded.
    pub(super) fn loaded(&self, variant: Variant) -> Option<&Functions> {
        self.inner.functions[variant.index()].get()
    }

    /// The kernels of a variant, which are loaded if they are not yet.
    pub(super) fn functions(&self, variant: Variant) -> Result<&Functions, CudaError> {
        self.load(&self.inner.functions[variant.index()], || Functions::load(variant))
    }

    /// The kernel that prepares the coefficients of controlled steps, which is loaded if it is not
    /// yet.
    pub(super) fn prepare_sets(&self) -> Result<Function, CudaError> {
        self.load(&self.inner.prepare_sets, load_prepare_sets).copied()
    }

    /// What `load` makes, which is loaded once.
    fn load<'a, T>(
        &self,
        loaded: &'a OnceLock<T>,
        load: impl FnOnce() -> Result<T, CudaError>,
    ) -> Result<&'a T, CudaError> {
        if let Some(loaded) = loaded.get() {
            return Ok(loaded);
        }
        let _loading = self.inner.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = loaded.get() {
            return Ok(loaded);
        }
        let _current = self.enter()?;
        let new = load()?;
        Ok(loaded.get_or_init(|| new))
    }

    /// The memory of the kernels' context.
    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.inner.pool
    }

    /// Makes the kernels' context current, and the thread's calls harmless to captures, for as long
    /// as the result lives.
    pub(super) fn enter(&self) -> Result<Current, CudaError> {
        self.inner.pool.enter()
    }
}

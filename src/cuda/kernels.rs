//! The kernels of a CUDA context: shared by all users, loaded at their first use.

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

/// The kernels in a CUDA context. A clone shares them and is cheap.
///
/// Each [variant](Variant) has a module of kernels. The driver compiles the module when a list or a
/// flat step first needs it, or in [`prepare`](Self::prepare); that takes a moment. A module stays
/// loaded until the context ends, so that a CUDA graph may outlive the `Kernels`.
///
/// Keep a clone for as long as steps are made, or graphs with steps are launched. Dropping the last
/// clone has these effects:
///
/// - New `Kernels` in the same context compile the modules again.
/// - Memory that a graph still uses stays allocated until the context ends.
/// - The drop may wait for the device. On a device without memory pools it waits for the last
///   steps. No other drop in this module waits.
///
/// Every call leaves the calling thread's current context as it was.
///
/// # Examples
///
/// ```
/// use dualadam::cuda::Kernels;
///
/// # let _gpu = testkit::stand_in_or_return!();
/// let kernels = Kernels::new(0)?;
/// let same = kernels.clone();
/// assert_eq!(same.context().cu_ctx(), kernels.context().cu_ctx());
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
    /// Held while a module is loaded, so that two threads do not load the same one.
    loading: Mutex<()>,
    pool: Arc<Pool>,
}

/// What exists for each context, by the address of the context's handle, so that a context has one.
static MADE: Mutex<Made> = Mutex::new(Vec::new());

type Made = Vec<(usize, Weak<Inner>)>;

fn made() -> MutexGuard<'static, Made> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kernels {
    /// The kernels in the primary context of the device with this ordinal, counted from 0. The CUDA
    /// runtime, PyTorch and most other programs use that context.
    ///
    /// # Errors
    ///
    /// - [`CudaError::NoDriver`] if libcuda cannot be opened.
    /// - [`CudaError::StubDriver`] if libcuda is a toolkit's stub.
    /// - [`CudaError::OldDriver`] for a driver older than CUDA 11.4.
    /// - [`ListError::Position`] if there is no such device.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{CudaError, Kernels};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// match Kernels::new(0) {
    ///     Ok(kernels) => println!("device {}", kernels.context().ordinal()),
    ///     Err(CudaError::NoDriver) => println!("no CUDA here"),
    ///     Err(error) => return Err(error.into()),
    /// }
    /// # Ok::<(), dualadam::Error>(())
    /// ```
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

    /// The kernels in a context that the caller made with cudarc.
    ///
    /// # Errors
    ///
    /// - [`CudaError::OldDriver`] for a driver older than CUDA 11.4.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{Kernels, cudarc::driver::CudaContext};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let context = CudaContext::new(0)?;
    /// let kernels = Kernels::in_context(&context)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_context(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        driver::start()?;
        Self::share(Held::new(context.clone()))
    }

    /// The kernels in the context that is current in the calling thread. Any library may have made
    /// it, and its owner keeps it.
    ///
    /// If the context is the primary one of its device, the kernels retain it, as
    /// [`new`](Self::new) does. Of any other context, they keep only the handle.
    ///
    /// # Errors
    ///
    /// - [`CudaError::NoDriver`], [`CudaError::StubDriver`] and [`CudaError::OldDriver`] as
    ///   [`new`](Self::new).
    /// - [`CudaError::Driver`] with `CUDA_ERROR_INVALID_CONTEXT` if no context is current, and for
    ///   anything else that the driver reports.
    ///
    /// # Safety
    ///
    /// - A current context that is not a primary one outlives all clones of these kernels and
    ///   everything that is made from them.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{Kernels, cudarc::driver::CudaContext};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let framework = CudaContext::new(0)?; // makes the primary context current
    /// // SAFETY: the current context is a primary one.
    /// let kernels = unsafe { Kernels::in_current_context()? };
    /// assert_eq!(kernels.context().cu_ctx(), framework.cu_ctx());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
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
            // SAFETY: `current` is the current context, so it is valid and of this device. It
            // outlives what is made here (this function's requirement). cudarc never destroys it,
            // since one reference is leaked.
            let context = unsafe { CudaContext::from_raw_context(device as usize, device, current) }.map_err(failed)?;
            std::mem::forget(context.clone());
            Self::share(Held::new(context))
        })
    }

    /// The kernels of a context: those that exist, or new ones.
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

    /// The kernels of a context, if they exist.
    fn find(context: CUcontext, made: &mut Made) -> Option<Self> {
        made.retain(|(_, inner)| inner.strong_count() > 0);
        let (_, inner) = made.iter().find(|(made_in, _)| *made_in == context.addr())?;
        inner.upgrade().map(|inner| Self { inner })
    }

    /// Loads the kernels of one variant now: those of flat steps, of lists and of masters.
    ///
    /// Call it before a flat step is captured in a CUDA graph, unless a step or a list of the
    /// variant was made before. Elsewhere it only moves the time of compilation.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::Formats`] for formats without kernels.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels, such as for a device older than
    ///   compute capability 7.5.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// After an error, the next call tries again.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::Kernels;
    /// use dualadam::{Dtype, Formats};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let kernels = Kernels::new(0)?;
    /// kernels.prepare(Formats::new(Dtype::Bf16, Dtype::Bf16).with_master(Dtype::F32))?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn prepare(&self, formats: Formats) -> Result<(), CudaError> {
        let problem = TensorProblem::Formats { formats };
        let variant = Variant::of(formats).ok_or_else(|| TensorError::of_tensor(0, problem))?;
        self.functions(variant).map(|_| ())
    }

    /// Whether `stream`, a `CUstream` or null, is being captured, so that work on it goes into a
    /// CUDA graph.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Context`] if `stream` belongs to another context.
    /// - [`CudaError::Driver`] if the capture of `stream` has failed, if `stream` is null while a
    ///   stream that waits for the null stream is being captured, and for anything else that the
    ///   driver reports.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::Kernels;
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let kernels = Kernels::new(0)?;
    /// // SAFETY: the null stream lives as long as the context.
    /// assert!(!unsafe { kernels.is_captured(std::ptr::null_mut())? });
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn is_captured(&self, stream: *mut c_void) -> Result<bool, CudaError> {
        let _current = self.enter()?;
        // SAFETY: the stream is live (this function's requirement), and the context is current.
        unsafe { check_capture(self.context(), stream) }
    }

    /// The context of the kernels. If the program has several `CudaContext` values for one context,
    /// this is the one with which its kernels were first made.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        self.inner.pool.context()
    }

    /// The kernels of a variant, if they are loaded.
    pub(super) fn loaded(&self, variant: Variant) -> Option<&Functions> {
        self.inner.functions[variant.index()].get()
    }

    /// The kernels of a variant, loaded now if they were not.
    pub(super) fn functions(&self, variant: Variant) -> Result<&Functions, CudaError> {
        self.load(&self.inner.functions[variant.index()], || Functions::load(variant))
    }

    /// The kernel that prepares the coefficients of controlled steps, loaded now if it was not.
    pub(super) fn prepare_sets(&self) -> Result<Function, CudaError> {
        self.load(&self.inner.prepare_sets, load_prepare_sets).copied()
    }

    /// Calls `load` unless an earlier call has succeeded.
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

    /// Makes the kernels' context current and keeps this thread's calls from invalidating captures,
    /// until the result is dropped.
    pub(super) fn enter(&self) -> Result<Current, CudaError> {
        self.inner.pool.enter()
    }
}

//! The driver's status codes as errors, and the current context.

use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, DriverError};

use super::error::CudaError;

/// The oldest driver that is accepted, of CUDA 11.4: the oldest with an interface that cudarc
/// knows.
const OLDEST_DRIVER: i32 = 11_040;

/// A status of the driver as a result.
pub(super) fn check(call: &'static str, answer: CUresult) -> Result<(), CudaError> {
    answer.result().map_err(|error| failed(call, error))
}

/// The error for a failed call. libcuda must be loaded, since the code's name is asked of it.
pub(super) fn failed(call: &'static str, error: DriverError) -> CudaError {
    CudaError::Driver { call, code: error.0 as i32, name: name_of(error) }
}

pub(super) fn name_of(error: DriverError) -> String {
    error.error_name().map_or_else(|_| "an unknown error".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Whether libcuda can be opened. cudarc has such a function, but not in builds in which another
/// crate makes it link libcuda.
fn driver_is_present() -> bool {
    // Of the names that cudarc tries, those that drivers have. cudarc tries `libcuda.so` before
    // `libcuda.so.1` and may so find a toolkit's stub before the driver; `start` reports that.
    let names = if cfg!(windows) { ["nvcuda.dll", "cuda.dll"] } else { ["libcuda.so.1", "libcuda.so"] };
    // SAFETY: opening the driver's library runs its initialisers, which are safe to run: every
    // program that links it runs them.
    names.into_iter().any(|name| unsafe { libloading::Library::new(name) }.is_ok())
}

/// Initialises the driver. Fails if there is none, or if it is too old.
pub(super) fn start() -> Result<(), CudaError> {
    // Without libcuda, every call through cudarc panics.
    if !driver_is_present() {
        return Err(CudaError::NoDriver);
    }
    let mut found = 0;
    // SAFETY: `found` is where the driver may write the version.
    let answer = unsafe { sys::cuDriverGetVersion(&mut found) };
    if answer == CUresult::CUDA_ERROR_STUB_LIBRARY {
        return Err(CudaError::StubDriver);
    }
    check("cuDriverGetVersion", answer)?;
    if found < OLDEST_DRIVER {
        return Err(CudaError::OldDriver { required: OLDEST_DRIVER, found });
    }
    // SAFETY: `flags` must be 0, and it is.
    check("cuInit", unsafe { sys::cuInit(0) })
}

/// The number of devices. The driver must be initialised.
pub(super) fn device_count() -> Result<usize, CudaError> {
    let mut count = 0;
    // SAFETY: `count` is where the driver may write the number.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The current context, or null.
pub(super) fn current() -> Result<CUcontext, CudaError> {
    let mut context = ptr::null_mut();
    // SAFETY: `context` is where the driver may write the handle.
    check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut context) })?;
    Ok(context)
}

/// The device of the current context.
pub(super) fn current_device() -> Result<CUdevice, CudaError> {
    let mut device = 0;
    // SAFETY: `device` is where the driver may write the device.
    check("cuCtxGetDevice", unsafe { sys::cuCtxGetDevice(&mut device) })?;
    Ok(device)
}

/// Whether the primary context of a device is retained by anyone.
pub(super) fn primary_is_active(device: CUdevice) -> Result<bool, CudaError> {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: `device` is a device, and the driver may write to `flags` and `active`.
    check("cuDevicePrimaryCtxGetState", unsafe { sys::cuDevicePrimaryCtxGetState(device, &mut flags, &mut active) })?;
    Ok(active != 0)
}

/// Makes a context current in the calling thread and sets the thread's capture mode to relaxed.
/// Dropping it restores both.
///
/// While it lives, cudarc's own calls in this thread find the context current and leave it so. The
/// relaxed mode is needed because another thread may capture in the global mode: in any other mode,
/// an allocation or a wait for a stream here would fail and invalidate that capture.
pub(super) struct Current {
    pushed: bool,
    capture_mode: CUstreamCaptureMode,
    /// Makes the type `!Send`: the current context and the mode belong to a thread.
    _thread: PhantomData<*const ()>,
}

impl Current {
    pub(super) fn enter(context: &CudaContext) -> Result<Self, CudaError> {
        let mut capture_mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        exchange_capture_mode(&mut capture_mode)?;
        // Made now, so that its drop restores the mode if a call below fails.
        let mut entered = Self { pushed: false, capture_mode, _thread: PhantomData };
        if current()? != context.cu_ctx() {
            // SAFETY: the handle is valid, since `context` is borrowed.
            check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(context.cu_ctx()) })?;
            entered.pushed = true;
        }
        Ok(entered)
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if self.pushed {
            let mut popped = MaybeUninit::uninit();
            // SAFETY: the driver may write a handle to `popped`. If the call fails, there is
            // nothing to restore.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(popped.as_mut_ptr()) };
        }
        // This fails only for a value that is not a mode.
        let _ = exchange_capture_mode(&mut self.capture_mode);
    }
}

/// Exchanges the calling thread's capture mode with `mode`.
fn exchange_capture_mode(mode: &mut CUstreamCaptureMode) -> Result<(), CudaError> {
    // SAFETY: `mode` holds a mode, and the driver may overwrite it with the old one.
    check("cuThreadExchangeStreamCaptureMode", unsafe { sys::cuThreadExchangeStreamCaptureMode(mode) })
}

/// Runs work that may change the current context, such as making or dropping a context, and
/// restores it afterwards.
pub(super) fn keeping_current<R>(work: impl FnOnce() -> R) -> R {
    let before = current();
    let result = work();
    if let (Ok(before), Ok(after)) = (before, current())
        && before != after
    {
        // SAFETY: the handle was current, so it is valid unless `work` dropped its last holder. In
        // that case cudarc had made it current before it released it, and the two are equal.
        let _ = unsafe { sys::cuCtxSetCurrent(before) };
    }
    result
}

/// An `Arc` to something that may hold the last reference to a context, such as a stream. Dropping
/// it leaves the current context as it is.
#[derive(Debug)]
pub(super) struct Held<T>(ManuallyDrop<Arc<T>>);

impl<T> Held<T> {
    pub(super) fn new(held: Arc<T>) -> Self {
        Self(ManuallyDrop::new(held))
    }
}

impl<T> Deref for Held<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        // SAFETY: the value is dropped only here, and not used afterwards.
        keeping_current(|| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}

//! The driver's answers as errors, and which context is current.

use std::marker::PhantomData;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUcontext, CUdevice, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, DriverError};

use super::error::CudaError;

/// The oldest driver, of CUDA 11.4: the oldest whose interface cudarc knows.
const OLDEST_DRIVER: i32 = 11_040;

/// An answer of the driver as a result.
pub(super) fn check(call: &'static str, answer: CUresult) -> Result<(), CudaError> {
    answer.result().map_err(|error| failed(call, error))
}

/// The error of a call of the driver that failed. The driver must be there.
pub(super) fn failed(call: &'static str, error: DriverError) -> CudaError {
    CudaError::Driver { call, code: error.0 as i32, name: name_of(error) }
}

pub(super) fn name_of(error: DriverError) -> String {
    error.error_name().map_or_else(|_| "an unknown error".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Whether libcuda can be opened. cudarc asks the same only where it opens the library itself, and
/// not where another crate in the build makes it link the library.
fn driver_is_present() -> bool {
    // Of the names that cudarc tries, those that drivers have. cudarc itself asks for `libcuda.so`
    // before `libcuda.so.1`, which may find a toolkit's stub before the driver: `start` says so
    // then.
    let names = if cfg!(windows) { ["nvcuda.dll", "cuda.dll"] } else { ["libcuda.so.1", "libcuda.so"] };
    // SAFETY: opening the driver's library runs only its initialisers, as in any program that links
    // it.
    names.into_iter().any(|name| unsafe { libloading::Library::new(name) }.is_ok())
}

/// Fails unless there is a driver that is new enough; initialises it.
pub(super) fn start() -> Result<(), CudaError> {
    // cudarc panics in any call where there is no libcuda.
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
    // SAFETY: 0 are the only flags there are.
    check("cuInit", unsafe { sys::cuInit(0) })
}

/// The devices that there are. The driver must be initialised.
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

/// Whether anybody holds the primary context of a device.
pub(super) fn primary_is_active(device: CUdevice) -> Result<bool, CudaError> {
    let (mut flags, mut active) = (0, 0);
    // SAFETY: the device is there, and both are places for the answer.
    check("cuDevicePrimaryCtxGetState", unsafe { sys::cuDevicePrimaryCtxGetState(device, &mut flags, &mut active) })?;
    Ok(active != 0)
}

/// Makes a context current in the calling thread, and relaxes the thread's capture mode. Dropping
/// it restores both.
///
/// While it lives, cudarc's own calls in this thread find the context current and leave it so. In
/// any other capture mode, CUDA would answer an allocation or a wait for a stream with an error
/// while some thread captures in its global mode, and would end that capture.
pub(super) struct Current {
    pushed: bool,
    capture_mode: CUstreamCaptureMode,
    /// So that it stays in the thread that made it.
    _thread: PhantomData<*const ()>,
}

impl Current {
    pub(super) fn enter(context: &CudaContext) -> Result<Self, CudaError> {
        let mut capture_mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        exchange_capture_mode(&mut capture_mode)?;
        // From here on, dropping it puts the mode back.
        let mut entered = Self { pushed: false, capture_mode, _thread: PhantomData };
        if current()? != context.cu_ctx() {
            // SAFETY: the handle is valid, since the caller holds the context.
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
            // SAFETY: the driver may write the handle there. If it fails, there is no context to
            // restore either.
            let _ = unsafe { sys::cuCtxPopCurrent_v2(popped.as_mut_ptr()) };
        }
        // The driver refuses only what is no mode.
        let _ = exchange_capture_mode(&mut self.capture_mode);
    }
}

/// Sets the calling thread's capture mode, and gives the one that it had.
fn exchange_capture_mode(mode: &mut CUstreamCaptureMode) -> Result<(), CudaError> {
    // SAFETY: `mode` is a valid mode, which the driver reads and in whose place it writes another.
    check("cuThreadExchangeStreamCaptureMode", unsafe { sys::cuThreadExchangeStreamCaptureMode(mode) })
}

/// Does what may make another context current, such as making or dropping one, and restores the
/// current one.
pub(super) fn keeping_current<R>(work: impl FnOnce() -> R) -> R {
    let before = current();
    let result = work();
    if let (Ok(before), Ok(after)) = (before, current())
        && before != after
    {
        // SAFETY: the handle was current, so it is valid, unless `work` dropped its last holder.
        // Then cudarc made it current too before the end, and there is nothing to restore.
        let _ = unsafe { sys::cuCtxSetCurrent(before) };
    }
    result
}

/// Shares what may hold the last reference to a context, such as a stream, and leaves the current
/// context as it is when it ends.
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
        // SAFETY: this is the only place that drops it, and nothing uses it afterwards.
        keeping_current(|| unsafe { ManuallyDrop::drop(&mut self.0) });
    }
}

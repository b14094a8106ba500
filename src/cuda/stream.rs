//! Checks of streams, and of buffers, before work is enqueued.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUresult, CUstreamCaptureStatus};
use cudarc::driver::{CudaContext, CudaStream};

use super::driver::check;
use super::error::{CudaArgument, CudaError};

/// The handle of a stream of cudarc.
pub(super) fn raw(stream: &CudaStream) -> *mut c_void {
    stream.cu_stream().cast()
}

/// Fails unless a stream of cudarc belongs to the context.
pub(super) fn check_context(context: &CudaContext, stream: &CudaStream) -> Result<(), CudaError> {
    let is_of_it = stream.context().cu_ctx() == context.cu_ctx();
    if is_of_it { Ok(()) } else { Err(CudaError::Context { argument: CudaArgument::Stream }) }
}

/// Fails unless a buffer of cudarc is memory of the context and cudarc orders its uses with the
/// work of `stream`.
///
/// `own` is the stream on which the buffer was allocated. Each `CudaContext` value keeps its own
/// note of whether there are streams to order, and there may be several values for one context.
pub(super) fn check_buffer(
    context: &CudaContext,
    stream: &CudaStream,
    own: &CudaStream,
    argument: CudaArgument,
) -> Result<(), CudaError> {
    if own.context().cu_ctx() != context.cu_ctx() {
        return Err(CudaError::Context { argument });
    }
    if Arc::ptr_eq(own.context(), stream.context()) { Ok(()) } else { Err(CudaError::Unordered { argument }) }
}

/// Fails unless a stream belongs to the context. The null stream belongs to the current context.
///
/// # Safety
///
/// - `stream` is null or a live stream.
/// - `context` is current.
pub(super) unsafe fn check_stream(context: &CudaContext, stream: *mut c_void) -> Result<(), CudaError> {
    let mut found = ptr::null_mut();
    // SAFETY: the stream is live (this function's first requirement), and `found` is where the
    // driver may write the handle.
    check("cuStreamGetCtx", unsafe { sys::cuStreamGetCtx(stream.cast(), &mut found) })?;
    if found == context.cu_ctx() { Ok(()) } else { Err(CudaError::Context { argument: CudaArgument::Stream }) }
}

/// Whether a stream is being captured. Fails if its capture has failed.
///
/// # Safety
///
/// - `stream` is null or a live stream.
/// - The stream's context is current.
unsafe fn is_captured(stream: *mut c_void) -> Result<bool, CudaError> {
    const CALL: &str = "cuStreamIsCapturing";
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the stream is live (this function's first requirement), and `status` is where the
    // driver may write the answer.
    check(CALL, unsafe { sys::cuStreamIsCapturing(stream.cast(), &mut status) })?;
    match status {
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(false),
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE => Ok(true),
        // The capture was invalidated, so the driver would refuse the launch.
        _ => check(CALL, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED).map(|()| true),
    }
}

/// Whether a stream is being captured. Fails unless the stream belongs to the context, and if its
/// capture has failed.
///
/// # Safety
///
/// - `stream` is null or a live stream.
/// - `context` is current.
pub(super) unsafe fn check_capture(context: &CudaContext, stream: *mut c_void) -> Result<bool, CudaError> {
    // SAFETY: the stream is live and the context current (this function's requirements).
    unsafe {
        check_stream(context, stream)?;
        is_captured(stream)
    }
}

/// Fails if a stream is being captured. `what` names what cannot be captured, for the error.
///
/// # Safety
///
/// - `stream` is null or a live stream.
/// - The stream's context is current.
pub(super) unsafe fn refuse_capture(stream: *mut c_void, what: &'static str) -> Result<(), CudaError> {
    // SAFETY: the stream is live and its context current (this function's requirements).
    if unsafe { is_captured(stream) }? { Err(CudaError::Captured { what }) } else { Ok(()) }
}

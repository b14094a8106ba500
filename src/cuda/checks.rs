//! What must hold of addresses before anything is launched.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{self, CUresult, CUstreamCaptureStatus};

use crate::overlap::BUFFERS;
use crate::raw::Span;
use crate::{Error, RawTensor};

use super::driver::check;
use super::kernels::Kernels;

/// Checks one tensor by itself, without allocating.
pub(super) fn check_one(tensor: &RawTensor) -> Result<(), Error> {
    let mut seen = [None; BUFFERS.len()];
    for (place, span) in tensor.spans(0).enumerate() {
        let span = span?;
        // A gradient is the only buffer that is not written, so any two that overlap are an error.
        let other = seen.iter().flatten().find(|other: &&Span| other.start < span.end && span.start < other.end);
        if let Some(other) = other {
            return Err(span.overlap(other));
        }
        seen[place] = Some(span);
    }
    Ok(())
}

/// Fails unless a buffer of cudarc's is memory of the kernels' context that cudarc orders with the work of `stream`.
///
/// `own` is the stream that the buffer belongs to. cudarc notes for each `CudaContext` value by itself whether there are streams to
/// order, and there may be several values for one context.
pub(super) fn check_own_stream(
    kernels: &Kernels,
    stream: &CudaStream,
    own: &CudaStream,
    argument: &'static str,
) -> Result<(), Error> {
    if own.context().cu_ctx() != kernels.context().cu_ctx() {
        return Err(Error::Context { argument });
    }
    if Arc::ptr_eq(own.context(), stream.context()) { Ok(()) } else { Err(Error::Unordered { argument }) }
}

/// Fails unless a stream belongs to the kernels' context, which must be current: it is that of the null stream then.
///
/// # Safety
///
/// `stream` must be a stream's handle, or null.
pub(super) unsafe fn check_stream(kernels: &Kernels, stream: *mut c_void) -> Result<(), Error> {
    let mut context = ptr::null_mut();
    // SAFETY: the caller's stream, and a place for the answer.
    check("cuStreamGetCtx", unsafe { sys::cuStreamGetCtx(stream.cast(), &mut context) })?;
    if context == kernels.context().cu_ctx() { Ok(()) } else { Err(Error::Context { argument: "stream" }) }
}

/// Whether what is enqueued on a stream goes into a graph. Fails if the stream's capture has failed.
///
/// # Safety
///
/// `stream` must be live, and its context current.
unsafe fn is_captured(stream: *mut c_void) -> Result<bool, Error> {
    const CALL: &str = "cuStreamIsCapturing";
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the caller's stream, and a place for the answer.
    check(CALL, unsafe { sys::cuStreamIsCapturing(stream.cast(), &mut status) })?;
    match status {
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(false),
        CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_ACTIVE => Ok(true),
        // The driver would refuse the launch.
        _ => check(CALL, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED).map(|()| true),
    }
}

/// Fails unless a stream belongs to the kernels' context. Returns whether what is enqueued on it goes into a graph.
///
/// # Safety
///
/// `stream` must be live, and the kernels' context current.
pub(super) unsafe fn check_capture(kernels: &Kernels, stream: *mut c_void) -> Result<bool, Error> {
    // SAFETY: the stream is live and the context current, as this function requires.
    unsafe {
        check_stream(kernels, stream)?;
        is_captured(stream)
    }
}

/// Fails if what is enqueued on a stream would go into a graph.
///
/// # Safety
///
/// `stream` must be live, and its context current.
pub(super) unsafe fn refuse_capture(stream: *mut c_void, what: &'static str) -> Result<(), Error> {
    // SAFETY: the stream is live and its context current, as this function requires.
    if unsafe { is_captured(stream) }? { Err(Error::Captured { what }) } else { Ok(()) }
}

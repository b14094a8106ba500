//! What must hold of addresses before anything is launched.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use cudarc::driver::sys::{self, CUstreamCaptureStatus};

use crate::combination::Combination;
use crate::overlap::{self, BUFFERS, GRADS};
use crate::{Dtype, Error};

use super::driver::check;
use super::kernels::Kernels;

/// A buffer in device memory, by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawBuffer {
    /// The address of the first element; a multiple of the element's size.
    pub address: u64,
    /// The type of the elements.
    pub dtype: Dtype,
}

/// One tensor's buffers in device memory, by address, all of one length.
///
/// Nothing is owned. An empty tensor's addresses are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawTensor {
    /// The parameters, read and written; the f32 masters where there is a copy.
    pub params: RawBuffer,
    /// The gradients, only read. In a list, address 0 leaves the tensor alone.
    pub grads: RawBuffer,
    /// The address of the first moment, f32, read and written.
    pub exp_avg: u64,
    /// The address of the second moment, f32, read and written.
    pub exp_avg_sq: u64,
    /// The 16-bit copy that f32 masters keep of the new parameters, only written.
    pub copy: Option<RawBuffer>,
    /// Elements.
    pub len: u64,
    /// Index of the tensor's coefficients in the list of sets; 0 for a flat step.
    pub set: usize,
}

/// The bytes of one buffer, all of them in one memory.
type Span = overlap::Span<()>;

impl RawTensor {
    pub(super) fn combination(&self, tensor: usize) -> Result<Combination, Error> {
        let (params, grads, copy) = self.types();
        Combination::of(tensor, params, grads, copy)
    }

    pub(super) fn types(&self) -> (Dtype, Dtype, Option<Dtype>) {
        (self.params.dtype, self.grads.dtype, self.copy.map(|copy| copy.dtype))
    }

    /// Whether a list's step skips the tensor, or has nothing to do in it.
    pub(super) fn is_left_alone(&self) -> bool {
        self.len == 0 || self.grads.address == 0
    }

    /// The addresses in the order of the kernels' arguments; 0 where there is no copy.
    pub(super) fn addresses(&self) -> [u64; 5] {
        self.buffers().map(|(address, _)| address)
    }

    fn buffers(&self) -> [(u64, usize); 5] {
        let raw = |buffer: RawBuffer| (buffer.address, buffer.dtype.size());
        let moment = |address| (address, Dtype::F32.size());
        let copy = self.copy.map_or((0, 0), raw);
        [raw(self.params), raw(self.grads), moment(self.exp_avg), moment(self.exp_avg_sq), copy]
    }

    /// The bytes that a step reads or writes, each buffer checked by itself.
    pub(super) fn spans(&self, tensor: usize) -> impl Iterator<Item = Result<Span, Error>> {
        let (len, copy) = (self.len, self.copy.is_some());
        let used = move |buffer: usize| len > 0 && (buffer != BUFFERS.len() - 1 || copy);
        let buffers = self.buffers().into_iter().enumerate();
        buffers
            .filter(move |&(buffer, _)| used(buffer))
            .map(move |(buffer, (address, size))| Span::at(tensor, buffer, address, len, size))
    }

    fn grads_span(&self, tensor: usize) -> Result<Span, Error> {
        Span::at(tensor, GRADS, self.grads.address, self.len, self.grads.dtype.size())
    }
}

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

/// The memory that a list of tensors writes, in the order of addresses.
#[derive(Debug, Default)]
pub(super) struct Written {
    spans: Vec<Span>,
    scratch: Vec<Span>,
}

impl Written {
    pub(super) fn with_capacity(tensors: usize) -> Self {
        let spans = || Vec::with_capacity(tensors * BUFFERS.len());
        Self { spans: spans(), scratch: spans() }
    }

    /// Checks every buffer of a list and every pair of buffers; remembers them if all is well. O(n log n).
    pub(super) fn check_all(&mut self, tensors: &[RawTensor]) -> Result<(), Error> {
        let spans = &mut self.scratch;
        spans.clear();
        for (index, tensor) in tensors.iter().enumerate() {
            if !tensor.is_left_alone() {
                for span in tensor.spans(index) {
                    spans.push(span?);
                }
            }
        }
        overlap::check(spans)?;
        spans.retain(Span::is_written);
        std::mem::swap(&mut self.spans, &mut self.scratch);
        Ok(())
    }

    /// Checks new gradients of one tensor, which has some, against what the list writes. O(log n).
    pub(super) fn check_grads(&self, index: usize, tensor: &RawTensor) -> Result<(), Error> {
        let grads = tensor.grads_span(index)?;
        // What is written does not overlap itself, so its ends are in order as well.
        let next = self.spans.partition_point(|span| span.end <= grads.start);
        match self.spans.get(next).filter(|span| span.start < grads.end) {
            Some(other) => Err(grads.overlap(other)),
            None => Ok(()),
        }
    }
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

/// Whether what is enqueued on a stream goes into a graph.
///
/// # Safety
///
/// `stream` must be live, and its context current.
pub(super) unsafe fn is_captured(stream: *mut c_void) -> Result<bool, Error> {
    let mut status = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
    // SAFETY: the caller's stream, and a place for the answer.
    check("cuStreamIsCapturing", unsafe { sys::cuStreamIsCapturing(stream.cast(), &mut status) })?;
    Ok(status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// Fails if what is enqueued on a stream would go into a graph.
///
/// # Safety
///
/// `stream` must be live, and its context current.
pub(super) unsafe fn refuse_capture(stream: *mut c_void, what: &'static str) -> Result<(), Error> {
    // SAFETY: the caller's promise.
    if unsafe { is_captured(stream) }? { Err(Error::Captured { what }) } else { Ok(()) }
}

//! The stand-in device: a context, a stream that waits for nobody, and memory.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use dualadam::cuda::Kernels;
use dualadam::cuda::cudarc::driver::{CudaContext, CudaStream, result, sys};
use stand_in_cuda::client::StandIn;

/// Fields are dropped in this order: the stand-in last.
pub(crate) struct Gpu {
    pub(crate) kernels: Kernels,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stand_in: StandIn,
}

pub(crate) fn start() -> StandIn {
    StandIn::start().unwrap_or_else(|error| panic!("{error}"))
}

impl Gpu {
    pub(crate) fn new() -> Self {
        let stand_in = start();
        let kernels = Kernels::new(0).unwrap();
        let context = kernels.context().clone();
        context.bind_to_thread().unwrap();
        // The tests say themselves what waits for what, as a caller from outside of Rust does.
        // SAFETY: no test relies on cudarc's own events, but for those that say so.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        Self { kernels, stream, context, stand_in }
    }

    pub(crate) fn raw_stream(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    /// Memory with this content; at least one byte of it. The content has arrived.
    pub(crate) fn memory(&self, content: &[u8]) -> Memory {
        // SAFETY: a context is current.
        let address = unsafe { result::malloc_sync(content.len().max(1)) }.unwrap();
        let memory = Memory { address };
        self.write(&memory, content);
        memory
    }

    pub(crate) fn write(&self, memory: &Memory, content: &[u8]) {
        if !content.is_empty() {
            // SAFETY: the memory is as long.
            unsafe { result::memcpy_htod_sync(memory.address, content) }.unwrap();
        }
        self.context.synchronize().unwrap();
    }

    /// Waits for everything and reads.
    pub(crate) fn read(&self, memory: &Memory, content: &mut [u8]) {
        self.context.synchronize().unwrap();
        if !content.is_empty() {
            // SAFETY: the memory is as long.
            unsafe { result::memcpy_dtoh_sync(content, memory.address) }.unwrap();
        }
    }

    /// Nothing was wrong with any access or order.
    pub(crate) fn assert_clean(&self) {
        self.context.synchronize().unwrap();
        assert!(self.stand_in.violations().is_empty(), "{:#?}", self.stand_in.violations());
    }
}

pub(crate) struct Memory {
    pub(crate) address: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a context is current; what uses the memory was waited for.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// The context that is current in this thread.
pub(crate) fn current() -> *mut c_void {
    let mut context = ptr::null_mut();
    // SAFETY: a place for the answer.
    let answer = unsafe { sys::cuCtxGetCurrent(&mut context) };
    assert_eq!(answer, sys::CUresult::CUDA_SUCCESS);
    context.cast()
}

pub(crate) fn set_current(context: *mut c_void) {
    // SAFETY: a live context, or null for none.
    let answer = unsafe { sys::cuCtxSetCurrent(context.cast()) };
    assert_eq!(answer, sys::CUresult::CUDA_SUCCESS);
}

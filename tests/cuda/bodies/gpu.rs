//! The device under test, real or the stand-in: a context, a stream that waits for no other, and
//! memory.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use dualadam::cuda::cudarc::driver::{CudaContext, CudaStream, result, sys};
use dualadam::cuda::{CudaError, DualAdam, Kernels, TensorList};
use dualadam::{DualAdamConfig, RawTensor, StepCoeffs, TensorSpec};
use stand_in_cuda::client::StandIn;
use testkit::variant::formats;

use super::twin::{self, Twin};

/// The driver functions of a launch: the checks before it, the launch, and the record of its end.
const LAUNCHING: [&str; 6] = [
    "cuCtxGetCurrent",
    "cuEventRecord",
    "cuLaunchKernel",
    "cuStreamGetCtx",
    "cuStreamIsCapturing",
    "cuThreadExchangeStreamCaptureMode",
];

/// Fields are dropped in this order: the stand-in last.
///
/// One test uses the device at a time: a test waits for the whole context, and captures.
pub(crate) struct Gpu {
    pub(crate) kernels: Kernels,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) context: Arc<CudaContext>,
    /// The handle that watches and steers the device, if it is the stand-in.
    pub(crate) stand_in: Option<StandIn>,
}

impl Gpu {
    /// The first device of the driver that is loaded: the stand-in, if it was started.
    pub(crate) fn new(stand_in: Option<StandIn>) -> Self {
        let kernels = Kernels::new(0).unwrap();
        let context = kernels.context().clone();
        context.bind_to_thread().unwrap();
        // The tests order streams themselves, as callers from other languages do.
        // SAFETY: no test relies on cudarc's own events, except those that enable them.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().unwrap();
        Self { kernels, stream, context, stand_in }
    }

    pub(crate) fn raw_stream(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    /// A flat step, enqueued.
    pub(crate) fn step(&self, tensor: &RawTensor, coeffs: &StepCoeffs) -> Result<(), CudaError> {
        // SAFETY: a tensor that is not refused has buffers as long as it is, which nothing else
        // uses; the stand-in checks each access.
        unsafe { self.kernels.step_raw(tensor, coeffs, self.raw_stream()) }
    }

    /// A list's step, enqueued.
    pub(crate) fn step_list(&self, list: &mut TensorList, sets: &[StepCoeffs]) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { list.step_raw(sets, self.raw_stream()) }
    }

    pub(crate) fn list(&self, twins: &[Twin]) -> TensorList {
        TensorList::new(&self.kernels, &twin::raw(twins)).unwrap()
    }

    /// An optimizer with one group of the default configuration.
    pub(crate) fn optimizer(&self, specs: &[TensorSpec]) -> Result<DualAdam, CudaError> {
        DualAdam::with_groups(&self.kernels, &self.stream, &[DualAdamConfig::default()], specs)
    }

    /// Loads the kernels of a variant.
    pub(crate) fn prepare(&self, name: &str) -> Result<(), CudaError> {
        self.kernels.prepare(formats(name))
    }

    /// The stand-in, in tests that need it.
    pub(crate) fn stand_in(&self) -> &StandIn {
        self.stand_in.as_ref().unwrap()
    }

    /// Another context of the same device, as in a program that does not use the primary one. The
    /// current context stays current.
    pub(crate) fn other_context(&self) -> Arc<CudaContext> {
        let other = CudaContext::new_non_primary(0, 0).unwrap();
        let mut made = ptr::null_mut();
        // SAFETY: the pointer is to a local variable. Making a context pushed it onto this thread's
        // stack of contexts.
        let answer = unsafe { sys::cuCtxPopCurrent_v2(&mut made) };
        assert_eq!((answer, made), (sys::CUresult::CUDA_SUCCESS, other.cu_ctx()));
        other
    }

    /// Memory with this content, which has arrived; at least one byte.
    pub(crate) fn memory(&self, content: &[u8]) -> Memory {
        // SAFETY: a context is current.
        let address = unsafe { result::malloc_sync(content.len().max(1)) }.unwrap();
        let memory = Memory { address };
        self.write(&memory, content);
        memory
    }

    pub(crate) fn write(&self, memory: &Memory, content: &[u8]) {
        if !content.is_empty() {
            // SAFETY: the memory is as long as the content.
            unsafe { result::memcpy_htod_sync(memory.address, content) }.unwrap();
        }
        self.context.synchronize().unwrap();
    }

    /// Waits for everything and reads.
    pub(crate) fn read(&self, memory: &Memory, content: &mut [u8]) {
        self.context.synchronize().unwrap();
        if !content.is_empty() {
            // SAFETY: the memory is as long as the content.
            unsafe { result::memcpy_dtoh_sync(content, memory.address) }.unwrap();
        }
    }

    /// Fails unless all work ended without an error and the stand-in found no violation.
    pub(crate) fn assert_clean(&self) {
        self.context.bind_to_thread().unwrap();
        let ended = self.context.synchronize();
        if let Some(stand_in) = &self.stand_in {
            assert!(stand_in.violations().is_empty(), "{:#?}", stand_in.violations());
        }
        ended.unwrap();
    }

    /// Runs `work`, which must call the driver functions of a launch this often, and no others. A
    /// real device is not checked.
    pub(crate) fn launching_only(&self, counts: [u64; LAUNCHING.len()], work: impl FnOnce()) {
        if self.stand_in.is_none() {
            return work();
        }
        let calls = self.calls_of(work);
        let calls: Vec<_> = calls.iter().map(|(name, count)| (name.as_str(), *count)).collect();
        let expected: Vec<_> = LAUNCHING.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect();
        assert_eq!(calls, expected);
    }

    /// The driver functions that `work` calls, and how often, as the stand-in counts.
    pub(crate) fn calls_of(&self, work: impl FnOnce()) -> BTreeMap<String, u64> {
        let before = self.stand_in().call_list();
        work();
        let mut calls = self.stand_in().call_list();
        calls.iter_mut().for_each(|(name, count)| *count -= before.get(name).unwrap_or(&0));
        calls.retain(|_, count| *count > 0);
        calls
    }

    /// Fails if the stand-in has seen a launch.
    pub(crate) fn assert_nothing_launched(&self) {
        if let Some(stand_in) = &self.stand_in {
            assert_eq!(stand_in.calls("cuLaunchKernel"), 0);
        }
    }
}

pub(crate) struct Memory {
    pub(crate) address: u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: a context is current, and nothing uses the memory any more.
        let _ = unsafe { result::free_sync(self.address) };
    }
}

/// The context that is current in this thread.
pub(crate) fn current() -> *mut c_void {
    let mut context = ptr::null_mut();
    // SAFETY: the pointer is to a local variable.
    assert_eq!(unsafe { sys::cuCtxGetCurrent(&mut context) }, sys::CUresult::CUDA_SUCCESS);
    context.cast()
}

pub(crate) fn set_current(context: *mut c_void) {
    // SAFETY: every caller passes a live context, or null for none.
    assert_eq!(unsafe { sys::cuCtxSetCurrent(context.cast()) }, sys::CUresult::CUDA_SUCCESS);
}

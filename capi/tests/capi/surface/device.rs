//! The stand-in for a CUDA device: an arena of its memory, and streams.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use dualadam::cuda::Kernels;
use dualadam::cuda::cudarc::driver::{CudaContext, CudaStream, result, sys};
use stand_in_cuda::client::StandIn;

use super::MOST_ELEMENTS;
use super::input::Input;

const SLACK: usize = 4 * MOST_ELEMENTS as usize;
const MEMORY: usize = 32 * 1024 + SLACK;

/// Fields are dropped in this order: the stand-in last.
pub(super) struct Device {
    /// They stay loaded, so that it is quick to load them again.
    _kernels: Kernels,
    stream: Arc<CudaStream>,
    foreign: Arc<CudaStream>,
    context: Arc<CudaContext>,
    address: u64,
    stand_in: StandIn,
}

impl Device {
    pub(super) fn new() -> Self {
        let stand_in = StandIn::start().unwrap_or_else(|error| panic!("{error}"));
        stand_in.set("devices", 2);
        let foreign = CudaContext::new(1).unwrap().new_stream().unwrap();
        let kernels = Kernels::new(0).unwrap();
        let context = CudaContext::new(0).unwrap();
        // SAFETY: a context is current, and the memory has that length.
        let address = unsafe {
            let address = result::malloc_sync(MEMORY).unwrap();
            result::memset_d8_sync(address, 0, MEMORY).unwrap();
            address
        };
        let mut stream = ptr::null_mut();
        // A stream that the default stream waits for, and that waits for it: all work is in
        // order. SAFETY: a place for the stream, which is live as long as this.
        let stream = unsafe {
            sys::cuStreamCreate(&mut stream, 0).result().unwrap();
            context.wrap_borrowed_stream(stream)
        };
        context.synchronize().unwrap();
        Self { _kernels: kernels, stream, foreign, context, address, stand_in }
    }

    pub(super) fn place<T>(&self, input: &mut Input<'_>) -> *mut T {
        ptr::without_provenance_mut(input.place(MEMORY - SLACK).map_or(0, |at| self.address as usize + at))
    }

    pub(super) fn stream(&self, input: &mut Input<'_>) -> *mut c_void {
        match input.byte() % 16 {
            14 => ptr::null_mut(),
            15 => self.foreign.cu_stream().cast(),
            _ => self.stream.cu_stream().cast(),
        }
    }

    /// Lets all work run, and fails if any of it was wrong.
    pub(super) fn finish(&self) {
        self.context.synchronize().unwrap();
        let violations = self.stand_in.violations();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

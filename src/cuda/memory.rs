//! Memory that the library owns: on the device, and pinned on the host.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};

use crate::Error;

use super::driver::{Current, check};
use super::kernels::Kernels;

/// Memory on the device, freed when dropped, unless a graph may use it. No bytes are no memory: the address is 0 then.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    kernels: Kernels,
    address: u64,
    is_kept: bool,
}

impl DeviceMemory {
    /// Memory of undefined content.
    pub(super) fn new(kernels: &Kernels, bytes: usize) -> Result<Self, Error> {
        let mut address = 0;
        if bytes > 0 {
            let _current = kernels.enter()?;
            // SAFETY: `address` is where the driver may write the address.
            check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) })?;
        }
        Ok(Self { kernels: kernels.clone(), address, is_kept: false })
    }

    /// Never frees it, nor unloads the kernels: a graph that was captured with its address may be launched at any later time.
    pub(super) fn keep(&mut self) {
        if !self.is_kept {
            self.is_kept = true;
            std::mem::forget(self.kernels.clone());
        }
    }

    /// Whether [`keep`](Self::keep) was called.
    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Fills the first bytes with zeros, in the order of `stream`. The context must be current.
    ///
    /// # Safety
    ///
    /// The stream must be live, and the memory must have that many bytes.
    pub(super) unsafe fn clear(&self, bytes: usize, stream: *mut c_void) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(self.address, 0, bytes, stream.cast()) })
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address != 0 && !self.is_kept {
            finish_and(self.kernels.context(), || {
                // SAFETY: allocated in this context, and nothing uses it any more.
                let _ = unsafe { sys::cuMemFree_v2(self.address) };
            });
        }
    }
}

/// Memory on the host that the device copies from while the host goes on; freed when dropped.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    kernels: Kernels,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is reached through the value only, and any thread may use it.
unsafe impl Send for PinnedMemory {}
// SAFETY: shared references give no access to the content.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Memory of zeros.
    pub(super) fn new(kernels: &Kernels, bytes: usize) -> Result<Self, Error> {
        let mut start: *mut c_void = ptr::null_mut();
        let bytes = bytes.max(1);
        let _current = kernels.enter()?;
        // SAFETY: `start` is where the driver may write the address.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut start, bytes, 0) })?;
        let start = start.cast::<u8>();
        // SAFETY: the driver has given that many bytes there.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { kernels: kernels.clone(), start, bytes })
    }

    /// The content. The device must not be copying the part that is then written.
    pub(super) fn content(&mut self) -> &mut [u8] {
        // SAFETY: all bytes were written when they were allocated, and this is the only reference. The device only reads them.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        finish_and(self.kernels.context(), || {
            // SAFETY: allocated by the driver, and no copy from it is under way any more.
            let _ = unsafe { sys::cuMemFreeHost(self.start.cast()) };
        });
    }
}

/// Waits until the device has finished, whichever streams it was given work on, and then frees something.
///
/// If it cannot be waited for, nothing is freed. Either the device is lost, and with it the work and the memory; or a stream of the context
/// is being captured, and the work may still be under way.
pub(super) fn finish_and(context: &Arc<CudaContext>, free: impl FnOnce()) {
    if let Ok(_current) = Current::enter(context)
        // SAFETY: a context is current.
        && check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() }).is_ok()
    {
        free();
    }
}

/// Copies to the device, in the order of `stream`. The values may change when the call returns.
///
/// # Safety
///
/// The context and the stream must be the kernels', and `to` must have room for the values.
pub(super) unsafe fn upload<T: bytemuck::Pod>(to: u64, values: &[T], stream: *mut c_void) -> Result<(), Error> {
    if values.is_empty() {
        return Ok(());
    }
    // SAFETY: as long as the values. They are not pinned, so that the driver takes them before it returns.
    let answer = unsafe { sys::cuMemcpyHtoDAsync_v2(to, values.as_ptr().cast(), size_of_val(values), stream.cast()) };
    check("cuMemcpyHtoDAsync", answer)
}

/// Reads from the device what the work before in `stream` has left there, and waits for it.
///
/// # Safety
///
/// The context and the stream must be the kernels', and `from` must have that many values.
pub(super) unsafe fn download<T: bytemuck::Pod>(from: u64, len: usize, stream: *mut c_void) -> Result<Vec<T>, Error> {
    let mut values = vec![T::zeroed(); len];
    if len > 0 {
        let bytes = size_of_val(values.as_slice());
        // SAFETY: as long as the values, which live until the copy has ended: the next call waits for it.
        let answer = unsafe { sys::cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), from, bytes, stream.cast()) };
        check("cuMemcpyDtoHAsync", answer)?;
        // SAFETY: the caller's stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.cast()) })?;
    }
    Ok(values)
}

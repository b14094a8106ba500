//! Memory that the library owns: on the device, and pinned on the host.

use std::ffi::c_void;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUstream};

use super::driver::check;
use super::error::CudaError;
use super::event::LastUse;
use super::pool::{Block, Pool};

/// Memory on the device, freed after its last use when dropped. Of size 0 it has the address 0.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    pool: Arc<Pool>,
    address: u64,
    last_use: Arc<LastUse>,
    /// Whether something may still write there of which nothing tells the end.
    is_kept: bool,
}

impl DeviceMemory {
    /// Memory of so many bytes that begins with this content; the rest is undefined. The content
    /// has arrived.
    pub(super) fn with_content(
        pool: &Arc<Pool>,
        last_use: &Arc<LastUse>,
        content: &[u8],
        bytes: usize,
    ) -> Result<Self, CudaError> {
        Self::new(pool, last_use, bytes.max(content.len()), |to, stream| {
            // SAFETY: the stream lives, and its context is current. The memory has room for the
            // content, which stays as it is until the copy has ended.
            unsafe { copy(to, content, stream) }
        })
    }

    /// Memory of zeros.
    pub(super) fn zeros(pool: &Arc<Pool>, last_use: &Arc<LastUse>, bytes: usize) -> Result<Self, CudaError> {
        Self::new(pool, last_use, bytes, |to, stream| {
            // SAFETY: the memory has these bytes, and the stream lives.
            check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(to, 0, bytes, stream) })
        })
    }

    /// Allocates, lets `fill` enqueue what fills the memory, and waits for that.
    fn new(
        pool: &Arc<Pool>,
        last_use: &Arc<LastUse>,
        bytes: usize,
        fill: impl FnOnce(u64, CUstream) -> Result<(), CudaError>,
    ) -> Result<Self, CudaError> {
        let mut address = 0;
        if bytes > 0 {
            let _current = pool.enter()?;
            address = pool.allocate(bytes)?;
            let filled = fill(address, pool.uploads());
            // Also after a failure: something may have been enqueued.
            let arrived = pool.wait_for_uploads();
            if let Err(error) = filled.and(arrived) {
                pool.give_back(address);
                return Err(error);
            }
        }
        Ok(Self { pool: pool.clone(), address, last_use: last_use.clone(), is_kept: false })
    }

    /// Writes values to a place, in bytes after the start, that no enqueued work uses. They have
    /// arrived when the call returns.
    pub(super) fn upload<T: Pod>(&mut self, at: u64, values: &[T]) -> Result<(), CudaError> {
        if values.is_empty() {
            return Ok(());
        }
        let _current = self.pool.enter()?;
        // SAFETY: the stream lives, and its context is current. The place has room for the values,
        // which stay as they are until the copy has ended.
        let enqueued = unsafe { copy(self.address + at, values, self.pool.uploads()) };
        let arrived = self.pool.wait_for_uploads();
        self.is_kept |= arrived.is_err();
        enqueued.and(arrived)
    }

    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.address != 0 && !self.is_kept && !self.last_use.is_unknown() {
            self.pool.free(Block::Device(self.address), &self.last_use);
        }
    }
}

/// The least that is allocated: a page.
const SMALLEST_PINNED: usize = 4096;

/// Memory on the host that the device copies from while the host goes on. When it is dropped, later
/// memory takes it over after its last use.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    pool: Arc<Pool>,
    start: *mut u8,
    bytes: usize,
    last_use: Arc<LastUse>,
}

// SAFETY: the memory is reached through the value only, and any thread may use it.
unsafe impl Send for PinnedMemory {}
// SAFETY: shared references give no access to the content.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Memory of zeros. Its size is rounded up to a power of two: later memory needs that very size
    /// to take it over.
    pub(super) fn new(pool: &Arc<Pool>, last_use: &Arc<LastUse>, bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.max(SMALLEST_PINNED).checked_next_power_of_two().unwrap_or(bytes);
        let _current = pool.enter()?;
        let start = pool.allocate_pinned(bytes)?;
        // SAFETY: the driver has given that many bytes there, and nothing uses them.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { pool: pool.clone(), start, bytes, last_use: last_use.clone() })
    }

    /// The content. The device must not be copying the part that is then written.
    pub(super) fn content(&mut self) -> &mut [u8] {
        // SAFETY: all bytes were written when they were allocated, and this is the only reference.
        // The device only reads them.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if !self.last_use.is_unknown() {
            self.pool.free(Block::Pinned { start: self.start, bytes: self.bytes }, &self.last_use);
        }
    }
}

/// Copies to the device, in the order of `stream`, and waits for the stream: the values may go
/// then.
///
/// # Safety
///
/// As for [`copy`], except that the values may go when the call returns.
pub(super) unsafe fn upload<T: Pod>(to: u64, values: &[T], stream: *mut c_void) -> Result<(), CudaError> {
    if values.is_empty() {
        return Ok(());
    }
    // SAFETY: stream and place are as `copy` requires (this function's requirements). The values
    // live until the next call has waited for the copy, or the device is lost.
    unsafe { copy(to, values, stream.cast()) }?;
    // SAFETY: the stream is live (this function's first requirement).
    check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.cast()) })
}

/// Enqueues a copy to the device.
///
/// # Safety
///
/// - `stream` is a live stream of the current context.
/// - `to` is the address of room for the values, which stay as they are until the copy has ended.
pub(super) unsafe fn copy<T: Pod>(to: u64, values: &[T], stream: CUstream) -> Result<(), CudaError> {
    // SAFETY: the stream is live, there is room at `to`, and the values stay (this function's
    // requirements).
    let answer = unsafe { sys::cuMemcpyHtoDAsync_v2(to, values.as_ptr().cast(), size_of_val(values), stream) };
    check("cuMemcpyHtoDAsync", answer)
}

/// Reads from the device what the work before in `stream` has left there, and waits for it.
///
/// # Safety
///
/// - `stream` is a live stream of the current context.
/// - `from` is the address of that many values.
pub(super) unsafe fn download<T: Pod>(from: u64, len: usize, stream: *mut c_void) -> Result<Vec<T>, CudaError> {
    let mut values = vec![T::zeroed(); len];
    if len > 0 {
        let bytes = size_of_val(values.as_slice());
        // SAFETY: `from` has as many bytes as the values (this function's second requirement). The
        // values live until the copy has ended: the next call waits for it, and if that fails, they
        // are never freed.
        let answer = unsafe { sys::cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), from, bytes, stream.cast()) };
        check("cuMemcpyDtoHAsync", answer)?;
        // SAFETY: the stream is live (this function's first requirement).
        let waited = check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.cast()) });
        if let Err(error) = waited {
            std::mem::forget(values);
            return Err(error);
        }
    }
    Ok(values)
}

//! Memory that the library owns: device memory, and pinned memory on the host.

use std::ffi::c_void;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::sys::{self, CUstream};

use super::driver::check;
use super::error::CudaError;
use super::event::LastUse;
use super::pool::{Block, Pool};

/// Device memory. Dropping it frees it after its last use. Memory of size 0 has the address 0.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    pool: Arc<Pool>,
    address: u64,
    last_use: Arc<LastUse>,
    /// Whether a copy to the memory may be in flight whose end cannot be known. It is then leaked.
    is_kept: bool,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes, or as many as `content` has if that is more, and copies `content`
    /// to their beginning. The rest is uninitialised. Waits for the copy.
    pub(super) fn with_content(
        pool: &Arc<Pool>,
        last_use: &Arc<LastUse>,
        content: &[u8],
        bytes: usize,
    ) -> Result<Self, CudaError> {
        Self::new(pool, last_use, bytes.max(content.len()), |to, stream| {
            // SAFETY: the stream is live, and its context is current. The memory has room for
            // `content`, which is borrowed until `new` has waited for the copy.
            unsafe { copy(to, content, stream) }
        })
    }

    /// Allocates memory of zeros. Waits until they are written.
    pub(super) fn zeros(pool: &Arc<Pool>, last_use: &Arc<LastUse>, bytes: usize) -> Result<Self, CudaError> {
        Self::new(pool, last_use, bytes, |to, stream| {
            // SAFETY: the memory has `bytes` bytes, and the stream is live.
            check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(to, 0, bytes, stream) })
        })
    }

    /// Allocates, lets `fill` enqueue work that fills the memory, and waits for it.
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
            // Waits after a failure too: a copy may be in flight.
            let arrived = pool.wait_for_uploads();
            if let Err(error) = filled.and(arrived) {
                pool.give_back(address);
                return Err(error);
            }
        }
        Ok(Self { pool: pool.clone(), address, last_use: last_use.clone(), is_kept: false })
    }

    /// Copies values to the offset `at`, in bytes, which no enqueued work uses. Waits for the copy.
    pub(super) fn upload<T: Pod>(&mut self, at: u64, values: &[T]) -> Result<(), CudaError> {
        if values.is_empty() {
            return Ok(());
        }
        let _current = self.pool.enter()?;
        // SAFETY: the stream is live, and its context is current. The memory has room for `values`,
        // which are borrowed until the copy has ended.
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

/// The smallest allocation, in bytes: a page.
const SMALLEST_PINNED: usize = 4096;

/// Pinned host memory, from which the device copies while the host goes on. After it is dropped,
/// the pool gives it to a later allocation of the same size, once its last use has ended.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    pool: Arc<Pool>,
    start: *mut u8,
    bytes: usize,
    last_use: Arc<LastUse>,
}

// SAFETY: only this value gives access to the memory, and any thread may use it.
unsafe impl Send for PinnedMemory {}
// SAFETY: a shared reference gives no access to the content.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Allocates memory of zeros. The size is rounded up to a power of two, so that a later
    /// allocation is likely to have the same size and to reuse it.
    pub(super) fn new(pool: &Arc<Pool>, last_use: &Arc<LastUse>, bytes: usize) -> Result<Self, CudaError> {
        let bytes = bytes.max(SMALLEST_PINNED).checked_next_power_of_two().unwrap_or(bytes);
        let _current = pool.enter()?;
        let start = pool.allocate_pinned(bytes)?;
        // SAFETY: `start` is the address of `bytes` bytes that nothing else uses.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { pool: pool.clone(), start, bytes, last_use: last_use.clone() })
    }

    /// The content. The caller must not write a part that the device is copying.
    pub(super) fn content(&mut self) -> &mut [u8] {
        // SAFETY: all bytes were initialised in `new`, and `&mut self` makes this the only
        // reference. The device only reads them.
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

/// Copies values to the device on `stream` and waits for the stream.
///
/// # Safety
///
/// - The requirements of [`copy`] hold, except that the values may change when the call has
///   returned.
pub(super) unsafe fn upload<T: Pod>(to: u64, values: &[T], stream: *mut c_void) -> Result<(), CudaError> {
    if values.is_empty() {
        return Ok(());
    }
    // SAFETY: `stream` and `to` are as `copy` requires (this function's requirements). The values
    // are borrowed until the next call has waited for the copy or the device is lost.
    unsafe { copy(to, values, stream.cast()) }?;
    // SAFETY: the stream is live (this function's first requirement).
    check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.cast()) })
}

/// Enqueues a copy of values to the device on `stream`.
///
/// # Safety
///
/// - `stream` is a live stream of the current context.
/// - `to` is the address of room for the values.
/// - The values do not change until the copy has ended.
pub(super) unsafe fn copy<T: Pod>(to: u64, values: &[T], stream: CUstream) -> Result<(), CudaError> {
    // SAFETY: `stream` is live, `to` has room, and the values do not change (this function's
    // requirements).
    let answer = unsafe { sys::cuMemcpyHtoDAsync_v2(to, values.as_ptr().cast(), size_of_val(values), stream) };
    check("cuMemcpyHtoDAsync", answer)
}

/// Reads `len` values from the device after the work that is enqueued on `stream`. Waits for it.
///
/// # Safety
///
/// - `stream` is a live stream of the current context.
/// - `from` is the address of `len` values.
pub(super) unsafe fn download<T: Pod>(from: u64, len: usize, stream: *mut c_void) -> Result<Vec<T>, CudaError> {
    let mut values = vec![T::zeroed(); len];
    if len > 0 {
        let bytes = size_of_val(values.as_slice());
        // SAFETY: `from` is the address of `bytes` bytes (this function's second requirement). The
        // next call waits for the copy; if that fails, `values` is leaked, so that the copy never
        // writes to freed memory.
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

//! Memory that the library owns: on the device, and pinned on the host; and how it is freed without waiting for anything.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUstream};

use crate::Error;

use super::driver::{Current, Held, check};
use super::event::LastUse;
use super::kernels::Kernels;

/// What the memory of one context needs: two streams of the library's own, and a list of what is still to be freed.
///
/// Nothing here waits for the whole context. That would block for the work of everybody in the process, and CUDA ends every capture in
/// a context that is waited for.
#[derive(Debug)]
pub(super) struct Pool {
    context: Held<CudaContext>,
    /// Brings new memory its content. Who makes memory waits for this stream alone.
    uploads: CUstream,
    /// Frees memory, each piece after its last use. Nobody waits for it.
    frees: CUstream,
    /// Whether the device has memory that streams allocate and free.
    is_stream_ordered: bool,
    /// What no stream can free, and what a graph may still use: a later allocation frees it or takes it over, once its last use has
    /// ended.
    left: Mutex<Vec<Left>>,
}

// SAFETY: streams are handles, which any thread may use.
unsafe impl Send for Pool {}
// SAFETY: as above; the list is behind a lock.
unsafe impl Sync for Pool {}

#[derive(Debug)]
struct Left {
    block: Block,
    last_use: Arc<LastUse>,
}

#[derive(Debug, Clone, Copy)]
enum Block {
    Device(u64),
    Pinned { start: *mut u8, bytes: usize },
}

// SAFETY: the address is only given to the driver.
unsafe impl Send for Block {}

impl Pool {
    /// The context must be current.
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, Error> {
        let mut pool = Self {
            context: Held::new(context.clone()),
            uploads: ptr::null_mut(),
            frees: ptr::null_mut(),
            is_stream_ordered: context.has_async_alloc(),
            left: Mutex::default(),
        };
        // The null stream's rule must not order them with the caller's work.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        for stream in [&mut pool.uploads, &mut pool.frees] {
            // SAFETY: `stream` is where the driver may write the handle.
            check("cuStreamCreate", unsafe { sys::cuStreamCreate(stream, flags) })?;
        }
        Ok(pool)
    }

    /// Device memory of undefined content, in the order of the stream `uploads`. The context must be current.
    fn allocate(&self, bytes: usize) -> Result<u64, Error> {
        self.free_device_memory();
        let mut address = 0;
        if self.is_stream_ordered {
            // SAFETY: `address` is where the driver may write the address, and the stream lives as long as `self`.
            check("cuMemAllocAsync", unsafe { sys::cuMemAllocAsync(&mut address, bytes, self.uploads) })?;
        } else {
            // SAFETY: `address` is where the driver may write the address.
            check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) })?;
        }
        Ok(address)
    }

    /// Blocks the host until the stream `uploads` has done what it has. The context must be current.
    fn wait_for_uploads(&self) -> Result<(), Error> {
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.uploads) })
    }

    /// Frees memory that only work on the stream `uploads` uses. The context must be current.
    fn give_back(&self, address: u64) {
        if self.is_stream_ordered {
            // SAFETY: allocated on this stream, which alone has work that uses it.
            let _ = unsafe { sys::cuMemFreeAsync(address, self.uploads) };
        } else if self.wait_for_uploads().is_ok() {
            // SAFETY: allocated by the driver in this context, and the work that uses it has ended.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }

    /// Frees memory after its last use, without waiting for that. If the driver refuses, the memory stays allocated.
    fn free(&self, block: Block, last_use: &Arc<LastUse>) {
        let Ok(_current) = Current::enter(&self.context) else { return };
        match block {
            Block::Device(address) if self.is_stream_ordered && !last_use.is_in_graph() => {
                // SAFETY: the stream lives as long as `self`. The memory was allocated in stream order, and what is enqueued on
                // this stream now comes after its last use.
                unsafe {
                    if last_use.hold_up(self.frees.cast()).is_ok() {
                        let _ = sys::cuMemFreeAsync(address, self.frees);
                    }
                }
            }
            block => {
                let last_use = last_use.clone();
                self.left.lock().unwrap_or_else(PoisonError::into_inner).push(Left { block, last_use });
            }
        }
    }

    /// Frees the device memory that was dropped before and is not used any more. The context must be current.
    fn free_device_memory(&self) {
        self.take(|left| matches!(left.block, Block::Device(_))).iter().for_each(|left| self.free_now(left));
    }

    /// Pinned memory of exactly so many bytes that was dropped before and is not used any more. To free it and to allocate again could
    /// wait for the device. Sizes are powers of two, so that little is left that nothing takes over.
    fn take_over_pinned_memory(&self, bytes: usize) -> Option<*mut u8> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let mut of_this_size = left.iter().enumerate().filter_map(|(index, left)| match left.block {
            Block::Pinned { start, bytes: found } if found == bytes && left.last_use.has_ended() => {
                Some((index, start))
            }
            _ => None,
        });
        let (index, start) = of_this_size.next()?;
        left.swap_remove(index);
        Some(start)
    }

    /// Takes what is left and is not used any more out of the list, so that nobody who drops memory waits while it is freed.
    fn take(&self, mut is_wanted: impl FnMut(&Left) -> bool) -> Vec<Left> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.extract_if(.., |left| is_wanted(left) && left.last_use.has_ended()).collect()
    }

    /// Frees what is not used any more, which may wait for the device. The context must be current.
    fn free_now(&self, left: &Left) {
        // SAFETY: allocated by the driver in this context, and its last use has ended. The stream lives as long as `self`.
        let _ = unsafe {
            match left.block {
                Block::Device(address) if self.is_stream_ordered => sys::cuMemFreeAsync(address, self.frees),
                Block::Device(address) => sys::cuMemFree_v2(address),
                Block::Pinned { start, .. } => sys::cuMemFreeHost(start.cast()),
            }
        };
    }
}

impl Drop for Pool {
    /// Pinned memory that is in use then, and what a graph uses, stays allocated until the context ends.
    fn drop(&mut self) {
        if let Ok(_current) = Current::enter(&self.context) {
            if !self.is_stream_ordered {
                // Nobody else would free device memory, which may be much. An error leaves it allocated.
                let left = self.left.get_mut().unwrap_or_else(PoisonError::into_inner);
                let is_device = |left: &&mut Left| matches!(left.block, Block::Device(_));
                left.iter_mut().filter(is_device).for_each(|left| left.last_use.wait());
            }
            self.take(|_| true).iter().for_each(|left| self.free_now(left));
            for stream in [self.uploads, self.frees].into_iter().filter(|stream| !stream.is_null()) {
                // SAFETY: the stream lives, and this is its end. The driver lets its work finish.
                let _ = unsafe { sys::cuStreamDestroy_v2(stream) };
            }
        }
    }
}

/// Memory on the device, freed after its last use when dropped. Of size 0 it has the address 0.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    kernels: Kernels,
    address: u64,
    last_use: Arc<LastUse>,
    /// Whether something may still write there of which nothing tells the end.
    is_kept: bool,
}

impl DeviceMemory {
    /// Memory of so many bytes that begins with this content; the rest is undefined. The content has arrived.
    pub(super) fn with_content(
        kernels: &Kernels,
        last_use: &Arc<LastUse>,
        content: &[u8],
        bytes: usize,
    ) -> Result<Self, Error> {
        // SAFETY: the memory has room for the content, which stays as it is until the copy has ended.
        Self::new(kernels, last_use, bytes.max(content.len()), |to, stream| unsafe { copy(to, content, stream) })
    }

    /// Memory of zeros.
    pub(super) fn zeros(kernels: &Kernels, last_use: &Arc<LastUse>, bytes: usize) -> Result<Self, Error> {
        Self::new(kernels, last_use, bytes, |to, stream| {
            // SAFETY: the memory has these bytes, and the stream lives.
            check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(to, 0, bytes, stream) })
        })
    }

    /// Allocates, lets `fill` enqueue what fills the memory, and waits for that.
    fn new(
        kernels: &Kernels,
        last_use: &Arc<LastUse>,
        bytes: usize,
        fill: impl FnOnce(u64, CUstream) -> Result<(), Error>,
    ) -> Result<Self, Error> {
        let mut address = 0;
        if bytes > 0 {
            let _current = kernels.enter()?;
            let pool = kernels.pool();
            address = pool.allocate(bytes)?;
            let filled = fill(address, pool.uploads);
            // Also after a failure: something may have been enqueued.
            let arrived = pool.wait_for_uploads();
            if let Err(error) = filled.and(arrived) {
                pool.give_back(address);
                return Err(error);
            }
        }
        Ok(Self { kernels: kernels.clone(), address, last_use: last_use.clone(), is_kept: false })
    }

    /// Writes values to a place, in bytes after the start, that no enqueued work uses. They have arrived when the call returns.
    pub(super) fn upload<T: bytemuck::Pod>(&mut self, at: u64, values: &[T]) -> Result<(), Error> {
        if values.is_empty() {
            return Ok(());
        }
        let _current = self.kernels.enter()?;
        let pool = self.kernels.pool();
        // SAFETY: the place has room for the values, which stay as they are until the copy has ended.
        let enqueued = unsafe { copy(self.address + at, values, pool.uploads) };
        let arrived = pool.wait_for_uploads();
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
            self.kernels.pool().free(Block::Device(self.address), &self.last_use);
        }
    }
}

/// The least that is allocated: a page.
const SMALLEST_PINNED: usize = 4096;

/// Memory on the host that the device copies from while the host goes on. When it is dropped, later memory takes it over after its last
/// use.
#[derive(Debug)]
pub(super) struct PinnedMemory {
    kernels: Kernels,
    start: *mut u8,
    bytes: usize,
    last_use: Arc<LastUse>,
}

// SAFETY: the memory is reached through the value only, and any thread may use it.
unsafe impl Send for PinnedMemory {}
// SAFETY: shared references give no access to the content.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Memory of zeros. Its size is rounded up, so that other lists and controls can take it over later.
    pub(super) fn new(kernels: &Kernels, last_use: &Arc<LastUse>, bytes: usize) -> Result<Self, Error> {
        let bytes = bytes.max(SMALLEST_PINNED).checked_next_power_of_two().unwrap_or(bytes);
        let _current = kernels.enter()?;
        let start = match kernels.pool().take_over_pinned_memory(bytes) {
            Some(start) => start,
            None => allocate_pinned(bytes)?,
        };
        // SAFETY: the driver has given that many bytes there, and nothing uses them.
        unsafe { start.write_bytes(0, bytes) };
        Ok(Self { kernels: kernels.clone(), start, bytes, last_use: last_use.clone() })
    }

    /// The content. The device must not be copying the part that is then written.
    pub(super) fn content(&mut self) -> &mut [u8] {
        // SAFETY: all bytes were written when they were allocated, and this is the only reference. The device only reads them.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if !self.last_use.is_unknown() {
            let block = Block::Pinned { start: self.start, bytes: self.bytes };
            self.kernels.pool().free(block, &self.last_use);
        }
    }
}

/// Pinned memory of undefined content. The context must be current.
fn allocate_pinned(bytes: usize) -> Result<*mut u8, Error> {
    let mut start: *mut c_void = ptr::null_mut();
    // SAFETY: `start` is where the driver may write the address.
    check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut start, bytes, 0) })?;
    Ok(start.cast())
}

/// Copies to the device, in the order of `stream`, and waits for the stream: the values may go then.
///
/// # Safety
///
/// As for [`copy`], except that the values may go when the call returns.
pub(super) unsafe fn upload<T: bytemuck::Pod>(to: u64, values: &[T], stream: *mut c_void) -> Result<(), Error> {
    if values.is_empty() {
        return Ok(());
    }
    // SAFETY: as this function requires; the values live until the next call has waited for the copy, or the device is lost.
    unsafe { copy(to, values, stream.cast()) }?;
    // SAFETY: the stream is live, as this function requires.
    check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.cast()) })
}

/// Enqueues a copy to the device.
///
/// # Safety
///
/// - The kernels' context must be current, and `stream` a live stream of it.
/// - `to` must be the address of room for the values, which must stay as they are until the copy has ended.
pub(super) unsafe fn copy<T: bytemuck::Pod>(to: u64, values: &[T], stream: CUstream) -> Result<(), Error> {
    // SAFETY: as this function requires.
    let answer = unsafe { sys::cuMemcpyHtoDAsync_v2(to, values.as_ptr().cast(), size_of_val(values), stream) };
    check("cuMemcpyHtoDAsync", answer)
}

/// Reads from the device what the work before in `stream` has left there, and waits for it.
///
/// # Safety
///
/// - The kernels' context must be current, and `stream` a live stream of it.
/// - `from` must be the address of that many values.
pub(super) unsafe fn download<T: bytemuck::Pod>(from: u64, len: usize, stream: *mut c_void) -> Result<Vec<T>, Error> {
    let mut values = vec![T::zeroed(); len];
    if len > 0 {
        let bytes = size_of_val(values.as_slice());
        // SAFETY: as long as the values, which live until the copy has ended: the next call waits for it.
        let answer = unsafe { sys::cuMemcpyDtoHAsync_v2(values.as_mut_ptr().cast(), from, bytes, stream.cast()) };
        check("cuMemcpyDtoHAsync", answer)?;
        // SAFETY: the stream is live (this function's requirement).
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.cast()) })?;
    }
    Ok(values)
}

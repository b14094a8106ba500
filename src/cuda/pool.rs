//! The memory pool of a context: allocation, and freeing without a wait.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUstream};

use super::driver::{Current, Held, check};
use super::error::CudaError;
use super::event::LastUse;

/// Allocates and frees the library's memory in one context, with two streams of its own and a list
/// of what is still to be freed.
///
/// Nothing here waits for the whole context. Such a wait would block for all work of the process in
/// the context, and CUDA invalidates every capture in a context that is waited for.
#[derive(Debug)]
pub(super) struct Pool {
    context: Held<CudaContext>,
    /// Carries the copies that fill new memory. An allocation waits for this stream only.
    uploads: CUstream,
    /// Frees each block after its last use. Nothing waits for this stream.
    frees: CUstream,
    /// Whether the device has memory pools, so that streams can allocate and free.
    is_stream_ordered: bool,
    /// Dropped blocks that a stream cannot free: pinned memory, memory that a graph may still use,
    /// and all memory on a device without memory pools. Later allocations free or reuse them, once
    /// their last use has ended.
    left: Mutex<Vec<Left>>,
}

// SAFETY: streams are handles, and any thread may use them.
unsafe impl Send for Pool {}
// SAFETY: streams are handles, and several threads may use them at a time; the list is behind a
// lock.
unsafe impl Sync for Pool {}

#[derive(Debug)]
struct Left {
    block: Block,
    last_use: Arc<LastUse>,
}

/// Memory that the driver has allocated.
#[derive(Debug, Clone, Copy)]
pub(super) enum Block {
    Device(u64),
    Pinned { start: *mut u8, bytes: usize },
}

// SAFETY: a block owns its allocation, and any thread may use and free the driver's memory.
unsafe impl Send for Block {}

impl Pool {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, CudaError> {
        let _current = Current::enter(context)?;
        let mut pool = Self {
            context: Held::new(context.clone()),
            uploads: ptr::null_mut(),
            frees: ptr::null_mut(),
            is_stream_ordered: context.has_async_alloc(),
            left: Mutex::default(),
        };
        // Non-blocking, since the null stream would otherwise order them with the caller's work.
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        for stream in [&mut pool.uploads, &mut pool.frees] {
            // SAFETY: `stream` is where the driver may write the handle.
            check("cuStreamCreate", unsafe { sys::cuStreamCreate(stream, flags) })?;
        }
        Ok(pool)
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Makes the context current and keeps this thread's calls from invalidating captures, until
    /// the result is dropped.
    pub(super) fn enter(&self) -> Result<Current, CudaError> {
        Current::enter(&self.context)
    }

    /// The stream for the copies that fill new memory.
    pub(super) fn uploads(&self) -> CUstream {
        self.uploads
    }

    /// Allocates uninitialised device memory, usable after the work on the stream `uploads`. The
    /// context must be current.
    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.free_device_memory();
        let mut address = 0;
        if self.is_stream_ordered {
            // SAFETY: `address` is where the driver may write the address, and the stream is live
            // as long as `self`.
            check("cuMemAllocAsync", unsafe { sys::cuMemAllocAsync(&mut address, bytes, self.uploads) })?;
        } else {
            // SAFETY: `address` is where the driver may write the address.
            check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) })?;
        }
        Ok(address)
    }

    /// Blocks the host until the work on the stream `uploads` has ended. The context must be
    /// current.
    pub(super) fn wait_for_uploads(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is live as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.uploads) })
    }

    /// Frees memory that only work on the stream `uploads` uses. The context must be current.
    pub(super) fn give_back(&self, address: u64) {
        if self.is_stream_ordered {
            // SAFETY: the memory was allocated on this stream, and only work on this stream uses
            // it.
            let _ = unsafe { sys::cuMemFreeAsync(address, self.uploads) };
        } else if self.wait_for_uploads().is_ok() {
            // SAFETY: the memory was allocated in this context, and the work that uses it has
            // ended.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }

    /// Allocates exactly `bytes` bytes of pinned memory, uninitialised or reused. The context must
    /// be current.
    pub(super) fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, CudaError> {
        if let Some(start) = self.take_over_pinned(bytes) {
            return Ok(start);
        }
        let mut start: *mut c_void = ptr::null_mut();
        // SAFETY: `start` is where the driver may write the address.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut start, bytes, 0) })?;
        Ok(start.cast())
    }

    /// Frees memory after its last use, without a wait. If the driver refuses, the memory stays
    /// allocated.
    pub(super) fn free(&self, block: Block, last_use: &Arc<LastUse>) {
        let Ok(_current) = self.enter() else { return };
        match block {
            Block::Device(address) if self.is_stream_ordered && !last_use.is_in_graph() => {
                // SAFETY: the stream is live as long as `self`. The memory was allocated in stream
                // order, and the stream waits for its last use before the free.
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

    /// Frees the device memory in the list whose last use has ended. The context must be current.
    fn free_device_memory(&self) {
        self.take(|left| matches!(left.block, Block::Device(_))).iter().for_each(|left| self.free_now(left));
    }

    /// Takes pinned memory of exactly `bytes` bytes from the list, if the last use of a block has
    /// ended. Reusing it avoids a free and an allocation, which may both wait for the device.
    fn take_over_pinned(&self, bytes: usize) -> Option<*mut u8> {
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

    /// Takes wanted blocks whose last use has ended out of the list. They are freed after the lock
    /// is released, so that a drop in another thread does not wait.
    fn take(&self, mut is_wanted: impl FnMut(&Left) -> bool) -> Vec<Left> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.extract_if(.., |left| is_wanted(left) && left.last_use.has_ended()).collect()
    }

    /// Frees a block whose last use has ended. This may wait for the device. The context must be
    /// current.
    fn free_now(&self, left: &Left) {
        // SAFETY: the memory was allocated in this context by the matching call, and its last use
        // has ended. The stream is live as long as `self`.
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
    /// Frees all memory that is not in use. Pinned memory in use, and memory that a graph uses,
    /// stays allocated until the context ends.
    fn drop(&mut self) {
        if let Ok(_current) = self.enter() {
            if !self.is_stream_ordered {
                // Nothing else would free the device memory, which may be large. An error leaves it
                // allocated.
                let left = self.left.get_mut().unwrap_or_else(PoisonError::into_inner);
                let is_device = |left: &&mut Left| matches!(left.block, Block::Device(_));
                left.iter_mut().filter(is_device).for_each(|left| left.last_use.wait());
            }
            self.take(|_| true).iter().for_each(|left| self.free_now(left));
            for stream in [self.uploads, self.frees].into_iter().filter(|stream| !stream.is_null()) {
                // SAFETY: the stream is live and not used afterwards. The driver lets its work
                // finish.
                let _ = unsafe { sys::cuStreamDestroy_v2(stream) };
            }
        }
    }
}

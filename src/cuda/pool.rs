//! Where the memory of a context comes from, and how it is freed without waiting for anything.

use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUstream};

use super::driver::{Current, Held, check};
use super::error::CudaError;
use super::event::LastUse;

/// What the memory of one context needs: two streams of the library's own, and a list of what is
/// still to be freed.
///
/// Nothing here waits for the whole context. That would block for the work of everybody in the
/// process, and CUDA ends every capture in a context that is waited for.
#[derive(Debug)]
pub(super) struct Pool {
    context: Held<CudaContext>,
    /// Brings new memory its content. Whoever makes memory waits for this stream alone.
    uploads: CUstream,
    /// Frees memory, each piece after its last use. Nobody waits for it.
    frees: CUstream,
    /// Whether the device has memory that streams allocate and free.
    is_stream_ordered: bool,
    /// What no stream can free, and what a graph may still use: a later allocation frees it or
    /// takes it over, once its last use has ended.
    left: Mutex<Vec<Left>>,
}

// SAFETY: streams are handles, which any thread may use.
unsafe impl Send for Pool {}
// SAFETY: streams are handles, which any thread may use; the list is behind a lock.
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

// SAFETY: the block is the only one who knows the allocation, which any thread may use: device
// memory through the driver, pinned memory also on the host.
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
        // The null stream's rule must not order them with the caller's work.
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

    /// Makes the context current, and the thread's calls harmless to captures, for as long as the
    /// result lives.
    pub(super) fn enter(&self) -> Result<Current, CudaError> {
        Current::enter(&self.context)
    }

    /// The stream that brings new memory its content.
    pub(super) fn uploads(&self) -> CUstream {
        self.uploads
    }

    /// Device memory of undefined content, in the order of the stream `uploads`. The context must
    /// be current.
    pub(super) fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.free_device_memory();
        let mut address = 0;
        if self.is_stream_ordered {
            // SAFETY: `address` is where the driver may write the address, and the stream lives as
            // long as `self`.
            check("cuMemAllocAsync", unsafe { sys::cuMemAllocAsync(&mut address, bytes, self.uploads) })?;
        } else {
            // SAFETY: `address` is where the driver may write the address.
            check("cuMemAlloc", unsafe { sys::cuMemAlloc_v2(&mut address, bytes) })?;
        }
        Ok(address)
    }

    /// Blocks the host until the stream `uploads` has done what it has. The context must be
    /// current.
    pub(super) fn wait_for_uploads(&self) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.uploads) })
    }

    /// Frees memory that only work on the stream `uploads` uses. The context must be current.
    pub(super) fn give_back(&self, address: u64) {
        if self.is_stream_ordered {
            // SAFETY: the memory was allocated on this stream, which alone has work that uses it.
            let _ = unsafe { sys::cuMemFreeAsync(address, self.uploads) };
        } else if self.wait_for_uploads().is_ok() {
            // SAFETY: the driver allocated the memory in this context, and the work that uses it
            // has ended.
            let _ = unsafe { sys::cuMemFree_v2(address) };
        }
    }

    /// Pinned memory of exactly so many bytes, of undefined content. The context must be current.
    pub(super) fn allocate_pinned(&self, bytes: usize) -> Result<*mut u8, CudaError> {
        if let Some(start) = self.take_over_pinned(bytes) {
            return Ok(start);
        }
        let mut start: *mut c_void = ptr::null_mut();
        // SAFETY: `start` is where the driver may write the address.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut start, bytes, 0) })?;
        Ok(start.cast())
    }

    /// Frees memory after its last use, without waiting for that. If the driver refuses, the memory
    /// stays allocated.
    pub(super) fn free(&self, block: Block, last_use: &Arc<LastUse>) {
        let Ok(_current) = self.enter() else { return };
        match block {
            Block::Device(address) if self.is_stream_ordered && !last_use.is_in_graph() => {
                // SAFETY: the stream lives as long as `self`. The memory was allocated in stream
                // order, and what is enqueued on this stream now comes after its last use.
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

    /// Frees the device memory that was dropped before and is not used any more. The context must
    /// be current.
    fn free_device_memory(&self) {
        self.take(|left| matches!(left.block, Block::Device(_))).iter().for_each(|left| self.free_now(left));
    }

    /// Pinned memory of exactly so many bytes that was dropped before and is not used any more. To
    /// free it and to allocate again could wait for the device.
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

    /// Takes what is left and is not used any more out of the list. So nobody who drops memory
    /// waits while it is freed.
    fn take(&self, mut is_wanted: impl FnMut(&Left) -> bool) -> Vec<Left> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.extract_if(.., |left| is_wanted(left) && left.last_use.has_ended()).collect()
    }

    /// Frees what is not used any more, which may wait for the device. The context must be current.
    fn free_now(&self, left: &Left) {
        // SAFETY: the driver allocated the memory in this context, and its last use has ended. The
        // stream lives as long as `self`.
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
    /// Pinned memory that is in use then, and what a graph uses, stays allocated until the context
    /// ends.
    fn drop(&mut self) {
        if let Ok(_current) = self.enter() {
            if !self.is_stream_ordered {
                // Nobody else would free device memory, which may be much. An error leaves it
                // allocated.
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

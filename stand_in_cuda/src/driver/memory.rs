//! Device memory, pinned host memory, and copies between them.

use std::alloc::Layout;
use std::sync::Arc;

use super::abi::{HostAddress, List, Out, api, read_host};
use super::codes::*;
use super::queue::{Place, Work};
use super::state::{Driver, Handle, Pinned};
use crate::memory::is_device_address;

/// Pinned memory comes in pages.
const PAGE: usize = 4096;
/// What new pinned memory holds.
const JUNK: u8 = 0xa5;

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes, PAGE).ok()
}

/// Frees pinned memory, unless it was only registered.
pub(crate) fn release_host(address: HostAddress, pinned: Pinned) {
    if let Some(layout) = layout(pinned.bytes).filter(|_| pinned.is_owned) {
        // SAFETY: owned memory was allocated in `allocate_host` with this very layout, and is
        // released once: it has just been taken out of the list.
        unsafe { std::alloc::dealloc(address as *mut u8, layout) };
    }
}

impl Driver {
    fn allocate(&mut self, bytes: usize) -> Result<u64, Code> {
        let context = self.current()?;
        let free = self.settings.total_memory.saturating_sub(self.memory.live_bytes() as usize);
        if bytes > free {
            return Err(ERROR_OUT_OF_MEMORY);
        }
        Ok(self.memory.allocate(bytes, context))
    }

    fn allocate_host(&mut self, address: Out<HostAddress>, bytes: usize, flags: u32) -> Result<(), Code> {
        let context = self.current()?;
        self.refuse_unsafe_call()?;
        if bytes == 0 || flags > 7 || address.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let layout = layout(bytes).ok_or(ERROR_OUT_OF_MEMORY)?;
        // SAFETY: the layout is not empty.
        let pointer = unsafe { std::alloc::alloc(layout) };
        if pointer.is_null() {
            return Err(ERROR_OUT_OF_MEMORY);
        }
        // SAFETY: `bytes` bytes were just allocated.
        unsafe { pointer.write_bytes(JUNK, bytes) };
        self.pinned.insert(pointer as HostAddress, Pinned { context, bytes, is_owned: true, flags });
        address.set(pointer as HostAddress)
    }

    /// Whether pinned memory holds all of these bytes.
    pub(crate) fn is_pinned(&self, address: HostAddress, bytes: usize) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(base, pinned)| address.checked_add(bytes).is_some_and(|end| end <= base + pinned.bytes))
    }

    /// Whether a free of this allocation is sound: it begins here, lives, and is not being freed
    /// already.
    fn check_free(&mut self, base: u64) -> Result<(), Code> {
        let begins_here = self.memory.allocation(base).is_some_and(|(found, _, _)| found == base);
        if !begins_here || self.freeing.contains(&base) {
            self.violation(format!("free of {base:#x}, where no live allocation begins"));
            return Err(ERROR_INVALID_VALUE);
        }
        Ok(())
    }

    /// Fails if the stream's device has no stream-ordered memory.
    fn check_pools(&mut self, stream: Handle) -> Result<(), Code> {
        self.stream(stream)?;
        // MEMORY_POOLS_SUPPORTED.
        if self.attribute(115) == Some(0) { Err(ERROR_NOT_SUPPORTED) } else { Ok(()) }
    }

    /// The device side of a copy, checked at the call as the driver does.
    fn device_side(&self, address: u64, bytes: usize) -> Result<Place, Code> {
        self.memory.check(address, bytes).map_err(|_| ERROR_INVALID_VALUE)?;
        Ok(Place::Device(address))
    }

    fn host_side(&self, address: HostAddress, bytes: usize) -> Result<Place, Code> {
        match address {
            0 => Err(ERROR_INVALID_VALUE),
            _ if self.is_pinned(address, bytes) => Ok(Place::Pinned(address)),
            _ => Ok(Place::Pageable(address)),
        }
    }

    /// A side of a copy whose address may be of the device or of the host.
    fn any_side(&self, address: u64, bytes: usize) -> Result<Place, Code> {
        if is_device_address(address) {
            self.device_side(address, bytes)
        } else {
            self.host_side(address as HostAddress, bytes)
        }
    }

    /// A copy on a stream. A copy from pageable memory takes the bytes now or, with
    /// `reads_pageable_late`, when it runs. A copy to pageable memory returns when it is done.
    fn copy_async(&mut self, to: Place, from: Place, bytes: usize, stream: Handle, label: &str) -> Result<(), Code> {
        let stream = self.resolve_stream(stream)?;
        if bytes == 0 {
            return Ok(());
        }
        let is_captured = self.stream(stream)?.capture.is_some();
        let from = match from {
            Place::Pageable(address) if !is_captured && !self.settings.reads_pageable_late => {
                Place::Staged(Arc::new(read_host(address, bytes)))
            }
            from => from,
        };
        let returns_when_done = matches!(to, Place::Pageable(_)) && !is_captured;
        self.submit(stream, Work::Copy { to, from, bytes }, label)?;
        if returns_when_done {
            self.wait_for_last(stream)?;
        }
        Ok(())
    }

    /// A copy on the null stream. It returns when it is done, with two exceptions: a copy within
    /// the device, and one from pageable memory, which returns when its bytes are taken.
    fn copy_now(&mut self, to: Place, from: Place, bytes: usize, label: &str) -> Result<(), Code> {
        self.refuse_unsafe_call()?;
        let stream = self.resolve_stream(0)?;
        if bytes == 0 {
            return Ok(());
        }
        let is_left_open = match (&to, &from) {
            (Place::Device(_), Place::Device(_)) => true,
            (Place::Device(_), Place::Pageable(_)) => {
                // The copy waits for earlier work on the null stream before it takes the bytes.
                let earlier = self.predecessors(stream)?;
                self.wait(&earlier);
                self.current()?;
                true
            }
            _ => false,
        };
        self.copy_async(to, from, bytes, 0, label)?;
        if is_left_open { Ok(()) } else { self.wait_for_last(stream) }
    }

    fn wait_for_last(&mut self, stream: Handle) -> Result<(), Code> {
        let (context, tail) = {
            let stream = self.stream(stream)?;
            (stream.context, stream.tail)
        };
        self.wait(&Vec::from_iter(tail));
        self.sound_context(context).map(|_| ())
    }

    fn fill(&mut self, address: u64, unit: &[u8], count: usize, stream: Handle, label: &str) -> Result<(), Code> {
        let stream = self.resolve_stream(stream)?;
        if count == 0 {
            return Ok(());
        }
        let bytes = count.checked_mul(unit.len()).ok_or(ERROR_INVALID_VALUE)?;
        if !address.is_multiple_of(unit.len() as u64) {
            return Err(ERROR_INVALID_VALUE);
        }
        self.device_side(address, bytes)?;
        self.submit(stream, Work::Fill { address, unit: unit.to_vec(), count }, label)
    }

    fn pointer_attribute(&mut self, data: HostAddress, number: i32, pointer: u64) -> Result<(), Code> {
        if data == 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        let value = match self.memory.allocation(pointer) {
            Some((base, len, owner)) => match number {
                1 => owner.to_le_bytes().to_vec(),   // CONTEXT
                2 => 2i32.to_le_bytes().to_vec(),    // MEMORY_TYPE: device
                3 => pointer.to_le_bytes().to_vec(), // DEVICE_POINTER
                8 => vec![0],                        // IS_MANAGED
                9 => self.contexts.get(&owner).map_or(0, |context| context.device).to_le_bytes().to_vec(), // DEVICE_ORDINAL
                11 => base.to_le_bytes().to_vec(), // RANGE_START_ADDR
                12 => len.to_le_bytes().to_vec(),  // RANGE_SIZE
                _ => return Err(ERROR_INVALID_VALUE),
            },
            None if self.is_pinned(pointer as HostAddress, 1) => match number {
                2 => 1i32.to_le_bytes().to_vec(),    // MEMORY_TYPE: host
                4 => pointer.to_le_bytes().to_vec(), // HOST_POINTER
                8 => vec![0],                        // IS_MANAGED
                _ => return Err(ERROR_INVALID_VALUE),
            },
            None => return Err(ERROR_INVALID_VALUE),
        };
        super::abi::write_host(data, &value);
        Ok(())
    }
}

api! {
    fn cuMemAlloc_v2(driver, address: Out<u64>, bytes: usize) {
        driver.current()?;
        driver.refuse_unsafe_call()?;
        if bytes == 0 || address.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        address.set(driver.allocate(bytes)?)
    }

    fn cuMemFree_v2(driver, address: u64) {
        driver.current()?;
        driver.refuse_unsafe_call()?;
        if address == 0 {
            return Ok(());
        }
        driver.check_free(address)?;
        driver.queue.forget_allocation(address);
        driver.private.remove(&address);
        driver.memory.free(address).map_err(|_| ERROR_INVALID_VALUE)
    }

    fn cuMemAllocAsync(driver, address: Out<u64>, bytes: usize, stream: Handle) {
        let stream = driver.resolve_stream(stream)?;
        driver.check_pools(stream)?;
        if address.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        if bytes == 0 {
            return address.set(0);
        }
        let base = driver.allocate(bytes)?;
        let queued = driver.submit(stream, Work::Allocate { base }, "cuMemAllocAsync");
        if queued.is_err() {
            driver.memory.free(base).map_err(|_| ERROR_UNKNOWN)?;
        }
        queued?;
        address.set(base)
    }

    fn cuMemFreeAsync(driver, address: u64, stream: Handle) {
        let stream = driver.resolve_stream(stream)?;
        driver.check_pools(stream)?;
        if address == 0 {
            return Ok(());
        }
        driver.check_free(address)?;
        driver.submit(stream, Work::Free { base: address }, "cuMemFreeAsync")?;
        driver.freeing.insert(address);
        Ok(())
    }

    fn cuMemGetInfo_v2(driver, free: Out<usize>, total: Out<usize>) {
        driver.current()?;
        let all = driver.settings.total_memory;
        free.set(all.saturating_sub(driver.memory.live_bytes() as usize))?;
        total.set(all)
    }

    fn cuMemGetAddressRange_v2(driver, base: Out<u64>, size: Out<usize>, address: u64) {
        driver.current()?;
        let (found, len, _) = driver.memory.allocation(address).ok_or(ERROR_NOT_FOUND)?;
        base.set_if_wanted(found);
        size.set_if_wanted(len as usize);
        Ok(())
    }

    fn cuPointerGetAttribute(driver, data: HostAddress, number: i32, pointer: u64) {
        driver.pointer_attribute(data, number, pointer)
    }

    fn cuPointerGetAttributes(driver, count: u32, numbers: List<i32>, data: List<HostAddress>, pointer: u64) {
        let pairs = numbers.read(count as usize)?.into_iter().zip(data.read(count as usize)?);
        for (number, data) in pairs {
            // Unlike `cuPointerGetAttribute`, this function ignores attributes without a value.
            let _ = driver.pointer_attribute(data, number, pointer);
        }
        Ok(())
    }

    fn cuMemHostAlloc(driver, address: Out<HostAddress>, bytes: usize, flags: u32) {
        driver.allocate_host(address, bytes, flags)
    }

    fn cuMemAllocHost_v2(driver, address: Out<HostAddress>, bytes: usize) {
        driver.allocate_host(address, bytes, 0)
    }

    fn cuMemFreeHost(driver, address: HostAddress) {
        driver.current()?;
        driver.refuse_unsafe_call()?;
        match driver.pinned.get(&address).copied().filter(|pinned| pinned.is_owned) {
            Some(pinned) => {
                driver.pinned.remove(&address);
                release_host(address, pinned);
                Ok(())
            }
            None => {
                driver.violation(format!("free of {address:#x}, where no pinned memory begins"));
                Err(ERROR_INVALID_VALUE)
            }
        }
    }

    fn cuMemHostRegister_v2(driver, address: HostAddress, bytes: usize, flags: u32) {
        let context = driver.current()?;
        driver.refuse_unsafe_call()?;
        if address == 0 || bytes == 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        let end = address.checked_add(bytes).ok_or(ERROR_INVALID_VALUE)?;
        if (address..end).step_by(PAGE).any(|part| driver.is_pinned(part, 1)) {
            return Err(ERROR_HOST_MEMORY_ALREADY_REGISTERED);
        }
        driver.pinned.insert(address, Pinned { context, bytes, is_owned: false, flags });
        Ok(())
    }

    fn cuMemHostUnregister(driver, address: HostAddress) {
        driver.current()?;
        driver.refuse_unsafe_call()?;
        match driver.pinned.get(&address).filter(|pinned| !pinned.is_owned) {
            Some(_) => {
                driver.pinned.remove(&address);
                Ok(())
            }
            None => Err(ERROR_HOST_MEMORY_NOT_REGISTERED),
        }
    }

    fn cuMemHostGetFlags(driver, flags: Out<u32>, address: HostAddress) {
        let pinned = driver.pinned.get(&address).ok_or(ERROR_INVALID_VALUE)?;
        flags.set(pinned.flags)
    }

    fn cuMemcpyHtoD_v2(driver, to: u64, from: HostAddress, bytes: usize) {
        let (to, from) = (driver.device_side(to, bytes)?, driver.host_side(from, bytes)?);
        driver.copy_now(to, from, bytes, "cuMemcpyHtoD_v2")
    }

    fn cuMemcpyDtoH_v2(driver, to: HostAddress, from: u64, bytes: usize) {
        let (to, from) = (driver.host_side(to, bytes)?, driver.device_side(from, bytes)?);
        driver.copy_now(to, from, bytes, "cuMemcpyDtoH_v2")
    }

    fn cuMemcpyDtoD_v2(driver, to: u64, from: u64, bytes: usize) {
        let (to, from) = (driver.device_side(to, bytes)?, driver.device_side(from, bytes)?);
        driver.copy_now(to, from, bytes, "cuMemcpyDtoD_v2")
    }

    fn cuMemcpy(driver, to: u64, from: u64, bytes: usize) {
        let (to, from) = (driver.any_side(to, bytes)?, driver.any_side(from, bytes)?);
        driver.copy_now(to, from, bytes, "cuMemcpy")
    }

    fn cuMemcpyHtoDAsync_v2(driver, to: u64, from: HostAddress, bytes: usize, stream: Handle) {
        let (to, from) = (driver.device_side(to, bytes)?, driver.host_side(from, bytes)?);
        driver.copy_async(to, from, bytes, stream, "cuMemcpyHtoDAsync_v2")
    }

    fn cuMemcpyDtoHAsync_v2(driver, to: HostAddress, from: u64, bytes: usize, stream: Handle) {
        let (to, from) = (driver.host_side(to, bytes)?, driver.device_side(from, bytes)?);
        driver.copy_async(to, from, bytes, stream, "cuMemcpyDtoHAsync_v2")
    }

    fn cuMemcpyDtoDAsync_v2(driver, to: u64, from: u64, bytes: usize, stream: Handle) {
        let (to, from) = (driver.device_side(to, bytes)?, driver.device_side(from, bytes)?);
        driver.copy_async(to, from, bytes, stream, "cuMemcpyDtoDAsync_v2")
    }

    fn cuMemcpyAsync(driver, to: u64, from: u64, bytes: usize, stream: Handle) {
        let (to, from) = (driver.any_side(to, bytes)?, driver.any_side(from, bytes)?);
        driver.copy_async(to, from, bytes, stream, "cuMemcpyAsync")
    }

    fn cuMemcpyPeerAsync(driver, to: u64, _to_context: Handle, from: u64, _from_context: Handle, bytes: usize, stream: Handle) {
        let (to, from) = (driver.device_side(to, bytes)?, driver.device_side(from, bytes)?);
        driver.copy_async(to, from, bytes, stream, "cuMemcpyPeerAsync")
    }

    fn cuMemsetD8_v2(driver, address: u64, value: u8, count: usize) {
        driver.fill(address, &value.to_le_bytes(), count, 0, "cuMemsetD8_v2")
    }

    fn cuMemsetD16_v2(driver, address: u64, value: u16, count: usize) {
        driver.fill(address, &value.to_le_bytes(), count, 0, "cuMemsetD16_v2")
    }

    fn cuMemsetD32_v2(driver, address: u64, value: u32, count: usize) {
        driver.fill(address, &value.to_le_bytes(), count, 0, "cuMemsetD32_v2")
    }

    fn cuMemsetD8Async(driver, address: u64, value: u8, count: usize, stream: Handle) {
        driver.fill(address, &value.to_le_bytes(), count, stream, "cuMemsetD8Async")
    }

    fn cuMemsetD16Async(driver, address: u64, value: u16, count: usize, stream: Handle) {
        driver.fill(address, &value.to_le_bytes(), count, stream, "cuMemsetD16Async")
    }

    fn cuMemsetD32Async(driver, address: u64, value: u32, count: usize, stream: Handle) {
        driver.fill(address, &value.to_le_bytes(), count, stream, "cuMemsetD32Async")
    }
}

/// Functions that a program can resolve, so that it loads, but that return
/// `CUDA_ERROR_NOT_SUPPORTED`.
macro_rules! not_supported {
    ($($name:ident)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name() -> Code {
                super::call(stringify!($name), |_| Err(ERROR_NOT_SUPPORTED))
            }
        )*
    };
}

not_supported! {
    cuDeviceGetDefaultMemPool cuDeviceGetMemPool cuDeviceSetMemPool
    cuMemPoolCreate cuMemPoolDestroy cuMemPoolTrimTo cuMemPoolGetAttribute cuMemPoolSetAttribute cuMemAllocFromPoolAsync
    cuMemAllocManaged cuMemAdvise cuMemAdvise_v2 cuMemPrefetchAsync cuMemPrefetchAsync_v2 cuStreamAttachMemAsync
    cuMemHostGetDevicePointer_v2 cuMemAllocPitch_v2
    cuImportExternalMemory cuDestroyExternalMemory cuExternalMemoryGetMappedBuffer
    cuLibraryLoadData cuLibraryLoadFromFile cuLibraryUnload cuLibraryGetKernel cuLibraryGetModule cuKernelGetFunction
    cuModuleLoadFatBinary cuLinkCreate_v2 cuLinkAddData_v2 cuLinkComplete cuLinkDestroy
    cuLaunchCooperativeKernel cuOccupancyMaxPotentialBlockSize cuOccupancyMaxPotentialBlockSizeWithFlags
    cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveClusters cuOccupancyMaxPotentialClusterSize
    cuGraphExecKernelNodeSetParams_v2 cuGraphExecUpdate_v2 cuGetProcAddress_v2
}

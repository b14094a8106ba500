//! Initialisation, devices, contexts, and which context is current in which thread.

use std::cell::RefCell;
use std::ffi::c_char;

use super::abi::{HostAddress, Out, api, write_text};
use super::codes::*;
use super::state::{Driver, Handle, Kind};

thread_local! {
    /// The thread's stack of contexts; the last is current.
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// The current context, unless a reset has ended it.
pub(crate) fn current_handle(driver: &Driver) -> Option<Handle> {
    STACK.with_borrow(|stack| stack.last().copied()).filter(|handle| driver.contexts.contains_key(handle))
}

/// Forgets the calling thread's stack.
pub(crate) fn clear_stack() {
    STACK.with_borrow_mut(Vec::clear);
}

/// The default value of a device attribute. `None`: the stand-in does not know it.
fn attribute(number: i32) -> Option<i32> {
    Some(match number {
        1 => 1024,               // MAX_THREADS_PER_BLOCK
        2 | 3 => 1024,           // MAX_BLOCK_DIM_X, _Y
        4 => 64,                 // MAX_BLOCK_DIM_Z
        5 => i32::MAX,           // MAX_GRID_DIM_X
        6 | 7 => 65535,          // MAX_GRID_DIM_Y, _Z
        8 => 49152,              // MAX_SHARED_MEMORY_PER_BLOCK
        9 => 65536,              // TOTAL_CONSTANT_MEMORY
        10 => 32,                // WARP_SIZE
        12 => 65536,             // MAX_REGISTERS_PER_BLOCK
        13 => 1_000_000,         // CLOCK_RATE
        16 => 4,                 // MULTIPROCESSOR_COUNT
        19 => 1,                 // CAN_MAP_HOST_MEMORY
        20 => 0,                 // COMPUTE_MODE
        31 => 1,                 // CONCURRENT_KERNELS
        32 | 35 => 0,            // ECC_ENABLED, TCC_DRIVER
        36 => 1_000_000,         // MEMORY_CLOCK_RATE
        37 => 512,               // GLOBAL_MEMORY_BUS_WIDTH
        38 => 4 << 20,           // L2_CACHE_SIZE
        39 => 2048,              // MAX_THREADS_PER_MULTIPROCESSOR
        40 => 1,                 // ASYNC_ENGINE_COUNT
        41 => 1,                 // UNIFIED_ADDRESSING
        75 => 9,                 // COMPUTE_CAPABILITY_MAJOR
        76 => 0,                 // COMPUTE_CAPABILITY_MINOR
        78 => 1,                 // STREAM_PRIORITIES_SUPPORTED
        82 => 65536,             // MAX_REGISTERS_PER_MULTIPROCESSOR
        83 | 88 | 89 | 100 => 0, // MANAGED_MEMORY and its relatives
        115 => 1,                // MEMORY_POOLS_SUPPORTED
        _ => return None,
    })
}

impl Driver {
    pub(crate) fn attribute(&self, number: i32) -> Option<i32> {
        self.settings.attributes.get(&number).copied().or_else(|| attribute(number))
    }

    fn primary(&mut self, device: i32) -> Handle {
        match self.primaries.get(&device) {
            Some(handle) => *handle,
            None => {
                let handle = self.new_context(device, true, 0);
                if let Some(context) = self.contexts.get_mut(&handle) {
                    context.is_live = false;
                }
                self.primaries.insert(device, handle);
                handle
            }
        }
    }

    /// `cuCtxCreate` in all its versions.
    fn create_context(&mut self, context: Out<Handle>, flags: u32, device: i32) -> Result<(), Code> {
        self.check_device(device)?;
        if context.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let handle = self.new_context(device, false, flags);
        STACK.with_borrow_mut(|stack| stack.push(handle));
        context.set(handle)
    }

    fn check_context(&mut self, handle: Handle) -> Result<(), Code> {
        if self.contexts.contains_key(&handle) { Ok(()) } else { Err(self.bad_handle(handle, Kind::Context)) }
    }
}

api! {
    fn cuInit(driver, flags: u32) {
        if flags != 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        if driver.settings.devices == 0 {
            return Err(ERROR_NO_DEVICE);
        }
        driver.is_initialised = true;
        Ok(())
    }

    fn cuDriverGetVersion(driver, version: Out<i32>) {
        version.set(driver.settings.driver_version)
    }

    fn cuGetErrorName(_driver, code: i32, name: Out<*const c_char>) {
        let (found, _) = describe(code).ok_or(ERROR_INVALID_VALUE)?;
        name.set(found.as_ptr())
    }

    fn cuGetErrorString(_driver, code: i32, text: Out<*const c_char>) {
        let (_, found) = describe(code).ok_or(ERROR_INVALID_VALUE)?;
        text.set(found.as_ptr())
    }

    fn cuDeviceGetCount(driver, count: Out<i32>) {
        count.set(driver.settings.devices)
    }

    fn cuDeviceGet(driver, device: Out<i32>, ordinal: i32) {
        driver.check_device(ordinal)?;
        device.set(ordinal)
    }

    fn cuDeviceGetName(driver, name: HostAddress, size: i32, device: i32) {
        driver.check_device(device)?;
        if name == 0 || size <= 0 {
            return Err(ERROR_INVALID_VALUE);
        }
        write_text(&format!("Stand-in device {device}"), name, size as usize);
        Ok(())
    }

    fn cuDeviceGetUuid(driver, uuid: Out<[u8; 16]>, device: i32) {
        driver.check_device(device)?;
        uuid.set([device as u8; 16])
    }

    fn cuDeviceGetUuid_v2(driver, uuid: Out<[u8; 16]>, device: i32) {
        driver.check_device(device)?;
        uuid.set([device as u8; 16])
    }

    fn cuDeviceTotalMem_v2(driver, bytes: Out<usize>, device: i32) {
        driver.check_device(device)?;
        bytes.set(driver.settings.total_memory)
    }

    fn cuDeviceGetAttribute(driver, value: Out<i32>, number: i32, device: i32) {
        driver.check_device(device)?;
        value.set(driver.attribute(number).ok_or(ERROR_INVALID_VALUE)?)
    }

    fn cuDeviceCanAccessPeer(driver, answer: Out<i32>, device: i32, peer: i32) {
        driver.check_device(device)?;
        driver.check_device(peer)?;
        answer.set(0)
    }

    fn cuDevicePrimaryCtxRetain(driver, context: Out<Handle>, device: i32) {
        driver.check_device(device)?;
        if context.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        let handle = driver.primary(device);
        if let Some(primary) = driver.contexts.get_mut(&handle) {
            primary.is_live = true;
            primary.retains += 1;
        }
        context.set(handle)
    }

    fn cuDevicePrimaryCtxRelease_v2(driver, device: i32) {
        driver.check_device(device)?;
        let handle = driver.primary(device);
        let Some(primary) = driver.contexts.get_mut(&handle).filter(|primary| primary.retains > 0) else {
            return Err(ERROR_INVALID_CONTEXT);
        };
        primary.retains -= 1;
        if primary.retains == 0 {
            driver.end_context(handle);
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxGetState(driver, device: i32, flags: Out<u32>, is_active: Out<i32>) {
        driver.check_device(device)?;
        let handle = driver.primary(device);
        let state = driver.contexts.get(&handle).map(|primary| (primary.flags, primary.is_live));
        let (primary_flags, is_live) = state.unwrap_or_default();
        flags.set(primary_flags)?;
        is_active.set(i32::from(is_live))
    }

    fn cuDevicePrimaryCtxSetFlags_v2(driver, device: i32, flags: u32) {
        driver.check_device(device)?;
        let handle = driver.primary(device);
        if let Some(primary) = driver.contexts.get_mut(&handle) {
            primary.flags = flags;
        }
        Ok(())
    }

    fn cuDevicePrimaryCtxReset_v2(driver, device: i32) {
        driver.check_device(device)?;
        let handle = driver.primary(device);
        driver.end_context(handle);
        Ok(())
    }

    fn cuCtxCreate_v2(driver, context: Out<Handle>, flags: u32, device: i32) {
        driver.create_context(context, flags, device)
    }

    fn cuCtxCreate_v3(driver, context: Out<Handle>, affinity: HostAddress, count: i32, flags: u32, device: i32) {
        if affinity != 0 || count != 0 {
            return Err(ERROR_NOT_SUPPORTED);
        }
        driver.create_context(context, flags, device)
    }

    fn cuCtxCreate_v4(driver, context: Out<Handle>, params: HostAddress, flags: u32, device: i32) {
        if params != 0 {
            return Err(ERROR_NOT_SUPPORTED);
        }
        driver.create_context(context, flags, device)
    }

    fn cuCtxDestroy_v2(driver, context: Handle) {
        match driver.contexts.get(&context) {
            None => return Err(driver.bad_handle(context, Kind::Context)),
            // A caller must not destroy a primary context.
            Some(primary) if primary.is_primary => return Err(ERROR_INVALID_CONTEXT),
            Some(_) => {}
        }
        driver.end_context(context);
        driver.contexts.remove(&context);
        driver.streams.retain(|_, stream| stream.context != context);
        STACK.with_borrow_mut(|stack| {
            if stack.last() == Some(&context) {
                stack.pop();
            }
        });
        Ok(())
    }

    fn cuCtxGetCurrent(driver, context: Out<Handle>) {
        context.set(current_handle(driver).unwrap_or(0))
    }

    fn cuCtxSetCurrent(driver, context: Handle) {
        if context != 0 {
            driver.check_context(context)?;
        }
        STACK.with_borrow_mut(|stack| {
            stack.pop();
            stack.extend(Some(context).filter(|&context| context != 0));
        });
        Ok(())
    }

    fn cuCtxPushCurrent_v2(driver, context: Handle) {
        driver.check_context(context)?;
        STACK.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    }

    fn cuCtxPopCurrent_v2(_driver, context: Out<Handle>) {
        let popped = STACK.with_borrow_mut(Vec::pop).ok_or(ERROR_INVALID_CONTEXT)?;
        context.set_if_wanted(popped);
        Ok(())
    }

    fn cuCtxGetDevice(driver, device: Out<i32>) {
        let current = current_handle(driver).ok_or(ERROR_INVALID_CONTEXT)?;
        device.set(driver.contexts.get(&current).map_or(0, |context| context.device))
    }

    fn cuCtxGetId(driver, context: Handle, id: Out<u64>) {
        let context = if context == 0 { current_handle(driver).ok_or(ERROR_INVALID_CONTEXT)? } else { context };
        driver.check_context(context)?;
        id.set(context)
    }

    fn cuCtxGetApiVersion(driver, context: Handle, version: Out<u32>) {
        driver.check_context(context)?;
        version.set(3020)
    }

    fn cuCtxGetFlags(driver, flags: Out<u32>) {
        let current = driver.current()?;
        flags.set(driver.sound_context(current)?.flags)
    }

    fn cuCtxSetFlags(driver, flags: u32) {
        let current = driver.current()?;
        driver.sound_context(current)?.flags = flags;
        Ok(())
    }

    fn cuCtxGetStreamPriorityRange(driver, least: Out<i32>, greatest: Out<i32>) {
        driver.current()?;
        least.set_if_wanted(0);
        greatest.set_if_wanted(-5);
        Ok(())
    }

    fn cuCtxGetLimit(driver, value: Out<usize>, _limit: i32) {
        driver.current()?;
        value.set(1024)
    }

    fn cuCtxSetLimit(driver, _limit: i32, _value: usize) {
        driver.current().map(|_| ())
    }

    fn cuCtxGetCacheConfig(driver, config: Out<i32>) {
        driver.current()?;
        config.set(0)
    }

    fn cuCtxSetCacheConfig(driver, _config: i32) {
        driver.current().map(|_| ())
    }

    fn cuCtxSynchronize(driver) {
        let current = driver.current()?;
        driver.refuse_capture_in(current)?;
        let pending = driver.queue.pending_of(current);
        driver.wait(&pending);
        driver.queue.know_all_of(current);
        driver.sound_context(current).map(|_| ())
    }

    fn cuProfilerStart(_driver) {
        Ok(())
    }

    fn cuProfilerStop(_driver) {
        Ok(())
    }
}

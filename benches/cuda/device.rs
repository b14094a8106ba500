//! The device, its memory and its properties.

use std::sync::Arc;

use dualadam::cuda::cudarc::driver::sys::CUdevice_attribute as Attribute;
use dualadam::cuda::cudarc::driver::{CudaContext, CudaStream, result, sys};
use dualadam::cuda::{CudaError, Kernels};
use dualadam::{ArgumentError, ListError};
use serde::Serialize;

use crate::yardsticks::Yardsticks;

pub(crate) struct Device {
    pub(crate) kernels: Kernels,
    pub(crate) yardsticks: Yardsticks,
    pub(crate) context: Arc<CudaContext>,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) facts: Facts,
}

/// What the driver reports about the device.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    pub(crate) name: String,
    compute_capability: String,
    /// The CUDA version that the driver supports, 12080 for 12.8.
    driver_cuda: i32,
    memory_bytes: usize,
    pub(crate) l2_bytes: usize,
    multiprocessors: i32,
    clock_khz: i32,
    memory_clock_khz: i32,
    memory_bus_bits: i32,
}

impl Device {
    /// The first device, or the reason why there is none. Panics if there is a device that does not
    /// work.
    pub(crate) fn find() -> Result<Self, String> {
        let kernels = find_kernels()?;
        let context = kernels.context().clone();
        context.bind_to_thread().expect("the context can be used");
        // SAFETY: all work goes to one stream, or is waited for.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream can be made");
        let facts = Facts::of(&context);
        Ok(Self { kernels, yardsticks: Yardsticks::load(), context, stream, facts })
    }

    /// Allocates device memory of undefined content. Fails, and says how much is free, if that is
    /// too little.
    pub(crate) fn memory(&self, bytes: usize) -> Result<Memory, String> {
        let (free, _) = self.context.mem_get_info().expect("the driver knows its memory");
        // The driver needs some memory for itself.
        if bytes + (256 << 20) > free {
            return Err(format!("{bytes} bytes of device memory needed, {free} free"));
        }
        // SAFETY: a context is current.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|error| error.to_string())?;
        Ok(Memory { address })
    }

    /// Whether an error has ended all work on the device.
    pub(crate) fn is_lost(&self) -> bool {
        self.context.synchronize().is_err()
    }

    pub(crate) fn synchronize(&self) {
        self.context.synchronize().expect("the work succeeds");
    }
}

/// The kernels of the first device, or why there is none.
pub(crate) fn find_kernels() -> Result<Kernels, String> {
    match Kernels::new(0) {
        Ok(kernels) => Ok(kernels),
        Err(
            error @ (CudaError::NoDriver
            | CudaError::StubDriver
            | CudaError::OldDriver { .. }
            | CudaError::Driver { call: "cuInit", .. }),
        ) => Err(error.to_string()),
        Err(CudaError::Argument(ArgumentError::List(ListError::Position { .. }))) => {
            Err("the CUDA driver finds no device".to_owned())
        }
        Err(error) => panic!("{error}"),
    }
}

impl Facts {
    fn of(context: &CudaContext) -> Self {
        let attribute = |attribute| context.attribute(attribute).expect("the driver knows its device");
        let (major, minor) = context.compute_capability().expect("the driver knows its device");
        let mut driver_cuda = 0;
        // SAFETY: `driver_cuda` is a place for the answer.
        let answer = unsafe { sys::cuDriverGetVersion(&mut driver_cuda) };
        answer.result().expect("the driver has a version");
        Self {
            name: context.name().expect("the device has a name"),
            compute_capability: format!("{major}.{minor}"),
            driver_cuda,
            memory_bytes: context.total_mem().expect("the driver knows its memory"),
            l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE) as usize,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT),
            clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE),
            memory_clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE),
            memory_bus_bits: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH),
        }
    }
}

/// Device memory, freed when dropped.
pub(crate) struct Memory {
    pub(crate) address: u64,
}

impl Memory {
    /// Fills bytes with repetitions of a pattern.
    pub(crate) fn repeat(&self, pattern: &[u8], from: usize, bytes: usize) {
        let (start, mut done) = (self.address + from as u64, pattern.len().min(bytes));
        // SAFETY: all is within the memory, and what is copied does not overlap.
        unsafe {
            result::memcpy_htod_sync(start, &pattern[..done]).expect("the memory can be written");
            while done < bytes {
                let more = done.min(bytes - done);
                result::memcpy_dtod_sync(start + done as u64, start, more).expect("the memory can be copied");
                done += more;
            }
        }
    }

    /// Fills bytes with zeros.
    pub(crate) fn clear(&self, from: usize, bytes: usize) {
        // SAFETY: all is within the memory.
        unsafe { result::memset_d8_sync(self.address + from as u64, 0, bytes) }.expect("the memory can be written");
    }

    pub(crate) fn read(&self, from: usize, bytes: usize) -> Vec<u8> {
        let mut values = vec![0; bytes];
        if bytes > 0 {
            // SAFETY: within the memory.
            unsafe { result::memcpy_dtoh_sync(&mut values, self.address + from as u64) }
                .expect("the memory can be read");
        }
        values
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the driver allocated the memory, and waits for the work that uses it.
        let _ = unsafe {
            let _ = result::ctx::synchronize();
            result::free_sync(self.address)
        };
    }
}

//! The CUDA backend on a real device: the tests that run on the stand-in driver too, and lengths
//! that only a device can hold.
//!
//! Without a device all tests are ignored, with the reason; `DUALADAM_REQUIRE=cuda` makes that a
//! failure. The program reads no file of the repository, so that it can run on a machine without
//! one.

#[path = "cuda/bodies/mod.rs"]
mod bodies;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use dualadam::cuda::{CudaError, Kernels};
use dualadam::{ArgumentError, ListError};
use libtest_mimic::Completion;

use bodies::gpu::Gpu;
use bodies::large::Large;
use testkit::device;

/// A real device.
struct Device {
    /// Loaded once, since the driver compiles the kernels for the device.
    kernels: Kernels,
    /// Tests take turns.
    turn: Mutex<()>,
}

impl Device {
    /// The first device, or why there is none. Panics if there is one that does not work.
    fn find() -> Result<Self, String> {
        let kernels = match Kernels::new(0) {
            Ok(kernels) => kernels,
            Err(
                error @ (CudaError::NoDriver | CudaError::OldDriver { .. } | CudaError::Driver { call: "cuInit", .. }),
            ) => {
                return Err(error.to_string());
            }
            Err(CudaError::Argument(ArgumentError::List(ListError::Position { .. }))) => {
                return Err("the CUDA driver finds no device".to_owned());
            }
            Err(error) => panic!("{error}"),
        };
        let name = kernels.context().name().unwrap_or_else(|error| panic!("{error}"));
        if name.starts_with("Stand-in device") {
            return Err("libcuda is the stand-in of the other tests, not a driver".to_owned());
        }
        let capability = kernels.context().compute_capability().unwrap_or_else(|error| panic!("{error}"));
        println!("device 0: {name}, compute capability {}.{}", capability.0, capability.1);
        Ok(Self { kernels, turn: Mutex::new(()) })
    }

    fn test(&self, body: impl FnOnce(&Gpu)) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let gpu = Gpu::new(None);
        body(&gpu);
        gpu.assert_clean();
    }

    /// As [`test`](Self::test), if this many bytes of device memory are free.
    fn test_with_memory(&self, bytes: u64, body: impl FnOnce(&Gpu)) -> Completion {
        let needed = bytes + (1 << 30);
        let (free, _) = self.kernels.context().mem_get_info().unwrap_or_else(|error| panic!("{error}"));
        if (free as u64) < needed {
            return Completion::ignored_with(format!(
                "{} GiB of device memory needed, {} free",
                needed >> 30,
                free >> 30
            ));
        }
        self.test(body);
        Completion::Completed
    }
}

/// A prime, so that no power of two is a multiple of it.
const PERIOD: usize = (1 << 22) - 3;
const BEYOND_31_BITS: Large = Large { len: (1 << 31) + 5, period: PERIOD };
const BEYOND_32_BITS: Large = Large { len: (1 << 32) + 5, period: PERIOD };

/// Bytes of device memory for an element: bf16 parameters and gradients, f32 moments.
const BYTES: u64 = 12;

/// A name, a tensor, and a step of it.
type LargeTest = (&'static str, Large, fn(&Large, &Gpu));

const LARGE: [LargeTest; 4] = [
    ("large::more_than_31_bits_flat", BEYOND_31_BITS, |large, gpu| large.flat_step(gpu, [0; 4])),
    ("large::more_than_31_bits_without_a_common_alignment", BEYOND_31_BITS, |large, gpu| {
        large.flat_step(gpu, [1, 3, 2, 1]);
    }),
    ("large::more_than_32_bits_flat", BEYOND_32_BITS, |large, gpu| large.flat_step(gpu, [0; 4])),
    ("large::more_than_32_bits_in_a_list", BEYOND_32_BITS, |large, gpu| large.list_step(gpu)),
];

fn main() -> ExitCode {
    let device = Device::find().map(Arc::new);
    let shared = |(name, body): bodies::Body| {
        device::trial("cuda", &device, name, move |device| {
            device.test(body);
            Completion::Completed
        })
    };
    let large = |(name, large, step): LargeTest| {
        device::trial("cuda", &device, name, move |device| {
            device.test_with_memory(BYTES * large.len, |gpu| step(&large, gpu))
        })
    };
    device::conclude(bodies::all().into_iter().map(shared).chain(LARGE.into_iter().map(large)).collect()).exit_code()
}

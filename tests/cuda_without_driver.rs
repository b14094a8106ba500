//! The CUDA backend on a machine without a driver: an error, never a panic.

#![cfg(feature = "cuda")]

use dualadam::cuda::{CudaError, Kernels, cudarc};

#[test]
fn no_driver_is_an_error() {
    // SAFETY: this only opens the system's libcuda, if there is one.
    if unsafe { cudarc::driver::sys::is_culib_present() } {
        println!("not tested: this machine has a CUDA driver");
        return;
    }
    let error = Kernels::new(0).unwrap_err();
    assert!(matches!(error, CudaError::NoDriver), "{error:?}");
    assert_eq!(error.to_string(), "no CUDA driver: libcuda cannot be opened; it comes with the NVIDIA driver");
}

//! The CUDA functions on a machine without a driver: a status, never a panic.

use dualadam::cuda::cudarc;
use dualadam_capi::{DUALADAM_STATUS_CUDA_NO_DRIVER, dualadam_cuda_kernels_new};

#[test]
fn no_driver_is_a_status() {
    // SAFETY: the initialisers of this system library have no requirements.
    if unsafe { cudarc::driver::sys::is_culib_present() } {
        println!("not tested: this machine has a CUDA driver");
        return;
    }
    let mut kernels = 9;
    // SAFETY: the handle is a variable.
    let status = unsafe { dualadam_cuda_kernels_new(0, &mut kernels) };
    assert_eq!((status, kernels), (DUALADAM_STATUS_CUDA_NO_DRIVER, 9));
}

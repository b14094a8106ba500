//! CUDA devices: their kernels, and the handles of their streams.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use dualadam::cuda::{CudaError, Kernels};
use pyo3::PyResult;
use pyo3::exceptions::PyValueError;

use crate::errors::plain;

/// The kernels in a device's primary context. Each process loads them once.
pub(crate) fn kernels(device: i32) -> PyResult<Kernels> {
    static LOADED: Mutex<Option<HashMap<i32, Kernels>>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    if let Some(kernels) = loaded.get(&device) {
        return Ok(kernels.clone());
    }
    let text = || format!("the number of a CUDA device must be at least 0, got {device}");
    let ordinal = usize::try_from(device).map_err(|_| PyValueError::new_err(text()))?;
    let kernels = Kernels::new(ordinal).map_err(plain)?;
    loaded.insert(device, kernels.clone());
    Ok(kernels)
}

/// The stream whose handle is this integer in Python. 0 is the legacy default stream.
pub(crate) fn stream(handle: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(handle)
}

/// Fails if a graph is being captured on `handle`, torch's current stream: the graph would repeat
/// the work `what` in each launch.
pub(crate) fn refuse_capture(kernels: &Kernels, handle: usize, what: &'static str) -> PyResult<()> {
    // SAFETY: `handle` is torch's current stream, so it is live.
    let is_captured = unsafe { kernels.is_captured(stream(handle)) }.map_err(plain)?;
    if is_captured { Err(plain(CudaError::Captured { what })) } else { Ok(()) }
}

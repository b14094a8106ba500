//! What `torch.amp.GradScaler` gives to a step on the host.

use dualadam::{SkipReason, Steering};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// What the gradients are multiplied by, or None if the step must be skipped, from the same scalars
/// that a CUDA device reads for itself.
#[pyfunction]
pub(crate) fn multiplier(grad_scale: f64, found_inf: f64) -> PyResult<Option<f64>> {
    let steering = Steering::default().with_loss_scale(grad_scale as f32).with_found_inf(found_inf as f32);
    match steering.multiplier() {
        Ok(multiplier) => Ok(Some(multiplier)),
        Err(SkipReason::FoundInf) => Ok(None),
        Err(_) => {
            let text = "grad_scale must be finite and above 0, and so must its inverse, as float32";
            Err(PyValueError::new_err(format!("{text}, got {grad_scale:?}")))
        }
    }
}

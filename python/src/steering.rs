//! `multiplier`: what a step on the host does with the scalars of `torch.amp.GradScaler`.

use dualadam::{SkipReason, Steering};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// The multiplier of the gradients on the CPU, 1/grad_scale, or None if the step must be skipped.
///
/// CUDA devices read the same scalars themselves. They skip the step where this function raises.
///
/// Args:
///     grad_scale (float): the loss scale; finite and above 0.
///     found_inf (float): if it is not 0, the step is skipped.
///
/// Raises:
///     ValueError: `grad_scale` or its inverse is not finite and above 0 as a float32.
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

//! The arguments of a step that stand for many parameters.

use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::config::Config;

/// A parameter group in one step. Python gives it as a tuple.
pub(super) struct Group<'py> {
    pub(super) params: Bound<'py, PyList>,
    /// The group as the user has it, a dict or another mapping.
    pub(super) dict: Bound<'py, PyAny>,
    pub(super) config: Bound<'py, Config>,
    /// Whether 16-bit parameters have f32 masters.
    pub(super) has_masters: bool,
    /// The learning rate, if it is a scalar tensor on a CUDA device.
    pub(super) lr: Option<Bound<'py, PyAny>>,
}

impl<'py> FromPyObject<'_, 'py> for Group<'py> {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let (params, dict, config, has_masters, lr) = tuple.extract()?;
        Ok(Self { params, dict, config, has_masters, lr })
    }
}

/// The scalars that steer the steps on one CUDA device. Python gives it as a tuple.
pub(super) struct Scalars<'py> {
    /// The device's number.
    pub(super) device: i32,
    pub(super) loss_scale: Option<Bound<'py, PyAny>>,
    pub(super) found_inf: Option<Bound<'py, PyAny>>,
}

impl<'py> FromPyObject<'_, 'py> for Scalars<'py> {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let (device, loss_scale, found_inf) = tuple.extract()?;
        Ok(Self { device, loss_scale, found_inf })
    }
}

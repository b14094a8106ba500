//! The arguments of a step that stand for many parameters.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use crate::config::Config;

use super::Place;

/// A parameter group in one step. Python gives it as a tuple.
pub(super) struct Group<'py> {
    pub(super) params: Bound<'py, PyList>,
    /// The parameters' names: a list of strings, if they have any. Users may have put any object
    /// here.
    names: Bound<'py, PyAny>,
    pub(super) config: Bound<'py, Config>,
    /// Whether 16-bit parameters have f32 masters.
    pub(super) has_masters: bool,
    /// The learning rate, if it is a scalar tensor on a CUDA device.
    pub(super) lr: Option<Bound<'py, PyAny>>,
}

impl<'py> FromPyObject<'_, 'py> for Group<'py> {
    type Error = PyErr;

    fn extract(tuple: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let (params, names, config, has_masters, lr) = tuple.extract()?;
        Ok(Self { params, names, config, has_masters, lr })
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

/// The name that error messages give the parameter at a place.
pub(super) fn name_of(groups: &[Group<'_>], (group, position): Place) -> String {
    match groups.get(group).and_then(Group::names).and_then(|names| names.into_iter().nth(position)) {
        Some(name) => format!("parameter '{name}'"),
        None => format!("parameter {position} of group {group}"),
    }
}

impl Group<'_> {
    /// The parameters' names, if each has one: `names_of` of the Python package has the same rule.
    fn names(&self) -> Option<Vec<String>> {
        let names = match self.names.cast::<PyTuple>() {
            Ok(names) => names.to_list(),
            Err(_) => self.names.cast::<PyList>().ok()?.clone(),
        };
        let names: Option<Vec<_>> =
            names.iter().map(|name| Some(name.cast::<PyString>().ok()?.to_string_lossy().into_owned())).collect();
        names.filter(|names| names.len() == self.params.len())
    }
}

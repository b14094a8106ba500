//! The library's errors as Python exceptions.

use dualadam::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};

/// The exception for an error about the tensor that `place` names, or about none if that is empty.
pub(crate) fn exception(error: &Error, place: &str) -> PyErr {
    let text = if place.is_empty() { error.to_string() } else { format!("{place}: {error}") };
    match error {
        Error::Types { .. } => PyTypeError::new_err(text),
        Error::Memory { .. } => PyMemoryError::new_err(text),
        Error::NoDriver
        | Error::StubDriver
        | Error::OldDriver { .. }
        | Error::Ptx { .. }
        | Error::Driver { .. }
        | Error::Captured { .. }
        | Error::Interrupted => PyRuntimeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

/// The exception for an error that is about no tensor.
pub(crate) fn plain(error: Error) -> PyErr {
    exception(&error, "")
}

/// The tensor of the list that an error is about.
pub(crate) fn tensor_of(error: &Error) -> Option<usize> {
    match *error {
        Error::StepOverflow { tensor }
        | Error::Length { tensor, .. }
        | Error::Index { tensor, .. }
        | Error::Types { tensor, .. }
        | Error::Null { tensor, .. }
        | Error::Misaligned { tensor, .. }
        | Error::Extent { tensor, .. }
        | Error::Overlap { tensor, .. }
        | Error::Fixed { tensor, .. } => Some(tensor),
        _ => None,
    }
}

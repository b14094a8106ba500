//! The library's errors as Python exceptions.

use dualadam::cuda::CudaError;
use dualadam::{Error, TensorError, TensorProblem};
use pyo3::PyErr;
use pyo3::exceptions::{PyMemoryError, PyRuntimeError, PyTypeError, PyValueError};

/// The exception for an error about the tensor that `place` names, or about none if that is empty.
pub(crate) fn exception(error: &Error, place: &str) -> PyErr {
    let text = text_of(error);
    let text = if place.is_empty() { text } else { format!("{place}: {text}") };
    let problem = if let Error::Tensor(error) = error { Some(error.problem) } else { None };
    match (error, problem) {
        (_, Some(TensorProblem::Formats { .. } | TensorProblem::MasterFormats { .. })) => PyTypeError::new_err(text),
        (_, Some(TensorProblem::Memory { .. })) => PyMemoryError::new_err(text),
        (Error::Cuda(error), _) if !is_about_arguments(error) => PyRuntimeError::new_err(text),
        _ => PyValueError::new_err(text),
    }
}

/// What a user of Python is told. Python knows no addresses, so that one is null means that the
/// tensor has lost its memory.
fn text_of(error: &Error) -> String {
    match error {
        Error::Tensor(TensorError { buffer: Some(buffer), problem: TensorProblem::Null, .. }) => {
            format!("{buffer} must have memory, it has none")
        }
        Error::Tensor(TensorError { problem: TensorProblem::Overlap { .. }, .. }) => {
            format!("{error}: give each memory of its own, and let one parameter stand for shared weights")
        }
        _ => error.to_string(),
    }
}

/// Whether the error is about arguments of the caller.
fn is_about_arguments(error: &CudaError) -> bool {
    matches!(
        error,
        CudaError::Address { .. }
            | CudaError::CallersLr { .. }
            | CudaError::Context { .. }
            | CudaError::Unordered { .. }
            | CudaError::PerThreadStream
            | CudaError::SetGroup { .. }
    )
}

/// The exception for an error that is not about a tensor.
pub(crate) fn plain(error: impl Into<Error>) -> PyErr {
    exception(&error.into(), "")
}

/// The tensors of the list that an error is about: the one with the problem, and another that it
/// overlaps.
pub(crate) fn tensors_of(error: &Error) -> Vec<usize> {
    let Error::Tensor(error) = error else { return Vec::new() };
    match error.problem {
        TensorProblem::Overlap { other_tensor, .. } if other_tensor != error.tensor => vec![error.tensor, other_tensor],
        _ => vec![error.tensor],
    }
}

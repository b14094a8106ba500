//! Checks of the errors that only this backend has.

use dualadam::Error;
use dualadam::cuda::CudaError;

pub(crate) use testkit::refused::*;

/// The backend's own error.
#[track_caller]
fn cuda<T>(result: Result<T, CudaError>) -> CudaError {
    match refused(result) {
        Error::Cuda(error) => error,
        other => panic!("not an error of CUDA: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn captured<T>(result: Result<T, CudaError>) {
    let error = cuda(result);
    assert!(matches!(error, CudaError::Captured { .. }), "{error:?}");
}

/// Checks that this argument was refused because it belongs to another context.
#[track_caller]
pub(crate) fn context<T>(result: Result<T, CudaError>, expected: &str) {
    let error = cuda(result);
    assert!(matches!(&error, CudaError::Context { argument } if argument.to_string() == expected), "{error:?}");
}

/// Checks that this argument was refused because it belongs to another `CudaContext` value.
#[track_caller]
pub(crate) fn unordered<T>(result: Result<T, CudaError>, expected: &str) {
    let error = cuda(result);
    assert!(matches!(&error, CudaError::Unordered { argument } if argument.to_string() == expected), "{error:?}");
}

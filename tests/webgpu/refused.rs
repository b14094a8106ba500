//! Checks of the errors that only this backend has.

use dualadam::webgpu::{BindingProblem, WebGpuError, WgpuProblem, wgpu};
use dualadam::{Error, Role};

pub(crate) use testkit::refused::*;

/// The backend's own error.
#[track_caller]
fn webgpu<T>(result: Result<T, WebGpuError>) -> WebGpuError {
    match refused(result) {
        Error::WebGpu(error) => error,
        other => panic!("not an error of WebGPU: {other:?}"),
    }
}

/// Checks that this buffer of this tensor was refused for this problem.
#[track_caller]
pub(crate) fn binding<T>(result: Result<T, WebGpuError>, expected: (usize, Role), expected_problem: BindingProblem) {
    match webgpu(result) {
        WebGpuError::Binding { tensor, buffer, problem, .. } => {
            assert_eq!(((tensor, buffer), *problem), (expected, expected_problem));
        }
        other => panic!("not of a binding: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn usage<T>(result: Result<T, WebGpuError>, tensor: usize, buffer: Role, actual: wgpu::BufferUsages) {
    binding(result, (tensor, buffer), BindingProblem::Usage { actual });
}

#[track_caller]
pub(crate) fn offset<T>(result: Result<T, WebGpuError>, tensor: usize, buffer: Role, align: u64, offset: u64) {
    binding(result, (tensor, buffer), BindingProblem::Offset { align, offset });
}

/// Checks that the buffer was refused because it has `actual` bytes and needs `required`.
#[track_caller]
pub(crate) fn buffer_size<T>(result: Result<T, WebGpuError>, tensor: usize, buffer: Role, required: u128, actual: u64) {
    match webgpu(result) {
        WebGpuError::Binding { tensor: of, buffer: role, problem, .. } => match *problem {
            BindingProblem::BufferSize { required: bytes, actual: had, .. } => {
                assert_eq!((of, role, bytes, had), (tensor, buffer, required, actual));
            }
            other => panic!("not an error of a size: {other:?}"),
        },
        other => panic!("not of a binding: {other:?}"),
    }
}

/// Checks that a limit of the device was refused because it is `found` and must be `expected`.
#[track_caller]
pub(crate) fn limit<T>(result: Result<T, WebGpuError>, expected: u64, found: u64) {
    let error = webgpu(result);
    assert!(matches!(error, WebGpuError::Limit { required, actual, .. } if (required, actual) == (expected, found)));
}

/// The call of wgpu that failed, the tensor that it was for, and what wgpu reported.
#[track_caller]
pub(crate) fn by_wgpu<T>(result: Result<T, WebGpuError>) -> (&'static str, Option<usize>, WgpuProblem) {
    match webgpu(result) {
        WebGpuError::Wgpu(error) => (error.call, error.tensor, error.problem),
        other => panic!("not an error of wgpu: {other:?}"),
    }
}

#[track_caller]
pub(crate) fn lost_device<T>(result: Result<T, WebGpuError>) {
    let (call, _, problem) = by_wgpu(result);
    assert_eq!(problem, WgpuProblem::DeviceLost, "{call}");
}

//! Errors of a device as results. Without an error scope they go to the device's error handler,
//! which panics unless the caller has set another one.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::error::{WebGpuError, WgpuProblem};

/// Calls `make` and returns its result, or the error that wgpu reported about it.
///
/// In a browser, errors come later, and this code cannot wait for them. There they go to the
/// device's error handler.
pub(super) fn capture<T>(
    device: &wgpu::Device,
    call: &'static str,
    tensor: Option<usize>,
    make: impl FnOnce() -> T,
) -> Result<T, WebGpuError> {
    if cfg!(target_family = "wasm") {
        return Ok(make());
    }
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let made = make();
    // Scopes are popped in reverse order, and all of them must be.
    let errors = [now(internal.pop()), now(memory.pop()), now(validation.pop())];
    match errors.into_iter().flatten().next() {
        Some(error) => Err(WebGpuError::of_call(call, tensor, problem(error))),
        None => Ok(made),
    }
}

/// The result of a future that is ready at once, as wgpu's native error scopes are.
fn now<T>(future: impl Future<Output = Option<T>>) -> Option<T> {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => None,
    }
}

fn problem(error: wgpu::Error) -> WgpuProblem {
    match error {
        wgpu::Error::OutOfMemory { .. } => WgpuProblem::OutOfMemory,
        wgpu::Error::Validation { description, .. } => WgpuProblem::Validation(description),
        wgpu::Error::Internal { description, .. } => WgpuProblem::Internal(description),
    }
}

/// The error for a call that fails only on a lost device.
pub(super) fn lost(call: &'static str) -> WebGpuError {
    WebGpuError::of_call(call, None, WgpuProblem::DeviceLost)
}

/// Fails if the device is known to be lost. wgpu reports nothing when it creates objects on a lost
/// device, but it does not map a buffer there.
pub(super) fn check_not_lost(device: &wgpu::Device) -> Result<(), WebGpuError> {
    let buffer = mapped_buffer(device, "dualadam probe", 4)?;
    map(&buffer, "create_buffer").map(|_| ())
}

/// A new uniform buffer, mapped.
pub(super) fn mapped_buffer(device: &wgpu::Device, label: &str, size: u64) -> Result<wgpu::Buffer, WebGpuError> {
    let (label, usage) = (Some(label), wgpu::BufferUsages::UNIFORM);
    let descriptor = wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: true };
    capture(device, "create_buffer", None, || device.create_buffer(&descriptor))
}

/// The bytes of a mapped buffer.
pub(super) fn map(buffer: &wgpu::Buffer, call: &'static str) -> Result<wgpu::BufferViewMut, WebGpuError> {
    // The buffer is valid and its bounds are right, so this fails only without a device.
    buffer.get_mapped_range_mut(..).map_err(|_| lost(call))
}

/// Waits for a submission, and for nothing that was submitted later.
pub(super) fn wait(device: &wgpu::Device, submission: wgpu::SubmissionIndex) -> Result<(), WebGpuError> {
    let waited = device.poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout: None });
    // Without a timeout, this fails only for an unknown submission, and the submission is known
    // unless the device was lost before it.
    waited.map(|_| ()).map_err(|_| lost("poll"))
}

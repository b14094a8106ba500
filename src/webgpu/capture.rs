//! Errors of wgpu as results. Without this they go to the device's handler, which panics unless the caller has set another.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::Error;
use crate::error::WgpuProblem;

/// What `make` gives, or what wgpu had to say of it.
///
/// In a browser errors come later, when nobody here can wait for them; there they go to the device's handler.
pub(super) fn capture<T>(
    device: &wgpu::Device,
    call: &'static str,
    tensor: Option<usize>,
    make: impl FnOnce() -> T,
) -> Result<T, Error> {
    if cfg!(target_family = "wasm") {
        return Ok(make());
    }
    let validation = device.push_error_scope(wgpu::ErrorFilter::Validation);
    let memory = device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
    let internal = device.push_error_scope(wgpu::ErrorFilter::Internal);
    let made = make();
    // In the reverse order, all of them.
    let errors = [now(internal.pop()), now(memory.pop()), now(validation.pop())];
    match errors.into_iter().flatten().next() {
        Some(error) => Err(Error::Wgpu { call, tensor, problem: problem(error) }),
        None => Ok(made),
    }
}

/// The result of a future that is ready at once, as those of wgpu's native error scopes are.
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

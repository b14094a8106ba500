//! What wgpu reports, and what must hold of the buffers and the device that it is given.

use std::sync::Arc;

use crate::checkpoint::StateError;
use crate::ledger::Ledger;
use crate::tensor::{ArgumentError, Dtype, Place, Role};

/// What can be wrong with a call of the WebGPU backend.
///
/// A call that returns an error has encoded nothing, and the caller's buffers are as they were.
///
/// # Example
///
/// ```
/// use dualadam::Role;
/// use dualadam::webgpu::{BindingProblem, WebGpuError};
///
/// let problem = Box::new(BindingProblem::Offset { align: 256, offset: 4 });
/// let (name, buffer) = (Some("bias".into()), Role::Grad);
/// let error = WebGpuError::Binding { tensor: 3, name, buffer, problem };
/// assert_eq!(
///     error.to_string(),
///     "grad of tensor 3 (bias) must begin at a multiple of 256 bytes \
///      (the device's min_storage_buffer_offset_alignment), got offset 4"
/// );
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WebGpuError {
    /// An argument is not valid, whatever the backend.
    #[error(transparent)]
    Argument(ArgumentError),
    /// A state could not be saved or resumed.
    #[error(transparent)]
    State(Box<StateError>),
    /// The device was made with too small a limit.
    #[error("{needed_by} needs a device with {limit} of at least {required}, it has {actual}")]
    Limit {
        /// What needs it.
        needed_by: &'static str,
        /// The field of [`wgpu::Limits`].
        limit: &'static str,
        /// The least value.
        required: u64,
        /// The device's value.
        actual: u64,
    },
    /// One of a tensor's buffers cannot be bound.
    #[error("{} {problem}", Place { tensor: *tensor, name, buffer: Some(*buffer) })]
    Binding {
        /// The position of the tensor in the call's list.
        tensor: usize,
        /// The tensor's name, where the caller gave one.
        name: Option<Arc<str>>,
        /// The buffer.
        buffer: Role,
        /// What is wrong.
        problem: Box<BindingProblem>,
    },
    /// A call of wgpu failed.
    #[error(transparent)]
    Wgpu(Box<WgpuError>),
}

/// A call of wgpu that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} of wgpu failed{}: {problem}", self.for_tensor())]
#[non_exhaustive]
pub struct WgpuError {
    /// wgpu's function.
    pub call: &'static str,
    /// The position of the tensor that it was about, if it was about one.
    pub tensor: Option<usize>,
    /// The tensor's name, where the caller gave one.
    pub name: Option<Arc<str>>,
    /// What wgpu reported.
    pub problem: WgpuProblem,
}

impl WgpuError {
    fn for_tensor(&self) -> String {
        let place = |tensor| format!(" for {}", Place { tensor, name: &self.name, buffer: None });
        self.tensor.map(place).unwrap_or_default()
    }
}

/// Why a buffer cannot be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindingProblem {
    /// The wgpu buffer was made without the usage that a step needs.
    #[error("must be in a buffer with the usage STORAGE, it has {actual:?}")]
    Usage {
        /// The usages that it has.
        actual: wgpu::BufferUsages,
    },
    /// The elements do not begin where a buffer can be bound.
    #[error(
        "must begin at a multiple of {align} bytes (the device's min_storage_buffer_offset_alignment), \
         got offset {offset}"
    )]
    Offset {
        /// The device's alignment.
        align: u64,
        /// The offset, in bytes.
        offset: u64,
    },
    /// The wgpu buffer ends before its tensor does.
    #[error(
        "must be in a buffer of at least {required} bytes \
         ({len} elements of {dtype} from byte {offset} on, up to a multiple of 4 bytes), it has {actual}"
    )]
    BufferSize {
        /// The tensor's elements.
        len: u64,
        /// Their format.
        dtype: Dtype,
        /// Where they begin, in bytes.
        offset: u64,
        /// Bytes required of the whole buffer.
        required: u128,
        /// Bytes of the whole buffer.
        actual: u64,
    },
    /// The elements do not lie within the slice of a wgpu buffer.
    #[error(
        "must lie within its slice, bytes {start} to {end} of the buffer, \
         got {len} elements of {dtype} from byte {offset} on"
    )]
    Slice {
        /// The tensor's elements.
        len: u64,
        /// Their format.
        dtype: Dtype,
        /// Where they begin, in bytes from the beginning of the buffer.
        offset: u64,
        /// Where the slice begins, in bytes from the beginning of the buffer.
        start: u64,
        /// Where it ends.
        end: u64,
    },
    /// No buffer of the device is large enough for an optimizer's array.
    #[error("must fit in a buffer of {limit} bytes (max_buffer_size), got {len} elements of f32")]
    ArraySize {
        /// The device's limit, in bytes.
        limit: u64,
        /// The tensor's elements.
        len: usize,
    },
}

/// What wgpu reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WgpuProblem {
    /// The device has no memory left for it.
    #[error("the device is out of memory")]
    OutOfMemory,
    /// The device is lost, or was destroyed.
    #[error("the device is lost")]
    DeviceLost,
    /// The arguments do not fit, such as a buffer that was destroyed or is another device's.
    #[error("{0}")]
    Validation(String),
    /// The driver failed, such as by refusing a shader.
    #[error("{0}")]
    Internal(String),
}

impl WebGpuError {
    /// A buffer of a tensor whose name is not known here.
    pub(super) fn of_buffer(tensor: usize, buffer: Role, problem: BindingProblem) -> Self {
        Self::Binding { tensor, name: None, buffer, problem: problem.into() }
    }

    /// The error with the tensor's name, if it has one.
    pub(super) fn named(mut self, ledger: &Ledger) -> Self {
        match &mut self {
            Self::Argument(error) => ledger.name(error),
            Self::Binding { tensor, name, .. } => *name = ledger.name_of(*tensor),
            Self::Wgpu(error) => error.name = error.tensor.and_then(|tensor| ledger.name_of(tensor)),
            _ => {}
        }
        self
    }

    /// A call of wgpu that failed, about a tensor whose name is not known here, or about none.
    pub(super) fn of_call(call: &'static str, tensor: Option<usize>, problem: WgpuProblem) -> Self {
        Self::Wgpu(WgpuError { call, tensor, name: None, problem }.into())
    }
}

impl From<StateError> for WebGpuError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Argument(error) => error.into(),
            other => Self::State(other.into()),
        }
    }
}

impl<E: Into<ArgumentError>> From<E> for WebGpuError {
    fn from(error: E) -> Self {
        Self::Argument(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that the error of the whole library has at most 64 bytes.
    #[test]
    fn errors_are_small() {
        assert!(size_of::<WebGpuError>() <= 56, "{}", size_of::<WebGpuError>());
    }
}

//! The errors of the WebGPU backend.

use std::sync::Arc;

use crate::checkpoint::StateError;
use crate::ledger::Ledger;
use crate::tensor::{ArgumentError, Dtype, Place, Role};

/// Why a call of the WebGPU backend failed.
///
/// A call that returns an error has encoded nothing and has not changed the caller's buffers.
///
/// # Examples
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
    /// An argument is not valid, for a reason that all backends share.
    #[error(transparent)]
    Argument(ArgumentError),
    /// A state could not be saved or loaded.
    #[error(transparent)]
    State(Box<StateError>),
    /// The device was made with a limit that is too small.
    #[error("{needed_by} needs a device with {limit} of at least {required}, it has {actual}")]
    Limit {
        /// What needs the limit.
        needed_by: &'static str,
        /// The field of [`wgpu::Limits`].
        limit: &'static str,
        /// The smallest value that is enough.
        required: u64,
        /// The device's value.
        actual: u64,
    },
    /// A buffer of a tensor cannot be bound.
    #[error("{} {problem}", Place { tensor: *tensor, name, buffer: Some(*buffer) })]
    Binding {
        /// The position of the tensor in the call's list.
        tensor: usize,
        /// The tensor's name, if the caller gave one.
        name: Option<Arc<str>>,
        /// The role of the buffer.
        buffer: Role,
        /// What is wrong.
        problem: Box<BindingProblem>,
    },
    /// A call of wgpu failed.
    #[error(transparent)]
    Wgpu(Box<WgpuError>),
}

/// A call of wgpu that failed.
///
/// # Examples
///
/// ```
/// use dualadam::webgpu::{WebGpuError, WgpuProblem};
///
/// fn is_lost(error: &WebGpuError) -> bool {
///     matches!(error, WebGpuError::Wgpu(error) if error.problem == WgpuProblem::DeviceLost)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call} of wgpu failed{}: {problem}", self.for_tensor())]
#[non_exhaustive]
pub struct WgpuError {
    /// The function of wgpu.
    pub call: &'static str,
    /// The position of the tensor that the call was about, if it was about one.
    pub tensor: Option<usize>,
    /// The tensor's name, if the caller gave one.
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
///
/// # Examples
///
/// ```
/// use dualadam::webgpu::{BindingProblem, wgpu::BufferUsages};
///
/// let problem = BindingProblem::Usage { actual: BufferUsages::UNIFORM };
/// assert!(problem.to_string().starts_with("must be in a buffer with the usage STORAGE"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindingProblem {
    /// The wgpu buffer was created without the usage `STORAGE`.
    #[error("must be in a buffer with the usage STORAGE, it has {actual:?}")]
    Usage {
        /// The usages of the buffer.
        actual: wgpu::BufferUsages,
    },
    /// The offset is not aligned for a storage buffer.
    #[error(
        "must begin at a multiple of {align} bytes (the device's min_storage_buffer_offset_alignment), \
         got offset {offset}"
    )]
    Offset {
        /// The device's alignment, in bytes.
        align: u64,
        /// The offset, in bytes.
        offset: u64,
    },
    /// The wgpu buffer ends before the tensor does.
    #[error(
        "must be in a buffer of at least {required} bytes \
         ({len} elements of {dtype} from byte {offset} on, up to a multiple of 4 bytes), it has {actual}"
    )]
    BufferSize {
        /// The number of elements.
        len: u64,
        /// The type of the elements.
        dtype: Dtype,
        /// The offset of the first element, in bytes.
        offset: u64,
        /// The size that the buffer must have, in bytes.
        required: u128,
        /// The size that the buffer has, in bytes.
        actual: u64,
    },
    /// The elements do not lie within the slice of a wgpu buffer.
    #[error(
        "must lie within its slice, bytes {start} to {end} of the buffer, \
         got {len} elements of {dtype} from byte {offset} on"
    )]
    Slice {
        /// The number of elements.
        len: u64,
        /// The type of the elements.
        dtype: Dtype,
        /// The offset of the first element in the buffer, in bytes.
        offset: u64,
        /// The offset of the slice in the buffer, in bytes.
        start: u64,
        /// The end of the slice in the buffer, in bytes.
        end: u64,
    },
    /// A moment or master of an optimizer is larger than the largest buffer of the device.
    #[error("must fit in a buffer of {limit} bytes (max_buffer_size), got {len} elements of f32")]
    ArraySize {
        /// The device's `max_buffer_size`, in bytes.
        limit: u64,
        /// The number of elements.
        len: usize,
    },
}

/// What wgpu reported about a call that failed.
///
/// # Examples
///
/// ```
/// use dualadam::webgpu::WgpuProblem;
///
/// assert_eq!(WgpuProblem::OutOfMemory.to_string(), "the device is out of memory");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WgpuProblem {
    /// The device is out of memory.
    #[error("the device is out of memory")]
    OutOfMemory,
    /// The device is lost or was destroyed.
    #[error("the device is lost")]
    DeviceLost,
    /// wgpu refused the arguments, such as a buffer that was destroyed or belongs to another
    /// device. The text is wgpu's.
    #[error("{0}")]
    Validation(String),
    /// The driver failed, for instance to compile a shader. The text is wgpu's.
    #[error("{0}")]
    Internal(String),
}

impl WebGpuError {
    /// An error about a buffer of a tensor, without the tensor's name.
    pub(super) fn of_buffer(tensor: usize, buffer: Role, problem: BindingProblem) -> Self {
        Self::Binding { tensor, name: None, buffer, problem: problem.into() }
    }

    /// Adds the tensor's name, if the error is about a tensor and the tensor has a name.
    pub(super) fn named(mut self, ledger: &Ledger) -> Self {
        match &mut self {
            Self::Argument(error) => ledger.name(error),
            Self::Binding { tensor, name, .. } => *name = ledger.name_of(*tensor),
            Self::Wgpu(error) => error.name = error.tensor.and_then(|tensor| ledger.name_of(tensor)),
            _ => {}
        }
        self
    }

    /// An error about a call of wgpu for this tensor, without the tensor's name, or for none.
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

    /// Keeps the error of the whole library within 64 bytes.
    #[test]
    fn errors_are_small() {
        assert!(size_of::<WebGpuError>() <= 56, "{}", size_of::<WebGpuError>());
    }
}

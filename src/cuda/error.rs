//! The errors of the CUDA backend.

use std::fmt;
use std::sync::Arc;

use crate::checkpoint::StateError;
use crate::ledger::Ledger;
use crate::rule::ConfigError;
use crate::tensor::{ArgumentError, ListError, Place, Role, TensorError};

/// Why a call of the CUDA backend failed.
///
/// A call that returns an error has launched nothing, unless its documentation says otherwise of
/// [`Driver`](Self::Driver). After an error that means that the device is lost, such as an illegal
/// address, every later call in the context returns the same error.
///
/// # Examples
///
/// ```
/// use dualadam::cuda::{AddressProblem, ControlAddress, CudaError};
///
/// let argument = ControlAddress::Step { set: 3 };
/// let problem = AddressProblem::Misaligned { align: 8 };
/// let error = CudaError::Address { argument, problem, address: 0x102 };
/// assert_eq!(error.to_string(), "step of set 3 must be aligned to 8 bytes, got address 0x102");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// An argument is not valid, for a reason that all backends share.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A state could not be saved or loaded.
    #[error(transparent)]
    State(Box<StateError>),
    /// libcuda cannot be opened: the machine has no CUDA driver.
    #[error("no CUDA driver: libcuda cannot be opened; it comes with the NVIDIA driver")]
    NoDriver,
    /// The dynamic linker found a CUDA toolkit's stub of libcuda before the driver's library. The
    /// stub serves only to link programs.
    #[error("libcuda is the stub of a CUDA toolkit: take its folder out of the library search path (LD_LIBRARY_PATH)")]
    StubDriver,
    /// The CUDA driver is too old.
    #[error(
        "the CUDA driver must support CUDA {}.{}, it supports {}.{}",
        required / 1000, required % 1000 / 10, found / 1000, found % 1000 / 10
    )]
    OldDriver {
        /// The oldest version that is supported, as 11040 for 11.4.
        required: i32,
        /// The driver's version, in the same form.
        found: i32,
    },
    /// The driver refused to load the kernels.
    #[error(transparent)]
    Ptx(#[from] Box<PtxError>),
    /// A call of the CUDA driver failed. The driver also reports failures of earlier work on the
    /// device in this way.
    #[error("{call} failed with {name} ({code})")]
    Driver {
        /// The function of the driver, or of cudarc where it wraps several.
        call: &'static str,
        /// The driver's code, a `CUresult`.
        code: i32,
        /// The name of the code, such as `CUDA_ERROR_OUT_OF_MEMORY`.
        name: String,
    },
    /// A stream or a buffer belongs to another CUDA context than the kernels.
    #[error("{argument} must belong to the kernels' CUDA context, it belongs to another")]
    Context {
        /// The argument.
        argument: CudaArgument,
    },
    /// A buffer and the stream belong to two `CudaContext` values for one CUDA context. cudarc does
    /// not order work across two such values.
    #[error(
        "{argument} must belong to the same CudaContext value as the stream: cudarc orders no work across two of them"
    )]
    Unordered {
        /// The argument.
        argument: CudaArgument,
    },
    /// An optimizer was given the per-thread default stream. That is another stream in each thread,
    /// so nothing would order the optimizer's steps.
    #[error("an optimizer's stream must be the same in every thread, got the per-thread default stream")]
    PerThreadStream,
    /// The call cannot be captured in a CUDA graph: the host would have to do part of it for each
    /// launch of the graph, or would have to wait for the stream.
    #[error("{what} cannot be captured in a CUDA graph: do it before the capture begins")]
    Captured {
        /// What cannot be captured.
        what: &'static str,
    },
    /// A control set names a group that does not exist.
    #[error("set {set} must have a group below {len}, got {value}")]
    SetGroup {
        /// The position of the set.
        set: usize,
        /// The number of groups.
        len: usize,
        /// The group that the set names.
        value: usize,
    },
    /// An address that a control was given is null, misaligned, or overlaps another.
    #[error("{argument} must {problem}, got address {address:#x}")]
    Address {
        /// What the address is for.
        argument: ControlAddress,
        /// The requirement that failed.
        problem: AddressProblem,
        /// The address.
        address: u64,
    },
    /// The learning rate of the group lies in the caller's memory, which the library never writes.
    #[error("the lr of group {group} must not be set here: it is read from the caller's memory, write it there")]
    CallersLr {
        /// The position of the group.
        group: usize,
    },
    /// An earlier step failed after the step counters on the device had advanced and before all
    /// tensors were stepped. [`Control::set_steps`](super::Control::set_steps) clears this state;
    /// so does loading a state in a [`CapturableDualAdam`](super::CapturableDualAdam).
    #[error(
        "the step counters on the device must be set before the next step: the driver failed in the middle of a step, and \
         they no longer fit the tensors"
    )]
    Interrupted,
}

impl CudaError {
    /// Adds the tensor's name, if the error is about a tensor and the tensor has a name.
    pub(super) fn named(mut self, ledger: &Ledger) -> Self {
        match &mut self {
            Self::Argument(error) => ledger.name(error),
            Self::Context { argument } | Self::Unordered { argument } => {
                if let CudaArgument::Buffer { tensor, name, .. } = argument {
                    *name = ledger.name_of(*tensor);
                }
            }
            _ => {}
        }
        self
    }
}

/// An argument that belongs to a CUDA context.
///
/// # Examples
///
/// ```
/// use dualadam::Role;
/// use dualadam::cuda::CudaArgument;
///
/// let argument = CudaArgument::Buffer { tensor: 3, name: Some("bias".into()), buffer: Role::Grad };
/// assert_eq!(argument.to_string(), "grad of tensor 3 (bias)");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaArgument {
    /// The stream.
    Stream,
    /// The control of a step.
    Control,
    /// One of a step's [`Scalars`](super::Scalars).
    Scalar(&'static str),
    /// A buffer of a tensor.
    Buffer {
        /// The position of the tensor; 0 in a step of one tensor.
        tensor: usize,
        /// The tensor's name, if the caller gave one.
        name: Option<Arc<str>>,
        /// The role of the buffer.
        buffer: Role,
    },
}

impl CudaArgument {
    /// A buffer of a tensor, without the tensor's name.
    pub(super) fn of_buffer(tensor: usize, buffer: Role) -> Self {
        Self::Buffer { tensor, name: None, buffer }
    }
}

impl fmt::Display for CudaArgument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream => f.write_str("stream"),
            Self::Control => f.write_str("control"),
            Self::Scalar(name) => f.write_str(name),
            Self::Buffer { tensor, name, buffer } => Place { tensor: *tensor, name, buffer: Some(*buffer) }.fmt(f),
        }
    }
}

/// What the driver reported about kernels that it refused.
///
/// # Examples
///
/// ```
/// use dualadam::cuda::CudaError;
///
/// fn log(error: &CudaError) -> Option<&str> {
///     if let CudaError::Ptx(error) = error { Some(&error.log) } else { None }
/// }
/// # assert_eq!(log(&CudaError::NoDriver), None);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the CUDA driver refused the kernels of {kernels} ({origin}) with {name} ({code}): {log}")]
#[non_exhaustive]
pub struct PtxError {
    /// The driver's code, a `CUresult`.
    pub code: i32,
    /// The name of the code.
    pub name: String,
    /// The variant of the kernels, or `control`.
    pub kernels: &'static str,
    /// The compiler that made the PTX, with its version.
    pub origin: &'static str,
    /// The log of the driver's compiler.
    pub log: String,
}

/// The use of an address that a control or a controlled step was given.
///
/// # Examples
///
/// ```
/// use dualadam::cuda::ControlAddress;
///
/// assert_eq!(ControlAddress::Lr { group: 2 }.to_string(), "lr of group 2");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlAddress {
    /// The step counter of a coefficient set.
    Step {
        /// The position of the set.
        set: usize,
    },
    /// The learning rate of a group.
    Lr {
        /// The position of the group.
        group: usize,
    },
    /// The loss scale of a step.
    LossScale,
    /// The clip factor of a step.
    ClipFactor,
    /// The found-inf flag of a step.
    FoundInf,
}

impl fmt::Display for ControlAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Step { set } => write!(f, "step of set {set}"),
            Self::Lr { group } => write!(f, "lr of group {group}"),
            Self::LossScale => f.write_str("loss_scale"),
            Self::ClipFactor => f.write_str("clip_factor"),
            Self::FoundInf => f.write_str("found_inf"),
        }
    }
}

/// What is wrong with an address that a control or a controlled step was given.
///
/// # Examples
///
/// ```
/// use dualadam::cuda::{AddressProblem, ControlAddress};
///
/// let problem = AddressProblem::Overlap { other: ControlAddress::Step { set: 1 } };
/// assert_eq!(problem.to_string(), "not overlap step of set 1");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressProblem {
    /// The address is 0.
    #[error("not be null")]
    Null,
    /// The address is not a multiple of the size of the value.
    #[error("be aligned to {align} bytes")]
    Misaligned {
        /// The size of the value, in bytes.
        align: usize,
    },
    /// The step counter there would share memory with something else.
    #[error("not overlap {other}")]
    Overlap {
        /// What else lies there.
        other: ControlAddress,
    },
}

impl From<ConfigError> for CudaError {
    fn from(error: ConfigError) -> Self {
        ArgumentError::from(error).into()
    }
}

impl From<TensorError> for CudaError {
    fn from(error: TensorError) -> Self {
        ArgumentError::from(error).into()
    }
}

impl From<ListError> for CudaError {
    fn from(error: ListError) -> Self {
        ArgumentError::from(error).into()
    }
}

impl From<StateError> for CudaError {
    fn from(error: StateError) -> Self {
        match error {
            StateError::Argument(error) => error.into(),
            other => Self::State(other.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every step returns a result with this error in it, so its size matters.
    #[test]
    fn errors_are_small() {
        assert!(size_of::<CudaError>() <= 56, "{}", size_of::<CudaError>());
    }
}

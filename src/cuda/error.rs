//! What the CUDA driver reports, and what must hold of what it is asked for.

use std::fmt;
use std::sync::Arc;

use crate::checkpoint::StateError;
use crate::ledger::Ledger;
use crate::rule::ConfigError;
use crate::tensor::{ArgumentError, ListError, Place, Role, TensorError};

/// What can be wrong with a call of the CUDA backend.
///
/// A call that returns an error has launched nothing, unless its documentation says otherwise of
/// [`Driver`](Self::Driver).
///
/// # Example
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
    /// An argument is not valid, whatever the backend.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A state could not be saved or resumed.
    #[error(transparent)]
    State(Box<StateError>),
    /// There is no CUDA driver on this machine.
    #[error("no CUDA driver: libcuda cannot be opened; it comes with the NVIDIA driver")]
    NoDriver,
    /// The dynamic linker finds a CUDA toolkit's stub of libcuda before the driver's. The stub is
    /// there to link programs with.
    #[error("libcuda is the stub of a CUDA toolkit: take its folder out of the library search path (LD_LIBRARY_PATH)")]
    StubDriver,
    /// The CUDA driver is older than any that is supported.
    #[error(
        "the CUDA driver must support CUDA {}.{}, it supports {}.{}",
        required / 1000, required % 1000 / 10, found / 1000, found % 1000 / 10
    )]
    OldDriver {
        /// The oldest version, as 11040 for 11.4.
        required: i32,
        /// The driver's.
        found: i32,
    },
    /// The CUDA driver refused the kernels.
    #[error(transparent)]
    Ptx(#[from] Box<PtxError>),
    /// A call of the CUDA driver failed. If it is not about this call, an earlier launch on the
    /// device failed.
    #[error("{call} failed with {name} ({code})")]
    Driver {
        /// The driver's function, or cudarc's around several.
        call: &'static str,
        /// The driver's code.
        code: i32,
        /// The code's name.
        name: String,
    },
    /// A stream or a buffer belongs to another CUDA context than the kernels.
    #[error("{argument} must belong to the kernels' CUDA context, it belongs to another")]
    Context {
        /// The argument.
        argument: CudaArgument,
    },
    /// A buffer belongs to another of cudarc's `CudaContext` values than the stream. Both stand for
    /// one CUDA context, but cudarc orders no work across them.
    #[error(
        "{argument} must belong to the same CudaContext value as the stream: cudarc orders no work across two of them"
    )]
    Unordered {
        /// The argument.
        argument: CudaArgument,
    },
    /// The per-thread default stream is another stream in each thread, so that nothing orders an
    /// optimizer's steps on it.
    #[error("an optimizer's stream must be the same in every thread, got the per-thread default stream")]
    PerThreadStream,
    /// The host would have to do something again for each launch of the graph, or would have to
    /// wait for a stream that is captured.
    #[error("{what} cannot be captured in a CUDA graph: do it before the capture begins")]
    Captured {
        /// What the call would have to do.
        what: &'static str,
    },
    /// The group of a control's set is not there.
    #[error("set {set} must have a group below {len}, got {value}")]
    SetGroup {
        /// The position of the set.
        set: usize,
        /// How many groups there are.
        len: usize,
        /// The group given.
        value: usize,
    },
    /// An address that a control was given is null, misaligned, or overlaps another.
    #[error("{argument} must {problem}, got address {address:#x}")]
    Address {
        /// What should be there.
        argument: ControlAddress,
        /// The requirement that failed.
        problem: AddressProblem,
        /// The address.
        address: u64,
    },
    /// A learning rate lies in the caller's memory, which the library only reads.
    #[error("the lr of group {group} must not be set here: it is read from the caller's memory, write it there")]
    CallersLr {
        /// The position of the group.
        group: usize,
    },
    /// The driver failed after the step counters on the device had advanced and before all tensors
    /// were stepped.
    #[error(
        "the step counters on the device must be set before the next step: the driver failed in the middle of a step, and \
         they no longer fit the tensors"
    )]
    Interrupted,
}

impl CudaError {
    /// The error with its tensor's name, if it is about a tensor that has one.
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

/// What belongs to a CUDA context.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CudaArgument {
    /// The stream.
    Stream,
    /// The control of a step.
    Control,
    /// One of a step's [`Scalars`](super::Scalars).
    Scalar(&'static str),
    /// A buffer of a step.
    Buffer {
        /// The position of the tensor; 0 for a step of one tensor.
        tensor: usize,
        /// The tensor's name, where the caller gave one.
        name: Option<Arc<str>>,
        /// The buffer.
        buffer: Role,
    },
}

impl CudaArgument {
    /// A buffer of a tensor whose name is not known here.
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

/// The CUDA driver's answer to kernels that it refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the CUDA driver refused the kernels of {kernels} ({origin}) with {name} ({code}): {log}")]
#[non_exhaustive]
pub struct PtxError {
    /// The driver's code.
    pub code: i32,
    /// The code's name.
    pub name: String,
    /// The variant whose kernels they are, or `control`.
    pub kernels: &'static str,
    /// Where the kernels' PTX is from: the version of its compiler.
    pub origin: &'static str,
    /// What the driver's compiler said.
    pub log: String,
}

/// What an address that a control was given is for.
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
    /// The found-inf of a step.
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

/// What is wrong with an address that a control was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressProblem {
    /// It is 0.
    #[error("not be null")]
    Null,
    /// It is not a multiple of the value's size.
    #[error("be aligned to {align} bytes")]
    Misaligned {
        /// Bytes of the value.
        align: usize,
    },
    /// A counter there would share memory with something else.
    #[error("not overlap {other}")]
    Overlap {
        /// What else is there.
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

    /// The library's error holds this one, and every step returns it.
    #[test]
    fn errors_are_small() {
        assert!(size_of::<CudaError>() <= 56, "{}", size_of::<CudaError>());
    }
}

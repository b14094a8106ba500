//! What can be wrong with tensors, and with lists of arguments.

use std::fmt;
use std::sync::Arc;

use crate::rule::ConfigError;

use super::role::Role;
use super::variant::{Formats, Variant};

/// Something is wrong with one tensor of a call.
///
/// The text names the buffer, the tensor by its position and by its name if the caller gave one,
/// what is required and what was given.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, Role, TensorSpec, cpu};
///
/// let spec = TensorSpec::new(2).with_name("bias");
/// let mut optimizer = cpu::DualAdam::with_groups(&[DualAdamConfig::default()], &[spec])?;
/// let (mut w, grad) = ([0.0_f32; 2], [0.0_f32; 3]);
/// let error = optimizer.step([(&mut w).into()], [Some((&grad).into())]).unwrap_err();
/// assert_eq!(error.to_string(), "grad of tensor 0 (bias) must have 2 elements, got 3");
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TensorError {
    /// The position of the tensor in the call's list; 0 for a step of one tensor.
    pub tensor: usize,
    /// The tensor's name, where the caller gave one.
    pub name: Option<Arc<str>>,
    /// The buffer, if the problem is one buffer's.
    pub buffer: Option<Role>,
    /// What is wrong.
    pub problem: TensorProblem,
}

impl TensorError {
    /// A problem of a tensor as a whole.
    pub(crate) fn of_tensor(tensor: usize, problem: TensorProblem) -> Self {
        Self { tensor, name: None, buffer: None, problem }
    }

    /// A problem of one buffer.
    pub(crate) fn of_buffer(tensor: usize, buffer: Role, problem: TensorProblem) -> Self {
        Self { tensor, name: None, buffer: Some(buffer), problem }
    }
}

impl fmt::Display for TensorError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, name, buffer, problem } = self;
        write!(f, "{} {problem}", Place { tensor: *tensor, name, buffer: *buffer })
    }
}

impl std::error::Error for TensorError {}

/// How errors call a tensor, or one of its buffers.
pub(crate) struct Place<'a> {
    pub(crate) tensor: usize,
    pub(crate) name: &'a Option<Arc<str>>,
    pub(crate) buffer: Option<Role>,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(buffer) = self.buffer {
            write!(f, "{buffer} of ")?;
        }
        write!(f, "tensor {}", self.tensor)?;
        if let Some(name) = self.name {
            write!(f, " ({name})")?;
        }
        Ok(())
    }
}

/// What is wrong with a tensor or one of its buffers.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// A buffer's length differs from its tensor's.
    #[error("must have {expected} elements, got {actual}")]
    Length {
        /// Elements required.
        expected: usize,
        /// Elements given.
        actual: usize,
    },
    /// A tensor is longer than can be.
    #[error("must have at most {limit} elements, got {actual}")]
    TooLong {
        /// The most elements that there can be.
        limit: u64,
        /// Elements given.
        actual: u64,
    },
    /// No kernel exists for these formats.
    #[error("must have the formats of a variant ({}), got {formats}", VariantNames)]
    Formats {
        /// The formats given.
        formats: Formats,
    },
    /// A buffer has no address, and its tensor is not empty.
    #[error("must not be null")]
    Null,
    /// A buffer's address is not a multiple of its element's size.
    #[error("must be aligned to {align} bytes, got address {address:#x}")]
    Misaligned {
        /// The address.
        address: u64,
        /// Bytes of an element.
        align: usize,
    },
    /// A buffer would end beyond the last address.
    #[error("must end within 2^64 bytes, got {len} elements of {size} bytes at {address:#x}")]
    Extent {
        /// The address.
        address: u64,
        /// Elements.
        len: u64,
        /// Bytes of an element.
        size: u32,
    },
    /// Two buffers share memory, and at least one of them is written.
    #[error("must not overlap {other_buffer} of tensor {other_tensor}, both have address {address:#x}")]
    Overlap {
        /// The position of the other buffer's tensor.
        other_tensor: usize,
        /// The other buffer.
        other_buffer: Role,
        /// The first address that both have.
        address: u64,
    },
    /// A list's tensor keeps the length that the list was made with.
    #[error("must keep its length of {expected} elements, got {actual}")]
    FixedLength {
        /// Elements at first.
        expected: u64,
        /// Elements given.
        actual: u64,
    },
    /// A list's tensor keeps the formats that the list was made with.
    #[error("must keep its formats ({expected}), got {actual}")]
    FixedFormats {
        /// The formats at first.
        expected: Formats,
        /// The formats given.
        actual: Formats,
    },
    /// A tensor's coefficients are not there.
    #[error("must have a coeffs_index below {len}, got {value}")]
    CoeffsIndex {
        /// How many coefficients there are.
        len: usize,
        /// The index given.
        value: usize,
    },
    /// A tensor's parameter group is not there.
    #[error("must have a group below {len}, got {value}")]
    Group {
        /// How many groups there are.
        len: usize,
        /// The group given.
        value: usize,
    },
    /// A tensor's step counter cannot grow further.
    #[error("must be at a step below {max} to be updated, got {max}", max = u64::MAX)]
    StepOverflow,
    /// A second moment is negative somewhere, so that its root would be NaN.
    #[error("must be at least 0 everywhere, got {value:?}")]
    Negative {
        /// The first such value.
        value: f32,
    },
    /// Masters were said to be set of a tensor that has none.
    #[error("must be there to be set, the tensor has none")]
    NoMaster,
    /// The machine lacks the memory for a tensor's state.
    #[error("must fit in memory, each of its arrays needs {bytes} bytes")]
    Memory {
        /// Bytes of each array.
        bytes: u64,
    },
}

/// The names of all variants.
struct VariantNames;

impl fmt::Display for VariantNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Variant::all().map(Variant::name).collect();
        f.write_str(&names.join(", "))
    }
}

/// Something is wrong with a list of arguments as a whole, or with a position in one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// Two lists that belong together differ in length.
    #[error("{list} must have {expected} entries, got {actual}")]
    Count {
        /// The list.
        list: &'static str,
        /// Entries required.
        expected: usize,
        /// Entries given. Of an iterator that goes on after too many, at least as many as this.
        actual: usize,
    },
    /// A list that must have an entry has none.
    #[error("{list} must have at least one entry, got none")]
    Empty {
        /// The list.
        list: &'static str,
    },
    /// A list, or the work that it stands for, is longer than can be served.
    #[error("{list} must number at most {limit}, got {actual}")]
    TooMany {
        /// What is counted.
        list: &'static str,
        /// The most that there can be.
        limit: u64,
        /// How many there are.
        actual: u64,
    },
    /// A position names nothing that is there.
    #[error("{list} must be below {len}, got {value}")]
    Position {
        /// What the position counts, such as `tensor` or `group`.
        list: &'static str,
        /// How many there are.
        len: usize,
        /// The position given.
        value: usize,
    },
}

/// What can be wrong with the arguments of a call. A call that returns it has written nothing.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// A hyperparameter or a scalar is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The config of one of several groups is not valid.
    #[error("group {group}: {problem}")]
    Group {
        /// The position of the group.
        group: usize,
        /// What is wrong with its config.
        problem: ConfigError,
    },
    /// Something is wrong with one tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// Something is wrong with a list, or with a position in one.
    #[error(transparent)]
    List(#[from] ListError),
}

/// Fails unless a buffer has as many elements as it must have.
pub(crate) fn check_len(tensor: usize, buffer: Role, expected: usize, actual: usize) -> Result<(), TensorError> {
    let problem = TensorProblem::Length { expected, actual };
    if actual == expected { Ok(()) } else { Err(TensorError::of_buffer(tensor, buffer, problem)) }
}

/// Fails unless a list has as many entries as it must have.
pub(crate) fn check_count(list: &'static str, expected: usize, actual: usize) -> Result<(), ListError> {
    if actual == expected { Ok(()) } else { Err(ListError::Count { list, expected, actual }) }
}

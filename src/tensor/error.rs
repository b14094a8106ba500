//! The errors of tensors and of lists of arguments.

use std::fmt;
use std::sync::Arc;

use crate::rule::ConfigError;

use super::dtype::Dtype;
use super::role::Role;
use super::variant::{Formats, Variant};

/// One tensor of a call, or one of its buffers, is not valid.
///
/// The message names the buffer, the tensor's index, the tensor's name if it has one, the
/// requirement and the value.
///
/// # Examples
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
    /// The index of the tensor in the call's list. 0 for a step of one tensor.
    pub tensor: usize,
    /// The tensor's name, if the caller gave one with [`TensorSpec`](crate::TensorSpec).
    pub name: Option<Arc<str>>,
    /// The buffer with the problem, or `None` if it is the tensor's as a whole.
    pub buffer: Option<Role>,
    /// The problem.
    pub problem: TensorProblem,
}

impl TensorError {
    /// A problem of a tensor as a whole, without its name.
    pub(crate) fn of_tensor(tensor: usize, problem: TensorProblem) -> Self {
        Self { tensor, name: None, buffer: None, problem }
    }

    /// A problem of one buffer, without the tensor's name.
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

/// Displays a tensor, or one of its buffers, as errors name it.
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

/// The problem with a tensor or one of its buffers.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, TensorProblem, cpu};
///
/// let coeffs = DualAdamConfig::default().coeffs(1)?;
/// let (mut exp_avg, mut exp_avg_sq) = ([0.0; 2], [0.0; 2]);
/// let error = cpu::step(&mut [1.0_f32; 2], &[1.0_f32; 3], &mut exp_avg, &mut exp_avg_sq, &coeffs).unwrap_err();
/// assert_eq!(error.problem, TensorProblem::Length { expected: 2, actual: 3 });
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorProblem {
    /// The buffer's length differs from the tensor's.
    #[error("must have {expected} elements, got {actual}")]
    Length {
        /// The number of elements required.
        expected: usize,
        /// The number of elements given.
        actual: usize,
    },
    /// The tensor is longer than a buffer can be.
    #[error("must have at most {limit} elements, got {actual}")]
    TooLong {
        /// The largest number of elements.
        limit: u64,
        /// The number of elements given.
        actual: u64,
    },
    /// No [variant](crate::Variant) has these formats.
    #[error("must have the formats of a variant ({}), got {formats}", names(Variant::all()))]
    Formats {
        /// The formats given.
        formats: Formats,
    },
    /// The buffer's address is 0, and the tensor is not empty.
    #[error("must not be null")]
    Null,
    /// The buffer's address is not a multiple of its element's size.
    #[error("must be aligned to {align} bytes, got address {address:#x}")]
    Misaligned {
        /// The address given.
        address: u64,
        /// The size of an element, in bytes.
        align: usize,
    },
    /// The buffer would end beyond the last address.
    #[error("must end within 2^64 bytes, got {len} elements of {size} bytes at {address:#x}")]
    Extent {
        /// The address given.
        address: u64,
        /// The number of elements.
        len: u64,
        /// The size of an element, in bytes.
        size: u32,
    },
    /// The buffer shares memory with another one, and a step writes at least one of the two.
    #[error("must not overlap {other_buffer} of tensor {other_tensor}, both have address {address:#x}")]
    Overlap {
        /// The index of the other buffer's tensor.
        other_tensor: usize,
        /// The other buffer.
        other_buffer: Role,
        /// The first address of the shared memory.
        address: u64,
    },
    /// An update of a list gives the tensor another length.
    #[error("must keep its length of {expected} elements, got {actual}")]
    FixedLength {
        /// The number of elements that the list was made with.
        expected: u64,
        /// The number of elements given.
        actual: u64,
    },
    /// An update of a list gives the tensor other formats.
    #[error("must keep its formats ({expected}), got {actual}")]
    FixedFormats {
        /// The formats that the list was made with.
        expected: Formats,
        /// The formats given.
        actual: Formats,
    },
    /// The tensor's `coeffs_index` is not an index of the coefficients given.
    #[error("must have a coeffs_index below {len}, got {value}")]
    CoeffsIndex {
        /// The number of coefficients given.
        len: usize,
        /// The index given.
        value: usize,
    },
    /// The tensor's group is not an index of the groups given.
    #[error("must have a group below {len}, got {value}")]
    Group {
        /// The number of groups given.
        len: usize,
        /// The index given.
        value: usize,
    },
    /// The tensor's step is [`u64::MAX`], so that it cannot be updated again.
    #[error("must be at a step below {max} to be updated, got {max}", max = u64::MAX)]
    StepOverflow,
    /// The second moment has a negative element, whose root would be NaN.
    #[error("must be at least 0 everywhere, got {value:?}")]
    Negative {
        /// The first such value.
        value: f32,
    },
    /// The masters are said to be set, and the tensor has none.
    #[error("must exist to be set, the tensor has no master")]
    NoMaster,
    /// Out of memory: an array of the tensor's state could not be allocated.
    #[error("must fit in memory, each of its arrays needs {bytes} bytes")]
    Memory {
        /// The size of the array, in bytes.
        bytes: u64,
    },
    /// No [variant](crate::Variant) has parameters and masters of these formats.
    #[error("must have the param and master of a variant ({}), got {param} param, {master} master", with_masters())]
    MasterFormats {
        /// The format of the parameters.
        param: Dtype,
        /// The format of the masters.
        master: Dtype,
    },
}

/// The names of variants.
fn names(variants: impl Iterator<Item = Variant>) -> String {
    variants.map(Variant::name).collect::<Vec<_>>().join(", ")
}

/// The names of the variants with masters.
fn with_masters() -> String {
    names(Variant::all().filter(|variant| variant.formats().master.is_some()))
}

/// A list of arguments, or an index into one, is not valid.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, cpu};
///
/// let optimizer = cpu::DualAdam::new(DualAdamConfig::default(), &[8, 2])?;
/// assert_eq!(optimizer.step_of(2).unwrap_err().to_string(), "tensor must be below 2, got 2");
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// A list has another number of entries than it must have.
    #[error("{list} must have {expected} entries, got {actual}")]
    Count {
        /// The name of the list.
        list: &'static str,
        /// The number of entries required.
        expected: usize,
        /// The number of entries given. For an iterator that is longer than required, a lower
        /// bound.
        actual: usize,
    },
    /// A list is empty that must have an entry.
    #[error("{list} must have at least one entry, got none")]
    Empty {
        /// The name of the list.
        list: &'static str,
    },
    /// A list, or the work that it stands for, is larger than the backend can take.
    #[error("{list} must number at most {limit}, got {actual}")]
    TooMany {
        /// The name of what is counted.
        list: &'static str,
        /// The largest number.
        limit: u64,
        /// The number given.
        actual: u64,
    },
    /// An index is not below the length of its list.
    #[error("{list} must be below {len}, got {value}")]
    Position {
        /// The name of what the index counts, such as `tensor` or `group`.
        list: &'static str,
        /// The length of the list.
        len: usize,
        /// The index given.
        value: usize,
    },
}

/// An argument of a call is not valid. The call has written nothing.
///
/// # Examples
///
/// ```
/// use dualadam::{ArgumentError, DualAdamConfig, cpu};
///
/// let error = cpu::DualAdam::new(DualAdamConfig::default().with_eps(0.0), &[8]).unwrap_err();
/// assert!(matches!(error, ArgumentError::Group { group: 0, .. }));
/// assert_eq!(error.to_string(), "group 0: eps must be finite and above 0 as an f32, got 0.0");
/// ```
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgumentError {
    /// A hyperparameter, a step or a gradient multiplier is not valid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The config of one parameter group is not valid.
    #[error("group {group}: {problem}")]
    Group {
        /// The index of the group.
        group: usize,
        /// The problem with its config.
        problem: ConfigError,
    },
    /// One tensor, or one of its buffers, is not valid.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A list of arguments, or an index into one, is not valid.
    #[error(transparent)]
    List(#[from] ListError),
}

/// Returns an error unless a buffer has `expected` elements.
pub(crate) fn check_len(tensor: usize, buffer: Role, expected: usize, actual: usize) -> Result<(), TensorError> {
    let problem = TensorProblem::Length { expected, actual };
    if actual == expected { Ok(()) } else { Err(TensorError::of_buffer(tensor, buffer, problem)) }
}

/// Returns an error unless a list has `expected` entries.
pub(crate) fn check_count(list: &'static str, expected: usize, actual: usize) -> Result<(), ListError> {
    if actual == expected { Ok(()) } else { Err(ListError::Count { list, expected, actual }) }
}

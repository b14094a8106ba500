//! The errors of a state and of its file.

use std::io;
use std::path::PathBuf;

use crate::tensor::ArgumentError;

/// A state is not valid, or could not be saved or loaded.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, State, StateError, TensorSpec};
///
/// let mut state = State::new(&[DualAdamConfig::default()], &[TensorSpec::new(2)])?;
/// state.arrays[0].exp_avg_sq[1] = -1.0;
/// let error = StateError::from(state.validate().unwrap_err());
/// assert_eq!(error.to_string(), "exp_avg_sq of tensor 0 must be at least 0 everywhere, got -1.0");
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state is not valid, as [`State::validate`](crate::State::validate) defines it.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// The bytes are not those of a state, or the state is another model's.
    #[error(transparent)]
    Problem(#[from] Box<StateProblem>),
    /// A file was read, and its content is not that of a state, or is another model's.
    #[error("state file {path}: {problem}")]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The problem with its content.
        problem: Box<StateProblem>,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What could not be done, such as `read`.
        action: &'static str,
        /// The path of the file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// The problem with the bytes or the content of a state.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, State, TensorSpec};
///
/// let state = |len| State::new(&[DualAdamConfig::default()], &[TensorSpec::new(len)]);
/// let problem = state(3)?.check_layout(&state(4)?).unwrap_err();
/// assert_eq!(
///     problem.to_string(),
///     "it holds another model's state: tensor 0 must be 3 elements in group 0 without masters, \
///      it is 4 elements in group 0 without masters",
/// );
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateProblem {
    /// There are fewer bytes than a checksum has.
    #[error("it must have at least {min} bytes, it has {actual}")]
    TooShort {
        /// The smallest number of bytes.
        min: usize,
        /// The number of bytes given.
        actual: usize,
    },
    /// The checksum at the end does not match the content: a bit has changed, or bytes are missing.
    #[error("its CRC-32 must be {stored:08x} as stored at its end, it is {computed:08x}: the file is damaged or cut")]
    Checksum {
        /// The CRC-32 at the end.
        stored: u32,
        /// The CRC-32 of the bytes before it.
        computed: u32,
    },
    /// The bytes have another version of the file format.
    #[error("its format version must be {supported}, it is {found}")]
    Version {
        /// The version that this library reads and writes: `FORMAT_VERSION`.
        supported: u32,
        /// The version of the bytes.
        found: u32,
    },
    /// The checksum is right, but the content is not that of a state. The text says why.
    #[error("its content is not that of a dualadam state: {0}")]
    Malformed(String),
    /// The state is of a model with other groups, tensors or names.
    #[error("it holds another model's state: {what} must be {expected}, it is {found}")]
    Layout {
        /// What differs.
        what: String,
        /// The value that the optimizer has.
        expected: String,
        /// The value that the state has.
        found: String,
    },
}

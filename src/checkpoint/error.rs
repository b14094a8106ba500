//! What can be wrong with a state and its file.

use std::io;
use std::path::PathBuf;

use crate::tensor::ArgumentError;

/// A state could not be saved or resumed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The state itself is not valid.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A state is not what it should be.
    #[error(transparent)]
    Problem(#[from] Box<StateProblem>),
    /// A file was read, and is not what it should be.
    #[error("state file {path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: Box<StateProblem>,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

/// What is wrong with the bytes or the content of a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateProblem {
    /// There are fewer bytes than any state has.
    #[error("it must have at least {min} bytes, it has {actual}")]
    TooShort {
        /// Bytes of the smallest state.
        min: usize,
        /// Bytes of this one.
        actual: usize,
    },
    /// The content does not match the checksum at its end: a bit changed, or the end is missing.
    #[error("its CRC-32 must be {stored:08x} as stored at its end, it is {computed:08x}: the file is damaged or cut")]
    Checksum {
        /// The checksum stored at the end.
        stored: u32,
        /// The checksum of the bytes that were read.
        computed: u32,
    },
    /// Another version of the format was written.
    #[error("its format version must be {supported}, it is {found}")]
    Version {
        /// The version that this library reads and writes.
        supported: u32,
        /// The version found.
        found: u32,
    },
    /// The checksum is right, but the content is not that of a state.
    #[error("its content is not that of a dualadam state: {0}")]
    Malformed(String),
    /// The state belongs to a model with other tensors.
    #[error("it holds another model's state: {what} must be {expected}, it is {found}")]
    Layout {
        /// What differs.
        what: String,
        /// What this optimizer has.
        expected: String,
        /// What the state has.
        found: String,
    },
}

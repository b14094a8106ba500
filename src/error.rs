//! The error type of the whole library.

use std::path::PathBuf;

use crate::Dtype;

/// What can be wrong with a call. Every variant names the argument, what is required of it and what it was.
///
/// A call that returns an error has written nothing, except that [`State::save`](crate::State::save) may fail to make a finished
/// file durable.
///
/// # Example
///
/// ```
/// use dualadam::DualAdamConfig;
///
/// let error = DualAdamConfig::default().with_lr(-0.1).validate().unwrap_err();
/// assert_eq!(error.to_string(), "lr must be finite and at least 0, got -0.1");
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A number is outside the range that its name allows, as an f64 or after rounding to f32.
    #[error("{name} must {requirement}, got {value:?}")]
    Value {
        /// The argument or the coefficient formed from it.
        name: &'static str,
        /// The requirement that failed.
        requirement: &'static str,
        /// The value that was given or formed.
        value: f64,
    },
    /// Steps count from 1: step `t` is a tensor's `t`-th update.
    #[error("step must be at least 1, got 0")]
    StepZero,
    /// A tensor's step counter cannot grow further.
    #[error("step of tensor {tensor} must be below {max} to be updated, got {max}", max = u64::MAX)]
    StepOverflow {
        /// Position of the tensor in the list.
        tensor: usize,
    },
    /// A buffer's length differs from its tensor's.
    #[error("{buffer} of tensor {tensor} must have {expected} elements, got {actual}")]
    Length {
        /// Position of the tensor in the list; 0 for a flat step.
        tensor: usize,
        /// The buffer.
        buffer: &'static str,
        /// Elements required.
        expected: usize,
        /// Elements given.
        actual: usize,
    },
    /// Two lists that belong together differ in length.
    #[error("{list} must have {expected} entries, got {actual}")]
    Count {
        /// The list.
        list: &'static str,
        /// Entries required.
        expected: usize,
        /// Entries given.
        actual: usize,
    },
    /// An index points past the end of its list.
    #[error("{index} of tensor {tensor} must be below {len}, got {value}")]
    Index {
        /// Position of the tensor in the list.
        tensor: usize,
        /// The index: `set` or `group`.
        index: &'static str,
        /// Length of the list that it points into.
        len: usize,
        /// The index given.
        value: usize,
    },
    /// A position names no tensor or group of this optimizer.
    #[error("{list} must be below {len}, got {value}")]
    Position {
        /// What the position counts: `tensor` or `group`.
        list: &'static str,
        /// How many there are.
        len: usize,
        /// The position given.
        value: usize,
    },
    /// No kernel exists for this combination of element types.
    #[error(
        "tensor {tensor}: {params} parameters with {grads} gradients{} are not supported; \
         f32 takes any gradient, bf16 and f16 take their own type or f32, and a copy is 16-bit, beside f32 masters, \
         with f32 gradients or gradients of its own type",
        copy.map(|copy| format!(" and a {copy} copy")).unwrap_or_default()
    )]
    Types {
        /// Position of the tensor in the list; 0 for a flat step.
        tensor: usize,
        /// Element type of the parameters that are updated (of the masters, where there are any).
        params: Dtype,
        /// Element type of the gradients.
        grads: Dtype,
        /// Element type of the copy.
        copy: Option<Dtype>,
    },
    /// A state file could not be read or written.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A state file was read, and is not what it should be.
    #[error("state file {path}: {problem}")]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: StateProblem,
    },
}

/// What is wrong with the content of a state file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateProblem {
    /// The file is shorter than any state file.
    #[error("it must have at least {min} bytes, it has {actual}")]
    TooShort {
        /// Bytes of the smallest state file.
        min: usize,
        /// Bytes of this one.
        actual: usize,
    },
    /// The content does not match the checksum at its end: a bit changed, or the file was cut.
    #[error("its CRC-32 must be {stored:08x} as stored at its end, it is {computed:08x}: the file is damaged or cut")]
    Checksum {
        /// The checksum stored in the file.
        stored: u32,
        /// The checksum of the bytes that were read.
        computed: u32,
    },
    /// The file was written by another version of the format.
    #[error("its format version must be {supported}, it is {found}")]
    Version {
        /// The version that this library reads and writes.
        supported: u32,
        /// The version of the file.
        found: u32,
    },
    /// The checksum is right, but the content is not that of a state file.
    #[error("its content is not that of a dualadam state: {0}")]
    Malformed(String),
    /// The state belongs to a model with other tensors.
    #[error("it holds another model's state: {what} must be {expected}, it is {found}")]
    Layout {
        /// What differs.
        what: String,
        /// What this optimizer has.
        expected: String,
        /// What the file has.
        found: String,
    },
}

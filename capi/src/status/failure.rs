//! Why a call failed, and the status of it.

use std::error::Error as _;

use dualadam::cuda::CudaError;
use dualadam::{ConfigError, Error, ListError, StateError, StateProblem, TensorError, TensorProblem};

use super::codes::*;
use crate::arguments::Place;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{place} must not be null")]
    Null { place: Place },
    #[error("{place} must be aligned to {align} bytes, got address {address:#x}")]
    Misaligned { place: Place, align: usize, address: usize },
    #[error("the size of {place} must be {known}, or more with zeros beyond that, got {size}")]
    Size { place: Place, known: usize, size: usize },
    #[error("the size of {place} must be that of {first}, {stride}, got {size}")]
    UnequalSize { place: Place, first: Place, stride: usize, size: usize },
    #[error("{field} of {place} must be {known}, got {value}")]
    Enum { place: Place, field: &'static str, known: &'static str, value: u32 },
    #[error("{field} of {place} must {requirement}, got {value:?}")]
    Value { place: Place, field: &'static str, requirement: &'static str, value: f64 },
    #[error("the C interface must have a number for {0}")]
    NoNumber(String),
    #[error("{place} must be UTF-8, got byte {byte:#04x} at position {position}")]
    Utf8 { place: Place, position: usize, byte: u8 },
    #[error("{place} must be a live handle, got {handle:#x}: it was never given out, or what it stood for is freed")]
    StaleHandle { place: Place, handle: u64 },
    #[error("{place} must be a handle of {expected}, got {handle:#x}, which is one of {actual}")]
    HandleKind { place: Place, handle: u64, expected: &'static str, actual: &'static str },
    #[error("out of memory: {count} {name} are needed")]
    Memory { name: &'static str, count: usize },
    #[error("lr_f64 of {place} must be null where lr_f32 is not, got address {address:#x}")]
    TwoLrs { place: Place, address: u64 },
    #[error("the library panicked: {0}")]
    Panic(String),
    #[error(transparent)]
    Library(Error),
}

impl<E: Into<Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        match error.into() {
            // As the errors that this package itself makes of a config.
            Error::Group { group, problem: ConfigError::Value { name, requirement, value } } => {
                Self::Value { place: Place::entry("groups", group), field: name, requirement, value }
            }
            error => Self::Library(error),
        }
    }
}

impl Failure {
    pub(super) fn status(&self) -> dualadam_status {
        match self {
            Self::Null { .. } => DUALADAM_STATUS_NULL,
            Self::Misaligned { .. } => DUALADAM_STATUS_MISALIGNED,
            Self::Size { .. } | Self::UnequalSize { .. } => DUALADAM_STATUS_SIZE,
            Self::Enum { .. } => DUALADAM_STATUS_ENUM,
            Self::Value { .. } => DUALADAM_STATUS_VALUE,
            Self::Utf8 { .. } => DUALADAM_STATUS_UTF8,
            Self::StaleHandle { .. } => DUALADAM_STATUS_STALE_HANDLE,
            Self::HandleKind { .. } => DUALADAM_STATUS_HANDLE_KIND,
            Self::Memory { .. } => DUALADAM_STATUS_MEMORY,
            Self::TwoLrs { .. } => DUALADAM_STATUS_CUDA_ADDRESS,
            // What the library has and C lacks, and an error that no function here can meet, are
            // bugs of this package.
            Self::Panic(_) | Self::NoNumber(_) => DUALADAM_STATUS_PANIC,
            Self::Library(error) => status_of(error).unwrap_or(DUALADAM_STATUS_PANIC),
        }
    }

    /// The message and those of its causes.
    pub(super) fn text(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    }
}

/// The status of an error of the library's; `None` for one that no function here can meet.
fn status_of(error: &Error) -> Option<dualadam_status> {
    Some(match error {
        Error::Config(problem) | Error::Group { problem, .. } => match problem {
            ConfigError::Value { .. } => DUALADAM_STATUS_VALUE,
            ConfigError::StepZero => DUALADAM_STATUS_STEP_ZERO,
            _ => return None,
        },
        Error::Tensor(TensorError { problem, .. }) => match problem {
            TensorProblem::TooLong { .. } => DUALADAM_STATUS_TOO_MANY,
            TensorProblem::Formats { .. } | TensorProblem::MasterFormats { .. } => DUALADAM_STATUS_TYPES,
            TensorProblem::Null => DUALADAM_STATUS_NULL,
            TensorProblem::Misaligned { .. } => DUALADAM_STATUS_MISALIGNED,
            TensorProblem::Extent { .. } => DUALADAM_STATUS_EXTENT,
            TensorProblem::Overlap { .. } => DUALADAM_STATUS_OVERLAP,
            TensorProblem::FixedLength { .. } | TensorProblem::FixedFormats { .. } => DUALADAM_STATUS_FIXED,
            TensorProblem::CoeffsIndex { .. } | TensorProblem::Group { .. } => DUALADAM_STATUS_INDEX,
            TensorProblem::Negative { .. } | TensorProblem::NoMaster => DUALADAM_STATUS_VALUE,
            TensorProblem::Memory { .. } => DUALADAM_STATUS_MEMORY,
            _ => return None,
        },
        Error::List(ListError::Count { .. }) => DUALADAM_STATUS_COUNT,
        Error::List(ListError::Empty { .. }) => DUALADAM_STATUS_EMPTY,
        Error::List(ListError::TooMany { .. }) => DUALADAM_STATUS_TOO_MANY,
        Error::List(ListError::Position { .. }) => DUALADAM_STATUS_POSITION,
        Error::State(StateError::Io { .. }) => DUALADAM_STATUS_IO,
        Error::State(StateError::Problem(problem) | StateError::File { problem, .. }) => match **problem {
            StateProblem::TooShort { .. } => DUALADAM_STATUS_STATE_TOO_SHORT,
            StateProblem::Checksum { .. } => DUALADAM_STATUS_STATE_CHECKSUM,
            StateProblem::Version { .. } => DUALADAM_STATUS_STATE_VERSION,
            StateProblem::Malformed(_) => DUALADAM_STATUS_STATE_MALFORMED,
            StateProblem::Layout { .. } => DUALADAM_STATUS_STATE_LAYOUT,
            _ => return None,
        },
        Error::Cuda(CudaError::NoDriver) => DUALADAM_STATUS_CUDA_NO_DRIVER,
        Error::Cuda(CudaError::StubDriver) => DUALADAM_STATUS_CUDA_STUB_DRIVER,
        Error::Cuda(CudaError::OldDriver { .. }) => DUALADAM_STATUS_CUDA_OLD_DRIVER,
        Error::Cuda(CudaError::Ptx(_)) => DUALADAM_STATUS_CUDA_PTX,
        Error::Cuda(CudaError::Driver { .. }) => DUALADAM_STATUS_CUDA_DRIVER,
        Error::Cuda(CudaError::Context { .. }) => DUALADAM_STATUS_CUDA_CONTEXT,
        Error::Cuda(CudaError::SetGroup { .. }) => DUALADAM_STATUS_POSITION,
        Error::Cuda(CudaError::Captured { .. }) => DUALADAM_STATUS_CUDA_CAPTURED,
        Error::Cuda(CudaError::Address { .. }) => DUALADAM_STATUS_CUDA_ADDRESS,
        Error::Cuda(CudaError::CallersLr { .. }) => DUALADAM_STATUS_CUDA_CALLERS_LR,
        Error::Cuda(CudaError::Interrupted) => DUALADAM_STATUS_CUDA_INTERRUPTED,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::CStr;
    use std::path::PathBuf;

    use dualadam::cuda::{AddressProblem, ControlAddress, CudaArgument};
    use dualadam::{ArgumentError, Dtype, Formats, Ledger, Role, TensorSpec};

    use super::*;

    #[test]
    fn a_text_has_its_causes() {
        let source = std::io::Error::other("the disk burns");
        let failure = Failure::from(StateError::Io { action: "read", path: PathBuf::from("x"), source });
        assert_eq!((failure.status(), failure.text().as_str()), (DUALADAM_STATUS_IO, "cannot read x: the disk burns"));
    }

    /// An error of tensor 0, which only the library makes.
    fn of_tensor(problem: TensorProblem) -> Error {
        let mut ledger = Ledger::new(&[Default::default()], &[TensorSpec::new(1)]).unwrap();
        let Err(ArgumentError::Tensor(mut error)) = ledger.set_master_is_set(0, true) else { panic!() };
        error.problem = problem;
        error.into()
    }

    /// Every kind of error that a function here can meet has its status, and every status its name.
    /// A `PtxError` is missing: only the driver makes it.
    #[test]
    fn kinds_of_errors_and_their_codes() {
        let (len, value, list) = (0, 0, "tensors");
        let formats = Formats::new(Dtype::F32, Dtype::F32);
        let layout = StateProblem::Layout { what: String::new(), expected: String::new(), found: String::new() };
        let states = [
            (41, StateProblem::TooShort { min: 0, actual: 0 }),
            (42, StateProblem::Checksum { stored: 0, computed: 0 }),
            (43, StateProblem::Version { supported: 0, found: 0 }),
            (44, StateProblem::Malformed(String::new())),
            (45, layout),
        ];
        let tensors = [
            (2, TensorProblem::Null),
            (3, TensorProblem::Misaligned { address: 0, align: 0 }),
            (20, TensorProblem::Negative { value: -1.0 }),
            (20, TensorProblem::NoMaster),
            (25, TensorProblem::CoeffsIndex { len, value }),
            (25, TensorProblem::Group { len, value }),
            (27, TensorProblem::Formats { formats }),
            (29, TensorProblem::TooLong { limit: 0, actual: 0 }),
            (30, TensorProblem::Extent { address: 0, len: 0, size: 0 }),
            (31, TensorProblem::Overlap { other_tensor: 0, other_buffer: Role::Param, address: 0 }),
            (32, TensorProblem::FixedLength { expected: 0, actual: 0 }),
            (32, TensorProblem::FixedFormats { expected: formats, actual: formats }),
            (33, TensorProblem::Memory { bytes: 0 }),
        ];
        let (argument, problem) = (ControlAddress::LossScale, AddressProblem::Null);
        let others: [(_, Error); 18] = [
            (20, ConfigError::Value { name: "lr", requirement: "", value: 0.0 }.into()),
            (20, Error::Group { group: 0, problem: ConfigError::Value { name: "lr", requirement: "", value: 0.0 } }),
            (21, ConfigError::StepZero.into()),
            (24, ListError::Count { list, expected: 0, actual: 0 }.into()),
            (26, ListError::Position { list, len, value }.into()),
            (26, CudaError::SetGroup { set: 0, len, value }.into()),
            (28, ListError::Empty { list }.into()),
            (29, ListError::TooMany { list, limit: 0, actual: 0 }.into()),
            (
                40,
                StateError::Io { action: "", path: PathBuf::new(), source: std::io::ErrorKind::NotFound.into() }.into(),
            ),
            (60, CudaError::NoDriver.into()),
            (61, CudaError::OldDriver { required: 0, found: 0 }.into()),
            (63, CudaError::Driver { call: "", code: 0, name: String::new() }.into()),
            (64, CudaError::Context { argument: CudaArgument::Stream }.into()),
            (65, CudaError::Captured { what: "" }.into()),
            (66, CudaError::Address { argument, problem, address: 0 }.into()),
            (67, CudaError::CallersLr { group: 0 }.into()),
            (68, CudaError::Interrupted.into()),
            (72, CudaError::StubDriver.into()),
        ];
        let states = states.into_iter().map(|(status, problem)| (status, StateError::from(Box::new(problem)).into()));
        let tensors = tensors.into_iter().map(|(status, problem)| (status, of_tensor(problem)));
        let mut names = BTreeSet::new();
        for (status, error) in others.into_iter().chain(states).chain(tensors) {
            assert_eq!(Failure::from(error).status(), status);
            // SAFETY: a name is a C string that stays.
            names.insert(unsafe { CStr::from_ptr(dualadam_status_name(status)) });
        }
        assert_eq!(names.len(), 29);
        assert!(!names.contains(c"unknown status"));
    }

    /// Errors that no function here can meet are bugs, with the error's text.
    #[test]
    fn errors_that_cannot_be_are_bugs() {
        for (text, error) in [
            ("master of tensor 0 must be at a step below", of_tensor(TensorProblem::StepOverflow)),
            ("master of tensor 0 must have 1 elements", of_tensor(TensorProblem::Length { expected: 1, actual: 0 })),
            (
                "stream must belong to the same CudaContext",
                CudaError::Unordered { argument: CudaArgument::Stream }.into(),
            ),
            ("an optimizer's stream must be the same", CudaError::PerThreadStream.into()),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.status(), DUALADAM_STATUS_PANIC);
            assert!(failure.text().starts_with(text), "{}", failure.text());
        }
    }
}

//! Why a call failed, and the status of it.

use std::error::Error as _;

use dualadam::{Error, StateProblem};

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
    #[error("{field} of {place} must be {known}, got {value}")]
    Enum { place: Place, field: &'static str, known: &'static str, value: u32 },
    #[error("{place} must be UTF-8, got byte {byte:#04x} at position {position}")]
    Utf8 { place: Place, position: usize, byte: u8 },
    #[error("{place} must be a live handle, got {handle:#x}: it was never given out, or what it stood for is freed")]
    StaleHandle { place: Place, handle: u64 },
    #[error("{place} must be a handle of {expected}, got {handle:#x}, which is one of {actual}")]
    HandleKind { place: Place, handle: u64, expected: &'static str, actual: &'static str },
    #[error("out of memory: {count} {name} are needed")]
    Memory { name: &'static str, count: usize },
    #[error("the library panicked: {0}")]
    Panic(String),
    #[error(transparent)]
    Library(#[from] Error),
}

impl Failure {
    pub(super) fn status(&self) -> dualadam_status {
        match self {
            Self::Null { .. } => DUALADAM_STATUS_NULL,
            Self::Misaligned { .. } => DUALADAM_STATUS_MISALIGNED,
            Self::Size { .. } => DUALADAM_STATUS_SIZE,
            Self::Enum { .. } => DUALADAM_STATUS_ENUM,
            Self::Utf8 { .. } => DUALADAM_STATUS_UTF8,
            Self::StaleHandle { .. } => DUALADAM_STATUS_STALE_HANDLE,
            Self::HandleKind { .. } => DUALADAM_STATUS_HANDLE_KIND,
            Self::Memory { .. } => DUALADAM_STATUS_MEMORY,
            Self::Panic(_) => DUALADAM_STATUS_PANIC,
            Self::Library(error) => status_of(error),
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

fn status_of(error: &Error) -> dualadam_status {
    match error {
        Error::Value { .. } => DUALADAM_STATUS_VALUE,
        Error::StepZero => DUALADAM_STATUS_STEP_ZERO,
        Error::Count { .. } => DUALADAM_STATUS_COUNT,
        Error::Index { .. } => DUALADAM_STATUS_INDEX,
        Error::Position { .. } => DUALADAM_STATUS_POSITION,
        Error::Types { .. } => DUALADAM_STATUS_TYPES,
        Error::Empty { .. } => DUALADAM_STATUS_EMPTY,
        Error::TooMany { .. } => DUALADAM_STATUS_TOO_MANY,
        Error::Memory { .. } => DUALADAM_STATUS_MEMORY,
        Error::Null { .. } => DUALADAM_STATUS_NULL,
        Error::Misaligned { .. } => DUALADAM_STATUS_MISALIGNED,
        Error::Extent { .. } => DUALADAM_STATUS_EXTENT,
        Error::Overlap { .. } => DUALADAM_STATUS_OVERLAP,
        Error::Fixed { .. } => DUALADAM_STATUS_FIXED,
        Error::NoDriver => DUALADAM_STATUS_CUDA_NO_DRIVER,
        Error::StubDriver => DUALADAM_STATUS_CUDA_STUB_DRIVER,
        Error::OldDriver { .. } => DUALADAM_STATUS_CUDA_OLD_DRIVER,
        Error::Ptx { .. } => DUALADAM_STATUS_CUDA_PTX,
        Error::Driver { .. } => DUALADAM_STATUS_CUDA_DRIVER,
        Error::Context { .. } => DUALADAM_STATUS_CUDA_CONTEXT,
        Error::Captured { .. } => DUALADAM_STATUS_CUDA_CAPTURED,
        Error::Address { .. } => DUALADAM_STATUS_CUDA_ADDRESS,
        Error::CallersLr { .. } => DUALADAM_STATUS_CUDA_CALLERS_LR,
        Error::Interrupted => DUALADAM_STATUS_CUDA_INTERRUPTED,
        Error::Io { .. } => DUALADAM_STATUS_IO,
        Error::State { problem: StateProblem::TooShort { .. }, .. } => DUALADAM_STATUS_STATE_TOO_SHORT,
        Error::State { problem: StateProblem::Checksum { .. }, .. } => DUALADAM_STATUS_STATE_CHECKSUM,
        Error::State { problem: StateProblem::Version { .. }, .. } => DUALADAM_STATUS_STATE_VERSION,
        Error::State { problem: StateProblem::Malformed(_), .. } => DUALADAM_STATUS_STATE_MALFORMED,
        Error::State { problem: StateProblem::Layout { .. }, .. } => DUALADAM_STATUS_STATE_LAYOUT,
        // Errors of WebGPU, of the owning optimizers and of slices, which no function here uses:
        // one that comes nevertheless is a bug of this library.
        _ => DUALADAM_STATUS_PANIC,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ffi::CStr;
    use std::path::PathBuf;

    use dualadam::Dtype;

    use super::*;

    #[test]
    fn a_text_has_its_causes() {
        let source = std::io::Error::other("the disk burns");
        let failure = Failure::from(Error::Io { action: "read", path: PathBuf::from("x"), source });
        assert_eq!((failure.status(), failure.text().as_str()), (DUALADAM_STATUS_IO, "cannot read x: the disk burns"));
    }

    /// Every kind of error that a function here can meet has a status of its own, and every status
    /// its name.
    #[test]
    fn kinds_of_errors_and_their_codes() {
        let (tensor, value, len, buffer, list) = (0, 0, 0, "params", "tensors");
        let f32 = Dtype::F32;
        let state = |problem| Error::State { path: PathBuf::new(), problem };
        let layout = || StateProblem::Layout { what: String::new(), expected: String::new(), found: String::new() };
        let errors = [
            (20, Error::Value { name: "lr", requirement: "", value: 0.0 }),
            (21, Error::StepZero),
            (24, Error::Count { list, expected: 0, actual: 0 }),
            (25, Error::Index { tensor, index: "set", len, value }),
            (26, Error::Position { list, len, value }),
            (27, Error::Types { tensor, params: f32, grads: f32, copy: None }),
            (28, Error::Empty { list }),
            (29, Error::TooMany { list, limit: 0, actual: 0 }),
            (2, Error::Null { tensor, buffer }),
            (3, Error::Misaligned { tensor, buffer, address: 0, align: 0 }),
            (30, Error::Extent { tensor, buffer, address: 0, len: 0, size: 0 }),
            (31, Error::Overlap { tensor, buffer, other_tensor: 0, other_buffer: "", address: 0 }),
            (32, Error::Fixed { tensor, what: "", expected: String::new(), actual: String::new() }),
            (33, Error::Memory { tensor, elements: 0 }),
            (40, Error::Io { action: "", path: PathBuf::new(), source: std::io::ErrorKind::NotFound.into() }),
            (41, state(StateProblem::TooShort { min: 0, actual: 0 })),
            (42, state(StateProblem::Checksum { stored: 0, computed: 0 })),
            (43, state(StateProblem::Version { supported: 0, found: 0 })),
            (44, state(StateProblem::Malformed(String::new()))),
            (45, state(layout())),
            (60, Error::NoDriver),
            (61, Error::OldDriver { required: 0, found: 0 }),
            (62, Error::Ptx { code: 0, name: String::new(), origin: "", log: String::new() }),
            (63, Error::Driver { call: "", code: 0, name: String::new() }),
            (64, Error::Context { argument: "stream" }),
            (65, Error::Captured { what: "" }),
            (66, Error::Address { argument: String::new(), requirement: String::new(), address: 0 }),
            (67, Error::CallersLr { group: 0 }),
            (68, Error::Interrupted),
            (72, Error::StubDriver),
        ];
        let mut names = BTreeSet::new();
        for (status, error) in errors {
            assert_eq!(Failure::from(error).status(), status);
            // SAFETY: a name is a C string that stays.
            names.insert(unsafe { CStr::from_ptr(dualadam_status_name(status)) });
        }
        assert_eq!(names.len(), 30);
        assert!(!names.contains(c"unknown status"));
    }

    /// Errors that no function here can meet are bugs, with the error's text.
    #[test]
    fn errors_that_cannot_be_are_bugs() {
        let (tensor, buffer) = (0, "params");
        for (text, error) in [
            ("step of tensor 0 must be below", Error::StepOverflow { tensor }),
            ("params of tensor 0 must have 1 elements", Error::Length { tensor, buffer, expected: 1, actual: 0 }),
            ("params must belong to the same CudaContext", Error::Unordered { argument: buffer }),
            ("an optimizer's stream must be the same", Error::PerThreadStream),
            ("step must be called on an optimizer", Error::NoDeviceControl { call: "step" }),
            ("params of tensor 0 must be in a buffer", Error::Usage { tensor, buffer, actual: String::new() }),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.status(), DUALADAM_STATUS_PANIC);
            assert!(failure.text().starts_with(text), "{}", failure.text());
        }
    }
}

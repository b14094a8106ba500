//! Status codes, the text of the last error, and the border that no panic crosses.

use std::any::Any;
use std::cell::RefCell;
use std::error::Error as _;
use std::ffi::{CStr, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Error, StateProblem};

use super::arguments::{Place, check_pointer};

/// What a call did: 0 if all went well, otherwise one of the `DUALADAM_STATUS_` numbers. They never change their meaning.
pub type dualadam_status = i32;

/// All went well.
pub const DUALADAM_STATUS_OK: i32 = 0;
/// The library has a bug and stopped in the middle of the call; what the call was to write may be written in part.
pub const DUALADAM_STATUS_PANIC: i32 = 1;
/// A pointer is null that must not be.
pub const DUALADAM_STATUS_NULL: i32 = 2;
/// A pointer is not a multiple of the alignment of what it points to.
pub const DUALADAM_STATUS_MISALIGNED: i32 = 3;
/// The `size` of a struct is not one that this library knows, and what is beyond the size that it knows is not 0.
pub const DUALADAM_STATUS_SIZE: i32 = 4;
/// A number is none of the named ones that it must be one of.
pub const DUALADAM_STATUS_ENUM: i32 = 5;
/// A path is not UTF-8.
pub const DUALADAM_STATUS_UTF8: i32 = 6;
/// A handle was never given out, or what it stood for is freed.
pub const DUALADAM_STATUS_STALE_HANDLE: i32 = 7;
/// A handle stands for an object of another kind.
pub const DUALADAM_STATUS_HANDLE_KIND: i32 = 8;
/// This library was built without what the call needs. What has to do with WebGPU is not in the C library at all.
pub const DUALADAM_STATUS_UNSUPPORTED: i32 = 9;
/// A number is outside the range that its name allows, as a double or after rounding to float.
pub const DUALADAM_STATUS_VALUE: i32 = 20;
/// A step is 0; steps count from 1.
pub const DUALADAM_STATUS_STEP_ZERO: i32 = 21;
/// A tensor's step counter cannot grow further. No function of this library gives it: the caller counts the steps, or the device, which
/// says DUALADAM_SKIP_STEP.
pub const DUALADAM_STATUS_STEP_OVERFLOW: i32 = 22;
/// A buffer's length differs from its tensor's. No function of this library gives it: a tensor's buffers are given with one length.
pub const DUALADAM_STATUS_LENGTH: i32 = 23;
/// Two lists that belong together differ in length.
pub const DUALADAM_STATUS_COUNT: i32 = 24;
/// A tensor's set or group is beyond the end of the sets or groups.
pub const DUALADAM_STATUS_INDEX: i32 = 25;
/// There is no device, tensor or group of that number.
pub const DUALADAM_STATUS_POSITION: i32 = 26;
/// There is no kernel for a combination of element types.
pub const DUALADAM_STATUS_TYPES: i32 = 27;
/// A list that must have an entry has none.
pub const DUALADAM_STATUS_EMPTY: i32 = 28;
/// A list or a buffer is longer than can be.
pub const DUALADAM_STATUS_TOO_MANY: i32 = 29;
/// A buffer would end beyond the last address.
pub const DUALADAM_STATUS_EXTENT: i32 = 30;
/// Two buffers share memory, and at least one of them is written.
pub const DUALADAM_STATUS_OVERLAP: i32 = 31;
/// A list's tensor has another length or other types than the list was made with.
pub const DUALADAM_STATUS_FIXED: i32 = 32;
/// There is not enough memory.
pub const DUALADAM_STATUS_MEMORY: i32 = 33;
/// A state file could not be read or written.
pub const DUALADAM_STATUS_IO: i32 = 40;
/// A state file is shorter than any is.
pub const DUALADAM_STATUS_STATE_TOO_SHORT: i32 = 41;
/// A state file is damaged or cut: its checksum is another.
pub const DUALADAM_STATUS_STATE_CHECKSUM: i32 = 42;
/// A state file is of another version of the format.
pub const DUALADAM_STATUS_STATE_VERSION: i32 = 43;
/// A file is whole, but not a state.
pub const DUALADAM_STATUS_STATE_MALFORMED: i32 = 44;
/// A state belongs to a model with other tensors.
pub const DUALADAM_STATUS_STATE_LAYOUT: i32 = 45;
/// There is no CUDA driver on this machine.
pub const DUALADAM_STATUS_CUDA_NO_DRIVER: i32 = 60;
/// The CUDA driver is older than any that is supported.
pub const DUALADAM_STATUS_CUDA_OLD_DRIVER: i32 = 61;
/// The CUDA driver refused the kernels.
pub const DUALADAM_STATUS_CUDA_PTX: i32 = 62;
/// A call of the CUDA driver failed; the text has its name and code. Part of a list may have been stepped.
pub const DUALADAM_STATUS_CUDA_DRIVER: i32 = 63;
/// A stream belongs to another CUDA context than the kernels.
pub const DUALADAM_STATUS_CUDA_CONTEXT: i32 = 64;
/// The call cannot be captured in a CUDA graph: the text says what it would do.
pub const DUALADAM_STATUS_CUDA_CAPTURED: i32 = 65;
/// An address in device memory that a control or a controlled step is given is null, misaligned, or overlaps another.
pub const DUALADAM_STATUS_CUDA_ADDRESS: i32 = 66;
/// A control reads the learning rate from the caller's memory: write it there.
pub const DUALADAM_STATUS_CUDA_CALLERS_LR: i32 = 67;
/// The driver failed between a control's counters and its tensors, so that steps were counted that were not made:
/// `dualadam_cuda_control_set_steps` makes it usable again.
pub const DUALADAM_STATUS_CUDA_INTERRUPTED: i32 = 68;
/// Work is not ordered with a buffer. No function of this library gives it: what they take are addresses.
pub const DUALADAM_STATUS_CUDA_UNORDERED: i32 = 69;
/// A stream is the per-thread default stream, where it must be one stream for all threads. No function of this library gives it.
pub const DUALADAM_STATUS_CUDA_PER_THREAD_STREAM: i32 = 70;
/// An optimizer has no device control. No function of this library gives it: its controls are objects of their own.
pub const DUALADAM_STATUS_CUDA_NO_DEVICE_CONTROL: i32 = 71;
/// The dynamic linker finds a CUDA toolkit's stub of libcuda before the driver's.
pub const DUALADAM_STATUS_CUDA_STUB_DRIVER: i32 = 72;

/// The name of a status, such as "DUALADAM_STATUS_NULL". The text is the library's and stays valid; a number that is no status has the
/// name "unknown status".
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_status_name(status: dualadam_status) -> *const c_char {
    let name = match status {
        DUALADAM_STATUS_OK => c"DUALADAM_STATUS_OK",
        DUALADAM_STATUS_PANIC => c"DUALADAM_STATUS_PANIC",
        DUALADAM_STATUS_NULL => c"DUALADAM_STATUS_NULL",
        DUALADAM_STATUS_MISALIGNED => c"DUALADAM_STATUS_MISALIGNED",
        DUALADAM_STATUS_SIZE => c"DUALADAM_STATUS_SIZE",
        DUALADAM_STATUS_ENUM => c"DUALADAM_STATUS_ENUM",
        DUALADAM_STATUS_UTF8 => c"DUALADAM_STATUS_UTF8",
        DUALADAM_STATUS_STALE_HANDLE => c"DUALADAM_STATUS_STALE_HANDLE",
        DUALADAM_STATUS_HANDLE_KIND => c"DUALADAM_STATUS_HANDLE_KIND",
        DUALADAM_STATUS_UNSUPPORTED => c"DUALADAM_STATUS_UNSUPPORTED",
        DUALADAM_STATUS_VALUE => c"DUALADAM_STATUS_VALUE",
        DUALADAM_STATUS_STEP_ZERO => c"DUALADAM_STATUS_STEP_ZERO",
        DUALADAM_STATUS_STEP_OVERFLOW => c"DUALADAM_STATUS_STEP_OVERFLOW",
        DUALADAM_STATUS_LENGTH => c"DUALADAM_STATUS_LENGTH",
        DUALADAM_STATUS_COUNT => c"DUALADAM_STATUS_COUNT",
        DUALADAM_STATUS_INDEX => c"DUALADAM_STATUS_INDEX",
        DUALADAM_STATUS_POSITION => c"DUALADAM_STATUS_POSITION",
        DUALADAM_STATUS_TYPES => c"DUALADAM_STATUS_TYPES",
        DUALADAM_STATUS_EMPTY => c"DUALADAM_STATUS_EMPTY",
        DUALADAM_STATUS_TOO_MANY => c"DUALADAM_STATUS_TOO_MANY",
        DUALADAM_STATUS_EXTENT => c"DUALADAM_STATUS_EXTENT",
        DUALADAM_STATUS_OVERLAP => c"DUALADAM_STATUS_OVERLAP",
        DUALADAM_STATUS_FIXED => c"DUALADAM_STATUS_FIXED",
        DUALADAM_STATUS_MEMORY => c"DUALADAM_STATUS_MEMORY",
        DUALADAM_STATUS_IO => c"DUALADAM_STATUS_IO",
        DUALADAM_STATUS_STATE_TOO_SHORT => c"DUALADAM_STATUS_STATE_TOO_SHORT",
        DUALADAM_STATUS_STATE_CHECKSUM => c"DUALADAM_STATUS_STATE_CHECKSUM",
        DUALADAM_STATUS_STATE_VERSION => c"DUALADAM_STATUS_STATE_VERSION",
        DUALADAM_STATUS_STATE_MALFORMED => c"DUALADAM_STATUS_STATE_MALFORMED",
        DUALADAM_STATUS_STATE_LAYOUT => c"DUALADAM_STATUS_STATE_LAYOUT",
        DUALADAM_STATUS_CUDA_NO_DRIVER => c"DUALADAM_STATUS_CUDA_NO_DRIVER",
        DUALADAM_STATUS_CUDA_OLD_DRIVER => c"DUALADAM_STATUS_CUDA_OLD_DRIVER",
        DUALADAM_STATUS_CUDA_PTX => c"DUALADAM_STATUS_CUDA_PTX",
        DUALADAM_STATUS_CUDA_DRIVER => c"DUALADAM_STATUS_CUDA_DRIVER",
        DUALADAM_STATUS_CUDA_CONTEXT => c"DUALADAM_STATUS_CUDA_CONTEXT",
        DUALADAM_STATUS_CUDA_CAPTURED => c"DUALADAM_STATUS_CUDA_CAPTURED",
        DUALADAM_STATUS_CUDA_ADDRESS => c"DUALADAM_STATUS_CUDA_ADDRESS",
        DUALADAM_STATUS_CUDA_CALLERS_LR => c"DUALADAM_STATUS_CUDA_CALLERS_LR",
        DUALADAM_STATUS_CUDA_INTERRUPTED => c"DUALADAM_STATUS_CUDA_INTERRUPTED",
        DUALADAM_STATUS_CUDA_UNORDERED => c"DUALADAM_STATUS_CUDA_UNORDERED",
        DUALADAM_STATUS_CUDA_PER_THREAD_STREAM => c"DUALADAM_STATUS_CUDA_PER_THREAD_STREAM",
        DUALADAM_STATUS_CUDA_NO_DEVICE_CONTROL => c"DUALADAM_STATUS_CUDA_NO_DEVICE_CONTROL",
        DUALADAM_STATUS_CUDA_STUB_DRIVER => c"DUALADAM_STATUS_CUDA_STUB_DRIVER",
        _ => c"unknown status",
    };
    name.as_ptr()
}

/// The version of the library, such as "0.1.0". The text is the library's and stays valid.
///
/// Threads: any.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

/// Copies out the text of the last call of this thread that failed, in UTF-8 and with a zero byte at its end: which argument was wrong,
/// what is required of it, and what it was. Calls that succeed leave it as it is; before the first failure it is "".
///
/// `buffer` has `len` bytes. A text that does not fit is cut, at a whole character. `needed`, unless it is null, gets the bytes that the
/// whole text takes, with its zero byte; so `len` 0, where `buffer` may be null, asks for that only.
///
/// Threads: each has its own text.
///
/// Errors: `DUALADAM_STATUS_NULL` for a null `buffer` with a `len` above 0, `DUALADAM_STATUS_MISALIGNED`. These leave the text as it is.
///
/// # Safety
///
/// `buffer` has `len` writable bytes; `needed` is null or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dualadam_last_error(buffer: *mut c_char, len: usize, needed: *mut usize) -> dualadam_status {
    if len > 0 && buffer.is_null() {
        return DUALADAM_STATUS_NULL;
    }
    if !needed.is_null() && check_pointer("needed".into(), needed).is_err() {
        return DUALADAM_STATUS_MISALIGNED;
    }
    let copy = |text: &RefCell<String>| {
        let text = text.borrow();
        if let Some(room) = len.checked_sub(1) {
            let kept = text.floor_char_boundary(room);
            // SAFETY: `kept` is below `len`, which the caller vouches for, and the text is this thread's own.
            unsafe {
                buffer.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), kept);
                buffer.add(kept).write(0);
            }
        }
        if !needed.is_null() {
            // SAFETY: as this function requires; aligned, as was checked.
            unsafe { needed.write(text.len() + 1) };
        }
    };
    // A thread that ends has lost its text already.
    if LAST_ERROR.try_with(copy).is_err() {
        copy(&RefCell::default());
    }
    DUALADAM_STATUS_OK
}

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
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
    #[cfg(not(feature = "cuda"))]
    #[error("the library must be built with the feature {feature}, it is built without")]
    Unsupported { feature: &'static str },
    #[error("the library panicked: {0}")]
    Panic(String),
    #[error(transparent)]
    Library(#[from] Error),
}

impl Failure {
    fn status(&self) -> dualadam_status {
        match self {
            Self::Null { .. } => DUALADAM_STATUS_NULL,
            Self::Misaligned { .. } => DUALADAM_STATUS_MISALIGNED,
            Self::Size { .. } => DUALADAM_STATUS_SIZE,
            Self::Enum { .. } => DUALADAM_STATUS_ENUM,
            Self::Utf8 { .. } => DUALADAM_STATUS_UTF8,
            Self::StaleHandle { .. } => DUALADAM_STATUS_STALE_HANDLE,
            Self::HandleKind { .. } => DUALADAM_STATUS_HANDLE_KIND,
            Self::Memory { .. } => DUALADAM_STATUS_MEMORY,
            #[cfg(not(feature = "cuda"))]
            Self::Unsupported { .. } => DUALADAM_STATUS_UNSUPPORTED,
            Self::Panic(_) => DUALADAM_STATUS_PANIC,
            Self::Library(error) => status_of(error),
        }
    }

    /// The message and those of its causes.
    fn text(&self) -> String {
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
        Error::StepOverflow { .. } => DUALADAM_STATUS_STEP_OVERFLOW,
        Error::Length { .. } => DUALADAM_STATUS_LENGTH,
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
        Error::Unordered { .. } => DUALADAM_STATUS_CUDA_UNORDERED,
        Error::PerThreadStream => DUALADAM_STATUS_CUDA_PER_THREAD_STREAM,
        Error::NoDeviceControl { .. } => DUALADAM_STATUS_CUDA_NO_DEVICE_CONTROL,
        // Of WebGPU, which the C library does not have.
        Error::Limit { .. }
        | Error::Usage { .. }
        | Error::Offset { .. }
        | Error::BufferSize { .. }
        | Error::ArraySize { .. }
        | Error::Wgpu { .. } => DUALADAM_STATUS_UNSUPPORTED,
        Error::Io { .. } => DUALADAM_STATUS_IO,
        Error::State { problem, .. } => match problem {
            StateProblem::TooShort { .. } => DUALADAM_STATUS_STATE_TOO_SHORT,
            StateProblem::Checksum { .. } => DUALADAM_STATUS_STATE_CHECKSUM,
            StateProblem::Version { .. } => DUALADAM_STATUS_STATE_VERSION,
            StateProblem::Malformed(_) => DUALADAM_STATUS_STATE_MALFORMED,
            StateProblem::Layout { .. } => DUALADAM_STATUS_STATE_LAYOUT,
        },
    }
}

/// Does a call's work; makes a status of its outcome, and of a panic.
pub(super) fn border(work: impl FnOnce() -> Result<(), Failure>) -> dualadam_status {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Failure::Panic(text_of(&*panic))));
    let Err(failure) = outcome else { return DUALADAM_STATUS_OK };
    // A thread that ends has no place for it any more.
    let _ = LAST_ERROR.try_with(|text| *text.borrow_mut() = failure.text());
    failure.status()
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it gave no reason").to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;
    use std::ptr;

    use super::*;
    use crate::Dtype;

    fn last_error() -> String {
        let mut buffer = [0_u8; 200];
        // SAFETY: the buffer has that length.
        assert_eq!(unsafe { dualadam_last_error(buffer.as_mut_ptr().cast(), 200, ptr::null_mut()) }, 0);
        CStr::from_bytes_until_nul(&buffer).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status() {
        assert_eq!(border(|| panic!("number {}", 7)), DUALADAM_STATUS_PANIC);
        assert_eq!(last_error(), "the library panicked: number 7");
        assert_eq!(border(|| panic!("constant")), DUALADAM_STATUS_PANIC);
        assert_eq!(last_error(), "the library panicked: constant");
        assert_eq!(border(|| std::panic::panic_any(7)), DUALADAM_STATUS_PANIC);
        assert_eq!(last_error(), "the library panicked: it gave no reason");
        assert_eq!(border(|| Ok(())), DUALADAM_STATUS_OK);
        assert_eq!(last_error(), "the library panicked: it gave no reason");
    }

    #[test]
    fn a_text_has_its_causes() {
        let source = std::io::Error::other("the disk burns");
        let error = Error::Io { action: "read", path: PathBuf::from("x"), source };
        assert_eq!(border(|| Err(error.into())), DUALADAM_STATUS_IO);
        assert_eq!(last_error(), "cannot read x: the disk burns");
    }

    /// Every kind of error has a status of its own, and every status its name.
    #[test]
    fn kinds_of_errors_and_their_codes() {
        let (tensor, value, len, buffer, list) = (0, 0, 0, "params", "tensors");
        let f32 = Dtype::F32;
        let state = |problem| Error::State { path: PathBuf::new(), problem };
        let layout = || StateProblem::Layout { what: String::new(), expected: String::new(), found: String::new() };
        let errors = [
            (20, Error::Value { name: "lr", requirement: "", value: 0.0 }),
            (21, Error::StepZero),
            (22, Error::StepOverflow { tensor }),
            (23, Error::Length { tensor, buffer, expected: 0, actual: 0 }),
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
            (69, Error::Unordered { argument: "" }),
            (70, Error::PerThreadStream),
            (71, Error::NoDeviceControl { call: "" }),
            (72, Error::StubDriver),
        ];
        let mut names = BTreeSet::new();
        for (status, error) in errors {
            assert_eq!(border(|| Err(error.into())), status);
            // SAFETY: a name is a C string that stays.
            names.insert(unsafe { CStr::from_ptr(dualadam_status_name(status)) });
        }
        assert_eq!(names.len(), 35);
        assert!(!names.contains(c"unknown status"));
    }
}

//! The numbers of the statuses, and their names.

use std::ffi::c_char;

/// What a call did: 0 for success, otherwise one of the `DUALADAM_STATUS_` numbers. A number never
/// changes its meaning.
pub type dualadam_status = i32;

/// Success.
pub const DUALADAM_STATUS_OK: i32 = 0;
/// The library has a bug: the text says what happened. What the call was to write may be written in
/// part.
pub const DUALADAM_STATUS_PANIC: i32 = 1;
/// A pointer is null that must not be.
pub const DUALADAM_STATUS_NULL: i32 = 2;
/// A pointer is not a multiple of the alignment of what it points to.
pub const DUALADAM_STATUS_MISALIGNED: i32 = 3;
/// The `size` of a struct is not one that this library knows, or what is beyond the size that it
/// knows is not 0.
pub const DUALADAM_STATUS_SIZE: i32 = 4;
/// A number is none of the named ones that it must be one of.
pub const DUALADAM_STATUS_ENUM: i32 = 5;
/// A path is not UTF-8.
pub const DUALADAM_STATUS_UTF8: i32 = 6;
/// A handle was never given out, or its object was freed.
pub const DUALADAM_STATUS_STALE_HANDLE: i32 = 7;
/// A handle stands for an object of another kind.
pub const DUALADAM_STATUS_HANDLE_KIND: i32 = 8;
/// A number is outside the range that its name allows, as a double or after rounding to float.
pub const DUALADAM_STATUS_VALUE: i32 = 20;
/// A step is 0; steps count from 1.
pub const DUALADAM_STATUS_STEP_ZERO: i32 = 21;
/// Two lists that belong together differ in length.
pub const DUALADAM_STATUS_COUNT: i32 = 24;
/// A tensor's coefficients, or its group, are not there.
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
/// A call of the CUDA driver failed; the text has its name and code. Part of a list may have been
/// stepped.
pub const DUALADAM_STATUS_CUDA_DRIVER: i32 = 63;
/// A stream or a control belongs to another CUDA context than the kernels.
pub const DUALADAM_STATUS_CUDA_CONTEXT: i32 = 64;
/// The call cannot be captured in a CUDA graph. The text names what it would have to do.
pub const DUALADAM_STATUS_CUDA_CAPTURED: i32 = 65;
/// An address in device memory that a control or a controlled step is given is null, misaligned, or
/// overlaps another.
pub const DUALADAM_STATUS_CUDA_ADDRESS: i32 = 66;
/// A control reads the learning rate from the caller's memory: write it there.
pub const DUALADAM_STATUS_CUDA_CALLERS_LR: i32 = 67;
/// The driver failed after a control's counters had advanced and before all tensors were stepped.
/// `dualadam_cuda_control_set_steps` makes the control usable again.
pub const DUALADAM_STATUS_CUDA_INTERRUPTED: i32 = 68;
/// The dynamic linker finds a CUDA toolkit's stub of libcuda before the driver's.
pub const DUALADAM_STATUS_CUDA_STUB_DRIVER: i32 = 72;

/// A text as a C string, at compile time.
macro_rules! c_str {
    ($($text:tt)+) => {
        const {
            match std::ffi::CStr::from_bytes_with_nul(concat!($($text)+, "\0").as_bytes()) {
                Ok(text) => text,
                Err(_) => panic!("the text has a zero byte"),
            }
        }
    };
}
pub(crate) use c_str;

macro_rules! name_of {
    ($status:expr; $($name:ident)+) => {
        match $status {
            $($name => c_str!(stringify!($name)),)+
            _ => c"unknown status",
        }
    };
}

/// The name of a status, such as "DUALADAM_STATUS_NULL". A number that is no status has the name
/// "unknown status". The text stays valid.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_status_name(status: dualadam_status) -> *const c_char {
    let name = name_of! {
        status;
        DUALADAM_STATUS_OK DUALADAM_STATUS_PANIC DUALADAM_STATUS_NULL DUALADAM_STATUS_MISALIGNED
        DUALADAM_STATUS_SIZE DUALADAM_STATUS_ENUM DUALADAM_STATUS_UTF8 DUALADAM_STATUS_STALE_HANDLE
        DUALADAM_STATUS_HANDLE_KIND DUALADAM_STATUS_VALUE DUALADAM_STATUS_STEP_ZERO
        DUALADAM_STATUS_COUNT DUALADAM_STATUS_INDEX DUALADAM_STATUS_POSITION DUALADAM_STATUS_TYPES
        DUALADAM_STATUS_EMPTY DUALADAM_STATUS_TOO_MANY DUALADAM_STATUS_EXTENT
        DUALADAM_STATUS_OVERLAP DUALADAM_STATUS_FIXED DUALADAM_STATUS_MEMORY DUALADAM_STATUS_IO
        DUALADAM_STATUS_STATE_TOO_SHORT DUALADAM_STATUS_STATE_CHECKSUM DUALADAM_STATUS_STATE_VERSION
        DUALADAM_STATUS_STATE_MALFORMED DUALADAM_STATUS_STATE_LAYOUT DUALADAM_STATUS_CUDA_NO_DRIVER
        DUALADAM_STATUS_CUDA_OLD_DRIVER DUALADAM_STATUS_CUDA_PTX DUALADAM_STATUS_CUDA_DRIVER
        DUALADAM_STATUS_CUDA_CONTEXT DUALADAM_STATUS_CUDA_CAPTURED DUALADAM_STATUS_CUDA_ADDRESS
        DUALADAM_STATUS_CUDA_CALLERS_LR DUALADAM_STATUS_CUDA_INTERRUPTED
        DUALADAM_STATUS_CUDA_STUB_DRIVER
    };
    name.as_ptr()
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    #[test]
    fn every_status_has_its_name() {
        let constants = include_str!("codes.rs").lines().filter_map(|line| {
            let (name, value) = line.strip_prefix("pub const ")?.split_once(": i32 = ")?;
            Some((name, value.strip_suffix(';')?.parse().ok()?))
        });
        let constants: Vec<(&str, dualadam_status)> = constants.collect();
        assert_eq!(constants.len(), 37);
        for (expected, status) in constants {
            // SAFETY: a name is a C string that stays.
            let name = unsafe { CStr::from_ptr(dualadam_status_name(status)) };
            assert_eq!(name.to_str(), Ok(expected));
        }
    }
}

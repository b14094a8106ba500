//! The numbers of the statuses, and their names.

use std::ffi::c_char;

/// The result of a call: 0 for success, otherwise one of the `DUALADAM_STATUS_` numbers. A number
/// never changes its meaning in later versions.
pub type dualadam_status = i32;

/// The call succeeded.
pub const DUALADAM_STATUS_OK: i32 = 0;
/// The library has a bug, which the text of the error describes. The call may have written part of
/// its results.
pub const DUALADAM_STATUS_PANIC: i32 = 1;
/// A pointer that must not be null is null.
pub const DUALADAM_STATUS_NULL: i32 = 2;
/// A pointer is not a multiple of the alignment of what it points to.
pub const DUALADAM_STATUS_MISALIGNED: i32 = 3;
/// The `size` of a struct is the size of no version of it; or the struct is larger than this
/// library knows, and a byte beyond the known size is not 0; or two structs of an array differ in
/// size.
pub const DUALADAM_STATUS_SIZE: i32 = 4;
/// A number that must be one of several named numbers, or 0 or 1, is none of them.
pub const DUALADAM_STATUS_ENUM: i32 = 5;
/// A path is not UTF-8.
pub const DUALADAM_STATUS_UTF8: i32 = 6;
/// A handle was never given out, or it was freed.
pub const DUALADAM_STATUS_STALE_HANDLE: i32 = 7;
/// A handle stands for an object of another kind, such as a state instead of a list.
pub const DUALADAM_STATUS_HANDLE_KIND: i32 = 8;
/// A number is outside the range that its field or argument allows, as a double or after rounding
/// to float.
pub const DUALADAM_STATUS_VALUE: i32 = 20;
/// A step is 0. Steps count from 1.
pub const DUALADAM_STATUS_STEP_ZERO: i32 = 21;
/// An array has another number of entries than the list or the control that it is for.
pub const DUALADAM_STATUS_COUNT: i32 = 24;
/// A tensor's `coeffs_index` or `group` is not below the number of coefficients, sets or groups.
pub const DUALADAM_STATUS_INDEX: i32 = 25;
/// The number of a device, a tensor or a group is not below how many there are.
pub const DUALADAM_STATUS_POSITION: i32 = 26;
/// The library has no kernel for the combination of element types of a tensor.
pub const DUALADAM_STATUS_TYPES: i32 = 27;
/// An array that must have at least one entry has none.
pub const DUALADAM_STATUS_EMPTY: i32 = 28;
/// An array or a buffer has more entries than memory or a launch can have.
pub const DUALADAM_STATUS_TOO_MANY: i32 = 29;
/// A buffer would end beyond the last address of memory.
pub const DUALADAM_STATUS_EXTENT: i32 = 30;
/// Two buffers share memory, and at least one of them is written.
pub const DUALADAM_STATUS_OVERLAP: i32 = 31;
/// A tensor has another length or other element types than the list was made with.
pub const DUALADAM_STATUS_FIXED: i32 = 32;
/// Out of memory in the host.
pub const DUALADAM_STATUS_MEMORY: i32 = 33;
/// The system failed to read or write a state file. The text of the error has its reason.
pub const DUALADAM_STATUS_IO: i32 = 40;
/// A file is shorter than any state file.
pub const DUALADAM_STATUS_STATE_TOO_SHORT: i32 = 41;
/// A state file is damaged or cut: its checksum does not match.
pub const DUALADAM_STATUS_STATE_CHECKSUM: i32 = 42;
/// A state file has a version of the format that this library does not read.
pub const DUALADAM_STATUS_STATE_VERSION: i32 = 43;
/// The checksum of a file matches, but its content is not a state.
pub const DUALADAM_STATUS_STATE_MALFORMED: i32 = 44;
/// A state file is of a model with other groups or tensors.
pub const DUALADAM_STATUS_STATE_LAYOUT: i32 = 45;
/// libcuda cannot be opened: the NVIDIA driver is not installed.
pub const DUALADAM_STATUS_CUDA_NO_DRIVER: i32 = 60;
/// The CUDA driver is older than that of CUDA 11.4.
pub const DUALADAM_STATUS_CUDA_OLD_DRIVER: i32 = 61;
/// The CUDA driver refused the kernels, such as for a device below compute capability 7.5.
pub const DUALADAM_STATUS_CUDA_PTX: i32 = 62;
/// A call of the CUDA driver failed, for this call or for earlier work on the device. The text of
/// the error has the driver's function and code. Part of a list may have been stepped.
pub const DUALADAM_STATUS_CUDA_DRIVER: i32 = 63;
/// A stream or a control belongs to another CUDA context than the kernels.
pub const DUALADAM_STATUS_CUDA_CONTEXT: i32 = 64;
/// The call needs work that a stream under capture cannot do. The text of the error names the work;
/// do it before the capture.
pub const DUALADAM_STATUS_CUDA_CAPTURED: i32 = 65;
/// The device address of a learning rate, a counter or a scalar is misaligned or overlaps another;
/// or a group has two addresses of a learning rate.
pub const DUALADAM_STATUS_CUDA_ADDRESS: i32 = 66;
/// The control reads the group's learning rate from the caller's device memory. Write it there.
pub const DUALADAM_STATUS_CUDA_CALLERS_LR: i32 = 67;
/// In an earlier step, the driver failed after the control's counters had advanced and before all
/// tensors were stepped. `dualadam_cuda_control_set_steps` makes the control usable again.
pub const DUALADAM_STATUS_CUDA_INTERRUPTED: i32 = 68;
/// The dynamic linker finds the stub of libcuda of a CUDA toolkit before the driver's libcuda. Take
/// the stub's folder out of the library search path.
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

/// Returns the name of a status, such as "DUALADAM_STATUS_NULL", or "unknown status" for a number
/// that is no status. The library owns the text, which stays valid. Never fails.
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

//! The arguments that cross the C interface: the caller's pointers, wrapped so that each kind of
//! access is in one place.
//!
//! All of it rests on the contract of the driver API: a pointer that a caller passes is null or
//! points at what the function's documentation says. Only callers of the exported functions make
//! values of these types.

use std::ffi::{CStr, c_char};

use super::codes::{Code, ERROR_INVALID_VALUE};

/// Where a function returns a value. Null if the caller does not want it, or by mistake.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Returns a value. A null pointer is an error.
    pub(crate) fn set(self, value: T) -> Result<(), Code> {
        if self.0.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: not null, and so a place for a `T` by the contract of the driver API.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// Replaces the caller's value by the one that `other` makes of it.
    pub(crate) fn exchange(self, other: impl FnOnce(T) -> Result<T, Code>) -> Result<(), Code>
    where
        T: Copy,
    {
        if self.0.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: not null, and so the place of a `T` by the contract of the driver API.
        self.set(other(unsafe { self.0.read() })?)
    }

    /// Returns a value to a caller who may not want it.
    pub(crate) fn set_if_wanted(self, value: T) {
        // A null pointer is the only failure.
        let _ = self.set(value);
    }
}

/// A list that the caller passes.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct List<T>(*const T);

impl<T: Copy> List<T> {
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    pub(crate) fn read(self, count: usize) -> Result<Vec<T>, Code> {
        if count == 0 {
            return Ok(Vec::new());
        }
        if self.0.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: not null, and so `count` values by the contract of the driver API.
        Ok(unsafe { std::slice::from_raw_parts(self.0, count) }.to_vec())
    }
}

/// A text that the caller passes, ended by a zero byte.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Text(*const c_char);

impl Text {
    pub(crate) fn read(self) -> Result<Vec<u8>, Code> {
        if self.0.is_null() {
            return Err(ERROR_INVALID_VALUE);
        }
        // SAFETY: not null, and so a zero-terminated text by the contract of the driver API.
        Ok(unsafe { CStr::from_ptr(self.0) }.to_bytes().to_vec())
    }

    pub(crate) fn read_string(self) -> Result<String, Code> {
        String::from_utf8(self.read()?).map_err(|_| ERROR_INVALID_VALUE)
    }
}

/// A host address; a number, so that it can wait in a queue.
pub(crate) type HostAddress = usize;

/// The bytes at a host address that a caller passed as the source of a copy.
pub(crate) fn read_host(address: HostAddress, bytes: usize) -> Vec<u8> {
    if bytes == 0 {
        return Vec::new();
    }
    // SAFETY: by the contract of the driver API the source of a copy stays readable until the copy
    // is done; the caller of this function has made sure that the address is not null and, where
    // the memory is pinned, that it was not freed since.
    unsafe { std::slice::from_raw_parts(address as *const u8, bytes) }.to_vec()
}

/// Writes bytes to a host address that a caller passed as the target of a copy.
pub(crate) fn write_host(address: HostAddress, bytes: &[u8]) {
    // SAFETY: as for `read_host`; the source is the stand-in's own memory, so the two do not
    // overlap.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
}

/// Writes a text and a zero byte into a buffer, cut to its size. Returns the text's full length.
pub(crate) fn write_text(text: &str, buffer: HostAddress, size: usize) -> usize {
    if buffer != 0 && size > 0 {
        let kept = text.len().min(size - 1);
        write_host(buffer, &text.as_bytes()[..kept]);
        write_host(buffer + kept, &[0]);
    }
    text.len()
}

/// A function that the caller passes, for `cuLaunchHostFunc` and user objects.
pub(crate) type HostFunction = extern "C" fn(*mut std::ffi::c_void);

/// Declares functions of the driver's C interface. The body sees the locked driver under the given
/// name.
macro_rules! api {
    ($(fn $name:ident($driver:ident $(, $arg:ident: $ty:ty)* $(,)?) $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: $ty),*) -> $crate::driver::codes::Code {
                $crate::driver::call(stringify!($name), |$driver| $body)
            }
        )*
    };
}
pub(crate) use api;

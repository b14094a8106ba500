//! The version of the library.

use std::ffi::c_char;

use crate::status::c_str;

/// Returns the version of the library, such as "0.1.0". The library owns the text, which stays
/// valid. Never fails.
#[unsafe(no_mangle)]
pub extern "C" fn dualadam_version() -> *const c_char {
    c_str!(env!("CARGO_PKG_VERSION")).as_ptr()
}

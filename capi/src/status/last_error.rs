//! The border that no panic crosses, and the text of the last error of each thread.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Failure;
use super::codes::*;
use crate::arguments::check_pointer;

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Does a call's work. Makes a status of its outcome, and of a panic.
pub(crate) fn border(work: impl FnOnce() -> Result<(), Failure>) -> dualadam_status {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Failure::Panic(text_of(&*panic))));
    let Err(failure) = outcome else { return DUALADAM_STATUS_OK };
    // While a thread ends, its text may be gone already.
    let _ = LAST_ERROR.try_with(|text| *text.borrow_mut() = failure.text());
    failure.status()
}

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("it gave no reason").to_owned()
}

/// Copies out the text of the last call of this thread that failed. The text names the argument,
/// the requirement and the value. It is UTF-8 and ends with a zero byte.
///
/// - `buffer` has `len` bytes. A text that does not fit is cut after a whole character.
/// - `needed` gets the bytes that the whole text takes, with its zero byte. It may be null.
/// - With `len` 0, `buffer` may be null. The call then writes only `needed`.
///
/// Calls that succeed keep the text. Before the first failure, it is empty. This function keeps it
/// too, also when it fails.
///
/// # Errors
///
/// - `DUALADAM_STATUS_NULL` for a null `buffer` with a `len` above 0.
/// - `DUALADAM_STATUS_MISALIGNED` for `needed`.
///
/// # Example
///
/// ```c
/// char text[512];
/// dualadam_status status = dualadam_cpu_step(tensor, coeffs);
/// if (status != DUALADAM_STATUS_OK) {
///     dualadam_last_error(text, sizeof text, NULL);
///     fprintf(stderr, "%s: %s\n", dualadam_status_name(status), text);
/// }
/// ```
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
            // SAFETY: `kept` is below `len`, for which `buffer` can be written (required of every
            // call), and the text is this thread's own.
            unsafe {
                buffer.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), kept);
                buffer.add(kept).write(0);
            }
        }
        if !needed.is_null() {
            // SAFETY: `needed` can be written (required of every call) and is aligned.
            unsafe { needed.write(text.len() + 1) };
        }
    };
    // While a thread ends, its text may be gone already.
    if LAST_ERROR.try_with(copy).is_err() {
        copy(&RefCell::default());
    }
    DUALADAM_STATUS_OK
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::ptr;

    use super::*;

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
    fn a_failure_leaves_its_text() {
        let failure = || Failure::Memory { name: "tensors", count: 7 };
        assert_eq!(border(|| Err(failure())), DUALADAM_STATUS_MEMORY);
        assert_eq!(last_error(), failure().text());
    }
}

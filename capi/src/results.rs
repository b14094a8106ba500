//! Where the caller wants results: places for numbers, handles and versioned structs.

use crate::arguments::{Versioned, check_pointer};
use crate::status::Failure;

/// A struct that calls write, made of what the library gives.
pub(crate) trait Answer<T>: Versioned {
    /// Fails for what the library has and C has no number for.
    fn of(value: T) -> Result<Self, Failure>;
}

/// Writes a number or a handle, which is made once the place is known to be one.
///
/// # Safety
///
/// - Where `to` is not null and is aligned, it can be written.
pub(crate) unsafe fn give<T: Copy>(
    name: &'static str,
    to: *mut T,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    check_pointer(name.into(), to)?;
    let value = make()?;
    // SAFETY: the place is neither null nor misaligned, so it can be written (this function's
    // requirement).
    unsafe { to.write(value) };
    Ok(())
}

/// Writes structs of the caller's version one after the other, which are made once the place is
/// known to be one: as many of their fields as that version has, and zeros for the fields that this
/// library lacks.
///
/// # Safety
///
/// - Where `to` is not null and is aligned, it is one object in memory that can be written for
///   `size` bytes for each of the structs.
pub(crate) unsafe fn give_structs<T: Versioned, I: IntoIterator<Item = T>>(
    name: &'static str,
    to: *mut T,
    size: usize,
    make: impl FnOnce() -> Result<I, Failure>,
) -> Result<(), Failure> {
    check_pointer(name.into(), to)?;
    T::check_size(name.into(), size)?;
    let known = size_of::<T>().min(size);
    for (index, value) in make()?.into_iter().enumerate() {
        // SAFETY: the place has `size` bytes for each struct (this function's requirement), and a
        // struct begins with its size.
        unsafe {
            let to = to.cast::<u8>().add(index * size);
            to.copy_from((&raw const value).cast(), known);
            to.add(known).write_bytes(0, size - known);
            to.cast::<usize>().write(size);
        }
    }
    Ok(())
}

/// [`give_structs`] of one.
///
/// # Safety
///
/// - As for [`give_structs`].
pub(crate) unsafe fn give_struct<T: Versioned>(
    name: &'static str,
    to: *mut T,
    size: usize,
    make: impl FnOnce() -> Result<T, Failure>,
) -> Result<(), Failure> {
    // SAFETY: `to` is null or can be written for `size` bytes (this function's requirement).
    unsafe { give_structs(name, to, size, || Ok([make()?])) }
}

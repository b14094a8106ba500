//! What the caller passes in: pointers, versioned structs, paths.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::mem::MaybeUninit;
use std::path::Path;
use std::slice;

use dualadam::Error;

use crate::status::Failure;

/// The name of an argument, of an entry of one, or of what a field of it leads to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    field: Option<&'static str>,
    name: &'static str,
    entry: Option<usize>,
}

impl Place {
    pub(crate) fn entry(name: &'static str, entry: usize) -> Self {
        Self { field: None, name, entry: Some(entry) }
    }

    pub(crate) fn field(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }
}

impl From<&'static str> for Place {
    fn from(name: &'static str) -> Self {
        Self { field: None, name, entry: None }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(field) = self.field {
            write!(f, "{field} of ")?;
        }
        match self.entry {
            None => f.write_str(self.name),
            Some(entry) => write!(f, "{}[{entry}]", self.name),
        }
    }
}

/// Fails if a pointer cannot be one to a `T`.
pub(crate) fn check_pointer<T>(place: Place, pointer: *const T) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::Null { place });
    }
    if !pointer.is_aligned() {
        return Err(Failure::Misaligned { place, align: align_of::<T>(), address: pointer.addr() });
    }
    Ok(())
}

/// The most bytes that a struct of any version has. A larger size is a mistake.
const MOST_BYTES: usize = 4096;

/// A struct that begins with its size, a `usize`, and may grow at its end.
///
/// # Safety
///
/// - It is `repr(C)`, and any bits are a value of it.
/// - A 0 in a field means what older versions without the field meant.
pub(crate) unsafe trait Versioned: Copy {
    /// The sizes of its versions, the newest last.
    const SIZES: &[usize] = &[size_of::<Self>()];

    /// Fails for a size that no version has and no newer version can have.
    fn check_size(place: Place, size: usize) -> Result<(), Failure> {
        let known = size_of::<Self>();
        let newer = size > known && size <= MOST_BYTES && size.is_multiple_of(align_of::<Self>());
        if newer || Self::SIZES.contains(&size) { Ok(()) } else { Err(Failure::Size { place, known, size }) }
    }
}

/// Reads a struct of any version. Fields that its version lacks are 0 in the result. What this
/// library does not know of a newer version must be 0.
///
/// # Safety
///
/// - Where `from` is not null and is aligned, a `usize` can be read there, and as many bytes as
///   that says.
pub(crate) unsafe fn read<T: Versioned>(place: impl Into<Place>, from: *const T) -> Result<T, Failure> {
    let place = place.into();
    check_pointer(place, from)?;
    // SAFETY: a struct begins with its size, which can be read (this function's requirement).
    let size = unsafe { from.cast::<usize>().read() };
    T::check_size(place, size)?;
    let known = size_of::<T>().min(size);
    // SAFETY: `size` bytes can be read (this function's requirement).
    let rest = unsafe { slice::from_raw_parts(from.cast::<u8>().add(known), size - known) };
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Failure::Size { place, known, size });
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: both have `known` bytes, and any bits are a `T` (the requirement of `Versioned`).
    unsafe {
        value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from.cast(), known);
        Ok(value.assume_init())
    }
}

/// Reads `count` structs of one version that lie one after the other.
///
/// # Safety
///
/// - As for [`read`], for each of the structs.
/// - The structs are one object in memory.
pub(crate) unsafe fn read_all<T: Versioned>(
    name: &'static str,
    from: *const T,
    count: usize,
) -> Result<impl Iterator<Item = Result<T, Failure>>, Failure> {
    let mut stride = 0;
    if count > 0 {
        let place = Place::entry(name, 0);
        check_pointer(place, from)?;
        // SAFETY: the first struct begins with its size, which can be read (the first requirement).
        stride = unsafe { from.cast::<usize>().read() };
        T::check_size(place, stride)?;
        let limit = (isize::MAX as usize - from.addr().min(isize::MAX as usize)) / stride;
        if count > limit {
            return Err(Error::TooMany { list: name, limit: limit as u64, actual: count as u64 }.into());
        }
    }
    Ok((0..count).map(move |entry| {
        let place = Place::entry(name, entry);
        // SAFETY: the structs are one object (the second requirement), which fits into the address
        // space, as was checked.
        let from = unsafe { from.byte_add(entry * stride) };
        // SAFETY: each struct begins with its size, which can be read (the first requirement).
        let size = unsafe { from.cast::<usize>().read() };
        if size != stride {
            return Err(Failure::Size { place, known: stride, size });
        }
        // SAFETY: the struct can be read for its size (the first requirement).
        unsafe { read(place, from) }
    }))
}

/// The structs of [`read_all`], converted. `convert` also gets each struct's index and name.
///
/// # Safety
///
/// - As for [`read_all`].
pub(crate) unsafe fn collect<T: Versioned, U>(
    name: &'static str,
    from: *const T,
    count: usize,
    mut convert: impl FnMut(usize, Place, T) -> Result<U, Failure>,
) -> Result<Vec<U>, Failure> {
    // SAFETY: the requirements are the same.
    let all = unsafe { read_all(name, from, count) }?;
    let mut converted = Vec::new();
    converted.try_reserve_exact(count).map_err(|_| Failure::Memory { name, count })?;
    for (entry, value) in all.enumerate() {
        converted.push(convert(entry, Place::entry(name, entry), value?)?);
    }
    Ok(converted)
}

/// A path, which is UTF-8 on every system.
///
/// # Safety
///
/// - `path` is null, or a C string that stays as it is while the result lives.
pub(crate) unsafe fn path<'a>(name: &'static str, path: *const c_char) -> Result<&'a Path, Failure> {
    let place = name.into();
    check_pointer(place, path)?;
    // SAFETY: `path` is not null, so it is a C string (this function's requirement).
    let path = unsafe { CStr::from_ptr(path) };
    let text = path.to_str().map_err(|error| {
        let position = error.valid_up_to();
        Failure::Utf8 { place, position, byte: path.to_bytes().get(position).copied().unwrap_or_default() }
    })?;
    Ok(Path::new(text))
}

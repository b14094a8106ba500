//! What the caller passes in: pointers, versioned structs, paths.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::path::Path;
use std::slice;

use bytemuck::Zeroable;
use dualadam::ListError;

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
/// - Its first field is its size, a `usize`.
/// - A 0 in a field means what older versions without the field meant.
pub(crate) unsafe trait Versioned: Copy + Zeroable {
    /// The sizes of its versions, the newest last. Each ends behind a field and its padding.
    const SIZES: &[usize] = &[size_of::<Self>()];

    /// Fails to compile for a size that lacks the size itself, with which structs in a row would be
    /// misaligned, or that this struct lacks.
    const SIZES_FIT: () = {
        let mut index = 0;
        while index < Self::SIZES.len() {
            let size = Self::SIZES[index];
            assert!(size_of::<usize>() <= size && size <= size_of::<Self>());
            assert!(size.is_multiple_of(align_of::<Self>()));
            index += 1;
        }
    };

    /// Fails for a size that no version has and no newer version can have.
    fn check_size(place: Place, size: usize) -> Result<(), Failure> {
        let () = Self::SIZES_FIT;
        let known = size_of::<Self>();
        let newer = size > known && size <= MOST_BYTES && size.is_multiple_of(align_of::<Self>());
        if newer || Self::SIZES.contains(&size) { Ok(()) } else { Err(Failure::Size { place, known, size }) }
    }
}

/// A struct that calls read.
pub(crate) trait Argument: Versioned {
    /// What it is in Rust.
    type Meaning;

    /// Fails for numbers that mean nothing. Values are the library's to check.
    ///
    /// # Safety
    ///
    /// - A struct that this one points to can be read for as many bytes as its size says.
    unsafe fn convert(self, place: Place) -> Result<Self::Meaning, Failure>;
}

/// Reads a struct of any version. Fields that its version lacks are 0 in the result. What this
/// library does not know of a newer version must be 0.
///
/// # Safety
///
/// - Where `from` is not null and is aligned, a `usize` can be read there, and as many bytes as
///   that says. The same holds of a struct that it points to.
pub(crate) unsafe fn read<T: Argument>(place: impl Into<Place>, from: *const T) -> Result<T::Meaning, Failure> {
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
    let mut value = T::zeroed();
    // SAFETY: both have `known` bytes, and any bits are a `T` (the requirement of `Versioned`).
    // What the struct points to can be read (this function's requirement).
    unsafe {
        (&raw mut value).cast::<u8>().copy_from_nonoverlapping(from.cast(), known);
        value.convert(place)
    }
}

/// Reads `count` structs of one version that lie one after the other, in place of what is in `to`.
/// Does not allocate if that has room for them.
///
/// # Safety
///
/// - As for [`read`], for each of the structs.
/// - The structs are one object in memory.
pub(crate) unsafe fn read_into<T: Argument>(
    to: &mut Vec<T::Meaning>,
    name: &'static str,
    from: *const T,
    count: usize,
) -> Result<(), Failure> {
    to.clear();
    if count == 0 {
        return Ok(());
    }
    let first = Place::entry(name, 0);
    check_pointer(first, from)?;
    // SAFETY: the first struct begins with its size, which can be read (the first requirement).
    let stride = unsafe { from.cast::<usize>().read() };
    T::check_size(first, stride)?;
    let limit = (usize::MAX - from.addr()).min(isize::MAX as usize) / stride;
    if count > limit {
        return Err(ListError::TooMany { list: name, limit: limit as u64, actual: count as u64 }.into());
    }
    to.try_reserve_exact(count).map_err(|_| Failure::Memory { name, count })?;
    for entry in 0..count {
        let place = Place::entry(name, entry);
        // SAFETY: the structs are one object (the second requirement), which fits into the address
        // space, as was checked.
        let from = unsafe { from.byte_add(entry * stride) };
        // SAFETY: each struct begins with its size, which can be read (the first requirement).
        let size = unsafe { from.cast::<usize>().read() };
        if size != stride {
            return Err(Failure::UnequalSize { place, first, stride, size });
        }
        // SAFETY: the struct can be read for its size (the first requirement).
        to.push(unsafe { read(place, from) }?);
    }
    Ok(())
}

/// [`read_into`] a new vector.
///
/// # Safety
///
/// - As for [`read_into`].
pub(crate) unsafe fn read_all<T: Argument>(
    name: &'static str,
    from: *const T,
    count: usize,
) -> Result<Vec<T::Meaning>, Failure> {
    let mut all = Vec::new();
    // SAFETY: the structs are one object that can be read (this function's requirements).
    unsafe { read_into(&mut all, name, from, count) }?;
    Ok(all)
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

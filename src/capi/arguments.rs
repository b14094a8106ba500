//! What comes over the border: pointers, versioned structs, paths.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::mem::MaybeUninit;
use std::path::Path;
use std::slice;

use crate::Error;

use super::status::Failure;

/// The name of an argument, or of an entry of one, or of what a field of it leads to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    field: Option<&'static str>,
    name: &'static str,
    entry: Option<usize>,
}

impl Place {
    pub(super) fn entry(name: &'static str, entry: usize) -> Self {
        Self { field: None, name, entry: Some(entry) }
    }

    #[cfg(feature = "cuda")]
    pub(super) fn field(self, field: &'static str) -> Self {
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
pub(super) fn check_pointer<T>(place: Place, pointer: *const T) -> Result<(), Failure> {
    if pointer.is_null() {
        return Err(Failure::Null { place });
    }
    if !pointer.is_aligned() {
        return Err(Failure::Misaligned { place, align: align_of::<T>(), address: pointer.addr() });
    }
    Ok(())
}

/// The most bytes that any struct of any version has: a larger size is a mistake, and is not believed.
const MOST_BYTES: usize = 4096;

/// A struct that begins with its size, a `usize`, and may grow at its end.
///
/// # Safety
///
/// It is `repr(C)`, and any bits are a value of it, 0 in a field being what older versions without it meant.
pub(super) unsafe trait Versioned: Copy {
    /// The sizes of its versions, the newest last.
    const SIZES: &[usize];

    /// Fails for a size that is neither one of a version, nor so large that it may be one of a newer version.
    fn check_size(place: Place, size: usize) -> Result<(), Failure> {
        let known = size_of::<Self>();
        let newer = size > known && size <= MOST_BYTES && size.is_multiple_of(align_of::<Self>());
        if newer || Self::SIZES.contains(&size) { Ok(()) } else { Err(Failure::Size { place, known, size }) }
    }
}

/// Reads a struct of any version. What this version lacks is 0 in the result, and must be 0 where this is the older one.
///
/// # Safety
///
/// Where `from` is not null and is aligned, it can be read for as many bytes as the size there says, and for those of the size.
pub(super) unsafe fn read<T: Versioned>(place: impl Into<Place>, from: *const T) -> Result<T, Failure> {
    let place = place.into();
    check_pointer(place, from)?;
    // SAFETY: as this function requires; a struct begins with its size.
    let size = unsafe { from.cast::<usize>().read() };
    T::check_size(place, size)?;
    let known = size_of::<T>().min(size);
    // SAFETY: as this function requires.
    let rest = unsafe { slice::from_raw_parts(from.cast::<u8>().add(known), size - known) };
    if rest.iter().any(|&byte| byte != 0) {
        return Err(Failure::Size { place, known, size });
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: both have as many bytes, and any bits are a `T`.
    unsafe {
        value.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(from.cast(), known);
        Ok(value.assume_init())
    }
}

/// Reads `count` structs of one version that lie one after the other.
///
/// # Safety
///
/// As for [`read`], for each of them.
pub(super) unsafe fn read_all<T: Versioned>(
    name: &'static str,
    from: *const T,
    count: usize,
) -> Result<impl Iterator<Item = Result<T, Failure>>, Failure> {
    let mut stride = 0;
    if count > 0 {
        let place = Place::entry(name, 0);
        check_pointer(place, from)?;
        // SAFETY: as this function requires.
        stride = unsafe { from.cast::<usize>().read() };
        T::check_size(place, stride)?;
        let limit = (isize::MAX as usize - from.addr().min(isize::MAX as usize)) / stride;
        if count > limit {
            return Err(Error::TooMany { list: name, limit: limit as u64, actual: count as u64 }.into());
        }
    }
    Ok((0..count).map(move |entry| {
        let place = Place::entry(name, entry);
        // SAFETY: all of them are one object, the caller says, and it fits into the address space.
        let from = unsafe { from.byte_add(entry * stride) };
        // SAFETY: as this function requires.
        let size = unsafe { from.cast::<usize>().read() };
        if size != stride {
            return Err(Failure::Size { place, known: stride, size });
        }
        // SAFETY: as this function requires.
        unsafe { read(place, from) }
    }))
}

/// The structs of [`read_all`], converted.
///
/// # Safety
///
/// As for [`read_all`].
pub(super) unsafe fn collect<T: Versioned, U>(
    name: &'static str,
    from: *const T,
    count: usize,
    mut convert: impl FnMut(usize, Place, T) -> Result<U, Failure>,
) -> Result<Vec<U>, Failure> {
    // SAFETY: as this function requires.
    let all = unsafe { read_all(name, from, count) }?;
    let mut converted = Vec::new();
    converted.try_reserve_exact(count).map_err(|_| Failure::Memory { name, count })?;
    for (entry, value) in all.enumerate() {
        converted.push(convert(entry, Place::entry(name, entry), value?)?);
    }
    Ok(converted)
}

/// Where a struct of the caller's version is to be written.
pub(super) struct StructOut<T> {
    to: *mut T,
    size: usize,
}

impl<T: Versioned> StructOut<T> {
    /// Checks the place.
    pub(super) fn new(name: &'static str, to: *mut T, size: usize) -> Result<Self, Failure> {
        check_pointer(name.into(), to)?;
        T::check_size(name.into(), size)?;
        Ok(Self { to, size })
    }

    /// The size that belongs into the struct.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Writes as much of it as the caller's version has, and zeros for what this one lacks.
    ///
    /// # Safety
    ///
    /// There are as many writable bytes as the size says.
    pub(super) unsafe fn write(self, value: T) {
        let known = size_of::<T>().min(self.size);
        // SAFETY: as this function requires.
        unsafe {
            self.to.cast::<u8>().copy_from((&raw const value).cast(), known);
            self.to.cast::<u8>().add(known).write_bytes(0, self.size - known);
        }
    }
}

/// Where an array of structs of the caller's version is to be written.
#[cfg(feature = "cuda")]
pub(super) struct StructsOut<T> {
    to: *mut T,
    size: usize,
}

#[cfg(feature = "cuda")]
impl<T: Versioned> StructsOut<T> {
    /// Checks the place.
    pub(super) fn new(name: &'static str, to: *mut T, size: usize) -> Result<Self, Failure> {
        StructOut::new(name, to, size).map(|_| Self { to, size })
    }

    /// The size that belongs into each struct.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Writes them one after the other.
    ///
    /// # Safety
    ///
    /// There are as many writable bytes for each as the size says.
    pub(super) unsafe fn write(self, values: impl Iterator<Item = T>) {
        for (index, value) in values.enumerate() {
            // SAFETY: all of them are one object, the caller says.
            let to = unsafe { self.to.byte_add(index * self.size) };
            // SAFETY: as this function requires.
            unsafe { StructOut { to, size: self.size }.write(value) };
        }
    }
}

/// Where a number or a handle is to be written.
pub(super) struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// Checks the place.
    pub(super) fn new(name: &'static str, to: *mut T) -> Result<Self, Failure> {
        check_pointer(name.into(), to)?;
        Ok(Self(to))
    }

    /// Writes it.
    ///
    /// # Safety
    ///
    /// The place can be written.
    pub(super) unsafe fn write(self, value: T) {
        // SAFETY: as this function requires; aligned, as was checked.
        unsafe { self.0.write(value) };
    }
}

/// A path, which is UTF-8 on every system.
///
/// # Safety
///
/// `path` is null, or a C string that stays as it is as long as the result lives.
pub(super) unsafe fn path<'a>(name: &'static str, path: *const c_char) -> Result<&'a Path, Failure> {
    let place = name.into();
    check_pointer(place, path)?;
    // SAFETY: as this function requires.
    let path = unsafe { CStr::from_ptr(path) };
    let text = path.to_str().map_err(|error| {
        let position = error.valid_up_to();
        Failure::Utf8 { place, position, byte: path.to_bytes().get(position).copied().unwrap_or_default() }
    })?;
    Ok(Path::new(text))
}

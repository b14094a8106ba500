//! Where the caller wants results: places for numbers, handles and versioned structs.

use crate::arguments::{Versioned, check_pointer};
use crate::status::Failure;

/// Where a number or a handle is to be written.
pub(crate) struct Out<T>(*mut T);

impl<T: Copy> Out<T> {
    /// Checks the place.
    pub(crate) fn new(name: &'static str, to: *mut T) -> Result<Self, Failure> {
        check_pointer(name.into(), to)?;
        Ok(Self(to))
    }

    /// Writes the value.
    ///
    /// # Safety
    ///
    /// - The place can be written.
    pub(crate) unsafe fn write(self, value: T) {
        // SAFETY: the place can be written (this function's requirement) and is aligned, as `new`
        // has checked.
        unsafe { self.0.write(value) };
    }
}

/// Where one or more structs of the caller's version are to be written.
pub(crate) struct StructOut<T> {
    to: *mut T,
    size: usize,
}

impl<T: Versioned> StructOut<T> {
    /// Checks the place and the size of a struct there.
    pub(crate) fn new(name: &'static str, to: *mut T, size: usize) -> Result<Self, Failure> {
        check_pointer(name.into(), to)?;
        T::check_size(name.into(), size)?;
        Ok(Self { to, size })
    }

    /// Writes the struct with the caller's size: as many of its fields as the caller's version has,
    /// and zeros for the fields that this library lacks.
    ///
    /// # Safety
    ///
    /// - The place can be written for as many bytes as the size says.
    pub(crate) unsafe fn write(self, value: T) {
        let known = size_of::<T>().min(self.size);
        // SAFETY: `size` bytes can be written (this function's requirement), and a struct begins
        // with its size.
        unsafe {
            self.to.cast::<u8>().copy_from((&raw const value).cast(), known);
            self.to.cast::<u8>().add(known).write_bytes(0, self.size - known);
            self.to.cast::<usize>().write(self.size);
        }
    }

    /// Writes structs one after the other, each as [`write`](Self::write) does.
    ///
    /// # Safety
    ///
    /// - The place is one object in memory that can be written for as many bytes as the size says,
    ///   for each of the structs.
    pub(crate) unsafe fn write_all(self, values: impl Iterator<Item = T>) {
        for (index, value) in values.enumerate() {
            // SAFETY: the place has room for all structs (this function's requirement).
            let to = unsafe { self.to.byte_add(index * self.size) };
            // SAFETY: as above.
            unsafe { Self { to, size: self.size }.write(value) };
        }
    }
}

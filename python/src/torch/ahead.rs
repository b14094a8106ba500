//! Memory that the looks at the next parameters will read, fetched ahead.
//!
//! After a backward pass the objects of a parameter are no longer in the caches, and a look at them
//! waits for one line of memory after the other. Fetched ahead, the lines come at the same time.
//!
//! The addresses are hints: to fetch any address is harmless. They come from the objects of torch
//! and of the interpreter when a parameter becomes known, on systems with 64 bits.

use std::ptr;

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyType;

/// How many parameters ahead of its look a parameter's memory is fetched.
pub(super) const AHEAD: usize = 4;

const LINE: usize = 64;
/// The bytes of torch's C++ object of a tensor that a look reads.
const TENSOR: usize = 160;
/// The bytes of a storage, and of what autograd knows of a parameter, that a look reads.
const PART: usize = 48;
/// The bytes of a state's keys.
const KEYS: usize = 128;
/// Where a dict has the address of its keys, in CPython.
const KEYS_OF_DICT: usize = 32;

/// Where the C++ object of a tensor has the address of its storage, found by looking at one tensor.
/// The next word is the address of what autograd knows of the tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    storage: usize,
}

impl Layout {
    /// None if tensors of this type do not say where their parts are.
    pub(super) fn of(kind: &Bound<'_, PyType>) -> Option<Self> {
        if cfg!(not(target_pointer_width = "64")) {
            return None;
        }
        let sample = kind.call0().ok()?;
        let (tensor, storage) = (cdata(&sample)?, cdata(&sample.call_method0("untyped_storage").ok()?)?);
        // SAFETY: the object has more bytes than these, and lives with the sample.
        let is_storage = |&at: &usize| unsafe { word(tensor, at) } == storage;
        (0..LINE).step_by(size_of::<usize>()).find(is_storage).map(|storage| Self { storage })
    }
}

/// The memory of one tensor.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Lines {
    object: usize,
    tensor: usize,
    storage: usize,
    autograd: usize,
}

impl Lines {
    pub(super) fn of(layout: Layout, object: &Bound<'_, PyAny>) -> Option<Self> {
        let tensor = cdata(object)?;
        // SAFETY: `_cdata` of a tensor is the address of its C++ object, which lives with it and
        // has these words.
        let (storage, autograd) =
            unsafe { (word(tensor, layout.storage), word(tensor, layout.storage + size_of::<usize>())) };
        Some(Self { object: object.as_ptr().addr(), tensor, storage, autograd })
    }

    #[inline]
    fn fetch(&self) {
        fetch(self.object, LINE);
        fetch(self.tensor, TENSOR);
        fetch(self.storage, PART);
        fetch(self.autograd, PART);
    }
}

/// The memory of one parameter and its state.
#[derive(Debug, Clone, Default)]
pub(super) struct Ahead {
    tensors: [Lines; 5],
    state: usize,
    keys: usize,
    counter: usize,
}

impl Ahead {
    pub(super) fn of<'a, 'py: 'a>(
        layout: Layout,
        tensors: impl Iterator<Item = &'a Bound<'py, PyAny>>,
        state: &Bound<'_, PyAny>,
        counter: u64,
    ) -> Self {
        let mut ahead = Self { counter: counter as usize, ..Self::default() };
        for (lines, tensor) in ahead.tensors.iter_mut().zip(tensors) {
            *lines = Lines::of(layout, tensor).unwrap_or_default();
        }
        ahead.state = state.as_ptr().addr();
        // SAFETY: the object is a dict of CPython, which has this word.
        ahead.keys = unsafe { word(state.as_ptr().expose_provenance(), KEYS_OF_DICT) };
        ahead
    }

    #[inline]
    pub(super) fn fetch(&self) {
        fetch(self.state, LINE);
        fetch(self.keys, KEYS);
        self.tensors.iter().for_each(Lines::fetch);
        fetch(self.counter, LINE);
    }
}

/// The address of the C++ object behind a tensor or a storage.
fn cdata(object: &Bound<'_, PyAny>) -> Option<usize> {
    object.getattr(intern!(object.py(), "_cdata")).ok()?.extract().ok()
}

/// The word at `offset` bytes behind an address.
///
/// # Safety
///
/// - There is live, initialised memory of a word, aligned.
unsafe fn word(address: usize, offset: usize) -> usize {
    // SAFETY: as this function's requirement.
    unsafe { ptr::with_exposed_provenance::<usize>(address + offset).read() }
}

/// Fetches the lines of so many bytes from an address on. Does nothing for 0.
#[inline]
fn fetch(address: usize, bytes: usize) {
    if address == 0 {
        return;
    }
    for line in (address & !(LINE - 1)..address + bytes).step_by(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 processor has the instruction, which accepts any address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(ptr::without_provenance(line));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: the instruction accepts any address, and changes no memory.
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) line, options(nostack, readonly, preserves_flags));
        }
    }
}

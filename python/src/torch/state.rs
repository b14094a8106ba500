//! The optimizer's states, as Python keeps them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

/// Hashes an address: it spreads the bits above the alignment.
#[derive(Default)]
struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_usize(byte.into()));
    }

    fn write_usize(&mut self, address: usize) {
        self.0 = (self.0 ^ (address as u64 >> 4)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }
}

/// The parameters' states, by the parameters' identity. A look-up in the dict would cost more:
/// Python code makes the hashes of tensors.
///
/// The dict lends the states.
pub(super) struct States<'a, 'py> {
    dict: &'a Bound<'py, PyDict>,
    /// Where the dict is read next. Mostly it has the order of the parameters.
    position: ffi::Py_ssize_t,
    next: Option<(*mut ffi::PyObject, *mut ffi::PyObject)>,
    /// All states, once the order turned out to be another.
    others: Option<HashMap<usize, *mut ffi::PyObject, BuildHasherDefault<AddressHasher>>>,
}

impl<'a, 'py> States<'a, 'py> {
    pub(super) fn new(dict: &'a Bound<'py, PyDict>) -> Self {
        let mut states = Self { dict, position: 0, next: None, others: None };
        states.next = states.read();
        states
    }

    fn read(&mut self) -> Option<(*mut ffi::PyObject, *mut ffi::PyObject)> {
        let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: `dict` is a live dict, and the other arguments are places for the answers.
        let found = unsafe { ffi::PyDict_Next(self.dict.as_ptr(), &mut self.position, &mut key, &mut value) };
        (found != 0).then_some((key, value))
    }

    /// The state of a parameter, or null.
    #[inline]
    pub(super) fn of(&mut self, param: *mut ffi::PyObject) -> *mut ffi::PyObject {
        if let Some((key, state)) = self.next
            && key == param
        {
            self.next = self.read();
            return state;
        }
        let others = self.others.get_or_insert_with(|| {
            self.dict.iter().map(|(key, state)| (key.as_ptr() as usize, state.as_ptr())).collect()
        });
        others.get(&(param as usize)).copied().unwrap_or(ptr::null_mut())
    }
}

/// The entries of a state, in this order.
const NAMES: [&str; ENTRIES] = ["exp_avg", "exp_avg_sq", "step", "master_param"];
pub(super) const ENTRIES: usize = 4;
pub(super) const EXP_AVG: usize = 0;
pub(super) const EXP_AVG_SQ: usize = 1;
pub(super) const STEP: usize = 2;
pub(super) const MASTER: usize = 3;

/// The objects in one parameter's state, borrowed from it; null where there is none.
pub(super) type Entries = [*mut ffi::PyObject; ENTRIES];

/// The keys of states.
pub(super) struct Names([Py<PyString>; ENTRIES]);

impl Names {
    pub(super) fn new(py: Python<'_>) -> Self {
        Self(NAMES.map(|name| PyString::intern(py, name).unbind()))
    }

    /// What the state of a parameter has under keys that are the same objects as here. Those are
    /// the keys that this package writes. Nothing is found in a state that is no dict.
    #[inline]
    pub(super) fn known_entries(&self, state: *mut ffi::PyObject) -> Entries {
        let mut entries: Entries = [ptr::null_mut(); ENTRIES];
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: the dict of states lends `state`, a live object, and nothing changes either
        // during the loop. `PyDict_Next` finds nothing in an object that is no dict.
        while unsafe { ffi::PyDict_Next(state, &mut position, &mut key, &mut value) } != 0 {
            for (name, entry) in self.0.iter().zip(&mut entries) {
                if name.as_ptr() == key {
                    *entry = value;
                }
            }
        }
        entries
    }

    /// What a parameter's state has. None if it is no dict, or has too few entries.
    pub(super) fn entries(&self, py: Python<'_>, state: &Bound<'_, PyAny>) -> PyResult<Option<Entries>> {
        let Ok(state) = state.cast::<PyDict>() else { return Ok(None) };
        let mut entries = self.known_entries(state.as_ptr());
        if entries.iter().filter(|entry| !entry.is_null()).count() < state.len() {
            // There are other keys, or strings that are equal but other objects.
            for (name, entry) in self.0.iter().zip(&mut entries).filter(|(_, entry)| entry.is_null()) {
                // SAFETY: `state` is a live dict and `name` a live string. The dict lends the
                // answer.
                *entry = unsafe { ffi::PyDict_GetItemWithError(state.as_ptr(), name.as_ptr()) };
                if entry.is_null() && PyErr::occurred(py) {
                    return Err(PyErr::fetch(py));
                }
            }
        }
        Ok(entries[..MASTER].iter().all(|entry| !entry.is_null()).then_some(entries))
    }
}

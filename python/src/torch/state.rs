//! The states of the optimizer: dicts of Python.

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

type ByAddress<T> = HashMap<usize, T, BuildHasherDefault<AddressHasher>>;

/// The parameters' states, by the parameters' identity. A look-up in the dict would cost more:
/// Python code makes the hashes of tensors.
///
/// Python code that runs between two calls of [`of`](Self::of) may change the dict.
pub(super) struct States<'a, 'py> {
    dict: &'a Bound<'py, PyDict>,
    /// Where the dict is read next. Usually the dict has the order of the parameters.
    position: ffi::Py_ssize_t,
    /// All parameters and states by the parameters' addresses, made once the dict has another
    /// order. References keep them alive, so that no other object gets such an address.
    others: Option<ByAddress<[Bound<'py, PyAny>; 2]>>,
}

impl<'a, 'py> States<'a, 'py> {
    pub(super) fn new(dict: &'a Bound<'py, PyDict>) -> Self {
        Self { dict, position: 0, others: None }
    }

    /// The state of a parameter, if it has one. No Python code runs.
    #[inline]
    pub(super) fn of(&mut self, param: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        let (mut position, mut key, mut state) = (self.position, ptr::null_mut(), ptr::null_mut());
        // SAFETY: `dict` is a live dict, and the other arguments are places for the answers. A
        // position in a dict that was changed since is at worst a wrong one, since `PyDict_Next`
        // compares it with the dict's size.
        let found = unsafe { ffi::PyDict_Next(self.dict.as_ptr(), &mut position, &mut key, &mut state) };
        if found != 0 && key == param.as_ptr() {
            self.position = position;
            // SAFETY: the dict lends `state`. The interpreter's lock is held, and no code that
            // could change the dict has run since it was read.
            return Some(unsafe { Bound::from_borrowed_ptr(param.py(), state) });
        }
        let others = self.others.get_or_insert_with(|| {
            self.dict.iter().map(|(key, state)| (key.as_ptr() as usize, [key, state])).collect()
        });
        others.get(&(param.as_ptr() as usize)).map(|[_, state]| state.clone())
    }
}

/// The entries of a state, in this order.
const NAMES: [&str; ENTRIES] = ["exp_avg", "exp_avg_sq", "step", "master_param"];
pub(super) const ENTRIES: usize = 4;
pub(super) const EXP_AVG: usize = 0;
pub(super) const EXP_AVG_SQ: usize = 1;
pub(super) const STEP: usize = 2;
pub(super) const MASTER: usize = 3;

/// The addresses of the objects in one parameter's state, to be compared; null where there is none.
pub(super) type Addresses = [*mut ffi::PyObject; ENTRIES];

/// The objects in one parameter's state.
pub(super) type Entries<'py> = [Option<Bound<'py, PyAny>>; ENTRIES];

/// The addresses of these objects.
pub(super) fn addresses(entries: &Entries<'_>) -> Addresses {
    entries.each_ref().map(|entry| entry.as_ref().map_or(ptr::null_mut(), |entry| entry.as_ptr()))
}

/// The keys of states.
pub(super) struct Names([Py<PyString>; ENTRIES]);

impl Names {
    pub(super) fn new(py: Python<'_>) -> Self {
        Self(NAMES.map(|name| PyString::intern(py, name).unbind()))
    }

    /// The entries of a parameter's state whose keys are the same objects as here, as are the keys
    /// that this package writes. None of them if the state is not a dict. No Python code runs.
    #[inline]
    pub(super) fn addresses(&self, state: &Bound<'_, PyAny>) -> Addresses {
        let mut entries: Addresses = [ptr::null_mut(); ENTRIES];
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: `state` is a live object, and the other arguments are places for the answers.
        // `PyDict_Next` finds nothing in an object that is no dict. The interpreter's lock is held,
        // and no code runs in the loop that could change the dict.
        while unsafe { ffi::PyDict_Next(state.as_ptr(), &mut position, &mut key, &mut value) } != 0 {
            for (name, entry) in self.0.iter().zip(&mut entries) {
                if name.as_ptr() == key {
                    *entry = value;
                }
            }
        }
        entries
    }

    /// The entries of a parameter's state. None if it is not a dict or lacks entries.
    pub(super) fn entries<'py>(&self, state: &Bound<'py, PyAny>) -> PyResult<Option<Entries<'py>>> {
        let py = state.py();
        let Ok(dict) = state.cast::<PyDict>() else { return Ok(None) };
        // SAFETY: each address is null, or of an object that the dict lends. The interpreter's lock
        // is held, and no code that could change the dict has run since it was read.
        let lent = |address| unsafe { Bound::from_borrowed_ptr_or_opt(py, address) };
        let mut entries = self.addresses(state).map(lent);
        if entries.iter().flatten().count() < dict.len() {
            // The state has other keys, or keys that are equal but not the same objects.
            for (name, entry) in self.0.iter().zip(&mut entries).filter(|(_, entry)| entry.is_none()) {
                *entry = dict.get_item(name.bind(py))?;
            }
        }
        Ok(entries[..MASTER].iter().all(Option::is_some).then_some(entries))
    }
}

//! The parameters' states, and what was seen of them in the step before.

use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr;

use dualadam::{Dtype, RawBuffer, RawTensor};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::dlpack::{CPU, CUDA, Device, Held, Tensor};
use crate::layout::Layout;

use super::tensors::Tensors;

/// The most that an f32 counter counts to: the next number is not there.
const F32_COUNTER_END: f32 = 16_777_215.0;

/// Hashes an address: the bits above the alignment, spread.
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

/// The parameters' states, by the parameters' identity. To ask for hashes would cost more: they are made in Python.
pub(super) struct States<'a, 'py> {
    dict: &'a Bound<'py, PyDict>,
    /// Where the dict is read next: mostly it has the order of the parameters.
    position: ffi::Py_ssize_t,
    next: Option<(usize, Bound<'py, PyAny>)>,
    /// Filled when the order is another.
    others: Option<HashMap<usize, Bound<'py, PyAny>, BuildHasherDefault<AddressHasher>>>,
}

impl<'a, 'py> States<'a, 'py> {
    pub(super) fn new(dict: &'a Bound<'py, PyDict>) -> Self {
        let mut states = Self { dict, position: 0, next: None, others: None };
        states.next = states.read();
        states
    }

    fn read(&mut self) -> Option<(usize, Bound<'py, PyAny>)> {
        let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live dict.
        let found = unsafe { ffi::PyDict_Next(self.dict.as_ptr(), &mut self.position, &mut key, &mut value) };
        // SAFETY: a live object, borrowed from the dict.
        (found != 0).then(|| (key as usize, unsafe { Bound::from_borrowed_ptr(self.dict.py(), value) }))
    }

    pub(super) fn of(&mut self, param: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
        let wanted = param.as_ptr() as usize;
        if let Some((_, state)) = self.next.take_if(|(key, _)| *key == wanted) {
            self.next = self.read();
            return Some(state);
        }
        if self.others.is_none() {
            let entries = self.dict.iter().map(|(key, state)| (key.as_ptr() as usize, state));
            self.others = Some(entries.collect());
        }
        self.others.as_ref()?.get(&wanted).cloned()
    }
}

/// A step counter: a scalar tensor in the parameter's state.
#[derive(Debug, Clone, Copy)]
pub(super) enum Counter {
    /// In the host's memory, at the number that it had.
    F32(*mut f32, u64),
    F64(*mut f64, u64),
    I64(*mut i64, u64),
    /// A u64 in the memory of the parameter's device.
    Device(u64),
    /// Not looked at: the parameter has no gradient.
    Unused,
}

impl Counter {
    pub(super) fn of(tensor: &Tensor, device: Device) -> Option<Self> {
        let address = tensor.address();
        if tensor.len() != 1 || address == 0 {
            return None;
        }
        if tensor.device.kind == CUDA {
            return (tensor.device == device && tensor.is_i64()).then_some(Self::Device(address));
        }
        if tensor.device.kind != CPU {
            return None;
        }
        let place: *mut c_void = ptr::with_exposed_provenance_mut(address as usize);
        let whole = |value: f64| (value >= 0.0 && value.fract() == 0.0 && value < 9e15).then_some(value as u64);
        // SAFETY: a live scalar tensor of this type in the host's memory, which torch aligns.
        unsafe {
            if tensor.dtype() == Some(Dtype::F32) {
                let value = *place.cast::<f32>();
                let step = whole(value.into()).filter(|_| value < F32_COUNTER_END)?;
                Some(Self::F32(place.cast(), step))
            } else if tensor.is_f64() {
                Some(Self::F64(place.cast(), whole(*place.cast())?))
            } else if tensor.is_i64() {
                Some(Self::I64(place.cast(), u64::try_from(*place.cast::<i64>()).ok()?))
            } else {
                None
            }
        }
    }

    /// Steps so far, where the host counts them.
    pub(super) fn steps(&self) -> Option<u64> {
        match *self {
            Self::F32(_, steps) | Self::F64(_, steps) | Self::I64(_, steps) => Some(steps),
            Self::Device(_) | Self::Unused => None,
        }
    }

    /// # Safety
    ///
    /// The counter's memory must still be there.
    pub(super) unsafe fn advance(&self) {
        // SAFETY: the caller's promise.
        unsafe {
            match *self {
                Self::F32(place, steps) => *place = (steps + 1) as f32,
                Self::F64(place, steps) => *place = (steps + 1) as f64,
                Self::I64(place, steps) => *place = (steps + 1) as i64,
                Self::Device(_) | Self::Unused => {}
            }
        }
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

    /// What a parameter's state has.
    pub(super) fn entries(&self, py: Python<'_>, state: &Bound<'_, PyAny>) -> PyResult<Option<Entries>> {
        let Ok(state) = state.cast::<PyDict>() else { return Ok(None) };
        let mut entries: Entries = [ptr::null_mut(); ENTRIES];
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live dict, which nothing changes meanwhile.
        while unsafe { ffi::PyDict_Next(state.as_ptr(), &mut position, &mut key, &mut value) } != 0 {
            // The keys that this package writes are the very objects that are compared with.
            if let Some(index) = self.0.iter().position(|name| name.as_ptr() == key) {
                entries[index] = value;
            }
        }
        let known = entries.iter().filter(|entry| !entry.is_null()).count();
        if known < state.len() {
            // Other keys, or other strings of the same letters.
            for (name, entry) in self.0.iter().zip(&mut entries).filter(|(_, entry)| entry.is_null()) {
                // SAFETY: a live dict and key; the answer is borrowed.
                *entry = unsafe { ffi::PyDict_GetItemWithError(state.as_ptr(), name.as_ptr()) };
                if entry.is_null() && PyErr::occurred(py) {
                    return Err(PyErr::fetch(py));
                }
            }
        }
        Ok(entries[..MASTER].iter().all(|entry| !entry.is_null()).then_some(entries))
    }
}

/// A parameter as it was when it was last looked at wholly, so that the next step can see that it is the same by identities and addresses.
///
/// The tensors of the state are not kept alive by this: who takes them out of the state to free their memory means it.
#[derive(Default)]
pub(super) struct Seen {
    param: Option<Py<PyAny>>,
    entries: Option<[Option<Weak>; ENTRIES]>,
    /// Whether 16-bit parameters had masters then.
    pub(super) has_masters: bool,
    layout: Layout,
    tensor: Option<RawTensor>,
    device: Option<Device>,
    counter: Option<Held>,
}

/// An object, as long as others keep it.
struct Weak {
    object: *mut ffi::PyObject,
    reference: Py<PyAny>,
}

impl Weak {
    fn new(py: Python<'_>, object: *mut ffi::PyObject) -> Option<Self> {
        // SAFETY: a live object; a new reference, or null with an exception.
        let reference = unsafe { Bound::from_owned_ptr_or_opt(py, ffi::PyWeakref_NewRef(object, ptr::null_mut())) };
        if reference.is_none() {
            // SAFETY: the interpreter is attached.
            unsafe { ffi::PyErr_Clear() };
        }
        reference.map(|reference| Self { object, reference: reference.unbind() })
    }

    fn is(&self, object: *mut ffi::PyObject) -> bool {
        // SAFETY: a live weak reference; the answer is borrowed, and only compared.
        self.object == object && unsafe { ffi::PyWeakref_GetObject(self.reference.as_ptr()) } == object
    }
}

impl Seen {
    /// Remembers a parameter that is in order, if it is one that can be known again.
    pub(super) fn remember(
        &mut self,
        tensors: &Tensors,
        param: &Bound<'_, PyAny>,
        entries: &Entries,
        params: &Tensor,
        tensor: RawTensor,
        has_masters: bool,
    ) {
        let py = param.py();
        *self = Self { counter: self.counter.take(), ..Self::default() };
        let used = || entries.iter().filter(|entry| !entry.is_null());
        if !tensors.is_plain(param.as_ptr()) || !used().all(|&entry| tensors.is_plain(entry)) {
            return;
        }
        let Some(layout) = Layout::of(params) else { return };
        let weak = entries.map(|entry| if entry.is_null() { None } else { Weak::new(py, entry) });
        self.counter = tensors.hold(entries[STEP]);
        self.param = Some(param.clone().unbind());
        self.entries = Some(weak);
        self.has_masters = has_masters;
        self.layout = layout;
        self.tensor = Some(tensor);
        self.device = Some(params.device);
    }

    /// The parameter as a list has it, if it is as it was, and the gradient is like it.
    ///
    /// A tensor that keeps its address but gets another shape or type unnoticed would have to be given them by hand, through `.data`, and
    /// a gradient of its old layout as well.
    #[inline]
    pub(super) fn recognise(
        &self,
        tensors: &Tensors,
        param: *mut ffi::PyObject,
        entries: &Entries,
        grads: &Tensor,
    ) -> Option<(Device, RawTensor, Counter)> {
        let (known, tensor, device) = (self.entries.as_ref()?, self.tensor?, self.device?);
        let same = |entry: usize| match &known[entry] {
            Some(weak) => weak.is(entries[entry]),
            None => entries[entry].is_null(),
        };
        if self.param.as_ref()?.as_ptr() != param || !(0..ENTRIES).all(same) {
            return None;
        }
        let at = |object, address| tensors.address(object) == Some(address);
        let has_params = match tensor.copy {
            None => at(param, tensor.params.address),
            Some(copy) => at(param, copy.address) && at(entries[MASTER], tensor.params.address),
        };
        let has_moments = at(entries[EXP_AVG], tensor.exp_avg) && at(entries[EXP_AVG_SQ], tensor.exp_avg_sq);
        if !has_params || !has_moments || grads.device != device || !self.layout.is_of(grads) {
            return None;
        }
        let grads = RawBuffer { address: grads.address(), dtype: grads.dtype()? };
        let counter = Counter::of(self.counter.as_ref()?.tensor(), device)?;
        (tensor.len == 0 || grads.address != 0).then_some((device, RawTensor { grads, ..tensor }, counter))
    }
}

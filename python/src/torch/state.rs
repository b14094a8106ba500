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
///
/// States are given as they are borrowed from the dict.
pub(super) struct States<'a, 'py> {
    dict: &'a Bound<'py, PyDict>,
    /// Where the dict is read next: mostly it has the order of the parameters.
    position: ffi::Py_ssize_t,
    next: Option<(*mut ffi::PyObject, *mut ffi::PyObject)>,
    /// Filled when the order is another.
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
        // SAFETY: a live dict.
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
        // SAFETY: as this function requires.
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

fn whole(value: f64) -> Option<u64> {
    (value < 9e15 && (value as u64) as f64 == value).then_some(value as u64)
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

    /// What the state, a dict, of a parameter has under keys that are the very objects here: those that this package writes.
    #[inline]
    pub(super) fn known_entries(&self, state: *mut ffi::PyObject) -> Entries {
        let mut entries: Entries = [ptr::null_mut(); ENTRIES];
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live object; a dict, or nothing is found, which nothing changes meanwhile.
        while unsafe { ffi::PyDict_Next(state, &mut position, &mut key, &mut value) } != 0 {
            for (name, entry) in self.0.iter().zip(&mut entries) {
                if name.as_ptr() == key {
                    *entry = value;
                }
            }
        }
        entries
    }

    /// What a parameter's state has.
    pub(super) fn entries(&self, py: Python<'_>, state: &Bound<'_, PyAny>) -> PyResult<Option<Entries>> {
        let Ok(state) = state.cast::<PyDict>() else { return Ok(None) };
        let mut entries = self.known_entries(state.as_ptr());
        if entries.iter().filter(|entry| !entry.is_null()).count() < state.len() {
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

/// A parameter that was in order, so that the next step can see by identities and addresses that it still is.
///
/// Its tensors are held, for then torch counts a look at one as no change of its owners, which halves the cost; [`Stepper::forget`]
/// lets go of them before anyone can take them out of the state to free their memory. Their memory is not held: it can be replaced,
/// and is asked for in every step.
///
/// [`Stepper::forget`]: super::Stepper
pub(super) struct Known {
    param: Py<PyAny>,
    entries: Entries,
    /// What keeps the objects above alive.
    _objects: Vec<Py<PyAny>>,
    _held: Vec<Held>,
    has_masters: bool,
    layout: Layout,
    pub(super) device: Device,
    tensor: RawTensor,
}

impl Known {
    /// Remembers a parameter that is in order, if it is one that can be known again.
    pub(super) fn new(
        tensors: &Tensors,
        param: &Bound<'_, PyAny>,
        entries: &Entries,
        params: &Tensor,
        tensor: RawTensor,
        has_masters: bool,
    ) -> Option<Self> {
        let py = param.py();
        let layout = Layout::of(params)?;
        let used = entries.iter().filter(|entry| !entry.is_null());
        // SAFETY: live objects, borrowed from the state.
        let mut objects: Vec<_> = used.map(|&entry| unsafe { Bound::from_borrowed_ptr(py, entry) }).collect();
        objects.push(param.clone());
        let held = objects.iter().map(|object| tensors.hold(object.as_ptr())).collect::<Option<Vec<_>>>()?;
        Some(Self {
            param: param.clone().unbind(),
            entries: *entries,
            _objects: objects.into_iter().map(Bound::unbind).collect(),
            _held: held,
            has_masters,
            layout,
            device: params.device,
            tensor,
        })
    }

    /// The same tensors, in other memory or of another layout.
    pub(super) fn renewed(self, entries: &Entries, params: &Tensor, tensor: RawTensor) -> Option<Self> {
        let layout = Layout::of(params)?;
        (self.entries == *entries).then_some(Self { layout, device: params.device, tensor, ..self })
    }

    /// Whether it is about this parameter.
    #[inline]
    pub(super) fn is_of(&self, param: *mut ffi::PyObject, has_masters: bool) -> bool {
        self.param.as_ptr() == param && self.has_masters == has_masters
    }

    /// The parameter as a list has it, if it and its state are as they were, and the gradient is like it.
    ///
    /// A tensor that keeps its address but has another shape can only have been given it by hand, through `.data` or in place. The
    /// parameter's is compared; so is the gradient's.
    #[inline]
    pub(super) fn recognise(
        &self,
        tensors: &Tensors,
        entries: &Entries,
        grad: *mut ffi::PyObject,
    ) -> Option<(RawTensor, Counter)> {
        if self.entries != *entries {
            return None;
        }
        let mut now = Tensor::EMPTY;
        let is_at = |object, buffer: RawBuffer, now: &mut Tensor| {
            // SAFETY: a plain tensor when it was first seen, and held since.
            unsafe { tensors.exchange.look_into(object, now) }.then_some(())?;
            (now.address() == buffer.address && now.is_of(buffer.dtype)).then_some(())
        };
        let moment = |address| RawBuffer { address, dtype: Dtype::F32 };
        let known = &self.tensor;
        is_at(entries[EXP_AVG], moment(known.exp_avg), &mut now)?;
        is_at(entries[EXP_AVG_SQ], moment(known.exp_avg_sq), &mut now)?;
        match known.copy {
            None => is_at(self.param.as_ptr(), known.params, &mut now)?,
            Some(copy) => {
                is_at(entries[MASTER], known.params, &mut now)?;
                is_at(self.param.as_ptr(), copy, &mut now)?;
            }
        }
        if !self.layout.is_of(&now) {
            return None;
        }
        // SAFETY: as above.
        unsafe { tensors.exchange.look_into(entries[STEP], &mut now) }.then_some(())?;
        let counter = Counter::of(&now, self.device)?;
        tensors.look_at_plain(grad, &mut now)?;
        let grads = RawBuffer { address: now.address(), dtype: now.dtype()? };
        if now.device != self.device || !self.layout.is_of(&now) || (grads.address == 0 && known.len > 0) {
            return None;
        }
        Some((RawTensor { grads, ..*known }, counter))
    }
}

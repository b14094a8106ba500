//! The steps of one torch optimizer: its tensors are looked at anew in each step, so that nothing known of them can be out of date.

use std::collections::HashMap;
use std::ffi::c_void;
use std::hash::{BuildHasherDefault, Hasher};
use std::ptr;

use dualadam::cuda::{self, Control, ControlGroup, ControlSet, RawLr, RawScalars};
use dualadam::{Dtype, Error, RawBuffer, RawTensor, StepCoeffs, cpu};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyType};

use crate::config::Config;
use crate::dlpack::{CPU, CUDA, Device, Exchange, Held, Tensor};
use crate::errors::{exception, plain, tensor_of};
use crate::layout::{is_dense, is_same};
use crate::step::kernels;

/// A parameter group in one step: its parameters, their names if they have any, its hyperparameters, whether 16-bit parameters have f32
/// masters, and the learning rate as a scalar tensor on a CUDA device, if it is one.
type Group<'py> = (Bound<'py, PyList>, Option<Bound<'py, PyList>>, Bound<'py, Config>, bool, Option<Bound<'py, PyAny>>);

/// Where a parameter stands: its group, and its position there.
type Place = (usize, usize);

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
struct States<'a, 'py> {
    dict: &'a Bound<'py, PyDict>,
    /// Where the dict is read next: mostly it has the order of the parameters.
    position: ffi::Py_ssize_t,
    next: Option<(usize, Bound<'py, PyAny>)>,
    /// Filled when the order is another.
    others: Option<HashMap<usize, Bound<'py, PyAny>, BuildHasherDefault<AddressHasher>>>,
}

impl<'a, 'py> States<'a, 'py> {
    fn new(dict: &'a Bound<'py, PyDict>) -> Self {
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

    fn of(&mut self, param: &Bound<'py, PyAny>) -> Option<Bound<'py, PyAny>> {
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

/// Attributes and state entries, in the order of [`Stepper::names`].
const NAMES: [&str; 5] = ["exp_avg", "exp_avg_sq", "step", "master_param", "grad"];
const STEP: usize = 2;
const MASTER: usize = 3;
const STATE: usize = 4;
const GRAD: usize = 4;

/// The objects in a parameter's state when it was last looked at, kept alive.
#[derive(Default)]
struct Seen {
    objects: [Option<Py<PyAny>>; STATE],
    /// The memory of `step`, if that is on the host. Only another tensor in the state is noticed, not other memory given to the same
    /// one: that is looked for in what is large.
    counter: Option<Held>,
}

impl Seen {
    fn objects(&self) -> [*mut ffi::PyObject; STATE] {
        self.objects.each_ref().map(|object| object.as_ref().map_or(ptr::null_mut(), Py::as_ptr))
    }

    fn keep(&mut self, py: Python<'_>, found: [*mut ffi::PyObject; STATE]) {
        for (index, (kept, found)) in self.objects.iter_mut().zip(found).enumerate() {
            if kept.as_ref().map_or(ptr::null_mut(), Py::as_ptr) != found {
                // SAFETY: a live object, or null.
                *kept = unsafe { Bound::from_borrowed_ptr_or_opt(py, found) }.map(Bound::unbind);
                if index == STEP {
                    self.counter = None;
                }
            }
        }
    }
}

/// A step counter: a scalar tensor in the parameter's state.
#[derive(Debug, Clone, Copy)]
enum Counter {
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
    fn of(tensor: &Tensor, device: Device) -> Option<Self> {
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
    fn steps(&self) -> Option<u64> {
        match *self {
            Self::F32(_, steps) | Self::F64(_, steps) | Self::I64(_, steps) => Some(steps),
            Self::Device(_) | Self::Unused => None,
        }
    }

    /// # Safety
    ///
    /// The counter's memory must still be there.
    unsafe fn advance(&self) {
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

/// What a list's kind of memory needs for its steps.
enum Backend {
    Cpu(cpu::TensorList),
    Cuda { list: cuda::TensorList, control: Option<DeviceControl> },
}

/// The coefficients' place on the device, and what it was made from.
struct DeviceControl {
    control: Control,
    groups: Vec<ControlGroup>,
    sets: Vec<ControlSet>,
}

/// The parameters of one device, as they are in the step under way, and the list that they made in the last one.
struct List {
    device: Device,
    tensors: Vec<RawTensor>,
    places: Vec<Place>,
    counters: Vec<Counter>,
    sets: Vec<StepCoeffs>,
    backend: Option<Backend>,
}

impl List {
    fn new(device: Device) -> Self {
        let (tensors, places, counters) = (Vec::new(), Vec::new(), Vec::new());
        Self { device, tensors, places, counters, sets: Vec::new(), backend: None }
    }

    fn clear(&mut self) {
        self.tensors.clear();
        self.places.clear();
        self.counters.clear();
        self.sets.clear();
    }

    fn push(&mut self, place: Place, tensor: RawTensor, counter: Counter) {
        self.tensors.push(tensor);
        self.places.push(place);
        self.counters.push(counter);
    }

    /// A tensor without a gradient: it stays in the list, so that this does not become another.
    fn push_left_alone(&mut self, place: Place, params: Dtype, copy: Option<Dtype>, len: u64) {
        let of = |dtype| RawBuffer { address: 0, dtype };
        let before = match &self.backend {
            Some(Backend::Cpu(list)) => list.tensors(),
            Some(Backend::Cuda { list, .. }) => list.tensors(),
            None => &[],
        };
        let before = before.get(self.tensors.len()).filter(|before| before.len == len);
        let grads = before.map_or(copy.unwrap_or(params), |before| before.grads.dtype);
        let tensor = RawTensor {
            params: of(params),
            grads: of(grads),
            exp_avg: 0,
            exp_avg_sq: 0,
            copy: copy.map(of),
            len,
            set: 0,
        };
        self.push(place, tensor, Counter::Unused);
    }

    fn has_gradients(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.grads.address != 0)
    }

    fn is_counted_on_device(&self) -> bool {
        self.counters.iter().any(|counter| matches!(counter, Counter::Device(_)))
    }

    /// Gives each tensor the coefficients of its group and step.
    fn form_sets(&mut self, configs: &[dualadam::DualAdamConfig], multiplier: f64) -> Result<(), (usize, Error)> {
        let mut known: HashMap<(usize, u64), usize> = HashMap::new();
        let mut last = ((usize::MAX, 0), 0);
        for (index, tensor) in self.tensors.iter_mut().enumerate() {
            let Some(steps) = self.counters[index].steps() else { continue };
            let key = (self.places[index].0, steps + 1);
            if last.0 != key {
                let set = match known.get(&key) {
                    Some(&set) => set,
                    None => {
                        let coeffs = configs[key.0].coeffs_scaled(key.1, multiplier);
                        self.sets.push(coeffs.map_err(|error| (index, error))?);
                        known.insert(key, self.sets.len() - 1);
                        self.sets.len() - 1
                    }
                };
                last = (key, set);
            }
            tensor.set = last.1;
        }
        Ok(())
    }

    /// Gives each tensor a set of its own, which the device fills.
    fn number_sets(&mut self) {
        self.tensors.iter_mut().enumerate().for_each(|(index, tensor)| tensor.set = index);
    }

    /// Takes the tensors over into the list, or into a new one. All is checked then, and nothing is stepped.
    fn take_over(&mut self) -> PyResult<Result<(), Error>> {
        let tensors = &self.tensors;
        let updated = match &mut self.backend {
            Some(Backend::Cpu(list)) => list.update(tensors),
            Some(Backend::Cuda { list, .. }) => list.update(tensors),
            None => Err(Error::Empty { list: "tensors" }),
        };
        match updated {
            Err(Error::Empty { .. } | Error::Count { .. } | Error::Fixed { .. }) => {}
            Err(error) => return Ok(Err(error)),
            Ok(()) => return Ok(Ok(())),
        }
        let made = if self.device.kind == CPU {
            cpu::TensorList::new(tensors).map(Backend::Cpu)
        } else {
            let kernels = kernels(self.device.id)?;
            cuda::TensorList::new(&kernels, tensors).map(|list| Backend::Cuda { list, control: None })
        };
        Ok(made.map(|made| self.backend = Some(made)))
    }
}

/// What steers a list's step beside its coefficients.
#[derive(Clone, Copy)]
struct Steering {
    scalars: RawScalars,
    /// Whether the device forms the coefficients.
    is_controlled: bool,
}

/// The steps of one torch optimizer, as its `step` calls them: see `dualadam.torch`.
#[pyclass(module = "dualadam._dualadam")]
pub(crate) struct Stepper {
    exchange: Exchange,
    /// Types whose objects are what they seem: no subclass with a meaning of its own.
    plain: Vec<Py<PyType>>,
    /// Gives the plain tensor behind any other object.
    unwrap: Py<PyAny>,
    /// The attribute `grad` of tensors, and the function that reads it.
    grad: Py<PyAny>,
    grad_getter: Option<ffi::descrgetfunc>,
    names: [Py<PyString>; NAMES.len()],
    lists: Vec<List>,
    seen: Vec<Seen>,
    /// Objects that the addresses belong to, alive until the step is done.
    kept: Vec<Py<PyAny>>,
}

// SAFETY: the pointers are to tensors' memory and to objects, are used only within `step`, which has the interpreter attached and
// the object to itself, and mean nothing between two calls.
unsafe impl Send for Stepper {}
// SAFETY: as above; nothing is reached through a shared reference.
unsafe impl Sync for Stepper {}

#[pymethods]
impl Stepper {
    #[new]
    fn new(plain: Vec<Py<PyType>>, unwrap: Py<PyAny>, py: Python<'_>) -> PyResult<Self> {
        let first = plain.first().ok_or_else(|| PyValueError::new_err("plain must name a type"))?;
        let exchange = Exchange::of(first.bind(py))?;
        let grad = first.bind(py).getattr("grad")?;
        // SAFETY: a live type; a slot of this number has this type.
        let grad_getter = unsafe {
            let slot = ffi::PyType_GetSlot(ffi::Py_TYPE(grad.as_ptr()), ffi::Py_tp_descr_get);
            std::mem::transmute::<*mut c_void, Option<ffi::descrgetfunc>>(slot)
        };
        let names = NAMES.map(|name| PyString::intern(py, name).unbind());
        let (grad, lists, seen, kept) = (grad.unbind(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { exchange, plain, unwrap, grad, grad_getter, names, lists, seen, kept })
    }

    /// One step of every parameter that has a gradient. `state` is the optimizer's; `grads` has gradients that take the place of those
    /// of parameters, by the parameter's id. `scalars` has (device number, loss scale, found-inf), each tensor on that device, float32.
    ///
    /// Returns None when the step is made; else the places of the parameters that are not in order, and nothing is changed.
    #[pyo3(signature = (state, groups, grads, multiplier, is_controlled, scalars))]
    #[expect(clippy::too_many_arguments, reason = "one call per step, and each is looked at once")]
    fn step(
        &mut self,
        py: Python<'_>,
        state: &Bound<'_, PyDict>,
        groups: Vec<Group<'_>>,
        grads: Option<&Bound<'_, PyDict>>,
        multiplier: f64,
        is_controlled: bool,
        scalars: Vec<(i32, Option<Bound<'_, PyAny>>, Option<Bound<'_, PyAny>>)>,
    ) -> PyResult<Option<Vec<Place>>> {
        let outcome = self.gather(py, state, &groups, grads, is_controlled).and_then(|odd| {
            if odd.is_empty() {
                self.run(py, &groups, multiplier, is_controlled, &scalars).map(|()| None)
            } else {
                Ok(Some(odd))
            }
        });
        self.kept.clear();
        outcome
    }
}

impl Stepper {
    /// Looks at all parameters. Returns the places of those that are not in order.
    fn gather(
        &mut self,
        py: Python<'_>,
        state: &Bound<'_, PyDict>,
        groups: &[Group<'_>],
        grads: Option<&Bound<'_, PyDict>>,
        is_controlled: bool,
    ) -> PyResult<Vec<Place>> {
        self.lists.iter_mut().for_each(List::clear);
        self.seen.resize_with(groups.iter().map(|group| group.0.len()).sum(), Seen::default);
        let mut states = States::new(state);
        let (mut odd, mut flat) = (Vec::new(), 0);
        for (group_index, group) in groups.iter().enumerate() {
            for index in 0..group.0.len() {
                let param = group.0.get_item(index)?;
                let place = (group_index, index);
                let state = states.of(&param);
                let replaced = grads.map(|grads| grads.get_item(param.as_ptr() as usize)).transpose()?.flatten();
                let grad = replaced.map_or_else(|| self.grad_of(&param), Ok)?;
                if !self.gather_one(py, place, flat, &param, grad, state, group.3)? {
                    odd.push(place);
                }
                flat += 1;
            }
        }
        for list in self.lists.iter().filter(|list| list.device.kind == CUDA) {
            if is_controlled || list.is_counted_on_device() {
                let on_host = |counter: &Counter| counter.steps().is_some();
                let counters = list.places.iter().zip(&list.counters);
                odd.extend(counters.filter(|(_, counter)| on_host(counter)).map(|(&place, _)| place));
            }
        }
        Ok(odd)
    }

    /// Whether the parameter is in order; if so, it stands in its device's list.
    #[expect(clippy::too_many_arguments, reason = "all that is known of one parameter")]
    fn gather_one<'py>(
        &mut self,
        py: Python<'py>,
        place: Place,
        flat: usize,
        param: &Bound<'py, PyAny>,
        grad: Bound<'py, PyAny>,
        state: Option<Bound<'py, PyAny>>,
        with_masters: bool,
    ) -> PyResult<bool> {
        let params = self.look(py, param.as_ptr())?;
        if grad.is_none() {
            if let Some((params, dtype)) = params.and_then(|params| Some((params, params.dtype()?))) {
                let has_master = with_masters && dtype != Dtype::F32;
                let (own, copy) = if has_master { (Dtype::F32, Some(dtype)) } else { (dtype, None) };
                self.list_of(params.device).push_left_alone(place, own, copy, params.len());
            }
            return Ok(true);
        }
        let grads = self.look(py, grad.as_ptr())?;
        self.kept.push(grad.unbind());
        let (Some(params), Some(grads), Some(state)) = (params, grads, state) else { return Ok(false) };
        let (Some(params_dtype), Some(grads_dtype)) = (params.dtype(), grads.dtype()) else { return Ok(false) };
        if !self.see(py, flat, &state)? {
            return Ok(false);
        }
        let has_master = with_masters && params_dtype != Dtype::F32;
        let [exp_avg, exp_avg_sq, _, master] = self.seen[flat].objects();
        let exp_avg = self.look(py, exp_avg)?;
        let exp_avg_sq = self.look(py, exp_avg_sq)?;
        let (Some(exp_avg), Some(exp_avg_sq)) = (exp_avg, exp_avg_sq) else { return Ok(false) };
        let is_like = |tensor: &Tensor| tensor.device == params.device && is_same(tensor, &params);
        let is_moment = |tensor: &Tensor| tensor.dtype() == Some(Dtype::F32) && is_like(tensor);
        let is_known_device = matches!(params.device.kind, CPU | CUDA);
        if !(is_known_device && is_dense(&params) && is_like(&grads) && is_moment(&exp_avg) && is_moment(&exp_avg_sq)) {
            return Ok(false);
        }
        let Some(counter) = self.counter(py, flat, params.device)? else { return Ok(false) };
        let buffer = |tensor: &Tensor, dtype| RawBuffer { address: tensor.address(), dtype };
        let mut tensor = RawTensor {
            params: buffer(&params, params_dtype),
            grads: buffer(&grads, grads_dtype),
            exp_avg: exp_avg.address(),
            exp_avg_sq: exp_avg_sq.address(),
            copy: None,
            len: params.len(),
            set: 0,
        };
        if has_master {
            let master = if master.is_null() { None } else { self.look(py, master)? };
            let Some(master) = master.filter(is_moment) else { return Ok(false) };
            tensor.copy = Some(tensor.params);
            tensor.params = buffer(&master, Dtype::F32);
        }
        if tensor.len > 0 && grads.address() == 0 {
            // To a list that means a tensor without a gradient.
            return Ok(false);
        }
        self.list_of(params.device).push(place, tensor, counter);
        Ok(true)
    }

    fn list_of(&mut self, device: Device) -> &mut List {
        let known = self.lists.iter().position(|list| list.device == device);
        let index = known.unwrap_or_else(|| {
            self.lists.push(List::new(device));
            self.lists.len() - 1
        });
        &mut self.lists[index]
    }

    /// The gradient of a parameter, or None.
    fn grad_of<'py>(&self, param: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = param.py();
        match self.grad_getter {
            // What the attribute's lookup ends in, where no subclass can have its own.
            Some(getter) if self.is_plain(param.as_ptr()) => {
                // SAFETY: a descriptor's getter, with the descriptor, an object and its type.
                let grad = unsafe { getter(self.grad.as_ptr(), param.as_ptr(), ffi::Py_TYPE(param.as_ptr()).cast()) };
                // SAFETY: a new reference, or null with an exception.
                unsafe { Bound::from_owned_ptr_or_err(py, grad) }
            }
            _ => param.getattr(&*self.names[GRAD].bind(py)),
        }
    }

    /// Remembers the objects in a parameter's state; whether there are all that must be.
    fn see(&mut self, py: Python<'_>, flat: usize, state: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Ok(state) = state.cast::<PyDict>() else { return Ok(false) };
        let mut found = [ptr::null_mut(); STATE];
        let (mut position, mut key, mut value) = (0, ptr::null_mut(), ptr::null_mut());
        // SAFETY: a live dict, which nothing changes meanwhile; what is found is borrowed from it.
        while unsafe { ffi::PyDict_Next(state.as_ptr(), &mut position, &mut key, &mut value) } != 0 {
            // The keys that this package writes are the very objects that are compared with.
            if let Some(index) = self.names[..STATE].iter().position(|name| name.as_ptr() == key) {
                found[index] = value;
            }
        }
        // Other strings with the same letters, or fewer entries.
        let is_whole =
            found[..MASTER].iter().all(|found| !found.is_null()) && (state.len() == MASTER || !found[MASTER].is_null());
        if !is_whole {
            for (name, found) in self.names[..STATE].iter().zip(&mut found).filter(|(_, found)| found.is_null()) {
                // SAFETY: a live dict and key; the answer is borrowed.
                *found = unsafe { ffi::PyDict_GetItemWithError(state.as_ptr(), name.as_ptr()) };
                if found.is_null() && PyErr::occurred(py) {
                    return Err(PyErr::fetch(py));
                }
            }
        }
        self.seen[flat].keep(py, found);
        Ok(found[..MASTER].iter().all(|found| !found.is_null()))
    }

    /// The step counter of a parameter that was seen.
    fn counter(&mut self, py: Python<'_>, flat: usize, device: Device) -> PyResult<Option<Counter>> {
        let step = self.seen[flat].objects()[STEP];
        if self.seen[flat].counter.is_none() && self.is_plain(step) {
            // SAFETY: a live tensor of a type that the table is of.
            let held = unsafe { self.exchange.hold(step) };
            self.seen[flat].counter = held.filter(|held| held.tensor().device.kind == CPU);
        }
        Ok(match &self.seen[flat].counter {
            Some(held) => Counter::of(held.tensor(), device),
            None => self.look(py, step)?.and_then(|tensor| Counter::of(&tensor, device)),
        })
    }

    fn is_plain(&self, object: *mut ffi::PyObject) -> bool {
        // SAFETY: a live object.
        let kind = unsafe { ffi::Py_TYPE(object) };
        self.plain.iter().any(|plain| plain.as_ptr() == kind.cast())
    }

    /// What a tensor object is at this moment; None for what is none, or cannot be seen.
    fn look(&mut self, py: Python<'_>, object: *mut ffi::PyObject) -> PyResult<Option<Tensor>> {
        if self.is_plain(object) {
            // SAFETY: the callers have a reference, and the tensor is not changed before the step is made.
            return Ok(unsafe { self.exchange.look(object) });
        }
        // SAFETY: a live object.
        let unwrapped = self.unwrap.bind(py).call1((unsafe { Bound::from_borrowed_ptr(py, object) },))?;
        // SAFETY: as above; what is unwrapped is a tensor.
        let tensor = if unwrapped.is_none() { None } else { unsafe { self.exchange.look(unwrapped.as_ptr()) } };
        self.kept.push(unwrapped.unbind());
        Ok(tensor)
    }

    /// A scalar tensor on a CUDA device, by address: whether it is an f64, and where it lies.
    fn scalar(&mut self, py: Python<'_>, what: &str, object: &Bound<'_, PyAny>, device: Device) -> PyResult<RawLr> {
        let tensor = self.look(py, object.as_ptr())?;
        let tensor = tensor.filter(|tensor| tensor.device == device && tensor.len() == 1 && tensor.address() != 0);
        match tensor {
            Some(tensor) if tensor.dtype() == Some(Dtype::F32) => Ok(RawLr::F32(tensor.address())),
            Some(tensor) if tensor.is_f64() => Ok(RawLr::F64(tensor.address())),
            _ => Err(PyValueError::new_err(format!("{what} must be a tensor with one float32 or float64 on {device}"))),
        }
    }

    /// Steps all that was gathered. Every list is checked before the first is stepped.
    fn run(
        &mut self,
        py: Python<'_>,
        groups: &[Group<'_>],
        multiplier: f64,
        is_controlled: bool,
        scalars: &[(i32, Option<Bound<'_, PyAny>>, Option<Bound<'_, PyAny>>)],
    ) -> PyResult<()> {
        let configs: Vec<_> = groups.iter().map(|group| group.2.get().inner).collect();
        let mut lists = std::mem::take(&mut self.lists);
        lists.retain(|list| !list.tensors.is_empty());
        let mut steering = Vec::with_capacity(lists.len());
        let mut prepare = || -> PyResult<()> {
            for list in lists.iter_mut() {
                let is_controlled = list.device.kind == CUDA && (is_controlled || list.is_counted_on_device());
                let mut raw = RawScalars::default();
                if is_controlled {
                    list.number_sets();
                    if let Some((_, scale, found_inf)) = scalars.iter().find(|(id, ..)| *id == list.device.id) {
                        raw = self.raw_scalars(py, list.device, scale.as_ref(), found_inf.as_ref())?;
                    }
                } else {
                    list.form_sets(&configs, multiplier)
                        .map_err(|(index, error)| named(groups, list, index, &error))?;
                }
                list.take_over()?.map_err(|error| match tensor_of(&error) {
                    Some(index) => named(groups, list, index, &error),
                    None => plain(error),
                })?;
                steering.push(Steering { scalars: raw, is_controlled });
            }
            Ok(())
        };
        let prepared = prepare();
        let stepped = prepared.and_then(|()| {
            lists
                .iter_mut()
                .zip(&steering)
                .filter(|(list, _)| list.has_gradients())
                .try_for_each(|(list, steering)| self.run_one(py, groups, &configs, list, *steering))
        });
        self.lists = lists;
        stepped
    }

    fn raw_scalars(
        &mut self,
        py: Python<'_>,
        device: Device,
        scale: Option<&Bound<'_, PyAny>>,
        found_inf: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<RawScalars> {
        let mut address = |what, object: Option<&Bound<'_, PyAny>>| match object {
            None => Ok(0),
            Some(object) => match self.scalar(py, what, object, device)? {
                RawLr::F32(address) => Ok(address),
                RawLr::F64(_) => Err(PyValueError::new_err(format!("{what} must be float32, it is float64"))),
            },
        };
        let loss_scale = address("grad_scale", scale)?;
        Ok(RawScalars { loss_scale, clip_factor: 0, found_inf: address("found_inf", found_inf)? })
    }

    fn run_one(
        &mut self,
        py: Python<'_>,
        groups: &[Group<'_>],
        configs: &[dualadam::DualAdamConfig],
        list: &mut List,
        steering: Steering,
    ) -> PyResult<()> {
        let sets = &list.sets;
        match &mut list.backend {
            // SAFETY: the tensors are alive, as what they belong to is kept, and were just seen to have these types, lengths and
            // addresses. That no other thread uses them meanwhile is as for any optimizer of torch's.
            Some(Backend::Cpu(own)) => py.detach(|| unsafe { own.step_raw(sets) }).map_err(plain)?,
            Some(Backend::Cuda { list: own, control }) => {
                let stream = self.exchange.current_stream(py, list.device)? as usize;
                if steering.is_controlled {
                    let mut lrs = Vec::with_capacity(groups.len());
                    for group in groups {
                        let lr = group.4.as_ref();
                        lrs.push(lr.map(|lr| self.scalar(py, "lr", lr, list.device)).transpose()?);
                    }
                    let groups = configs.iter().zip(lrs).map(|(&config, lr)| ControlGroup { config, lr }).collect();
                    let control = match control_for(list.device, groups, control, &list.places, &list.counters, stream)?
                    {
                        Some(made) => control.insert(made),
                        None => control.as_mut().ok_or_else(|| PyRuntimeError::new_err("there is no control"))?,
                    };
                    // SAFETY: as below; the counters and scalars are tensors on the device too.
                    py.detach(|| unsafe {
                        own.step_controlled(&mut control.control, &steering.scalars, pointer(stream))
                    })
                    .map_err(plain)?;
                } else {
                    // SAFETY: as above. torch's allocator gives memory that is freed only to later work on the same stream, and this
                    // is the stream on which torch works.
                    py.detach(|| unsafe { own.step_raw(sets, pointer(stream)) }).map_err(plain)?;
                }
            }
            None => return Err(PyRuntimeError::new_err("the tensors were not taken over")),
        }
        // SAFETY: the counters' tensors are kept alive.
        list.counters.iter().for_each(|counter| unsafe { counter.advance() });
        Ok(())
    }
}

fn pointer(stream: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(stream)
}

/// A new control, where the old one does not fit any more; its configs are brought up to date where it does.
fn control_for(
    device: Device,
    groups: Vec<ControlGroup>,
    old: &mut Option<DeviceControl>,
    places: &[Place],
    counters: &[Counter],
    stream: usize,
) -> PyResult<Option<DeviceControl>> {
    let before = |index: usize| old.as_ref().and_then(|old| old.sets.get(index)).and_then(|set| set.step);
    let step = |(index, counter): (usize, &Counter)| match *counter {
        Counter::Device(address) => Ok(Some(address)),
        Counter::Unused => Ok(before(index)),
        _ => Err(PyRuntimeError::new_err("a step is on the host, and others on the device")),
    };
    let steps = counters.iter().enumerate().map(step).collect::<PyResult<Vec<_>>>()?;
    let set = |(place, step): (&Place, Option<u64>)| ControlSet { group: place.0, step };
    let sets: Vec<_> = places.iter().zip(steps).map(set).collect();
    if let Some(old) = old {
        let same_lrs = old.groups.len() == groups.len() && old.groups.iter().zip(&groups).all(|(a, b)| a.lr == b.lr);
        if same_lrs && old.sets == sets {
            for (index, (old_group, group)) in old.groups.iter_mut().zip(&groups).enumerate() {
                if old_group.config != group.config {
                    // SAFETY: torch's current stream, on which all steps of the control are.
                    unsafe { old.control.set_config(index, group.config, pointer(stream)) }.map_err(plain)?;
                    *old_group = *group;
                }
            }
            return Ok(None);
        }
    }
    let control = Control::new(&kernels(device.id)?, &groups, &sets).map_err(plain)?;
    Ok(Some(DeviceControl { control, groups, sets }))
}

/// The exception for an error about one tensor, with the parameter's name.
fn named(groups: &[Group<'_>], list: &List, index: usize, error: &Error) -> PyErr {
    let Some(&(group, position)) = list.places.get(index) else { return exception(error, "") };
    let name = groups.get(group).and_then(|group| group.1.as_ref()?.get_item(position).ok());
    let place = match name {
        Some(name) => format!("parameter '{name}'"),
        None => format!("parameter {position} of group {group}"),
    };
    exception(error, &place)
}

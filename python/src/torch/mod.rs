//! The steps of one torch optimizer: its tensors are looked at anew in each step, so that nothing known of them can be out of date.

mod list;
mod state;
mod tensors;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use dualadam::cuda::{ControlGroup, RawLr, RawScalars};
use dualadam::{Dtype, DualAdamConfig, Error, RawBuffer, RawTensor};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyString, PyType};

use crate::config::Config;
use crate::dlpack::{CPU, CUDA, Device, Tensor};
use crate::errors::{exception, plain, tensor_of};
use crate::layout::{is_dense, is_same};

use list::{Backend, List, OnDevice, control_for, pointer};
use state::{Counter, EXP_AVG, EXP_AVG_SQ, Known, MASTER, Names, STEP, States};
use tensors::Tensors;

/// A parameter group in one step: its parameters, their names if they have any, its hyperparameters, whether 16-bit parameters have f32
/// masters, and the learning rate as a scalar tensor on a CUDA device, if it is one.
type Group<'py> = (Bound<'py, PyList>, Option<Bound<'py, PyList>>, Bound<'py, Config>, bool, Option<Bound<'py, PyAny>>);

/// What steers the steps on one CUDA device: its number, the loss scale and found-inf.
type Scalars<'py> = (i32, Option<Bound<'py, PyAny>>, Option<Bound<'py, PyAny>>);

/// Where a parameter stands: its group, and its position there.
type Place = (usize, usize);

/// One parameter in the course of a step.
#[derive(Clone, Copy)]
struct At {
    place: Place,
    /// Position among the parameters of all groups.
    flat: usize,
    has_masters: bool,
}

/// How a list's step is made, beside its coefficients.
enum Steering {
    OnHost,
    /// With coefficients from the host.
    OnStream(usize),
    /// With coefficients that the device forms.
    Controlled(usize, RawScalars),
}

/// The steps of one torch optimizer, as its `step` calls them: see `dualadam.torch`.
#[pyclass(frozen, module = "dualadam._dualadam")]
pub(crate) struct Stepper {
    steps: Mutex<Steps>,
    /// What is known of the tensors is to be forgotten before the next step.
    must_forget: AtomicBool,
    /// Something was stepped since the last call of `step` began.
    has_begun: AtomicBool,
}

/// What only one thread has at a time.
struct Steps {
    tensors: Tensors,
    names: Names,
    grad: Py<PyString>,
    lists: Vec<List>,
    /// What is known of each parameter from the step before.
    known: Vec<Option<Known>>,
}

// SAFETY: the pointers are to tensors' memory and to objects, are followed only within `step`, which has the interpreter attached and
// this to itself, and are only compared with after it.
unsafe impl Send for Steps {}

#[pymethods]
impl Stepper {
    #[new]
    fn new(plain: Vec<Py<PyType>>, unwrap: Py<PyAny>, unwrap_grad: Py<PyAny>, py: Python<'_>) -> PyResult<Self> {
        let (tensors, names) = (Tensors::new(py, plain, unwrap, unwrap_grad)?, Names::new(py));
        let grad = PyString::intern(py, "grad").unbind();
        let steps = Mutex::new(Steps { tensors, names, grad, lists: Vec::new(), known: Vec::new() });
        Ok(Self { steps, must_forget: AtomicBool::new(false), has_begun: AtomicBool::new(false) })
    }

    /// One step of every parameter that has a gradient. `state` is the optimizer's; `grads` has gradients that take the place of those
    /// of parameters, by the parameter's id. `scalars` has (device number, loss scale, found-inf), each tensor on that device, float32.
    ///
    /// Returns None when the step is made; else the places of the parameters that are not in order, and nothing is changed.
    #[pyo3(signature = (state, groups, grads, multiplier, is_controlled, scalars))]
    #[expect(clippy::too_many_arguments, reason = "one call per step, and each is looked at once")]
    fn step(
        &self,
        py: Python<'_>,
        state: &Bound<'_, PyDict>,
        groups: Vec<Group<'_>>,
        grads: Option<&Bound<'_, PyDict>>,
        multiplier: f64,
        is_controlled: bool,
        scalars: Vec<Scalars<'_>>,
    ) -> PyResult<Option<Vec<Place>>> {
        let Some(mut steps) = self.try_lock() else {
            return Err(PyRuntimeError::new_err("a DualAdam must be stepped by one thread at a time"));
        };
        if self.must_forget.swap(false, Ordering::Relaxed) {
            steps.known.clear();
        }
        self.has_begun.store(false, Ordering::Relaxed);
        let outcome = steps.gather(py, state, &groups, grads, is_controlled).and_then(|odd| {
            if odd.is_empty() {
                steps.run(py, &groups, multiplier, is_controlled, &scalars, &self.has_begun).map(|()| None)
            } else {
                Ok(Some(odd))
            }
        });
        steps.tensors.release();
        outcome
    }

    /// Whether the last `step` had stepped something when it ended, with an exception perhaps.
    fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Lets go of all tensors, at once or, if a thread is in a step, before the next one, which looks at them wholly.
    fn forget(&self) {
        self.must_forget.store(true, Ordering::Relaxed);
        if let Some(mut steps) = self.try_lock() {
            steps.known.clear();
        }
    }
}

impl Stepper {
    fn try_lock(&self) -> Option<MutexGuard<'_, Steps>> {
        match self.steps.try_lock() {
            Ok(steps) => Some(steps),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Steps {
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
        self.known.resize_with(groups.iter().map(|group| group.0.len()).sum(), || None);
        let mut states = States::new(state);
        let (mut odd, mut flat) = (Vec::new(), 0);
        for (group_index, group) in groups.iter().enumerate() {
            for index in 0..group.0.len() {
                let at = At { place: (group_index, index), flat, has_masters: group.3 };
                flat += 1;
                // SAFETY: a live list; the answer is borrowed from it, or null beyond its end.
                let param = unsafe { ffi::PyList_GetItem(group.0.as_ptr(), index as isize) };
                let state = states.of(param);
                if grads.is_none() && self.gather_known(py, at, param, state)? {
                    continue;
                }
                // SAFETY: a live object, borrowed from the list, or null with an exception.
                let param = unsafe { Bound::from_borrowed_ptr_or_err(py, param) }?;
                // SAFETY: a live object, borrowed from the states, or null.
                let state = unsafe { Bound::from_borrowed_ptr_or_opt(py, state) };
                let replaced = grads.map(|grads| grads.get_item(param.as_ptr() as usize)).transpose()?.flatten();
                let grad = replaced.map_or_else(|| self.tensors.grad_of(&param, self.grad.bind(py)), Ok)?;
                if !self.gather_one(at, &param, grad, state)? {
                    odd.push(at.place);
                }
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

    /// Whether the parameter is as it was in the step before, and has a gradient like it; if so, it stands in its device's list.
    #[inline]
    fn gather_known(
        &mut self,
        py: Python<'_>,
        at: At,
        param: *mut ffi::PyObject,
        state: *mut ffi::PyObject,
    ) -> PyResult<bool> {
        let Some(known) = &self.known[at.flat] else { return Ok(false) };
        if state.is_null() || !known.is_of(param, at.has_masters) {
            return Ok(false);
        }
        // It is a plain tensor, as only such are known.
        let Some(grad) = self.tensors.grad_of_plain(py, param)? else { return Ok(false) };
        let Some((tensor, counter)) = known.recognise(&self.tensors, &self.names.known_entries(state), grad.as_ptr())
        else {
            return Ok(false);
        };
        let device = known.device;
        self.tensors.keep(grad.unbind());
        self.list_of(device).push(at.place, tensor, counter);
        Ok(true)
    }

    /// Whether the parameter is in order; if so, it stands in its device's list.
    fn gather_one<'py>(
        &mut self,
        at: At,
        param: &Bound<'py, PyAny>,
        grad: Bound<'py, PyAny>,
        state: Option<Bound<'py, PyAny>>,
    ) -> PyResult<bool> {
        let py = param.py();
        if grad.is_none() {
            self.leave_alone(at, param)?;
            return Ok(true);
        }
        let grads = self.tensors.look_at_grad(py, param, &grad)?;
        self.tensors.keep(grad.unbind());
        let (Some(grads), Some(state)) = (grads, state) else { return Ok(false) };
        let Some(entries) = self.names.entries(py, &state)? else { return Ok(false) };
        let Some(params) = self.tensors.look(py, param.as_ptr())? else { return Ok(false) };
        let Some((tensor, counter)) = self.look_at_all(py, at, &params, &grads, &entries)? else { return Ok(false) };
        let known = &mut self.known[at.flat];
        let before = known.take().filter(|known| known.is_of(param.as_ptr(), at.has_masters));
        *known = match before {
            Some(before) => before.renewed(&entries, &params, tensor),
            None => None,
        }
        .or_else(|| Known::new(&self.tensors, param, &entries, &params, tensor, at.has_masters));
        self.tensors.keep(state.unbind());
        self.list_of(params.device).push(at.place, tensor, counter);
        Ok(true)
    }

    /// Puts a parameter without a gradient into its list, where it is one that there could be.
    fn leave_alone(&mut self, at: At, param: &Bound<'_, PyAny>) -> PyResult<()> {
        let Some(params) = self.tensors.look(param.py(), param.as_ptr())? else { return Ok(()) };
        let Some(dtype) = params.dtype() else { return Ok(()) };
        let has_master = at.has_masters && dtype != Dtype::F32;
        let (own, copy) = if has_master { (Dtype::F32, Some(dtype)) } else { (dtype, None) };
        self.list_of(params.device).push_left_alone(at.place, own, copy, params.len());
        Ok(())
    }

    /// The parameter as a list has it, if everything of it is in order.
    fn look_at_all(
        &mut self,
        py: Python<'_>,
        at: At,
        params: &Tensor,
        grads: &Tensor,
        entries: &state::Entries,
    ) -> PyResult<Option<(RawTensor, Counter)>> {
        let (Some(params_dtype), Some(grads_dtype)) = (params.dtype(), grads.dtype()) else { return Ok(None) };
        let mut look = |entry: usize| match entries[entry] {
            object if object.is_null() => Ok(None),
            object => self.tensors.look(py, object),
        };
        let (exp_avg, exp_avg_sq, step) = (look(EXP_AVG)?, look(EXP_AVG_SQ)?, look(STEP)?);
        let has_master = at.has_masters && params_dtype != Dtype::F32;
        let master = if has_master { look(MASTER)? } else { None };
        let (Some(exp_avg), Some(exp_avg_sq), Some(step)) = (exp_avg, exp_avg_sq, step) else { return Ok(None) };
        let is_like = |tensor: &Tensor| tensor.device == params.device && is_same(tensor, params);
        let is_moment = |tensor: &Tensor| tensor.dtype() == Some(Dtype::F32) && is_like(tensor);
        let is_known_device = matches!(params.device.kind, CPU | CUDA);
        if !(is_known_device && is_dense(params) && is_like(grads) && is_moment(&exp_avg) && is_moment(&exp_avg_sq)) {
            return Ok(None);
        }
        let Some(counter) = Counter::of(&step, params.device) else { return Ok(None) };
        let buffer = |tensor: &Tensor, dtype| RawBuffer { address: tensor.address(), dtype };
        let mut tensor = RawTensor {
            params: buffer(params, params_dtype),
            grads: buffer(grads, grads_dtype),
            exp_avg: exp_avg.address(),
            exp_avg_sq: exp_avg_sq.address(),
            copy: None,
            len: params.len(),
            set: 0,
        };
        if has_master {
            let Some(master) = master.filter(is_moment) else { return Ok(None) };
            tensor.copy = Some(tensor.params);
            tensor.params = buffer(&master, Dtype::F32);
        }
        // A gradient at 0 would mean to a list that there is none.
        Ok((tensor.len == 0 || tensor.grads.address != 0).then_some((tensor, counter)))
    }

    fn list_of(&mut self, device: Device) -> &mut List {
        let known = self.lists.iter().position(|list| list.device == device);
        let index = known.unwrap_or_else(|| {
            self.lists.push(List::new(device));
            self.lists.len() - 1
        });
        &mut self.lists[index]
    }

    /// A scalar tensor on a CUDA device, by address: whether it is an f64, and where it lies.
    fn scalar(&mut self, py: Python<'_>, what: &str, object: &Bound<'_, PyAny>, device: Device) -> PyResult<RawLr> {
        let tensor = self.tensors.look(py, object.as_ptr())?;
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
        scalars: &[Scalars<'_>],
        has_begun: &AtomicBool,
    ) -> PyResult<()> {
        let configs: Vec<_> = groups.iter().map(|group| group.2.get().inner).collect();
        let mut lists = std::mem::take(&mut self.lists);
        lists.retain(|list| !list.tensors.is_empty());
        let mut prepare = |list: &mut List| -> PyResult<Steering> {
            let is_controlled = list.device.kind == CUDA && (is_controlled || list.is_counted_on_device());
            let all = scalars.iter().find(|(id, ..)| is_controlled && *id == list.device.id);
            let raw = match all {
                Some((_, scale, found_inf)) => self.raw_scalars(py, list.device, scale.as_ref(), found_inf.as_ref())?,
                None => RawScalars::default(),
            };
            self.prepare(py, groups, &configs, list, multiplier, is_controlled.then_some(raw))
        };
        let mut stepped: Vec<_> = lists.iter_mut().filter(|list| list.has_gradients()).collect();
        let prepared = stepped.iter_mut().map(|list| prepare(list)).collect::<PyResult<Vec<_>>>();
        let outcome = prepared.and_then(|steering| {
            stepped.iter_mut().zip(&steering).try_for_each(|(list, steering)| {
                run_one(py, list, steering)?;
                has_begun.store(true, Ordering::Relaxed);
                Ok(())
            })
        });
        self.lists = lists;
        outcome
    }

    /// Checks a list's step, and makes all that it needs. `scalars` is for a step whose coefficients the device forms.
    fn prepare(
        &mut self,
        py: Python<'_>,
        groups: &[Group<'_>],
        configs: &[DualAdamConfig],
        list: &mut List,
        multiplier: f64,
        scalars: Option<RawScalars>,
    ) -> PyResult<Steering> {
        if scalars.is_some() {
            list.number_sets();
        } else {
            if let Some(index) = list.places.iter().position(|place| groups[place.0].4.is_some()) {
                let (device, place) = (list.device, name_of(groups, list, index).unwrap_or_default());
                let text = format!("lr must be a number or a tensor on the CPU for {place}, which is on {device}");
                return Err(PyValueError::new_err(text));
            }
            list.form_sets(configs, multiplier).map_err(|(index, error)| named(groups, list, index, &error))?;
        }
        let is_on_host = list.device.kind != CUDA;
        let stream =
            if is_on_host { 0 } else { self.tensors.exchange.current_stream(py, list.device)?.expose_provenance() };
        list.take_over(stream)?.map_err(|error| match tensor_of(&error) {
            Some(index) => named(groups, list, index, &error),
            None => plain(error),
        })?;
        if is_on_host {
            return Ok(Steering::OnHost);
        }
        let Some(scalars) = scalars else { return Ok(Steering::OnStream(stream)) };
        let lr = |group: &Group<'_>| group.4.as_ref().map(|lr| self.scalar(py, "lr", lr, list.device)).transpose();
        let lrs = groups.iter().map(lr).collect::<PyResult<Vec<_>>>()?;
        let groups = configs.iter().zip(lrs).map(|(&config, lr)| ControlGroup { config, lr }).collect();
        if let Some(Backend::Cuda(own)) = &mut list.backend {
            control_for(list.device, groups, &mut own.control, &list.places, &list.counters, stream)?;
        }
        Ok(Steering::Controlled(stream, scalars))
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
}

/// Steps a list that was prepared.
fn run_one(py: Python<'_>, list: &mut List, steering: &Steering) -> PyResult<()> {
    let sets = &list.sets;
    match (&mut list.backend, steering) {
        // SAFETY: the tensors are alive, as what they belong to is kept, and were just seen to have these types, lengths and
        // addresses. That no other thread uses them or takes their memory away meanwhile is as for any optimizer of torch's.
        (Some(Backend::Cpu(own)), Steering::OnHost) => py.detach(|| unsafe { own.step_raw(sets) }).map_err(plain)?,
        (Some(Backend::Cuda(own)), Steering::OnStream(stream)) => {
            // SAFETY: as above. torch's allocator gives memory that is freed only to later work on the same stream, and this
            // is the stream on which torch works.
            py.detach(|| unsafe { own.list.step_raw(sets, pointer(*stream)) }).map_err(plain)?;
        }
        (Some(Backend::Cuda(own)), Steering::Controlled(stream, scalars)) => {
            let OnDevice { list: own, control } = &mut **own;
            let control = control.as_mut().ok_or_else(|| PyRuntimeError::new_err("there is no control"))?;
            // SAFETY: as above; the counters and scalars are tensors on the device too.
            py.detach(|| unsafe { own.step_controlled(&mut control.control, scalars, pointer(*stream)) })
                .map_err(plain)?;
        }
        _ => return Err(PyRuntimeError::new_err("the tensors were not taken over")),
    }
    // SAFETY: the counters' tensors are kept alive.
    list.counters.iter().for_each(|counter| unsafe { counter.advance() });
    Ok(())
}

/// The exception for an error about one tensor, with the parameter's name.
fn named(groups: &[Group<'_>], list: &List, index: usize, error: &Error) -> PyErr {
    exception(error, &name_of(groups, list, index).unwrap_or_default())
}

/// How errors call the parameter that is a tensor of a list.
fn name_of(groups: &[Group<'_>], list: &List, index: usize) -> Option<String> {
    let &(group, position) = list.places.get(index)?;
    let name = groups.get(group).and_then(|group| group.1.as_ref()?.get_item(position).ok());
    Some(match name {
        Some(name) => format!("parameter '{name}'"),
        None => format!("parameter {position} of group {group}"),
    })
}

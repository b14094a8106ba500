//! The second half of a step: it checks and prepares each list, then steps all lists.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use dualadam::cuda::{ControlGroup, RawLr, RawScalars};
use dualadam::{Dtype, DualAdamConfig, Error};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyString;

use crate::device;
use crate::dlpack::{CUDA, Device, Tensor};
use crate::errors::{exception, plain, tensors_of};
use crate::threads::Workers;

use super::Place;
use super::control::control_for;
use super::group::{Group, Scalars};
use super::list::{Backend, List, OnDevice};
use super::stepper::Steps;

/// How the step of a list is made.
enum Prepared {
    /// On the CPU, with coefficients from the host.
    OnHost(Workers),
    /// On this stream, with coefficients from the host.
    OnStream(usize),
    /// On this stream, with coefficients that the device forms.
    Controlled(usize, RawScalars),
}

impl Steps {
    /// Steps all that was gathered. Every list is checked before the first is stepped.
    pub(super) fn run(
        &mut self,
        py: Python<'_>,
        groups: &[Group<'_>],
        multiplier: f64,
        is_controlled: bool,
        scalars: &[Scalars<'_>],
        has_begun: &AtomicBool,
    ) -> PyResult<()> {
        let configs: Vec<_> = groups.iter().map(|group| group.config.get().inner).collect();
        let mut lists = std::mem::take(&mut self.lists);
        lists.retain(|list| !list.tensors.is_empty());
        let mut prepare = |list: &mut List| -> PyResult<Prepared> {
            let scalars = match list.is_controlled(is_controlled) {
                true => Some(self.raw_scalars(list.device, scalars)?),
                false => None,
            };
            self.prepare(py, groups, &configs, list, multiplier, scalars)
        };
        let mut stepped: Vec<_> = lists.iter_mut().filter(|list| list.has_gradients()).collect();
        let prepared = stepped.iter_mut().map(|list| prepare(list)).collect::<PyResult<Vec<_>>>();
        let outcome = prepared.and_then(|prepared| {
            self.sync_changed(py)?;
            stepped.iter_mut().zip(&prepared).try_for_each(|(list, prepared)| {
                run_one(py, list, prepared)?;
                has_begun.store(true, Ordering::Relaxed);
                Ok(())
            })
        });
        self.lists = lists;
        outcome
    }

    /// The name that error messages give the parameter at a place.
    fn name_of(&self, py: Python<'_>, groups: &[Group<'_>], (group, position): Place) -> PyResult<String> {
        let name = self.name_of.bind(py).call1((&groups[group].dict, group, position))?;
        Ok(name.cast::<PyString>()?.to_string_lossy().into_owned())
    }

    /// The exception for an error about these tensors of a list, with the parameters' names.
    fn named(&self, py: Python<'_>, groups: &[Group<'_>], list: &List, tensors: &[usize], error: &Error) -> PyErr {
        let places = tensors.iter().filter_map(|&index| list.places.get(index));
        let names: PyResult<Vec<_>> = places.map(|&place| self.name_of(py, groups, place)).collect();
        names.map_or_else(|error| error, |names| exception(error, &names.join(" and ")))
    }

    /// The number of threads of a step on the CPU.
    pub(super) fn threads(&self, py: Python<'_>) -> PyResult<usize> {
        self.threads.bind(py).call0()?.extract()
    }

    /// Checks the step of a list, and makes all that it needs. `scalars` is given if the device
    /// forms the coefficients.
    fn prepare(
        &mut self,
        py: Python<'_>,
        groups: &[Group<'_>],
        configs: &[DualAdamConfig],
        list: &mut List,
        multiplier: f64,
        scalars: Option<RawScalars>,
    ) -> PyResult<Prepared> {
        if scalars.is_some() {
            list.number_coeffs();
        } else {
            if let Some(&place) = list.places.iter().find(|place| groups[place.0].lr.is_some()) {
                let (device, place) = (list.device, self.name_of(py, groups, place)?);
                let text = format!("lr must be a number or a tensor on the CPU for {place}, which is on {device}");
                return Err(PyValueError::new_err(text));
            }
            list.form_coeffs(configs, multiplier)
                .map_err(|(index, error)| self.named(py, groups, list, &[index], &error))?;
        }
        let is_on_host = list.device.kind != CUDA;
        let stream =
            if is_on_host { 0 } else { self.tensors.exchange.current_stream(py, list.device)?.expose_provenance() };
        list.take_over(stream)?.map_err(|error| self.named(py, groups, list, &tensors_of(&error), &error))?;
        if is_on_host {
            let elements = list.tensors.iter().fold(0, |sum: u64, tensor| sum.saturating_add(tensor.len));
            let workers = Workers::beside_torch(py, elements, self.openmp, || self.threads(py))?;
            return Ok(Prepared::OnHost(workers));
        }
        let Some(scalars) = scalars else { return Ok(Prepared::OnStream(stream)) };
        let lr = |(index, group): (usize, &Group<'_>)| {
            let lr = group.lr.as_ref();
            lr.map(|lr| self.scalar(format_args!("lr of group {index}"), lr, list.device)).transpose()
        };
        let lrs = groups.iter().enumerate().map(lr).collect::<PyResult<Vec<_>>>()?;
        let group = |(&config, lr)| {
            let mut group = ControlGroup::new(config);
            group.lr = lr;
            group
        };
        let configs = configs.iter().zip(lrs).map(group).collect();
        if let Some(Backend::Cuda(own)) = &mut list.backend {
            let name_of = |place| self.name_of(py, groups, place);
            control_for(list.device, configs, &mut own.control, &list.places, &list.counters, stream, name_of)?;
        }
        Ok(Prepared::Controlled(stream, scalars))
    }

    /// The addresses of the scalars that steer the steps on a device.
    fn raw_scalars(&mut self, device: Device, all: &[Scalars<'_>]) -> PyResult<RawScalars> {
        let Some(scalars) = all.iter().find(|scalars| scalars.device == device.id) else {
            return Ok(RawScalars::default());
        };
        let mut address = |what, object: &Option<Bound<'_, PyAny>>| match object {
            None => Ok(0),
            Some(object) => match self.scalar(format_args!("{what}"), object, device)? {
                RawLr::F32(address) => Ok(address),
                RawLr::F64(_) => Err(PyValueError::new_err(format!("{what} must be float32, it is float64"))),
            },
        };
        let loss_scale = address("grad_scale", &scalars.loss_scale)?;
        Ok(RawScalars::default().with_loss_scale(loss_scale).with_found_inf(address("found_inf", &scalars.found_inf)?))
    }

    /// The address of a scalar tensor on a CUDA device. Keeps the tensor until the step is done.
    fn scalar(&mut self, what: fmt::Arguments<'_>, object: &Bound<'_, PyAny>, device: Device) -> PyResult<RawLr> {
        let plain = self.tensors.plain(object)?;
        let tensor = plain.and_then(|plain| self.tensors.look(&plain));
        let fits = |tensor: &Tensor| tensor.device == device && tensor.len() == 1 && tensor.address() != 0;
        match tensor.filter(fits) {
            Some(tensor) if tensor.is_of(Dtype::F32) => Ok(RawLr::F32(tensor.address())),
            Some(tensor) if tensor.is_f64() => Ok(RawLr::F64(tensor.address())),
            _ => {
                let got = match tensor {
                    Some(tensor) => {
                        let memory = if tensor.address() == 0 { " without memory" } else { "" };
                        let (dtype, shape) = (tensor.dtype_name(), tensor.shape());
                        format!("{dtype} of shape {shape:?} on {}{memory}", tensor.device)
                    }
                    None => object.get_type().to_string(),
                };
                let text = format!("{what} must be a tensor with one float32 or float64 on {device}, got {got}");
                Err(PyValueError::new_err(text))
            }
        }
    }
}

/// Steps a list that was prepared.
fn run_one(py: Python<'_>, list: &mut List, prepared: &Prepared) -> PyResult<()> {
    let coeffs = list.table.coeffs();
    match (&mut list.backend, prepared) {
        (Some(Backend::Cpu(own)), Prepared::OnHost(workers)) => {
            // SAFETY: `gather` saw the tensors in this step, with these types, lengths and
            // addresses. `known` and `Tensors::keep` have references to them until the step is
            // done, so that they live, whatever lists and dicts were changed since. No other thread
            // uses their memory, and neither another thread nor Python code that runs in the step
            // frees or replaces it (required by the documentation of `DualAdam.step`). No storage
            // is smaller than its tensor (required by the README's limits). `share` calls the
            // function once with each number.
            py.detach(|| unsafe { own.step_raw_with(coeffs, |parts, step_part| workers.share(parts, step_part)) })
                .map_err(plain)?;
        }
        (Some(Backend::Cuda(own)), Prepared::OnStream(stream)) => {
            // SAFETY: `stream` is torch's current stream in this step, so it is live. `gather` saw
            // the tensors in this step, in the memory of this device, and they still have it when
            // the work is enqueued, as on the CPU. After that, torch works on the same stream, and
            // its allocator reuses freed memory only for later work on that stream.
            py.detach(|| unsafe { own.list.step_raw(coeffs, device::stream(*stream)) }).map_err(plain)?;
        }
        (Some(Backend::Cuda(own)), Prepared::Controlled(stream, scalars)) => {
            let OnDevice { list: own, control } = &mut **own;
            let text = || format!("the list of {} must have a control, it has none", list.device);
            let control = control.as_mut().ok_or_else(|| PyRuntimeError::new_err(text()))?;
            // SAFETY: as for `OnStream`. `gather` saw that the counters are in the memory of this
            // device too, and `scalar` that the learning rates and `scalars` are. Only this list
            // has `control`.
            py.detach(|| unsafe { own.step_controlled(&mut control.control, scalars, device::stream(*stream)) })
                .map_err(plain)?;
        }
        _ => {
            let text = format!("the tensors of {} must be taken over into a list of it before a step", list.device);
            return Err(PyRuntimeError::new_err(text));
        }
    }
    // SAFETY: `gather` saw the counters in this step. They still have their memory, and nothing
    // else uses it, for the same reasons as the tensors' memory.
    list.counters.iter().for_each(|counter| unsafe { counter.advance() });
    Ok(())
}

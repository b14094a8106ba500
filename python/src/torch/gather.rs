//! The first half of a step: each parameter is looked at and goes into its device's list.

use dualadam::{Dtype, RawBuffer, RawTensor};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::dlpack::{CPU, CUDA, Device, Tensor};
use crate::layout::{is_dense, is_same};

use super::Place;
use super::counter::Counter;
use super::group::Group;
use super::known::Known;
use super::list::List;
use super::state::{EXP_AVG, EXP_AVG_SQ, Entries, MASTER, STEP, States};
use super::stepper::Steps;

/// One parameter in the course of a step.
#[derive(Clone, Copy)]
struct At {
    place: Place,
    /// Position among the parameters of all groups.
    flat: usize,
    has_masters: bool,
}

impl At {
    /// Whether a parameter of this type has a master here.
    fn has_master(&self, param: Dtype) -> bool {
        self.has_masters && param != Dtype::F32
    }
}

impl Steps {
    /// Looks at all parameters. Returns the places of those that are not in order.
    pub(super) fn gather(
        &mut self,
        py: Python<'_>,
        state: &Bound<'_, PyDict>,
        groups: &[Group<'_>],
        grads: Option<&Bound<'_, PyDict>>,
        is_controlled: bool,
    ) -> PyResult<Vec<Place>> {
        self.lists.iter_mut().for_each(List::clear);
        self.known.resize_with(groups.iter().map(|group| group.params.len()).sum(), || None);
        let mut states = States::new(state);
        let (mut odd, mut flat) = (Vec::new(), 0);
        for (group_index, group) in groups.iter().enumerate() {
            for index in 0..group.params.len() {
                let at = At { place: (group_index, index), flat, has_masters: group.has_masters };
                flat += 1;
                // SAFETY: `params` is a live list. It lends the object that it returns; beyond its
                // end, it returns null and sets an exception.
                let param = unsafe { ffi::PyList_GetItem(group.params.as_ptr(), index as isize) };
                let state = states.of(param);
                if grads.is_none() && self.gather_known(py, at, param, state)? {
                    continue;
                }
                // SAFETY: `param` is null with an exception set, or lent by the list, which is
                // alive.
                let param = unsafe { Bound::from_borrowed_ptr_or_err(py, param) }?;
                // SAFETY: `state` is null, or lent by the dict of states, which the caller of
                // `DualAdam.step` does not change during the step.
                let state = unsafe { Bound::from_borrowed_ptr_or_opt(py, state) };
                let replaced = grads.map(|grads| grads.get_item(param.as_ptr() as usize)).transpose()?.flatten();
                let grad = replaced.map_or_else(|| self.tensors.grad_of(&param), Ok)?;
                if !self.gather_one(at, &param, grad, state)? {
                    odd.push(at.place);
                }
            }
        }
        for list in self.lists.iter().filter(|list| list.is_controlled(is_controlled)) {
            odd.extend(list.counted_on_host());
        }
        Ok(odd)
    }

    /// Puts a parameter into its device's list if it is as it was in the step before, and has a
    /// gradient like it. Returns whether it did.
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
        // `param` is a plain tensor: only such parameters become known.
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

    /// Puts a parameter into its device's list if it is in order. Returns whether it is.
    fn gather_one<'py>(
        &mut self,
        at: At,
        param: &Bound<'py, PyAny>,
        grad: Bound<'py, PyAny>,
        state: Option<Bound<'py, PyAny>>,
    ) -> PyResult<bool> {
        let py = param.py();
        if grad.is_none() {
            self.skip(at, param)?;
            return Ok(true);
        }
        let grad_now = self.tensors.look_at_grad(py, param, &grad)?;
        self.tensors.keep(grad.unbind());
        let (Some(grad_now), Some(state)) = (grad_now, state) else { return Ok(false) };
        let Some(entries) = self.names.entries(py, &state)? else { return Ok(false) };
        let Some(param_now) = self.tensors.look(py, param.as_ptr())? else { return Ok(false) };
        let Some((tensor, counter)) = self.look_at_all(py, at, &param_now, &grad_now, &entries)? else {
            return Ok(false);
        };
        let known = &mut self.known[at.flat];
        let before = known.take().filter(|known| known.is_of(param.as_ptr(), at.has_masters));
        *known = before
            .and_then(|before| before.renewed(&entries, &param_now, tensor))
            .or_else(|| Known::new(&self.tensors, param, &entries, &param_now, tensor, at.has_masters));
        self.tensors.keep(state.unbind());
        self.list_of(param_now.device).push(at.place, tensor, counter);
        Ok(true)
    }

    /// Puts a parameter without a gradient into its device's list, if the kernels take its type.
    fn skip(&mut self, at: At, param: &Bound<'_, PyAny>) -> PyResult<()> {
        let Some(param) = self.tensors.look(param.py(), param.as_ptr())? else { return Ok(()) };
        let Some(dtype) = param.dtype() else { return Ok(()) };
        self.list_of(param.device).push_skipped(at.place, dtype, at.has_master(dtype), param.len());
        Ok(())
    }

    /// The parameter as a list has it, if all its tensors are in order.
    fn look_at_all(
        &mut self,
        py: Python<'_>,
        at: At,
        param: &Tensor,
        grad: &Tensor,
        entries: &Entries,
    ) -> PyResult<Option<(RawTensor, Counter)>> {
        let (Some(param_buffer), Some(grad_buffer)) = (param.buffer(), grad.buffer()) else { return Ok(None) };
        let mut look = |entry: usize| match entries[entry] {
            object if object.is_null() => Ok(None),
            object => self.tensors.look(py, object),
        };
        let (exp_avg, exp_avg_sq, step) = (look(EXP_AVG)?, look(EXP_AVG_SQ)?, look(STEP)?);
        let has_master = at.has_master(param_buffer.dtype);
        let master = if has_master { look(MASTER)? } else { None };
        let (Some(exp_avg), Some(exp_avg_sq), Some(step)) = (exp_avg, exp_avg_sq, step) else { return Ok(None) };
        let is_like = |tensor: &Tensor| tensor.device == param.device && is_same(tensor, param);
        let is_f32_like = |tensor: &Tensor| tensor.is_of(Dtype::F32) && is_like(tensor);
        let is_known_device = matches!(param.device.kind, CPU | CUDA);
        let are_moments = is_f32_like(&exp_avg) && is_f32_like(&exp_avg_sq);
        if !(is_known_device && is_dense(param) && is_like(grad) && are_moments) {
            return Ok(None);
        }
        let Some(counter) = Counter::of(&step, param.device) else { return Ok(None) };
        let master = master.filter(is_f32_like).and_then(|master| master.buffer());
        if has_master && master.is_none() {
            return Ok(None);
        }
        let moments = [&exp_avg, &exp_avg_sq].map(|moment| RawBuffer::f32(moment.address()));
        let mut tensor = RawTensor::new(param.len(), param_buffer, grad_buffer, moments[0], moments[1]);
        tensor.master = master;
        // A list takes a gradient at address 0 for a missing one.
        Ok((tensor.len == 0 || grad_buffer.address != 0).then_some((tensor, counter)))
    }

    #[inline]
    fn list_of(&mut self, device: Device) -> &mut List {
        let known = self.lists.iter().position(|list| list.device == device);
        let index = known.unwrap_or_else(|| {
            self.lists.push(List::new(device));
            self.lists.len() - 1
        });
        &mut self.lists[index]
    }
}

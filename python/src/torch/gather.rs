//! The first half of a step: it looks at each parameter and puts it into the list of its device.

use dualadam::{Dtype, RawBuffer, RawTensor};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::dlpack::{CPU, CUDA, Device, Tensor};
use crate::layout::{Layout, is_dense, is_same};

use super::Place;
use super::ahead::AHEAD;
use super::counter::Counter;
use super::group::Group;
use super::known::{Known, Seen, is_aligned};
use super::list::List;
use super::masters::{Found, Version, Written};
use super::state::{EXP_AVG, EXP_AVG_SQ, Entries, MASTER, STEP, States, addresses};
use super::stepper::Steps;
use super::tensors::Plain;

/// One parameter during a step.
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

/// The plain tensors of one parameter that has a gradient and a state.
struct Parts<'py> {
    param: Plain<'py>,
    grad: Plain<'py>,
    exp_avg: Plain<'py>,
    exp_avg_sq: Plain<'py>,
    step: Plain<'py>,
    master: Option<Plain<'py>>,
    /// Of the parameter, if it has a master.
    version: Version,
}

impl Steps {
    /// Looks at all parameters. Returns the places of those that the step cannot take as they are.
    ///
    /// Python code can run here: properties of parameters that are not plain tensors, and code that
    /// the interpreter runs when an object is made or freed. It may change lists, dicts and
    /// attributes.
    pub(super) fn gather(
        &mut self,
        state: &Bound<'_, PyDict>,
        groups: &[Group<'_>],
        grads: Option<&Bound<'_, PyDict>>,
        is_controlled: bool,
    ) -> PyResult<Vec<Place>> {
        self.lists.iter_mut().for_each(List::clear);
        let counts: Vec<_> = groups.iter().map(|group| group.params.len()).collect();
        let count = counts.iter().sum();
        self.known.resize_with(count, || None);
        self.masters.begin(count);
        let mut states = States::new(state);
        let (mut odd, mut flat) = (Vec::new(), 0);
        for (group_index, (group, &group_len)) in groups.iter().zip(&counts).enumerate() {
            for index in 0..group_len {
                let at = At { place: (group_index, index), flat, has_masters: group.has_masters };
                flat += 1;
                if let Some(Some(later)) = self.known.get(at.flat + AHEAD) {
                    later.fetch_ahead();
                }
                let param = group.params.get_item(index).map_err(|_| {
                    let text =
                        format!("group {group_index} must keep its {group_len} parameters during a step, it has");
                    PyRuntimeError::new_err(format!("{text} {}", group.params.len()))
                })?;
                let state = states.of(&param);
                if grads.is_none()
                    && let Some(state) = &state
                    && self.gather_known(at, &param, state)?
                {
                    continue;
                }
                if !self.tensors.is_tensor(&param) {
                    odd.push(at.place);
                    continue;
                }
                let replaced = grads.map(|grads| grads.get_item(param.as_ptr() as usize)).transpose()?.flatten();
                if !self.gather_one(at, &param, replaced, state)? {
                    odd.push(at.place);
                }
            }
        }
        for list in self.lists.iter().filter(|list| list.is_controlled(is_controlled)) {
            odd.extend(list.counted_on_host());
        }
        Ok(odd)
    }

    /// Puts a parameter into its device's list if it is as in the step before and its gradient is
    /// like it. Returns whether it did.
    #[inline]
    fn gather_known(&mut self, at: At, param: &Bound<'_, PyAny>, state: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Some(known) = &self.known[at.flat] else { return Ok(false) };
        if !known.is_of(param, at.has_masters) {
            return Ok(false);
        }
        // `param` is a plain tensor: only such parameters become known.
        if let Some(written) = known.written() {
            let is_version = written.is_version(self.tensors.version_of_plain(param)?);
            if !is_version || !self.masters.is_as_written(param.py(), at.flat, written)? {
                return Ok(false);
            }
        }
        let Some(grad) = self.tensors.grad_of_plain(param)? else { return Ok(false) };
        let Some((tensor, counter)) = known.recognise(&self.tensors, &self.names.addresses(state), &grad) else {
            return Ok(false);
        };
        let device = known.device();
        self.tensors.keep(grad.unbind());
        self.list_of(device).push(at.place, tensor, counter);
        Ok(true)
    }

    /// Puts a parameter into its device's list if it is in order. Returns whether it is. `replaced`
    /// is the plain tensor that stands for its gradient, if that was replaced.
    fn gather_one<'py>(
        &mut self,
        at: At,
        param: &Bound<'py, PyAny>,
        replaced: Option<Bound<'py, PyAny>>,
        state: Option<Bound<'py, PyAny>>,
    ) -> PyResult<bool> {
        // First what may run Python code. The tensors are looked at after that.
        let grad = match replaced {
            Some(plain) => self.tensors.plain(&plain)?,
            None => {
                let grad = self.tensors.grad_of(param)?;
                if grad.is_none() {
                    self.skip(at, param)?;
                    return Ok(true);
                }
                if state.is_none() {
                    return Ok(false);
                }
                self.tensors.plain_grad(param, &grad)?
            }
        };
        let (Some(grad), Some(state)) = (grad, state) else { return Ok(false) };
        let Some((parts, entries)) = self.parts(at, param, grad, &state)? else { return Ok(false) };
        let Some((seen, counter)) = self.look_at_all(at, &parts) else { return Ok(false) };
        let Seen { device, tensor, written, .. } = seen;
        match tensor.master.zip(written) {
            Some((master, written)) => {
                let (flat, len, buffer) = (at.flat, tensor.len, tensor.param);
                let plain = parts.param.object().clone().unbind();
                self.masters.note(param.py(), Found { flat, param: plain, device, len, buffer, master, written })?;
            }
            None => self.masters.forget(at.flat),
        }
        let before = self.known[at.flat].take();
        let before =
            before.filter(|known| known.is_of(param, at.has_masters) && known.has_entries(&addresses(&entries)));
        self.known[at.flat] = match before {
            Some(before) => before.renewed(seen),
            None => Known::new(&self.tensors, param, &state, entries, seen, at.has_masters),
        };
        self.list_of(device).push(at.place, tensor, counter);
        Ok(true)
    }

    /// Puts a parameter without a gradient into its device's list, if the kernels take its type.
    fn skip(&mut self, at: At, param: &Bound<'_, PyAny>) -> PyResult<()> {
        let Some(param) = self.tensors.plain(param)? else { return Ok(()) };
        let Some(param) = self.tensors.look(&param) else { return Ok(()) };
        let Some(dtype) = param.dtype() else { return Ok(()) };
        self.list_of(param.device).push_skipped(at.place, dtype, at.has_master(dtype), param.len());
        Ok(())
    }

    /// The plain tensors of a parameter, and the objects in its state. None if a tensor is missing.
    fn parts<'py>(
        &mut self,
        at: At,
        param: &Bound<'py, PyAny>,
        grad: Plain<'py>,
        state: &Bound<'py, PyAny>,
    ) -> PyResult<Option<(Parts<'py>, Entries<'py>)>> {
        let Some(entries) = self.names.entries(state)? else { return Ok(None) };
        let object = param;
        let Some(param) = self.tensors.plain(object)? else { return Ok(None) };
        let dtype = self.tensors.look(&param).and_then(|param| param.dtype());
        let mut plain = |entry: usize| match &entries[entry] {
            Some(object) => self.tensors.plain(object),
            None => Ok(None),
        };
        let (exp_avg, exp_avg_sq, step) = (plain(EXP_AVG)?, plain(EXP_AVG_SQ)?, plain(STEP)?);
        let master = if dtype.is_some_and(|dtype| at.has_master(dtype)) { plain(MASTER)? } else { None };
        let version = if master.is_some() { self.tensors.version_of(object, &param)? } else { None };
        let (Some(exp_avg), Some(exp_avg_sq), Some(step)) = (exp_avg, exp_avg_sq, step) else { return Ok(None) };
        Ok(Some((Parts { param, grad, exp_avg, exp_avg_sq, step, master, version }, entries)))
    }

    /// The parameter as it is at this moment, if all its tensors are in order. No Python code runs.
    fn look_at_all(&self, at: At, parts: &Parts<'_>) -> Option<(Seen, Counter)> {
        let look = |part| self.tensors.look(part);
        let (param, grad, step) = (look(&parts.param)?, look(&parts.grad)?, look(&parts.step)?);
        let (exp_avg, exp_avg_sq) = (look(&parts.exp_avg)?, look(&parts.exp_avg_sq)?);
        let (param_buffer, grad_buffer) = (param.buffer()?, grad.buffer()?);
        let is_like = |tensor: &Tensor| tensor.device == param.device && is_same(tensor, &param);
        let is_f32_like = |tensor: &Tensor| tensor.is_of(Dtype::F32) && is_like(tensor);
        let is_known_device = matches!(param.device.kind, CPU | CUDA);
        let are_moments = is_f32_like(&exp_avg) && is_f32_like(&exp_avg_sq);
        if !(is_known_device && is_dense(&param) && is_like(&grad) && are_moments) {
            return None;
        }
        // SAFETY: `parts` has a reference to the counter, and no other code has run since it was
        // looked at. No storage is smaller than its tensor (required by the README's limits).
        let counter = unsafe { Counter::of(&step, param.device) }?;
        let moments = [&exp_avg, &exp_avg_sq].map(|moment| RawBuffer::f32(moment.address()));
        let mut tensor = RawTensor::new(param.len(), param_buffer, grad_buffer, moments[0], moments[1]);
        if at.has_master(param_buffer.dtype) {
            let master = parts.master.as_ref().and_then(look).filter(is_f32_like);
            tensor.master = Some(master.and_then(|master| master.buffer())?);
        }
        let buffers = [Some(param_buffer), Some(grad_buffer), Some(moments[0]), Some(moments[1]), tensor.master];
        // A list takes a gradient at address 0 for a missing one.
        let is_there = tensor.len == 0 || grad_buffer.address != 0;
        if !is_there || !buffers.into_iter().flatten().all(is_aligned) {
            return None;
        }
        let (device, layout) = (param.device, Layout::of(&param));
        let written = tensor.master.and_then(|_| Written::of(&param, parts.version));
        Some((Seen { device, layout, tensor, written, counter: step.address() }, counter))
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

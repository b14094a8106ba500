//! The parameters of one device, and the list of the library's that steps them.

use std::collections::HashMap;

use dualadam::{Dtype, DualAdamConfig, Error, RawBuffer, RawTensor, StepCoeffs, cpu, cuda};
use pyo3::PyResult;

use crate::device;
use crate::dlpack::{CPU, CUDA, Device};
use crate::raw::raw_tensor;

use super::Place;
use super::control::DeviceControl;
use super::counter::Counter;

/// What a list's kind of memory needs for its steps.
pub(super) enum Backend {
    Cpu(cpu::TensorList),
    Cuda(Box<OnDevice>),
}

/// A list in a device's memory, and its control once a step needed one.
pub(super) struct OnDevice {
    pub(super) list: cuda::TensorList,
    pub(super) control: Option<DeviceControl>,
}

/// The parameters of one device, as the step under way found them, and the list that the last step
/// made of them.
pub(super) struct List {
    pub(super) device: Device,
    pub(super) tensors: Vec<RawTensor>,
    pub(super) places: Vec<Place>,
    pub(super) counters: Vec<Counter>,
    pub(super) sets: Vec<StepCoeffs>,
    pub(super) backend: Option<Backend>,
}

impl List {
    pub(super) fn new(device: Device) -> Self {
        let (tensors, places, counters) = (Vec::new(), Vec::new(), Vec::new());
        Self { device, tensors, places, counters, sets: Vec::new(), backend: None }
    }

    pub(super) fn clear(&mut self) {
        self.tensors.clear();
        self.places.clear();
        self.counters.clear();
        self.sets.clear();
    }

    #[inline]
    pub(super) fn push(&mut self, place: Place, tensor: RawTensor, counter: Counter) {
        self.tensors.push(tensor);
        self.places.push(place);
        self.counters.push(counter);
    }

    /// Pushes a tensor without a gradient. It stays in the list, so that the list is not rebuilt.
    pub(super) fn push_skipped(&mut self, place: Place, param: Dtype, has_master: bool, len: u64) {
        let of = |dtype| RawBuffer { address: 0, dtype };
        let before = match &self.backend {
            Some(Backend::Cpu(list)) => list.tensors(),
            Some(Backend::Cuda(own)) => own.list.tensors(),
            None => &[],
        };
        let before = before.get(self.tensors.len()).filter(|before| before.len == len);
        let grad = before.map_or(param, |before| before.grads.dtype);
        let master = has_master.then(|| of(Dtype::F32));
        self.push(place, raw_tensor(of(param), of(grad), [0, 0], master, len), Counter::Unused);
    }

    pub(super) fn has_gradients(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.grads.address != 0)
    }

    /// Whether the device forms the coefficients: if the step asks for it, or the device counts.
    pub(super) fn is_controlled(&self, is_asked_for: bool) -> bool {
        let is_counted_there = || self.counters.iter().any(|counter| matches!(counter, Counter::Device(_)));
        self.device.kind == CUDA && (is_asked_for || is_counted_there())
    }

    /// The parameters whose steps the host counts.
    pub(super) fn counted_on_host(&self) -> impl Iterator<Item = Place> {
        let counters = self.places.iter().zip(&self.counters);
        counters.filter(|(_, counter)| counter.steps().is_some()).map(|(&place, _)| place)
    }

    /// Gives each tensor the coefficients of its group and step.
    pub(super) fn form_sets(&mut self, configs: &[DualAdamConfig], multiplier: f64) -> Result<(), (usize, Error)> {
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
    pub(super) fn number_sets(&mut self) {
        self.tensors.iter_mut().enumerate().for_each(|(index, tensor)| tensor.set = index);
    }

    /// Takes the tensors over into the list, or into a new one, for steps on `stream` if they are
    /// on a device. This checks them all, and steps nothing.
    pub(super) fn take_over(&mut self, stream: usize) -> PyResult<Result<(), Error>> {
        let tensors = &self.tensors;
        let updated = match &mut self.backend {
            Some(Backend::Cpu(list)) => list.update(tensors),
            Some(Backend::Cuda(own)) => own.list.update(tensors),
            None => Err(Error::Empty { list: "tensors" }),
        };
        match updated {
            Err(Error::Empty { .. } | Error::Count { .. } | Error::Fixed { .. }) => {}
            answer => return Ok(answer),
        }
        let made = if self.device.kind == CPU {
            cpu::TensorList::new(tensors).map(Backend::Cpu)
        } else {
            let kernels = device::kernels(self.device.id)?;
            let what = "the first step of an optimizer, or of tensors with other types or shapes,";
            device::refuse_capture(&kernels, stream, what)?;
            cuda::TensorList::new(&kernels, tensors)
                .map(|list| Backend::Cuda(Box::new(OnDevice { list, control: None })))
        };
        Ok(made.map(|made| self.backend = Some(made)))
    }
}

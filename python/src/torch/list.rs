//! The parameters of one device, and the list of the library's that steps them.

use dualadam::{CoeffsTable, Dtype, DualAdamConfig, Error, ListError, RawBuffer, RawTensor, TensorProblem, cpu, cuda};
use pyo3::PyResult;

use crate::device;
use crate::dlpack::{CPU, CUDA, Device};

use super::Place;
use super::control::DeviceControl;
use super::counter::Counter;

/// The library's list, by kind of memory.
pub(super) enum Backend {
    Cpu(cpu::TensorList),
    Cuda(Box<OnDevice>),
}

/// A list in a device's memory, and its control once a step needed one.
pub(super) struct OnDevice {
    pub(super) list: cuda::TensorList,
    pub(super) control: Option<DeviceControl>,
}

/// The parameters of one device as the current step found them, and the list that the last step
/// made of them.
pub(super) struct List {
    pub(super) device: Device,
    pub(super) tensors: Vec<RawTensor>,
    pub(super) places: Vec<Place>,
    pub(super) counters: Vec<Counter>,
    pub(super) table: CoeffsTable,
    pub(super) backend: Option<Backend>,
}

impl List {
    pub(super) fn new(device: Device) -> Self {
        let (tensors, places, counters) = (Vec::new(), Vec::new(), Vec::new());
        Self { device, tensors, places, counters, table: CoeffsTable::default(), backend: None }
    }

    pub(super) fn clear(&mut self) {
        self.tensors.clear();
        self.places.clear();
        self.counters.clear();
        self.table.clear();
    }

    #[inline]
    pub(super) fn push(&mut self, place: Place, tensor: RawTensor, counter: Counter) {
        self.tensors.push(tensor);
        self.places.push(place);
        self.counters.push(counter);
    }

    /// Pushes a tensor without a gradient. It stays in the list, so that the list is not rebuilt.
    pub(super) fn push_skipped(&mut self, place: Place, param: Dtype, has_master: bool, len: u64) {
        let of = |dtype| RawBuffer::new(0, dtype);
        let before = match &self.backend {
            Some(Backend::Cpu(list)) => list.tensors(),
            Some(Backend::Cuda(own)) => own.list.tensors(),
            None => &[],
        };
        let before = before.get(self.tensors.len()).filter(|before| before.len == len);
        let grad = before.map_or(param, |before| before.grad.dtype);
        let mut tensor = RawTensor::new(len, of(param), of(grad), of(Dtype::F32), of(Dtype::F32));
        tensor.master = has_master.then(|| of(Dtype::F32));
        self.push(place, tensor, Counter::Unused);
    }

    pub(super) fn has_gradients(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.grad.address != 0)
    }

    /// Whether the device forms the coefficients: because the step asks for it, or because a
    /// counter is on the device.
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
    pub(super) fn form_coeffs(&mut self, configs: &[DualAdamConfig], multiplier: f64) -> Result<(), (usize, Error)> {
        for (index, tensor) in self.tensors.iter_mut().enumerate() {
            let Some(steps) = self.counters[index].steps() else { continue };
            let coeffs_index = self.table.index(configs, self.places[index].0, steps + 1, multiplier);
            tensor.coeffs_index = coeffs_index.map_err(|error| (index, error.into()))?;
        }
        Ok(())
    }

    /// Gives each tensor coefficients of its own, which the device forms.
    pub(super) fn number_coeffs(&mut self) {
        self.tensors.iter_mut().enumerate().for_each(|(index, tensor)| tensor.coeffs_index = index);
    }

    /// Gives the tensors to the list, or makes a new list of them. Checks all of them and steps
    /// nothing. On a device, the steps will be on `stream`.
    pub(super) fn take_over(&mut self, stream: usize) -> PyResult<Result<(), Error>> {
        let updated = match &mut self.backend {
            Some(Backend::Cpu(list)) => list.update(&self.tensors).map_err(Error::from),
            Some(Backend::Cuda(own)) => own.list.update(&self.tensors).map_err(Error::from),
            None => return self.make(stream),
        };
        match updated {
            Err(error) if is_another_list(&error) => self.make(stream),
            answer => Ok(answer),
        }
    }

    /// Makes a new list of the tensors.
    fn make(&mut self, stream: usize) -> PyResult<Result<(), Error>> {
        let tensors = &self.tensors;
        let made = if self.device.kind == CPU {
            cpu::TensorList::new(tensors).map(Backend::Cpu).map_err(Error::from)
        } else {
            let kernels = device::kernels(self.device.id)?;
            let what = "the first step of an optimizer, or of tensors with other types or shapes,";
            device::refuse_capture(&kernels, stream, what)?;
            let made = cuda::TensorList::new(&kernels, tensors).map_err(Error::from);
            made.map(|list| Backend::Cuda(Box::new(OnDevice { list, control: None })))
        };
        Ok(made.map(|made| self.backend = Some(made)))
    }
}

/// Whether the tensors differ from those that the list was made of.
fn is_another_list(error: &Error) -> bool {
    match error {
        Error::List(error) => matches!(error, ListError::Count { .. }),
        Error::Tensor(error) => {
            matches!(error.problem, TensorProblem::FixedLength { .. } | TensorProblem::FixedFormats { .. })
        }
        _ => false,
    }
}

//! The parameters of one device as a list of the library's, and what its steps need.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr;

use dualadam::cuda::{self, Control, ControlGroup, ControlSet, Kernels};
use dualadam::{Dtype, DualAdamConfig, Error, RawBuffer, RawTensor, StepCoeffs, cpu};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::dlpack::{CPU, Device};
use crate::errors::plain;
use crate::step::kernels;

use super::Place;
use super::state::Counter;

/// What a list's kind of memory needs for its steps.
pub(super) enum Backend {
    Cpu(cpu::TensorList),
    Cuda(Box<OnDevice>),
}

/// A list in a device's memory, and its control once there was need of one.
pub(super) struct OnDevice {
    pub(super) list: cuda::TensorList,
    pub(super) control: Option<DeviceControl>,
}

/// The coefficients' place on the device, and what it was made from.
pub(super) struct DeviceControl {
    pub(super) control: Control,
    groups: Vec<ControlGroup>,
    sets: Vec<ControlSet>,
}

/// The parameters of one device, as they are in the step under way, and the list that they made in the last one.
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

    pub(super) fn push(&mut self, place: Place, tensor: RawTensor, counter: Counter) {
        self.tensors.push(tensor);
        self.places.push(place);
        self.counters.push(counter);
    }

    /// A tensor without a gradient: it stays in the list, so that this does not become another.
    pub(super) fn push_left_alone(&mut self, place: Place, params: Dtype, copy: Option<Dtype>, len: u64) {
        let of = |dtype| RawBuffer { address: 0, dtype };
        let before = match &self.backend {
            Some(Backend::Cpu(list)) => list.tensors(),
            Some(Backend::Cuda(own)) => own.list.tensors(),
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

    pub(super) fn has_gradients(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.grads.address != 0)
    }

    pub(super) fn is_counted_on_device(&self) -> bool {
        self.counters.iter().any(|counter| matches!(counter, Counter::Device(_)))
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

    /// Takes the tensors over into the list, or into a new one, for steps on `stream` where they are on a device. All is checked then,
    /// and nothing is stepped.
    pub(super) fn take_over(&mut self, stream: usize) -> PyResult<Result<(), Error>> {
        let tensors = &self.tensors;
        let updated = match &mut self.backend {
            Some(Backend::Cpu(list)) => list.update(tensors),
            Some(Backend::Cuda(own)) => own.list.update(tensors),
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
            refuse_capture(
                &kernels,
                stream,
                "the first step of an optimizer, or of tensors with other types or shapes,",
            )?;
            cuda::TensorList::new(&kernels, tensors)
                .map(|list| Backend::Cuda(Box::new(OnDevice { list, control: None })))
        };
        Ok(made.map(|made| self.backend = Some(made)))
    }
}

pub(super) fn pointer(stream: usize) -> *mut c_void {
    ptr::with_exposed_provenance_mut(stream)
}

/// Fails if what is enqueued on a stream would go into a graph.
fn refuse_capture(kernels: &Kernels, stream: usize, what: &'static str) -> PyResult<()> {
    // SAFETY: torch's current stream, which lives as long as torch.
    let is_captured = unsafe { kernels.is_captured(pointer(stream)) }.map_err(plain)?;
    if is_captured { Err(plain(Error::Captured { what })) } else { Ok(()) }
}

/// Makes a control anew where the old one does not fit any more; brings its configs up to date where it does.
pub(super) fn control_for(
    device: Device,
    groups: Vec<ControlGroup>,
    old: &mut Option<DeviceControl>,
    places: &[Place],
    counters: &[Counter],
    stream: usize,
) -> PyResult<()> {
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
            return Ok(());
        }
    }
    let kernels = kernels(device.id)?;
    refuse_capture(
        &kernels,
        stream,
        "the first capturable step of an optimizer, or one with other step or lr tensors,",
    )?;
    let control = Control::new(&kernels, &groups, &sets).map_err(plain)?;
    *old = Some(DeviceControl { control, groups, sets });
    Ok(())
}

//! Steps on CUDA whose coefficients the device forms.

use dualadam::cuda::{Control, ControlGroup, ControlSet};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;

use crate::device;
use crate::dlpack::Device;
use crate::errors::plain;

use super::Place;
use super::counter::Counter;

/// The control block of one list, and what it was made from.
pub(super) struct DeviceControl {
    pub(super) control: Control,
    groups: Vec<ControlGroup>,
    sets: Vec<ControlSet>,
}

/// Brings the configs of a control up to date, or makes a new one if the old one does not fit.
pub(super) fn control_for(
    device: Device,
    groups: Vec<ControlGroup>,
    old: &mut Option<DeviceControl>,
    places: &[Place],
    counters: &[Counter],
    stream: usize,
    name_of: impl Fn(Place) -> PyResult<String>,
) -> PyResult<()> {
    let before = |index: usize| old.as_ref().and_then(|old| old.sets.get(index)).and_then(|set| set.step);
    let step = |(index, counter): (usize, &Counter)| match *counter {
        Counter::Device(address) => Ok(Some(address)),
        Counter::Unused => Ok(before(index)),
        _ => {
            let text = format!("step of {} must be on {device}, it is on the host", name_of(places[index])?);
            Err(PyRuntimeError::new_err(text))
        }
    };
    let steps = counters.iter().enumerate().map(step).collect::<PyResult<Vec<_>>>()?;
    let set = |(place, step): (&Place, Option<u64>)| {
        let mut set = ControlSet::new(place.0);
        set.step = step;
        set
    };
    let sets: Vec<_> = places.iter().zip(steps).map(set).collect();
    if let Some(old) = old {
        let same_lrs = old.groups.len() == groups.len() && old.groups.iter().zip(&groups).all(|(a, b)| a.lr == b.lr);
        if same_lrs && old.sets == sets {
            for (index, (old_group, group)) in old.groups.iter_mut().zip(&groups).enumerate() {
                if old_group.config != group.config {
                    // SAFETY: `stream` is torch's current stream in this step, so it is live. All
                    // steps with this control are on torch's current streams, which are ordered
                    // (required by the documentation of `DualAdam.step`).
                    unsafe { old.control.set_config(index, group.config, device::stream(stream)) }.map_err(plain)?;
                    *old_group = *group;
                }
            }
            return Ok(());
        }
    }
    let kernels = device::kernels(device.id)?;
    let what = "the first capturable step of an optimizer, or one with other step or lr tensors,";
    device::refuse_capture(&kernels, stream, what)?;
    let control = Control::new(&kernels, &groups, &sets).map_err(plain)?;
    *old = Some(DeviceControl { control, groups, sets });
    Ok(())
}

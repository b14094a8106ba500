//! Masters whose parameters other code has written.
//!
//! A step with masters overwrites the parameters. If other code wrote into a parameter since the
//! last step, its master first takes over the elements that changed.

use std::hash::{DefaultHasher, Hash, Hasher};

use dualadam::{RawBuffer, RawTensor, cpu};
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;

use crate::device;
use crate::dlpack::{CPU, CUDA, Device, Tensor};
use crate::errors::plain;
use crate::layout::is_same;
use crate::threads::Workers;

use super::stepper::Steps;

/// What tells whether a parameter is as a step left it, apart from its storage.
///
/// It does not see what is written without an operation of torch's that counts changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Written {
    buffer: RawBuffer,
    /// A hash of the shape and the strides.
    layout: u64,
    /// torch's count of changes in place.
    version: Option<u64>,
}

impl Written {
    /// Of a parameter that has a type with kernels.
    pub(super) fn of(param: &Tensor, version: Option<u64>) -> Option<Self> {
        let mut hasher = DefaultHasher::new();
        (param.shape(), param.strides()).hash(&mut hasher);
        Some(Self { buffer: param.buffer()?, layout: hasher.finish(), version })
    }

    pub(super) fn is_version(&self, version: Option<u64>) -> bool {
        self.version == version
    }
}

/// A parameter as a step or a sync left it.
pub(super) struct Mark {
    written: Written,
    /// A weak reference to the storage. If the storage was freed, another may have its address.
    storage: Py<PyAny>,
}

impl Mark {
    fn new(weak_storage: &Bound<'_, PyAny>, param: &Bound<'_, PyAny>, written: Written) -> PyResult<Self> {
        Ok(Self { written, storage: weak_storage.call1((param,))?.unbind() })
    }

    /// Whether a parameter is as it was.
    pub(super) fn is_of(&self, py: Python<'_>, written: Written) -> bool {
        let has_expired = || self.storage.call_method0(py, intern!(py, "expired"))?.is_truthy(py);
        self.written == written && !has_expired().unwrap_or(true)
    }
}

/// A parameter that is not as the last step left it, or is new.
pub(super) struct Changed {
    /// Position among the parameters of all groups.
    pub(super) flat: usize,
    /// The parameter, as a plain tensor.
    pub(super) param: Py<PyAny>,
    pub(super) device: Device,
    pub(super) tensor: RawTensor,
    pub(super) master: RawBuffer,
    pub(super) written: Written,
}

/// A parameter that has a master, by its position among those of all groups, and the master.
pub(super) type Pair<'py> = (usize, Bound<'py, PyAny>, Bound<'py, PyAny>);

impl Steps {
    /// Whether a parameter with a master is as the last step or sync left it.
    pub(super) fn is_as_written(&self, py: Python<'_>, flat: usize, written: Written) -> bool {
        self.written[flat].as_ref().is_some_and(|mark| mark.is_of(py, written))
    }

    /// Brings the masters of changed parameters up to date.
    pub(super) fn sync_changed(&mut self, py: Python<'_>) -> PyResult<()> {
        for changed in std::mem::take(&mut self.changed) {
            let Changed { flat, param, device, tensor, master, written } = changed;
            // SAFETY: `gather` saw the tensors in this step, with these types, lengths and
            // addresses, and nothing else uses them, as for the step itself (`run_one`).
            unsafe { self.sync(py, device, tensor.len, tensor.param, master) }?;
            self.written[flat] = Some(Mark::new(self.weak_storage.bind(py), param.bind(py), written)?);
        }
        Ok(())
    }

    /// Brings masters up to date. All pairs are looked at first.
    pub(super) fn sync_pairs(&mut self, py: Python<'_>, pairs: &[Pair<'_>]) -> PyResult<()> {
        let text = "a master must be a float32 tensor with the shape, strides and device of its parameter";
        let mut found = Vec::with_capacity(pairs.len());
        for (flat, param, master) in pairs {
            let (Some(param), Some(master)) = (self.tensors.plain(param)?, self.tensors.plain(master)?) else {
                return Err(PyValueError::new_err(text));
            };
            let version = self.tensors.version_of(param.object());
            found.push((*flat, param, master, version));
        }
        let looks = found.iter().map(|(_, param, master, version)| {
            let (param, master) = (self.tensors.look(param)?, self.tensors.look(master)?);
            let is_like = param.device == master.device && is_same(&param, &master);
            let is_known_device = matches!(param.device.kind, CPU | CUDA);
            let buffers = (param.device, param.len(), param.buffer()?, master.buffer()?);
            (is_like && is_known_device).then_some((buffers, Written::of(&param, *version)?))
        });
        let looks: Option<Vec<_>> = looks.collect();
        let looks = looks.ok_or_else(|| PyValueError::new_err(text))?;
        for ((flat, param, ..), ((device, len, buffer, master), written)) in found.iter().zip(looks) {
            // SAFETY: the tensors have these types and lengths, and `Tensors::keep` has references
            // to them. Nothing else uses their memory during the call (required by the
            // documentation of `DualAdam.sync_masters`). No storage is smaller than its tensor
            // (required by the README's limits).
            unsafe { self.sync(py, device, len, buffer, master) }?;
            self.written.resize_with(self.written.len().max(flat + 1), || None);
            self.written[*flat] = Some(Mark::new(self.weak_storage.bind(py), param.object(), written)?);
        }
        Ok(())
    }

    /// Brings one master up to date, on CUDA on torch's current stream.
    ///
    /// # Safety
    ///
    /// - The buffers are live memory of the device, with `len` elements of their types.
    /// - Nothing else uses them until the work is done.
    unsafe fn sync(
        &self,
        py: Python<'_>,
        device: Device,
        len: u64,
        param: RawBuffer,
        master: RawBuffer,
    ) -> PyResult<()> {
        if device.kind == CPU {
            let workers = Workers::beside_torch(py, len, self.openmp, || self.threads(py))?;
            let share = |parts, sync_part: &(dyn Fn(usize) + Send + Sync)| workers.share(parts, sync_part);
            // SAFETY: as this function's requirements. `share` calls the function once with each
            // number.
            return py.detach(|| unsafe { cpu::sync_master_raw_with(len, param, master, share) }).map_err(plain);
        }
        let kernels = device::kernels(device.id)?;
        let stream = self.tensors.exchange.current_stream(py, device)?;
        // SAFETY: as this function's requirements, and torch's current stream is live.
        unsafe { kernels.sync_master_raw(len, param, master, stream) }.map_err(plain)
    }
}

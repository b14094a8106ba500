//! Masters whose parameters other code has written.
//!
//! A step with masters overwrites the parameters. If other code wrote into a parameter since the
//! last step, its master first takes over the elements that changed.

use std::hash::{DefaultHasher, Hash, Hasher};

use dualadam::{RawBuffer, RawTensor, cpu};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::device;
use crate::dlpack::{CPU, CUDA, Device, Tensor};
use crate::errors::plain;
use crate::layout::is_same;
use crate::threads::Workers;

use super::stepper::Steps;

/// What tells whether a parameter is as a step left it.
///
/// It does not see what is written without an operation of torch's on the parameter itself: through
/// `.data`, in a CUDA graph, into inference tensors.
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

/// A parameter that is not as the last step left it, or is new.
#[derive(Debug, Clone, Copy)]
pub(super) struct Changed {
    /// Position among the parameters of all groups.
    pub(super) flat: usize,
    pub(super) device: Device,
    pub(super) tensor: RawTensor,
    pub(super) master: RawBuffer,
    pub(super) written: Written,
}

impl Steps {
    /// Brings the masters of changed parameters up to date.
    pub(super) fn sync_changed(&mut self, py: Python<'_>) -> PyResult<()> {
        for changed in std::mem::take(&mut self.changed) {
            let Changed { flat, device, tensor, master, written } = changed;
            // SAFETY: `gather` saw the tensors in this step, with these types, lengths and
            // addresses, and nothing else uses them, as for the step itself (`run_one`).
            unsafe { self.sync(py, device, tensor.len, tensor.param, master) }?;
            self.written[flat] = Some(written);
        }
        Ok(())
    }

    /// Brings masters up to date. Nothing is written if a pair does not fit.
    pub(super) fn sync_pairs(
        &mut self,
        py: Python<'_>,
        pairs: &[(Bound<'_, PyAny>, Bound<'_, PyAny>)],
    ) -> PyResult<()> {
        let text = "a master must be a float32 tensor with the shape, strides and device of its parameter";
        let mut found = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let (Some(param), Some(master)) = (self.tensors.plain(&pair.0)?, self.tensors.plain(&pair.1)?) else {
                return Err(PyValueError::new_err(text));
            };
            found.push((param, master));
        }
        let look = |(param, master)| {
            let (param, master) = (self.tensors.look(param)?, self.tensors.look(master)?);
            let is_like = param.device == master.device && is_same(&param, &master);
            let is_known_device = matches!(param.device.kind, CPU | CUDA);
            (is_like && is_known_device).then_some((param.device, param.len(), param.buffer()?, master.buffer()?))
        };
        let looks: Option<Vec<_>> = found.iter().map(|(param, master)| look((param, master))).collect();
        let looks = looks.ok_or_else(|| PyValueError::new_err(text))?;
        // The masters will no longer be those of the parameters that the last step wrote.
        self.written.fill(None);
        for (device, len, param, master) in looks {
            // SAFETY: the tensors have these types and lengths, and `Tensors::keep` has references
            // to them. Nothing else uses their memory during the call (required by the
            // documentation of `DualAdam.sync_masters`). No storage is smaller than its tensor
            // (required by the README's limits).
            unsafe { self.sync(py, device, len, param, master) }?;
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

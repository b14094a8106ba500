//! Masters whose parameters other code has written.
//!
//! A step with masters overwrites the parameters. If other code wrote into a parameter since the
//! last step, its master first takes over the elements that changed.

use std::hash::{DefaultHasher, Hash, Hasher};

use dualadam::{RawBuffer, cpu};
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
    version: Version,
}

/// torch's counts of changes in place: of a parameter, and of the plain tensor behind it. None of
/// inference tensors, for which torch does not count.
pub(super) type Version = Option<(u64, u64)>;

impl Written {
    /// Of a parameter that has a type with kernels.
    pub(super) fn of(param: &Tensor, version: Version) -> Option<Self> {
        let mut hasher = DefaultHasher::new();
        (param.shape(), param.strides()).hash(&mut hasher);
        Some(Self { buffer: param.buffer()?, layout: hasher.finish(), version })
    }

    pub(super) fn is_version(&self, version: Version) -> bool {
        self.version == version
    }
}

/// A parameter as a step or a sync left it.
struct Mark {
    written: Written,
    /// A weak reference to the storage. If the storage was freed, another may have its address.
    _storage: Py<PyAny>,
    /// The number that stands for the storage while there is a weak reference.
    number: Py<PyAny>,
}

/// A parameter that has a master.
pub(super) struct Found {
    /// Position among the parameters of all groups.
    pub(super) flat: usize,
    /// The parameter, as a plain tensor.
    pub(super) param: Py<PyAny>,
    pub(super) device: Device,
    pub(super) len: u64,
    pub(super) buffer: RawBuffer,
    pub(super) master: RawBuffer,
    pub(super) written: Written,
}

/// What is known of the parameters that have masters.
pub(super) struct Masters {
    /// Returns a weak reference to a tensor's storage. Its attribute `cdata` is the number.
    weak_storage: Py<PyAny>,
    /// Returns whether the storage with a number was freed.
    has_expired: Py<PyAny>,
    marks: Vec<Option<Mark>>,
    /// The parameters of this step that are not as the last step left them, or are new.
    changed: Vec<Found>,
}

impl Masters {
    pub(super) fn new(weak_storage: Py<PyAny>, has_expired: Py<PyAny>) -> Self {
        Self { weak_storage, has_expired, marks: Vec::new(), changed: Vec::new() }
    }

    /// Begins a step of so many parameters.
    pub(super) fn begin(&mut self, params: usize) {
        self.marks.resize_with(params, || None);
    }

    /// Ends a step, which may have failed, and drops its references to parameters.
    pub(super) fn end(&mut self) {
        self.changed.clear();
    }

    /// Forgets all parameters.
    pub(super) fn clear(&mut self) {
        self.marks.clear();
    }

    /// Whether the parameter at a position is as the last step or sync left it.
    #[inline]
    pub(super) fn is_as_written(&self, py: Python<'_>, flat: usize, written: Written) -> PyResult<bool> {
        match &self.marks[flat] {
            Some(mark) if mark.written == written => Ok(!self.has_expired.call1(py, (&mark.number,))?.is_truthy(py)?),
            _ => Ok(false),
        }
    }

    /// Notes a parameter of this step, whose master must be brought up to date if it has changed.
    pub(super) fn note(&mut self, py: Python<'_>, found: Found) -> PyResult<()> {
        if !self.is_as_written(py, found.flat, found.written)? {
            self.changed.push(found);
        }
        Ok(())
    }

    /// Forgets the parameter at a position, which has no master now.
    pub(super) fn forget(&mut self, flat: usize) {
        self.marks[flat] = None;
    }

    /// Remembers a parameter whose master is up to date.
    fn mark(&mut self, py: Python<'_>, found: &Found) -> PyResult<()> {
        let storage = self.weak_storage.call1(py, (&found.param,))?;
        let number = storage.getattr(py, intern!(py, "cdata"))?;
        self.marks.resize_with(self.marks.len().max(found.flat + 1), || None);
        self.marks[found.flat] = Some(Mark { written: found.written, _storage: storage, number });
        Ok(())
    }
}

/// A parameter that has a master, by its position among those of all groups, and the master.
pub(super) type Pair<'py> = (usize, Bound<'py, PyAny>, Bound<'py, PyAny>);

impl Steps {
    /// Brings the masters of changed parameters up to date.
    pub(super) fn sync_changed(&mut self, py: Python<'_>) -> PyResult<()> {
        std::mem::take(&mut self.masters.changed).iter().try_for_each(|found| {
            // SAFETY: `gather` saw the tensors in this step, with these types, lengths and
            // addresses, and nothing else uses them, as for the step itself (`run_one`).
            unsafe { self.sync(py, found) }
        })
    }

    /// Brings masters up to date. All pairs are looked at first.
    pub(super) fn sync_pairs(&mut self, py: Python<'_>, pairs: &[Pair<'_>]) -> PyResult<()> {
        let text = "a master must be a float32 tensor with the shape, strides and device of its parameter";
        let mut plains = Vec::with_capacity(pairs.len());
        for (flat, object, master) in pairs {
            let (Some(param), Some(master)) = (self.tensors.plain(object)?, self.tensors.plain(master)?) else {
                return Err(PyValueError::new_err(text));
            };
            let version = self.tensors.version_of(object, &param)?;
            plains.push((*flat, param, master, version));
        }
        let looks = plains.iter().map(|(flat, plain, master, version)| {
            let (param, master) = (self.tensors.look(plain)?, self.tensors.look(master)?);
            let is_like = param.device == master.device && is_same(&param, &master);
            let is_known_device = matches!(param.device.kind, CPU | CUDA);
            let found = Found {
                flat: *flat,
                param: plain.object().clone().unbind(),
                device: param.device,
                len: param.len(),
                buffer: param.buffer()?,
                master: master.buffer()?,
                written: Written::of(&param, *version)?,
            };
            (is_like && is_known_device).then_some(found)
        });
        let found: Option<Vec<_>> = looks.collect();
        found.ok_or_else(|| PyValueError::new_err(text))?.iter().try_for_each(|found| {
            // SAFETY: the tensors have these types and lengths, and `Tensors::keep` has references
            // to them. Nothing else uses their memory during the call (required by the
            // documentation of `DualAdam.sync_masters`). No storage is smaller than its tensor
            // (required by the README's limits).
            unsafe { self.sync(py, found) }
        })
    }

    /// Brings one master up to date, on CUDA on torch's current stream, and remembers it.
    ///
    /// # Safety
    ///
    /// - The buffers are live memory of the device, with `len` elements of their types.
    /// - Nothing else uses them until the work is done.
    unsafe fn sync(&mut self, py: Python<'_>, found: &Found) -> PyResult<()> {
        let &Found { device, len, buffer, master, .. } = found;
        if device.kind == CPU {
            let workers = Workers::beside_torch(py, len, self.openmp, || self.threads(py))?;
            // SAFETY: as this function's requirements. `share` calls the function once with each
            // number.
            py.detach(|| unsafe {
                cpu::sync_master_raw_with(len, buffer, master, |parts, sync_part| workers.share(parts, sync_part))
            })
            .map_err(plain)?;
        } else {
            let kernels = device::kernels(device.id)?;
            let stream = self.tensors.exchange.current_stream(py, device)?;
            // SAFETY: as this function's requirements, and torch's current stream is live.
            unsafe { kernels.sync_master_raw(len, buffer, master, stream) }.map_err(plain)?;
        }
        self.masters.mark(py, found)
    }
}

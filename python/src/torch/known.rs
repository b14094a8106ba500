//! Parameters that the next step knows again.

use dualadam::{RawBuffer, RawTensor};
use pyo3::ffi;
use pyo3::prelude::*;

use crate::dlpack::{Device, Held, Tensor};
use crate::layout::Layout;

use super::counter::Counter;
use super::state::{EXP_AVG, EXP_AVG_SQ, Entries, MASTER, STEP};
use super::tensors::Tensors;

/// A parameter that was in order. The next step compares identities and addresses to see that it
/// still is.
///
/// Its tensors are held through DLPack too. While they are held, torch's looks at them do not
/// change their ownership, which halves the cost. [`Stepper::forget`] lets go of them before anyone
/// can take them out of the state to free their memory. Their memory is not held: it can be
/// replaced, and every step asks for its address.
///
/// [`Stepper::forget`]: super::Stepper
pub(super) struct Known {
    param: Py<PyAny>,
    entries: Entries,
    /// What keeps the objects above alive.
    _objects: Vec<Py<PyAny>>,
    _held: Vec<Held>,
    has_masters: bool,
    layout: Layout,
    pub(super) device: Device,
    tensor: RawTensor,
}

impl Known {
    /// Remembers a parameter that is in order. None if it is not a plain tensor, or has too many
    /// dimensions.
    pub(super) fn new(
        tensors: &Tensors,
        param: &Bound<'_, PyAny>,
        entries: &Entries,
        now: &Tensor,
        tensor: RawTensor,
        has_masters: bool,
    ) -> Option<Self> {
        let py = param.py();
        let layout = Layout::of(now)?;
        let used = entries.iter().filter(|entry| !entry.is_null());
        // SAFETY: the parameter's state lends these objects, and nothing has changed it since.
        let mut objects: Vec<_> = used.map(|&entry| unsafe { Bound::from_borrowed_ptr(py, entry) }).collect();
        objects.push(param.clone());
        let held = objects.iter().map(|object| tensors.hold(object.as_ptr())).collect::<Option<Vec<_>>>()?;
        Some(Self {
            param: param.clone().unbind(),
            entries: *entries,
            _objects: objects.into_iter().map(Bound::unbind).collect(),
            _held: held,
            has_masters,
            layout,
            device: now.device,
            tensor,
        })
    }

    /// The same objects, in other memory or of another layout. None if there are other objects.
    pub(super) fn renewed(self, entries: &Entries, now: &Tensor, tensor: RawTensor) -> Option<Self> {
        let layout = Layout::of(now)?;
        (self.entries == *entries).then_some(Self { layout, device: now.device, tensor, ..self })
    }

    /// Whether it is about this parameter.
    #[inline]
    pub(super) fn is_of(&self, param: *mut ffi::PyObject, has_masters: bool) -> bool {
        self.param.as_ptr() == param && self.has_masters == has_masters
    }

    /// The parameter as a list has it, if it and its state are as they were, and the gradient is
    /// like it.
    ///
    /// The shapes of the parameter and the gradient are compared, those of the other tensors are
    /// not: a tensor that keeps its address can have another shape only if someone gave it one by
    /// hand, through `.data` or in place.
    #[inline]
    pub(super) fn recognise(
        &self,
        tensors: &Tensors,
        entries: &Entries,
        grad: *mut ffi::PyObject,
    ) -> Option<(RawTensor, Counter)> {
        if self.entries != *entries {
            return None;
        }
        let mut now = Tensor::EMPTY;
        let is_at = |object, buffer: RawBuffer, now: &mut Tensor| {
            // SAFETY: `object` is `param` or one of `entries`, which `_objects` keeps alive. Each
            // is a plain tensor: `new` could hold it.
            unsafe { tensors.exchange.look_into(object, now) }.then_some(())?;
            (now.address() == buffer.address && now.is_of(buffer.dtype)).then_some(())
        };
        let known = &self.tensor;
        is_at(entries[EXP_AVG], known.exp_avg, &mut now)?;
        is_at(entries[EXP_AVG_SQ], known.exp_avg_sq, &mut now)?;
        if let Some(master) = known.master {
            is_at(entries[MASTER], master, &mut now)?;
        }
        is_at(self.param.as_ptr(), known.param, &mut now)?;
        if !self.layout.is_of(&now) {
            return None;
        }
        // SAFETY: the counter is one of `entries`, which `_objects` keeps alive, and a plain
        // tensor: `new` could hold it.
        unsafe { tensors.exchange.look_into(entries[STEP], &mut now) }.then_some(())?;
        let counter = Counter::of(&now, self.device)?;
        tensors.look_at_plain(grad, &mut now)?;
        let grad = now.buffer()?;
        if now.device != self.device || !self.layout.is_of(&now) || (grad.address == 0 && known.len > 0) {
            return None;
        }
        Some((known.with_grad(grad), counter))
    }
}

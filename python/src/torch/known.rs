//! Parameters that the next step recognises.

use std::ptr;

use dualadam::{RawBuffer, RawTensor};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;

use crate::dlpack::{Device, Held, Tensor};
use crate::layout::Layout;

use super::ahead::Ahead;
use super::counter::Counter;
use super::masters::Written;
use super::state::{Addresses, ENTRIES, EXP_AVG, EXP_AVG_SQ, Entries, MASTER, STEP};
use super::tensors::Tensors;

/// A parameter that was in order. The next step compares identities and addresses to see that it
/// still is.
///
/// It also holds the tensors of the state through DLPack, which halves the time of a look. A look
/// of torch's makes and drops a C++ reference to the tensor. If only the Python object has another,
/// torch also counts a reference to the object, for which it asks for the interpreter's lock twice.
///
/// The parameter is not held through DLPack. While C++ code holds a tensor, torch does not show the
/// garbage collector what the tensor refers to, such as hooks. A parameter may refer to its
/// optimizer; the tensors of the state have no reason to.
///
/// [`Stepper::forget`] releases the tensors before other code can take them out of the state to
/// free their memory. The memory itself is not held: it can be replaced, and every step asks for
/// its address.
///
/// [`Stepper::forget`]: super::Stepper
pub(super) struct Known {
    param: Py<PyAny>,
    entries: [Option<Py<PyAny>>; ENTRIES],
    _held: Vec<Held>,
    ahead: Ahead,
    has_masters: bool,
    seen: Seen,
}

/// A parameter as it was when all its tensors were looked at.
pub(super) struct Seen {
    pub(super) device: Device,
    /// None if the parameter has no strides or too many dimensions.
    pub(super) layout: Option<Layout>,
    pub(super) tensor: RawTensor,
    /// The memory that the step will write, if the parameter has a master.
    pub(super) written: Option<Written>,
    /// The address of the step counter.
    pub(super) counter: u64,
}

impl Known {
    /// Remembers a parameter that is in order. None if it or an object in its state is not a plain
    /// tensor, or if it has too many dimensions.
    pub(super) fn new(
        tensors: &Tensors,
        param: &Bound<'_, PyAny>,
        state: &Bound<'_, PyAny>,
        entries: Entries<'_>,
        seen: Seen,
        has_masters: bool,
    ) -> Option<Self> {
        if seen.layout.is_none() || !tensors.is_plain(param) {
            return None;
        }
        let held = entries.iter().flatten().map(|object| tensors.hold(object)).collect::<Option<Vec<_>>>()?;
        let objects = || [param].into_iter().chain(entries.iter().flatten());
        let ahead = tensors.layout.map(|layout| Ahead::of(layout, objects(), state, seen.counter)).unwrap_or_default();
        let entries = entries.map(|entry| entry.map(Bound::unbind));
        Some(Self { param: param.clone().unbind(), entries, _held: held, ahead, has_masters, seen })
    }

    /// Fetches the memory that [`recognise`](Self::recognise) will read.
    #[inline]
    pub(super) fn fetch_ahead(&self) {
        self.ahead.fetch();
    }

    /// Shows the garbage collector the references to tensors.
    pub(super) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(&self.param)?;
        self.entries.iter().flatten().try_for_each(|entry| visit.call(entry))
    }

    /// The same objects, in other memory or of another layout. None if it has too many dimensions.
    pub(super) fn renewed(self, seen: Seen) -> Option<Self> {
        seen.layout.is_some().then_some(Self { seen, ..self })
    }

    /// Whether this is the parameter that `self` remembers.
    #[inline]
    pub(super) fn is_of(&self, param: &Bound<'_, PyAny>, has_masters: bool) -> bool {
        self.param.as_ptr() == param.as_ptr() && self.has_masters == has_masters
    }

    /// Whether these are the objects in its state.
    #[inline]
    pub(super) fn has_entries(&self, addresses: &Addresses) -> bool {
        let own = |entry: &Option<Py<PyAny>>| entry.as_ref().map_or(ptr::null_mut(), |entry| entry.as_ptr());
        self.entries.iter().zip(addresses).all(|(entry, &address)| own(entry) == address)
    }

    /// The parameter as a list has it, if it and its state are as they were, and the gradient is
    /// like it. No Python code runs.
    #[inline]
    pub(super) fn recognise(
        &self,
        tensors: &Tensors,
        entries: &Addresses,
        grad: &Bound<'_, PyAny>,
    ) -> Option<(RawTensor, Counter)> {
        if !self.has_entries(entries) {
            return None;
        }
        let Seen { device, layout: Some(layout), tensor: known, .. } = &self.seen else { return None };
        let mut now = Tensor::EMPTY;
        let look = |object: &Py<PyAny>, now: &mut Tensor| {
            // SAFETY: `object` is `param` or one of `entries`, to which `self` has a reference, and
            // a plain tensor, as `new` saw. `now` is read before other code can run.
            unsafe { tensors.exchange.look_into(object.as_ptr(), now) }.then_some(())
        };
        let is_at = |object: &Py<PyAny>, buffer: RawBuffer, now: &mut Tensor| {
            look(object, now)?;
            (now.address() == buffer.address && now.is_of(buffer.dtype) && layout.is_of(now)).then_some(())
        };
        let entry = |index: usize| self.entries[index].as_ref();
        is_at(entry(EXP_AVG)?, known.exp_avg, &mut now)?;
        is_at(entry(EXP_AVG_SQ)?, known.exp_avg_sq, &mut now)?;
        if let Some(master) = known.master {
            is_at(entry(MASTER)?, master, &mut now)?;
        }
        is_at(&self.param, known.param, &mut now)?;
        look(entry(STEP)?, &mut now)?;
        // SAFETY: `self` has a reference to the counter, and no other code has run since it was
        // looked at. No storage is smaller than its tensor (required by the README's limits).
        let counter = unsafe { Counter::of(&now, *device) }?;
        tensors.look_at_plain(grad, &mut now)?;
        let grad = now.buffer()?;
        let is_there = grad.address != 0 || known.len == 0;
        if now.device != *device || !layout.is_of(&now) || !is_there || !is_aligned(grad) {
            return None;
        }
        Some((known.with_grad(grad), counter))
    }

    /// The device of the parameter.
    pub(super) fn device(&self) -> Device {
        self.seen.device
    }

    /// The memory that the last step wrote, if the parameter has a master.
    pub(super) fn written(&self) -> Option<Written> {
        self.seen.written
    }
}

/// Whether elements of the buffer's type may have its address.
#[inline]
pub(super) fn is_aligned(buffer: RawBuffer) -> bool {
    // Sizes are powers of two.
    buffer.address & (buffer.dtype.size() as u64 - 1) == 0
}

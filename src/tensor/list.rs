//! The checks of tensors by address. A list is checked once, and then only where it changes.

use super::error::{ArgumentError, TensorError, TensorProblem, check_count};
use super::overlap::{Span, check_overlap};
use super::raw::RawTensor;
use super::role::Role;
use super::variant::{Formats, Variant};

impl RawTensor {
    /// Checks a tensor that is stepped alone: its formats, that `coeffs_index` is 0, and, unless it
    /// is empty, its buffers. Does not allocate.
    pub(crate) fn check_alone(&self) -> Result<Variant, TensorError> {
        let variant = self.variant(0)?;
        check_coeffs_index(0, self.coeffs_index, 1)?;
        let mut seen = [None; Role::COUNT];
        for (place, span) in self.spans(0).enumerate() {
            let span = span?;
            // A gradient is the only buffer that is not written, so any two that overlap are an
            // error.
            let other =
                seen.iter().flatten().find(|other: &&Span<()>| other.start < span.end && span.start < other.end);
            if let Some(other) = other {
                return Err(span.overlap(other));
            }
            seen[place] = Some(span);
        }
        Ok(variant)
    }

    /// What an update of a list must not change.
    fn fixed(&self) -> (u64, Formats) {
        (self.len, self.formats())
    }

    /// The bytes of each buffer, which is checked by itself. Nothing for an empty tensor.
    fn spans(&self, tensor: usize) -> impl Iterator<Item = Result<Span<()>, TensorError>> {
        let buffers = Role::ARRAY.into_iter().zip(self.buffers()).filter(|_| self.len > 0);
        buffers.filter_map(move |(role, buffer)| Some(Span::of_buffer(tensor, role, buffer?, self.len)))
    }
}

/// Returns an error unless the index `value` is below `len`, the number of coefficients.
pub(crate) fn check_coeffs_index(tensor: usize, value: usize, len: usize) -> Result<(), TensorError> {
    if value < len {
        return Ok(());
    }
    Err(TensorError::of_tensor(tensor, TensorProblem::CoeffsIndex { len, value }))
}

/// The memory that a list of tensors writes, sorted by address.
#[derive(Debug, Default)]
struct Written {
    spans: Vec<Span<()>>,
    scratch: Vec<Span<()>>,
}

impl Written {
    fn with_capacity(tensors: usize) -> Self {
        let spans = || Vec::with_capacity(tensors * Role::COUNT);
        Self { spans: spans(), scratch: spans() }
    }

    /// Checks every buffer of a list and every pair of buffers, and keeps the written ones if all
    /// is well. O(n log n).
    fn check_all(&mut self, tensors: &[RawTensor]) -> Result<(), TensorError> {
        let spans = &mut self.scratch;
        spans.clear();
        for (index, tensor) in tensors.iter().enumerate().filter(|(_, tensor)| !tensor.is_skipped()) {
            for span in tensor.spans(index) {
                spans.push(span?);
            }
        }
        check_overlap(spans)?;
        spans.retain(|span| span.role.is_written());
        std::mem::swap(&mut self.spans, &mut self.scratch);
        Ok(())
    }

    /// Checks the new gradients of a tensor against what the list writes. O(log n).
    fn check_grad(&self, index: usize, tensor: &RawTensor) -> Result<(), TensorError> {
        let grad = Span::of_buffer(index, Role::Grad, tensor.grad, tensor.len)?;
        // Written buffers do not overlap each other, so their ends are sorted, too.
        let next = self.spans.partition_point(|span| span.end <= grad.start);
        match self.spans.get(next).filter(|span| span.start < grad.end) {
            Some(other) => Err(grad.overlap(other)),
            None => Ok(()),
        }
    }
}

/// The tensors of a list, which have been checked together.
#[derive(Debug)]
pub(crate) struct CheckedList {
    tensors: Vec<RawTensor>,
    variants: Vec<Variant>,
    written: Written,
    /// The largest `coeffs_index` of all tensors.
    last_coeffs: usize,
}

impl CheckedList {
    /// Checks the formats, every address and every pair of buffers. O(n log n).
    pub(crate) fn new(tensors: &[RawTensor]) -> Result<Self, TensorError> {
        let variants = tensors.iter().enumerate().map(|(index, tensor)| tensor.variant(index));
        let variants = variants.collect::<Result<_, _>>()?;
        let mut written = Written::with_capacity(tensors.len());
        written.check_all(tensors)?;
        Ok(Self { tensors: tensors.to_vec(), variants, written, last_coeffs: last_coeffs(tensors) })
    }

    pub(crate) fn tensors(&self) -> &[RawTensor] {
        &self.tensors
    }

    /// Each tensor's variant.
    pub(crate) fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// Replaces addresses and coefficient indices of the same tensors, and calls `changed` with the
    /// index of each tensor that differs. Does not allocate.
    ///
    /// If only gradients moved, each is checked against what the list writes. Any other new address
    /// makes the list check all buffers.
    pub(crate) fn update(
        &mut self,
        tensors: &[RawTensor],
        mut changed: impl FnMut(usize),
    ) -> Result<(), ArgumentError> {
        check_count("tensors", self.tensors.len(), tensors.len())?;
        let changes = || self.tensors.iter().zip(tensors).enumerate().filter(|(_, (old, new))| old != new);
        let (mut any, mut only_grads) = (false, true);
        for (index, (old, new)) in changes() {
            check_fixed(index, old.fixed(), new.fixed())?;
            any = true;
            only_grads &= is_other_grad(old, new);
        }
        if !any {
            return Ok(());
        }
        // `written` has the addresses from before this update. They are still right only if nothing
        // but gradients moved.
        if only_grads {
            for (index, (_, new)) in changes().filter(|(_, (old, new))| old.grad != new.grad) {
                self.written.check_grad(index, new)?;
            }
        } else {
            self.written.check_all(tensors)?;
        }
        for (index, (old, new)) in self.tensors.iter_mut().zip(tensors).enumerate() {
            if old != new {
                changed(index);
                *old = *new;
            }
        }
        self.last_coeffs = last_coeffs(tensors);
        Ok(())
    }

    /// Whether [`update`](Self::update) accepts the number, lengths and formats of these tensors.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_formats_of(&self, tensors: &[RawTensor]) -> bool {
        let same = |(index, (old, new)): (usize, (&RawTensor, &RawTensor))| {
            check_fixed(index, old.fixed(), new.fixed()).is_ok()
        };
        self.tensors.len() == tensors.len() && self.tensors.iter().zip(tensors).enumerate().all(same)
    }

    /// Returns an error for the first tensor whose `coeffs_index` is not below `len`.
    pub(crate) fn check_coeffs(&self, len: usize) -> Result<(), TensorError> {
        if self.last_coeffs < len || self.tensors.is_empty() {
            return Ok(());
        }
        let mut indices = self.tensors.iter().map(|tensor| tensor.coeffs_index).enumerate();
        indices.try_for_each(|(tensor, index)| check_coeffs_index(tensor, index, len))
    }
}

fn last_coeffs(tensors: &[RawTensor]) -> usize {
    tensors.iter().map(|tensor| tensor.coeffs_index).max().unwrap_or(0)
}

/// Whether a tensor differs in nothing but the address of its gradients and its coefficients. It
/// has gradients both times, or the same address.
fn is_other_grad(old: &RawTensor, new: &RawTensor) -> bool {
    let same_place = old.grad == new.grad || !(old.is_skipped() || new.is_skipped());
    same_place && new.with_grad(old.grad).with_coeffs_index(old.coeffs_index) == *old
}

/// Returns an error if a list's tensor has another length or other formats than before.
pub(crate) fn check_fixed(
    tensor: usize,
    (expected_len, expected): (u64, Formats),
    (len, actual): (u64, Formats),
) -> Result<(), TensorError> {
    let problem = if expected_len != len {
        TensorProblem::FixedLength { expected: expected_len, actual: len }
    } else if expected != actual {
        TensorProblem::FixedFormats { expected, actual }
    } else {
        return Ok(());
    };
    Err(TensorError::of_tensor(tensor, problem))
}

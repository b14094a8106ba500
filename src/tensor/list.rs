//! Lists of tensors by address: checked once, and later only what changes of them.

use super::error::{ArgumentError, TensorError, TensorProblem, check_count};
use super::overlap::{Span, check_overlap};
use super::raw::RawTensor;
use super::role::Role;
use super::variant::{Formats, Variant};

impl RawTensor {
    /// Checks one tensor by itself, without allocating: its formats, and all buffers unless it is
    /// empty. Its coefficients must be the first.
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

    /// What a list's tensor keeps.
    fn fixed(&self) -> (u64, Formats) {
        (self.len, self.formats())
    }

    /// The bytes that a step reads or writes, each buffer checked by itself.
    fn spans(&self, tensor: usize) -> impl Iterator<Item = Result<Span<()>, TensorError>> {
        let buffers = Role::ARRAY.into_iter().zip(self.buffers()).filter(|_| self.len > 0);
        buffers.filter_map(move |(role, buffer)| Some(Span::of_buffer(tensor, role, buffer?, self.len)))
    }
}

/// Fails if a tensor's coefficients are not among `len`.
pub(crate) fn check_coeffs_index(tensor: usize, value: usize, len: usize) -> Result<(), TensorError> {
    if value < len {
        return Ok(());
    }
    Err(TensorError::of_tensor(tensor, TensorProblem::CoeffsIndex { len, value }))
}

/// The memory that a list of tensors writes, in the order of addresses.
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

    /// Checks every buffer of a list and every pair of buffers; remembers them if all is well. O(n
    /// log n).
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

    /// Checks new gradients of one tensor, which has some, against what the list writes. O(log n).
    fn check_grad(&self, index: usize, tensor: &RawTensor) -> Result<(), TensorError> {
        let grad = Span::of_buffer(index, Role::Grad, tensor.grad, tensor.len)?;
        // What is written does not overlap itself, so its ends are in order as well.
        let next = self.spans.partition_point(|span| span.end <= grad.start);
        match self.spans.get(next).filter(|span| span.start < grad.end) {
            Some(other) => Err(grad.overlap(other)),
            None => Ok(()),
        }
    }
}

/// Tensors of a list, checked together; later only what changes of them.
#[derive(Debug)]
pub(crate) struct CheckedList {
    tensors: Vec<RawTensor>,
    variants: Vec<Variant>,
    written: Written,
    /// The largest `coeffs_index` of all tensors.
    last_coeffs: usize,
}

impl CheckedList {
    /// Checks the formats, every address and every pair of buffers.
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

    /// Takes over new addresses and coefficient indices of the same tensors, and names each that
    /// differs. Does not allocate.
    ///
    /// New gradients are checked one by one against what the list writes; any other new address
    /// makes it check the whole list.
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
        // A gradient may lie where something else was before this update, so that each is compared
        // with the old places only if those are the new ones.
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

    /// Whether these are tensors that [`update`](Self::update) can take over, but for their
    /// addresses.
    #[cfg(feature = "cuda")]
    pub(crate) fn has_formats_of(&self, tensors: &[RawTensor]) -> bool {
        let same = |(index, (old, new)): (usize, (&RawTensor, &RawTensor))| {
            check_fixed(index, old.fixed(), new.fixed()).is_ok()
        };
        self.tensors.len() == tensors.len() && self.tensors.iter().zip(tensors).enumerate().all(same)
    }

    /// Fails for the first tensor whose coefficients are not among `len`.
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

/// Whether a tensor has a gradient at another place, other coefficients, and nothing else that is
/// new.
fn is_other_grad(old: &RawTensor, new: &RawTensor) -> bool {
    let same_place = old.grad == new.grad || !(old.is_skipped() || new.is_skipped());
    same_place && new.with_grad(old.grad).with_coeffs_index(old.coeffs_index) == *old
}

/// Fails if a list's tensor has another length or other formats than before.
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

//! Tensors by address, and lists of them whose addresses were checked once.

use crate::combination::Variant;
use crate::overlap::{self, BUFFERS, GRADS};
use crate::{Dtype, Error};

/// A buffer by address: in the host's memory for [`cpu::TensorList`](crate::cpu::TensorList), in a device's for the `cuda` backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawBuffer {
    /// The address of the first element; a multiple of the element's size.
    pub address: u64,
    /// The type of the elements.
    pub dtype: Dtype,
}

/// One tensor's buffers by address, all of one length.
///
/// Nothing is owned. An empty tensor's addresses are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawTensor {
    /// The parameters, read and written; the f32 masters where there is a copy.
    pub params: RawBuffer,
    /// The gradients, only read. In a list, address 0 leaves the tensor alone.
    pub grads: RawBuffer,
    /// The address of the first moment, f32, read and written.
    pub exp_avg: u64,
    /// The address of the second moment, f32, read and written.
    pub exp_avg_sq: u64,
    /// The 16-bit copy that f32 masters keep of the new parameters, only written.
    pub copy: Option<RawBuffer>,
    /// Elements.
    pub len: u64,
    /// Index of the tensor's coefficients in the list of sets; 0 for a flat step.
    pub set: usize,
}

/// The bytes of one buffer, all of them in one memory.
pub(crate) type Span = overlap::Span<()>;

impl RawTensor {
    pub(crate) fn variant(&self, tensor: usize) -> Result<Variant, Error> {
        let (params, grads, copy) = self.types();
        Variant::of(tensor, params, grads, copy)
    }

    pub(crate) fn types(&self) -> (Dtype, Dtype, Option<Dtype>) {
        (self.params.dtype, self.grads.dtype, self.copy.map(|copy| copy.dtype))
    }

    /// Whether a list's step skips the tensor, or has nothing to do in it.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.len == 0 || self.grads.address == 0
    }

    /// The addresses by role, in the order of the kernels' arguments; 0 where there is no master.
    pub(crate) fn addresses(&self) -> [u64; 5] {
        let [params, grad, exp_avg, exp_avg_sq, copy] = self.buffers().map(|(address, _)| address);
        let (param, master) = if self.copy.is_some() { (copy, params) } else { (params, 0) };
        [param, grad, exp_avg, exp_avg_sq, master]
    }

    fn buffers(&self) -> [(u64, usize); 5] {
        let raw = |buffer: RawBuffer| (buffer.address, buffer.dtype.size());
        let moment = |address| (address, Dtype::F32.size());
        let copy = self.copy.map_or((0, 0), raw);
        [raw(self.params), raw(self.grads), moment(self.exp_avg), moment(self.exp_avg_sq), copy]
    }

    /// The bytes that a step reads or writes, each buffer checked by itself.
    pub(crate) fn spans(&self, tensor: usize) -> impl Iterator<Item = Result<Span, Error>> {
        let (len, copy) = (self.len, self.copy.is_some());
        let used = move |buffer: usize| len > 0 && (buffer != BUFFERS.len() - 1 || copy);
        let buffers = self.buffers().into_iter().enumerate();
        buffers
            .filter(move |&(buffer, _)| used(buffer))
            .map(move |(buffer, (address, size))| Span::at(tensor, buffer, address, len, size))
    }

    fn grads_span(&self, tensor: usize) -> Result<Span, Error> {
        Span::at(tensor, GRADS, self.grads.address, self.len, self.grads.dtype.size())
    }
}

/// The memory that a list of tensors writes, in the order of addresses.
#[derive(Debug, Default)]
pub(crate) struct Written {
    spans: Vec<Span>,
    scratch: Vec<Span>,
}

impl Written {
    pub(crate) fn with_capacity(tensors: usize) -> Self {
        let spans = || Vec::with_capacity(tensors * BUFFERS.len());
        Self { spans: spans(), scratch: spans() }
    }

    /// Checks every buffer of a list and every pair of buffers; remembers them if all is well. O(n log n).
    pub(crate) fn check_all(&mut self, tensors: &[RawTensor]) -> Result<(), Error> {
        let spans = &mut self.scratch;
        spans.clear();
        for (index, tensor) in tensors.iter().enumerate() {
            if !tensor.is_left_alone() {
                for span in tensor.spans(index) {
                    spans.push(span?);
                }
            }
        }
        overlap::check(spans)?;
        spans.retain(Span::is_written);
        std::mem::swap(&mut self.spans, &mut self.scratch);
        Ok(())
    }

    /// Checks new gradients of one tensor, which has some, against what the list writes. O(log n).
    pub(crate) fn check_grads(&self, index: usize, tensor: &RawTensor) -> Result<(), Error> {
        let grads = tensor.grads_span(index)?;
        // What is written does not overlap itself, so its ends are in order as well.
        let next = self.spans.partition_point(|span| span.end <= grads.start);
        match self.spans.get(next).filter(|span| span.start < grads.end) {
            Some(other) => Err(grads.overlap(other)),
            None => Ok(()),
        }
    }
}

/// Tensors of a list, checked together; later only what changes of them.
#[derive(Debug)]
pub(crate) struct Tensors {
    tensors: Vec<RawTensor>,
    written: Written,
    /// The largest `set` of all tensors.
    last_set: usize,
}

impl Tensors {
    /// Checks the types, every address and every pair of buffers.
    pub(crate) fn new(tensors: &[RawTensor]) -> Result<Self, Error> {
        for (index, tensor) in tensors.iter().enumerate() {
            tensor.variant(index)?;
        }
        let mut written = Written::with_capacity(tensors.len());
        written.check_all(tensors)?;
        Ok(Self { tensors: tensors.to_vec(), written, last_set: last_set(tensors) })
    }

    pub(crate) fn as_slice(&self) -> &[RawTensor] {
        &self.tensors
    }

    /// Takes over new addresses and sets of the same tensors, and names each that differs. Does not allocate.
    ///
    /// New gradients are checked one by one against what the list writes; any other new address makes it check the whole list.
    pub(crate) fn update(&mut self, tensors: &[RawTensor], mut changed: impl FnMut(usize)) -> Result<(), Error> {
        let (expected, actual) = (self.tensors.len(), tensors.len());
        if actual != expected {
            return Err(Error::Count { list: "tensors", expected, actual });
        }
        let (mut any, mut all_grads) = (false, true);
        for (index, (old, new)) in self.tensors.iter().zip(tensors).enumerate() {
            if old == new {
                continue;
            }
            any = true;
            check_fixed(index, old, new)?;
            if old.addresses() == new.addresses() {
                continue;
            }
            let only_grads = RawTensor { grads: old.grads, set: old.set, ..*new } == *old;
            if only_grads && !old.is_left_alone() && !new.is_left_alone() {
                self.written.check_grads(index, new)?;
            } else {
                all_grads = false;
            }
        }
        if !all_grads {
            self.written.check_all(tensors)?;
        }
        if any {
            for (index, (old, new)) in self.tensors.iter_mut().zip(tensors).enumerate() {
                if old != new {
                    changed(index);
                    *old = *new;
                }
            }
            self.last_set = last_set(tensors);
        }
        Ok(())
    }

    /// Fails for the first tensor whose set is beyond `len` sets.
    pub(crate) fn check_sets(&self, len: usize) -> Result<(), Error> {
        if self.last_set < len || self.tensors.is_empty() {
            return Ok(());
        }
        let mut found = self.tensors.iter().enumerate().filter(|(_, tensor)| tensor.set >= len);
        match found.next() {
            Some((tensor, &RawTensor { set, .. })) => Err(Error::Index { tensor, index: "set", len, value: set }),
            None => Ok(()),
        }
    }
}

fn last_set(tensors: &[RawTensor]) -> usize {
    tensors.iter().map(|tensor| tensor.set).max().unwrap_or(0)
}

/// Fails if a list's tensor has another length or other types than before.
fn check_fixed(index: usize, old: &RawTensor, new: &RawTensor) -> Result<(), Error> {
    let fixed = |what, expected: String, actual: String| Err(Error::Fixed { tensor: index, what, expected, actual });
    if old.len != new.len {
        return fixed("the length", old.len.to_string(), new.len.to_string());
    }
    if old.types() != new.types() {
        let name = |tensor: &RawTensor| {
            let (params, grads, copy) = tensor.types();
            let copy = copy.map(|copy| format!(" and a {copy} copy")).unwrap_or_default();
            format!("{params} parameters with {grads} gradients{copy}")
        };
        return fixed("the types", name(old), name(new));
    }
    Ok(())
}

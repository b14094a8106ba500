//! Lists of tensors by address, for callers whose memory Rust does not know: other languages and frameworks.

use std::slice;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::dtype::Element;
use crate::overlap::{self, BUFFERS};
use crate::raw::{Span, Tensors};
use crate::{Dtype, Error, RawTensor, StepCoeffs};

use super::launch::CHUNK;
use super::tensor::{CopyMut, Grads, ParamsMut, Tensor};

/// A list of tensors by address that are stepped together, of any sizes and type combinations, each with its own coefficient set.
///
/// Types, addresses and overlap are checked once; when addresses change, only what changed. So a step of a list that stays as it is costs
/// little beside its arithmetic. Tensors may be empty. One whose gradient has address 0 is left alone.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, Dtype, RawBuffer, RawTensor, cpu};
///
/// let (mut p, g, mut m, mut v) = ([1.0_f32; 3], [1.0_f32; 3], [0.0_f32; 3], [0.0_f32; 3]);
/// let f32_at = |address| RawBuffer { address, dtype: Dtype::F32 };
/// let tensor = RawTensor {
///     params: f32_at(p.as_mut_ptr().expose_provenance() as u64),
///     grads: f32_at(g.as_ptr().expose_provenance() as u64),
///     exp_avg: m.as_mut_ptr().expose_provenance() as u64,
///     exp_avg_sq: v.as_mut_ptr().expose_provenance() as u64,
///     copy: None,
///     len: 3,
///     set: 0,
/// };
/// let mut list = cpu::TensorList::new(&[tensor])?;
/// // SAFETY: the addresses are those of live buffers of 3 f32, which nothing else uses meanwhile.
/// unsafe { list.step_raw(&[DualAdamConfig::adam().coeffs(1)?])? };
/// assert_eq!(p, [0.999; 3]);
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorList {
    tensors: Tensors,
    /// Elements of all tensors.
    elements: u64,
}

impl TensorList {
    /// Checks these tensors and keeps their addresses. Nothing is read from them.
    ///
    /// # Errors
    ///
    /// [`Error::Types`] for a type combination without a kernel, [`Error::Null`], [`Error::Misaligned`], [`Error::Extent`],
    /// [`Error::TooMany`] or [`Error::Overlap`] for buffers that cannot be right (two gradients may share memory).
    pub fn new(tensors: &[RawTensor]) -> Result<Self, Error> {
        tensors.iter().try_for_each(check_len)?;
        let elements = tensors.iter().fold(0, |sum: u64, tensor| sum.saturating_add(tensor.len));
        Ok(Self { tensors: Tensors::new(tensors)?, elements })
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.as_slice().len()
    }

    /// Whether there is no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.as_slice().is_empty()
    }

    /// The tensors as they were taken over last.
    #[must_use]
    pub fn tensors(&self) -> &[RawTensor] {
        self.tensors.as_slice()
    }

    /// Takes over new addresses and sets of the same tensors.
    ///
    /// The call does not allocate. Where nothing changed it only compares; new gradients are checked one by one against what the
    /// list writes, and any other new address makes it check the whole list.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] for another number of tensors, [`Error::Fixed`] for other lengths or types, and what
    /// [`new`](Self::new) refuses of addresses. The list stays as it was then.
    pub fn update(&mut self, tensors: &[RawTensor]) -> Result<(), Error> {
        self.tensors.update(tensors, |_| ())
    }

    /// One DualAdam step of every tensor that has a gradient, with the coefficients `sets[tensor.set]`.
    ///
    /// The call allocates nothing; rayon's queue may grow. The bits are those of a [`step`](super::step) per tensor.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a tensor whose set is not there. Nothing is written then.
    ///
    /// # Safety
    ///
    /// Each buffer of each tensor that has a gradient is memory of the tensor's length and of its type, which nothing else uses
    /// during the call.
    pub unsafe fn step_raw(&mut self, sets: &[StepCoeffs]) -> Result<(), Error> {
        self.tensors.check_sets(sets.len())?;
        // SAFETY: types, addresses, lengths, overlap and sets were checked; the buffers are live memory
        // that nothing else uses (this function's requirement).
        unsafe { run_all(self.tensors.as_slice(), sets, self.elements) };
        Ok(())
    }
}

/// One DualAdam step over one tensor by address, in one pass. Empty tensors are fine.
///
/// The call allocates nothing; rayon's queue may grow. The bits are those of a [`step`](super::step).
///
/// # Errors
///
/// Nothing is written then.
///
/// - [`Error::Types`] for a type combination without a kernel.
/// - [`Error::Index`] for a `set` that is not 0.
/// - [`Error::Null`], [`Error::Misaligned`], [`Error::Extent`], [`Error::Overlap`] or
///   [`Error::TooMany`] for buffers that cannot be right.
///
/// # Safety
///
/// - Each buffer is memory of the tensor's length and of its type, which nothing else uses during the
///   call.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, Dtype, RawBuffer, RawTensor, cpu};
///
/// let (mut p, g, mut m, mut v) = ([1.0_f32; 3], [1.0_f32; 3], [0.0_f32; 3], [0.0_f32; 3]);
/// let f32_at = |address| RawBuffer { address, dtype: Dtype::F32 };
/// let tensor = RawTensor {
///     params: f32_at(p.as_mut_ptr().expose_provenance() as u64),
///     grads: f32_at(g.as_ptr().expose_provenance() as u64),
///     exp_avg: m.as_mut_ptr().expose_provenance() as u64,
///     exp_avg_sq: v.as_mut_ptr().expose_provenance() as u64,
///     copy: None,
///     len: 3,
///     set: 0,
/// };
/// // SAFETY: the addresses are those of live buffers of 3 f32, which nothing else uses meanwhile.
/// unsafe { cpu::step_raw(&tensor, &DualAdamConfig::adam().coeffs(1)?)? };
/// assert_eq!(p, [0.999; 3]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub unsafe fn step_raw(tensor: &RawTensor, coeffs: &StepCoeffs) -> Result<(), Error> {
    let mut spans = [Span { memory: (), start: 0, end: 0, tensor: 0, buffer: 0 }; BUFFERS.len()];
    let mut used = 0;
    check_one(0, tensor, 1, |span| {
        spans[used] = span;
        used += 1;
    })?;
    overlap::check(&mut spans[..used])?;
    if tensor.len > 0 {
        // SAFETY: types, addresses, lengths and overlap were checked; the buffers are live memory that
        // nothing else uses (this function's requirement).
        unsafe { borrow(tensor) }.run(coeffs);
    }
    Ok(())
}

/// One DualAdam step over a list of tensors by address, each with the coefficients
/// `sets[tensor.set]`. All tensors are checked before any is written. A [`TensorList`] checks only
/// once.
///
/// Tensors may be empty. One whose gradient has address 0 is left alone. The call allocates some 160
/// bytes for each tensor. The bits are those of a [`step`](super::step) per tensor.
///
/// # Errors
///
/// Nothing is written then.
///
/// - As [`step_raw`], for each tensor; two gradients may share memory.
/// - [`Error::Index`] for a tensor whose set is not there.
///
/// # Safety
///
/// - Each buffer of each tensor that has a gradient is memory of the tensor's length and of its type,
///   which nothing else uses during the call.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, Dtype, RawBuffer, RawTensor, cpu};
///
/// let at = |address| RawBuffer { address, dtype: Dtype::F32 };
/// let frozen = RawTensor { params: at(8), grads: at(0), exp_avg: 16, exp_avg_sq: 24, copy: None, len: 2, set: 0 };
/// // SAFETY: no tensor has a gradient.
/// unsafe { cpu::step_list_raw(&[frozen], &[DualAdamConfig::adam().coeffs(1)?])? };
/// # Ok::<(), dualadam::Error>(())
/// ```
pub unsafe fn step_list_raw(tensors: &[RawTensor], sets: &[StepCoeffs]) -> Result<(), Error> {
    let (mut spans, mut elements) = (Vec::with_capacity(tensors.len() * BUFFERS.len()), 0_u64);
    for (index, tensor) in tensors.iter().enumerate() {
        // What is left alone is checked as an empty tensor is.
        let tensor = if tensor.is_left_alone() { &RawTensor { len: 0, ..*tensor } } else { tensor };
        check_one(index, tensor, sets.len(), |span| spans.push(span))?;
        elements = elements.saturating_add(tensor.len);
    }
    overlap::check(&mut spans)?;
    // SAFETY: types, addresses, lengths, overlap and sets were checked; the buffers are live memory that
    // nothing else uses (this function's requirement).
    unsafe { run_all(tensors, sets, elements) };
    Ok(())
}

/// Checks one tensor by itself, and names the bytes of its buffers.
fn check_one(index: usize, tensor: &RawTensor, sets: usize, mut found: impl FnMut(Span)) -> Result<(), Error> {
    tensor.combination(index)?;
    if tensor.set >= sets {
        return Err(Error::Index { tensor: index, index: "set", len: sets, value: tensor.set });
    }
    tensor.spans(index).try_for_each(|span| span.map(&mut found))?;
    check_len(tensor)
}

/// Fails for a tensor that is longer than a slice can be.
fn check_len(tensor: &RawTensor) -> Result<(), Error> {
    let limit = isize::MAX as u64 / size_of::<f32>() as u64;
    if tensor.len > limit {
        return Err(Error::TooMany { list: "the elements of a buffer", limit, actual: tensor.len });
    }
    Ok(())
}

/// Steps the tensors that have gradients.
///
/// # Safety
///
/// - As for [`borrow`], for each tensor that is not left alone.
unsafe fn run_all(tensors: &[RawTensor], sets: &[StepCoeffs], elements: u64) {
    let step = |tensor: &RawTensor| {
        if !tensor.is_left_alone() {
            // SAFETY: the tensor was checked, and its buffers are there (this function's requirement).
            unsafe { borrow(tensor) }.run(&sets[tensor.set]);
        }
    };
    if elements <= CHUNK as u64 {
        tensors.iter().for_each(step);
    } else {
        tensors.par_iter().for_each(step);
    }
}

/// The tensor as slices.
///
/// # Safety
///
/// The tensor's types, addresses, length and overlap must have been checked, and it must not be empty; the buffers must be there, and
/// no one else's meanwhile.
unsafe fn borrow<'a>(tensor: &RawTensor) -> Tensor<'a> {
    let len = tensor.len as usize;
    let (p, g) = (tensor.params.address, tensor.grads.address);
    // SAFETY: as this function requires.
    unsafe {
        Tensor {
            params: match tensor.params.dtype {
                Dtype::F32 => ParamsMut::F32(slice_mut(p, len)),
                Dtype::Bf16 => ParamsMut::Bf16(slice_mut(p, len)),
                Dtype::F16 => ParamsMut::F16(slice_mut(p, len)),
            },
            grads: match tensor.grads.dtype {
                Dtype::F32 => Grads::F32(slice::<f32>(g, len)),
                Dtype::Bf16 => Grads::Bf16(slice::<bf16>(g, len)),
                Dtype::F16 => Grads::F16(slice::<f16>(g, len)),
            },
            exp_avg: slice_mut(tensor.exp_avg, len),
            exp_avg_sq: slice_mut(tensor.exp_avg_sq, len),
            copy: tensor.copy.and_then(|copy| match copy.dtype {
                Dtype::F32 => None,
                Dtype::Bf16 => Some(CopyMut::Bf16(slice_mut(copy.address, len))),
                Dtype::F16 => Some(CopyMut::F16(slice_mut(copy.address, len))),
            }),
            set: tensor.set,
        }
    }
}

/// # Safety
///
/// As for [`slice::from_raw_parts`].
unsafe fn slice<'a, T: Element>(address: u64, len: usize) -> &'a [T] {
    // SAFETY: as this function requires.
    unsafe { slice::from_raw_parts(std::ptr::with_exposed_provenance(address as usize), len) }
}

/// # Safety
///
/// As for [`slice::from_raw_parts_mut`].
unsafe fn slice_mut<'a, T: Element>(address: u64, len: usize) -> &'a mut [T] {
    // SAFETY: as this function requires.
    unsafe { slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut(address as usize), len) }
}

//! Steps of lists of slices, and of tensors by address, alone and in lists.

use crate::rule::StepCoeffs;
use crate::tensor::{ArgumentError, CheckedList, RawTensor, TensorError, TensorProblem, check_coeffs_index};

use super::buffer::Tensor;
use super::kernels::Job;
use super::parts::Parts;
use super::threads::{for_each, for_each_mut};

/// The largest number of elements that a buffer of any format can have in an address space.
const MOST_ELEMENTS: u64 = isize::MAX as u64 / size_of::<f32>() as u64;

/// One DualAdam step of each tensor of a list, with the coefficients `coeffs[tensor.coeffs_index]`.
///
/// The tensors may have any lengths and formats. A tensor and the list may be empty. The bits are
/// those of one call of [`step`](super::step) for each tensor.
///
/// # Errors
///
/// The error is that of the first tensor with a problem. Nothing is written.
///
/// - [`TensorProblem::Length`] if a buffer has another length than the tensor's `param`.
/// - [`TensorProblem::Formats`] if no [variant](crate::Variant) has the tensor's formats.
/// - [`TensorProblem::CoeffsIndex`] if `coeffs_index` is not an index of `coeffs`.
///
/// # Examples
///
/// Two tensors of two parameter groups:
///
/// ```
/// use dualadam::{DualAdamConfig, cpu};
/// use half::bf16;
///
/// let coeffs = [DualAdamConfig::adam().coeffs(1)?, DualAdamConfig::adam().with_lr(0.0).coeffs(1)?];
/// let (mut w, mut w_m, mut w_v) = ([1.0_f32; 3], [0.0_f32; 3], [0.0_f32; 3]);
/// let (mut b, mut b_m, mut b_v) = ([bf16::ONE], [0.0_f32], [0.0_f32]);
/// cpu::step_list(
///     &mut [
///         cpu::Tensor::new(&mut w, &[1.0_f32; 3], &mut w_m, &mut w_v),
///         cpu::Tensor::new(&mut b, &[1.0_f32], &mut b_m, &mut b_v).with_coeffs_index(1),
///     ],
///     &coeffs,
/// )?;
/// assert_eq!(w, [0.999; 3]);
/// assert_eq!(b, [bf16::ONE]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub fn step_list(tensors: &mut [Tensor<'_>], coeffs: &[StepCoeffs]) -> Result<(), TensorError> {
    let mut elements = 0_u64;
    for (index, tensor) in tensors.iter_mut().enumerate() {
        tensor.check(index)?;
        check_coeffs_index(index, tensor.coeffs_index, coeffs.len())?;
        elements = elements.saturating_add(tensor.param.len() as u64);
    }
    for_each_mut(tensors, elements, |tensor| {
        // The check has passed above, so it passes again.
        if let Ok(job) = tensor.job(0) {
            // SAFETY: `job` has the variant of the tensor's formats. The buffers are slices of its
            // length and formats, which this call borrows.
            unsafe { job.run(&coeffs[tensor.coeffs_index]) };
        }
    });
    Ok(())
}

/// One DualAdam step of one tensor by address.
///
/// The call is [`step`](super::step), or [`step_with_master`](super::step_with_master) for a tensor
/// with masters, with formats that are known at run time. It does not allocate. An empty tensor's
/// addresses are not checked.
///
/// # Errors
///
/// Nothing is written.
///
/// - [`TensorProblem::Formats`] if no [variant](crate::Variant) has the tensor's formats.
/// - [`TensorProblem::Null`] if an address is 0, that of `grad` included.
/// - [`TensorProblem::Misaligned`] if an address is not a multiple of the element's size.
/// - [`TensorProblem::Extent`] or [`TensorProblem::TooLong`] if a buffer would not fit into the
///   address space.
/// - [`TensorProblem::Overlap`] if two buffers overlap.
/// - [`TensorProblem::CoeffsIndex`] if `tensor.coeffs_index` is not 0.
///
/// # Safety
///
/// Unless the tensor is empty:
///
/// - Each buffer is initialised memory of the tensor's length and the buffer's format, valid for
///   reads and, apart from `grad`, for writes.
/// - Nothing else uses this memory during the call.
/// - The provenance of a pointer to this memory was exposed, if Rust allocated it
///   ([`expose_provenance`](pointer#method.expose_provenance)).
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, RawBuffer, RawTensor, cpu};
///
/// let (mut p, g, mut m, mut v) = ([1.0_f32; 3], [1.0_f32; 3], [0.0_f32; 3], [0.0_f32; 3]);
/// let written = |buffer: &mut [f32; 3]| RawBuffer::f32(buffer.as_mut_ptr().expose_provenance() as u64);
/// let grad = RawBuffer::f32(g.as_ptr().expose_provenance() as u64);
/// let tensor = RawTensor::new(3, written(&mut p), grad, written(&mut m), written(&mut v));
/// // SAFETY: the addresses are those of live arrays of 3 f32, exposed above, which nothing else uses.
/// unsafe { cpu::step_raw(&tensor, &DualAdamConfig::adam().coeffs(1)?)? };
/// assert_eq!(p, [0.999; 3]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub unsafe fn step_raw(tensor: &RawTensor, coeffs: &StepCoeffs) -> Result<(), TensorError> {
    check_total(0, tensor.len)?;
    let variant = tensor.check_alone()?;
    // SAFETY: `variant` is that of the tensor's formats. Addresses, lengths and overlap were
    // checked. The buffers are initialised, valid, exposed memory that nothing else uses (this
    // function's three requirements).
    unsafe { Job { tensor: *tensor, variant, sets_master: false }.run(coeffs) };
    Ok(())
}

/// One DualAdam step of each tensor of a list by address, with the coefficients
/// `coeffs[tensor.coeffs_index]`.
///
/// The call makes a [`TensorList`] and steps it once. A list that is stepped again and again is
/// faster if it is kept.
///
/// # Errors
///
/// Nothing is written.
///
/// - As [`TensorList::new`].
/// - As [`TensorList::step_raw`].
///
/// # Safety
///
/// - As for [`TensorList::step_raw`].
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, RawBuffer, RawTensor, cpu};
///
/// let (mut p, g, mut m, mut v) = ([1.0_f32; 3], [1.0_f32; 3], [0.0_f32; 3], [0.0_f32; 3]);
/// let written = |buffer: &mut [f32; 3]| RawBuffer::f32(buffer.as_mut_ptr().expose_provenance() as u64);
/// let grad = RawBuffer::f32(g.as_ptr().expose_provenance() as u64);
/// let tensor = RawTensor::new(3, written(&mut p), grad, written(&mut m), written(&mut v));
/// // SAFETY: the addresses are those of live arrays of 3 f32, exposed above, which nothing else uses.
/// unsafe { cpu::step_list_raw(&[tensor], &[DualAdamConfig::adam().coeffs(1)?])? };
/// assert_eq!(p, [0.999; 3]);
/// # Ok::<(), dualadam::Error>(())
/// ```
pub unsafe fn step_list_raw(tensors: &[RawTensor], coeffs: &[StepCoeffs]) -> Result<(), TensorError> {
    let mut list = TensorList::new(tensors)?;
    // SAFETY: the buffers are as `TensorList::step_raw` requires (this function's requirement).
    unsafe { list.step_raw(coeffs) }
}

/// Returns an error if a tensor is longer than a buffer can be.
pub(super) fn check_total(index: usize, len: u64) -> Result<(), TensorError> {
    if len <= MOST_ELEMENTS {
        return Ok(());
    }
    let problem = TensorProblem::TooLong { limit: MOST_ELEMENTS, actual: len };
    Err(TensorError::of_tensor(index, problem))
}

/// The number of elements that a step of a tensor updates.
fn stepped_len(tensor: &RawTensor) -> u64 {
    if tensor.is_skipped() { 0 } else { tensor.len }
}

/// A list of tensors by address, of any lengths and formats, that are stepped together.
///
/// [`new`](Self::new) checks formats, addresses and overlap once, and [`update`](Self::update)
/// checks what changes, so that [`step_raw`](Self::step_raw) checks nothing but the coefficients.
///
/// A tensor may be empty. A tensor whose gradient has address 0 is skipped.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, RawBuffer, RawTensor, cpu};
///
/// let (mut p, g, mut m, mut v) = ([1.0_f32; 3], [1.0_f32; 3], [0.0_f32; 3], [0.0_f32; 3]);
/// let written = |buffer: &mut [f32; 3]| RawBuffer::f32(buffer.as_mut_ptr().expose_provenance() as u64);
/// let grad = RawBuffer::f32(g.as_ptr().expose_provenance() as u64);
/// let tensor = RawTensor::new(3, written(&mut p), grad, written(&mut m), written(&mut v));
/// let mut list = cpu::TensorList::new(&[tensor])?;
/// // SAFETY: the addresses are those of live arrays of 3 f32, exposed above, which nothing else uses.
/// unsafe { list.step_raw(&[DualAdamConfig::adam().coeffs(1)?])? };
/// assert_eq!(p, [0.999; 3]);
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorList {
    list: CheckedList,
    jobs: Vec<Job>,
    parts: Parts,
}

impl TensorList {
    /// Checks the tensors and keeps their addresses. Does not access the buffers.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::Formats`] if no [variant](crate::Variant) has a tensor's formats.
    /// - [`TensorProblem::Null`] if a tensor with a gradient has another address that is 0.
    /// - [`TensorProblem::Misaligned`] if an address is not a multiple of the element's size.
    /// - [`TensorProblem::Extent`] or [`TensorProblem::TooLong`] if a buffer would not fit into the
    ///   address space.
    /// - [`TensorProblem::Overlap`] if a buffer that is written overlaps any other of the list. Two
    ///   gradients may overlap.
    pub fn new(tensors: &[RawTensor]) -> Result<Self, TensorError> {
        tensors.iter().enumerate().try_for_each(|(index, tensor)| check_total(index, tensor.len))?;
        let list = CheckedList::new(tensors)?;
        let job = |(&tensor, &variant)| Job { tensor, variant, sets_master: false };
        let jobs = tensors.iter().zip(list.variants()).map(job).collect();
        let mut parts = Parts::default();
        parts.set(tensors.iter().map(stepped_len));
        Ok(Self { list, jobs, parts })
    }

    /// The number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.tensors().len()
    }

    /// Whether there are no tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.tensors().is_empty()
    }

    /// The tensors as the last [`update`](Self::update) left them.
    #[must_use]
    pub fn tensors(&self) -> &[RawTensor] {
        self.list.tensors()
    }

    /// Sets new addresses and coefficient indices of the same tensors.
    ///
    /// The call does not allocate. If nothing has changed, it only compares. If only gradients have
    /// moved, it checks each in O(log n) for n tensors. Any other new address makes it check the
    /// whole list in O(n log n).
    ///
    /// # Errors
    ///
    /// The list stays as it was.
    ///
    /// - [`ListError::Count`](crate::ListError::Count) if the number of tensors differs.
    /// - [`TensorProblem::FixedLength`] or [`TensorProblem::FixedFormats`] if a tensor's length or
    ///   formats differ.
    /// - As [`new`](Self::new) for addresses.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{RawBuffer, RawTensor, cpu};
    ///
    /// let at = RawBuffer::f32;
    /// let tensor = RawTensor::new(4, at(0x1000), at(0x2000), at(0x3000), at(0x4000));
    /// let mut list = cpu::TensorList::new(&[tensor])?;
    /// list.update(&[tensor.with_grad(at(0x5000))])?;
    /// assert!(list.update(&[tensor.with_grad(at(0x3000))]).is_err()); // overlaps exp_avg
    /// assert_eq!(list.tensors(), [tensor.with_grad(at(0x5000))]);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn update(&mut self, tensors: &[RawTensor]) -> Result<(), ArgumentError> {
        let (jobs, mut is_divided_anew) = (&mut self.jobs, false);
        self.list.update(tensors, |index| {
            is_divided_anew |= jobs[index].tensor.is_skipped() != tensors[index].is_skipped();
            jobs[index].tensor = tensors[index];
        })?;
        if is_divided_anew {
            self.parts.set(tensors.iter().map(stepped_len));
        }
        Ok(())
    }

    /// One DualAdam step of each tensor that has a gradient, with the coefficients
    /// `coeffs[tensor.coeffs_index]`.
    ///
    /// The bits are those of one call of [`step`](super::step) for each tensor. The call does not
    /// allocate, apart from rayon's queue.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::CoeffsIndex`] if a tensor's `coeffs_index` is not an index of `coeffs`.
    ///   Nothing is written.
    ///
    /// # Safety
    ///
    /// For each tensor that is not empty and has a gradient:
    ///
    /// - Each buffer is initialised memory of the tensor's length and the buffer's format, valid
    ///   for reads and, apart from `grad`, for writes.
    /// - Nothing else uses this memory during the call.
    /// - The provenance of a pointer to this memory was exposed, if Rust allocated it
    ///   ([`expose_provenance`](pointer#method.expose_provenance)).
    pub unsafe fn step_raw(&mut self, coeffs: &[StepCoeffs]) -> Result<(), TensorError> {
        // SAFETY: the buffers are as required (this function's three requirements), and `for_each`
        // calls the function once with each number.
        unsafe { self.step_raw_with(coeffs, |parts, step_part| for_each(parts, step_part)) }
    }

    /// [`step_raw`](Self::step_raw) on threads of the caller's.
    ///
    /// `share` gets the number of parts of the step, and a function that makes one part of it on
    /// the calling thread. It calls the function once with each number below the number of parts,
    /// on any threads, and returns when all calls have returned. A part has 32,768 elements; the
    /// last has fewer.
    ///
    /// # Errors
    ///
    /// - As [`step_raw`](Self::step_raw).
    ///
    /// # Safety
    ///
    /// - As for [`step_raw`](Self::step_raw).
    /// - `share` calls the function as stated: with each number at most once, and not after it has
    ///   returned. A part without a call is not stepped.
    ///
    /// # Examples
    ///
    /// With threads of the standard library:
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, RawBuffer, RawTensor, cpu};
    ///
    /// let len = 100_000;
    /// let (mut p, g, mut m, mut v) = (vec![1.0_f32; len], vec![1.0_f32; len], vec![0.0; len], vec![0.0; len]);
    /// let written = |buffer: &mut Vec<f32>| RawBuffer::f32(buffer.as_mut_ptr().expose_provenance() as u64);
    /// let grad = RawBuffer::f32(g.as_ptr().expose_provenance() as u64);
    /// let tensor = RawTensor::new(len as u64, written(&mut p), grad, written(&mut m), written(&mut v));
    /// let mut list = cpu::TensorList::new(&[tensor])?;
    /// let coeffs = [DualAdamConfig::adam().coeffs(1)?];
    /// // SAFETY: the addresses are those of live vectors of this length, exposed above, which nothing
    /// // else uses. The function is called once with each number, and all threads have ended then.
    /// unsafe {
    ///     list.step_raw_with(&coeffs, |parts, step_part| {
    ///         std::thread::scope(|scope| {
    ///             for part in 0..parts {
    ///                 scope.spawn(move || step_part(part));
    ///             }
    ///         });
    ///     })?;
    /// }
    /// assert_eq!(p, vec![0.999; len]);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn step_raw_with(
        &mut self,
        coeffs: &[StepCoeffs],
        share: impl FnOnce(usize, &(dyn Fn(usize) + Send + Sync)),
    ) -> Result<(), TensorError> {
        self.list.check_coeffs(coeffs.len())?;
        share(self.parts.count(), &|part| {
            for (index, range) in self.parts.tensors_of(part) {
                let job = &self.jobs[index];
                // SAFETY: `job` has the variant of the tensor's formats. Addresses, lengths and
                // overlap were checked. The tensor has a gradient, since parts have elements of
                // such tensors only. So the buffers are initialised, valid, exposed memory that
                // nothing else uses (`step_raw`'s three requirements). No two parts share an
                // element, and no part is stepped twice (this function's second requirement).
                unsafe { job.run_range(range, &coeffs[job.tensor.coeffs_index]) };
            }
        });
        Ok(())
    }
}

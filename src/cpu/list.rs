//! Steps of one tensor and of lists, as slices and by address.

use crate::rule::StepCoeffs;
use crate::tensor::{ArgumentError, CheckedList, RawTensor, TensorError, TensorProblem, check_coeffs_index};

use super::buffer::Tensor;
use super::kernels::Job;
use super::threads::{for_each, for_each_mut};

/// The most elements that a buffer of any format can have in one address space.
const MOST_ELEMENTS: u64 = isize::MAX as u64 / size_of::<f32>() as u64;

/// One DualAdam step over a list of tensors of any sizes and formats, each with the coefficients
/// `coeffs[tensor.coeffs_index]`.
///
/// Empty tensors and an empty list are fine. The bits are those of a [`step`](super::step) per
/// tensor.
///
/// # Errors
///
/// For the first tensor with a problem; all tensors are checked before any is written:
///
/// - [`TensorProblem::Length`] for buffers of unequal length.
/// - [`TensorProblem::Formats`] for formats without a kernel.
/// - [`TensorProblem::CoeffsIndex`] for coefficients that are not there.
///
/// # Example
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
        // All tensors have passed the same check above.
        if let Ok(job) = tensor.job(0) {
            // SAFETY: the buffers are slices of the tensor's length and formats, borrowed for this
            // call.
            unsafe { job.run(&coeffs[tensor.coeffs_index]) };
        }
    });
    Ok(())
}

/// One DualAdam step of a tensor by address. Types are those of the tensor's formats. The call does
/// not allocate.
///
/// # Errors
///
/// - [`TensorProblem::Formats`] for formats without a kernel.
/// - [`TensorProblem::Null`], [`TensorProblem::Misaligned`], [`TensorProblem::Extent`],
///   [`TensorProblem::TooLong`] or [`TensorProblem::Overlap`] for buffers that cannot be right,
///   unless the tensor is empty.
/// - [`TensorProblem::CoeffsIndex`] if `tensor.coeffs_index` is not 0.
///
/// Nothing is written then.
///
/// # Safety
///
/// - Each buffer of the tensor is memory of its length and format, which nothing else uses during
///   the call.
/// - A pointer to that memory was exposed, where the memory comes from Rust
///   ([`expose_provenance`](pointer#method.expose_provenance)).
pub unsafe fn step_raw(tensor: &RawTensor, coeffs: &StepCoeffs) -> Result<(), TensorError> {
    check_len(0, tensor)?;
    let variant = tensor.check_alone()?;
    // SAFETY: formats, addresses, lengths and overlap were checked. The buffers are exposed memory
    // of the tensor, which nothing else uses (this function's requirements).
    unsafe { Job { tensor: *tensor, variant, sets_master: false }.run(coeffs) };
    Ok(())
}

/// One DualAdam step of a list of tensors by address, each with the coefficients
/// `coeffs[tensor.coeffs_index]`: that of a [`TensorList`] that is made for this step only.
///
/// # Errors
///
/// As [`TensorList::new`] and [`TensorList::step_raw`]. Nothing is written then.
///
/// # Safety
///
/// As for [`TensorList::step_raw`].
pub unsafe fn step_list_raw(tensors: &[RawTensor], coeffs: &[StepCoeffs]) -> Result<(), TensorError> {
    let mut list = TensorList::new(tensors)?;
    // SAFETY: the buffers are as `TensorList::step_raw` requires (this function's requirements).
    unsafe { list.step_raw(coeffs) }
}

fn check_len(index: usize, tensor: &RawTensor) -> Result<(), TensorError> {
    if tensor.len <= MOST_ELEMENTS {
        return Ok(());
    }
    let problem = TensorProblem::TooLong { limit: MOST_ELEMENTS, actual: tensor.len };
    Err(TensorError::of_tensor(index, problem))
}

/// A list of tensors by address that are stepped together, of any sizes and formats, each with its
/// own coefficients.
///
/// Formats, addresses and overlap are checked once; when addresses change, only what changed. So a
/// step of a list that stays as it is costs little beside its arithmetic. Tensors may be empty. One
/// whose gradient has address 0 is skipped.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, RawBuffer, RawTensor, cpu};
///
/// let (mut p, g, mut m, mut v) = ([1.0_f32; 3], [1.0_f32; 3], [0.0_f32; 3], [0.0_f32; 3]);
/// let written = |buffer: &mut [f32; 3]| RawBuffer::f32(buffer.as_mut_ptr().expose_provenance() as u64);
/// let grad = RawBuffer::f32(g.as_ptr().expose_provenance() as u64);
/// let tensor = RawTensor::new(3, written(&mut p), grad, written(&mut m), written(&mut v));
/// let mut list = cpu::TensorList::new(&[tensor])?;
/// // SAFETY: the addresses are those of live buffers of 3 f32, which nothing else uses meanwhile.
/// unsafe { list.step_raw(&[DualAdamConfig::adam().coeffs(1)?])? };
/// assert_eq!(p, [0.999; 3]);
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorList {
    list: CheckedList,
    jobs: Vec<Job>,
    /// Elements of all tensors.
    elements: u64,
}

impl TensorList {
    /// Checks these tensors and keeps their addresses. Nothing is read from them.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::Formats`] for formats without a kernel.
    /// - [`TensorProblem::Null`], [`TensorProblem::Misaligned`], [`TensorProblem::Extent`],
    ///   [`TensorProblem::TooLong`] or [`TensorProblem::Overlap`] for buffers that cannot be right.
    ///   Two gradients may share memory.
    pub fn new(tensors: &[RawTensor]) -> Result<Self, TensorError> {
        tensors.iter().enumerate().try_for_each(|(index, tensor)| check_len(index, tensor))?;
        let elements = tensors.iter().fold(0, |sum: u64, tensor| sum.saturating_add(tensor.len));
        let list = CheckedList::new(tensors)?;
        let job = |(&tensor, &variant)| Job { tensor, variant, sets_master: false };
        let jobs = tensors.iter().zip(list.variants()).map(job).collect();
        Ok(Self { list, jobs, elements })
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.tensors().len()
    }

    /// Whether there is no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.tensors().is_empty()
    }

    /// The tensors as they were taken over last.
    #[must_use]
    pub fn tensors(&self) -> &[RawTensor] {
        self.list.tensors()
    }

    /// Takes over new addresses and coefficient indices of the same tensors.
    ///
    /// The call does not allocate. Where nothing changed it only compares; new gradients are
    /// checked one by one against what the list writes, and any other new address makes it check
    /// the whole list.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`](crate::ListError::Count) for another number of tensors.
    /// - [`TensorProblem::FixedLength`] or [`TensorProblem::FixedFormats`] for other lengths or
    ///   formats.
    /// - What [`new`](Self::new) refuses of addresses.
    ///
    /// The list stays as it was then.
    pub fn update(&mut self, tensors: &[RawTensor]) -> Result<(), ArgumentError> {
        let jobs = &mut self.jobs;
        self.list.update(tensors, |index| jobs[index].tensor = tensors[index])
    }

    /// One DualAdam step of every tensor that has a gradient, with the coefficients
    /// `coeffs[tensor.coeffs_index]`.
    ///
    /// The call allocates nothing; rayon's queue may grow. The bits are those of a
    /// [`step`](super::step) per tensor.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::CoeffsIndex`] for a tensor whose coefficients are not there. Nothing is
    ///   written then.
    ///
    /// # Safety
    ///
    /// - Each buffer of each tensor that has a gradient is memory of the tensor's length and of its
    ///   format, which nothing else uses during the call.
    /// - A pointer to that memory was exposed, where the memory comes from Rust
    ///   ([`expose_provenance`](pointer#method.expose_provenance)).
    pub unsafe fn step_raw(&mut self, coeffs: &[StepCoeffs]) -> Result<(), TensorError> {
        self.list.check_coeffs(coeffs.len())?;
        for_each(&self.jobs, self.elements, |job| {
            if !job.tensor.is_skipped() {
                // SAFETY: formats, addresses, lengths and overlap were checked. The buffers are
                // exposed memory of the tensors, which nothing else uses (this function's
                // requirements).
                unsafe { job.run(&coeffs[job.tensor.coeffs_index]) };
            }
        });
        Ok(())
    }
}

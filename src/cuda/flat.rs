//! Steps of one tensor: over cudarc's views of device memory, and by address.

use std::ffi::c_void;

use cudarc::driver::CudaStream;

use crate::rule::StepCoeffs;
use crate::tensor::{RawTensor, TensorError, TensorProblem};

use super::buffer::Tensor;
use super::driver;
use super::error::{CudaArgument, CudaError};
use super::kernels::Kernels;
use super::launch::{flat_blocks, launch_flat};
use super::stream::{check_buffer, check_capture, check_context, raw};

/// One DualAdam step of a tensor in device memory, in one pass, enqueued on `stream`.
///
/// All buffers have one length, which may be 0. The moments are read and written; the rule is that
/// of [`StepCoeffs`]. Parameters without masters are read and written. Masters are what is updated,
/// and the parameters get their values then, rounded once to nearest even, without being read.
///
/// The call does not wait for the device. cudarc orders it with other uses of the buffers, as for
/// its own copies.
///
/// # Order
///
/// cudarc orders the step with other uses of the buffers, once the context has made a stream
/// (`CudaContext::new_stream`). Two things it leaves to you: the order with work on streams that
/// you let it borrow, and a CUDA graph that captured the step, which may be launched only while the
/// buffers live.
///
/// # Errors
///
/// - [`TensorProblem::Length`] if a buffer's length differs from the parameters'.
/// - [`CudaError::Context`] if the stream or a buffer belongs to another context than the kernels.
/// - [`CudaError::Unordered`] if a buffer belongs to another `CudaContext` value than the stream.
/// - What [`Kernels::step_raw`] refuses.
/// - [`CudaError::Driver`] for what the driver reports.
///
/// Nothing is launched then, unless it is a [`CudaError::Driver`].
///
/// # Example
///
/// ```no_run
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{self, Kernels};
///
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().default_stream();
/// let mut x = stream.clone_htod(&[1.0_f32, -2.0])?;
/// let grad = stream.clone_htod(&[2.0_f32, -4.0])?;
/// let mut exp_avg = stream.alloc_zeros::<f32>(2)?;
/// let mut exp_avg_sq = stream.alloc_zeros::<f32>(2)?;
/// let mut tensor = cuda::Tensor::new(&mut x, &grad, &mut exp_avg, &mut exp_avg_sq);
/// cuda::step(&kernels, &stream, &mut tensor, &DualAdamConfig::adam().coeffs(1)?)?;
/// assert_eq!(stream.clone_dtoh(&x)?, [0.999, -1.999]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn step(
    kernels: &Kernels,
    stream: &CudaStream,
    tensor: &mut Tensor<'_>,
    coeffs: &StepCoeffs,
) -> Result<(), CudaError> {
    check_context(kernels.context(), stream)?;
    let expected = tensor.param.len();
    for (role, actual, own) in tensor.buffers() {
        if actual != expected {
            return Err(TensorError::of_buffer(0, role, TensorProblem::Length { expected, actual }).into());
        }
        check_buffer(kernels.context(), stream, own, CudaArgument::of_buffer(0, role))?;
    }
    let _current = kernels.enter()?;
    // Until the guards are dropped, after the launch, cudarc knows that the work is to come.
    let (tensor, _guards) = tensor.raw(stream);
    // What could not be ordered is only noted there.
    stream.context().check_err().map_err(|error| driver::failed("cuStreamWaitEvent", error))?;
    // SAFETY: the stream is live, and the views are buffers of their formats and of this length in
    // the kernels' context. They are borrowed now, and cudarc orders later uses after this work,
    // and their end as well. What it leaves to the caller is in the documentation.
    unsafe { kernels.step_raw(&tensor, coeffs, raw(stream)) }
}

impl Kernels {
    /// One DualAdam step of one tensor by address, enqueued on `stream`.
    ///
    /// The call does not allocate, wait or log. The first call of a variant loads its kernels,
    /// unless [`prepare`](Self::prepare) has. Once they are loaded, a step can be captured in a
    /// CUDA graph, which keeps the coefficients as they are now. Where [`StepCoeffs::is_adam`]
    /// holds, the specialised kernel runs; the bits are the same.
    ///
    /// `stream` is a `CUstream`, which is the same as a `cudaStream_t`; null is the default stream.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::Formats`] for formats without a kernel.
    /// - [`TensorProblem::Null`], [`TensorProblem::Misaligned`], [`TensorProblem::Extent`] or
    ///   [`TensorProblem::Overlap`] for buffers that cannot be right, unless the tensor is empty.
    /// - [`TensorProblem::CoeffsIndex`] if `tensor.coeffs_index` is not 0.
    /// - [`ListError::TooMany`](crate::ListError::TooMany) for more elements than a launch can
    ///   serve.
    /// - [`CudaError::Context`] for a stream of another context.
    /// - [`CudaError::Captured`] in a capture where the kernels are not loaded.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels.
    /// - [`CudaError::Driver`] if the driver refuses the launch, or if earlier work on the device
    ///   failed; for a stream whose capture has failed; and for the null stream while a stream that
    ///   waits for it is being captured.
    ///
    /// Nothing is launched then, unless earlier work failed.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - From now until the work has run, each buffer of `tensor` is device memory of the kernels'
    ///   context, of the tensor's length and of its format.
    /// - The caller orders this work against other uses of that memory, on any stream.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::cuda::Kernels;
    /// use dualadam::{DualAdamConfig, RawBuffer, RawTensor};
    ///
    /// # let (addresses, stream) = ([256, 512, 768, 1024], std::ptr::null_mut());
    /// let kernels = Kernels::new(0)?;
    /// let [param, grad, exp_avg, exp_avg_sq] = addresses.map(RawBuffer::f32);
    /// let tensor = RawTensor::new(16, param, grad, exp_avg, exp_avg_sq);
    /// let coeffs = DualAdamConfig::default().coeffs(1)?;
    /// // SAFETY: the addresses are those of live buffers of 16 f32 each, used by nothing else.
    /// unsafe { kernels.step_raw(&tensor, &coeffs, stream)? };
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn step_raw(
        &self,
        tensor: &RawTensor,
        coeffs: &StepCoeffs,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let variant = tensor.check_alone()?;
        let blocks = flat_blocks(tensor.len)?;
        let _current = self.enter()?;
        // Also where the answer does not matter: the driver refuses the question where a launch
        // would spoil somebody else's capture.
        // SAFETY: `stream` is live (this function's first requirement), and the context is current.
        let is_captured = unsafe { check_capture(self.context(), stream) }?;
        if tensor.len == 0 {
            return Ok(());
        }
        let functions = match self.loaded(variant) {
            Some(functions) => functions,
            None if is_captured => {
                let what = "the first step of a variant, which loads its kernels,";
                return Err(CudaError::Captured { what });
            }
            None => self.functions(variant)?,
        };
        // SAFETY: the context is current, and the kernels are those of the tensor's formats.
        // `stream` is live, and the buffers are the tensor's (this function's requirements).
        unsafe { launch_flat(functions, blocks, tensor, coeffs, stream) }
    }
}

//! Steps of one tensor: over cudarc's views of device memory, and over addresses.

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

/// Enqueues one DualAdam step of one tensor on `stream`, in one pass over memory.
///
/// All buffers have the length of the parameters, in elements; it may be 0. [`StepCoeffs`] states
/// the arithmetic. Without masters, the step reads and writes the parameters. With masters, it
/// updates the masters and writes each one, rounded to nearest even, to its parameter, without
/// reading the parameter.
///
/// The call does not wait for the device.
///
/// # Ordering
///
/// cudarc orders the step with other uses of the buffers on cudarc's streams, once the context has
/// made a stream (`CudaContext::new_stream`). The caller must order two kinds of work:
///
/// - work on streams that the caller lent to cudarc or that cudarc does not know,
/// - launches of a CUDA graph that captured the step. The buffers must live for as long as the
///   graph is launched.
///
/// # Errors
///
/// - [`TensorProblem::Length`] if a buffer's length differs from that of the parameters.
/// - [`CudaError::Context`] if the stream or a buffer belongs to another context than the kernels.
/// - [`CudaError::Unordered`] if a buffer belongs to another `CudaContext` value than the stream.
/// - The errors of [`Kernels::step_raw`].
///
/// Nothing is launched, except perhaps after [`CudaError::Driver`].
///
/// # Examples
///
/// ```
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{self, Kernels};
///
/// # let _gpu = testkit::stand_in_or_return!();
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
    // The guards are dropped after the launch: cudarc then records an event that later uses wait
    // for.
    let (tensor, _guards) = tensor.raw(stream);
    // cudarc returns no error from the call above if it cannot order the work; it keeps the error.
    stream.context().check_err().map_err(|error| driver::failed("cuStreamWaitEvent", error))?;
    // SAFETY: `stream` is live, since it is borrowed. The views are device memory of the kernels'
    // context, of their formats and of this length (checked above). cudarc frees them only after
    // this work and orders other uses of them against it, except for those that the documentation
    // leaves to the caller.
    unsafe { kernels.step_raw(&tensor, coeffs, raw(stream)) }
}

impl Kernels {
    /// Enqueues one DualAdam step of one tensor, given by address, on `stream`.
    ///
    /// `stream` is a `CUstream`, which is the same as a `cudaStream_t`; null is the default stream.
    /// The tensor needs a gradient. The call neither allocates nor waits. The first call for a
    /// variant loads its kernels, unless [`prepare`](Self::prepare) has loaded them.
    ///
    /// Where [`StepCoeffs::is_adam`] holds, the specialised kernel for plain Adam runs; the bits
    /// are the same.
    ///
    /// # Captures
    ///
    /// Once the kernels are loaded, a CUDA graph can capture the step. The graph keeps the
    /// addresses and the coefficients of the capture.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::Formats`] for formats without a kernel.
    /// - [`TensorProblem::Null`], [`TensorProblem::Misaligned`], [`TensorProblem::Extent`] or
    ///   [`TensorProblem::Overlap`] for a buffer that is null, misaligned, ends beyond 2⁶⁴ bytes,
    ///   or overlaps another one. An empty tensor's buffers are not checked.
    /// - [`TensorProblem::CoeffsIndex`] if `tensor.coeffs_index` is not 0.
    /// - [`ListError::TooMany`](crate::ListError::TooMany) for more than (2³¹ - 2) · 2048 elements.
    /// - [`CudaError::Context`] if `stream` belongs to another context than the kernels.
    /// - [`CudaError::Captured`] if `stream` is being captured and the kernels are not loaded.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels.
    /// - [`CudaError::Driver`] if the driver refuses the launch, if earlier work on the device
    ///   failed, if the capture of `stream` has failed, or if `stream` is null while a stream that
    ///   waits for the null stream is being captured.
    ///
    /// Nothing is launched, except perhaps if earlier work failed.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - From now until the work has run, each buffer of `tensor` is device memory of the kernels'
    ///   context, of the tensor's length and of its format.
    /// - The caller orders this work against other uses of that memory, on any stream.
    /// - A graph that captured the step is launched only while the two requirements above hold.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{Kernels, cudarc::driver::DevicePtr};
    /// use dualadam::{DualAdamConfig, RawBuffer, RawTensor};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let kernels = Kernels::new(0)?;
    /// let stream = kernels.context().default_stream();
    /// let buffers = [0.5_f32, 0.1, 0.0, 0.0].map(|value| stream.clone_htod(&[value; 16]));
    /// let [param, grad, exp_avg, exp_avg_sq] = buffers;
    /// let (param, grad, exp_avg, exp_avg_sq) = (param?, grad?, exp_avg?, exp_avg_sq?);
    ///
    /// let [p, g, m, v] =
    ///     [&param, &grad, &exp_avg, &exp_avg_sq].map(|buffer| RawBuffer::f32(buffer.device_ptr(&stream).0));
    /// let coeffs = DualAdamConfig::adam().coeffs(1)?;
    /// // SAFETY: the addresses are those of live buffers of 16 f32 each, and all of their uses are on
    /// // this stream.
    /// unsafe { kernels.step_raw(&RawTensor::new(16, p, g, m, v), &coeffs, stream.cu_stream().cast())? };
    /// assert_eq!(stream.clone_dtoh(&param)?, [0.499; 16]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
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
        // Asked even where the answer does not matter: the driver answers with an error where a
        // launch would invalidate another stream's capture.
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
        // SAFETY: the context is current (`_current`), and `functions` are those of the tensor's
        // formats. `stream` is live and the buffers have the tensor's length and formats (this
        // function's first two requirements).
        unsafe { launch_flat(functions, blocks, tensor, coeffs, stream) }
    }
}

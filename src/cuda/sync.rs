//! Bringing the masters of one tensor up to date: over cudarc's views of device memory, and over
//! addresses.

use std::ffi::c_void;

use cudarc::driver::CudaStream;

use crate::tensor::{MasterPair, RawBuffer, Role, check_len};

use super::buffer::{Buffer, BufferMut};
use super::driver;
use super::error::{CudaArgument, CudaError};
use super::kernels::Kernels;
use super::launch::{flat_blocks, launch_sync_master};
use super::module::Function;
use super::stream::{check_buffer, check_capture, check_context, raw};

/// Enqueues, on `stream`, that masters take over what other code wrote into their 16-bit
/// parameters.
///
/// The call is [`cpu::sync_master`](crate::cpu::sync_master) on device memory, which states what
/// happens to each element. It does not wait for the device.
///
/// # Ordering
///
/// As for [`step`](super::step).
///
/// # Errors
///
/// - [`TensorProblem::Length`](crate::TensorProblem::Length) if `master` has another length than
///   `param`.
/// - [`CudaError::Context`] if the stream or a buffer belongs to another context than the kernels.
/// - [`CudaError::Unordered`] if a buffer belongs to another `CudaContext` value than the stream.
/// - The errors of [`Kernels::sync_master_raw`].
///
/// Nothing is launched, except perhaps after [`CudaError::Driver`].
///
/// # Examples
///
/// ```
/// use dualadam::cuda::{self, Kernels};
/// use dualadam::half::bf16;
///
/// # let _gpu = testkit::stand_in_or_return!();
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().default_stream();
/// let mut master = stream.clone_htod(&[0.4999_f32, 0.7501])?; // as a step left them
/// let param = stream.clone_htod(&[0.5, 0.625].map(bf16::from_f32))?; // the second was clamped
/// cuda::sync_master(&kernels, &stream, &param, &mut master)?;
/// assert_eq!(stream.clone_dtoh(&master)?, [0.4999, 0.625]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn sync_master<'a>(
    kernels: &Kernels,
    stream: &CudaStream,
    param: impl Into<Buffer<'a>>,
    master: impl Into<BufferMut<'a>>,
) -> Result<(), CudaError> {
    let (param, mut master) = (param.into(), master.into());
    check_context(kernels.context(), stream)?;
    check_len(0, Role::Master, param.len(), master.len())?;
    for (role, own) in [(Role::Param, param.own_stream()), (Role::Master, master.own_stream())] {
        check_buffer(kernels.context(), stream, own, CudaArgument::of_buffer(0, role))?;
    }
    let _current = kernels.enter()?;
    let len = param.len() as u64;
    // The guards are dropped after the launch: cudarc then records an event that later uses wait
    // for.
    let ((param, _of_param), (master, _of_master)) = (param.raw(stream), master.raw(stream));
    // cudarc returns no error from the calls above if it cannot order the work; it keeps the error.
    stream.context().check_err().map_err(|error| driver::failed("cuStreamWaitEvent", error))?;
    // SAFETY: `stream` is live, since it is borrowed. The views are device memory of the kernels'
    // context, of their formats and of this length (checked above). cudarc frees them only after
    // this work and orders other uses of them against it, except for those that the documentation
    // leaves to the caller.
    unsafe { kernels.sync_master_raw(len, param, master, raw(stream)) }
}

impl Kernels {
    /// Enqueues, on `stream`, that masters take over what other code wrote into their 16-bit
    /// parameters. Both are given by address; `len` is the number of elements of each.
    ///
    /// The call is [`cpu::sync_master_raw`](crate::cpu::sync_master_raw) on device memory, with the
    /// same bits except for NaN payloads. `stream` is a `CUstream`, which is the same as a
    /// `cudaStream_t`; null is the default stream. The call neither allocates nor waits. It may
    /// load kernels, as a step of a [variant](crate::Variant) with these parameters and masters
    /// does.
    ///
    /// # Captures
    ///
    /// After a step of such a variant, or after [`prepare`](Self::prepare), a CUDA graph can
    /// capture the call. The graph keeps the addresses.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::MasterFormats`](crate::TensorProblem::MasterFormats) unless `param` is
    ///   bf16 or f16 and `master` f32.
    /// - [`TensorProblem::Null`](crate::TensorProblem::Null),
    ///   [`TensorProblem::Misaligned`](crate::TensorProblem::Misaligned),
    ///   [`TensorProblem::Extent`](crate::TensorProblem::Extent) or
    ///   [`TensorProblem::Overlap`](crate::TensorProblem::Overlap) for a buffer that is null,
    ///   misaligned, ends beyond 2⁶⁴ bytes, or overlaps the other one. An empty tensor's buffers
    ///   are not checked.
    /// - The errors of [`step_raw`](Self::step_raw) about the number of elements, the stream, the
    ///   kernels and the driver.
    ///
    /// Nothing is launched, except perhaps if earlier work failed.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - From now until the work has run, each buffer is device memory of the kernels' context, of
    ///   `len` elements of its format.
    /// - The caller orders this work against other uses of that memory, on any stream.
    /// - A graph that captured the call is launched only while the two requirements above hold.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{Kernels, cudarc::driver::DevicePtr};
    /// use dualadam::{Dtype, RawBuffer, half::bf16};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let kernels = Kernels::new(0)?;
    /// let stream = kernels.context().default_stream();
    /// let (param, master) = (stream.clone_htod(&[bf16::ONE; 2])?, stream.clone_htod(&[1.001_f32, 2.0])?);
    /// let p = RawBuffer::new(param.device_ptr(&stream).0, Dtype::Bf16);
    /// let w = RawBuffer::f32(master.device_ptr(&stream).0);
    /// // SAFETY: the addresses are those of live buffers of 2 elements each, and all of their uses are
    /// // on this stream.
    /// unsafe { kernels.sync_master_raw(2, p, w, stream.cu_stream().cast())? };
    /// assert_eq!(stream.clone_dtoh(&master)?, [1.001, 1.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn sync_master_raw(
        &self,
        len: u64,
        param: RawBuffer,
        master: RawBuffer,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let pair = MasterPair { len, param, master };
        pair.check(0)?;
        let blocks = flat_blocks(len)?;
        let _current = self.enter()?;
        // SAFETY: `stream` is live (this function's first requirement), and the context is current.
        let is_captured = unsafe { check_capture(self.context(), stream) }?;
        if len == 0 {
            return Ok(());
        }
        let function = self.sync_master_function(&pair, is_captured)?;
        // SAFETY: the context is current (`_current`), and the kernel is that of the formats.
        // `stream` is live and the buffers have this length and their formats (this function's
        // first two requirements). Without a word, the masters are set.
        unsafe { launch_sync_master(function, blocks, &pair, 0, stream) }
    }

    /// The kernel for the formats of a pair: that of a loaded variant or, unless the stream is
    /// being captured, of one that is loaded now.
    pub(super) fn sync_master_function(&self, pair: &MasterPair, is_captured: bool) -> Result<Function, CudaError> {
        if let Some(function) = pair.variants().find_map(|variant| self.loaded(variant)?.sync_master) {
            return Ok(function);
        }
        if is_captured {
            return Err(CudaError::Captured { what: "the first use of masters, which loads its kernels," });
        }
        for variant in pair.variants() {
            if let Some(function) = self.functions(variant)?.sync_master {
                return Ok(function);
            }
        }
        Err(pair.without_kernel(0).into())
    }
}

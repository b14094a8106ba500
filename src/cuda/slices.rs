//! Flat steps over cudarc's views of device memory: safe, since a view says what it is.

use cudarc::driver::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, DeviceSlice};

use crate::dtype::{Element, GradOf, HalfElement};
use crate::{Error, RawBuffer, RawTensor, StepCoeffs};

use super::checks::check_own_stream;
use super::driver;
use super::kernels::Kernels;

/// One DualAdam step over flat buffers in device memory, in one pass, enqueued on `stream`.
///
/// All four buffers have one length, which may be 0. `params` and the moments are read and written; the rule is that of
/// [`StepCoeffs`]. The call does not wait for the device. cudarc orders it with other uses of the buffers, as for its own copies.
///
/// # Errors
///
/// [`Error::Length`] if a buffer's length differs from the parameters', [`Error::Context`] if the stream or a buffer belongs to
/// another context than the kernels, [`Error::Unordered`] if a buffer belongs to another
/// `CudaContext` value than the stream, and what [`Kernels::step_raw`] refuses; nothing is launched then. [`Error::Driver`] for what
/// the driver reports.
///
/// # Order
///
/// cudarc orders the step with other uses of the buffers, once the context has made a stream (`CudaContext::new_stream`). Two things it
/// leaves to you: the order with work on streams that you let it borrow, and a CUDA graph that captured the step, which may be launched
/// only while the buffers live.
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
/// let grads = stream.clone_htod(&[2.0_f32, -4.0])?;
/// let mut exp_avg = stream.alloc_zeros::<f32>(2)?;
/// let mut exp_avg_sq = stream.alloc_zeros::<f32>(2)?;
/// let coeffs = DualAdamConfig::adam().coeffs(1)?;
/// let (m, v) = (&mut exp_avg.as_view_mut(), &mut exp_avg_sq.as_view_mut());
/// cuda::step(&kernels, &stream, &mut x.as_view_mut(), &grads.as_view(), m, v, &coeffs)?;
/// assert_eq!(stream.clone_dtoh(&x)?, [0.999, -1.999]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn step<P: Element, G: GradOf<P>>(
    kernels: &Kernels,
    stream: &CudaStream,
    params: &mut CudaViewMut<'_, P>,
    grads: &CudaView<'_, G>,
    exp_avg: &mut CudaViewMut<'_, f32>,
    exp_avg_sq: &mut CudaViewMut<'_, f32>,
    coeffs: &StepCoeffs,
) -> Result<(), Error> {
    flat(kernels, stream, params, None::<&mut CudaViewMut<'_, half::bf16>>, grads, (exp_avg, exp_avg_sq), coeffs)
}

/// [`step`] over f32 masters that also writes each new parameter, narrowed once, into `copy`, in the same pass.
///
/// `copy` is only written.
///
/// # Errors
///
/// As for [`step`].
#[expect(clippy::too_many_arguments, reason = "those of cpu::step_with_copy, on which kernels and which stream")]
pub fn step_with_copy<C: HalfElement, G: GradOf<f32> + GradOf<C>>(
    kernels: &Kernels,
    stream: &CudaStream,
    masters: &mut CudaViewMut<'_, f32>,
    copy: &mut CudaViewMut<'_, C>,
    grads: &CudaView<'_, G>,
    exp_avg: &mut CudaViewMut<'_, f32>,
    exp_avg_sq: &mut CudaViewMut<'_, f32>,
    coeffs: &StepCoeffs,
) -> Result<(), Error> {
    flat(kernels, stream, masters, Some(copy), grads, (exp_avg, exp_avg_sq), coeffs)
}

fn flat<P: Element, G: Element, C: Element>(
    kernels: &Kernels,
    stream: &CudaStream,
    params: &mut CudaViewMut<'_, P>,
    mut copy: Option<&mut CudaViewMut<'_, C>>,
    grads: &CudaView<'_, G>,
    (exp_avg, exp_avg_sq): (&mut CudaViewMut<'_, f32>, &mut CudaViewMut<'_, f32>),
    coeffs: &StepCoeffs,
) -> Result<(), Error> {
    if stream.context().cu_ctx() != kernels.context().cu_ctx() {
        return Err(Error::Context { argument: "stream" });
    }
    let expected = params.len();
    check_view(kernels, stream, "params", params, expected)?;
    check_view(kernels, stream, "grads", grads, expected)?;
    check_view(kernels, stream, "exp_avg", exp_avg, expected)?;
    check_view(kernels, stream, "exp_avg_sq", exp_avg_sq, expected)?;
    if let Some(copy) = &copy {
        check_view(kernels, stream, "copy", *copy, expected)?;
    }
    let _current = kernels.enter()?;
    // Until these are dropped, after the launch, cudarc knows that the work is to come.
    let (params, _params) = params.device_ptr_mut(stream);
    let (grads, _grads) = grads.device_ptr(stream);
    let (exp_avg, _exp_avg) = exp_avg.device_ptr_mut(stream);
    let (exp_avg_sq, _exp_avg_sq) = exp_avg_sq.device_ptr_mut(stream);
    let copy = copy.as_mut().map(|copy| copy.device_ptr_mut(stream));
    // What could not be ordered is only noted there.
    stream.context().check_err().map_err(|error| driver::failed("cuStreamWaitEvent", error))?;
    let tensor = RawTensor {
        params: RawBuffer { address: params, dtype: P::DTYPE },
        grads: RawBuffer { address: grads, dtype: G::DTYPE },
        exp_avg,
        exp_avg_sq,
        copy: copy.as_ref().map(|&(address, _)| RawBuffer { address, dtype: C::DTYPE }),
        len: expected as u64,
        set: 0,
    };
    // SAFETY: the stream is live and the views are buffers of their types and of this length in the kernels' context. They are borrowed
    // now, and cudarc orders later uses after this work, and their end as well; what it leaves to the caller is in the documentation.
    unsafe { kernels.step_raw(&tensor, coeffs, stream.cu_stream().cast()) }
}

/// Fails unless a view has the length and is memory of the kernels' context that cudarc orders with the work of `stream`.
pub(super) fn check_view<T>(
    kernels: &Kernels,
    stream: &CudaStream,
    buffer: &'static str,
    view: &impl DeviceSlice<T>,
    expected: usize,
) -> Result<(), Error> {
    if view.len() != expected {
        return Err(Error::Length { tensor: 0, buffer, expected, actual: view.len() });
    }
    check_own_stream(kernels, stream, view.stream(), buffer)
}

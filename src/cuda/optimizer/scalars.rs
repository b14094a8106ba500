//! The scalars that steer a step of the capturable optimizer, as cudarc's views.

use cudarc::driver::{CudaContext, CudaStream, CudaView, DevicePtr, DeviceSlice, SyncOnDrop};

use crate::cuda::control::RawScalars;
use crate::cuda::error::{CudaArgument, CudaError};
use crate::cuda::stream::check_buffer;
use crate::tensor::check_count;

/// Scalars in device memory that steer one step: each a view of one f32, or `None`.
///
/// The gradients are multiplied by clip factor / loss scale, formed in f64 and rounded once to f32.
/// A missing scalar counts as 1, or as 0 for `found_inf`.
///
/// # Examples
///
/// ```
/// use dualadam::cuda::{Kernels, Scalars};
///
/// # let _gpu = testkit::stand_in_or_return!();
/// let stream = Kernels::new(0)?.context().default_stream();
/// let (loss_scale, found_inf) = (stream.clone_htod(&[1024.0_f32])?, stream.alloc_zeros::<f32>(1)?);
/// let scalars = Scalars::default().with_loss_scale(loss_scale.as_view());
/// let scalars = scalars.with_found_inf(found_inf.as_view());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Scalars<'a> {
    /// The factor by which the loss was multiplied, a divisor of the gradients: finite, above 0.
    pub loss_scale: Option<CudaView<'a, f32>>,
    /// The factor by which the gradients are then multiplied: finite, at least 0.
    pub clip_factor: Option<CudaView<'a, f32>>,
    /// A flag: any value other than 0, NaN too, skips the step.
    pub found_inf: Option<CudaView<'a, f32>>,
}

impl<'a> Scalars<'a> {
    /// Sets the loss scale.
    #[must_use]
    pub fn with_loss_scale(self, loss_scale: CudaView<'a, f32>) -> Self {
        Self { loss_scale: Some(loss_scale), ..self }
    }

    /// Sets the clip factor.
    #[must_use]
    pub fn with_clip_factor(self, clip_factor: CudaView<'a, f32>) -> Self {
        Self { clip_factor: Some(clip_factor), ..self }
    }

    /// Sets the found-inf flag.
    #[must_use]
    pub fn with_found_inf(self, found_inf: CudaView<'a, f32>) -> Self {
        Self { found_inf: Some(found_inf), ..self }
    }

    fn each(&self) -> [(&'static str, Option<&CudaView<'a, f32>>); 3] {
        let Self { loss_scale, clip_factor, found_inf } = self;
        [("loss_scale", loss_scale.as_ref()), ("clip_factor", clip_factor.as_ref()), ("found_inf", found_inf.as_ref())]
    }

    /// Fails unless each view is one element of memory in the context, of which cudarc orders the
    /// uses with the work of `stream`.
    pub(super) fn check(&self, context: &CudaContext, stream: &CudaStream) -> Result<(), CudaError> {
        for (name, view) in self.each() {
            if let Some(view) = view {
                check_count(name, 1, view.len())?;
                check_buffer(context, stream, view.stream(), CudaArgument::Scalar(name))?;
            }
        }
        Ok(())
    }

    /// The addresses for work on `stream`, ordered after earlier uses. Drop the guards after the
    /// launch: cudarc then records what later uses must wait for.
    pub(super) fn addresses<'s>(&'s self, stream: &'s CudaStream) -> (RawScalars, [Option<SyncOnDrop<'s>>; 3]) {
        let used = self.each().map(|(_, view)| view.map(|view| view.device_ptr(stream)).unzip());
        let [(loss_scale, a), (clip_factor, b), (found_inf, c)] = used;
        let [loss_scale, clip_factor, found_inf] = [loss_scale, clip_factor, found_inf].map(Option::unwrap_or_default);
        let scalars = RawScalars { loss_scale, clip_factor, found_inf };
        (scalars, [a, b, c])
    }
}

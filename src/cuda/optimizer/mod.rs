//! The optimizers that own their moments, in device memory, and count the steps of their tensors.

mod capturable;
mod masters;
mod moments;
mod scalars;
mod shared;
mod state;
mod views;

pub use capturable::CapturableDualAdam;
pub use scalars::Scalars;

use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::ledger::{CoeffsTable, Ledger, TensorSpec};
use crate::rule::{DualAdamConfig, check_grad_multiplier};
use crate::tensor::{ArgumentError, ListError, RawBuffer};

use super::buffer::{Buffer, BufferMut};
use super::error::CudaError;
use super::kernels::Kernels;
use super::stream::refuse_capture;
use shared::Shared;

/// DualAdam for the tensors of a model in device memory. It owns moments and masters, in device
/// memory too, counts the steps, and borrows parameters and gradients for each step.
///
/// The optimizer has the methods, the results to the bit, and the files of
/// [`cpu::DualAdam`](crate::cpu::DualAdam).
///
/// - A step is enqueued on the optimizer's stream and returns at once.
/// - Each tensor counts its own updates. A step skips a tensor without a gradient: parameters,
///   moments and step stay as they are.
/// - The first update of a tensor with masters sets them from the parameters, on the device.
/// - Dropping the optimizer waits for nothing and invalidates no capture, in any thread. Its memory
///   is freed after the last step, and after the last graph that captured one.
///
/// # Examples
///
/// ```
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{DualAdam, Kernels};
///
/// # let _gpu = testkit::stand_in_or_return!();
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().default_stream();
/// let config = DualAdamConfig::default().with_lr(0.1);
/// let mut optimizer = DualAdam::new(&kernels, &stream, config, &[2, 1])?;
/// let (mut w, mut b) = (stream.clone_htod(&[3.0_f32, -4.0])?, stream.clone_htod(&[1.0_f32])?);
/// for _ in 0..200 {
///     let grad = stream.clone_dtod(&w)?; // of (w0² + w1²)/2
///     optimizer.step([(&mut w).into(), (&mut b).into()], [Some((&grad).into()), None])?;
/// }
/// assert!(stream.clone_dtoh(&w)?.iter().all(|w| w.abs() < 0.1));
/// assert_eq!((optimizer.step_of(0)?, optimizer.step_of(1)?), (200, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DualAdam {
    shared: Shared,
    /// The coefficients of the current step. Kept so that its memory is reused.
    table: CoeffsTable,
}

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these lengths in elements. Its work
    /// goes to `stream`.
    ///
    /// # Errors
    ///
    /// - The errors of [`with_groups`](Self::with_groups).
    pub fn new(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        config: DualAdamConfig,
        lens: &[usize],
    ) -> Result<Self, CudaError> {
        let specs: Vec<_> = lens.iter().map(|&len| TensorSpec::new(len)).collect();
        Self::with_groups(kernels, stream, &[config], &specs)
    }

    /// An optimizer with several parameter groups, with f32 masters, or with names for its tensors.
    /// Its work goes to `stream`.
    ///
    /// The moments take 8 bytes an element of device memory, and masters 4 more. The call waits
    /// until they are zero.
    ///
    /// # Errors
    ///
    /// - The errors of [`Ledger::new`].
    /// - [`CudaError::Context`] if the stream belongs to another context than the kernels.
    /// - [`CudaError::PerThreadStream`] for the per-thread default stream.
    /// - [`TensorProblem::Memory`](crate::TensorProblem::Memory) for a size that overflows 64 bits.
    /// - [`CudaError::Driver`] if there is too little memory, and for anything else that the driver
    ///   reports.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{DualAdam, Kernels};
    /// use dualadam::{DualAdamConfig, TensorSpec};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let kernels = Kernels::new(0)?;
    /// let groups = [DualAdamConfig::adamw(0.1), DualAdamConfig::default()];
    /// let specs = [TensorSpec::new(1024).with_master().with_name("weight"), TensorSpec::new(32).in_group(1)];
    /// let stream = kernels.context().default_stream();
    /// let optimizer = DualAdam::with_groups(&kernels, &stream, &groups, &specs)?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn with_groups(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        groups: &[DualAdamConfig],
        specs: &[TensorSpec],
    ) -> Result<Self, CudaError> {
        let shared = Shared::new(kernels, stream, Ledger::new(groups, specs)?)?;
        Ok(Self { shared, table: CoeffsTable::default() })
    }

    /// Moves step counters and learning rates to the device. A CUDA graph can then capture steps
    /// and count in each launch, and the device can skip steps. The bits stay the same.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Ptx`] if the driver refuses the kernel that prepares coefficients.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// An error drops the optimizer.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{DualAdam, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let stream = kernels.context().default_stream();
    /// let optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
    /// let mut optimizer = optimizer.into_capturable()?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn into_capturable(self) -> Result<CapturableDualAdam, CudaError> {
        CapturableDualAdam::of(self.shared)
    }

    /// Enqueues one step of every tensor that has a gradient. The others stay as they are.
    ///
    /// `params` and `grads` have an entry for each tensor, in the optimizer's order and of the
    /// tensors' lengths. A tensor with masters takes 16-bit parameters. If a tensor has no
    /// gradient, only the format of its parameters is looked at.
    ///
    /// # Captures
    ///
    /// A CUDA graph keeps the addresses and coefficients of a captured step. The capture counts as
    /// a step, and the graph's launches do not: use [`into_capturable`](Self::into_capturable) for
    /// graphs. The optimizer's first step cannot be captured. The buffers must live for as long as
    /// the graph is launched, which cudarc does not check.
    ///
    /// # Errors
    ///
    /// These launch nothing and count no step:
    ///
    /// - [`ListError::Count`] if `params` or `grads` does not have an entry for each tensor.
    /// - [`TensorProblem::Length`] for a buffer of another length than its tensor.
    /// - [`TensorProblem::Formats`] for formats without a kernel.
    /// - [`TensorProblem::Overlap`] for two buffers that overlap, unless both are gradients.
    /// - [`TensorProblem::StepOverflow`] for a tensor with 2⁶⁴ - 1 updates.
    /// - [`CudaError::Context`] for a buffer of another context.
    /// - [`CudaError::Unordered`] for a buffer of another `CudaContext` value than the stream's.
    /// - [`CudaError::Captured`] in a capture, for the first step, for new formats, and for the
    ///   first update of a tensor with masters.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels.
    ///
    /// This may leave some tensors stepped; the steps of these are counted:
    ///
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// [`TensorProblem::Length`]: crate::TensorProblem::Length
    /// [`TensorProblem::Formats`]: crate::TensorProblem::Formats
    /// [`TensorProblem::Overlap`]: crate::TensorProblem::Overlap
    /// [`TensorProblem::StepOverflow`]: crate::TensorProblem::StepOverflow
    pub fn step<'a>(
        &mut self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
    ) -> Result<(), CudaError> {
        self.step_scaled(params, grads, 1.0)
    }

    /// [`step`](Self::step) with gradients that are first multiplied by `grad_multiplier`: a clip
    /// factor, the inverse of a loss scale, or their product, as in [`Steering`](crate::Steering).
    ///
    /// # Errors
    ///
    /// - The errors of [`step`](Self::step).
    /// - [`ConfigError::Value`](crate::ConfigError::Value) for a multiplier that
    ///   [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{DualAdam, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let stream = kernels.context().default_stream();
    /// # let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::adam(), &[1])?;
    /// let mut w = stream.clone_htod(&[1.0_f32])?;
    /// let grad = stream.clone_htod(&[512.0_f32])?; // of 1024 times the loss
    /// optimizer.step_scaled([(&mut w).into()], [Some((&grad).into())], 1.0 / 1024.0)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn step_scaled<'a>(
        &mut self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
        grad_multiplier: f64,
    ) -> Result<(), CudaError> {
        let mut views = self.shared.views(params, grads)?;
        let _current = self.shared.kernels.enter()?;
        let stream = self.shared.stream.clone();
        let used = views.addresses(&stream)?;
        // SAFETY: the views are device memory of the kernels' context, of their formats and of the
        // tensors' lengths (checked by `views`). cudarc orders other uses of them against this
        // work, and frees them only after it.
        unsafe { self.step_raw(&used.params, &used.grads, grad_multiplier) }
    }

    /// [`step_scaled`](Self::step_scaled) with addresses, on the optimizer's stream.
    ///
    /// # Errors
    ///
    /// - The errors of [`step_scaled`](Self::step_scaled).
    /// - The errors of [`TensorList::new`](super::TensorList::new) for addresses.
    ///
    /// # Safety
    ///
    /// - From now until the work has run, parameters and gradients of each tensor that has a
    ///   gradient are device memory of the kernels' context, of the tensor's length and of their
    ///   formats.
    /// - The caller orders this work against other uses of that memory, on any stream.
    /// - A graph that captured the step is launched only while the requirements above hold.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{DualAdam, Kernels, cudarc::driver::DevicePtr};
    /// use dualadam::{DualAdamConfig, RawBuffer};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let kernels = Kernels::new(0)?;
    /// let stream = kernels.context().default_stream();
    /// let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::adam(), &[16])?;
    /// let (w, grad) = (stream.clone_htod(&[0.5_f32; 16])?, stream.clone_htod(&[0.1_f32; 16])?);
    /// let [param, grad] = [&w, &grad].map(|buffer| RawBuffer::f32(buffer.device_ptr(&stream).0));
    /// // SAFETY: the addresses are those of live buffers of 16 f32 each, and all of their uses are on
    /// // this stream.
    /// unsafe { optimizer.step_raw(&[param], &[Some(grad)], 1.0)? };
    /// assert_eq!(stream.clone_dtoh(&w)?, [0.499; 16]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub unsafe fn step_raw(
        &mut self,
        params: &[RawBuffer],
        grads: &[Option<RawBuffer>],
        grad_multiplier: f64,
    ) -> Result<(), CudaError> {
        self.prepare_step(params, grads, grad_multiplier)?;
        if self.table.coeffs().is_empty() {
            return Ok(());
        }
        let stream = self.shared.raw_stream();
        if self.mark_masters(grads) {
            let _current = self.shared.kernels.enter()?;
            let what = "the first update of a tensor with masters, unless a CapturableDualAdam makes it,";
            // A graph would set the masters in each launch.
            // SAFETY: the stream is live as long as the optimizer, and its context is current.
            unsafe { refuse_capture(stream, what) }?;
        }
        let Shared { list: Some(list), ledger, .. } = &mut self.shared else { return Ok(()) };
        let count = |members: &[usize]| {
            members.iter().filter(|&&member| grads[member].is_some()).for_each(|&member| ledger.count(member));
        };
        // SAFETY: the stream is live as long as the optimizer. Parameters and gradients are as
        // `step_launches` requires (this function's requirements). Moments and masters are the
        // optimizer's own, and all of their uses are on this stream.
        unsafe { list.step_launches(self.table.coeffs(), stream, count) }
    }

    /// Checks the arguments and updates the list. Launches and counts nothing.
    fn prepare_step(
        &mut self,
        params: &[RawBuffer],
        grads: &[Option<RawBuffer>],
        grad_multiplier: f64,
    ) -> Result<(), CudaError> {
        let Self { shared, table } = self;
        table.clear();
        shared.ledger.check_counts(params.len(), grads.len())?;
        check_grad_multiplier(grad_multiplier)?;
        shared.describe(params, grads)?;
        for (index, _) in grads.iter().enumerate().filter(|(_, grad)| grad.is_some()) {
            shared.next[index].coeffs_index = shared.ledger.coeffs_index(table, index, grad_multiplier)?;
        }
        if table.coeffs().is_empty() { Ok(()) } else { shared.update_list() }
    }

    /// Makes the list's next step set the masters that were never set, of tensors with a gradient.
    /// Returns whether there are any.
    fn mark_masters(&mut self, grads: &[Option<RawBuffer>]) -> bool {
        let Shared { list: Some(list), ledger, .. } = &mut self.shared else { return false };
        let mut any = false;
        for (index, grad) in grads.iter().enumerate() {
            let sets_master = ledger.sets_master(index) && grad.is_some();
            list.set_sets_master(index, sets_master);
            any |= sets_master;
        }
        any
    }

    /// Sets the learning rate of a group for later steps.
    ///
    /// # Errors
    ///
    /// - The errors of [`set_config`](Self::set_config).
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{DualAdam, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let stream = kernels.context().default_stream();
    /// # let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
    /// optimizer.set_lr(0, 3e-4)?;
    /// assert_eq!(optimizer.config(0)?.lr, 3e-4);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), ArgumentError> {
        self.shared.ledger.set_lr(group, lr)
    }

    /// Sets the config of a group for later steps.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if the config is not valid.
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), ArgumentError> {
        self.shared.ledger.set_config(group, config)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, ListError> {
        self.shared.ledger.config(group)
    }

    /// The number of updates that a tensor has had.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn step_of(&self, tensor: usize) -> Result<u64, ListError> {
        self.shared.ledger.step(tensor)
    }
}

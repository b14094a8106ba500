//! The owning optimizer with counters on the device, so that CUDA graphs can repeat its steps.

use crate::cuda::buffer::{Buffer, BufferMut};
use crate::cuda::control::{Control, ControlGroup, ControlSet, RawScalars, SetReport, SetStart};
use crate::cuda::error::CudaError;
use crate::cuda::stream::refuse_capture;
use crate::ledger::Ledger;
use crate::rule::DualAdamConfig;
use crate::tensor::{ListError, RawBuffer};

use super::scalars::Scalars;
use super::shared::Shared;

/// [`DualAdam`](super::DualAdam) with step counters and learning rates on the device, for CUDA
/// graphs and for steps that the device may skip.
///
/// [`DualAdam::into_capturable`](super::DualAdam::into_capturable) makes one. The device forms the
/// coefficients of each step, with the same bits as the host.
///
/// - A captured step counts in each launch of its graph.
/// - [`set_lr`](Self::set_lr) and [`set_config`](Self::set_config) write to the device on the
///   optimizer's stream: graphs that are launched there later use the new values.
/// - [`step_of`](Self::step_of), [`report`](Self::report), [`state`](Self::state) and `save` wait
///   for the steps so far and read the device. The files are the same.
/// - The first step cannot be captured, unless [`prepare`](Self::prepare) was called.
///
/// # Lifetimes
///
/// A CUDA graph that captured a step keeps the addresses of parameters and gradients; they must
/// live for as long as the graph is launched. It also uses the optimizer's moments, masters and
/// counters. These stay until the graph is destroyed, even if the optimizer is dropped. `load`
/// gives the optimizer new memory: capture again after it.
///
/// # Examples
///
/// ```
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as InstantiateFlags;
/// use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode;
/// use dualadam::cuda::{DualAdam, Kernels, Scalars};
///
/// # let _gpu = testkit::stand_in_or_return!();
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().new_stream()?;
/// // SAFETY: all work is on one stream. cudarc's own events would get into the graph.
/// unsafe { kernels.context().disable_event_tracking() };
/// let optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
/// let mut optimizer = optimizer.into_capturable()?;
/// let (mut w, grad) = (stream.clone_htod(&[3.0_f32, -4.0])?, stream.clone_htod(&[1.0_f32, 1.0])?);
/// let found_inf = stream.alloc_zeros::<f32>(1)?; // a check for infinities on the device writes it
/// optimizer.prepare([(&mut w).into()], [Some((&grad).into())])?;
///
/// stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
/// let scalars = Scalars::default().with_found_inf(found_inf.as_view());
/// optimizer.step([(&mut w).into()], [Some((&grad).into())], &scalars)?;
/// let flags = InstantiateFlags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
/// let graph = stream.end_capture(flags)?;
/// for graph in graph.iter().cycle().take(100) {
///     graph.launch()?;
/// }
/// assert_eq!(optimizer.step_of(0)?, 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct CapturableDualAdam {
    pub(super) shared: Shared,
    /// A set for each tensor. It has the steps, and which masters are set; the ledger's are not
    /// used.
    pub(super) control: Control,
}

impl CapturableDualAdam {
    /// An optimizer that continues from the steps and masters of the ledger.
    pub(super) fn of(mut shared: Shared) -> Result<Self, CudaError> {
        let Shared { kernels, ledger, last_use, .. } = &shared;
        let _current = kernels.enter()?;
        // SAFETY: the stream is live as long as the optimizer, and its context is current.
        unsafe { refuse_capture(shared.raw_stream(), "into_capturable") }?;
        let groups: Vec<_> = ledger.groups().iter().map(|&config| ControlGroup::new(config)).collect();
        let sets: Vec<_> = ledger.specs().map(|spec| ControlSet::new(spec.group)).collect();
        let starts: Vec<_> = (0..ledger.len()).map(|tensor| start(ledger, tensor)).collect::<Result<_, _>>()?;
        let control = Control::starting_at(kernels, &groups, &sets, last_use, |set| starts[set])?;
        if let Some(list) = &mut shared.list {
            // From now on the device decides which masters to set.
            (0..list.len()).for_each(|tensor| list.set_sets_master(tensor, false));
        }
        Ok(Self { shared, control })
    }

    /// Enqueues one step of every tensor that has a gradient, steered by scalars in device memory.
    ///
    /// `params` and `grads` are as for [`DualAdam::step`](super::DualAdam::step). If a step cannot
    /// be made, for a reason in [`SkipReason`](crate::SkipReason), the device skips it: parameters,
    /// moments, masters and counter of the tensor stay as they are, and [`report`](Self::report)
    /// tells why. Nothing waits for the device. The first update of a tensor with masters sets them
    /// from the parameters.
    ///
    /// # Captures
    ///
    /// A CUDA graph can capture a step once the optimizer has made one, or after
    /// [`prepare`](Self::prepare); the gradients may be at new addresses. Later steps and captures
    /// change nothing in the graph. The caller must order its launches against the optimizer's
    /// other work. Launch it on the optimizer's stream, and they are ordered.
    ///
    /// # Errors
    ///
    /// These launch nothing:
    ///
    /// - The errors of [`DualAdam::step`](super::DualAdam::step) that launch nothing, except
    ///   [`TensorProblem::StepOverflow`](crate::TensorProblem::StepOverflow).
    ///   [`CudaError::Captured`] comes only for the first step and for new formats.
    /// - [`ListError::Count`] for a scalar of another length than 1.
    /// - [`CudaError::Context`] for a scalar of another context.
    /// - [`CudaError::Unordered`] for a scalar of another `CudaContext` value than the stream's.
    /// - [`CudaError::Interrupted`] if an earlier step failed halfway.
    ///
    /// This may leave part of the step made:
    ///
    /// - [`CudaError::Driver`] for anything else that the driver reports. If counters had advanced
    ///   by then, later calls return [`CudaError::Interrupted`] until a state is loaded.
    pub fn step<'a>(
        &mut self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
        scalars: &Scalars<'_>,
    ) -> Result<(), CudaError> {
        scalars.check(self.shared.kernels.context(), &self.shared.stream)?;
        let mut buffers = self.shared.views(params, grads)?;
        let _current = self.shared.kernels.enter()?;
        let stream = self.shared.stream.clone();
        let (scalars, _guards) = scalars.addresses(&stream);
        let buffers = buffers.addresses(&stream)?;
        // SAFETY: the views are device memory of the kernels' context, of their formats and of the
        // tensors' lengths, and the scalars are f32 there (checked above). cudarc orders other uses
        // of them against this work, and frees them only after it.
        unsafe { self.step_raw(&buffers.params, &buffers.grads, &scalars) }
    }

    /// [`step`](Self::step) with addresses, on the optimizer's stream.
    ///
    /// # Errors
    ///
    /// - The errors of [`step`](Self::step).
    /// - The errors of [`TensorList::new`](crate::cuda::TensorList::new) for addresses.
    /// - [`CudaError::Address`] for a scalar that is not aligned to 4 bytes.
    ///
    /// # Safety
    ///
    /// - The requirements of [`DualAdam::step_raw`](super::DualAdam::step_raw) hold, also for each
    ///   launch of a graph that captured this step.
    /// - The addresses in `scalars` are device memory of the kernels' context until the work has
    ///   run.
    pub unsafe fn step_raw(
        &mut self,
        params: &[RawBuffer],
        grads: &[Option<RawBuffer>],
        scalars: &RawScalars,
    ) -> Result<(), CudaError> {
        if !self.describe(params, grads)? {
            return Ok(());
        }
        let stream = self.shared.raw_stream();
        let Some(list) = &mut self.shared.list else { return Ok(()) };
        list.check_control(&self.control, scalars)?;
        // SAFETY: the stream is live as long as the optimizer. Parameters, gradients and scalars
        // are live memory (this function's requirements). The rest is the optimizer's own, and all
        // of its uses are on this stream.
        unsafe { list.step_active(&mut self.control, scalars, stream) }
    }

    /// Makes what the first step needs, without a step, so that the first step can be captured.
    ///
    /// Later steps need no such call, whatever the addresses of their gradients are. For a tensor
    /// without a gradient, the format of its gradients is guessed to be that of its parameters. If
    /// its first gradient has another format, that step cannot be captured.
    ///
    /// # Errors
    ///
    /// - The errors of [`DualAdam::step`](super::DualAdam::step) that launch nothing, except
    ///   [`TensorProblem::StepOverflow`](crate::TensorProblem::StepOverflow).
    /// - [`CudaError::Interrupted`] if an earlier step failed halfway.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    pub fn prepare<'a>(
        &mut self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
    ) -> Result<(), CudaError> {
        let mut buffers = self.shared.views(params, grads)?;
        let _current = self.shared.kernels.enter()?;
        let stream = self.shared.stream.clone();
        let buffers = buffers.addresses(&stream)?;
        self.prepare_raw(&buffers.params, &buffers.grads)
    }

    /// [`prepare`](Self::prepare) with addresses. Nothing is read or written there.
    ///
    /// # Errors
    ///
    /// - The errors of [`prepare`](Self::prepare).
    /// - The errors of [`TensorList::new`](crate::cuda::TensorList::new) for addresses.
    pub fn prepare_raw(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), CudaError> {
        if !self.describe(params, grads)? && self.shared.list.is_none() && !self.shared.ledger.is_empty() {
            self.shared.update_list()?;
        }
        Ok(())
    }

    /// Updates the host's side of list and control. Returns whether any tensor has a gradient.
    fn describe(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<bool, CudaError> {
        let Self { shared, control } = self;
        control.check_interrupted()?;
        shared.ledger.check_counts(params.len(), grads.len())?;
        shared.describe(params, grads)?;
        if grads.iter().all(Option::is_none) {
            return Ok(false);
        }
        shared.next.iter_mut().enumerate().for_each(|(index, next)| next.coeffs_index = index);
        shared.update_list()?;
        control.set_active((0..grads.len()).filter(|&index| grads[index].is_some()));
        Ok(true)
    }

    /// Reads a report for each tensor from the device: its counter, its skipped steps, and its last
    /// coefficients. Waits for the steps so far.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Interrupted`] if an earlier step failed halfway.
    /// - [`CudaError::Driver`] for anything else that the driver reports, also about earlier steps.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{DualAdam, Kernels, Scalars};
    /// use dualadam::{DualAdamConfig, SkipReason};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let kernels = Kernels::new(0)?;
    /// let stream = kernels.context().default_stream();
    /// let optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
    /// let mut optimizer = optimizer.into_capturable()?;
    /// let (mut w, grad) = (stream.clone_htod(&[3.0_f32, -4.0])?, stream.clone_htod(&[1.0_f32, 1.0])?);
    /// let found_inf = stream.clone_htod(&[1.0_f32])?;
    /// let scalars = Scalars::default().with_found_inf(found_inf.as_view());
    /// optimizer.step([(&mut w).into()], [Some((&grad).into())], &scalars)?;
    /// let report = optimizer.report()?[0];
    /// assert_eq!((report.step, report.last_skip), (0, Some(SkipReason::FoundInf)));
    /// assert_eq!(stream.clone_dtoh(&w)?, [3.0, -4.0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn report(&self) -> Result<Vec<SetReport>, CudaError> {
        // SAFETY: the stream is live as long as the optimizer and has all of its work. The control
        // keeps all counters.
        unsafe { self.control.report(self.shared.raw_stream()) }
    }

    /// Sets the learning rate of a group for later steps, and for later launches of graphs on the
    /// optimizer's stream. Blocks only when all four staging slots are in flight.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if `lr` is not valid with the rest of the config.
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Driver`] for anything else that the driver reports. The device may then have
    ///   the old or the new value.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{DualAdam, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let stream = kernels.context().default_stream();
    /// # let optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
    /// # let mut optimizer = optimizer.into_capturable()?;
    /// optimizer.set_lr(0, 3e-4)?;
    /// assert_eq!(optimizer.config(0)?.lr, 3e-4);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), CudaError> {
        // SAFETY: the stream is live as long as the optimizer and has all of its work.
        unsafe { self.control.set_lr(group, lr, self.shared.raw_stream()) }?;
        Ok(self.shared.ledger.set_lr(group, lr)?)
    }

    /// Sets the config of a group for later steps, and for later launches of graphs on the
    /// optimizer's stream. Blocks only when all four staging slots are in flight.
    ///
    /// # Errors
    ///
    /// - The errors of [`set_lr`](Self::set_lr).
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), CudaError> {
        // SAFETY: the stream is live as long as the optimizer and has all of its work.
        unsafe { self.control.set_config(group, config, self.shared.raw_stream()) }?;
        Ok(self.shared.ledger.set_config(group, config)?)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, ListError> {
        self.shared.ledger.config(group)
    }

    /// Reads the number of updates that a tensor has had. Waits for the steps so far.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    /// - The errors of [`report`](Self::report).
    pub fn step_of(&self, tensor: usize) -> Result<u64, CudaError> {
        self.shared.ledger.spec(tensor)?;
        // SAFETY: the stream is live as long as the optimizer and has all of its work. The control
        // keeps all counters.
        Ok(unsafe { self.control.steps(self.shared.raw_stream()) }?[tensor])
    }
}

/// The initial state of a tensor's set.
fn start(ledger: &Ledger, tensor: usize) -> Result<SetStart, ListError> {
    Ok(SetStart { step: ledger.step(tensor)?, masters_are_set: !ledger.sets_master(tensor) })
}

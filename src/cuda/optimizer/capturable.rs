//! The owning optimizer whose steps the device counts, so that graphs can repeat them.

#[cfg(feature = "files")]
use std::path::Path;

use crate::checkpoint::State;
use crate::cuda::buffer::{Buffer, BufferMut};
use crate::cuda::control::{Control, ControlGroup, ControlSet, RawScalars, SetReport, SetStart};
use crate::cuda::error::CudaError;
use crate::cuda::stream::refuse_capture;
use crate::ledger::Ledger;
use crate::rule::DualAdamConfig;
use crate::tensor::{ListError, RawBuffer};

use super::scalars::Scalars;
use super::shared::Shared;

/// [`DualAdam`](super::DualAdam) with step counters and learning rates on the device, where each
/// step's coefficients are formed, with the same bits. So steps can be captured in a CUDA graph
/// that goes on counting, and be skipped by the device.
///
/// [`DualAdam::into_capturable`](super::DualAdam::into_capturable) makes one.
///
/// [`set_lr`](Self::set_lr) and [`set_config`](Self::set_config) write device memory in the order
/// of the optimizer's stream: later launches of a graph there see them. [`step_of`](Self::step_of),
/// [`state`](Self::state) and `save` wait for the steps before and read the counters; the file is
/// the same.
///
/// A CUDA graph that captured a step keeps the addresses of parameters and gradients, and works on
/// the optimizer's moments, masters and counters. These stay until the graph is destroyed, even if
/// the optimizer is dropped. `load` gives the optimizer new memory: capture again after it. The
/// first step cannot be captured, unless [`prepare`](Self::prepare) came before.
///
/// # Example
///
/// ```no_run
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::cudarc::driver::sys::CUgraphInstantiate_flags as InstantiateFlags;
/// use dualadam::cuda::cudarc::driver::sys::CUstreamCaptureMode;
/// use dualadam::cuda::{DualAdam, Kernels, Scalars};
///
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().new_stream()?;
/// // SAFETY: all work is on one stream, and cudarc's own events must not get into the graph.
/// unsafe { kernels.context().disable_event_tracking() };
/// let optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
/// let mut optimizer = optimizer.into_capturable()?;
/// let (mut w, grad) = (stream.clone_htod(&[3.0_f32, -4.0])?, stream.clone_htod(&[1.0_f32, 1.0])?);
/// let found_inf = stream.alloc_zeros::<f32>(1)?; // set by the caller's own check
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
    shared: Shared,
    /// A set for each tensor. What the ledger says of steps and masters is not looked at.
    control: Control,
}

impl CapturableDualAdam {
    /// What goes on from where the ledger is.
    pub(super) fn of(mut shared: Shared) -> Result<Self, CudaError> {
        let Shared { kernels, ledger, last_use, .. } = &shared;
        let _current = kernels.enter()?;
        // SAFETY: the stream lives as long as the optimizer, and its context is current.
        unsafe { refuse_capture(shared.raw_stream(), "into_capturable") }?;
        let groups: Vec<_> = ledger.groups().iter().map(|&config| ControlGroup::new(config)).collect();
        let sets: Vec<_> = ledger.specs().map(|spec| ControlSet::new(spec.group)).collect();
        let starts: Vec<_> = (0..ledger.len()).map(|tensor| start(ledger, tensor)).collect::<Result<_, _>>()?;
        let control = Control::starting_at(kernels, &groups, &sets, last_use, |set| starts[set])?;
        if let Some(list) = &mut shared.list {
            // The device sees to masters from now on.
            (0..list.len()).for_each(|tensor| list.set_sets_master(tensor, false));
        }
        Ok(Self { shared, control })
    }

    /// [`DualAdam::step`](super::DualAdam::step), steered by scalars in device memory.
    ///
    /// Tensors whose step cannot be made are skipped, as [`SkipReason`](crate::SkipReason) lists:
    /// their parameters, moments, masters and steps stay as they were. [`report`](Self::report)
    /// tells. Nothing waits for the device; a tensor's first update also sets its masters from the
    /// parameters there.
    ///
    /// A step can be captured in a CUDA graph, with gradients at new addresses too, once the
    /// optimizer has made a step or [`prepare`](Self::prepare). Later steps and captures change
    /// nothing in the graph. Its launches must be ordered with the optimizer's other work: best on
    /// its stream.
    ///
    /// # Errors
    ///
    /// - As [`DualAdam::step`](super::DualAdam::step), without
    ///   [`TensorProblem::StepOverflow`](crate::TensorProblem::StepOverflow).
    /// - [`ListError::Count`] for a scalar of another length than 1.
    /// - [`CudaError::Context`] and [`CudaError::Unordered`] for scalars, as for buffers.
    /// - [`CudaError::Interrupted`] after a step that failed in the middle.
    ///
    /// Nothing is launched then.
    ///
    /// - [`CudaError::Driver`] for what the driver reports. If steps were counted of tensors that
    ///   were not updated, the optimizer refuses to go on with [`CudaError::Interrupted`], and must
    ///   load a state.
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
        // SAFETY: the views are buffers of their formats and of the tensors' lengths in the
        // kernels' context, and so are the scalars. They are borrowed now, and cudarc orders later
        // uses after this work, and their end as well.
        unsafe { self.step_raw(&buffers.params, &buffers.grads, &scalars) }
    }

    /// [`step`](Self::step) over addresses, on the optimizer's stream. Only the format of `params`
    /// is looked at where there is no gradient.
    ///
    /// # Errors
    ///
    /// - As [`step`](Self::step).
    /// - What [`TensorList`](crate::cuda::TensorList) refuses of addresses.
    /// - [`CudaError::Address`] for a scalar that is not aligned to 4 bytes.
    ///
    /// # Safety
    ///
    /// - As for [`DualAdam::step_raw`](super::DualAdam::step_raw), also for each time that a graph
    ///   with this step is launched.
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
        // SAFETY: the stream lives as long as the optimizer. Parameters, gradients and scalars are
        // live memory (this function's requirements); the rest is this optimizer's, whose work is
        // all on one stream.
        unsafe { list.step_active(&mut self.control, scalars, stream) }
    }

    /// Makes what the first step with these buffers needs, but steps nothing: that step can then be
    /// captured. Later steps need no such call, whatever their gradients' addresses are.
    ///
    /// A tensor without a gradient is taken to get gradients of its parameters' format. If its
    /// first one is of another format, that step cannot be captured.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step).
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

    /// [`prepare`](Self::prepare) over addresses. They are only compared; nothing is read or
    /// written there.
    ///
    /// # Errors
    ///
    /// - As [`prepare`](Self::prepare).
    /// - What [`TensorList`](crate::cuda::TensorList) refuses of addresses.
    pub fn prepare_raw(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), CudaError> {
        if !self.describe(params, grads)? && self.shared.list.is_none() && !self.shared.ledger.is_empty() {
            self.shared.update_list()?;
        }
        Ok(())
    }

    /// Brings list and control up to date on the host. Returns whether any tensor has a gradient.
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

    /// What became of each tensor's steps. Waits for the steps so far and reads it from the device.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Interrupted`] after a step that failed in the middle.
    /// - [`CudaError::Driver`] for what the driver reports, also of the steps before.
    pub fn report(&self) -> Result<Vec<SetReport>, CudaError> {
        // SAFETY: the stream lives as long as the optimizer, whose work is all there, and whose
        // counters are the control's.
        unsafe { self.control.report(self.shared.raw_stream()) }
    }

    /// Sets the learning rate of a group, for the steps and graph launches that come later on the
    /// optimizer's stream.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if `lr` is not valid with the rest of the config.
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Driver`] for what the driver reports; the device may have the old or the new
    ///   lr then.
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as the optimizer, whose work is all there.
        unsafe { self.control.set_lr(group, lr, self.shared.raw_stream()) }?;
        Ok(self.shared.ledger.set_lr(group, lr)?)
    }

    /// Sets the whole config of a group, for the steps and graph launches that come later on the
    /// optimizer's stream.
    ///
    /// # Errors
    ///
    /// As [`set_lr`](Self::set_lr).
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), CudaError> {
        // SAFETY: the stream lives as long as the optimizer, whose work is all there.
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

    /// The updates that a tensor has had. Waits for the steps so far.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    /// - As [`report`](Self::report).
    pub fn step_of(&self, tensor: usize) -> Result<u64, CudaError> {
        self.shared.ledger.spec(tensor)?;
        // SAFETY: the stream lives as long as the optimizer, whose work is all there, and whose
        // counters are the control's.
        Ok(unsafe { self.control.steps(self.shared.raw_stream()) }?[tensor])
    }

    /// Takes over a tensor's moments and step from another optimizer; see
    /// [`DualAdam::set_moments`](super::DualAdam::set_moments).
    ///
    /// # Errors
    ///
    /// As [`DualAdam::set_moments`](super::DualAdam::set_moments).
    pub fn set_moments(
        &mut self,
        tensor: usize,
        step: u64,
        exp_avg: &[f32],
        exp_avg_sq: &[f32],
    ) -> Result<(), CudaError> {
        self.shared.set_moments(tensor, exp_avg, exp_avg_sq)?;
        // SAFETY: the stream lives as long as the optimizer, whose work is all there, and it is not
        // captured.
        unsafe { self.control.set_step(tensor, step, self.shared.raw_stream()) }
    }

    /// The whole state: configs, steps, moments and masters. Waits for the steps so far and reads
    /// it from the device.
    ///
    /// # Errors
    ///
    /// As [`report`](Self::report).
    pub fn state(&self) -> Result<State, CudaError> {
        let current = self.shared.begin_read()?;
        // SAFETY: the stream lives as long as the optimizer, whose work is all there, and whose
        // counters are the control's.
        let counted = unsafe { self.control.steps_and_masters(self.shared.raw_stream()) }?;
        let mut ledger = self.shared.ledger.clone();
        for (tensor, (step, masters_are_set)) in counted.into_iter().enumerate() {
            ledger.set_step(tensor, step)?;
            let has_master = ledger.spec(tensor)?.has_master;
            ledger.set_master_is_set(tensor, has_master && masters_are_set)?;
        }
        Ok(State { ledger, arrays: self.shared.read_arrays(&current)? })
    }

    /// Saves the state with [`State::save`]; the file is the same as the CPU backend's, and resumes
    /// there too.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state) and [`State::save`].
    #[cfg(feature = "files")]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CudaError> {
        Ok(self.state()?.save(path)?)
    }

    /// Resumes from a file of any backend, as [`DualAdam::load`](super::DualAdam::load) does.
    /// Capture again after it: earlier graphs go on with the memory of before.
    ///
    /// # Errors
    ///
    /// As [`DualAdam::load`](super::DualAdam::load), and [`CudaError::Captured`] if the optimizer's
    /// stream is being captured.
    #[cfg(feature = "files")]
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), CudaError> {
        let state = State::load_for(&self.shared.ledger, path.as_ref())?;
        *self = Self::of(Shared::from_state(&self.shared.kernels, &self.shared.stream, &state)?)?;
        Ok(())
    }
}

/// How a tensor begins.
fn start(ledger: &Ledger, tensor: usize) -> Result<SetStart, ListError> {
    Ok(SetStart { step: ledger.step(tensor)?, masters_are_set: !ledger.sets_master(tensor) })
}

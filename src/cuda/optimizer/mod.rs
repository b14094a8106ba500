//! The optimizers that own their moments, in device memory, and count their tensors' steps.

mod capturable;
mod moments;
mod scalars;
mod shared;
mod views;

pub use capturable::CapturableDualAdam;
pub use scalars::Scalars;

#[cfg(feature = "files")]
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::checkpoint::State;
use crate::ledger::{CoeffsTable, Ledger, TensorSpec};
use crate::rule::{DualAdamConfig, check_grad_multiplier};
use crate::tensor::{ArgumentError, ListError, RawBuffer};

use super::buffer::{Buffer, BufferMut};
use super::error::CudaError;
use super::kernels::Kernels;
use super::stream::refuse_capture;
use shared::Shared;

/// DualAdam over a model's tensors in device memory: owns the moments, steps and masters, also
/// there, and borrows parameters and gradients for each step.
///
/// Each tensor counts its own updates: one without a gradient is skipped, moments, step and all. A
/// step is enqueued on the optimizer's stream and returns at once. A tensor's first update sets its
/// masters from the parameters, on the device. Methods, results and files are those of
/// [`cpu::DualAdam`](crate::cpu::DualAdam), to the bit.
///
/// Dropping the optimizer never waits for the device. Its device memory is freed after the last
/// step, and after the last graph that captured a step; see [the module's page](super). Any thread
/// may drop it, also while another thread captures.
///
/// # Example
///
/// ```no_run
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{DualAdam, Kernels};
///
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().default_stream();
/// let config = DualAdamConfig::default().with_lr(0.1);
/// let mut optimizer = DualAdam::new(&kernels, &stream, config, &[2, 1])?;
/// let (mut w, mut b) = (stream.clone_htod(&[3.0_f32, -4.0])?, stream.clone_htod(&[1.0_f32])?);
/// for _ in 0..200 {
///     let grad = stream.clone_dtod(&w)?; // of (w0² + w1²)/2
///     optimizer.step([(&mut w).into(), (&mut b).into()], [Some((&grad).into()), None])?;
/// }
/// let state = optimizer.state()?; // resumes on the CPU, too
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DualAdam {
    shared: Shared,
    /// What the step under way needs, kept for the next one's memory.
    table: CoeffsTable,
}

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these lengths, whose work goes to
    /// `stream`.
    ///
    /// # Errors
    ///
    /// As [`with_groups`](Self::with_groups).
    pub fn new(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        config: DualAdamConfig,
        lens: &[usize],
    ) -> Result<Self, CudaError> {
        let specs: Vec<_> = lens.iter().map(|&len| TensorSpec::new(len)).collect();
        Self::with_groups(kernels, stream, &[config], &specs)
    }

    /// An optimizer with several parameter groups, with f32 masters, or with names for its tensors,
    /// whose work goes to `stream`.
    ///
    /// # Errors
    ///
    /// - What [`Ledger::new`] refuses.
    /// - [`CudaError::Context`] if the stream belongs to another context than the kernels.
    /// - [`CudaError::PerThreadStream`] for a stream that is another one in each thread.
    /// - [`TensorProblem::Memory`](crate::TensorProblem::Memory) for more elements than there can be
    ///   memory for.
    /// - [`CudaError::Driver`] if there is not enough memory, and for whatever else the driver
    ///   reports.
    pub fn with_groups(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        groups: &[DualAdamConfig],
        specs: &[TensorSpec],
    ) -> Result<Self, CudaError> {
        let shared = Shared::new(kernels, stream, Ledger::new(groups, specs)?)?;
        Ok(Self { shared, table: CoeffsTable::default() })
    }

    /// An optimizer that goes on from a state, wherever it is from.
    ///
    /// Needs no more device memory than the optimizer itself, unlike `load`.
    ///
    /// # Errors
    ///
    /// As [`State::validate`] and [`with_groups`](Self::with_groups).
    pub fn from_state(kernels: &Kernels, stream: &Arc<CudaStream>, state: &State) -> Result<Self, CudaError> {
        Ok(Self { shared: Shared::from_state(kernels, stream, state)?, table: CoeffsTable::default() })
    }

    /// Moves step counters and learning rates to the device, so that steps can be captured in a
    /// CUDA graph that goes on counting, and be skipped by the device. The bits stay the same.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Ptx`] if the driver refuses the kernel that prepares coefficients.
    /// - [`CudaError::Driver`] for what the driver reports.
    ///
    /// The optimizer is lost then.
    pub fn into_capturable(self) -> Result<CapturableDualAdam, CudaError> {
        CapturableDualAdam::of(self.shared)
    }

    /// One step of every tensor that has a gradient; the others stay as they are.
    ///
    /// `params` and `grads` are in the order of the optimizer's tensors. A tensor with masters
    /// takes 16-bit parameters; its masters are set from them before its first update and rule from
    /// then on.
    ///
    /// A CUDA graph that captured the step keeps its coefficients and addresses. The capture counts
    /// as a step, and the graph's launches count as none: use
    /// [`into_capturable`](Self::into_capturable) for graphs. The graph may be launched only while
    /// the buffers live, which cudarc does not check. The optimizer's first step cannot be
    /// captured.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`] for another number of parameters or gradients than tensors.
    /// - [`TensorProblem::Length`], [`TensorProblem::Formats`] or [`TensorProblem::Overlap`] for
    ///   buffers that don't fit.
    /// - [`TensorProblem::StepOverflow`] for a tensor whose step cannot grow further.
    /// - [`CudaError::Context`] for buffers of another context.
    /// - [`CudaError::Unordered`] for buffers of another `CudaContext` value than the stream's.
    /// - [`CudaError::Captured`] for what cannot be captured.
    /// - [`CudaError::Ptx`] if the driver refuses the kernels, which the first step loads.
    ///
    /// Nothing is launched then, and no step is counted.
    ///
    /// - [`CudaError::Driver`] for what the driver reports. The steps of those tensors are counted
    ///   whose launch was made.
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

    /// [`step`](Self::step) with every gradient first multiplied by `grad_multiplier`: a clip
    /// factor, the inverse of a loss scale, or their product, as [`Steering`](crate::Steering)
    /// forms it.
    ///
    /// # Errors
    ///
    /// - As [`step`](Self::step).
    /// - [`ConfigError::Value`](crate::ConfigError::Value) for a multiplier that
    ///   [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses.
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
        // SAFETY: the views are buffers of their formats and of the tensors' lengths in the
        // kernels' context. They are borrowed now, and cudarc orders later uses after this work,
        // and their end as well.
        unsafe { self.step_raw(&used.params, &used.grads, grad_multiplier) }
    }

    /// [`step_scaled`](Self::step_scaled) over addresses, on the optimizer's stream. Only the
    /// format of `params` is looked at where there is no gradient.
    ///
    /// # Errors
    ///
    /// - As [`step_scaled`](Self::step_scaled).
    /// - What [`TensorList`](super::TensorList) refuses of addresses.
    ///
    /// # Safety
    ///
    /// - From now until the work has run, parameters and gradients of each tensor that has a
    ///   gradient are device memory of the kernels' context, of the tensor's length and of their
    ///   formats.
    /// - The caller orders this work against other uses of that memory, on any stream.
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
            // The graph would set them in each launch.
            // SAFETY: the stream lives as long as the optimizer, and its context is current.
            unsafe { refuse_capture(stream, what) }?;
        }
        let Shared { list: Some(list), ledger, .. } = &mut self.shared else { return Ok(()) };
        let count = |members: &[usize]| {
            members.iter().filter(|&&member| grads[member].is_some()).for_each(|&member| ledger.count(member));
        };
        // SAFETY: the stream lives as long as the optimizer. Parameters and gradients are as this
        // function requires; moments and masters are this optimizer's, whose work is all on one
        // stream.
        unsafe { list.step_launches(self.table.coeffs(), stream, count) }
    }

    /// Checks everything and brings the list up to date. Nothing is launched or counted.
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

    /// Lets the list's next step set the masters of these tensors that were never set. Returns
    /// whether there are any.
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

    /// Sets the learning rate of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// As [`set_config`](Self::set_config).
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), ArgumentError> {
        self.shared.ledger.set_lr(group, lr)
    }

    /// Sets the whole config of a group, from its next step on.
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

    /// The updates that a tensor has had.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn step_of(&self, tensor: usize) -> Result<u64, ListError> {
        self.shared.ledger.step(tensor)
    }

    /// Takes over a tensor's moments and step from another optimizer, such as `exp_avg`,
    /// `exp_avg_sq` and `step` of torch's Adam or AdamW, which mean the same. The moments are given
    /// on the host.
    ///
    /// Masters stay as they are; if there was no update yet, the next one sets them from the
    /// parameters. The call waits for the work before on the optimizer's stream.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a moment's length differs from
    ///   it.
    /// - [`TensorProblem::Negative`](crate::TensorProblem::Negative) if `exp_avg_sq` has a negative
    ///   element.
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Driver`] for what the driver reports. The tensor's moments may be the old or
    ///   the new ones then, and its step is the old one.
    pub fn set_moments(
        &mut self,
        tensor: usize,
        step: u64,
        exp_avg: &[f32],
        exp_avg_sq: &[f32],
    ) -> Result<(), CudaError> {
        self.shared.set_moments(tensor, exp_avg, exp_avg_sq)?;
        Ok(self.shared.ledger.set_step(tensor, step)?)
    }

    /// The whole state: configs, steps, moments and masters. Waits for the steps so far and reads
    /// it from the device.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Driver`] for what the driver reports, also of the steps before.
    pub fn state(&self) -> Result<State, CudaError> {
        let current = self.shared.begin_read()?;
        Ok(State { ledger: self.shared.ledger.clone(), arrays: self.shared.read_arrays(&current)? })
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

    /// Resumes from a file of any backend: configs, steps, moments and masters become those of the
    /// file.
    ///
    /// A resumed run goes on bit for bit as the one that was saved would have. The caller must
    /// restore the parameters. The new moments are allocated before the old ones are freed;
    /// [`State::load`] and [`from_state`](Self::from_state) avoid that.
    ///
    /// # Errors
    ///
    /// - As [`State::load`].
    /// - [`StateProblem::Layout`](crate::StateProblem::Layout) if the file's tensors are not this
    ///   optimizer's: their number, lengths, groups and masters must agree, and names where both
    ///   have them.
    /// - [`CudaError::Driver`] for what the driver reports.
    ///
    /// The optimizer stays as it was then.
    #[cfg(feature = "files")]
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), CudaError> {
        let state = State::load_for(&self.shared.ledger, path.as_ref())?;
        *self = Self::from_state(&self.shared.kernels, &self.shared.stream, &state)?;
        Ok(())
    }
}

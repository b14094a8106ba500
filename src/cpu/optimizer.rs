//! The optimizer that owns its moments and counts its tensors' steps.

#[cfg(all(feature = "files", not(target_family = "wasm")))]
use std::path::Path;

#[cfg(all(feature = "files", not(target_family = "wasm")))]
use crate::checkpoint::StateError;
use crate::checkpoint::{State, check_moments};
use crate::ledger::{CoeffsTable, TensorSpec};
use crate::rule::{DualAdamConfig, check_grad_multiplier};
use crate::tensor::{ArgumentError, ListError, RawBuffer, RawTensor, Role};

use super::buffer::{Buffer, BufferMut, raw_mut};
use super::kernels::Job;
use super::threads::for_each;

/// DualAdam over a model's tensors: owns the moments, steps and masters, and borrows parameters and
/// gradients for each step.
///
/// Each tensor counts its own updates: one without a gradient is skipped, moments, step and all.
///
/// # Example
///
/// ```
/// use dualadam::{DualAdamConfig, SwitchSchedule, cpu};
///
/// let config = DualAdamConfig::default().with_lr(0.1).with_schedule(SwitchSchedule::linear_until(20));
/// let mut optimizer = cpu::DualAdam::new(config, &[2, 1])?;
/// let (mut w, mut b) = ([3.0_f32, -4.0], [1.0_f32]);
/// for _ in 0..200 {
///     let grad = w; // of (w0² + w1²)/2
///     optimizer.step([(&mut w).into(), (&mut b).into()], [Some((&grad).into()), None])?;
/// }
/// assert!(w.iter().all(|w| w.abs() < 1e-2));
/// assert_eq!((b, optimizer.step_of(0)?, optimizer.step_of(1)?), ([1.0], 200, 0));
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
pub struct DualAdam {
    state: State,
    /// What the step under way needs, kept for the next one's memory.
    table: CoeffsTable,
    params: Vec<Borrowed>,
    grads: Vec<Option<Borrowed>>,
    jobs: Vec<Job>,
}

/// What a step was given, with its elements.
type Borrowed = (RawBuffer, usize);

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these lengths.
    ///
    /// # Errors
    ///
    /// As [`with_groups`](Self::with_groups).
    pub fn new(config: DualAdamConfig, lens: &[usize]) -> Result<Self, ArgumentError> {
        let specs: Vec<_> = lens.iter().map(|&len| TensorSpec::new(len)).collect();
        Self::with_groups(&[config], &specs)
    }

    /// An optimizer with several parameter groups, with f32 masters, or with names for its tensors.
    ///
    /// # Errors
    ///
    /// As [`State::new`].
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, TensorSpec, WeightDecay, cpu::DualAdam};
    ///
    /// let decayed = DualAdamConfig::default().with_weight_decay(WeightDecay::Decoupled(0.1));
    /// let specs = [TensorSpec::new(1024).with_master().with_name("weight"), TensorSpec::new(32).in_group(1)];
    /// let optimizer = DualAdam::with_groups(&[decayed, DualAdamConfig::default()], &specs)?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn with_groups(groups: &[DualAdamConfig], specs: &[TensorSpec]) -> Result<Self, ArgumentError> {
        Self::try_from(State::new(groups, specs)?)
    }

    /// One step of every tensor that has a gradient; the others stay as they are.
    ///
    /// `params` and `grads` are in the order of the optimizer's tensors. A tensor with masters
    /// takes 16-bit parameters; its masters are set from them before its first update and rule from
    /// then on.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`] for another number of parameters or gradients than tensors.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) or
    ///   [`TensorProblem::Formats`](crate::TensorProblem::Formats) for buffers that don't fit.
    /// - [`TensorProblem::StepOverflow`](crate::TensorProblem::StepOverflow) for a tensor whose
    ///   step cannot grow further.
    ///
    /// Nothing is written then, and no step is counted.
    pub fn step<'a>(
        &mut self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
    ) -> Result<(), ArgumentError> {
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
    ///
    /// # Example
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[1])?;
    /// let (loss_scale, norm, max_norm) = (1024.0, 5.0, 1.0_f64); // the norm is that of the unscaled gradients
    /// let clip = f64::min(1.0, max_norm / norm);
    /// let (mut w, grad) = ([1.0_f32], [1024.0_f32]);
    /// optimizer.step_scaled([(&mut w).into()], [Some((&grad).into())], clip / loss_scale)?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn step_scaled<'a>(
        &mut self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
        grad_multiplier: f64,
    ) -> Result<(), ArgumentError> {
        let ledger = &self.state.ledger;
        ledger.collect("params", params.into_iter().map(|mut param| (param.raw(), param.len())), &mut self.params)?;
        let borrowed = |grad: Buffer<'a>| (grad.raw(), grad.len());
        ledger.collect("grads", grads.into_iter().map(|grad| grad.map(borrowed)), &mut self.grads)?;
        check_grad_multiplier(grad_multiplier)?;
        self.prepare(grad_multiplier)?;
        let elements = self.jobs.iter().fold(0, |sum: u64, job| sum.saturating_add(job.tensor.len));
        let coeffs = self.table.coeffs();
        for_each(&self.jobs, elements, |job| {
            // SAFETY: parameters and gradients are slices of the tensor's length and formats,
            // borrowed for this call; the other buffers are the optimizer's own, of the same
            // length, and used by this job alone.
            unsafe { job.run(&coeffs[job.tensor.coeffs_index]) };
        });
        for (tensor, _) in self.grads.iter().enumerate().filter(|(_, grad)| grad.is_some()) {
            self.state.ledger.count(tensor);
        }
        Ok(())
    }

    /// Checks everything, and forms the jobs of the step.
    fn prepare(&mut self, grad_multiplier: f64) -> Result<(), ArgumentError> {
        let Self { state: State { ledger, arrays }, table, params, grads, jobs } = self;
        table.clear();
        jobs.clear();
        let given = params.iter().zip(grads.iter());
        for (index, (arrays, (&(param, param_len), grad))) in arrays.iter_mut().zip(given).enumerate() {
            ledger.check_len(index, Role::Param, param_len)?;
            let Some((grad, grad_len)) = *grad else { continue };
            ledger.check_len(index, Role::Grad, grad_len)?;
            let (exp_avg, exp_avg_sq) = (raw_mut(&mut arrays.exp_avg), raw_mut(&mut arrays.exp_avg_sq));
            let mut tensor = RawTensor::new(param_len as u64, param, grad, exp_avg, exp_avg_sq);
            tensor.master = arrays.master.as_mut().map(|master| raw_mut(master));
            let variant = tensor.variant(index).map_err(|error| ledger.named(error))?;
            tensor.coeffs_index = ledger.coeffs_index(table, index, grad_multiplier)?;
            jobs.push(Job { tensor, variant, sets_master: ledger.sets_master(index) });
        }
        Ok(())
    }

    /// Sets the learning rate of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// As [`set_config`](Self::set_config).
    ///
    /// # Example
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[1])?;
    /// for step in 0..100 {
    ///     optimizer.set_lr(0, 1e-3 * (1.0 - f64::from(step) / 100.0))?;
    ///     // … and a step
    /// }
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), ArgumentError> {
        self.state.ledger.set_lr(group, lr)
    }

    /// Sets the whole config of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if the config is not valid.
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), ArgumentError> {
        self.state.ledger.set_config(group, config)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    ///
    /// # Example
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[1])?;
    /// let halved = optimizer.config(0)?.lr / 2.0;
    /// optimizer.set_config(0, optimizer.config(0)?.with_lr(halved))?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, ListError> {
        self.state.ledger.config(group)
    }

    /// The updates that a tensor has had.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn step_of(&self, tensor: usize) -> Result<u64, ListError> {
        self.state.ledger.step(tensor)
    }

    /// Takes over a tensor's moments and step from another optimizer, such as `exp_avg`,
    /// `exp_avg_sq` and `step` of torch's Adam or AdamW, which mean the same.
    ///
    /// Masters stay as they are; if there was no update yet, the next one sets them from the
    /// parameters.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a moment's length differs from
    ///   it.
    /// - [`TensorProblem::Negative`](crate::TensorProblem::Negative) if `exp_avg_sq` has a negative
    ///   element.
    ///
    /// # Example
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[2])?;
    /// let (step, exp_avg, exp_avg_sq) = (100, [0.1, -0.2], [0.01, 0.04]); // of `torch_optimizer.state[parameter]`
    /// optimizer.set_moments(0, step, &exp_avg, &exp_avg_sq)?;
    /// assert_eq!(optimizer.step_of(0)?, 100);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_moments(
        &mut self,
        tensor: usize,
        step: u64,
        exp_avg: &[f32],
        exp_avg_sq: &[f32],
    ) -> Result<(), ArgumentError> {
        let State { ledger, arrays } = &mut self.state;
        let len = ledger.spec(tensor)?.len;
        check_moments(tensor, len, exp_avg, exp_avg_sq).map_err(|error| ledger.named(error))?;
        arrays[tensor].exp_avg.copy_from_slice(exp_avg);
        arrays[tensor].exp_avg_sq.copy_from_slice(exp_avg_sq);
        Ok(ledger.set_step(tensor, step)?)
    }

    /// The whole state: configs, steps, moments and masters.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Saves the state with [`State::save`].
    ///
    /// # Errors
    ///
    /// As [`State::save`].
    #[cfg(all(feature = "files", not(target_family = "wasm")))]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), StateError> {
        self.state.save(path)
    }

    /// Resumes from a file: configs, steps, moments and masters become those of the file.
    ///
    /// A resumed run goes on bit for bit as the one that was saved would have, if the caller
    /// restores the parameters as well.
    ///
    /// # Errors
    ///
    /// - As [`State::load`].
    /// - [`StateProblem::Layout`](crate::StateProblem::Layout) if the file's tensors are not this
    ///   optimizer's: their number, lengths, groups and masters must agree, and names where both
    ///   have them.
    ///
    /// The optimizer stays as it was then.
    ///
    /// # Example
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("optimizer.safetensors");
    /// use dualadam::{DualAdamConfig, cpu::DualAdam};
    ///
    /// let optimizer = DualAdam::new(DualAdamConfig::default(), &[1024, 16])?;
    /// optimizer.save(&path)?;
    /// let mut resumed = DualAdam::new(DualAdamConfig::default(), &[1024, 16])?;
    /// resumed.load(&path)?;
    /// assert_eq!(resumed.state(), optimizer.state());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(all(feature = "files", not(target_family = "wasm")))]
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), StateError> {
        let state = State::load_for(&self.state.ledger, path.as_ref())?;
        *self = Self::try_from(state)?;
        Ok(())
    }
}

impl TryFrom<State> for DualAdam {
    type Error = ArgumentError;

    /// An optimizer that goes on from a state, wherever it is from.
    ///
    /// # Errors
    ///
    /// As [`State::validate`].
    fn try_from(mut state: State) -> Result<Self, ArgumentError> {
        state.validate()?;
        // An empty tensor's masters may be there without need, or be missing.
        for (spec, arrays) in state.ledger.specs().zip(&mut state.arrays) {
            arrays.master = spec.has_master.then(|| arrays.master.take().unwrap_or_default());
        }
        Ok(Self { state, table: CoeffsTable::default(), params: vec![], grads: vec![], jobs: vec![] })
    }
}

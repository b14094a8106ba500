//! The optimizer that owns its moments and counts the steps of its tensors.

mod state;

use crate::checkpoint::State;
use crate::ledger::{CoeffsTable, TensorSpec};
use crate::rule::{DualAdamConfig, check_grad_multiplier};
use crate::tensor::{ArgumentError, ListError, MasterPair, RawBuffer, RawTensor, Role};

use super::buffer::{Buffer, BufferMut, raw_mut};
use super::kernels::Job;
use super::sync::SyncJob;
use super::threads::for_each;

/// The DualAdam optimizer of a model's tensors.
///
/// It owns moments, masters and steps, and borrows parameters and gradients for each step. Each
/// tensor counts its own updates. A tensor without a gradient is skipped: its parameters, moments
/// and step stay as they are.
///
/// # Examples
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
    /// Used within a step, and kept so that the next step does not allocate.
    table: CoeffsTable,
    params: Vec<Borrowed>,
    grads: Vec<Option<Borrowed>>,
    jobs: Vec<Job>,
}

/// A buffer that a step was given, with its number of elements.
type Borrowed = (RawBuffer, usize);

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these numbers of elements.
    ///
    /// # Errors
    ///
    /// - [`ArgumentError::Group`] if the config is not valid.
    /// - [`TensorProblem::Memory`](crate::TensorProblem::Memory) if a moment cannot be allocated.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, cpu::DualAdam};
    ///
    /// let optimizer = DualAdam::new(DualAdamConfig::default(), &[1024, 32])?;
    /// assert_eq!(optimizer.state().arrays[0].exp_avg.len(), 1024);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn new(config: DualAdamConfig, lens: &[usize]) -> Result<Self, ArgumentError> {
        let specs: Vec<_> = lens.iter().map(|&len| TensorSpec::new(len)).collect();
        Self::with_groups(&[config], &specs)
    }

    /// An optimizer with several parameter groups, with f32 masters, or with named tensors.
    ///
    /// # Errors
    ///
    /// - [`ArgumentError::Group`] if a config is not valid.
    /// - [`TensorProblem::Group`](crate::TensorProblem::Group) if a tensor's group is not an index
    ///   of `groups`.
    /// - [`TensorProblem::Memory`](crate::TensorProblem::Memory) if an array cannot be allocated.
    ///
    /// # Examples
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

    /// One step of each tensor that has a gradient.
    ///
    /// `params` and `grads` are in the order of the optimizer's tensors. A tensor whose gradient is
    /// `None` is skipped.
    ///
    /// A tensor with masters takes bf16 or f16 parameters. Its first update sets the masters from
    /// the parameters. From then on a step reads the masters, and only writes the parameters.
    ///
    /// # Errors
    ///
    /// Nothing is written, and no step is counted.
    ///
    /// - [`ListError::Count`] if there are not as many parameters or gradients as tensors.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a buffer has another length
    ///   than its tensor.
    /// - [`TensorProblem::Formats`](crate::TensorProblem::Formats) if no
    ///   [variant](crate::Variant) has a tensor's formats.
    /// - [`TensorProblem::StepOverflow`](crate::TensorProblem::StepOverflow) if a tensor's step is
    ///   [`u64::MAX`].
    ///
    /// # Examples
    ///
    /// A bf16 tensor with masters, and a tensor without a gradient:
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, TensorSpec, cpu::DualAdam, half::bf16};
    ///
    /// let specs = [TensorSpec::new(4).with_master(), TensorSpec::new(2)];
    /// let mut optimizer = DualAdam::with_groups(&[DualAdamConfig::default()], &specs)?;
    /// let (mut weight, grad, mut frozen) = ([bf16::ONE; 4], [bf16::ONE; 4], [1.0_f32; 2]);
    /// optimizer.step([(&mut weight).into(), (&mut frozen).into()], [Some((&grad).into()), None])?;
    /// assert_eq!((optimizer.step_of(0)?, optimizer.step_of(1)?), (1, 0));
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn step<'a>(
        &mut self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
    ) -> Result<(), ArgumentError> {
        self.step_scaled(params, grads, 1.0)
    }

    /// [`step`](Self::step) with each gradient first multiplied by `grad_multiplier`.
    ///
    /// The multiplier is a clip factor, the inverse of a loss scale, or their product, as
    /// [`Steering::multiplier`](crate::Steering::multiplier) forms it.
    ///
    /// # Errors
    ///
    /// Nothing is written, and no step is counted.
    ///
    /// - As [`step`](Self::step).
    /// - [`ConfigError::Value`](crate::ConfigError::Value) if
    ///   [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses the multiplier.
    ///
    /// # Examples
    ///
    /// The loss was multiplied by 1,024, and the norm of the gradients is clipped to 1:
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[1])?;
    /// use dualadam::Steering;
    ///
    /// let norm = 5.0; // of the gradients divided by the loss scale
    /// let steering = Steering::default().with_loss_scale(1024.0).with_clip_factor(f32::min(1.0, 1.0 / norm));
    /// let (mut w, grad) = ([1.0_f32], [5.0 * 1024.0_f32]);
    /// if let Ok(multiplier) = steering.multiplier() {
    ///     optimizer.step_scaled([(&mut w).into()], [Some((&grad).into())], multiplier)?;
    /// }
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
            // SAFETY: `prepare` took the variant of the tensor's formats. Parameters and gradients
            // are slices of the tensor's length and formats, which this call borrows. The other
            // buffers are the optimizer's own, of the same length, and no other job has them.
            unsafe { job.run(&coeffs[job.tensor.coeffs_index]) };
        });
        for (tensor, _) in self.grads.iter().enumerate().filter(|(_, grad)| grad.is_some()) {
            self.state.ledger.count(tensor);
        }
        Ok(())
    }

    /// Takes over into the masters what other code wrote into their parameters since the last step.
    ///
    /// Without this call, the next step overwrites such changes: a clamp, a pruning mask, loaded
    /// weights. [`sync_master`](super::sync_master) states what happens to each element.
    ///
    /// `params` are in the order of the optimizer's tensors, and are only read. Tensors without
    /// masters are passed over. So are tensors before their first update, which sets the masters
    /// from the parameters.
    ///
    /// # Errors
    ///
    /// Nothing is written.
    ///
    /// - [`ListError::Count`] if there are not as many parameters as tensors.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a buffer has another length
    ///   than its tensor.
    /// - [`TensorProblem::MasterFormats`](crate::TensorProblem::MasterFormats) if the parameters of
    ///   a tensor with masters are not bf16 or f16.
    ///
    /// # Examples
    ///
    /// A parameter is clamped after each step:
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, TensorSpec, cpu::DualAdam, half::bf16};
    ///
    /// let specs = [TensorSpec::new(1).with_master()];
    /// let mut optimizer = DualAdam::with_groups(&[DualAdamConfig::adam().with_lr(0.125)], &specs)?;
    /// let (mut w, grad) = ([bf16::ONE], [bf16::ONE]);
    /// for _ in 0..3 {
    ///     optimizer.step([(&mut w).into()], [Some((&grad).into())])?;
    ///     w = w.map(|w| if w < bf16::ONE { bf16::ONE } else { w });
    ///     optimizer.sync_masters([(&w).into()])?;
    /// }
    /// assert_eq!(optimizer.state().arrays[0].master, Some(vec![1.0]));
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn sync_masters<'a>(&mut self, params: impl IntoIterator<Item = Buffer<'a>>) -> Result<(), ArgumentError> {
        let State { ledger, arrays } = &mut self.state;
        ledger.collect("params", params.into_iter().map(|param| (param.raw(), param.len())), &mut self.params)?;
        let mut jobs = vec![];
        for (index, (arrays, &(param, len))) in arrays.iter_mut().zip(&self.params).enumerate() {
            ledger.check_len(index, Role::Param, len)?;
            if let Some(master) = arrays.master.as_mut().filter(|_| !ledger.sets_master(index)) {
                let pair = MasterPair { len: len as u64, param, master: raw_mut(master) };
                jobs.push(SyncJob::new(index, pair).map_err(|error| ledger.named(error))?);
            }
        }
        let elements = jobs.iter().fold(0, |sum: u64, job| sum.saturating_add(job.len()));
        for_each(&jobs, elements, |job| {
            // SAFETY: the parameters are a slice of the tensor's length and their format, which
            // this call borrows. The masters are the optimizer's own, of the same length, and no
            // other job has them.
            unsafe { job.run() };
        });
        Ok(())
    }

    /// Checks all arguments and forms the jobs of the step.
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
    /// - As [`set_config`](Self::set_config).
    ///
    /// # Examples
    ///
    /// A learning rate that falls linearly to 0:
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[1])?;
    /// # let (mut w, grad) = ([1.0_f32], [1.0_f32]);
    /// for step in 0..100 {
    ///     optimizer.set_lr(0, 1e-3 * (1.0 - f64::from(step) / 100.0))?;
    ///     optimizer.step([(&mut w).into()], [Some((&grad).into())])?;
    /// }
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), ArgumentError> {
        self.state.ledger.set_lr(group, lr)
    }

    /// Sets the config of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// The config stays as it was.
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if [`validate`](DualAdamConfig::validate) refuses the
    ///   config.
    ///
    /// # Examples
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[1])?;
    /// let config = optimizer.config(0)?.with_betas(0.9, 0.99);
    /// optimizer.set_config(0, config)?;
    /// assert!(optimizer.set_config(0, config.with_lr(f64::NAN)).is_err());
    /// assert_eq!(optimizer.config(0)?, config);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), ArgumentError> {
        self.state.ledger.set_config(group, config)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, ListError> {
        self.state.ledger.config(group)
    }

    /// The number of updates that a tensor has had.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn step_of(&self, tensor: usize) -> Result<u64, ListError> {
        self.state.ledger.step(tensor)
    }
}

//! The optimizer that owns its moments and counts its tensors' steps.

use std::path::Path;

use rayon::prelude::*;

use crate::config::check_grad_multiplier;
use crate::dtype::Element;
use crate::owner;
use crate::{DualAdamConfig, Error, State, StepCoeffs, TensorLayout, TensorState};

use super::launch::CHUNK;
use super::tensor::{CopyMut, Grads, ParamsMut, Tensor};

/// DualAdam over a model's tensors: owns the moments, steps and masters, and borrows parameters and gradients for each step.
///
/// Each tensor counts its own updates: one without a gradient is left alone, moments, step and all.
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
///     let grads = w; // of (w0² + w1²)/2
///     optimizer.step(&mut [(&mut w).into(), (&mut b).into()], &[Some((&grads).into()), None])?;
/// }
/// assert!(w.iter().all(|w| w.abs() < 1e-2));
/// assert_eq!((b, optimizer.step_of(0)?, optimizer.step_of(1)?), ([1.0], 200, 0));
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct DualAdam {
    state: State,
    /// Each tensor's coefficients in the step under way.
    sets: Vec<StepCoeffs>,
}

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these lengths.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if the config is not valid.
    pub fn new(config: DualAdamConfig, lens: &[usize]) -> Result<Self, Error> {
        let layout: Vec<_> = lens.iter().map(|&len| TensorLayout::new(len)).collect();
        Self::with_groups(&[config], &layout)
    }

    /// An optimizer with several parameter groups, or with f32 masters.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if a config is not valid; [`Error::Index`] if a tensor names a group that is not there.
    ///
    /// # Example
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, TensorLayout, WeightDecay, cpu::DualAdam};
    ///
    /// let decayed = DualAdamConfig::default().with_weight_decay(WeightDecay::Decoupled(0.1));
    /// let layout = [TensorLayout::new(1024).with_master(), TensorLayout::new(32).in_group(1)];
    /// let optimizer = DualAdam::with_groups(&[decayed, DualAdamConfig::default()], &layout)?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn with_groups(groups: &[DualAdamConfig], layout: &[TensorLayout]) -> Result<Self, Error> {
        Self::try_from(State::new(groups, layout)?)
    }

    /// One step of every tensor that has a gradient; the others stay as they are.
    ///
    /// `params` and `grads` are in the order of the optimizer's tensors. A tensor with masters takes 16-bit parameters; its
    /// masters are set from them before its first update and rule from then on.
    ///
    /// # Errors
    ///
    /// [`Error::Count`], [`Error::Length`] or [`Error::Types`] for lists or buffers that don't fit, [`Error::Value`] for a
    /// config that is not valid. Nothing is written then, and no step is counted.
    pub fn step(&mut self, params: &mut [ParamsMut<'_>], grads: &[Option<Grads<'_>>]) -> Result<(), Error> {
        self.step_scaled(params, grads, 1.0)
    }

    /// [`step`](Self::step) with every gradient first multiplied by `grad_multiplier`: a clip factor, the inverse of a loss
    /// scale, or their product.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step), and [`Error::Value`] for a multiplier that
    /// [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses.
    ///
    /// # Example
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[1])?;
    /// let (loss_scale, norm, max_norm) = (1024.0, 5.0, 1.0_f64); // the norm is that of the unscaled gradients
    /// let clip = f64::min(1.0, max_norm / norm);
    /// let (mut w, grads) = ([1.0_f32], [1024.0_f32]);
    /// optimizer.step_scaled(&mut [(&mut w).into()], &[Some((&grads).into())], clip / loss_scale)?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn step_scaled(
        &mut self,
        params: &mut [ParamsMut<'_>],
        grads: &[Option<Grads<'_>>],
        grad_multiplier: f64,
    ) -> Result<(), Error> {
        check_grad_multiplier(grad_multiplier)?;
        let elements = self.check(params, grads)?;
        self.form_sets(grads, grad_multiplier)?;
        let work = (params, grads, self.state.tensors.as_mut_slice(), self.sets.as_slice());
        let update = |(params, grads, state, set): (&mut ParamsMut<'_>, &Option<Grads<'_>>, &mut TensorState, _)| {
            if let Some(grads) = grads {
                state.update(params, grads, set);
            }
        };
        if elements <= CHUNK {
            let (params, grads, states, sets) = work;
            let tensors = params.iter_mut().zip(grads).zip(states).zip(sets);
            tensors.for_each(|(((params, grads), state), set)| update((params, grads, state, set)));
        } else {
            work.into_par_iter().for_each(update);
        }
        Ok(())
    }

    /// Checks everything but the coefficients; returns the elements that have a gradient.
    fn check(&mut self, params: &mut [ParamsMut<'_>], grads: &[Option<Grads<'_>>]) -> Result<usize, Error> {
        owner::check_counts(self.state.tensors.len(), params.len(), grads.len())?;
        let mut elements = 0_usize;
        for (index, ((params, grads), state)) in params.iter_mut().zip(grads).zip(&mut self.state.tensors).enumerate() {
            if params.len() != state.exp_avg.len() {
                let (expected, actual) = (state.exp_avg.len(), params.len());
                return Err(Error::Length { tensor: index, buffer: "params", expected, actual });
            }
            let Some(grads) = grads else { continue };
            if state.step == u64::MAX {
                return Err(Error::StepOverflow { tensor: index });
            }
            if let (Some(_), ParamsMut::F32(_)) = (&state.master, &*params) {
                let (params, grads) = (params.dtype(), grads.dtype());
                return Err(Error::Types { tensor: index, params, grads, copy: Some(params) });
            }
            state.tensor(params, grads).check(index)?;
            elements = elements.saturating_add(params.len());
        }
        Ok(elements)
    }

    fn form_sets(&mut self, grads: &[Option<Grads<'_>>], grad_multiplier: f64) -> Result<(), Error> {
        let mut last: Option<(usize, u64, StepCoeffs)> = None;
        for ((tensor, set), grads) in self.state.tensors.iter().zip(&mut self.sets).zip(grads) {
            if grads.is_none() {
                continue;
            }
            // Neighbours mostly share group and step, and the powers are dear beside a small tensor.
            *set = match last {
                Some((group, step, set)) if (group, step) == (tensor.group, tensor.step) => set,
                _ => self.state.groups[tensor.group].coeffs_scaled(tensor.step + 1, grad_multiplier)?,
            };
            last = Some((tensor.group, tensor.step, *set));
        }
        Ok(())
    }

    /// Sets the learning rate of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group; [`Error::Value`] if `lr` is not valid with the rest of the config.
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
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), Error> {
        self.set_config(group, self.config(group)?.with_lr(lr))
    }

    /// Sets the whole config of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group; [`Error::Value`] if the config is not valid.
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), Error> {
        owner::set_config(&mut self.state.groups, group, config)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group.
    ///
    /// # Example
    ///
    /// ```
    /// # let mut optimizer = dualadam::cpu::DualAdam::new(dualadam::DualAdamConfig::adam(), &[1])?;
    /// let halved = optimizer.config(0)?.lr / 2.0;
    /// optimizer.set_config(0, optimizer.config(0)?.with_lr(halved))?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, Error> {
        owner::at("group", &self.state.groups, group).copied()
    }

    /// The updates that a tensor has had.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such tensor.
    pub fn step_of(&self, tensor: usize) -> Result<u64, Error> {
        owner::at("tensor", &self.state.tensors, tensor).map(|tensor| tensor.step)
    }

    /// Takes over a tensor's moments and step from another optimizer, such as `exp_avg`, `exp_avg_sq` and `step` of torch's
    /// Adam or AdamW, which mean the same.
    ///
    /// Masters stay as they are; if there was no update yet, the next one sets them from the parameters.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such tensor, [`Error::Length`] if a moment's length differs from it,
    /// [`Error::Value`] if `exp_avg_sq` has a negative element.
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
    pub fn set_moments(&mut self, tensor: usize, step: u64, exp_avg: &[f32], exp_avg_sq: &[f32]) -> Result<(), Error> {
        let len = owner::at("tensor", &self.state.tensors, tensor)?.exp_avg.len();
        owner::check_moments(tensor, len, exp_avg, exp_avg_sq)?;
        let state = &mut self.state.tensors[tensor];
        state.exp_avg.copy_from_slice(exp_avg);
        state.exp_avg_sq.copy_from_slice(exp_avg_sq);
        state.step = step;
        Ok(())
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
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.state.save(path)
    }

    /// Resumes from a file: configs, steps, moments and masters become those of the file.
    ///
    /// A resumed run goes on bit for bit as the one that was saved would have. The parameters are the caller's to restore.
    ///
    /// # Errors
    ///
    /// As [`State::load`], and [`Error::State`] if the file's tensors are not this optimizer's: their number, lengths,
    /// groups and masters must agree. The optimizer stays as it was then.
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
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let state = State::load(path)?;
        self.state.check_layout(&state).map_err(|problem| Error::State { path: path.to_owned(), problem })?;
        *self = Self::try_from(state)?;
        Ok(())
    }
}

impl TryFrom<State> for DualAdam {
    type Error = Error;

    /// An optimizer that goes on from a state, wherever it is from.
    ///
    /// # Errors
    ///
    /// As [`State::validate`].
    fn try_from(state: State) -> Result<Self, Error> {
        state.validate()?;
        let sets = vec![bytemuck::Zeroable::zeroed(); state.tensors.len()];
        Ok(Self { state, sets })
    }
}

impl TensorState {
    fn tensor<'a>(&'a mut self, params: &'a mut ParamsMut<'_>, grads: &'a Grads<'_>) -> Tensor<'a> {
        let (exp_avg, exp_avg_sq) = (self.exp_avg.as_mut_slice(), self.exp_avg_sq.as_mut_slice());
        let grads = grads.reborrow();
        match &mut self.master {
            None => Tensor { params: params.reborrow(), grads, exp_avg, exp_avg_sq, copy: None, set: 0 },
            Some(master) => {
                Tensor { params: master.into(), grads, exp_avg, exp_avg_sq, copy: params.as_copy(), set: 0 }
            }
        }
    }

    fn update(&mut self, params: &mut ParamsMut<'_>, grads: &Grads<'_>, coeffs: &StepCoeffs) {
        if let (false, Some(master)) = (self.master_is_set, &mut self.master) {
            params.widen_into(master);
            self.master_is_set = true;
        }
        self.tensor(params, grads).run(coeffs);
        self.step += 1;
    }
}

impl ParamsMut<'_> {
    fn reborrow(&mut self) -> ParamsMut<'_> {
        match self {
            Self::F32(buffer) => ParamsMut::F32(buffer),
            Self::Bf16(buffer) => ParamsMut::Bf16(buffer),
            Self::F16(buffer) => ParamsMut::F16(buffer),
        }
    }

    fn as_copy(&mut self) -> Option<CopyMut<'_>> {
        match self {
            Self::F32(_) => None,
            Self::Bf16(buffer) => Some(CopyMut::Bf16(buffer)),
            Self::F16(buffer) => Some(CopyMut::F16(buffer)),
        }
    }

    fn widen_into(&self, master: &mut [f32]) {
        match self {
            Self::F32(buffer) => master.copy_from_slice(buffer),
            Self::Bf16(buffer) => master.iter_mut().zip(buffer.iter()).for_each(|(to, from)| *to = from.widen()),
            Self::F16(buffer) => master.iter_mut().zip(buffer.iter()).for_each(|(to, from)| *to = from.widen()),
        }
    }
}

impl Grads<'_> {
    fn reborrow(&self) -> Grads<'_> {
        match self {
            Self::F32(buffer) => Grads::F32(buffer),
            Self::Bf16(buffer) => Grads::Bf16(buffer),
            Self::F16(buffer) => Grads::F16(buffer),
        }
    }
}

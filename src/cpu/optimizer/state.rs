//! The optimizer's state: set from another optimizer's, saved and loaded.

#[cfg(all(feature = "files", not(target_family = "wasm")))]
use std::path::Path;

#[cfg(all(feature = "files", not(target_family = "wasm")))]
use crate::checkpoint::StateError;
use crate::checkpoint::{State, check_moments};
use crate::ledger::CoeffsTable;
use crate::tensor::ArgumentError;

use super::{DualAdam, Parts};

impl DualAdam {
    /// Sets a tensor's moments and step to those of another optimizer.
    ///
    /// `step`, `exp_avg` and `exp_avg_sq` of torch's Adam and AdamW have the same meaning. Masters
    /// are not changed: if they have not been set yet, the next update sets them from the
    /// parameters.
    ///
    /// # Errors
    ///
    /// The state stays as it was.
    ///
    /// - [`ListError::Position`](crate::ListError::Position) if there is no such tensor.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a moment has another length
    ///   than the tensor.
    /// - [`TensorProblem::Negative`](crate::TensorProblem::Negative) if `exp_avg_sq` has a negative
    ///   element.
    ///
    /// # Examples
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

    /// The state: configs, steps, moments and masters.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Saves the state to a file, as [`State::save`] does.
    ///
    /// The file does not contain the parameters, which the caller saves. Needs the feature `files`.
    /// Not available on wasm.
    ///
    /// # Errors
    ///
    /// - As [`State::save`].
    ///
    /// # Examples
    ///
    /// ```
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("optimizer.safetensors");
    /// use dualadam::{DualAdamConfig, State, cpu::DualAdam};
    ///
    /// let optimizer = DualAdam::new(DualAdamConfig::default(), &[1024, 16])?;
    /// optimizer.save(&path)?;
    /// assert_eq!(&State::load(&path)?, optimizer.state());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(all(feature = "files", not(target_family = "wasm")))]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), StateError> {
        self.state.save(path)
    }

    /// Replaces configs, steps, moments and masters with those of a file.
    ///
    /// If the caller restores the parameters as well, a resumed run continues bit for bit like the
    /// run that was saved. Needs the feature `files`. Not available on wasm.
    ///
    /// # Errors
    ///
    /// The optimizer stays as it was.
    ///
    /// - As [`State::load`].
    /// - [`StateProblem::Layout`](crate::StateProblem::Layout) if the file is another model's, as
    ///   [`State::check_layout`] defines it.
    ///
    /// # Examples
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

    /// An optimizer that continues from a state, of any backend.
    ///
    /// # Errors
    ///
    /// - As [`State::validate`].
    fn try_from(mut state: State) -> Result<Self, ArgumentError> {
        state.validate()?;
        // A valid state of an empty tensor may lack its masters, or have masters without need.
        for (spec, arrays) in state.ledger.specs().zip(&mut state.arrays) {
            arrays.master = spec.has_master.then(|| arrays.master.take().unwrap_or_default());
        }
        Ok(Self {
            state,
            table: CoeffsTable::default(),
            params: vec![],
            grads: vec![],
            jobs: vec![],
            parts: Parts::default(),
        })
    }
}

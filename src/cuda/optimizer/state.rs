//! The states of both optimizers, to and from the device.

#[cfg(feature = "files")]
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::checkpoint::State;
use crate::cuda::error::CudaError;
use crate::cuda::kernels::Kernels;
use crate::ledger::CoeffsTable;

use super::shared::Shared;
use super::{CapturableDualAdam, DualAdam};

impl DualAdam {
    /// An optimizer that continues from a state of any backend. Its work goes to `stream`.
    ///
    /// Unlike `load`, this needs no more device memory than the optimizer itself. The call waits
    /// for the copies to the device.
    ///
    /// # Errors
    ///
    /// - The errors of [`State::validate`].
    /// - The errors of [`with_groups`](Self::with_groups).
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::cuda::{DualAdam, Kernels};
    /// use dualadam::{DualAdamConfig, cpu};
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// let mut on_cpu = cpu::DualAdam::new(DualAdamConfig::default(), &[2])?;
    /// let (mut w, grad) = ([3.0_f32, -4.0], [1.0_f32, 1.0]);
    /// on_cpu.step([(&mut w).into()], [Some((&grad).into())])?;
    ///
    /// let kernels = Kernels::new(0)?;
    /// let stream = kernels.context().default_stream();
    /// let optimizer = DualAdam::from_state(&kernels, &stream, on_cpu.state())?;
    /// assert_eq!(optimizer.step_of(0)?, 1);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn from_state(kernels: &Kernels, stream: &Arc<CudaStream>, state: &State) -> Result<Self, CudaError> {
        Ok(Self { shared: Shared::from_state(kernels, stream, state)?, table: CoeffsTable::default() })
    }

    /// Replaces a tensor's moments and step, such as with `exp_avg`, `exp_avg_sq` and `step` of
    /// torch's Adam or AdamW, which have the same meaning.
    ///
    /// The moments are on the host, and as long as the tensor. Masters stay as they are; if the
    /// tensor has had no update, the next one sets them from the parameters. The call waits for the
    /// work on the optimizer's stream.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`](crate::ListError::Position) if there is no such tensor.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) for a moment of another length
    ///   than the tensor.
    /// - [`TensorProblem::Negative`](crate::TensorProblem::Negative) if `exp_avg_sq` has a negative
    ///   element.
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Driver`] for anything else that the driver reports. Each moment may then be
    ///   the old or the new one; the step is the old one.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{DualAdam, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let stream = kernels.context().default_stream();
    /// # let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::adam(), &[2])?;
    /// let (step, exp_avg, exp_avg_sq) = (1000, [0.1, -0.2], [0.01, 0.04]);
    /// optimizer.set_moments(0, step, &exp_avg, &exp_avg_sq)?;
    /// assert_eq!(optimizer.state()?.arrays[0].exp_avg, exp_avg);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
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

    /// Reads the state from the device: configs, steps, moments and masters. Waits for the steps so
    /// far.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    /// - [`CudaError::Driver`] for anything else that the driver reports, also about earlier steps.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{DualAdam, Kernels};
    /// use dualadam::cpu;
    ///
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let stream = kernels.context().default_stream();
    /// # let optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
    /// let on_cpu = cpu::DualAdam::try_from(optimizer.state()?)?; // the run continues on the CPU
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn state(&self) -> Result<State, CudaError> {
        let current = self.shared.begin_read()?;
        Ok(State { ledger: self.shared.ledger.clone(), arrays: self.shared.read_arrays(&current)? })
    }

    /// Saves the state to a file with [`State::save`]. Every backend can load the file.
    ///
    /// # Errors
    ///
    /// - The errors of [`state`](Self::state).
    /// - The errors of [`State::save`].
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{DualAdam, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let stream = kernels.context().default_stream();
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("optimizer.safetensors");
    /// let optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
    /// optimizer.save(&path)?;
    ///
    /// let mut resumed = DualAdam::new(&kernels, &stream, DualAdamConfig::adam(), &[2])?;
    /// resumed.load(&path)?;
    /// assert_eq!(resumed.config(0)?, DualAdamConfig::default());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "files")]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CudaError> {
        Ok(self.state()?.save(path)?)
    }

    /// Loads a state file of any backend: configs, steps, moments and masters become those of the
    /// file.
    ///
    /// The caller must restore the parameters. A resumed run then has the bits of one that was
    /// never interrupted. The new moments are allocated before the old ones are freed;
    /// [`State::load`] and [`from_state`](Self::from_state) avoid that.
    ///
    /// # Errors
    ///
    /// - The errors of [`State::load`].
    /// - [`StateProblem::Layout`](crate::StateProblem::Layout) if the file's tensors are not this
    ///   optimizer's: their number, lengths, groups and masters must agree, and their names if both
    ///   have them.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
    ///
    /// After an error the optimizer is as it was.
    #[cfg(feature = "files")]
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), CudaError> {
        let state = State::load_for(&self.shared.ledger, path.as_ref())?;
        *self = Self::from_state(&self.shared.kernels, &self.shared.stream, &state)?;
        Ok(())
    }
}

impl CapturableDualAdam {
    /// Replaces a tensor's moments and step, as
    /// [`DualAdam::set_moments`](super::DualAdam::set_moments) does.
    ///
    /// # Errors
    ///
    /// - The errors of [`DualAdam::set_moments`](super::DualAdam::set_moments). After
    ///   [`CudaError::Driver`] the step, too, may be the old or the new one.
    pub fn set_moments(
        &mut self,
        tensor: usize,
        step: u64,
        exp_avg: &[f32],
        exp_avg_sq: &[f32],
    ) -> Result<(), CudaError> {
        self.shared.set_moments(tensor, exp_avg, exp_avg_sq)?;
        // SAFETY: the stream is live as long as the optimizer and has all of its work, and it is
        // not captured (checked by the call above). The control keeps all counters.
        unsafe { self.control.set_step(tensor, step, self.shared.raw_stream()) }
    }

    /// Reads the state from the device: configs, steps, moments and masters. Waits for the steps so
    /// far.
    ///
    /// # Errors
    ///
    /// - The errors of [`report`](Self::report).
    pub fn state(&self) -> Result<State, CudaError> {
        let current = self.shared.begin_read()?;
        // SAFETY: the stream is live as long as the optimizer and has all of its work. The control
        // keeps all counters.
        let counted = unsafe { self.control.steps_and_masters(self.shared.raw_stream()) }?;
        let mut ledger = self.shared.ledger.clone();
        for (tensor, (step, masters_are_set)) in counted.into_iter().enumerate() {
            ledger.set_step(tensor, step)?;
            let has_master = ledger.spec(tensor)?.has_master;
            ledger.set_master_is_set(tensor, has_master && masters_are_set)?;
        }
        Ok(State { ledger, arrays: self.shared.read_arrays(&current)? })
    }

    /// Saves the state to a file with [`State::save`]. Every backend can load the file.
    ///
    /// # Errors
    ///
    /// - The errors of [`state`](Self::state).
    /// - The errors of [`State::save`].
    #[cfg(feature = "files")]
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), CudaError> {
        Ok(self.state()?.save(path)?)
    }

    /// Loads a state file of any backend, as [`DualAdam::load`](super::DualAdam::load) does.
    ///
    /// The optimizer gets new memory. Graphs that were captured before go on with the old memory:
    /// capture again.
    ///
    /// # Errors
    ///
    /// - The errors of [`DualAdam::load`](super::DualAdam::load).
    /// - [`CudaError::Captured`] if the optimizer's stream is being captured.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{DualAdam, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let stream = kernels.context().default_stream();
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("optimizer.safetensors");
    /// let optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default(), &[2])?;
    /// let mut optimizer = optimizer.into_capturable()?;
    /// optimizer.save(&path)?;
    /// optimizer.load(&path)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(feature = "files")]
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), CudaError> {
        let state = State::load_for(&self.shared.ledger, path.as_ref())?;
        *self = Self::of(Shared::from_state(&self.shared.kernels, &self.shared.stream, &state)?)?;
        Ok(())
    }
}

//! The optimizer's state, to and from the device.

#[cfg(all(feature = "files", not(target_family = "wasm")))]
use std::path::Path;

use crate::checkpoint::{Arrays, State, check_moments};

use super::DualAdam;
use crate::webgpu::arenas::Upload;
#[cfg(not(target_family = "wasm"))]
use crate::webgpu::device::wait;
use crate::webgpu::error::WebGpuError;
use crate::webgpu::pipelines::Pipelines;
use crate::webgpu::readback::{Piece, Readback};

impl DualAdam {
    /// An optimizer that continues from a state of any backend.
    ///
    /// The state reaches the device with the next submit at the latest. It goes through 64 MiB of
    /// staging memory; a larger state is submitted and waited for in pieces. Unlike `load`, this
    /// needs no more device memory than the optimizer itself.
    ///
    /// # Errors
    ///
    /// - The errors of [`State::validate`].
    /// - The errors of [`with_groups`](Self::with_groups).
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::webgpu::{DualAdam, Pipelines};
    /// use dualadam::{DualAdamConfig, cpu};
    ///
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// let mut on_cpu = cpu::DualAdam::new(DualAdamConfig::default(), &[2])?;
    /// let (mut w, grad) = ([3.0_f32, -4.0], [1.0_f32, 1.0]);
    /// on_cpu.step([(&mut w).into()], [Some((&grad).into())])?;
    ///
    /// let optimizer = DualAdam::from_state(&Pipelines::new(&device)?, &queue, on_cpu.state())?;
    /// assert_eq!(&optimizer.state(&queue)?, on_cpu.state());
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn from_state(pipelines: &Pipelines, queue: &wgpu::Queue, state: &State) -> Result<Self, WebGpuError> {
        state.validate()?;
        let made = Self::with_ledger(pipelines, state.ledger.clone())?;
        let mut upload = Upload::new(pipelines.device(), queue, &made.arenas);
        for (tensor, (places, arrays)) in made.places.iter().zip(&state.arrays).enumerate() {
            for (place, (_, array)) in places.all().zip(arrays.by_role()) {
                upload.write(tensor, place, array).map_err(|error| error.named(&made.ledger))?;
            }
        }
        upload.finish()?;
        Ok(made)
    }

    /// Replaces a tensor's moments and step, such as with `exp_avg`, `exp_avg_sq` and `step` of
    /// torch's Adam or AdamW, which have the same meaning.
    ///
    /// The moments are on the host, and as long as the tensor. They reach the device with the next
    /// submit at the latest: submit first what was encoded before. Masters stay as they are; if the
    /// tensor has had no update, the next one sets them from the parameters.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`](crate::ListError::Position) if there is no such tensor.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) for a moment of another length
    ///   than the tensor.
    /// - [`TensorProblem::Negative`](crate::TensorProblem::Negative) if `exp_avg_sq` has a negative
    ///   element.
    /// - [`WebGpuError::Wgpu`] for anything else that wgpu reports, such as a lost device. Each
    ///   moment may then be the old or the new one; the step is the old one.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::webgpu::{DualAdam, Pipelines};
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// # let mut optimizer = DualAdam::new(&Pipelines::new(&device)?, DualAdamConfig::adam(), &[2])?;
    /// let (step, exp_avg, exp_avg_sq) = (1000, [0.1, -0.2], [0.01, 0.04]);
    /// optimizer.set_moments(&queue, 0, step, &exp_avg, &exp_avg_sq)?;
    /// assert_eq!(optimizer.state(&queue)?.arrays[0].exp_avg, exp_avg);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_moments(
        &mut self,
        queue: &wgpu::Queue,
        tensor: usize,
        step: u64,
        exp_avg: &[f32],
        exp_avg_sq: &[f32],
    ) -> Result<(), WebGpuError> {
        let len = self.ledger.spec(tensor)?.len;
        check_moments(tensor, len, exp_avg, exp_avg_sq).map_err(|error| self.ledger.named(error))?;
        let mut upload = Upload::new(self.pipelines.device(), queue, &self.arenas);
        for (place, values) in [(self.places[tensor].exp_avg, exp_avg), (self.places[tensor].exp_avg_sq, exp_avg_sq)] {
            upload.write(tensor, place, values).map_err(|error| error.named(&self.ledger))?;
        }
        upload.finish()?;
        Ok(self.ledger.set_step(tensor, step)?)
    }

    /// Reads the state from the device: configs, steps, moments and masters. Waits for the copies,
    /// not for what is submitted later.
    ///
    /// Submit first what was encoded: its steps are counted, but are not in the moments before the
    /// submit. Browsers cannot block and do not have this method; await
    /// [`read_state`](Self::read_state) there.
    ///
    /// # Errors
    ///
    /// - [`WebGpuError::Wgpu`] for anything that wgpu reports, such as a lost device.
    /// - [`TensorProblem::Memory`](crate::TensorProblem::Memory) if the host is out of memory.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::webgpu::{DualAdam, Pipelines};
    /// use dualadam::cpu;
    ///
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// # let optimizer = DualAdam::new(&Pipelines::new(&device)?, DualAdamConfig::default(), &[2])?;
    /// let on_cpu = cpu::DualAdam::try_from(optimizer.state(&queue)?)?; // the run continues on the CPU
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    #[cfg(not(target_family = "wasm"))]
    pub fn state(&self, queue: &wgpu::Queue) -> Result<State, WebGpuError> {
        let device = self.pipelines.device();
        let started = self.start_reading(queue)?;
        pollster::block_on(self.finish_reading(started, |piece| wait(device, piece.submission.clone())))
    }

    /// Reads the state without blocking: the future gives configs, steps, moments and masters.
    ///
    /// The call submits the first copies to `queue` and returns. They go through at most 64 MiB of
    /// staging memory. A larger state is read in pieces; each is submitted when the piece before
    /// has arrived. The future borrows the optimizer, so that no step is encoded between two
    /// pieces. Other work on the queue goes on.
    ///
    /// - Submit first what was encoded: its steps are counted, but are not in the moments before
    ///   the submit.
    /// - Any executor will do, **as long as the device is polled**: only then does wgpu notice that
    ///   a copy has arrived. [`wgpu::Device::poll`] polls it, and so does a submit. A browser polls
    ///   by itself.
    /// - Dropping the future gives the read up.
    ///
    /// # Errors
    ///
    /// The future returns:
    ///
    /// - [`WebGpuError::Wgpu`] for anything that wgpu reports, such as a device that is lost
    ///   meanwhile.
    /// - [`TensorProblem::Memory`](crate::TensorProblem::Memory) if the host is out of memory.
    ///
    /// # Examples
    ///
    /// In a program that goes on with other work:
    ///
    /// ```
    /// use std::pin::pin;
    /// use std::task::{Context, Poll, Waker};
    ///
    /// use dualadam::webgpu::wgpu;
    ///
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::webgpu::{DualAdam, Pipelines};
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// # let optimizer = DualAdam::new(&Pipelines::new(&device)?, DualAdamConfig::default(), &[1000])?;
    /// let mut read = pin!(optimizer.read_state(&queue));
    /// let state = loop {
    ///     // Other work on the queue goes here, such as an evaluation.
    ///     device.poll(wgpu::PollType::Poll)?;
    ///     let mut context = Context::from_waker(Waker::noop());
    ///     if let Poll::Ready(state) = read.as_mut().poll(&mut context) {
    ///         break state?;
    ///     }
    /// };
    /// assert_eq!(state.arrays[0].exp_avg, [0.0; 1000]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_state<'a>(&'a self, queue: &'a wgpu::Queue) -> impl Future<Output = Result<State, WebGpuError>> + 'a {
        let started = self.start_reading(queue);
        async { self.finish_reading(started?, |_| Ok(())).await }
    }

    /// Submits the copies of the first piece.
    fn start_reading<'a>(&'a self, queue: &'a wgpu::Queue) -> Result<(Readback<'a>, Option<Piece>), WebGpuError> {
        let arrays = self.ledger.specs().zip(&self.places).enumerate();
        let arrays =
            arrays.flat_map(|(tensor, (spec, places))| places.all().map(move |place| (tensor, place, spec.len)));
        let buffer_size = self.pipelines.limits().buffer_size;
        let readback = Readback::new(self.pipelines.device(), queue, &self.arenas, arrays, buffer_size);
        let readback = readback.map_err(|error| error.named(&self.ledger))?;
        let first = readback.submit()?;
        Ok((readback, first))
    }

    /// Reads the pieces, each after a call of `wait`.
    async fn finish_reading(
        &self,
        (mut readback, mut next): (Readback<'_>, Option<Piece>),
        wait: impl Fn(&Piece) -> Result<(), WebGpuError>,
    ) -> Result<State, WebGpuError> {
        while let Some(piece) = next {
            wait(&piece)?;
            readback.take(piece).await?;
            next = readback.submit()?;
        }
        let mut arrays = readback.finish();
        // There are as many arrays as places.
        let mut array = || arrays.next().unwrap_or_default();
        let arrays = self.places.iter().map(|places| Arrays {
            exp_avg: array(),
            exp_avg_sq: array(),
            master: places.master.map(|_| array()),
        });
        Ok(State { arrays: arrays.collect(), ledger: self.ledger.clone() })
    }

    /// Saves the state to a file with [`State::save`]. Every backend can load the file.
    ///
    /// Waits as [`state`](Self::state) does; submit first what was encoded. In browsers, await
    /// [`read_state`](Self::read_state) and keep the bytes of [`State::to_bytes`].
    ///
    /// # Errors
    ///
    /// - The errors of [`state`](Self::state).
    /// - The errors of [`State::save`].
    #[cfg(all(feature = "files", not(target_family = "wasm")))]
    pub fn save(&self, queue: &wgpu::Queue, path: impl AsRef<Path>) -> Result<(), WebGpuError> {
        Ok(self.state(queue)?.save(path)?)
    }

    /// Loads a state file of any backend: configs, steps, moments and masters become those of the
    /// file.
    ///
    /// The caller must restore the parameters. On the same device, a resumed run then has the bits
    /// of one that was never interrupted. The new moments are allocated before the old ones are
    /// freed; [`State::load`] and [`from_state`](Self::from_state) avoid that.
    ///
    /// # Errors
    ///
    /// - The errors of [`State::load`].
    /// - [`StateProblem::Layout`](crate::StateProblem::Layout) if the file's tensors are not this
    ///   optimizer's: their number, lengths, groups and masters must agree, and their names if both
    ///   have them.
    /// - [`WebGpuError::Wgpu`] for anything else that wgpu reports.
    ///
    /// After an error the optimizer is as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::webgpu::{DualAdam, Pipelines};
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// # let pipelines = Pipelines::new(&device)?;
    /// # let optimizer = DualAdam::new(&pipelines, DualAdamConfig::default(), &[2])?;
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("optimizer.safetensors");
    /// optimizer.save(&queue, &path)?;
    ///
    /// let mut resumed = DualAdam::new(&pipelines, DualAdamConfig::adam(), &[2])?;
    /// resumed.load(&queue, &path)?;
    /// assert_eq!(resumed.config(0)?, DualAdamConfig::default());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[cfg(all(feature = "files", not(target_family = "wasm")))]
    pub fn load(&mut self, queue: &wgpu::Queue, path: impl AsRef<Path>) -> Result<(), WebGpuError> {
        let state = State::load_for(&self.ledger, path.as_ref())?;
        *self = Self::from_state(&self.pipelines, queue, &state)?;
        Ok(())
    }
}

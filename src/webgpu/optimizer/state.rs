//! The optimizer's state on its way to and from the device.

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
    /// An optimizer that goes on from a state, wherever it is from.
    ///
    /// The state reaches the device with the next submit at the latest. It goes through 64 MiB of
    /// staging memory; a larger one is submitted and waited for in pieces. Needs no more device
    /// memory than the optimizer itself, unlike `load`.
    ///
    /// # Errors
    ///
    /// As [`State::validate`] and [`with_groups`](Self::with_groups).
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

    /// Takes over a tensor's moments and step from another optimizer, such as `exp_avg`,
    /// `exp_avg_sq` and `step` of torch's Adam or AdamW, which mean the same. The moments are given
    /// on the host, and reach the device with the next submit at the latest: submit first what was
    /// encoded before.
    ///
    /// Masters stay as they are; if there was no update yet, the next one sets them from the
    /// parameters.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`](crate::ListError::Position) if there is no such tensor.
    /// - [`TensorProblem::Length`](crate::TensorProblem::Length) if a moment's length differs from
    ///   it.
    /// - [`TensorProblem::Negative`](crate::TensorProblem::Negative) if `exp_avg_sq` has a negative
    ///   element.
    /// - [`WebGpuError::Wgpu`] for what wgpu reports, such as a lost device. The tensor's moments
    ///   may be those of before or the new ones then, and its step is that of before.
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

    /// The whole state: configs, steps, moments and masters. Waits until it is read, and for
    /// nothing that is submitted later.
    ///
    /// Submit first what was encoded: its steps are counted, and would be missing from the moments.
    /// Not in browsers, where nobody can wait; await [`read_state`](Self::read_state) there.
    ///
    /// # Errors
    ///
    /// - [`WebGpuError::Wgpu`] for what wgpu reports, such as a lost device.
    /// - [`TensorProblem::Memory`](crate::TensorProblem::Memory) if the machine lacks the memory
    ///   for it.
    #[cfg(not(target_family = "wasm"))]
    pub fn state(&self, queue: &wgpu::Queue) -> Result<State, WebGpuError> {
        let device = self.pipelines.device();
        let started = self.start_reading(queue)?;
        pollster::block_on(self.finish_reading(started, |piece| wait(device, piece.submission.clone())))
    }

    /// The whole state, to be awaited: configs, steps, moments and masters.
    ///
    /// The call submits the first copies to `queue` and returns at once. They go through at most 64
    /// MiB of staging memory: a larger state is read in pieces, each submitted once the one before
    /// has arrived. The optimizer is borrowed meanwhile, so that no step is encoded between two
    /// pieces. Submit first what was encoded: its steps are counted, and would be missing from the
    /// moments. Everything else on the queue goes on.
    ///
    /// Any executor will do, **as long as the device is polled** ([`wgpu::Device::poll`]; a submit
    /// does it too, and a browser by itself): that is when wgpu notices that a copy has arrived. A
    /// future that is dropped leaves nothing behind.
    ///
    /// # Errors
    ///
    /// The future's are:
    ///
    /// - [`WebGpuError::Wgpu`] for what wgpu reports, such as a device that is lost meanwhile.
    /// - [`TensorProblem::Memory`](crate::TensorProblem::Memory) if the machine lacks the memory
    ///   for the state.
    ///
    /// # Example
    ///
    /// In a program that goes on with other work:
    ///
    /// ```no_run
    /// use std::pin::pin;
    /// use std::task::{Context, Poll, Waker};
    ///
    /// use dualadam::webgpu::{DualAdam, wgpu};
    ///
    /// # fn example(
    /// #     optimizer: DualAdam,
    /// #     device: wgpu::Device,
    /// #     queue: wgpu::Queue,
    /// # ) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut read = pin!(optimizer.read_state(&queue));
    /// let state = loop {
    ///     // … other work on the queue, such as an evaluation
    ///     device.poll(wgpu::PollType::Poll)?;
    ///     let mut context = Context::from_waker(Waker::noop());
    ///     if let Poll::Ready(state) = read.as_mut().poll(&mut context) {
    ///         break state?;
    ///     }
    /// };
    /// println!("{} tensors", state.ledger.len());
    /// # Ok(())
    /// # }
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
        // As many as there were places.
        let mut array = || arrays.next().unwrap_or_default();
        let arrays = self.places.iter().map(|places| Arrays {
            exp_avg: array(),
            exp_avg_sq: array(),
            master: places.master.map(|_| array()),
        });
        Ok(State { arrays: arrays.collect(), ledger: self.ledger.clone() })
    }

    /// Saves the state with [`State::save`]. The file is the same as the CPU backend's, and resumes
    /// there too.
    ///
    /// Waits as [`state`](Self::state) does; submit first what was encoded. In browsers, await
    /// [`read_state`](Self::read_state) and keep [`State::to_bytes`].
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state) and [`State::save`].
    #[cfg(all(feature = "files", not(target_family = "wasm")))]
    pub fn save(&self, queue: &wgpu::Queue, path: impl AsRef<Path>) -> Result<(), WebGpuError> {
        Ok(self.state(queue)?.save(path)?)
    }

    /// Resumes from a file of any backend: configs, steps, moments and masters become those of the
    /// file.
    ///
    /// On the same device a resumed run goes on bit for bit as the one that was saved would have,
    /// if the caller restores the parameters as well. The new moments are allocated before the old
    /// ones are freed; [`State::load`] and [`from_state`](Self::from_state) avoid that.
    ///
    /// # Errors
    ///
    /// - As [`State::load`].
    /// - [`StateProblem::Layout`](crate::StateProblem::Layout) if the file's tensors are not this
    ///   optimizer's: their number, lengths, groups and masters must agree, and names where both
    ///   have them.
    /// - [`WebGpuError::Wgpu`] for what wgpu reports.
    ///
    /// The optimizer stays as it was then.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use dualadam::webgpu::{DualAdam, WebGpuError, wgpu};
    /// # fn example(
    /// #     optimizer: DualAdam,
    /// #     mut resumed: DualAdam,
    /// #     queue: wgpu::Queue,
    /// # ) -> Result<(), WebGpuError> {
    /// optimizer.save(&queue, "optimizer.safetensors")?; // resumes on the CPU, too
    /// resumed.load(&queue, "optimizer.safetensors")?;
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(all(feature = "files", not(target_family = "wasm")))]
    pub fn load(&mut self, queue: &wgpu::Queue, path: impl AsRef<Path>) -> Result<(), WebGpuError> {
        let state = State::load_for(&self.ledger, path.as_ref())?;
        *self = Self::from_state(&self.pipelines, queue, &state)?;
        Ok(())
    }
}

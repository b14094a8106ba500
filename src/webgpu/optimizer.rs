//! The optimizer that owns its moments, in buffers of its own, and counts its tensors' steps.

use std::path::Path;

use crate::config::check_grad_multiplier;
use crate::owner;
use crate::sets::Sets;
use crate::{Dtype, DualAdamConfig, Error, State, TensorLayout, TensorState};

use super::arenas::{Arenas, Place, Plan, Upload, wait};
use super::list::TensorList;
use super::pipelines::Pipelines;
use super::readback::{Piece, Readback};
use super::tensor::{BufferView, Moment};

/// DualAdam over a model's tensors in wgpu buffers: owns the moments, steps and masters, in buffers of its own, and borrows parameters
/// and gradients for each step.
///
/// Each tensor counts its own updates: one without a gradient is left alone, moments, step and all. A step is encoded into a pass of
/// the caller's, and **counted when it is encoded**: submit every pass, once, and in the order of encoding. Methods and files are those
/// of [`cpu::DualAdam`](crate::cpu::DualAdam); results are within the [backend's bound](super) of its results.
///
/// # Example
///
/// ```no_run
/// use dualadam::webgpu::{BufferView, DualAdam, Pipelines, wgpu};
/// use dualadam::{Dtype, DualAdamConfig};
///
/// # fn example(device: wgpu::Device, queue: wgpu::Queue, w: wgpu::Buffer, w_grads: wgpu::Buffer) -> Result<(), dualadam::Error> {
/// let mut optimizer = DualAdam::new(&Pipelines::new(&device)?, DualAdamConfig::default(), &[1000])?;
/// let (w, w_grads) = (BufferView::new(&w, Dtype::F32), BufferView::new(&w_grads, Dtype::F32));
/// for _ in 0..200 {
///     let mut encoder = device.create_command_encoder(&Default::default());
///     // … the backward pass, and then:
///     let mut pass = encoder.begin_compute_pass(&Default::default());
///     optimizer.step(&mut pass, &[w], &[Some(w_grads)])?;
///     drop(pass);
///     queue.submit([encoder.finish()]);
/// }
/// optimizer.save(&queue, "optimizer.safetensors")?; // resumes on the CPU, too
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DualAdam {
    groups: Vec<DualAdamConfig>,
    tensors: Vec<Tensor>,
    arenas: Arenas,
    /// The tensors as their last step had them.
    list: Option<TensorList>,
    sets: Sets,
    /// The tensors whose masters the step under way sets.
    fresh: Vec<usize>,
    pipelines: Pipelines,
}

/// What is known of a tensor on the host.
#[derive(Debug)]
struct Tensor {
    len: usize,
    group: usize,
    step: u64,
    exp_avg: Place,
    exp_avg_sq: Place,
    master: Option<Place>,
    master_is_set: bool,
}

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these lengths.
    ///
    /// # Errors
    ///
    /// As for [`with_groups`](Self::with_groups).
    pub fn new(pipelines: &Pipelines, config: DualAdamConfig, lens: &[usize]) -> Result<Self, Error> {
        let layout: Vec<_> = lens.iter().map(|&len| TensorLayout::new(len)).collect();
        Self::with_groups(pipelines, &[config], &layout)
    }

    /// An optimizer with several parameter groups, or with f32 masters.
    ///
    /// Several tensors' moments and masters share a buffer of up to 256 MiB. One of more has a buffer of its own, up to the device's
    /// `max_buffer_size`.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if a config is not valid; [`Error::Index`] if a tensor names a group that is not there; [`Error::Limit`] for
    /// masters on a device that cannot bind five buffers; [`Error::ArraySize`] for a tensor whose moments fit in no buffer of the
    /// device; [`Error::Wgpu`] if there is not enough memory, or the device is lost.
    pub fn with_groups(
        pipelines: &Pipelines,
        groups: &[DualAdamConfig],
        layout: &[TensorLayout],
    ) -> Result<Self, Error> {
        owner::check_groups(groups, layout)?;
        let limits = pipelines.limits();
        if layout.iter().any(|layout| layout.master) && !limits.has_copy() {
            return Err(limits.missing_copy());
        }
        let mut plan = Plan::new(limits);
        let tensor = |(index, layout): (usize, &TensorLayout)| {
            let mut place = |array| plan.place(index, array, layout.len);
            Ok(Tensor {
                len: layout.len,
                group: layout.group,
                step: 0,
                exp_avg: place("exp_avg")?,
                exp_avg_sq: place("exp_avg_sq")?,
                master: if layout.master { Some(place("master")?) } else { None },
                master_is_set: false,
            })
        };
        let tensors = layout.iter().enumerate().map(tensor).collect::<Result<_, Error>>()?;
        let arenas = plan.allocate(pipelines.device())?;
        Ok(Self {
            groups: groups.to_vec(),
            tensors,
            arenas,
            list: None,
            sets: Sets::default(),
            fresh: vec![],
            pipelines: pipelines.clone(),
        })
    }

    /// An optimizer that goes on from a state, wherever it is from, on the queue of the pipelines' device.
    ///
    /// The state reaches the device with the next submit at the latest. It goes through 64 MiB of staging memory; a larger one is
    /// submitted and waited for in pieces. Needs no more device memory than the optimizer itself, unlike [`load`](Self::load).
    ///
    /// # Errors
    ///
    /// As [`State::validate`] and [`with_groups`](Self::with_groups).
    pub fn from_state(pipelines: &Pipelines, queue: &wgpu::Queue, state: &State) -> Result<Self, Error> {
        state.validate()?;
        let layout = |tensor: &TensorState| TensorLayout {
            len: tensor.exp_avg.len(),
            group: tensor.group,
            master: tensor.master.is_some(),
        };
        let layout: Vec<_> = state.tensors.iter().map(layout).collect();
        let mut made = Self::with_groups(pipelines, &state.groups, &layout)?;
        let mut upload = Upload::new(pipelines.device(), queue, &made.arenas);
        for (tensor, from) in made.tensors.iter_mut().zip(&state.tensors) {
            upload.write(tensor.exp_avg, &from.exp_avg)?;
            upload.write(tensor.exp_avg_sq, &from.exp_avg_sq)?;
            if let (Some(place), Some(master)) = (tensor.master, &from.master) {
                upload.write(place, master)?;
            }
            tensor.step = from.step;
            tensor.master_is_set = from.master_is_set;
        }
        upload.finish()?;
        Ok(made)
    }

    /// Encodes one step of every tensor that has a gradient into `pass`; the others stay as they are.
    ///
    /// Nothing is submitted or waited for, and the step is counted now. The pass is left as [`TensorList::encode`] leaves it.
    ///
    /// `params` and `grads` are in the order of the optimizer's tensors, and of their lengths. Only the type of `params` is looked at
    /// where there is no gradient. A tensor with masters takes 16-bit parameters; its masters are set from them, in the same pass,
    /// before its first update and rule from then on. Buffers are bound anew where they are others than in the step before.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] for lists that don't fit; what [`TensorList::new`] refuses of buffers, whose `params` are the optimizer's own
    /// where the tensor has masters, and the caller's are `copy`; [`Error::Value`] for a config that is not valid. Nothing is encoded
    /// then, and no step is counted.
    pub fn step(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        params: &[BufferView<'_>],
        grads: &[Option<BufferView<'_>>],
    ) -> Result<(), Error> {
        self.step_scaled(pass, params, grads, 1.0)
    }

    /// [`step`](Self::step) with every gradient first multiplied by `grad_multiplier`: a clip factor, the inverse of a loss
    /// scale, or their product.
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step), and [`Error::Value`] for a multiplier that
    /// [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses.
    pub fn step_scaled(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        params: &[BufferView<'_>],
        grads: &[Option<BufferView<'_>>],
        grad_multiplier: f64,
    ) -> Result<(), Error> {
        check_grad_multiplier(grad_multiplier)?;
        owner::check_counts(self.tensors.len(), params.len(), grads.len())?;
        self.prepare_step(params, grads, grad_multiplier)?;
        let Some(list) = self.list.as_ref().filter(|_| !self.sets.coeffs().is_empty()) else { return Ok(()) };
        list.encode_from_copies(pass, self.sets.coeffs(), &self.fresh)?;
        for (tensor, _) in self.tensors.iter_mut().zip(grads).filter(|(_, grads)| grads.is_some()) {
            tensor.step += 1;
            tensor.master_is_set = tensor.master.is_some();
        }
        Ok(())
    }

    /// Checks everything and brings the list up to date. Nothing is encoded, and the host's state stays as it is.
    fn prepare_step(
        &mut self,
        params: &[BufferView<'_>],
        grads: &[Option<BufferView<'_>>],
        multiplier: f64,
    ) -> Result<(), Error> {
        self.sets.clear();
        self.fresh.clear();
        let mut described = Vec::with_capacity(self.tensors.len());
        for (index, (tensor, (&params, &grads))) in self.tensors.iter().zip(params.iter().zip(grads)).enumerate() {
            let mut next = tensor.describe(&self.arenas, params, grads);
            next.variant(index)?;
            if grads.is_some() {
                let step = tensor.step.checked_add(1).ok_or(Error::StepOverflow { tensor: index })?;
                next.set = self.sets.index(&self.groups, tensor.group, step, multiplier)?;
                if tensor.master.is_some() && !tensor.master_is_set {
                    self.fresh.push(index);
                }
            }
            described.push(next);
        }
        if self.sets.coeffs().is_empty() {
            return Ok(());
        }
        let updated = self.list.as_mut().map(|list| list.update(&described));
        match updated {
            // A tensor's type changed.
            None | Some(Err(Error::Fixed { .. })) => {
                self.list = Some(TensorList::new(&self.pipelines, &described)?);
                Ok(())
            }
            Some(updated) => updated,
        }
    }

    /// Sets the learning rate of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group; [`Error::Value`] if `lr` is not valid with the rest of the config.
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), Error> {
        self.set_config(group, self.config(group)?.with_lr(lr))
    }

    /// Sets the whole config of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group; [`Error::Value`] if the config is not valid.
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), Error> {
        owner::set_config(&mut self.groups, group, config)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group.
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, Error> {
        owner::at("group", &self.groups, group).copied()
    }

    /// The updates that a tensor has had, of steps that were encoded.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such tensor.
    pub fn step_of(&self, tensor: usize) -> Result<u64, Error> {
        owner::at("tensor", &self.tensors, tensor).map(|tensor| tensor.step)
    }

    /// Takes over a tensor's moments and step from another optimizer, such as `exp_avg`, `exp_avg_sq` and `step` of torch's
    /// Adam or AdamW, which mean the same. The moments are given on the host, and reach the device with the next submit at the latest:
    /// submit first what was encoded before.
    ///
    /// Masters stay as they are; if there was no update yet, the next one sets them from the parameters.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such tensor, [`Error::Length`] if a moment's length differs from it,
    /// [`Error::Value`] if `exp_avg_sq` has a negative element. [`Error::Wgpu`] for what wgpu reports, such as a lost device; the
    /// tensor's moments may be those of before or the new ones then, and its step is that of before.
    pub fn set_moments(
        &mut self,
        queue: &wgpu::Queue,
        tensor: usize,
        step: u64,
        exp_avg: &[f32],
        exp_avg_sq: &[f32],
    ) -> Result<(), Error> {
        let len = owner::at("tensor", &self.tensors, tensor)?.len;
        owner::check_moments(tensor, len, exp_avg, exp_avg_sq)?;
        let state = &mut self.tensors[tensor];
        let mut upload = Upload::new(self.pipelines.device(), queue, &self.arenas);
        upload.write(state.exp_avg, exp_avg)?;
        upload.write(state.exp_avg_sq, exp_avg_sq)?;
        upload.finish()?;
        state.step = step;
        Ok(())
    }

    /// The whole state: configs, steps, moments and masters. Waits until it is read, and for nothing that is submitted later.
    ///
    /// Submit first what was encoded: its steps are counted, and would be missing from the moments. Not in browsers, where nobody can
    /// wait; await [`read_state`](Self::read_state) there.
    ///
    /// # Errors
    ///
    /// [`Error::Wgpu`] for what wgpu reports, such as a lost device; [`Error::Memory`] if the machine lacks the memory for it.
    #[cfg(not(target_family = "wasm"))]
    pub fn state(&self, queue: &wgpu::Queue) -> Result<State, Error> {
        let device = self.pipelines.device();
        let started = self.start_reading(queue)?;
        pollster::block_on(self.finish_reading(started, |piece| wait(device, piece.submission.clone())))
    }

    /// The whole state, to be awaited: configs, steps, moments and masters.
    ///
    /// The call submits the first copies to `queue`, which is that of the pipelines' device, and returns at once. They go through at
    /// most 64 MiB of staging memory: a larger state is read in pieces, each submitted once the one before has arrived. The optimizer
    /// is borrowed meanwhile, so that no step is encoded between two pieces. Submit first what was encoded: its steps are counted, and
    /// would be missing from the moments. Everything else on the queue goes on.
    ///
    /// Any executor will do, **as long as the device is polled** ([`wgpu::Device::poll`]; a submit does it too, and a browser by
    /// itself): that is when wgpu notices that a copy has arrived. A future that is dropped leaves nothing behind.
    ///
    /// # Errors
    ///
    /// The future's are [`Error::Wgpu`] for what wgpu reports, such as a device that is lost meanwhile, and [`Error::Memory`] if the
    /// machine lacks the memory for the state.
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
    /// # fn example(optimizer: DualAdam, device: wgpu::Device, queue: wgpu::Queue) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut read = pin!(optimizer.read_state(&queue));
    /// let state = loop {
    ///     // … other work on the queue, such as an evaluation
    ///     device.poll(wgpu::PollType::Poll)?;
    ///     if let Poll::Ready(state) = read.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
    ///         break state?;
    ///     }
    /// };
    /// state.save("optimizer.safetensors")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_state<'a>(&'a self, queue: &'a wgpu::Queue) -> impl Future<Output = Result<State, Error>> + 'a {
        let started = self.start_reading(queue);
        async { self.finish_reading(started?, |_| Ok(())).await }
    }

    /// Submits the copies of the first piece.
    fn start_reading<'a>(&'a self, queue: &'a wgpu::Queue) -> Result<(Readback<'a>, Option<Piece>), Error> {
        let arrays = self.tensors.iter().enumerate().flat_map(|(index, tensor)| {
            let places = [Some(tensor.exp_avg), Some(tensor.exp_avg_sq), tensor.master];
            places.into_iter().flatten().map(move |place| (index, place, tensor.len))
        });
        let buffer_size = self.pipelines.limits().buffer_size;
        let readback = Readback::new(self.pipelines.device(), queue, &self.arenas, arrays, buffer_size)?;
        let first = readback.submit()?;
        Ok((readback, first))
    }

    /// Reads the pieces, each after a call of `wait`.
    async fn finish_reading(
        &self,
        (mut readback, mut next): (Readback<'_>, Option<Piece>),
        wait: impl Fn(&Piece) -> Result<(), Error>,
    ) -> Result<State, Error> {
        while let Some(piece) = next {
            wait(&piece)?;
            readback.take(piece).await?;
            next = readback.submit()?;
        }
        let mut arrays = readback.finish();
        // As many as there were places.
        let mut array = || arrays.next().unwrap_or_default();
        let tensor = |tensor: &Tensor| TensorState {
            group: tensor.group,
            step: tensor.step,
            exp_avg: array(),
            exp_avg_sq: array(),
            master: tensor.master.map(|_| array()),
            master_is_set: tensor.master_is_set,
        };
        Ok(State { groups: self.groups.clone(), tensors: self.tensors.iter().map(tensor).collect() })
    }

    /// Saves the state with [`State::save`]; the file is the same as the CPU backend's, and resumes there too.
    ///
    /// Waits as [`state`](Self::state) does; submit first what was encoded.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state) and [`State::save`].
    #[cfg(not(target_family = "wasm"))]
    pub fn save(&self, queue: &wgpu::Queue, path: impl AsRef<Path>) -> Result<(), Error> {
        self.state(queue)?.save(path)
    }

    /// Resumes from a file of any backend: configs, steps, moments and masters become those of the file.
    ///
    /// On the same device a resumed run goes on bit for bit as the one that was saved would have. The parameters are the caller's to
    /// restore. The new moments are allocated before the old ones are freed; [`State::load`] and [`from_state`](Self::from_state) avoid
    /// that.
    ///
    /// # Errors
    ///
    /// As [`State::load`], [`Error::State`] if the file's tensors are not this optimizer's: their number, lengths,
    /// groups and masters must agree, and [`Error::Wgpu`] for what wgpu reports. The optimizer stays as it was then.
    pub fn load(&mut self, queue: &wgpu::Queue, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let state = State::load(path)?;
        let own = State::new(&self.groups, &self.layout())?;
        own.check_layout(&state).map_err(|problem| Error::State { path: path.to_owned(), problem })?;
        *self = Self::from_state(&self.pipelines, queue, &state)?;
        Ok(())
    }

    fn layout(&self) -> Vec<TensorLayout> {
        let layout =
            |tensor: &Tensor| TensorLayout { len: tensor.len, group: tensor.group, master: tensor.master.is_some() };
        self.tensors.iter().map(layout).collect()
    }
}

impl Tensor {
    /// The tensor as a list has it, but for its set.
    fn describe<'a>(
        &self,
        arenas: &'a Arenas,
        params: BufferView<'a>,
        grads: Option<BufferView<'a>>,
    ) -> super::Tensor<'a> {
        let (updated, copy) = match self.master {
            None => (params, None),
            Some(place) => {
                let Moment { buffer, offset } = arenas.moment(place);
                (BufferView { buffer, offset, dtype: Dtype::F32 }, Some(params))
            }
        };
        super::Tensor {
            params: updated,
            grads,
            exp_avg: arenas.moment(self.exp_avg),
            exp_avg_sq: arenas.moment(self.exp_avg_sq),
            copy,
            len: self.len as u64,
            set: 0,
        }
    }
}

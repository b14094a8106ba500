//! The optimizer that owns its moments, in device memory, and counts its tensors' steps.

use std::ffi::c_void;
use std::path::Path;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::owner;
use crate::sets::Sets;
use crate::{Dtype, DualAdamConfig, Error, RawBuffer, RawTensor, State, TensorLayout, TensorState};

use super::checks::{check_own_stream, refuse_capture};
use super::control::RawScalars;
use super::controlled::DeviceControl;
use super::driver::{self, Held};
use super::event::LastUse;
use super::kernels::Kernels;
use super::list::TensorList;
use super::memory::{DeviceMemory, download, upload};
use super::tensor::{Grads, ParamsMut};

/// The handle of the per-thread default stream, `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

/// Each tensor's part of the moments begins at a multiple of this many elements: 256 bytes, as an allocation does.
const ALIGN: usize = 64;

/// DualAdam over a model's tensors in device memory: owns the moments, steps and masters, also there, and borrows parameters and
/// gradients for each step.
///
/// Each tensor counts its own updates: one without a gradient is left alone, moments, step and all. A step is enqueued on the
/// optimizer's stream and returns at once. A tensor's first update takes its masters from the parameters, on the device.
/// Methods, results and files are those of [`cpu::DualAdam`](crate::cpu::DualAdam), to the bit.
///
/// Dropping the optimizer never waits for the device. Its device memory is freed after the last step, and after the last graph that
/// captured a step; see [the module's page](super). Any thread may drop it, also while another thread captures.
///
/// # Example
///
/// ```no_run
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{DualAdam, Kernels};
///
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().default_stream();
/// let mut optimizer = DualAdam::new(&kernels, &stream, DualAdamConfig::default().with_lr(0.1), &[2, 1])?;
/// let (mut w, mut b) = (stream.clone_htod(&[3.0_f32, -4.0])?, stream.clone_htod(&[1.0_f32])?);
/// for _ in 0..200 {
///     let grads = stream.clone_dtod(&w)?; // of (w0² + w1²)/2
///     optimizer.step(&mut [(&mut w).into(), (&mut b).into()], &[Some((&grads).into()), None])?;
/// }
/// optimizer.save("optimizer.safetensors")?; // resumes on the CPU, too
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DualAdam {
    /// The tensors as their last step had them. Dropped before the memory that it names.
    pub(super) list: Option<TensorList>,
    /// The same tensors as the step under way has them.
    pub(super) next: Vec<RawTensor>,
    pub(super) groups: Vec<DualAdamConfig>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) moments: Moments,
    /// What counts the steps in place of the tensors, where the device does that.
    pub(super) control: Option<DeviceControl>,
    sets: Sets,
    raw_params: Vec<RawBuffer>,
    raw_grads: Vec<Option<RawBuffer>>,
    pub(super) kernels: Kernels,
    pub(super) stream: Held<CudaStream>,
    /// That of all the memory above.
    pub(super) last_use: Arc<LastUse>,
}

/// What is known of a tensor on the host. With device control, the step and whether the masters are set are only known there.
#[derive(Debug)]
pub(super) struct Tensor {
    len: usize,
    pub(super) group: usize,
    pub(super) step: u64,
    /// Where its arrays begin, in bytes after the moments' and the masters' start.
    moments_at: u64,
    pub(super) master_at: Option<u64>,
    pub(super) master_is_set: bool,
}

/// The device memory of all tensors' arrays.
#[derive(Debug)]
pub(super) struct Moments {
    exp_avg: DeviceMemory,
    exp_avg_sq: DeviceMemory,
    masters: DeviceMemory,
}

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these lengths, whose work goes to `stream`.
    ///
    /// # Errors
    ///
    /// As for [`with_groups`](Self::with_groups).
    pub fn new(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        config: DualAdamConfig,
        lens: &[usize],
    ) -> Result<Self, Error> {
        let layout: Vec<_> = lens.iter().map(|&len| TensorLayout::new(len)).collect();
        Self::with_groups(kernels, stream, &[config], &layout)
    }

    /// An optimizer with several parameter groups, or with f32 masters, whose work goes to `stream`.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] if a config is not valid; [`Error::Index`] if a tensor names a group that is not there;
    /// [`Error::Context`] if the stream belongs to another context than the kernels; [`Error::PerThreadStream`] for a stream that is
    /// another one in each thread; [`Error::TooMany`] or [`Error::Driver`] if
    /// there is not enough memory, and [`Error::Driver`] for whatever else the driver reports.
    pub fn with_groups(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        groups: &[DualAdamConfig],
        layout: &[TensorLayout],
    ) -> Result<Self, Error> {
        let stream = Held::new(stream.clone());
        owner::check_groups(groups, layout)?;
        if stream.context().cu_ctx() != kernels.context().cu_ctx() {
            return Err(Error::Context { argument: "stream" });
        }
        if stream.cu_stream().addr() == PER_THREAD {
            return Err(Error::PerThreadStream);
        }
        let (mut moments, mut masters) = (Arena::default(), Arena::default());
        let tensor = |layout: &TensorLayout| {
            Ok(Tensor {
                len: layout.len,
                group: layout.group,
                step: 0,
                moments_at: moments.add(layout.len)?,
                master_at: if layout.master { Some(masters.add(layout.len)?) } else { None },
                master_is_set: false,
            })
        };
        let tensors = layout.iter().map(tensor).collect::<Result<Vec<_>, Error>>()?;
        let last_use = {
            let _current = kernels.enter()?;
            LastUse::new(kernels.context())?
        };
        let moments = Moments {
            exp_avg: DeviceMemory::zeros(kernels, &last_use, moments.bytes)?,
            exp_avg_sq: DeviceMemory::zeros(kernels, &last_use, moments.bytes)?,
            masters: DeviceMemory::zeros(kernels, &last_use, masters.bytes)?,
        };
        Ok(Self {
            list: None,
            next: vec![],
            groups: groups.to_vec(),
            tensors,
            moments,
            control: None,
            sets: Sets::default(),
            raw_params: vec![],
            raw_grads: vec![],
            kernels: kernels.clone(),
            stream,
            last_use,
        })
    }

    /// An optimizer that goes on from a state, wherever it is from.
    ///
    /// Needs no more device memory than the optimizer itself, unlike [`load`](Self::load).
    ///
    /// # Errors
    ///
    /// As [`State::validate`] and [`with_groups`](Self::with_groups).
    pub fn from_state(kernels: &Kernels, stream: &Arc<CudaStream>, state: &State) -> Result<Self, Error> {
        state.validate()?;
        let layout = |tensor: &TensorState| TensorLayout {
            len: tensor.exp_avg.len(),
            group: tensor.group,
            master: tensor.master.is_some(),
        };
        let layout: Vec<_> = state.tensors.iter().map(layout).collect();
        let mut made = Self::with_groups(kernels, stream, &state.groups, &layout)?;
        for (tensor, from) in made.tensors.iter_mut().zip(&state.tensors) {
            made.moments.exp_avg.upload(tensor.moments_at, &from.exp_avg)?;
            made.moments.exp_avg_sq.upload(tensor.moments_at, &from.exp_avg_sq)?;
            if let (Some(at), Some(master)) = (tensor.master_at, &from.master) {
                made.moments.masters.upload(at, master)?;
            }
            tensor.step = from.step;
            tensor.master_is_set = from.master_is_set;
        }
        Ok(made)
    }

    /// One step of every tensor that has a gradient; the others stay as they are.
    ///
    /// A CUDA graph that captured the step keeps its coefficients and addresses. The capture counts as a
    /// step, and the graph's launches count as none: use
    /// [`enable_device_control`](Self::enable_device_control) for graphs. The graph may be launched only
    /// while the buffers live, which cudarc does not check. The optimizer's first step cannot be captured.
    ///
    /// `params` and `grads` are in the order of the optimizer's tensors. A tensor with masters takes 16-bit parameters; its
    /// masters are set from them before its first update and rule from then on.
    ///
    /// # Errors
    ///
    /// [`Error::Count`], [`Error::Length`], [`Error::Types`] or [`Error::Overlap`] for lists or buffers that don't fit,
    /// [`Error::Context`] for buffers of another context, [`Error::Unordered`] for buffers of another `CudaContext` value than the
    /// stream's, [`Error::Value`] for a config that is not valid, [`Error::Captured`] for what cannot be captured, [`Error::Ptx`] if the
    /// driver refuses the kernels, which the first step loads. Nothing is launched then, and no step is counted. After
    /// [`Error::Driver`] the steps of those tensors are counted whose launch was made.
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
    pub fn step_scaled(
        &mut self,
        params: &mut [ParamsMut<'_>],
        grads: &[Option<Grads<'_>>],
        grad_multiplier: f64,
    ) -> Result<(), Error> {
        // SAFETY: that is what the addresses are made for.
        self.with_addresses(params, grads, |optimizer, params, grads| unsafe {
            optimizer.step_raw(params, grads, grad_multiplier)
        })
    }

    /// Does something with the buffers' addresses: enqueues on the optimizer's stream what updates these parameters with these
    /// gradients, or nothing.
    pub(super) fn with_addresses(
        &mut self,
        params: &mut [ParamsMut<'_>],
        grads: &[Option<Grads<'_>>],
        work: impl FnOnce(&mut Self, &[RawBuffer], &[Option<RawBuffer>]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.check_views(params, grads)?;
        let _current = self.kernels.enter()?;
        let stream = self.stream.clone();
        let (mut raw_params, mut raw_grads) =
            (std::mem::take(&mut self.raw_params), std::mem::take(&mut self.raw_grads));
        raw_params.clear();
        raw_grads.clear();
        // When these are dropped, after the launch, cudarc notes what later uses of the buffers must wait for.
        let mut guards = Vec::with_capacity(2 * params.len());
        for (params, grads) in params.iter_mut().zip(grads) {
            let Some(grads) = grads else {
                // Left alone, so that nothing need wait for it.
                raw_params.push(RawBuffer { address: 0, dtype: params.dtype() });
                raw_grads.push(None);
                continue;
            };
            let (params, guard) = params.raw(&stream);
            guards.push(guard);
            let (grads, guard) = grads.raw(&stream);
            guards.push(guard);
            raw_params.push(params);
            raw_grads.push(Some(grads));
        }
        // What could not be ordered is only noted there.
        let ordered = stream.context().check_err().map_err(|error| driver::failed("cuStreamWaitEvent", error));
        // The views are buffers of their types and of the tensors' lengths in the kernels' context. They are borrowed now, and
        // cudarc orders later uses after this work, and their end as well.
        let stepped = ordered.and_then(|()| work(self, &raw_params, &raw_grads));
        drop(guards);
        (self.raw_params, self.raw_grads) = (raw_params, raw_grads);
        stepped
    }

    fn check_views(&self, params: &[ParamsMut<'_>], grads: &[Option<Grads<'_>>]) -> Result<(), Error> {
        owner::check_counts(self.tensors.len(), params.len(), grads.len())?;
        for (tensor, ((own, params), grads)) in self.tensors.iter().zip(params).zip(grads).enumerate() {
            let lens = [("params", Some(params.len())), ("grads", grads.as_ref().map(Grads::len))];
            for (buffer, len) in lens {
                if let Some(actual) = len.filter(|&len| len != own.len) {
                    return Err(Error::Length { tensor, buffer, expected: own.len, actual });
                }
            }
            let check = |own, argument| check_own_stream(&self.kernels, &self.stream, own, argument);
            check(params.own_stream(), "params")?;
            grads.as_ref().map_or(Ok(()), |grads| check(grads.own_stream(), "grads"))?;
        }
        Ok(())
    }

    /// [`step_scaled`](Self::step_scaled) over addresses, on the optimizer's stream. Only the type of `params` is looked at where there
    /// is no gradient.
    ///
    /// # Errors
    ///
    /// As [`step_scaled`](Self::step_scaled), and what [`TensorList`] refuses of addresses.
    ///
    /// # Safety
    ///
    /// - From now until the work has run, `params` and `grads` of each tensor that has a gradient are device memory of the kernels'
    ///   context, of the tensor's length and of their types.
    /// - What else uses that memory, on any stream, is ordered before or after this work.
    pub unsafe fn step_raw(
        &mut self,
        params: &[RawBuffer],
        grads: &[Option<RawBuffer>],
        grad_multiplier: f64,
    ) -> Result<(), Error> {
        if self.control.is_some() {
            if grad_multiplier != 1.0 {
                let requirement = "be 1 with device control, which takes loss scale and clip factor from the device";
                return Err(Error::Value { name: "grad_multiplier", requirement, value: grad_multiplier });
            }
            // SAFETY: the buffers are as this function requires, and there are no scalars.
            return unsafe { self.step_controlled_raw(params, grads, &RawScalars::default()) };
        }
        owner::check_counts(self.tensors.len(), params.len(), grads.len())?;
        self.prepare_step(params, grads, grad_multiplier)?;
        if self.sets.coeffs().is_empty() {
            return Ok(());
        }
        let stream = raw(&self.stream);
        if self.mark_masters(grads) {
            let _current = self.kernels.enter()?;
            // The graph would set them in each launch.
            // SAFETY: the stream lives as long as the optimizer.
            unsafe { refuse_capture(stream, "the first update of a tensor with masters, without device control,") }?;
        }
        let Some(list) = &mut self.list else { return Ok(()) };
        let tensors = &mut self.tensors;
        let count = |members: &[usize]| {
            for &member in members.iter().filter(|&&member| grads[member].is_some()) {
                let tensor = &mut tensors[member];
                tensor.step += 1;
                tensor.master_is_set |= tensor.master_at.is_some();
            }
        };
        // SAFETY: parameters and gradients are as this function requires; moments and masters are this optimizer's, whose work is all on
        // one stream.
        unsafe { list.step_groups(self.sets.coeffs(), stream, count) }
    }

    /// Checks everything and brings the list up to date. Nothing is launched, and the host's state stays as it is.
    fn prepare_step(
        &mut self,
        params: &[RawBuffer],
        grads: &[Option<RawBuffer>],
        multiplier: f64,
    ) -> Result<(), Error> {
        self.sets.clear();
        self.describe(params, grads)?;
        for ((tensor, next), grads) in self.tensors.iter().zip(&mut self.next).zip(grads) {
            if grads.is_some() {
                next.set = self.sets.index(&self.groups, tensor.group, tensor.step + 1, multiplier)?;
            }
        }
        if self.sets.coeffs().is_empty() { Ok(()) } else { self.update_list() }
    }

    /// Describes the tensors as the step under way has them, but for the sets of those that have a gradient.
    pub(super) fn describe(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), Error> {
        if self.next.is_empty() {
            self.next = self.tensors.iter().zip(params).map(|(tensor, params)| tensor.left_alone(*params)).collect();
        }
        for (index, tensor) in self.tensors.iter().enumerate() {
            let next = &mut self.next[index];
            match grads[index] {
                Some(grads) => *next = self.moments.describe(tensor, index, params[index], grads)?,
                // What is left alone keeps its place and types, so that the list need not be rebuilt.
                None => (next.grads.address, next.set) = (0, 0),
            }
        }
        Ok(())
    }

    /// Makes the list that of the tensors as they are described.
    pub(super) fn update_list(&mut self) -> Result<(), Error> {
        match &mut self.list {
            Some(list) if list.has_types_of(&self.next) => list.update(&self.next),
            list => {
                let _current = self.kernels.enter()?;
                // SAFETY: the stream lives as long as the optimizer.
                unsafe { refuse_capture(raw(&self.stream), "an optimizer's first step, or one with new types,") }?;
                *list = Some(TensorList::with_last_use(&self.kernels, &self.next, &self.last_use)?);
                Ok(())
            }
        }
    }

    /// Lets the list's next step set the masters of these tensors that were never set. Returns whether there are any. With device
    /// control only the device knows, and sees to it.
    pub(super) fn mark_masters(&mut self, grads: &[Option<RawBuffer>]) -> bool {
        let Some(list) = &mut self.list else { return false };
        let mut any = false;
        for (index, (tensor, grads)) in self.tensors.iter().zip(grads).enumerate() {
            if tensor.master_at.is_some() {
                let is_unset = self.control.is_none() && !tensor.master_is_set && grads.is_some();
                list.set_masters(index, is_unset);
                any |= is_unset;
            }
        }
        any
    }

    /// Sets the learning rate of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group; [`Error::Value`] if `lr` is not valid with the rest of the config. With device
    /// control, [`Error::Captured`] and [`Error::Driver`], as for [`Control::set_lr`](super::Control::set_lr).
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), Error> {
        self.set_config(group, self.config(group)?.with_lr(lr))
    }

    /// Sets the whole config of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group; [`Error::Value`] if the config is not valid. With device control,
    /// [`Error::Captured`] and [`Error::Driver`], as for [`Control::set_config`](super::Control::set_config).
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), Error> {
        owner::at("group", &self.groups, group)?;
        config.validate()?;
        if let Some(control) = &mut self.control {
            // SAFETY: the stream lives as long as the optimizer, whose work is all there.
            unsafe { control.set_config(group, config, raw(&self.stream)) }?;
        }
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

    /// The updates that a tensor has had. With device control this waits for the steps so far.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such tensor. With device control, [`Error::Captured`], [`Error::Interrupted`] and
    /// [`Error::Driver`], as for [`Control::steps`](super::Control::steps).
    pub fn step_of(&self, tensor: usize) -> Result<u64, Error> {
        let step = owner::at("tensor", &self.tensors, tensor)?.step;
        match &self.control {
            // SAFETY: the stream lives as long as the optimizer.
            Some(control) => Ok(unsafe { control.steps(raw(&self.stream)) }?[tensor]),
            None => Ok(step),
        }
    }

    /// Takes over a tensor's moments and step from another optimizer, such as `exp_avg`, `exp_avg_sq` and `step` of torch's
    /// Adam or AdamW, which mean the same. The moments are given on the host.
    ///
    /// Masters stay as they are; if there was no update yet, the next one sets them from the parameters. The call waits for the work
    /// before on the optimizer's stream.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such tensor, [`Error::Length`] if a moment's length differs from it,
    /// [`Error::Value`] if `exp_avg_sq` has a negative element; [`Error::Captured`] if the optimizer's stream is being captured.
    /// [`Error::Driver`] for what the driver reports; the tensor's moments
    /// may be those of before or the new ones then, and its step is that of before.
    pub fn set_moments(&mut self, tensor: usize, step: u64, exp_avg: &[f32], exp_avg_sq: &[f32]) -> Result<(), Error> {
        let len = owner::at("tensor", &self.tensors, tensor)?.len;
        owner::check_moments(tensor, len, exp_avg, exp_avg_sq)?;
        let state = &mut self.tensors[tensor];
        let _current = self.kernels.enter()?;
        let stream = raw(&self.stream);
        // SAFETY: the stream lives as long as the optimizer.
        unsafe { refuse_capture(stream, "new moments") }?;
        // SAFETY: as above, and the context is current. All work that uses the moments is on this stream.
        unsafe {
            let uploaded = self.moments.upload(state, exp_avg, exp_avg_sq, stream);
            self.last_use.note(stream);
            uploaded?;
        }
        match &mut self.control {
            // SAFETY: as above, and the optimizer's work is all there.
            Some(control) => unsafe { control.set_step(tensor, step, stream) },
            None => {
                state.step = step;
                Ok(())
            }
        }
    }

    /// The whole state: configs, steps, moments and masters. Waits for the steps so far and reads it from the device.
    ///
    /// # Errors
    ///
    /// [`Error::Driver`] for what the driver reports, also of the steps before; [`Error::Captured`] if the optimizer's stream is being
    /// captured; [`Error::Interrupted`] if a controlled step failed in the middle.
    pub fn state(&self) -> Result<State, Error> {
        let _current = self.kernels.enter()?;
        let stream = raw(&self.stream);
        // SAFETY: the stream lives as long as the optimizer.
        unsafe { refuse_capture(stream, "reading the state") }?;
        let counted = match &self.control {
            // SAFETY: as above.
            Some(control) => Some(unsafe { control.steps_and_masters(stream) }?),
            None => None,
        };
        let read = |memory: &DeviceMemory, at: u64, len: usize| {
            // SAFETY: the tensor's arrays have that place and length, and the stream lives.
            unsafe { download::<f32>(memory.address() + at, len, stream) }
        };
        let tensor = |(index, tensor): (usize, &Tensor)| {
            let (step, master_is_set) = match &counted {
                Some(counted) => (counted[index].0, tensor.master_at.is_some() && counted[index].1),
                None => (tensor.step, tensor.master_is_set),
            };
            let master = tensor.master_at.map(|at| read(&self.moments.masters, at, tensor.len));
            Ok(TensorState {
                group: tensor.group,
                step,
                exp_avg: read(&self.moments.exp_avg, tensor.moments_at, tensor.len)?,
                exp_avg_sq: read(&self.moments.exp_avg_sq, tensor.moments_at, tensor.len)?,
                master: master.transpose()?,
                master_is_set,
            })
        };
        let tensors = self.tensors.iter().enumerate().map(tensor).collect::<Result<_, Error>>()?;
        Ok(State { groups: self.groups.clone(), tensors })
    }

    /// Saves the state with [`State::save`]; the file is the same as the CPU backend's, and resumes there too.
    ///
    /// # Errors
    ///
    /// As [`state`](Self::state) and [`State::save`].
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        self.state()?.save(path)
    }

    /// Resumes from a file of any backend: configs, steps, moments and masters become those of the file.
    ///
    /// A resumed run goes on bit for bit as the one that was saved would have. The parameters are the caller's to restore.
    /// The new moments are allocated before the old ones are freed; [`State::load`] and [`from_state`](Self::from_state) avoid that.
    ///
    /// # Errors
    ///
    /// As [`State::load`], [`Error::State`] if the file's tensors are not this optimizer's: their number, lengths,
    /// groups and masters must agree, and [`Error::Driver`] for what the driver reports. The optimizer stays as it was then.
    pub fn load(&mut self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let state = State::load(path)?;
        let own = State::new(&self.groups, &self.layout())?;
        own.check_layout(&state).map_err(|problem| Error::State { path: path.to_owned(), problem })?;
        let mut loaded = Self::from_state(&self.kernels, &self.stream, &state)?;
        if self.control.is_some() {
            loaded.enable_device_control()?;
        }
        *self = loaded;
        Ok(())
    }

    fn layout(&self) -> Vec<TensorLayout> {
        let layout =
            |tensor: &Tensor| TensorLayout { len: tensor.len, group: tensor.group, master: tensor.master_at.is_some() };
        self.tensors.iter().map(layout).collect()
    }
}

impl Tensor {
    /// A place in the list for a tensor that never had a gradient, of whose type there can only be a guess.
    fn left_alone(&self, params: RawBuffer) -> RawTensor {
        let at = |dtype| RawBuffer { address: 0, dtype };
        let copy = (self.master_at.is_some() && params.dtype != Dtype::F32).then_some(at(params.dtype));
        let updated = if copy.is_some() { Dtype::F32 } else { params.dtype };
        let (params, grads) = (at(updated), at(params.dtype));
        RawTensor { params, grads, exp_avg: 0, exp_avg_sq: 0, copy, len: self.len as u64, set: 0 }
    }
}

impl Moments {
    /// A tensor with its moments, for a step that is not checked yet but for what only the owner knows.
    fn describe(&self, tensor: &Tensor, index: usize, params: RawBuffer, grads: RawBuffer) -> Result<RawTensor, Error> {
        if tensor.step == u64::MAX {
            return Err(Error::StepOverflow { tensor: index });
        }
        if tensor.len > 0 && grads.address == 0 {
            return Err(Error::Null { tensor: index, buffer: "grads" });
        }
        let (updated, copy) = match tensor.master_at {
            None => (params, None),
            Some(at) => (RawBuffer { address: self.masters.address() + at, dtype: Dtype::F32 }, Some(params)),
        };
        let described = RawTensor {
            params: updated,
            grads,
            exp_avg: self.exp_avg.address() + tensor.moments_at,
            exp_avg_sq: self.exp_avg_sq.address() + tensor.moments_at,
            copy,
            len: tensor.len as u64,
            set: 0,
        };
        described.variant(index)?;
        Ok(described)
    }

    /// Fills a tensor's moments, in the order of the stream, and waits for it.
    ///
    /// # Safety
    ///
    /// The kernels' context must be current, and `stream` a live stream of it.
    unsafe fn upload(
        &self,
        tensor: &Tensor,
        exp_avg: &[f32],
        exp_avg_sq: &[f32],
        stream: *mut c_void,
    ) -> Result<(), Error> {
        // SAFETY: the tensor's moments have these places and lengths; context and stream are as this function requires.
        unsafe {
            upload(self.exp_avg.address() + tensor.moments_at, exp_avg, stream)?;
            upload(self.exp_avg_sq.address() + tensor.moments_at, exp_avg_sq, stream)
        }
    }
}

/// The places of arrays of f32 in one piece of memory.
#[derive(Debug, Default)]
struct Arena {
    bytes: usize,
}

impl Arena {
    fn add(&mut self, len: usize) -> Result<u64, Error> {
        let at = self.bytes as u64;
        let bytes = len.checked_next_multiple_of(ALIGN).and_then(|len| len.checked_mul(size_of::<f32>()));
        let end = bytes.and_then(|bytes| self.bytes.checked_add(bytes));
        let limit = usize::MAX as u64;
        self.bytes = end.ok_or(Error::TooMany { list: "the bytes of the moments", limit, actual: limit })?;
        Ok(at)
    }
}

pub(super) fn raw(stream: &CudaStream) -> *mut c_void {
    stream.cu_stream().cast()
}

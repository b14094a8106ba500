//! Steps controlled on the device: hyperparameters, learning rates and step counters in device memory, from which a kernel forms the
//! coefficients.

use std::ffi::c_void;
use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use crate::{DualAdamConfig, Error, InverseTerm, StepCoeffs, SwitchSchedule, WeightDecay};

use super::checks::{check_stream, refuse_capture};
use super::driver::Current;
use super::event::LastUse;
use super::kernels::{Function, Kernels};
use super::launch::launch_prepare_sets;
use super::memory::{self, DeviceMemory, download, upload};
use super::staging::Staging;

/// A learning rate in the caller's device memory, by address.
///
/// It is read in each step, and never written. Its value must be finite, at least 0 and small enough, as
/// [`DualAdamConfig::validate`] says; else the step is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RawLr {
    /// The address of an f32, as torch has it.
    F32(u64),
    /// The address of an f64.
    F64(u64),
}

/// A parameter group of a [`Control`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ControlGroup {
    /// The hyperparameters. Where `lr` gives an address, the config's own lr is not used, but must be valid.
    pub config: DualAdamConfig,
    /// The learning rate in the caller's memory; if `None`, the control keeps the config's in its own.
    pub lr: Option<RawLr>,
}

/// A coefficient set of a [`Control`]: tensors of one group that are updated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlSet {
    /// Index of the group.
    pub group: usize,
    /// The address of the step counter, a u64, in the caller's memory, read and written; if `None`, the control keeps one that
    /// begins at 0.
    pub step: Option<u64>,
}

/// Scalars in device memory that steer one step, by address: each an f32, and 0 for none.
///
/// The multiplier of the gradients is clip factor / loss scale, formed in f64 and rounded once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RawScalars {
    /// What the loss was multiplied by, a divisor of the gradients: finite and above 0.
    pub loss_scale: u64,
    /// What the gradients are multiplied by after that: finite, at least 0.
    pub clip_factor: u64,
    /// Anything but 0, NaN too, skips the step.
    pub found_inf: u64,
}

impl RawScalars {
    pub(super) fn check(&self) -> Result<(), Error> {
        let scalars =
            [("loss_scale", self.loss_scale), ("clip_factor", self.clip_factor), ("found_inf", self.found_inf)];
        scalars.into_iter().try_for_each(|(name, address)| check_aligned(|| name.to_owned(), address, 4))
    }
}

/// Why a set's step was skipped on the device. If there are several reasons, the first of this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// Found-inf was not 0.
    FoundInf,
    /// The loss scale was NaN, infinite, 0 or negative.
    LossScale,
    /// The clip factor was NaN, infinite or negative.
    ClipFactor,
    /// Clip factor / loss scale was infinite as an f32, or above 0 and rounded to 0.
    Multiplier,
    /// lr was NaN, infinite or negative, or too large: see [`DualAdamConfig::validate`].
    Lr,
    /// The step counter was `u64::MAX`.
    Step,
}

impl SkipReason {
    /// The reason of a number that the kernel writes, which counts from 1.
    fn of(number: u32) -> Option<Self> {
        let all = [Self::FoundInf, Self::LossScale, Self::ClipFactor, Self::Multiplier, Self::Lr, Self::Step];
        all.get((number as usize).wrapping_sub(1)).copied()
    }
}

/// What became of a set's steps, as the device has it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SetReport {
    /// Updates that the set's tensors have had: the step counter.
    pub step: u64,
    /// Steps that were skipped.
    pub skipped: u64,
    /// Why the last of them was.
    pub last_skip: Option<SkipReason>,
    /// The coefficients of the last step that was not skipped; all 0 before it.
    pub coeffs: StepCoeffs,
}

/// A group as `kernels/control.cuh` reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct DeviceGroup {
    beta1: f64,
    beta2: f64,
    eps: f64,
    inverse_eps: f64,
    weight_decay: f64,
    rate: f64,
    cutoff: f64,
    own_lr: f64,
    period: u64,
    lr: u64,
    schedule: u32,
    decay: u32,
    maximize: u32,
    lr_is_f32: u32,
}

impl DeviceGroup {
    fn new(config: &DualAdamConfig, lr: RawLr) -> Self {
        let (decay, weight_decay) = match config.weight_decay {
            WeightDecay::None => (0, 0.0),
            WeightDecay::Decoupled(weight_decay) => (1, weight_decay),
            WeightDecay::L2(weight_decay) => (2, weight_decay),
        };
        let (schedule, rate, cutoff, period) = match config.schedule {
            SwitchSchedule::Linear { switching_rate } => (0, switching_rate, 0.0, 0),
            SwitchSchedule::LinearEarlyDrop { switching_rate } => (1, switching_rate, 0.0, 0),
            SwitchSchedule::Exponential { base, period, cutoff } => (2, base, cutoff, period),
            SwitchSchedule::Fixed { switching_step } => (3, 0.0, 0.0, switching_step),
        };
        let inverse_eps = match config.inverse_term {
            InverseTerm::Paper => 0.0,
            InverseTerm::WithEps => config.eps,
        };
        let (lr, lr_is_f32) = match lr {
            RawLr::F32(address) => (address, 1),
            RawLr::F64(address) => (address, 0),
        };
        let (beta1, beta2, eps, own_lr) = (config.beta1, config.beta2, config.eps, config.lr);
        let maximize = config.maximize.into();
        Self {
            beta1,
            beta2,
            eps,
            inverse_eps,
            weight_decay,
            rate,
            cutoff,
            own_lr,
            period,
            lr,
            schedule,
            decay,
            maximize,
            lr_is_f32,
        }
    }
}

/// A set as `kernels/control.cuh` reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
struct DeviceSet {
    step: u64,
    group: u32,
    active: u32,
}

/// What `kernels/control.cuh` notes of a set.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
struct DeviceState {
    skipped: u64,
    last_skip: u32,
    masters: u32,
}

/// Masters that are to be set from the parameters before their next update. Other numbers mean that they are set.
const MASTERS_UNSET: u32 = 1;

/// The control block of a list in device memory: coefficient sets whose hyperparameters, learning rates and step counters live on the
/// device, so that a CUDA graph can be launched again and again and goes on counting.
///
/// A set belongs to a group, which has a config and a learning rate, and counts its own steps. [`TensorList::step_controlled`]
/// takes its coefficients from here. A control serves one list.
///
/// Learning rates and counters may lie in memory of the caller's; what does not lies in the control's. A graph that captured steps
/// may outlive the control, whose memory stays until the graph is destroyed. Otherwise dropping the control frees it after the last
/// step. That never waits for the device, and leaves captures valid.
///
/// Streams are given as `CUstream`, which is the same as a `cudaStream_t`; null is the default stream.
///
/// [`TensorList::step_controlled`]: super::TensorList::step_controlled
///
/// # Example
///
/// ```no_run
/// use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels, RawLr};
/// use dualadam::DualAdamConfig;
///
/// # let lr_address = 256;
/// let kernels = Kernels::new(0)?;
/// let config = DualAdamConfig::default();
/// let groups = [
///     ControlGroup { config: config.with_lr(3e-4), lr: None },
///     ControlGroup { config, lr: Some(RawLr::F32(lr_address)) },
/// ];
/// let set = |group| ControlSet { group, step: None };
/// let mut control = Control::new(&kernels, &groups, &[set(0), set(0), set(1)])?;
/// // SAFETY: the null stream lives as long as the context.
/// unsafe { control.set_lr(0, 1e-4, std::ptr::null_mut())? };
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
pub struct Control {
    kernels: Kernels,
    prepare_sets: Function,
    groups: Vec<ControlGroup>,
    /// The sets as the next step needs them.
    sets: Vec<DeviceSet>,
    /// Those of them that the device does not have yet.
    changed: Range<usize>,
    /// Which are active in the step under way.
    active: Vec<bool>,
    memory: DeviceMemory,
    places: Places,
    staging: Staging,
    last_use: Arc<LastUse>,
    is_interrupted: bool,
}

/// Where the parts of a control lie, in bytes after the start of its memory.
#[derive(Debug, Clone, Copy)]
struct Places {
    steps: usize,
    groups: usize,
    sets: usize,
    states: usize,
    coeffs: usize,
    skips: usize,
    bytes: usize,
}

impl Places {
    fn new(groups: usize, sets: usize) -> Self {
        let mut bytes = 0;
        let mut place = |size: usize, count: usize| {
            let start = bytes;
            bytes += (size * count).next_multiple_of(16);
            start
        };
        let steps = place(size_of::<u64>(), sets);
        let groups = place(size_of::<DeviceGroup>(), groups);
        let states = place(size_of::<DeviceState>(), sets);
        let coeffs = place(size_of::<StepCoeffs>(), sets);
        let skips = place(size_of::<u32>(), sets);
        let sets = place(size_of::<DeviceSet>(), sets);
        Self { steps, groups, sets, states, coeffs, skips, bytes }
    }
}

impl Control {
    /// A control with these groups and sets, in device memory. Waits until it is there. All sets without a counter of the caller's are
    /// before their first step.
    ///
    /// # Errors
    ///
    /// [`Error::Empty`] for no set at all, [`Error::Value`] if a config is not valid, [`Error::Position`] if a set's group is not
    /// there, [`Error::Address`] for a counter or lr of the caller's that is null or misaligned, or a counter that overlaps another
    /// counter or an lr, [`Error::TooMany`] for more sets than 32 bits count, [`Error::Ptx`] if the driver refuses the kernel that
    /// prepares sets, [`Error::Driver`] for what the driver reports.
    pub fn new(kernels: &Kernels, groups: &[ControlGroup], sets: &[ControlSet]) -> Result<Self, Error> {
        if sets.is_empty() {
            return Err(Error::Empty { list: "sets" });
        }
        let last_use = {
            let _current = kernels.enter()?;
            LastUse::new(kernels.context())?
        };
        Self::with_states(kernels, groups, sets, &last_use, |_| SetStart { step: 0, masters_unset: false })
    }

    /// [`new`](Self::new), which may have no sets, whose own counters begin elsewhere, and whose steps are among the uses whose last
    /// one is `last_use`.
    pub(super) fn with_states(
        kernels: &Kernels,
        groups: &[ControlGroup],
        sets: &[ControlSet],
        last_use: &Arc<LastUse>,
        start: impl Fn(usize) -> SetStart,
    ) -> Result<Self, Error> {
        let limit = u64::from(u32::MAX);
        if sets.len() as u64 > limit {
            return Err(Error::TooMany { list: "sets", limit, actual: sets.len() as u64 });
        }
        groups.iter().try_for_each(|group| group.config.validate())?;
        if let Some(set) = sets.iter().find(|set| set.group >= groups.len()) {
            return Err(Error::Position { list: "group", len: groups.len(), value: set.group });
        }
        check_addresses(groups, sets)?;
        let prepare_sets = kernels.prepare_sets()?;

        let places = Places::new(groups.len(), sets.len());
        let memory = DeviceMemory::zeros(kernels, last_use, places.bytes)?;
        let staging = Staging::new(kernels, last_use, size_of::<DeviceGroup>().max(size_of_val(sets)))?;
        let own_step = |set: usize| memory.address() + (places.steps + size_of::<u64>() * set) as u64;
        let set = |(index, set): (usize, &ControlSet)| DeviceSet {
            step: set.step.unwrap_or(own_step(index)),
            group: set.group as u32,
            active: 1,
        };
        let sets: Vec<_> = sets.iter().enumerate().map(set).collect();
        let active = vec![true; sets.len()];
        let (groups, kernels, last_use) = (groups.to_vec(), kernels.clone(), last_use.clone());
        let mut made = Self {
            kernels,
            prepare_sets,
            groups,
            sets,
            changed: 0..0,
            active,
            memory,
            places,
            staging,
            last_use,
            is_interrupted: false,
        };
        made.upload_all(start)?;
        Ok(made)
    }

    fn upload_all(&mut self, start: impl Fn(usize) -> SetStart) -> Result<(), Error> {
        let starts: Vec<_> = (0..self.sets.len()).map(start).collect();
        let steps: Vec<_> = starts.iter().map(|start| start.step).collect();
        let state = |start: &SetStart| DeviceState {
            masters: if start.masters_unset { MASTERS_UNSET } else { 0 },
            ..DeviceState::zeroed()
        };
        let states: Vec<_> = starts.iter().map(state).collect();
        let groups: Vec<_> = (0..self.groups.len()).map(|group| self.device_group(group)).collect();
        let places = self.places;
        self.memory.upload(places.steps as u64, &steps)?;
        self.memory.upload(places.groups as u64, &groups)?;
        self.memory.upload(places.sets as u64, &self.sets)?;
        self.memory.upload(places.states as u64, &states)
    }

    /// How many sets there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether there is no set, which [`new`](Self::new) refuses.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// The config of a group, with the lr that it was last given here.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group.
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, Error> {
        self.group(group).map(|group| group.config)
    }

    fn group(&self, group: usize) -> Result<&ControlGroup, Error> {
        self.groups.get(group).ok_or(Error::Position { list: "group", len: self.groups.len(), value: group })
    }

    /// Sets the learning rate of a group for the steps that come later on `stream`, also for those of graphs.
    ///
    /// The call blocks only when the four changes before are all still in flight.
    ///
    /// # Errors
    ///
    /// [`Error::Position`] if there is no such group; [`Error::Value`] if `lr` is not valid with the rest of the config;
    /// [`Error::CallersLr`] if it lies in the caller's memory; [`Error::Context`] for a stream of another context;
    /// [`Error::Captured`] if the stream is being captured. [`Error::Driver`] for what the driver reports; the device may have the
    /// old or the new one then.
    ///
    /// # Safety
    ///
    /// `stream` is null or a live stream, and steps with this control on other streams, or of graphs there, are ordered before or
    /// after.
    pub unsafe fn set_lr(&mut self, group: usize, lr: f64, stream: *mut c_void) -> Result<(), Error> {
        let ControlGroup { config, lr: callers } = *self.group(group)?;
        let config = config.with_lr(lr);
        config.validate()?;
        if callers.is_some() {
            return Err(Error::CallersLr { group });
        }
        // SAFETY: `stream` is live (this function's first requirement); that is where the lr lies.
        unsafe { self.send("a new lr", &lr, self.lr_address(group), stream) }?;
        self.groups[group].config = config;
        Ok(())
    }

    /// Sets the whole config of a group for the steps that come later on `stream`, also for those of graphs; as
    /// [`set_lr`](Self::set_lr), but for an lr in the caller's memory, which stays.
    ///
    /// # Errors
    ///
    /// As [`set_lr`](Self::set_lr), but for [`Error::CallersLr`].
    ///
    /// # Safety
    ///
    /// As for [`set_lr`](Self::set_lr).
    pub unsafe fn set_config(
        &mut self,
        group: usize,
        config: DualAdamConfig,
        stream: *mut c_void,
    ) -> Result<(), Error> {
        config.validate()?;
        let before = *self.group(group)?;
        self.groups[group].config = config;
        // SAFETY: `stream` is live (this function's first requirement); that is where the group lies.
        let sent = unsafe { self.send("a new config", &self.device_group(group), self.group_address(group), stream) };
        if sent.is_err() {
            self.groups[group] = before;
        }
        sent
    }

    /// Sends a value to the device, in the order of `stream` and from pinned memory.
    ///
    /// # Safety
    ///
    /// The stream must be live, and the value's place at `to`.
    unsafe fn send<T: Pod>(
        &mut self,
        what: &'static str,
        value: &T,
        to: u64,
        stream: *mut c_void,
    ) -> Result<(), Error> {
        let _current = self.kernels.enter()?;
        // SAFETY: as this function requires.
        unsafe {
            check_stream(&self.kernels, stream)?;
            refuse_capture(stream, what)?;
            send_bytes(&mut self.staging, &self.last_use, bytemuck::bytes_of(value), to, stream)
        }
    }

    /// The step counters of all sets. Waits for the work before on `stream` and reads them from the device.
    ///
    /// # Errors
    ///
    /// [`Error::Context`] for a stream of another context, [`Error::Captured`] if it is being captured, [`Error::Interrupted`] as for
    /// a step, [`Error::Driver`] for what the driver reports.
    ///
    /// # Safety
    ///
    /// `stream` is null or a live stream, steps with this control on other streams are ordered before or after, and the caller's own
    /// counters are live memory.
    pub unsafe fn steps(&self, stream: *mut c_void) -> Result<Vec<u64>, Error> {
        // SAFETY: as this function requires.
        unsafe {
            let _current = self.begin_read(stream)?;
            self.read_steps(stream)
        }
    }

    /// Sets the step counters of all sets, the caller's own ones too, for the steps that come later on `stream`. Waits for the
    /// work before on it.
    ///
    /// After an interrupted step this makes the control usable again. The tensors that the step was not made of are then the caller's
    /// to restore.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] for another number of sets; [`Error::Context`], [`Error::Captured`] and [`Error::Driver`] as for
    /// [`steps`](Self::steps).
    ///
    /// # Safety
    ///
    /// As for [`steps`](Self::steps).
    pub unsafe fn set_steps(&mut self, steps: &[u64], stream: *mut c_void) -> Result<(), Error> {
        let (expected, actual) = (self.sets.len(), steps.len());
        if actual != expected {
            return Err(Error::Count { list: "steps", expected, actual });
        }
        let _current = self.kernels.enter()?;
        // SAFETY: the requirements of `steps`.
        unsafe {
            check_stream(&self.kernels, stream)?;
            refuse_capture(stream, "new steps")?;
            let uploaded = self.upload_steps(steps, stream);
            self.last_use.note(stream);
            uploaded?;
        }
        self.is_interrupted = false;
        Ok(())
    }

    /// # Safety
    ///
    /// As for [`steps`](Self::steps), and the context must be current.
    unsafe fn upload_steps(&self, steps: &[u64], stream: *mut c_void) -> Result<(), Error> {
        // SAFETY: the counters lie at these places, and `stream` is live, as this function requires.
        unsafe {
            upload(self.at(self.places.steps), steps, stream)?;
            let callers = self.sets.iter().zip(steps).filter(|(set, _)| !self.owns(set.step));
            callers.into_iter().try_for_each(|(set, step)| upload(set.step, &[*step], stream))
        }
    }

    /// What became of each set's steps. Waits for the work before on `stream` and reads it from the device.
    ///
    /// # Errors
    ///
    /// As for [`steps`](Self::steps).
    ///
    /// # Safety
    ///
    /// As for [`steps`](Self::steps).
    pub unsafe fn report(&self, stream: *mut c_void) -> Result<Vec<SetReport>, Error> {
        // SAFETY: as this function requires; the sets' states and coefficients lie at these places.
        let (steps, states, coeffs) = unsafe {
            let _current = self.begin_read(stream)?;
            let states: Vec<DeviceState> = download(self.states(), self.sets.len(), stream)?;
            let coeffs: Vec<StepCoeffs> = download(self.coeffs(), self.sets.len(), stream)?;
            (self.read_steps(stream)?, states, coeffs)
        };
        let report = |((step, state), coeffs): ((u64, DeviceState), StepCoeffs)| {
            let DeviceState { skipped, last_skip, .. } = state;
            SetReport { step, skipped, last_skip: SkipReason::of(last_skip), coeffs }
        };
        Ok(steps.into_iter().zip(states).zip(coeffs).map(report).collect())
    }

    /// The step counters, and whether each set's masters are set.
    ///
    /// # Safety
    ///
    /// As for [`steps`](Self::steps).
    pub(super) unsafe fn steps_and_masters(&self, stream: *mut c_void) -> Result<Vec<(u64, bool)>, Error> {
        // SAFETY: as this function requires; the sets' states lie at this place.
        let (steps, states): (_, Vec<DeviceState>) = unsafe {
            let _current = self.begin_read(stream)?;
            (self.read_steps(stream)?, download(self.states(), self.sets.len(), stream)?)
        };
        Ok(steps.into_iter().zip(states).map(|(step, state)| (step, state.masters != MASTERS_UNSET)).collect())
    }

    /// Sets one counter, in the order of `stream`.
    ///
    /// # Safety
    ///
    /// As for [`steps`](Self::steps), and the context must be current.
    pub(super) unsafe fn set_step(&mut self, set: usize, step: u64, stream: *mut c_void) -> Result<(), Error> {
        // SAFETY: as this function requires; that is where the counter lies.
        unsafe {
            let uploaded = upload(self.sets[set].step, &[step], stream);
            self.last_use.note(stream);
            uploaded
        }
    }

    /// # Safety
    ///
    /// As for [`steps`](Self::steps).
    unsafe fn begin_read(&self, stream: *mut c_void) -> Result<Current, Error> {
        self.check_interrupted()?;
        let current = self.kernels.enter()?;
        // SAFETY: as this function requires.
        unsafe {
            check_stream(&self.kernels, stream)?;
            refuse_capture(stream, "reading from the device")?;
        }
        Ok(current)
    }

    /// # Safety
    ///
    /// As for [`steps`](Self::steps), and the context must be current.
    unsafe fn read_steps(&self, stream: *mut c_void) -> Result<Vec<u64>, Error> {
        // SAFETY: as this function requires; the counters lie at these places.
        let mut steps: Vec<u64> = unsafe { download(self.at(self.places.steps), self.sets.len(), stream) }?;
        for (set, step) in self.sets.iter().zip(&mut steps).filter(|(set, _)| !self.owns(set.step)) {
            // SAFETY: as above.
            let read: Vec<u64> = unsafe { download(set.step, 1, stream) }?;
            read.into_iter().for_each(|read| *step = read);
        }
        Ok(steps)
    }

    /// Says which sets the step under way updates; the others keep their counters.
    pub(super) fn set_active(&mut self, sets: impl Iterator<Item = usize>) {
        self.active.fill(false);
        sets.for_each(|set| self.active[set] = true);
        for (index, (set, &active)) in self.sets.iter_mut().zip(&self.active).enumerate() {
            if set.active != u32::from(active) {
                set.active = active.into();
                let Range { start, end } = self.changed;
                self.changed = if start == end { index..index + 1 } else { start.min(index)..end.max(index + 1) };
            }
        }
    }

    /// Sends what the device does not have yet of which sets are active.
    ///
    /// # Safety
    ///
    /// `stream` must be live and not captured, the kernels' context current, and earlier uses of the control ordered before.
    pub(super) unsafe fn send_active(&mut self, stream: *mut c_void) -> Result<(), Error> {
        if self.changed.is_empty() {
            return Ok(());
        }
        let changed = bytemuck::cast_slice(&self.sets[self.changed.clone()]);
        let to = self.sets() + (size_of::<DeviceSet>() * self.changed.start) as u64;
        // SAFETY: as this function requires; that is where these sets lie.
        unsafe { send_bytes(&mut self.staging, &self.last_use, changed, to, stream) }?;
        self.changed = 0..0;
        Ok(())
    }

    /// The sets as the step under way needs them, for a graph that must not see later changes.
    pub(super) fn set_bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.sets)
    }

    /// Launches the kernel that prepares the sets, which are at the address `sets`.
    ///
    /// # Safety
    ///
    /// `stream` must be live and the kernels' context current; the scalars and what the caller keeps of the control must be as
    /// [`TensorList::step_controlled`](super::TensorList::step_controlled) says.
    pub(super) unsafe fn launch(&self, sets: u64, scalars: &RawScalars, stream: *mut c_void) -> Result<(), Error> {
        let memory = [self.at(self.places.groups), sets, self.states(), self.coeffs(), self.skips()];
        let RawScalars { loss_scale, clip_factor, found_inf } = *scalars;
        let count = self.sets.len() as u32;
        // SAFETY: as this function requires; the control's own memory is as the kernel expects it.
        unsafe { launch_prepare_sets(self.prepare_sets, memory, count, [loss_scale, clip_factor, found_inf], stream) }
    }

    /// Fails if the control is of another context, or if its counters don't fit the tensors.
    pub(super) fn check(&self, kernels: &Kernels) -> Result<(), Error> {
        if self.kernels.context().cu_ctx() != kernels.context().cu_ctx() {
            return Err(Error::Context { argument: "control" });
        }
        self.check_interrupted()
    }

    pub(super) fn check_interrupted(&self) -> Result<(), Error> {
        if self.is_interrupted { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Notes that counters have advanced of tensors that were not stepped.
    pub(super) fn interrupt(&mut self) {
        self.is_interrupted = true;
    }

    /// The end of the last work that uses the control's memory.
    pub(super) fn last_use(&self) -> &Arc<LastUse> {
        &self.last_use
    }

    /// The address of the sets.
    pub(super) fn sets(&self) -> u64 {
        self.at(self.places.sets)
    }

    /// The address of the sets' states.
    pub(super) fn states(&self) -> u64 {
        self.at(self.places.states)
    }

    /// The address of the sets' coefficients.
    pub(super) fn coeffs(&self) -> u64 {
        self.at(self.places.coeffs)
    }

    /// The address of the words that say which sets to leave alone.
    pub(super) fn skips(&self) -> u64 {
        self.at(self.places.skips)
    }

    fn at(&self, place: usize) -> u64 {
        self.memory.address() + place as u64
    }

    fn group_address(&self, group: usize) -> u64 {
        self.at(self.places.groups) + (size_of::<DeviceGroup>() * group) as u64
    }

    /// The place of a group's own lr.
    fn lr_address(&self, group: usize) -> u64 {
        self.group_address(group) + offset_of!(DeviceGroup, own_lr) as u64
    }

    fn owns(&self, address: u64) -> bool {
        (self.memory.address()..self.memory.address() + self.places.bytes as u64).contains(&address)
    }

    fn device_group(&self, group: usize) -> DeviceGroup {
        let ControlGroup { config, lr } = &self.groups[group];
        DeviceGroup::new(config, lr.unwrap_or(RawLr::F64(self.lr_address(group))))
    }
}

/// How a set begins whose counter is the control's own.
#[derive(Debug, Clone, Copy)]
pub(super) struct SetStart {
    pub(super) step: u64,
    pub(super) masters_unset: bool,
}

/// Copies bytes to the device, in the order of `stream` and from pinned memory.
///
/// # Safety
///
/// - The context must be current, and `stream` a live stream of it that is not being captured.
/// - The bytes' place must be at `to`, and its earlier uses ordered before what is enqueued on `stream` now.
unsafe fn send_bytes(
    staging: &mut Staging,
    last_use: &LastUse,
    bytes: &[u8],
    to: u64,
    stream: *mut c_void,
) -> Result<(), Error> {
    let fill = |slot: &mut [u8]| {
        let slot = &mut slot[..bytes.len()];
        slot.copy_from_slice(bytes);
        // SAFETY: the place is at `to`, as this function requires; the slot is kept as it is until the copy has ended.
        unsafe { memory::copy(to, slot, stream.cast()) }
    };
    // SAFETY: `stream` is live and ordered after earlier uses, as this function requires; the copy goes to this stream.
    unsafe {
        let sent = staging.send(stream, fill);
        // Also after a failure: the copy may have been enqueued.
        last_use.note(stream);
        sent
    }
}

fn check_aligned(argument: impl Fn() -> String, address: u64, align: u64) -> Result<(), Error> {
    if address.is_multiple_of(align) {
        return Ok(());
    }
    Err(Error::Address { argument: argument(), requirement: format!("be aligned to {align} bytes"), address })
}

/// Checks what the caller keeps: no address null or misaligned, and no counter where something else is.
fn check_addresses(groups: &[ControlGroup], sets: &[ControlSet]) -> Result<(), Error> {
    /// Bytes with what they hold.
    #[derive(Clone, Copy)]
    struct Held {
        start: u64,
        bytes: u64,
        is_step: bool,
        index: usize,
    }
    let name = |held: &Held| {
        if held.is_step { format!("step of set {}", held.index) } else { format!("lr of group {}", held.index) }
    };
    let lr = |(index, group): (usize, &ControlGroup)| {
        let (start, bytes) = match group.lr? {
            RawLr::F32(address) => (address, 4),
            RawLr::F64(address) => (address, 8),
        };
        Some(Held { start, bytes, is_step: false, index })
    };
    let step =
        |(index, set): (usize, &ControlSet)| set.step.map(|start| Held { start, bytes: 8, is_step: true, index });
    let lrs = groups.iter().enumerate().filter_map(lr);
    let mut all: Vec<_> = lrs.chain(sets.iter().enumerate().filter_map(step)).collect();
    for held in &all {
        if held.start == 0 {
            return Err(Error::Address { argument: name(held), requirement: "not be null".to_owned(), address: 0 });
        }
        check_aligned(|| name(held), held.start, held.bytes)?;
    }
    // All is aligned and no longer than 8 bytes, so that what overlaps lies in the same 8 bytes. Counters come first there.
    all.sort_by_key(|held| (held.start / 8, !held.is_step));
    match all.windows(2).find(|pair| pair[0].is_step && pair[0].start / 8 == pair[1].start / 8) {
        Some(pair) => Err(Error::Address {
            argument: name(&pair[0]),
            requirement: format!("not overlap {}", name(&pair[1])),
            address: pair[0].start,
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels and the host must agree on these.
    #[test]
    fn layouts_and_numbers_are_those_of_the_kernels() {
        assert_eq!((size_of::<DeviceGroup>(), size_of::<DeviceSet>(), size_of::<DeviceState>()), (96, 16, 16));
        let source = include_str!("../../kernels/control.cuh");
        for line in [
            "enum Schedule : u32 { LINEAR = 0, LINEAR_EARLY_DROP = 1, EXPONENTIAL = 2, FIXED = 3 };",
            "enum Decay : u32 { NO_DECAY = 0, DECOUPLED = 1, L2 = 2 };",
            "SETTING_MASTERS = 8,",
            "enum Masters : u32 { MASTERS_SET = 0, MASTERS_UNSET = 1, MASTERS_BEING_SET = 2 };",
            "SKIP_FOUND_INF = 1,",
            "SKIP_LOSS_SCALE = 2,",
            "SKIP_CLIP_FACTOR = 3,",
            "SKIP_MULTIPLIER = 4,",
            "SKIP_LR = 5,",
            "SKIP_STEP = 6,",
        ] {
            assert_eq!(source.matches(line).count(), 1, "{line}");
        }
        assert_eq!((SkipReason::of(1), SkipReason::of(6)), (Some(SkipReason::FoundInf), Some(SkipReason::Step)));
        assert_eq!((SkipReason::of(0), SkipReason::of(7)), (None, None));
    }
}

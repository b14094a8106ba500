//! Steps controlled on the device: hyperparameters, learning rates and step counters in device
//! memory, from which a kernel forms the coefficients.

mod args;
mod block;
mod layout;
mod report;
mod step;

pub use args::{ControlGroup, ControlSet, RawLr, RawScalars};
pub(super) use block::SetStart;
pub use report::SetReport;

use std::ffi::c_void;
use std::ops::Range;
use std::sync::Arc;

use crate::rule::DualAdamConfig;
use crate::tensor::{ListError, check_count};

use super::driver::Current;
use super::error::CudaError;
use super::event::LastUse;
use super::kernels::Kernels;
use super::memory::upload;
use super::module::Function;
use super::staging::Staging;
use super::stream::{check_stream, refuse_capture};
use block::{Block, send};
use layout::{DeviceGroup, DeviceSet};

/// The control block of a list in device memory: coefficient sets whose hyperparameters, learning
/// rates and step counters live on the device. So a CUDA graph can be launched again and again and
/// goes on counting.
///
/// A set belongs to a group, which has a config and a learning rate, and counts its own steps.
/// [`TensorList::step_controlled`] takes its coefficients from here. A control serves one list.
///
/// Learning rates and counters may lie in the caller's memory; the control keeps the others. A
/// graph that captured steps may outlive the control, whose memory stays until the graph is
/// destroyed. Otherwise dropping the control frees it after the last step. That never waits for the
/// device, and leaves captures valid.
///
/// Streams are given as `CUstream`, which is the same as a `cudaStream_t`; null is the default
/// stream.
///
/// [`TensorList::step_controlled`]: super::TensorList::step_controlled
///
/// # Example
///
/// ```no_run
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels, RawLr};
///
/// # let lr_address = 256;
/// let kernels = Kernels::new(0)?;
/// let config = DualAdamConfig::default();
/// let groups = [
///     ControlGroup::new(config.with_lr(3e-4)),
///     ControlGroup::new(config).with_lr(RawLr::F32(lr_address)),
/// ];
/// let mut control = Control::new(&kernels, &groups, &[0, 0, 1].map(ControlSet::new))?;
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
    block: Block,
    staging: Staging,
    last_use: Arc<LastUse>,
    is_interrupted: bool,
}

impl Control {
    /// A control with these groups and sets, in device memory. Waits until it is there.
    ///
    /// All sets whose counters the control keeps are before their first step.
    ///
    /// # Errors
    ///
    /// - [`ListError::Empty`] for no set at all.
    /// - [`ArgumentError::Group`](crate::ArgumentError::Group) if a config is not valid.
    /// - [`CudaError::SetGroup`] if a set's group is not there.
    /// - [`CudaError::Address`] for a counter or lr in the caller's memory that is null or
    ///   misaligned, or a counter that overlaps another counter or an lr.
    /// - [`ListError::TooMany`] for more sets than 32 bits count.
    /// - [`CudaError::Ptx`] if the driver refuses the kernel that prepares coefficients.
    /// - [`CudaError::Driver`] for what the driver reports.
    pub fn new(kernels: &Kernels, groups: &[ControlGroup], sets: &[ControlSet]) -> Result<Self, CudaError> {
        if sets.is_empty() {
            return Err(ListError::Empty { list: "sets" }.into());
        }
        let last_use = {
            let _current = kernels.enter()?;
            LastUse::new(kernels.context())?
        };
        Self::starting_at(kernels, groups, sets, &last_use, |_| SetStart { step: 0, masters_are_set: true })
    }

    /// [`new`](Self::new), which may have no sets, whose own counters begin elsewhere, and whose
    /// steps are among the uses whose last one is `last_use`.
    pub(super) fn starting_at(
        kernels: &Kernels,
        groups: &[ControlGroup],
        sets: &[ControlSet],
        last_use: &Arc<LastUse>,
        start: impl Fn(usize) -> SetStart,
    ) -> Result<Self, CudaError> {
        args::check(groups, sets)?;
        let prepare_sets = kernels.prepare_sets()?;
        let (mut block, sets) = Block::new(kernels.pool(), last_use, groups, sets)?;
        let slot_bytes = size_of::<DeviceGroup>().max(size_of_val(sets.as_slice()));
        let staging = Staging::new(kernels.pool(), last_use, slot_bytes)?;
        block.fill(groups, &sets, start)?;
        Ok(Self {
            kernels: kernels.clone(),
            prepare_sets,
            groups: groups.to_vec(),
            changed: 0..0,
            active: vec![true; sets.len()],
            sets,
            block,
            staging,
            last_use: last_use.clone(),
            is_interrupted: false,
        })
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
    /// - [`ListError::Position`] if there is no such group.
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, ListError> {
        self.group(group).map(|group| group.config)
    }

    fn group(&self, group: usize) -> Result<&ControlGroup, ListError> {
        self.groups.get(group).ok_or(ListError::Position { list: "group", len: self.groups.len(), value: group })
    }

    /// Sets the learning rate of a group for the steps that come later on `stream`, also for those
    /// of graphs.
    ///
    /// The call blocks only when the four changes before are all still in flight.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if `lr` is not valid with the rest of the config.
    /// - [`CudaError::CallersLr`] if the lr lies in the caller's memory.
    /// - [`CudaError::Context`] for a stream of another context.
    /// - [`CudaError::Captured`] if the stream is being captured.
    /// - [`CudaError::Driver`] for what the driver reports; the device may have the old or the new
    ///   lr then.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - The caller orders this work against steps with this control on other streams, or of graphs
    ///   there.
    pub unsafe fn set_lr(&mut self, group: usize, lr: f64, stream: *mut c_void) -> Result<(), CudaError> {
        let ControlGroup { config, lr: callers } = *self.group(group)?;
        let config = config.with_lr(lr);
        config.validate()?;
        if callers.is_some() {
            return Err(CudaError::CallersLr { group });
        }
        // SAFETY: `stream` is live, and other uses are ordered (this function's requirements). The
        // lr lies there.
        unsafe { self.send("a new lr", bytemuck::bytes_of(&lr), self.block.own_lr(group), stream) }?;
        self.groups[group].config = config;
        Ok(())
    }

    /// Sets the whole config of a group for the steps that come later on `stream`, also for those
    /// of graphs.
    ///
    /// As [`set_lr`](Self::set_lr), except that an lr in the caller's memory stays.
    ///
    /// # Errors
    ///
    /// As [`set_lr`](Self::set_lr), without [`CudaError::CallersLr`].
    ///
    /// # Safety
    ///
    /// As for [`set_lr`](Self::set_lr).
    pub unsafe fn set_config(
        &mut self,
        group: usize,
        config: DualAdamConfig,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        config.validate()?;
        let changed = ControlGroup { config, ..*self.group(group)? };
        let on_device = self.block.device_group(group, &changed);
        // SAFETY: `stream` is live, and other uses are ordered (`set_lr`'s requirements). The group
        // lies there.
        unsafe { self.send("a new config", bytemuck::bytes_of(&on_device), self.block.group(group), stream) }?;
        self.groups[group] = changed;
        Ok(())
    }

    /// Sends bytes to the device, in the order of `stream` and from pinned memory.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream, and other uses of the control are ordered before or
    ///   after.
    /// - `to` is the bytes' place in the control's memory.
    unsafe fn send(&mut self, what: &'static str, bytes: &[u8], to: u64, stream: *mut c_void) -> Result<(), CudaError> {
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` is live, other uses are ordered, and the place is right (this function's
        // requirements). The context is current, and the stream is of it and not captured by then.
        unsafe {
            check_stream(self.kernels.context(), stream)?;
            refuse_capture(stream, what)?;
            send(&mut self.staging, &self.last_use, bytes, to, stream)
        }
    }

    /// The step counters of all sets. Waits for the work before on `stream` and reads them from the
    /// device.
    ///
    /// # Errors
    ///
    /// - [`CudaError::Context`] for a stream of another context.
    /// - [`CudaError::Captured`] if the stream is being captured.
    /// - [`CudaError::Interrupted`] as for a step.
    /// - [`CudaError::Driver`] for what the driver reports.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - The caller orders this work against steps with this control on other streams.
    /// - The counters in the caller's memory are live.
    pub unsafe fn steps(&self, stream: *mut c_void) -> Result<Vec<u64>, CudaError> {
        // SAFETY: `stream` and counters are live, and other uses are ordered (this function's
        // requirements). The context is current by then.
        unsafe {
            let _current = self.begin_read(stream)?;
            self.block.read_steps(&self.sets, stream)
        }
    }

    /// Sets the step counters of all sets, those in the caller's memory too, for the steps that
    /// come later on `stream`. Waits for the work before on it.
    ///
    /// After an interrupted step this makes the control usable again. The caller must then restore
    /// the tensors that the step was not made of.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`] for another number of sets.
    /// - [`CudaError::Context`], [`CudaError::Captured`] and [`CudaError::Driver`] as for
    ///   [`steps`](Self::steps).
    ///
    /// # Safety
    ///
    /// As for [`steps`](Self::steps).
    pub unsafe fn set_steps(&mut self, steps: &[u64], stream: *mut c_void) -> Result<(), CudaError> {
        check_count("steps", self.sets.len(), steps.len())?;
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` and counters are live, and other uses are ordered (`steps`'
        // requirements). The context is current, and the stream is of it and not captured by then.
        unsafe {
            check_stream(self.kernels.context(), stream)?;
            refuse_capture(stream, "new steps")?;
            let uploaded = self.block.write_steps(&self.sets, steps, stream);
            self.last_use.note(stream);
            uploaded?;
        }
        self.is_interrupted = false;
        Ok(())
    }

    /// What became of each set's steps. Waits for the work before on `stream` and reads it from the
    /// device.
    ///
    /// # Errors
    ///
    /// As for [`steps`](Self::steps).
    ///
    /// # Safety
    ///
    /// As for [`steps`](Self::steps).
    pub unsafe fn report(&self, stream: *mut c_void) -> Result<Vec<SetReport>, CudaError> {
        // SAFETY: `stream` and counters are live, and other uses are ordered (`steps`'
        // requirements). The context is current by then.
        let (states, coeffs, steps) = unsafe {
            let _current = self.begin_read(stream)?;
            let states = self.block.read_states(stream)?;
            (states, self.block.read_coeffs(stream)?, self.block.read_steps(&self.sets, stream)?)
        };
        let sets = steps.into_iter().zip(states).zip(coeffs);
        Ok(sets.map(|((step, state), coeffs)| SetReport::new(step, &state, coeffs)).collect())
    }

    /// The step counters, and whether each set's masters are set.
    ///
    /// # Safety
    ///
    /// As for [`steps`](Self::steps).
    pub(super) unsafe fn steps_and_masters(&self, stream: *mut c_void) -> Result<Vec<(u64, bool)>, CudaError> {
        // SAFETY: `stream` and counters are live, and other uses are ordered (`steps`'
        // requirements). The context is current by then.
        let (steps, states) = unsafe {
            let _current = self.begin_read(stream)?;
            (self.block.read_steps(&self.sets, stream)?, self.block.read_states(stream)?)
        };
        Ok(steps.into_iter().zip(states).map(|(step, state)| (step, state.masters_are_set())).collect())
    }

    /// Sets one counter, in the order of `stream`.
    ///
    /// # Safety
    ///
    /// As for [`steps`](Self::steps), and `stream` is not being captured.
    pub(super) unsafe fn set_step(&mut self, set: usize, step: u64, stream: *mut c_void) -> Result<(), CudaError> {
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` is live and not captured, the counter is live, and other uses are
        // ordered (this function's requirements).
        unsafe {
            let uploaded = upload(self.sets[set].step, &[step], stream);
            self.last_use.note(stream);
            uploaded
        }
    }

    /// Makes the context current for reading, unless nothing can be read in the order of `stream`.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    unsafe fn begin_read(&self, stream: *mut c_void) -> Result<Current, CudaError> {
        self.check_interrupted()?;
        let current = self.kernels.enter()?;
        // SAFETY: `stream` is live (this function's requirement), and the context is current.
        unsafe {
            check_stream(self.kernels.context(), stream)?;
            refuse_capture(stream, "reading from the device")?;
        }
        Ok(current)
    }

    pub(super) fn check_interrupted(&self) -> Result<(), CudaError> {
        if self.is_interrupted { Err(CudaError::Interrupted) } else { Ok(()) }
    }
}

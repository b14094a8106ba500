//! Controls: hyperparameters, learning rates and step counters in device memory, from which a
//! kernel forms the coefficients of a step.

mod args;
mod block;
mod counters;
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
use crate::tensor::ListError;

use super::error::CudaError;
use super::event::LastUse;
use super::kernels::Kernels;
use super::module::Function;
use super::staging::Staging;
use super::stream::{check_stream, refuse_capture};
use block::{Block, send};
use layout::{DeviceGroup, DeviceSet};

/// Hyperparameters, learning rates and step counters in device memory, for the steps of one list.
///
/// A control has groups and sets. A [group](ControlGroup) has a config and a learning rate. A
/// [set](ControlSet) belongs to a group and counts its own steps. [`TensorList::step_controlled`]
/// forms the coefficients of each set on the device and advances its counter there. So a CUDA graph
/// with steps can be launched many times, and each launch counts.
///
/// Learning rates and counters may lie in the caller's memory; the control keeps the others.
///
/// Streams are given as `CUstream`, which is the same as a `cudaStream_t`; null is the default
/// stream.
///
/// Dropping a control waits for nothing and invalidates no capture. Its memory is freed after the
/// last step, and after the last graph that captured one.
///
/// [`TensorList::step_controlled`]: super::TensorList::step_controlled
///
/// # Examples
///
/// ```
/// use dualadam::DualAdamConfig;
/// use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels, RawLr, cudarc::driver::DevicePtr};
///
/// # let _gpu = testkit::stand_in_or_return!();
/// let kernels = Kernels::new(0)?;
/// let stream = kernels.context().default_stream();
/// let scheduled = stream.clone_htod(&[1e-3_f32])?; // a scheduler on the device writes it
///
/// let config = DualAdamConfig::default();
/// let groups = [
///     ControlGroup::new(config.with_lr(3e-4)),
///     ControlGroup::new(config).with_lr(RawLr::F32(scheduled.device_ptr(&stream).0)),
/// ];
/// let mut control = Control::new(&kernels, &groups, &[0, 0, 1].map(ControlSet::new))?;
/// // SAFETY: the null stream lives as long as the context, and no step uses the control.
/// unsafe { control.set_lr(0, 1e-4, std::ptr::null_mut())? };
/// assert_eq!(control.config(0)?.lr, 1e-4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Control {
    kernels: Kernels,
    prepare_sets: Function,
    groups: Vec<ControlGroup>,
    /// The sets as the next step needs them on the device.
    sets: Vec<DeviceSet>,
    /// Those that have changed since the device got them.
    changed: Range<usize>,
    /// Which sets the current step updates.
    active: Vec<bool>,
    block: Block,
    staging: Staging,
    last_use: Arc<LastUse>,
    /// Whether a step failed after its counters had advanced.
    is_interrupted: bool,
}

impl Control {
    /// A control with these groups and sets. Copies them to the device and waits for the copy.
    ///
    /// The counters that the control keeps begin at 0.
    ///
    /// # Errors
    ///
    /// - [`ListError::Empty`] if there are no sets.
    /// - [`ListError::TooMany`] for more than 2³² - 1 sets.
    /// - [`ArgumentError::Group`](crate::ArgumentError::Group) if a config is not valid.
    /// - [`CudaError::SetGroup`] if a set names a group that does not exist.
    /// - [`CudaError::Address`] if the address of a counter or lr in the caller's memory is null or
    ///   misaligned, or if a counter overlaps another counter or an lr.
    /// - [`CudaError::Ptx`] if the driver refuses the kernel that prepares coefficients.
    /// - [`CudaError::Driver`] for anything else that the driver reports.
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

    /// [`new`](Self::new) with these initial states of the sets, of which there may be none. The
    /// control notes its uses in `last_use`.
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

    /// The number of sets.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sets.len()
    }

    /// Whether there are no sets. Always false, since [`new`](Self::new) refuses that.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// The config of a group, with the learning rate that [`set_lr`](Self::set_lr) set last.
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

    /// Sets the learning rate of a group for later steps on `stream`, including those of graphs
    /// that are launched there later.
    ///
    /// The call blocks only when all four staging slots are in flight.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if `lr` is not valid with the rest of the config.
    /// - [`CudaError::CallersLr`] if the lr lies in the caller's memory.
    /// - [`CudaError::Context`] for a stream of another context.
    /// - [`CudaError::Captured`] if the stream is being captured.
    /// - [`CudaError::Driver`] for anything else that the driver reports. The device may then have
    ///   the old or the new learning rate.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - The caller orders this work against steps with this control on other streams, and against
    ///   graphs with such steps that are launched on other streams.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let group = ControlGroup::new(DualAdamConfig::default());
    /// # let mut control = Control::new(&kernels, &[group], &[ControlSet::new(0)])?;
    /// let stream = std::ptr::null_mut();
    /// // SAFETY: the null stream lives as long as the context, and all steps are on it.
    /// unsafe { control.set_lr(0, 1e-4, stream)? };
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn set_lr(&mut self, group: usize, lr: f64, stream: *mut c_void) -> Result<(), CudaError> {
        let ControlGroup { config, lr: callers } = *self.group(group)?;
        let config = config.with_lr(lr);
        config.validate()?;
        if callers.is_some() {
            return Err(CudaError::CallersLr { group });
        }
        // SAFETY: `stream` is live, and other uses are ordered (this function's requirements).
        // `own_lr` is the address of the lr.
        unsafe { self.send("a new lr", bytemuck::bytes_of(&lr), self.block.own_lr(group), stream) }?;
        self.groups[group].config = config;
        Ok(())
    }

    /// Sets the config of a group for later steps on `stream`, including those of graphs that are
    /// launched there later.
    ///
    /// A learning rate in the caller's memory stays in use. The call blocks as
    /// [`set_lr`](Self::set_lr) does.
    ///
    /// # Errors
    ///
    /// - The errors of [`set_lr`](Self::set_lr), except [`CudaError::CallersLr`].
    ///
    /// # Safety
    ///
    /// - The requirements of [`set_lr`](Self::set_lr) hold.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::cuda::{Control, ControlGroup, ControlSet, Kernels};
    /// # let _gpu = testkit::stand_in_or_return!();
    /// # let kernels = Kernels::new(0)?;
    /// # let group = ControlGroup::new(DualAdamConfig::default());
    /// # let mut control = Control::new(&kernels, &[group], &[ControlSet::new(0)])?;
    /// let stream = std::ptr::null_mut();
    /// // SAFETY: the null stream lives as long as the context, and all steps are on it.
    /// unsafe { control.set_config(0, DualAdamConfig::adamw(0.1), stream)? };
    /// assert_eq!(control.config(0)?, DualAdamConfig::adamw(0.1));
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub unsafe fn set_config(
        &mut self,
        group: usize,
        config: DualAdamConfig,
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        config.validate()?;
        let changed = ControlGroup { config, ..*self.group(group)? };
        let on_device = self.block.device_group(group, &changed);
        // SAFETY: `stream` is live, and other uses are ordered (`set_lr`'s requirements). `group`
        // is the address of the group.
        unsafe { self.send("a new config", bytemuck::bytes_of(&on_device), self.block.group(group), stream) }?;
        self.groups[group] = changed;
        Ok(())
    }

    /// Enqueues a copy of bytes to the control's memory on `stream`, from pinned memory.
    ///
    /// # Safety
    ///
    /// - `stream` is null or a live stream.
    /// - Other uses of the control are ordered against this work.
    /// - `to` is the address of room for the bytes in the control's memory.
    unsafe fn send(&mut self, what: &'static str, bytes: &[u8], to: u64, stream: *mut c_void) -> Result<(), CudaError> {
        let _current = self.kernels.enter()?;
        // SAFETY: `stream` is live, other uses are ordered, and `to` has room (this function's
        // requirements). The context is current, and the two checks have passed before `send`.
        unsafe {
            check_stream(self.kernels.context(), stream)?;
            refuse_capture(stream, what)?;
            send(&mut self.staging, &self.last_use, bytes, to, stream)
        }
    }

    /// The address of the word that tells a kernel whether a set's masters are set.
    pub(super) fn masters(&self, set: usize) -> u64 {
        self.block.masters(set)
    }

    pub(super) fn check_interrupted(&self) -> Result<(), CudaError> {
        if self.is_interrupted { Err(CudaError::Interrupted) } else { Ok(()) }
    }
}

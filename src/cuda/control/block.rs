//! The control block: the device memory of a control.

use std::ffi::c_void;
use std::mem::offset_of;
use std::sync::Arc;

use crate::cuda::error::CudaError;
use crate::cuda::event::LastUse;
use crate::cuda::memory::{self, DeviceMemory, download, upload};
use crate::cuda::pool::Pool;
use crate::cuda::staging::Staging;
use crate::rule::StepCoeffs;

use super::args::{ControlGroup, ControlSet, RawLr};
use super::layout::{DeviceGroup, DeviceSet, DeviceState, Places};

/// How a set begins. The step counts only where the control keeps the counter.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct SetStart {
    pub(in crate::cuda) step: u64,
    pub(in crate::cuda) masters_are_set: bool,
}

/// The device memory of a control, and where its parts lie.
#[derive(Debug)]
pub(super) struct Block {
    memory: DeviceMemory,
    places: Places,
    sets: usize,
}

impl Block {
    /// The memory for these groups and sets, which are there when the call returns; and the sets as
    /// the device has them.
    pub(super) fn new(
        pool: &Arc<Pool>,
        last_use: &Arc<LastUse>,
        groups: &[ControlGroup],
        sets: &[ControlSet],
    ) -> Result<(Self, Vec<DeviceSet>), CudaError> {
        let places = Places::new(groups.len(), sets.len());
        let memory = DeviceMemory::zeros(pool, last_use, places.bytes)?;
        let own_step = |set: usize| memory.address() + places.steps + (size_of::<u64>() * set) as u64;
        let set = |(index, set): (usize, &ControlSet)| DeviceSet {
            step: set.step.unwrap_or(own_step(index)),
            group: set.group as u32,
            active: 1,
        };
        let device_sets = sets.iter().enumerate().map(set).collect();
        Ok((Self { memory, places, sets: sets.len() }, device_sets))
    }

    /// Brings new memory its content.
    pub(super) fn fill(
        &mut self,
        groups: &[ControlGroup],
        sets: &[DeviceSet],
        start: impl Fn(usize) -> SetStart,
    ) -> Result<(), CudaError> {
        let starts: Vec<_> = (0..sets.len()).map(start).collect();
        let steps: Vec<_> = starts.iter().map(|start| start.step).collect();
        let states: Vec<_> = starts.iter().map(|start| DeviceState::new(start.masters_are_set)).collect();
        let device_group = |(index, group)| self.device_group(index, group);
        let groups: Vec<_> = groups.iter().enumerate().map(device_group).collect();
        self.memory.upload(self.places.steps, &steps)?;
        self.memory.upload(self.places.groups, &groups)?;
        self.memory.upload(self.places.sets, sets)?;
        self.memory.upload(self.places.states, &states)
    }

    /// A group as the device has it.
    pub(super) fn device_group(&self, index: usize, group: &ControlGroup) -> DeviceGroup {
        DeviceGroup::new(&group.config, group.lr.unwrap_or(RawLr::F64(self.own_lr(index))))
    }

    /// The address of a group.
    pub(super) fn group(&self, group: usize) -> u64 {
        self.groups() + (size_of::<DeviceGroup>() * group) as u64
    }

    /// The address of a group's own lr.
    pub(super) fn own_lr(&self, group: usize) -> u64 {
        self.group(group) + offset_of!(DeviceGroup, own_lr) as u64
    }

    pub(super) fn groups(&self) -> u64 {
        self.at(self.places.groups)
    }

    pub(super) fn sets(&self) -> u64 {
        self.at(self.places.sets)
    }

    pub(super) fn states(&self) -> u64 {
        self.at(self.places.states)
    }

    pub(super) fn coeffs(&self) -> u64 {
        self.at(self.places.coeffs)
    }

    pub(super) fn skips(&self) -> u64 {
        self.at(self.places.skips)
    }

    fn at(&self, place: u64) -> u64 {
        self.memory.address() + place
    }

    fn is_own(&self, set: &DeviceSet) -> bool {
        (self.at(0)..self.at(self.places.bytes as u64)).contains(&set.step)
    }

    /// Reads the step counters.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the current context, and earlier uses of the control are
    ///   ordered before.
    /// - The caller's own counters are live memory.
    pub(super) unsafe fn read_steps(&self, sets: &[DeviceSet], stream: *mut c_void) -> Result<Vec<u64>, CudaError> {
        // SAFETY: the stream is live (this function's first requirement), and the counters lie
        // there.
        let mut steps: Vec<u64> = unsafe { download(self.at(self.places.steps), self.sets, stream) }?;
        for (set, step) in sets.iter().zip(&mut steps).filter(|(set, _)| !self.is_own(set)) {
            // SAFETY: the stream is live, and so is the caller's counter (this function's
            // requirements).
            let read: Vec<u64> = unsafe { download(set.step, 1, stream) }?;
            read.into_iter().for_each(|read| *step = read);
        }
        Ok(steps)
    }

    /// Writes the step counters.
    ///
    /// # Safety
    ///
    /// As for [`read_steps`](Self::read_steps).
    pub(super) unsafe fn write_steps(
        &self,
        sets: &[DeviceSet],
        steps: &[u64],
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        // SAFETY: the stream is live (this function's first requirement), and the counters lie
        // there.
        unsafe { upload(self.at(self.places.steps), steps, stream) }?;
        let mut callers = sets.iter().zip(steps).filter(|(set, _)| !self.is_own(set));
        // SAFETY: the stream is live, and so are the caller's counters (this function's
        // requirements).
        callers.try_for_each(|(set, step)| unsafe { upload(set.step, &[*step], stream) })
    }

    /// Reads what the device notes of the sets.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the current context, and earlier uses of the control are
    ///   ordered before.
    pub(super) unsafe fn read_states(&self, stream: *mut c_void) -> Result<Vec<DeviceState>, CudaError> {
        // SAFETY: the stream is live (this function's requirement), and the states lie there.
        unsafe { download(self.states(), self.sets, stream) }
    }

    /// Reads the sets' coefficients.
    ///
    /// # Safety
    ///
    /// As for [`read_states`](Self::read_states).
    pub(super) unsafe fn read_coeffs(&self, stream: *mut c_void) -> Result<Vec<StepCoeffs>, CudaError> {
        // SAFETY: the stream is live (this function's requirement), and the coefficients lie there.
        unsafe { download(self.coeffs(), self.sets, stream) }
    }
}

/// Copies bytes to the device, in the order of `stream` and from pinned memory.
///
/// # Safety
///
/// - `stream` is a live stream of the current context that is not being captured.
/// - The bytes' place is at `to`, and its earlier uses are ordered before what is enqueued on
///   `stream` now.
pub(super) unsafe fn send(
    staging: &mut Staging,
    last_use: &LastUse,
    bytes: &[u8],
    to: u64,
    stream: *mut c_void,
) -> Result<(), CudaError> {
    let fill = |slot: &mut [u8]| {
        let slot = &mut slot[..bytes.len()];
        slot.copy_from_slice(bytes);
        // SAFETY: the stream is live, and the place is at `to` (this function's requirements). The
        // slot is kept as it is until the copy has ended.
        unsafe { memory::copy(to, slot, stream.cast()) }
    };
    // SAFETY: the context is current, and `stream` is live and ordered after earlier uses (this
    // function's requirements). The copy goes to this stream.
    unsafe {
        let sent = staging.send(stream, fill);
        // Also after a failure: the copy may have been enqueued.
        last_use.note(stream);
        sent
    }
}

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

/// The initial state of a set. `step` is used only if the control keeps the counter.
#[derive(Debug, Clone, Copy)]
pub(in crate::cuda) struct SetStart {
    pub(in crate::cuda) step: u64,
    pub(in crate::cuda) masters_are_set: bool,
}

/// The device memory of a control, and the places of its parts.
#[derive(Debug)]
pub(super) struct Block {
    memory: DeviceMemory,
    places: Places,
    sets: usize,
}

impl Block {
    /// Allocates memory of zeros for these groups and sets. Also returns the sets as the device
    /// reads them; [`fill`](Self::fill) copies them there.
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

    /// Copies the initial content to new memory. Waits for the copies.
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

    /// A group as the device reads it.
    pub(super) fn device_group(&self, index: usize, group: &ControlGroup) -> DeviceGroup {
        DeviceGroup::new(&group.config, group.lr.unwrap_or(RawLr::F64(self.own_lr(index))))
    }

    /// The address of a group.
    pub(super) fn group(&self, group: usize) -> u64 {
        self.groups() + (size_of::<DeviceGroup>() * group) as u64
    }

    /// The address of the lr that the control keeps for a group.
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

    /// The address of the word that says whether a set's masters are set.
    pub(super) fn masters(&self, set: usize) -> u64 {
        self.states() + (size_of::<DeviceState>() * set + offset_of!(DeviceState, masters)) as u64
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

    /// Reads the step counters of all sets. Waits for `stream`.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the current context, and earlier uses of the control are
    ///   ordered before work that is enqueued on it now.
    /// - The counters in the caller's memory are live.
    pub(super) unsafe fn read_steps(&self, sets: &[DeviceSet], stream: *mut c_void) -> Result<Vec<u64>, CudaError> {
        // SAFETY: the stream is live (this function's first requirement), and the control's
        // counters lie at that place.
        let mut steps: Vec<u64> = unsafe { download(self.at(self.places.steps), self.sets, stream) }?;
        for (set, step) in sets.iter().zip(&mut steps).filter(|(set, _)| !self.is_own(set)) {
            // SAFETY: the stream and the caller's counter are live (this function's requirements).
            let read: Vec<u64> = unsafe { download(set.step, 1, stream) }?;
            read.into_iter().for_each(|read| *step = read);
        }
        Ok(steps)
    }

    /// Writes the step counters of all sets. Waits for `stream`.
    ///
    /// # Safety
    ///
    /// - The requirements of [`read_steps`](Self::read_steps) hold.
    pub(super) unsafe fn write_steps(
        &self,
        sets: &[DeviceSet],
        steps: &[u64],
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        // SAFETY: the stream is live (`read_steps`' first requirement), and the control's counters
        // lie at that place.
        unsafe { upload(self.at(self.places.steps), steps, stream) }?;
        let mut callers = sets.iter().zip(steps).filter(|(set, _)| !self.is_own(set));
        // SAFETY: the stream and the caller's counters are live (`read_steps`' requirements).
        callers.try_for_each(|(set, step)| unsafe { upload(set.step, &[*step], stream) })
    }

    /// Reads the states of all sets. Waits for `stream`.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the current context, and earlier uses of the control are
    ///   ordered before work that is enqueued on it now.
    pub(super) unsafe fn read_states(&self, stream: *mut c_void) -> Result<Vec<DeviceState>, CudaError> {
        // SAFETY: the stream is live (this function's requirement), and the states lie at that
        // place.
        unsafe { download(self.states(), self.sets, stream) }
    }

    /// Reads the coefficients of all sets. Waits for `stream`.
    ///
    /// # Safety
    ///
    /// - The requirements of [`read_states`](Self::read_states) hold.
    pub(super) unsafe fn read_coeffs(&self, stream: *mut c_void) -> Result<Vec<StepCoeffs>, CudaError> {
        // SAFETY: the stream is live (`read_states`' requirement), and the coefficients lie at that
        // place.
        unsafe { download(self.coeffs(), self.sets, stream) }
    }
}

/// Enqueues a copy of bytes to the device on `stream`, from pinned memory.
///
/// # Safety
///
/// - `stream` is a live stream of the current context that is not being captured.
/// - `to` is the address of room for the bytes, and its earlier uses are ordered before work that
///   is enqueued on `stream` now.
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
        // SAFETY: the stream is live, and `to` has room (this function's requirements). `staging`
        // does not rewrite the slot before the copy has ended.
        unsafe { memory::copy(to, slot, stream.cast()) }
    };
    // SAFETY: the context is current, `stream` is live, and earlier uses are ordered before (this
    // function's requirements). `fill` enqueues on this stream only.
    unsafe {
        let sent = staging.send(stream, fill);
        // Also after a failure, since the copy may be in flight.
        last_use.note(stream);
        sent
    }
}

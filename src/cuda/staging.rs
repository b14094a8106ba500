//! Pinned memory that small changes travel from, in turns, so that the host need not wait for the device.

use std::ffi::c_void;
use std::ptr;

use cudarc::driver::sys::{self, CUevent};

use crate::Error;

use super::driver::check;
use super::kernels::Kernels;
use super::memory::PinnedMemory;

/// How many batches of changes can be under way. Only the one after these waits, for the oldest of them. Tuned on nothing: no GPU has
/// run it.
const SLOTS: usize = 4;

/// A ring of pinned slots of one size. A slot is not written again before the copies from it have ended.
#[derive(Debug)]
pub(super) struct Staging {
    memory: PinnedMemory,
    slot_bytes: usize,
    slots: [Slot; SLOTS],
    next: usize,
}

#[derive(Debug)]
struct Slot {
    /// What stands after the last copies from the slot.
    copied: Event,
    state: SlotState,
}

#[derive(Debug, Clone, Copy)]
enum SlotState {
    Free,
    /// Copies from it may be under way; the event says when they have ended.
    Recorded,
    /// Copies from it may be under way, and there is no event for them, since something failed.
    Unknown,
}

impl Staging {
    pub(super) fn new(kernels: &Kernels, slot_bytes: usize) -> Result<Self, Error> {
        let memory = PinnedMemory::new(kernels, slot_bytes * SLOTS)?;
        let slot = || Ok(Slot { copied: Event::new(kernels)?, state: SlotState::Free });
        Ok(Self { memory, slot_bytes, slots: [slot()?, slot()?, slot()?, slot()?], next: 0 })
    }

    /// Takes the next slot, lets `fill` write it and enqueue copies from it, and marks when these have ended.
    ///
    /// The kernels' context must be current.
    ///
    /// # Safety
    ///
    /// `stream` must be live, and `fill` must enqueue copies on it only.
    pub(super) unsafe fn send(
        &mut self,
        stream: *mut c_void,
        fill: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let slot = &mut self.slots[self.next];
        match slot.state {
            SlotState::Free => {}
            SlotState::Recorded => slot.copied.wait()?,
            // SAFETY: a context is current.
            SlotState::Unknown => check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })?,
        }
        slot.state = SlotState::Unknown;
        let start = self.next * self.slot_bytes;
        self.next = (self.next + 1) % SLOTS;
        fill(&mut self.memory.content()[start..start + self.slot_bytes])?;
        // SAFETY: the caller's promise.
        unsafe { slot.copied.record(stream) }?;
        slot.state = SlotState::Recorded;
        Ok(())
    }
}

#[derive(Debug)]
struct Event {
    kernels: Kernels,
    handle: CUevent,
}

// SAFETY: an event is a handle, which any thread may use.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    fn new(kernels: &Kernels) -> Result<Self, Error> {
        let _current = kernels.enter()?;
        let mut handle = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: `handle` is where the driver may write the handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut handle, flags) })?;
        Ok(Self { kernels: kernels.clone(), handle })
    }

    /// # Safety
    ///
    /// `stream` must be a live stream of the event's context.
    unsafe fn record(&self, stream: *mut c_void) -> Result<(), Error> {
        // SAFETY: the caller's stream.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.handle, stream.cast()) })
    }

    fn wait(&self) -> Result<(), Error> {
        // SAFETY: the event lives.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.handle) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_current) = self.kernels.enter() {
            // SAFETY: the event lives, and this is its end.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}

//! Pinned memory that small changes travel from, in turns, so that the host need not wait for the device.

use std::ffi::c_void;
use std::sync::Arc;

use crate::Error;

use super::event::{Event, LastUse};
use super::kernels::Kernels;
use super::memory::PinnedMemory;

/// How many batches of changes can be under way. Only the one after these waits, for the oldest of them. No GPU has confirmed it.
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
    /// The copies from the slots are among the uses whose last one is `last_use`.
    pub(super) fn new(kernels: &Kernels, last_use: &Arc<LastUse>, slot_bytes: usize) -> Result<Self, Error> {
        let memory = PinnedMemory::new(kernels, last_use, slot_bytes * SLOTS)?;
        let _current = kernels.enter()?;
        let slot = || Ok(Slot { copied: Event::new(kernels.context())?, state: SlotState::Free });
        Ok(Self { memory, slot_bytes, slots: [slot()?, slot()?, slot()?, slot()?], next: 0 })
    }

    /// Takes the next slot, lets `fill` write it and enqueue copies from it, and marks when these have ended.
    ///
    /// The kernels' context must be current.
    ///
    /// # Safety
    ///
    /// - `stream` must be a live stream of the kernels' context, and `fill` must enqueue copies on it only.
    /// - What was enqueued by earlier calls, on other streams, must be ordered before what is enqueued on `stream` now.
    pub(super) unsafe fn send(
        &mut self,
        stream: *mut c_void,
        fill: impl FnOnce(&mut [u8]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let slot = &mut self.slots[self.next];
        match slot.state {
            SlotState::Free => {}
            SlotState::Recorded => slot.copied.wait()?,
            SlotState::Unknown => {
                // SAFETY: the stream is live (this function's first requirement). The copies from the slot are ordered before what
                // is enqueued now (its second requirement).
                unsafe { slot.copied.record(stream) }?;
                slot.copied.wait()?;
            }
        }
        slot.state = SlotState::Unknown;
        let start = self.next * self.slot_bytes;
        self.next = (self.next + 1) % SLOTS;
        fill(&mut self.memory.content()[start..start + self.slot_bytes])?;
        // SAFETY: the stream is live (this function's first requirement).
        unsafe { slot.copied.record(stream) }?;
        slot.state = SlotState::Recorded;
        Ok(())
    }
}

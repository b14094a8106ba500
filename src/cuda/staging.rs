//! Pinned memory that small changes travel from, in turns, so that the host need not wait for the
//! device.

use std::ffi::c_void;
use std::sync::Arc;

use super::error::CudaError;
use super::event::{Event, LastUse};
use super::memory::PinnedMemory;
use super::pool::Pool;

/// How many batches of changes can be in flight. Only the one after these waits, for the oldest of
/// them. No GPU has confirmed the number.
const SLOTS: usize = 4;

/// A ring of pinned slots of one size. A slot is not written again before the copies from it have
/// ended.
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
    /// Copies from it may be in flight; the event says when they have ended.
    Recorded,
    /// Copies from it may be in flight, and there is no event for them, since something failed.
    Unknown,
}

impl Staging {
    /// The copies from the slots are among the uses whose last one is `last_use`.
    pub(super) fn new(pool: &Arc<Pool>, last_use: &Arc<LastUse>, slot_bytes: usize) -> Result<Self, CudaError> {
        let memory = PinnedMemory::new(pool, last_use, slot_bytes * SLOTS)?;
        let _current = pool.enter()?;
        let slot = || Ok::<_, CudaError>(Slot { copied: Event::new(pool.context())?, state: SlotState::Free });
        Ok(Self { memory, slot_bytes, slots: [slot()?, slot()?, slot()?, slot()?], next: 0 })
    }

    /// Takes the next slot, lets `fill` write it and enqueue copies from it, and marks when these
    /// have ended.
    ///
    /// # Safety
    ///
    /// - The pool's context is current.
    /// - `stream` is a live stream of it, and `fill` enqueues copies on no other.
    /// - What was enqueued by earlier calls, on other streams, is ordered before what is enqueued
    ///   on `stream` now.
    pub(super) unsafe fn send(
        &mut self,
        stream: *mut c_void,
        fill: impl FnOnce(&mut [u8]) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        let slot = &mut self.slots[self.next];
        match slot.state {
            SlotState::Free => {}
            SlotState::Recorded => slot.copied.wait()?,
            SlotState::Unknown => {
                // SAFETY: the stream is live (this function's second requirement). The copies from
                // the slot are ordered before what is enqueued now (its third requirement).
                unsafe { slot.copied.record(stream) }?;
                slot.copied.wait()?;
            }
        }
        slot.state = SlotState::Unknown;
        let start = self.next * self.slot_bytes;
        self.next = (self.next + 1) % SLOTS;
        fill(&mut self.memory.content()[start..start + self.slot_bytes])?;
        // SAFETY: the stream is live (this function's second requirement).
        unsafe { slot.copied.record(stream) }?;
        slot.state = SlotState::Recorded;
        Ok(())
    }
}

//! Staging for small changes: a ring of pinned slots, so that the host rarely waits for the device.

use std::ffi::c_void;
use std::sync::Arc;

use super::error::CudaError;
use super::event::{Event, LastUse};
use super::memory::PinnedMemory;
use super::pool::Pool;

/// The number of batches of changes that can be in flight. The next one waits for the oldest of
/// them. The number is a guess; no GPU has confirmed it.
const SLOTS: usize = 4;

/// A ring of pinned slots of one size. A slot is rewritten only after the copies from it have
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
    /// Recorded after the last copies from the slot.
    copied: Event,
    state: SlotState,
}

#[derive(Debug, Clone, Copy)]
enum SlotState {
    Free,
    /// Copies may be in flight; the event tells when they have ended.
    Recorded,
    /// Copies may be in flight without an event, since a call failed.
    Unknown,
}

impl Staging {
    /// The caller notes the copies from the slots in `last_use`.
    pub(super) fn new(pool: &Arc<Pool>, last_use: &Arc<LastUse>, slot_bytes: usize) -> Result<Self, CudaError> {
        let memory = PinnedMemory::new(pool, last_use, slot_bytes * SLOTS)?;
        let _current = pool.enter()?;
        let slot = || Ok::<_, CudaError>(Slot { copied: Event::new(pool.context())?, state: SlotState::Free });
        Ok(Self { memory, slot_bytes, slots: [slot()?, slot()?, slot()?, slot()?], next: 0 })
    }

    /// Lets `fill` write the next slot and enqueue copies from it, and records their end. Blocks
    /// only if copies from that slot are in flight, which means that all slots are.
    ///
    /// # Safety
    ///
    /// - The pool's context is current.
    /// - `stream` is a live stream of that context, and `fill` enqueues copies on no other stream.
    /// - Work that earlier calls enqueued, on any stream, is ordered before work that is enqueued
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

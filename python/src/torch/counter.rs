//! Step counters.

use std::ffi::c_void;
use std::ptr;

use dualadam::Dtype;

use crate::dlpack::{CPU, CUDA, Device, Tensor};

/// Counters from here on are f64. f32 represents every smaller whole number.
const F32_COUNTER_END: f32 = 16_777_215.0;

/// A step counter: a scalar tensor in the parameter's state.
#[derive(Debug, Clone, Copy)]
pub(super) enum Counter {
    /// In the host's memory, with the value that it had when `of` read it.
    F32(*mut f32, u64),
    F64(*mut f64, u64),
    I64(*mut i64, u64),
    /// A u64 in device memory, on the parameter's device.
    Device(u64),
    /// Not read, since the parameter has no gradient.
    Unused,
}

// SAFETY: a pointer alone reads and writes nothing. The functions that follow it are unsafe, and
// list what they require of its memory.
unsafe impl Send for Counter {}

impl Counter {
    /// The counter of a parameter on `device`, or None if `tensor` cannot be one.
    ///
    /// # Safety
    ///
    /// - No code that could free or replace the memory of `tensor` has run since it was looked at.
    /// - If it is in the host's memory, its storage is at least as large as the tensor.
    #[inline]
    pub(super) unsafe fn of(tensor: &Tensor, device: Device) -> Option<Self> {
        let address = tensor.address();
        if tensor.len() != 1 || address == 0 {
            return None;
        }
        if tensor.device.kind == CUDA {
            return (tensor.device == device && tensor.is_i64()).then_some(Self::Device(address));
        }
        if tensor.device.kind != CPU {
            return None;
        }
        let place: *mut c_void = ptr::with_exposed_provenance_mut(address as usize);
        // For the types that are read below, the alignment is at most the size.
        if !address.is_multiple_of(if tensor.is_of(Dtype::F32) { 4 } else { 8 }) {
            return None;
        }
        // SAFETY: `tensor` has one element of the type that is read, in the host's memory, aligned
        // to its size. Its memory is neither freed nor replaced (first requirement), and large
        // enough (second requirement).
        unsafe {
            if tensor.is_of(Dtype::F32) {
                let value = *place.cast::<f32>();
                let step = whole(value.into()).filter(|_| value < F32_COUNTER_END)?;
                Some(Self::F32(place.cast(), step))
            } else if tensor.is_f64() {
                Some(Self::F64(place.cast(), whole(*place.cast())?))
            } else if tensor.is_i64() {
                Some(Self::I64(place.cast(), u64::try_from(*place.cast::<i64>()).ok()?))
            } else {
                None
            }
        }
    }

    /// Steps so far, if the host counts them.
    pub(super) fn steps(&self) -> Option<u64> {
        match *self {
            Self::F32(_, steps) | Self::F64(_, steps) | Self::I64(_, steps) => Some(steps),
            Self::Device(_) | Self::Unused => None,
        }
    }

    /// Counts one step more, if the host counts them.
    ///
    /// # Safety
    ///
    /// - The tensor that the counter was made from still has its memory, and nothing else uses the
    ///   memory during the call.
    pub(super) unsafe fn advance(&self) {
        // SAFETY: `place` is that tensor's memory, of this type (`of`). The tensor still has it,
        // and nothing else uses it (this function's requirement).
        unsafe {
            match *self {
                Self::F32(place, steps) => *place = (steps + 1) as f32,
                Self::F64(place, steps) => *place = (steps + 1) as f64,
                Self::I64(place, steps) => *place = (steps + 1) as i64,
                Self::Device(_) | Self::Unused => {}
            }
        }
    }
}

fn whole(value: f64) -> Option<u64> {
    (value < 9e15 && (value as u64) as f64 == value).then_some(value as u64)
}

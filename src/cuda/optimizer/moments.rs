//! The device memory of an optimizer: the moments and masters of all tensors.

use std::ffi::c_void;
use std::sync::Arc;

use crate::checkpoint::Arrays;
use crate::cuda::error::CudaError;
use crate::cuda::event::LastUse;
use crate::cuda::memory::{DeviceMemory, download, upload};
use crate::cuda::pool::Pool;
use crate::ledger::TensorSpec;
use crate::tensor::{Dtype, RawBuffer, RawTensor, Role, TensorError, TensorProblem};

/// The alignment of each tensor's part, in elements: 256 bytes, the alignment of an allocation.
const ALIGN: usize = 64;

/// The device memory of the arrays of all tensors.
#[derive(Debug)]
pub(super) struct Moments {
    exp_avg: DeviceMemory,
    exp_avg_sq: DeviceMemory,
    masters: DeviceMemory,
    places: Vec<Place>,
}

/// The offsets of a tensor's arrays, in bytes from the start of the moments and of the masters.
#[derive(Debug)]
struct Place {
    len: usize,
    moments: u64,
    master: Option<u64>,
}

impl Moments {
    /// Allocates moments and masters of 0.
    pub(super) fn new<'a>(
        pool: &Arc<Pool>,
        last_use: &Arc<LastUse>,
        specs: impl Iterator<Item = &'a TensorSpec>,
    ) -> Result<Self, CudaError> {
        let (mut moments, mut masters) = (Arena::default(), Arena::default());
        let place = |(tensor, spec): (usize, &TensorSpec)| {
            let too_large = || {
                let bytes = (spec.len as u64).saturating_mul(size_of::<f32>() as u64);
                let error = TensorError::of_tensor(tensor, TensorProblem::Memory { bytes });
                TensorError { name: spec.name.clone(), ..error }
            };
            let add = |arena: &mut Arena| arena.add(spec.len).ok_or_else(too_large);
            let master = if spec.has_master { Some(add(&mut masters)?) } else { None };
            Ok(Place { len: spec.len, moments: add(&mut moments)?, master })
        };
        let places = specs.enumerate().map(place).collect::<Result<_, TensorError>>()?;
        let zeros = |bytes| DeviceMemory::zeros(pool, last_use, bytes);
        let (exp_avg, exp_avg_sq) = (zeros(moments.bytes)?, zeros(moments.bytes)?);
        Ok(Self { exp_avg, exp_avg_sq, masters: zeros(masters.bytes)?, places })
    }

    /// Fills new memory with these arrays. Waits for the copies.
    pub(super) fn fill(&mut self, arrays: &[Arrays]) -> Result<(), CudaError> {
        for (place, from) in self.places.iter().zip(arrays) {
            self.exp_avg.upload(place.moments, &from.exp_avg)?;
            self.exp_avg_sq.upload(place.moments, &from.exp_avg_sq)?;
            if let (Some(at), Some(master)) = (place.master, &from.master) {
                self.masters.upload(at, master)?;
            }
        }
        Ok(())
    }

    /// A tensor with its moments and masters. Fails if its formats are not those of a variant or
    /// its gradient is null. Checks nothing else.
    pub(super) fn describe(&self, tensor: usize, param: RawBuffer, grad: RawBuffer) -> Result<RawTensor, TensorError> {
        let place = &self.places[tensor];
        if place.len > 0 && grad.address == 0 {
            return Err(TensorError::of_buffer(tensor, Role::Grad, TensorProblem::Null));
        }
        let at = |memory: &DeviceMemory, at: u64| RawBuffer::f32(memory.address() + at);
        let (exp_avg, exp_avg_sq) = (at(&self.exp_avg, place.moments), at(&self.exp_avg_sq, place.moments));
        let master = place.master.map(|master| at(&self.masters, master));
        let described = RawTensor { master, ..RawTensor::new(place.len as u64, param, grad, exp_avg, exp_avg_sq) };
        described.variant(tensor)?;
        Ok(described)
    }

    /// The entry in a list for a tensor that has had no gradient yet. The format of its gradients
    /// is guessed to be that of its parameters.
    pub(super) fn describe_skipped(&self, tensor: usize, param: Dtype) -> RawTensor {
        let place = &self.places[tensor];
        let (param_at, null) = (RawBuffer::new(0, param), RawBuffer::f32(0));
        let described = RawTensor::new(place.len as u64, param_at, param_at, null, null);
        // Masters beside f32 parameters are refused when the first gradient comes.
        RawTensor { master: place.master.filter(|_| param != Dtype::F32).map(|_| null), ..described }
    }

    /// The number of elements and the masters of a tensor, if it has any.
    pub(super) fn master(&self, tensor: usize) -> Option<(u64, RawBuffer)> {
        let Place { len, master, .. } = self.places[tensor];
        master.map(|at| (len as u64, RawBuffer::f32(self.masters.address() + at)))
    }

    /// Reads the arrays of all tensors. Waits for the work on `stream`.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the current context and has all work that uses the moments.
    pub(super) unsafe fn read(&self, stream: *mut c_void) -> Result<Vec<Arrays>, CudaError> {
        let read = |memory: &DeviceMemory, at: u64, len: usize| {
            // SAFETY: the stream is live (this function's requirement), and the array has this
            // address and length.
            unsafe { download::<f32>(memory.address() + at, len, stream) }
        };
        let arrays = |place: &Place| {
            let master = place.master.map(|at| read(&self.masters, at, place.len)).transpose()?;
            let exp_avg = read(&self.exp_avg, place.moments, place.len)?;
            Ok(Arrays { exp_avg, exp_avg_sq: read(&self.exp_avg_sq, place.moments, place.len)?, master })
        };
        self.places.iter().map(arrays).collect()
    }

    /// Writes a tensor's moments on `stream`. Waits for it.
    ///
    /// # Safety
    ///
    /// - `stream` is a live stream of the current context and has all work that uses the moments.
    /// - The moments have the tensor's length.
    pub(super) unsafe fn write(
        &self,
        tensor: usize,
        exp_avg: &[f32],
        exp_avg_sq: &[f32],
        stream: *mut c_void,
    ) -> Result<(), CudaError> {
        let at = self.places[tensor].moments;
        // SAFETY: the stream is live, and the moments have the tensor's length (this function's
        // requirements).
        unsafe {
            upload(self.exp_avg.address() + at, exp_avg, stream)?;
            upload(self.exp_avg_sq.address() + at, exp_avg_sq, stream)
        }
    }
}

/// The layout of arrays of f32 in one block of memory.
#[derive(Debug, Default)]
struct Arena {
    bytes: usize,
}

impl Arena {
    /// The offset of the next array, in bytes. `None` if the size overflows.
    fn add(&mut self, len: usize) -> Option<u64> {
        let at = self.bytes as u64;
        let bytes = len.checked_next_multiple_of(ALIGN)?.checked_mul(size_of::<f32>())?;
        self.bytes = self.bytes.checked_add(bytes)?;
        Some(at)
    }
}

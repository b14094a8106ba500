//! The device memory of an optimizer: arrays of f32, with several in one buffer.

use bytemuck::cast_slice;

use crate::tensor::{Dtype, Role};

use super::device::{capture, check_not_lost, wait};
use super::error::{BindingProblem, WebGpuError};
use super::limits::DeviceLimits;
use super::tensor::Binding;

/// The largest size of a buffer with several arrays, in bytes. A larger array gets its own buffer.
/// Every device allows this size, and an allocator does not have to find more in one block.
const ARENA: u64 = 256 << 20;
/// The most staging memory in use on the way to the device or back, in bytes.
pub(super) const STAGING: u64 = 64 << 20;

/// The arena and the offset, in bytes, of an array of f32.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    arena: usize,
    offset: u64,
}

/// The sizes of the arenas for the arrays that are placed so far.
#[derive(Debug)]
pub(super) struct Plan {
    limit: u64,
    align: u64,
    /// In bytes.
    sizes: Vec<u64>,
}

/// The buffers that hold the arrays.
#[derive(Debug)]
pub(super) struct Arenas {
    buffers: Vec<wgpu::Buffer>,
}

impl Plan {
    pub(super) fn new(limits: &DeviceLimits) -> Self {
        Self { limit: limits.buffer_size, align: limits.storage_alignment, sizes: vec![] }
    }

    /// Places an array of a tensor.
    pub(super) fn place(&mut self, tensor: usize, role: Role, len: usize) -> Result<Place, WebGpuError> {
        let bytes = (len as u64).checked_mul(size_of::<f32>() as u64).filter(|&bytes| bytes <= self.limit);
        let problem = BindingProblem::ArraySize { limit: self.limit, len };
        let bytes = bytes.ok_or_else(|| WebGpuError::of_buffer(tensor, role, problem))?;
        if let Some(size) = self.sizes.last_mut() {
            let offset = size.checked_next_multiple_of(self.align);
            let end = offset.and_then(|offset| offset.checked_add(bytes));
            if let (Some(offset), Some(end)) = (offset, end.filter(|&end| end <= ARENA.min(self.limit))) {
                *size = end;
                return Ok(Place { arena: self.sizes.len() - 1, offset });
            }
        }
        self.sizes.push(bytes);
        Ok(Place { arena: self.sizes.len() - 1, offset: 0 })
    }

    /// Allocates the arenas, filled with zeros.
    pub(super) fn allocate(&self, device: &wgpu::Device) -> Result<Arenas, WebGpuError> {
        check_not_lost(device)?;
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let label = Some("dualadam state");
        let buffer = |&size: &u64| {
            let descriptor = wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false };
            capture(device, "create_buffer", None, || device.create_buffer(&descriptor))
        };
        Ok(Arenas { buffers: self.sizes.iter().map(buffer).collect::<Result<_, _>>()? })
    }
}

impl Arenas {
    /// The binding of an array.
    pub(super) fn binding(&self, place: Place) -> Binding<'_> {
        Binding::new(&self.buffers[place.arena], Dtype::F32).with_offset(place.offset)
    }
}

/// Writes arrays through a queue. They arrive before the queue's next submit.
pub(super) struct Upload<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    arenas: &'a Arenas,
    /// Bytes in staging memory that are not yet known to be on the device.
    staged: u64,
}

impl<'a> Upload<'a> {
    pub(super) fn new(device: &'a wgpu::Device, queue: &'a wgpu::Queue, arenas: &'a Arenas) -> Self {
        Self { device, queue, arenas, staged: 0 }
    }

    /// Writes the array of a tensor.
    pub(super) fn write(&mut self, tensor: usize, place: Place, values: &[f32]) -> Result<(), WebGpuError> {
        let Binding { buffer, mut offset, .. } = self.arenas.binding(place);
        for piece in cast_slice::<f32, u8>(values).chunks(STAGING as usize) {
            let bytes = piece.len() as u64;
            if self.staged + bytes > STAGING {
                self.flush()?;
            }
            capture(self.device, "write_buffer", Some(tensor), || self.queue.write_buffer(buffer, offset, piece))?;
            self.staged += bytes;
            offset += bytes;
        }
        Ok(())
    }

    /// Fails if the device was lost meanwhile. wgpu does not report that for writes.
    pub(super) fn finish(self) -> Result<(), WebGpuError> {
        check_not_lost(self.device)
    }

    /// Waits until the staged bytes are on the device. A browser cannot block, and manages its
    /// staging memory itself.
    fn flush(&mut self) -> Result<(), WebGpuError> {
        let submission = capture(self.device, "submit", None, || self.queue.submit([]))?;
        wait(self.device, submission)?;
        self.staged = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webgpu::required_limits;

    fn plan(max_buffer_size: u64) -> Plan {
        let limits = wgpu::Limits { max_buffer_size, ..required_limits() };
        Plan::new(&DeviceLimits::of(&limits).unwrap())
    }

    #[test]
    fn arrays_share_arenas_and_begin_aligned() {
        let mut plan = plan(1024);
        let places = [100, 1, 0, 64, 65, 256].map(|len| plan.place(0, Role::ExpAvg, len).unwrap());
        let places = places.map(|place| (place.arena, place.offset));
        assert_eq!(places, [(0, 0), (0, 512), (0, 768), (0, 768), (1, 0), (2, 0)]);
        assert_eq!(plan.sizes, [1024, 260, 1024]);
    }

    #[test]
    fn a_large_array_has_an_arena_of_its_own() {
        let mut plan = plan(u64::MAX);
        let large = (ARENA / 4) as usize;
        let places = [1, large, large + 1, 1].map(|len| plan.place(0, Role::ExpAvg, len).unwrap().arena);
        assert_eq!(places, [0, 1, 2, 3]);
        assert_eq!(plan.sizes, [4, ARENA, ARENA + 4, 4]);
    }

    #[test]
    fn what_fits_in_no_buffer_is_named() {
        let error = plan(1020).place(7, Role::Master, 256).unwrap_err();
        assert_eq!(
            error.to_string(),
            "master of tensor 7 must fit in a buffer of 1020 bytes (max_buffer_size), got 256 elements of f32"
        );
        assert!(plan(u64::MAX).place(0, Role::ExpAvg, usize::MAX).is_err());
    }
}

//! Reads arrays from the device, in pieces, through one staging buffer.

use bytemuck::cast_slice_mut;
use futures_channel::oneshot;

use crate::tensor::{TensorError, TensorProblem};

use super::arenas::{Arenas, Place, STAGING};
use super::device::{capture, check_not_lost, lost};
use super::error::WebGpuError;
use super::tensor::Binding;

/// The bytes of an element.
const SIZE: u64 = size_of::<f32>() as u64;

/// Arrays of f32 on their way to the host.
pub(super) struct Readback<'a> {
    device: &'a wgpu::Device,
    queue: &'a wgpu::Queue,
    arenas: &'a Arenas,
    arrays: Vec<Array>,
    /// `None` if there is nothing to read.
    staging: Option<wgpu::Buffer>,
    /// The size of the staging buffer, in bytes.
    room: u64,
}

struct Array {
    place: Place,
    len: usize,
    /// The elements that have arrived.
    values: Vec<f32>,
}

/// A piece whose copies were submitted.
pub(super) struct Piece {
    /// Arrays, and the number of their next elements.
    parts: Vec<(usize, usize)>,
    #[cfg_attr(target_family = "wasm", expect(dead_code, reason = "nobody can wait in a browser"))]
    pub(super) submission: wgpu::SubmissionIndex,
    mapped: oneshot::Receiver<Result<(), wgpu::BufferAsyncError>>,
}

impl<'a> Readback<'a> {
    /// Reads these arrays: the tensor, the place and the length of each.
    pub(super) fn new(
        device: &'a wgpu::Device,
        queue: &'a wgpu::Queue,
        arenas: &'a Arenas,
        arrays: impl Iterator<Item = (usize, Place, usize)>,
        buffer_size: u64,
    ) -> Result<Self, WebGpuError> {
        check_not_lost(device)?;
        let array = |(tensor, place, len)| {
            let mut values = vec![];
            let problem = TensorProblem::Memory { bytes: (len as u64).saturating_mul(SIZE) };
            values.try_reserve_exact(len).map_err(|_| TensorError::of_tensor(tensor, problem))?;
            Ok(Array { place, len, values })
        };
        let arrays = arrays.map(array).collect::<Result<Vec<_>, WebGpuError>>()?;
        let total: u64 = arrays.iter().map(|array| array.len as u64 * SIZE).sum();
        let room = total.min(STAGING).min(buffer_size / SIZE * SIZE);
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let label = Some("dualadam readback");
        let make =
            || device.create_buffer(&wgpu::BufferDescriptor { label, size: room, usage, mapped_at_creation: false });
        let staging = (room > 0).then(|| capture(device, "create_buffer", None, make)).transpose()?;
        Ok(Self { device, queue, arenas, arrays, staging, room })
    }

    /// Submits the copies of the next piece. `None` if everything was read.
    pub(super) fn submit(&self) -> Result<Option<Piece>, WebGpuError> {
        let parts = self.next_parts();
        let (Some(staging), false) = (&self.staging, parts.is_empty()) else { return Ok(None) };
        check_not_lost(self.device)?;
        let (sender, mapped) = oneshot::channel();
        let submission = capture(self.device, "submit", None, || {
            let mut encoder = self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let mut filled = 0;
            for &(array, elements) in &parts {
                let Array { place, values, .. } = &self.arrays[array];
                let Binding { buffer, offset, .. } = self.arenas.binding(*place);
                let (from, bytes) = (offset + values.len() as u64 * SIZE, elements as u64 * SIZE);
                encoder.copy_buffer_to_buffer(buffer, from, staging, filled, bytes);
                filled += bytes;
            }
            let submission = self.queue.submit([encoder.finish()]);
            // The receiver is gone if the caller dropped the future.
            staging.map_async(wgpu::MapMode::Read, ..filled, |result| drop(sender.send(result)));
            submission
        })?;
        Ok(Some(Piece { parts, submission, mapped }))
    }

    /// The next parts that fit in the staging buffer.
    fn next_parts(&self) -> Vec<(usize, usize)> {
        let mut room = (self.room / SIZE) as usize;
        let mut parts = vec![];
        for (index, array) in self.arrays.iter().enumerate() {
            let elements = room.min(array.len - array.values.len());
            if elements > 0 {
                parts.push((index, elements));
                room -= elements;
            }
        }
        parts
    }

    /// Waits for a piece and copies it out of the staging buffer.
    pub(super) async fn take(&mut self, piece: Piece) -> Result<(), WebGpuError> {
        let Some(staging) = &self.staging else { return Ok(()) };
        // The buffer and its bounds are valid, so that this fails only on a lost device.
        let mapped = piece.mapped.await.is_ok_and(|result| result.is_ok());
        if !mapped {
            return Err(lost("map_async"));
        }
        let elements: usize = piece.parts.iter().map(|(_, elements)| elements).sum();
        let view = staging.get_mapped_range(..elements as u64 * SIZE).map_err(|_| lost("map_async"))?;
        let mut bytes = &*view;
        for (array, elements) in piece.parts {
            let values = &mut self.arrays[array].values;
            let start = values.len();
            values.resize(start + elements, 0.0);
            let (part, rest) = bytes.split_at(elements * SIZE as usize);
            cast_slice_mut::<f32, u8>(&mut values[start..]).copy_from_slice(part);
            bytes = rest;
        }
        drop(view);
        staging.unmap();
        Ok(())
    }

    /// The arrays, in their order.
    pub(super) fn finish(self) -> impl Iterator<Item = Vec<f32>> {
        self.arrays.into_iter().map(|array| array.values)
    }
}

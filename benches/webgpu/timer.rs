//! Times of work on the device, by timestamp queries where it has them.

use std::time::Instant;

use dualadam::webgpu::wgpu;

use crate::device::Device;

const MOST_REPEATS: usize = 1000;

pub(crate) struct Timer<'a> {
    device: &'a Device,
    queries: Option<Queries>,
    /// The least seconds of a timing; short work is repeated.
    shortest: f64,
}

/// Timestamps at the two ends of a pass.
struct Queries {
    set: wgpu::QuerySet,
    resolved: wgpu::Buffer,
    staging: wgpu::Buffer,
}

/// Seconds of one run of some work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seconds {
    /// By timestamps; without them the same as `from_submit`.
    pub(crate) on_device: f64,
    /// From the submit until all has ended.
    pub(crate) from_submit: f64,
}

impl<'a> Timer<'a> {
    /// A timer that repeats work for at least `shortest` seconds.
    pub(crate) fn new(device: &'a Device, shortest: f64) -> Self {
        let queries = device.facts.timestamps.then(|| Queries::new(device));
        Self { device, queries, shortest }
    }

    /// How often to run some work in one timing. The work runs `first` times before that is
    /// measured, which compiles it and faults memory in.
    pub(crate) fn repeats(&self, first: usize, mut encode: impl FnMut(&mut wgpu::ComputePass<'_>)) -> usize {
        self.seconds(first, &mut encode);
        let seconds = self.seconds(first, &mut encode).on_device;
        ((self.shortest / seconds.max(1e-7)).ceil() as usize).clamp(1, MOST_REPEATS)
    }

    /// Times `repeats` runs, which are encoded in one pass before the clock starts.
    pub(crate) fn seconds(&self, repeats: usize, mut encode: impl FnMut(&mut wgpu::ComputePass<'_>)) -> Seconds {
        let mut encoder = self.device.device.create_command_encoder(&Default::default());
        let timestamp_writes = self.queries.as_ref().map(|queries| wgpu::ComputePassTimestampWrites {
            query_set: &queries.set,
            beginning_of_pass_write_index: Some(0),
            end_of_pass_write_index: Some(1),
        });
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        (0..repeats).for_each(|_| encode(&mut pass));
        drop(pass);
        if let Some(Queries { set, resolved, staging }) = &self.queries {
            encoder.resolve_query_set(set, 0..2, resolved, 0);
            encoder.copy_buffer_to_buffer(resolved, 0, staging, 0, 16);
        }
        let commands = encoder.finish();
        let start = Instant::now();
        self.device.queue.submit([commands]);
        self.device.wait();
        let from_submit = start.elapsed().as_secs_f64() / repeats as f64;
        let on_device = match &self.queries {
            Some(queries) => queries.read(self.device) / repeats as f64,
            None => from_submit,
        };
        Seconds { on_device, from_submit }
    }
}

impl Queries {
    fn new(Device { device, .. }: &Device) -> Self {
        let set = device.create_query_set(&wgpu::QuerySetDescriptor {
            label: None,
            ty: wgpu::QueryType::Timestamp,
            count: 2,
        });
        let buffer = |usage| wgpu::BufferDescriptor { label: None, size: 16, usage, mapped_at_creation: false };
        let resolved = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
        let staging = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        Self { set, resolved: device.create_buffer(&buffer(resolved)), staging: device.create_buffer(&buffer(staging)) }
    }

    /// Seconds between the ends of the last pass.
    fn read(&self, device: &Device) -> f64 {
        let bytes = device.map(&self.staging);
        let [start, end] = [0, 8].map(|at| bytemuck::pod_read_unaligned::<u64>(&bytes[at..at + 8]));
        end.wrapping_sub(start) as f64 * f64::from(device.queue.get_timestamp_period()) * 1e-9
    }
}

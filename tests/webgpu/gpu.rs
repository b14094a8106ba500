//! Devices for tests, their buffers, and passes on them.

use std::sync::OnceLock;

use dualadam::webgpu::{Pipelines, wgpu};
use pollster::block_on;

/// The adapter that all tests use, and a device for those that need no other.
pub(crate) struct Gpu {
    adapter: wgpu::Adapter,
    pub(crate) device: Device,
}

/// A device with its queue, and what steps need of it.
pub(crate) struct Device {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pipelines: OnceLock<Pipelines>,
}

impl Gpu {
    /// Opens the adapter whose name contains the environment variable `WGPU_ADAPTER_NAME`, if that
    /// is set. Otherwise it prefers a software adapter, which is the same on every machine with
    /// Mesa, and else takes any.
    pub(crate) fn new() -> Result<Self, String> {
        let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        let descriptor =
            wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() };
        let mut adapters = block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
        adapters.sort_by_key(|adapter| adapter.get_info().device_type != wgpu::DeviceType::Cpu);
        let wanted = std::env::var("WGPU_ADAPTER_NAME").unwrap_or_default().to_lowercase();
        let is_wanted = |adapter: &wgpu::Adapter| adapter.get_info().name.to_lowercase().contains(&wanted);
        let adapter = adapters.into_iter().find(is_wanted);
        let adapter = adapter.ok_or("no Vulkan, Metal or DX12 adapter; on Linux, install mesa-vulkan-drivers")?;
        println!("adapter: {:?}", adapter.get_info());
        let device = open(&adapter, wgpu::Features::empty(), wgpu::Limits::default())?;
        Ok(Self { adapter, device })
    }

    /// Another device, with these features and limits.
    pub(crate) fn open(&self, features: wgpu::Features, limits: wgpu::Limits) -> Device {
        open(&self.adapter, features, limits).unwrap()
    }

    /// A device with small buffers, and windows of 1,024 elements.
    pub(crate) fn open_small(&self) -> Device {
        let limits = wgpu::Limits {
            max_buffer_size: 1 << 14,
            max_storage_buffer_binding_size: 1 << 12,
            max_uniform_buffer_binding_size: 1 << 12,
            ..wgpu::Limits::default()
        };
        self.open(wgpu::Features::empty(), limits)
    }

    /// The adapter's limits.
    pub(crate) fn limits(&self) -> wgpu::Limits {
        self.adapter.limits()
    }

    pub(crate) fn is_software(&self) -> bool {
        self.adapter.get_info().device_type == wgpu::DeviceType::Cpu
    }

    /// A device that takes coefficients as immediates, if the adapter can.
    pub(crate) fn open_with_immediates(&self) -> Option<Device> {
        let limits = wgpu::Limits { max_immediate_size: 40, ..Default::default() };
        let able = self.adapter.features().contains(wgpu::Features::IMMEDIATES);
        able.then(|| self.open(wgpu::Features::IMMEDIATES, limits))
    }
}

fn open(
    adapter: &wgpu::Adapter,
    required_features: wgpu::Features,
    required_limits: wgpu::Limits,
) -> Result<Device, String> {
    let descriptor = wgpu::DeviceDescriptor { required_features, required_limits, ..Default::default() };
    let (device, queue) = block_on(adapter.request_device(&descriptor)).map_err(|error| error.to_string())?;
    Ok(Device { device, queue, pipelines: OnceLock::new() })
}

pub(crate) const STORAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

impl Device {
    pub(crate) fn pipelines(&self) -> &Pipelines {
        self.pipelines.get_or_init(|| Pipelines::new(&self.device).unwrap())
    }

    pub(crate) fn empty(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    /// A buffer with this content, padded with bytes 0xa5 to a multiple of 4 bytes.
    pub(crate) fn buffer(&self, content: &[u8]) -> wgpu::Buffer {
        let mut content = content.to_vec();
        content.resize(content.len().next_multiple_of(4), 0xa5);
        let buffer = self.empty(content.len() as u64, STORAGE);
        self.queue.write_buffer(&buffer, 0, &content);
        buffer
    }

    /// The future's output: one thread awaits it while another polls the device.
    pub(crate) fn awaited<T: Send>(&self, future: impl Future<Output = T> + Send) -> T {
        std::thread::scope(|scope| {
            let awaiting = scope.spawn(|| block_on(future));
            while !awaiting.is_finished() {
                self.device.poll(wgpu::PollType::Poll).unwrap();
                std::thread::yield_now();
            }
            awaiting.join().unwrap()
        })
    }

    /// Waits for everything and reads a buffer.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer) -> Vec<u8> {
        let size = buffer.size();
        if size == 0 {
            return vec![];
        }
        let staging = self.empty(size, wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
        self.queue.submit([encoder.finish()]);
        staging.map_async(wgpu::MapMode::Read, .., Result::unwrap);
        self.device.poll(wgpu::PollType::wait_indefinitely()).unwrap();
        staging.get_mapped_range(..).unwrap().to_vec()
    }

    /// Submits one compute pass.
    pub(crate) fn submit(&self, encode: impl FnOnce(&mut wgpu::ComputePass<'_>)) {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encode(&mut encoder.begin_compute_pass(&Default::default()));
        self.queue.submit([encoder.finish()]);
    }
}

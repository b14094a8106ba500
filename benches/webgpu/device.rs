//! The device that is timed, and its properties.

use dualadam::webgpu::wgpu;
use pollster::block_on;
use serde::Serialize;

pub(crate) struct Device {
    adapter: wgpu::Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) facts: Facts,
}

/// What the adapter reports about itself.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) api: String,
    pub(crate) driver: String,
    pub(crate) software: bool,
    /// Whether the coefficients of the timed steps are immediate data among the commands.
    pub(crate) immediates: bool,
    /// Whether times are those of timestamp queries; otherwise they are from the submit to the end.
    pub(crate) timestamps: bool,
}

/// The environment variable with a part of the wanted adapter's name.
const NAME: &str = "WGPU_ADAPTER_NAME";

impl Device {
    /// The adapter that the environment names, or else the first: discrete ones before others,
    /// software ones only if `software` is set. The error says why there is none.
    pub(crate) fn find(software: bool) -> Result<Self, String> {
        let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        let descriptor =
            wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() };
        let mut adapters = block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
        adapters.sort_by_key(|adapter| match adapter.get_info().device_type {
            wgpu::DeviceType::DiscreteGpu => 0,
            wgpu::DeviceType::Cpu => 2,
            _ => 1,
        });
        let names: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().name).collect();
        let wanted = std::env::var(NAME).unwrap_or_default().to_lowercase();
        let is_wanted = |adapter: &wgpu::Adapter| match adapter.get_info() {
            info if wanted.is_empty() => software || info.device_type != wgpu::DeviceType::Cpu,
            info => info.name.to_lowercase().contains(&wanted),
        };
        let adapter = adapters.into_iter().find(is_wanted).ok_or_else(|| match names.join(", ") {
            names if names.is_empty() => "no Vulkan, Metal or DX12 adapter".to_owned(),
            names if wanted.is_empty() => format!("only software adapters, which --software allows: {names}"),
            names => format!("no adapter has {wanted} ({NAME}) in its name; there are {names}"),
        })?;
        Ok(Self::open(adapter, true))
    }

    /// Another device of the adapter, on which coefficients are in a uniform buffer.
    pub(crate) fn without_immediates(&self) -> Self {
        Self::open(self.adapter.clone(), false)
    }

    /// Opens a device with the adapter's limits and the features that the benchmark uses.
    fn open(adapter: wgpu::Adapter, with_immediates: bool) -> Self {
        let info = adapter.get_info();
        let has = |feature| adapter.features().contains(feature);
        let immediates = with_immediates && has(wgpu::Features::IMMEDIATES);
        let timestamps = has(wgpu::Features::TIMESTAMP_QUERY);
        let mut required_features = wgpu::Features::empty();
        required_features.set(wgpu::Features::IMMEDIATES, immediates);
        required_features.set(wgpu::Features::TIMESTAMP_QUERY, timestamps);
        let mut required_limits = adapter.limits();
        if !immediates {
            required_limits.max_immediate_size = 0;
        }
        let descriptor = wgpu::DeviceDescriptor { required_features, required_limits, ..Default::default() };
        let (device, queue) = block_on(adapter.request_device(&descriptor)).expect("the adapter has what it says");
        let facts = Facts {
            name: info.name,
            api: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            software: info.device_type == wgpu::DeviceType::Cpu,
            immediates,
            timestamps,
        };
        Self { adapter, device, queue, facts }
    }

    /// A storage buffer with repetitions of a pattern. Fails if it is larger than the device
    /// allows.
    pub(crate) fn repeat(&self, pattern: &[u8], bytes: usize) -> Result<wgpu::Buffer, String> {
        let most = self.device.limits().max_buffer_size;
        if bytes as u64 > most {
            return Err(format!("a buffer of {bytes} bytes needed, {most} allowed"));
        }
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: bytes.next_multiple_of(4) as u64,
            usage: wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        if let Some(error) = block_on(memory.pop()) {
            return Err(error.to_string());
        }
        let mut view = buffer.get_mapped_range_mut(..).expect("a new buffer is mapped");
        for start in (0..bytes).step_by(pattern.len()) {
            let part = pattern.len().min(bytes - start);
            view.slice(start..start + part).copy_from_slice(&pattern[..part]);
        }
        drop(view);
        buffer.unmap();
        Ok(buffer)
    }

    /// Waits for everything and reads a buffer's first bytes.
    pub(crate) fn read(&self, buffer: &wgpu::Buffer, bytes: u64) -> Vec<u8> {
        let staging = self.staging(bytes);
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        self.map(&staging)
    }

    pub(crate) fn staging(&self, size: u64) -> wgpu::Buffer {
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        self.device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
    }

    /// Waits for everything and reads a staging buffer.
    pub(crate) fn map(&self, staging: &wgpu::Buffer) -> Vec<u8> {
        staging.map_async(wgpu::MapMode::Read, .., |mapped| mapped.expect("the buffer can be mapped"));
        self.wait();
        let bytes = staging.get_mapped_range(..).expect("the buffer is mapped").to_vec();
        staging.unmap();
        bytes
    }

    pub(crate) fn wait(&self) {
        self.device.poll(wgpu::PollType::wait_indefinitely()).expect("the work ends");
    }
}

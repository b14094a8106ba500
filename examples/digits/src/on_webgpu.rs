//! Steps on a WebGPU device, of parameters that come from the CPU and go back there.

use std::time::{Duration, Instant};

use dualadam::cpu::{Buffer, BufferMut};
use dualadam::webgpu::wgpu::{self, BufferUsages, DeviceType};
use dualadam::webgpu::{Binding, DualAdam, Pipelines};
use dualadam::{Dtype, DualAdamConfig, TensorSpec};
use pollster::block_on;

use crate::backend::{Error, Optimizer, Software};

/// An adapter's device.
#[derive(Debug)]
pub(crate) struct Webgpu {
    pipelines: Pipelines,
    queue: wgpu::Queue,
    name: String,
}

impl Webgpu {
    /// On the best adapter; a software one only where it is allowed.
    pub(crate) fn open(software: Software) -> Result<Self, Error> {
        let backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
        let descriptor =
            wgpu::InstanceDescriptor { backends, ..wgpu::InstanceDescriptor::new_without_display_handle() };
        let adapters = block_on(wgpu::Instance::new(descriptor).enumerate_adapters(backends));
        let types: Vec<_> = adapters.iter().map(|adapter| adapter.get_info().device_type).collect();
        let adapter = choose(&types, software).map(|index| &adapters[index]);
        let adapter = adapter.ok_or("no Vulkan, Metal or DX12 adapter")?;

        let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
        let info = adapter.get_info();
        let kind = if info.device_type == DeviceType::Cpu { "software adapter" } else { "adapter" };
        let name = format!("WebGPU {kind} {} ({})", info.name, info.backend);
        Ok(Self { pipelines: Pipelines::new(&device)?, queue, name })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn optimizer(
        &self,
        config: DualAdamConfig,
        specs: &[TensorSpec],
    ) -> Result<impl Optimizer + use<>, Error> {
        let optimizer = DualAdam::with_groups(&self.pipelines, &[config], specs)?;
        let device = self.pipelines.device();
        let tensors = specs.iter().map(|spec| Tensor::new(device, spec)).collect();
        Ok(OnWebgpu { optimizer, tensors, device: device.clone(), queue: self.queue.clone() })
    }
}

/// The position of the best adapter.
fn choose(types: &[DeviceType], software: Software) -> Option<usize> {
    let rank = |device_type| match device_type {
        DeviceType::DiscreteGpu => Some(0),
        DeviceType::IntegratedGpu => Some(1),
        DeviceType::VirtualGpu => Some(2),
        DeviceType::Other | DeviceType::Cpu => (software == Software::Allowed).then_some(3),
    };
    let ranked = types.iter().enumerate().filter_map(|(index, &device_type)| Some((rank(device_type)?, index)));
    ranked.min().map(|(_, index)| index)
}

struct OnWebgpu {
    optimizer: DualAdam,
    tensors: Vec<Tensor>,
    device: wgpu::Device,
    queue: wgpu::Queue,
}

impl Optimizer for OnWebgpu {
    fn set_lr(&mut self, lr: f64) -> Result<(), Error> {
        Ok(self.optimizer.set_lr(0, lr)?)
    }

    fn step(&mut self, params: [BufferMut<'_>; 4], grads: [Buffer<'_>; 4]) -> Result<Duration, Error> {
        for ((tensor, params), grads) in self.tensors.iter().zip(&params).zip(&grads) {
            let (params, grads) = bytes(params, grads)?;
            self.queue.write_buffer(&tensor.params, 0, params);
            self.queue.write_buffer(&tensor.grads, 0, grads);
        }
        self.wait_for(self.queue.submit([]))?;

        let start = Instant::now();
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let params_on_device = self.tensors.iter().map(|tensor| Binding::new(&tensor.params, tensor.dtype));
        let grads_on_device = self.tensors.iter().map(|tensor| Some(Binding::new(&tensor.grads, tensor.dtype)));
        let mut pass = encoder.begin_compute_pass(&Default::default());
        self.optimizer.step(&mut pass, params_on_device, grads_on_device)?;
        drop(pass);
        self.wait_for(self.queue.submit([encoder.finish()]))?;
        let time = start.elapsed();

        self.download(params)?;
        Ok(time)
    }
}

impl OnWebgpu {
    /// Waits for what was submitted, and for nothing that other runs submit later.
    fn wait_for(&self, submission: wgpu::SubmissionIndex) -> Result<(), Error> {
        self.device.poll(wgpu::PollType::Wait { submission_index: Some(submission), timeout: None })?;
        Ok(())
    }

    fn download(&self, params: [BufferMut<'_>; 4]) -> Result<(), Error> {
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for Tensor { params, staging, .. } in &self.tensors {
            encoder.copy_buffer_to_buffer(params, 0, staging, 0, params.size());
        }
        let submission = self.queue.submit([encoder.finish()]);
        let (sender, mapped) = std::sync::mpsc::channel();
        for Tensor { staging, .. } in &self.tensors {
            let sender = sender.clone();
            staging.map_async(wgpu::MapMode::Read, .., move |result| drop(sender.send(result)));
        }
        self.wait_for(submission)?;
        for (Tensor { staging, .. }, params) in self.tensors.iter().zip(params) {
            mapped.recv()??;
            let view = staging.get_mapped_range(..)?;
            let to = bytes_mut(params)?;
            to.copy_from_slice(&view[..to.len()]);
        }
        self.tensors.iter().for_each(|tensor| tensor.staging.unmap());
        Ok(())
    }
}

/// Parameters and gradients on the device, and memory that the parameters come back through.
struct Tensor {
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    staging: wgpu::Buffer,
    dtype: Dtype,
}

impl Tensor {
    fn new(device: &wgpu::Device, spec: &TensorSpec) -> Self {
        let dtype = if spec.has_master { Dtype::Bf16 } else { Dtype::F32 };
        // Whole words.
        let size = (spec.len * dtype.size()).next_multiple_of(4) as u64;
        let buffer = |usage| {
            device.create_buffer(&wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false })
        };
        Self {
            params: buffer(BufferUsages::STORAGE | BufferUsages::COPY_DST | BufferUsages::COPY_SRC),
            grads: buffer(BufferUsages::STORAGE | BufferUsages::COPY_DST),
            staging: buffer(BufferUsages::COPY_DST | BufferUsages::MAP_READ),
            dtype,
        }
    }
}

fn bytes<'a>(params: &'a BufferMut<'_>, grads: &'a Buffer<'_>) -> Result<(&'a [u8], &'a [u8]), Error> {
    match (params, grads) {
        (BufferMut::F32(params), Buffer::F32(grads)) => Ok((bytemuck::cast_slice(params), bytemuck::cast_slice(grads))),
        (BufferMut::Bf16(params), Buffer::Bf16(grads)) => {
            Ok((bytemuck::cast_slice(params), bytemuck::cast_slice(grads)))
        }
        _ => Err(OTHER_TYPES.into()),
    }
}

fn bytes_mut(params: BufferMut<'_>) -> Result<&mut [u8], Error> {
    match params {
        BufferMut::F32(params) => Ok(bytemuck::cast_slice_mut(params)),
        BufferMut::Bf16(params) => Ok(bytemuck::cast_slice_mut(params)),
        _ => Err(OTHER_TYPES.into()),
    }
}

const OTHER_TYPES: &str = "the example's tensors are f32 or bf16 throughout";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_software_adapter_is_only_taken_where_it_is_allowed() {
        use DeviceType::{Cpu, DiscreteGpu, IntegratedGpu, Other, VirtualGpu};
        for (types, allowed, refused) in [
            (vec![], None, None),
            (vec![Cpu, Other], Some(0), None),
            (vec![Cpu, VirtualGpu], Some(1), Some(1)),
            (vec![VirtualGpu, IntegratedGpu, DiscreteGpu, DiscreteGpu, Cpu], Some(2), Some(2)),
        ] {
            assert_eq!(choose(&types, Software::Allowed), allowed, "{types:?}");
            assert_eq!(choose(&types, Software::Refused), refused, "{types:?}");
        }
    }
}

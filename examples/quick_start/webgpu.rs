//! DualAdam in a compute pass of WebGPU.

use dualadam::webgpu::{Binding, DualAdam, Pipelines, wgpu};
use dualadam::{Dtype, DualAdamConfig};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // What your program has anyway: a device, and 1,024 weights and gradients on it.
    let adapter = pollster::block_on(wgpu::Instance::default().request_adapter(&Default::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default()))?;
    let (size, usage) = (4 * 1024, wgpu::BufferUsages::STORAGE);
    let buffer = wgpu::BufferDescriptor { label: None, size, usage, mapped_at_creation: false };
    let (weights, grads) = (device.create_buffer(&buffer), device.create_buffer(&buffer));

    let (param, grad) = (Binding::new(&weights, Dtype::F32), Binding::new(&grads, Dtype::F32));
    let mut optimizer = DualAdam::new(&Pipelines::new(&device)?, DualAdamConfig::adamw(0.01), &[1024])?;
    let mut encoder = device.create_command_encoder(&Default::default());
    // Your backward pass goes here.
    optimizer.step(&mut encoder.begin_compute_pass(&Default::default()), [param], [Some(grad)])?;
    queue.submit([encoder.finish()]);
    optimizer.save(&queue, "optimizer.safetensors")?; // resumes on every backend
    println!("steps: {}", optimizer.step_of(0)?);
    Ok(())
}

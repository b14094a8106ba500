use dualadam::{Dtype::F32, DualAdamConfig, webgpu::*};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let adapter = pollster::block_on(wgpu::Instance::default().request_adapter(&Default::default()))?;
    let (device, queue) = pollster::block_on(adapter.request_device(&Default::default()))?; // or yours
    let (usage, mapped_at_creation) = (wgpu::BufferUsages::STORAGE, false); // 1,024 f32, yours
    let buffer = wgpu::BufferDescriptor { label: None, size: 4096, usage, mapped_at_creation };
    let [weights, grads] = [&buffer; 2].map(|buffer| device.create_buffer(buffer));
    let mut optimizer = DualAdam::new(&Pipelines::new(&device)?, DualAdamConfig::adamw(0.01), &[1024])?;
    let (param, grad) = (Binding::new(&weights, F32), Binding::new(&grads, F32));
    let mut encoder = device.create_command_encoder(&Default::default()); // your backward pass, then:
    optimizer.step(&mut encoder.begin_compute_pass(&Default::default()), [param], [Some(grad)])?;
    queue.submit([encoder.finish()]);
    Ok(optimizer.save(&queue, "optimizer.safetensors")?) // resumes on every backend
}

//! DualAdam in the compute pass of a program that owns its wgpu device.
//!
//! ```sh
//! cargo run --release --features webgpu-native --example external_wgpu
//! ```
//!
//! The program makes the device, with default limits, and the buffers. It begins the pass and
//! submits it. It fits 4,096 weights to targets: a shader of the program computes the gradients of
//! the loss, and the library encodes the step after it, a hundred times in each submit. The program
//! reads the weights after each submit, to print the loss.

use std::process::ExitCode;

use dualadam::webgpu::wgpu::{self, BufferUsages};
use dualadam::webgpu::{Binding, Pipelines, Tensor, TensorList};
use dualadam::{Dtype, DualAdamConfig};
use pollster::block_on;

type Error = Box<dyn std::error::Error>;

const WEIGHTS: u64 = 4096;
const BYTES: u64 = 4 * WEIGHTS;
const SUBMITS: u64 = 5;
const STEPS_OF_A_SUBMIT: u64 = 100;

/// The gradients of half the sum of the squared differences from the targets.
const GRADIENTS: &str = "
@group(0) @binding(0) var<storage, read> weights: array<f32>;
@group(0) @binding(1) var<storage, read> targets: array<f32>;
@group(0) @binding(2) var<storage, read_write> grads: array<f32>;

@compute @workgroup_size(64)
fn gradients(@builtin(global_invocation_id) id: vec3<u32>) {
    grads[id.x] = weights[id.x] - targets[id.x];
}
";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Error> {
    // The part that such a program has without this library.
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapter = block_on(instance.request_adapter(&Default::default()))?;
    println!("{} ({})", adapter.get_info().name, adapter.get_info().backend);
    let (device, queue) = block_on(adapter.request_device(&wgpu::DeviceDescriptor::default()))?;
    let buffer = |usage| {
        let usage = usage | BufferUsages::STORAGE;
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size: BYTES, usage, mapped_at_creation: false })
    };
    let weights = buffer(BufferUsages::COPY_SRC);
    let targets = buffer(BufferUsages::COPY_DST);
    let grads = buffer(BufferUsages::empty());
    let wanted: Vec<f32> = (0..WEIGHTS).map(|i| (i as f32 * 0.01).sin()).collect();
    queue.write_buffer(&targets, 0, bytemuck::cast_slice(&wanted));
    let backward = Backward::new(&device, [&weights, &targets, &grads]);

    // The part that the library needs: two moments, which begin at zero as all buffers do, and a
    // list of the tensors to step.
    let (exp_avg, exp_avg_sq) = (buffer(BufferUsages::empty()), buffer(BufferUsages::empty()));
    let f32_in = |buffer| Binding::new(buffer, Dtype::F32);
    let (param, grad) = (f32_in(&weights), Some(f32_in(&grads)));
    let tensor = Tensor::new(WEIGHTS, param, grad, f32_in(&exp_avg), f32_in(&exp_avg_sq));
    let list = TensorList::new(&Pipelines::new(&device)?, &[tensor])?;
    let config = DualAdamConfig::default().with_lr(0.01);

    let mut last = loss(&read(&device, &queue, &weights)?, &wanted);
    println!("step   0: loss {last:.6}");
    for submit in 0..SUBMITS {
        let mut encoder = device.create_command_encoder(&Default::default());
        let mut pass = encoder.begin_compute_pass(&Default::default());
        let first = submit * STEPS_OF_A_SUBMIT + 1;
        for step in first..first + STEPS_OF_A_SUBMIT {
            backward.encode(&mut pass);
            list.encode(&mut pass, &[config.coeffs(step)?])?;
        }
        drop(pass);
        queue.submit([encoder.finish()]);
        let now = loss(&read(&device, &queue, &weights)?, &wanted);
        println!("step {:3}: loss {now:.6}", first + STEPS_OF_A_SUBMIT - 1);
        if now.is_nan() || now >= last {
            return Err("the loss did not fall".into());
        }
        last = now;
    }
    Ok(())
}

/// The program's own shader with its bind group.
struct Backward {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
}

impl Backward {
    fn new(device: &wgpu::Device, buffers: [&wgpu::Buffer; 3]) -> Self {
        let source = wgpu::ShaderSource::Wgsl(GRADIENTS.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: Default::default(),
            cache: None,
        });
        let entries = [0, 1, 2].map(|binding| wgpu::BindGroupEntry {
            binding: binding as u32,
            resource: buffers[binding].as_entire_binding(),
        });
        let layout = &pipeline.get_bind_group_layout(0);
        let group = device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout, entries: &entries });
        Self { pipeline, group }
    }

    /// Sets the pipeline and the bind group each time, since the library's step sets its own.
    fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        pass.dispatch_workgroups((WEIGHTS / 64) as u32, 1, 1);
    }
}

fn read(device: &wgpu::Device, queue: &wgpu::Queue, buffer: &wgpu::Buffer) -> Result<Vec<f32>, Error> {
    let usage = BufferUsages::COPY_DST | BufferUsages::MAP_READ;
    let staging =
        device.create_buffer(&wgpu::BufferDescriptor { label: None, size: BYTES, usage, mapped_at_creation: false });
    let mut encoder = device.create_command_encoder(&Default::default());
    encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, BYTES);
    queue.submit([encoder.finish()]);
    let (sender, receiver) = std::sync::mpsc::channel();
    staging.map_async(wgpu::MapMode::Read, .., move |mapped| {
        // Fails only if the receiver was dropped, after an error of `poll`.
        let _ = sender.send(mapped);
    });
    device.poll(wgpu::PollType::wait_indefinitely())?;
    receiver.recv()??;
    Ok(bytemuck::pod_collect_to_vec(&staging.get_mapped_range(..)?))
}

/// Half the mean of the squared differences.
fn loss(weights: &[f32], targets: &[f32]) -> f32 {
    let squares: f32 = weights.iter().zip(targets).map(|(weight, target)| (weight - target).powi(2)).sum();
    0.5 * squares / WEIGHTS as f32
}

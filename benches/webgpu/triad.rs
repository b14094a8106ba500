//! The triad that bounds the step: the same streams, workgroups and bindings, and next to no
//! arithmetic.

use dualadam::Variant;
use dualadam::webgpu::wgpu;

use crate::device::Device;
use crate::values::sizes;

/// Invocations of a workgroup, each of which serves four elements.
const WORKGROUP: u64 = 256;

/// The triad of a variant.
pub(crate) struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

/// The triad over some buffers, bound in windows as the step is.
pub(crate) struct Triad {
    pipeline: wgpu::ComputePipeline,
    windows: Vec<(wgpu::BindGroup, [u32; 2])>,
}

impl Triad {
    /// The triad over `len` elements, without those after the last whole quad.
    pub(crate) fn new(
        device: &Device,
        pipeline: &Pipeline,
        variant: Variant,
        buffers: &[wgpu::Buffer],
        len: u64,
    ) -> Self {
        let limits = device.device.limits();
        let columns = u64::from(limits.max_compute_workgroups_per_dimension);
        let window = (limits.max_storage_buffer_binding_size / 4).min(1 << 31) / 128 * 128;
        let bind = |start: u64| {
            let elements = window.min(len - start);
            let entry = |(i, buffer)| {
                let size = sizes(variant)[i] as u64;
                let binding = wgpu::BufferBinding {
                    buffer,
                    offset: start * size,
                    size: wgpu::BufferSize::new((elements * size).next_multiple_of(4)),
                };
                wgpu::BindGroupEntry { binding: i as u32, resource: wgpu::BindingResource::Buffer(binding) }
            };
            let entries: Vec<_> = buffers.iter().enumerate().map(entry).collect();
            let descriptor = wgpu::BindGroupDescriptor { label: None, layout: &pipeline.layout, entries: &entries };
            let groups = (elements / 4).div_ceil(WORKGROUP);
            let rows = groups.div_ceil(columns).max(1);
            (device.device.create_bind_group(&descriptor), [groups.div_ceil(rows) as u32, rows as u32])
        };
        let windows = (0..len).step_by(window as usize).map(bind).collect();
        Self { pipeline: pipeline.pipeline.clone(), windows }
    }

    pub(crate) fn encode(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.pipeline);
        for (group, [columns, rows]) in &self.windows {
            pass.set_bind_group(0, group, &[]);
            pass.dispatch_workgroups(*columns, *rows, 1);
        }
    }
}

impl Pipeline {
    /// The triad of a variant, with this factor for the gradients.
    pub(crate) fn new(Device { device, .. }: &Device, variant: Variant, factor: f64) -> Self {
        let formats = variant.formats();
        let mut text = include_str!("triad.wgsl")
            .replace("PARAM", &formats.param.to_string())
            .replace("GRAD", &formats.grad.to_string())
            .replace("UPDATED_FORMAT", &formats.master.unwrap_or(formats.param).to_string())
            .replace("UPDATED", if formats.master.is_some() { "master" } else { "param" });
        if let Some(master) = formats.master {
            text = text.replace("// STORE", &format!("master[at] = cut_{master}(p);"));
            text += &format!("@group(0) @binding(4) var<storage, read_write> master: array<Quad_{master}>;\n");
        }
        let source = wgpu::ShaderSource::Wgsl(text.into());
        let module = device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
        let constants = [("factor", factor)];
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: None,
            layout: None,
            module: &module,
            entry_point: None,
            compilation_options: wgpu::PipelineCompilationOptions { constants: &constants, ..Default::default() },
            cache: None,
        });
        let layout = pipeline.get_bind_group_layout(0);
        Self { pipeline, layout }
    }
}

//! The way of a step's coefficients to the shaders.

use bytemuck::bytes_of;

use crate::rule::StepCoeffs;
use crate::tensor::ListError;

use super::device::{capture, map, mapped_buffer};
use super::error::WebGpuError;
use super::layout::{COEFFS_BYTES, COEFFS_GROUP};
use super::limits::DeviceLimits;

/// Where the shaders read the coefficients.
#[derive(Debug)]
pub(super) enum CoeffsSource {
    /// In immediates, among the commands.
    Immediate,
    /// In a uniform buffer, bound with this layout.
    Uniform(wgpu::BindGroupLayout),
}

impl CoeffsSource {
    pub(super) fn new(device: &wgpu::Device) -> Self {
        let immediate = device.features().contains(wgpu::Features::IMMEDIATES)
            && device.limits().max_immediate_size >= COEFFS_BYTES;
        if immediate {
            return Self::Immediate;
        }
        Self::Uniform(device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("dualadam coefficients"),
            entries: &[wgpu::BindGroupLayoutEntry {
                binding: 0,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: wgpu::BufferSize::new(COEFFS_BYTES.into()),
                },
                count: None,
            }],
        }))
    }

    pub(super) fn is_immediate(&self) -> bool {
        matches!(self, Self::Immediate)
    }

    /// Prepares the coefficients of one call for its pass.
    ///
    /// A uniform buffer is a new one each time. A write to an older one would take effect before
    /// the next submit, for all steps in that submit.
    pub(super) fn prepare<'a>(
        &self,
        device: &wgpu::Device,
        limits: &DeviceLimits,
        coeffs: &'a [StepCoeffs],
    ) -> Result<PreparedCoeffs<'a>, WebGpuError> {
        let Self::Uniform(layout) = self else { return Ok(PreparedCoeffs::Immediate(coeffs)) };
        let stride = u64::from(COEFFS_BYTES).next_multiple_of(limits.uniform_alignment);
        let actual = coeffs.len() as u64;
        // A dynamic offset is a u32.
        let limit = limits.buffer_size.min(u32::MAX.into()) / stride;
        if actual > limit {
            return Err(ListError::TooMany { list: "coeffs", limit, actual }.into());
        }
        let label = "dualadam coefficients";
        let buffer = mapped_buffer(device, label, stride * actual)?;
        {
            let mut view = map(&buffer, "get_mapped_range_mut")?;
            for (index, coeffs) in coeffs.iter().enumerate() {
                let start = index * stride as usize;
                view.slice(start..start + COEFFS_BYTES as usize).copy_from_slice(bytes_of(coeffs));
            }
        }
        buffer.unmap();
        let size = wgpu::BufferSize::new(COEFFS_BYTES.into());
        let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer: &buffer, offset: 0, size });
        let entries = &[wgpu::BindGroupEntry { binding: 0, resource }];
        let group = capture(device, "create_bind_group", None, || {
            device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some(label), layout, entries })
        })?;
        Ok(PreparedCoeffs::Uniform { group, stride: stride as u32 })
    }
}

/// The coefficients of one call.
pub(super) enum PreparedCoeffs<'a> {
    Immediate(&'a [StepCoeffs]),
    Uniform { group: wgpu::BindGroup, stride: u32 },
}

impl PreparedCoeffs<'_> {
    /// Makes the dispatches that follow read the coefficients with this index. A pipeline must be
    /// set.
    pub(super) fn bind(&self, pass: &mut wgpu::ComputePass<'_>, index: usize) {
        match self {
            Self::Immediate(coeffs) => pass.set_immediates(0, bytes_of(&coeffs[index])),
            Self::Uniform { group, stride } => pass.set_bind_group(COEFFS_GROUP, group, &[index as u32 * stride]),
        }
    }
}

//! How the coefficients of a step reach the shaders.

use bytemuck::bytes_of;

use crate::error::WgpuProblem;
use crate::{Error, StepCoeffs};

use super::capture::capture;
use super::layout::{COEFFS_BYTES, COEFFS_GROUP};
use super::limits::DeviceLimits;

/// Where the shaders read the coefficients.
#[derive(Debug)]
pub(super) enum CoeffsSource {
    /// Among the commands.
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

    /// The sets of one call, ready to be used in its pass.
    ///
    /// A uniform buffer is a new one each time: a write to an older one would take effect before the next submit, for all steps in it.
    pub(super) fn sets<'a>(
        &self,
        device: &wgpu::Device,
        limits: &DeviceLimits,
        sets: &'a [StepCoeffs],
    ) -> Result<CoeffsSets<'a>, Error> {
        let Self::Uniform(layout) = self else { return Ok(CoeffsSets::Immediate(sets)) };
        let stride = u64::from(COEFFS_BYTES).next_multiple_of(limits.uniform_alignment);
        let size = stride * sets.len() as u64;
        // The dynamic offset is a u32.
        let limit = limits.buffer_size.min(u32::MAX.into()) / stride;
        if sets.len() as u64 > limit {
            return Err(Error::TooMany { list: "sets", limit, actual: sets.len() as u64 });
        }
        let buffer = mapped_buffer(device, "dualadam coefficients", size)?;
        {
            let mut view = map(&buffer, "get_mapped_range_mut")?;
            for (place, set) in sets.iter().enumerate() {
                let start = place * stride as usize;
                view.slice(start..start + COEFFS_BYTES as usize).copy_from_slice(bytes_of(set));
            }
        }
        buffer.unmap();
        let group = capture(device, "create_bind_group", None, || {
            device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some("dualadam coefficients"),
                layout,
                entries: &[wgpu::BindGroupEntry {
                    binding: 0,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer: &buffer,
                        offset: 0,
                        size: wgpu::BufferSize::new(COEFFS_BYTES.into()),
                    }),
                }],
            })
        })?;
        Ok(CoeffsSets::Uniform { group, stride: stride as u32 })
    }
}

/// The coefficient sets of one call.
pub(super) enum CoeffsSets<'a> {
    Immediate(&'a [StepCoeffs]),
    Uniform { group: wgpu::BindGroup, stride: u32 },
}

impl CoeffsSets<'_> {
    /// Lets the dispatches that follow read this set. A pipeline must have been set.
    pub(super) fn bind(&self, pass: &mut wgpu::ComputePass<'_>, set: usize) {
        match self {
            Self::Immediate(sets) => pass.set_immediates(0, bytes_of(&sets[set])),
            Self::Uniform { group, stride } => pass.set_bind_group(COEFFS_GROUP, group, &[set as u32 * stride]),
        }
    }
}

/// Fails if the device is lost, as far as can be seen: wgpu makes things on a lost device in silence, but maps none of its buffers.
pub(super) fn check_not_lost(device: &wgpu::Device) -> Result<(), Error> {
    let buffer = mapped_buffer(device, "dualadam probe", 4)?;
    map(&buffer, "create_buffer").map(|_| ())
}

fn mapped_buffer(device: &wgpu::Device, label: &str, size: u64) -> Result<wgpu::Buffer, Error> {
    capture(device, "create_buffer", None, || {
        device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage: wgpu::BufferUsages::UNIFORM,
            mapped_at_creation: true,
        })
    })
}

fn map(buffer: &wgpu::Buffer, call: &'static str) -> Result<wgpu::BufferViewMut, Error> {
    // The buffer is valid and its bounds are right, so this fails only without a device.
    let lost = |_| Error::Wgpu { call, tensor: None, problem: WgpuProblem::DeviceLost };
    buffer.get_mapped_range_mut(..).map_err(lost)
}

//! The shaders on a device: compiled when first needed, shared by all lists.

use std::sync::{Arc, OnceLock};

use crate::Error;
use crate::combination::Variant;

use super::capture::capture;
use super::coeffs::{CoeffsSource, check_not_lost};
use super::layout::{COEFFS_BYTES, QUADS, ROLES, SET_MASTERS, TAILS};
use super::limits::DeviceLimits;
use super::shaders;

/// The pipelines on a device of the caller's. Cheap to clone.
///
/// Making them compiles nothing. A [`TensorList`](super::TensorList) compiles what its types need when it is made, once for all clones;
/// encoding compiles nothing.
///
/// # Example
///
/// ```no_run
/// use dualadam::webgpu::{Pipelines, wgpu};
///
/// # fn example(device: wgpu::Device) -> Result<(), dualadam::Error> {
/// let pipelines = Pipelines::new(&device)?;
/// let same = pipelines.clone();
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Pipelines {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    device: wgpu::Device,
    limits: DeviceLimits,
    coeffs: CoeffsSource,
    /// Without a master, and with one where the device allows it.
    layouts: [Option<Layout>; 2],
    compiled: [Compiled; Variant::COUNT],
}

#[derive(Debug)]
struct Layout {
    tensor: wgpu::BindGroupLayout,
    pipeline: wgpu::PipelineLayout,
}

/// The shaders of one variant.
#[derive(Debug, Default)]
struct Compiled {
    module: OnceLock<wgpu::ShaderModule>,
    kinds: [OnceLock<Stage>; 2],
}

/// Which of a tensor's elements a pipeline serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The whole quads.
    Quads,
    /// What is left.
    Tail,
}

/// The pipelines that serve the same elements.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) dual_adam: wgpu::ComputePipeline,
    pub(super) adam: wgpu::ComputePipeline,
    /// Sets masters from their parameters, where there are any.
    pub(super) set_masters: Option<wgpu::ComputePipeline>,
}

impl Pipelines {
    /// The pipelines on this device.
    ///
    /// # Errors
    ///
    /// [`Error::Limit`] for a device whose limits are below [`required_limits`](super::required_limits), or [`Error::Wgpu`] for what
    /// wgpu reports, such as a lost device.
    pub fn new(device: &wgpu::Device) -> Result<Self, Error> {
        let limits = DeviceLimits::of(&device.limits())?;
        check_not_lost(device)?;
        let (coeffs, layouts) = capture(device, "create_pipeline_layout", None, || {
            let coeffs = CoeffsSource::new(device);
            let without = Layout::new(device, &coeffs, false);
            let with = limits.has_copy().then(|| Layout::new(device, &coeffs, true));
            (coeffs, [Some(without), with])
        })?;
        let inner = Inner { device: device.clone(), limits, coeffs, layouts, compiled: Default::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The device that the pipelines are on.
    #[must_use]
    pub fn device(&self) -> &wgpu::Device {
        &self.inner.device
    }

    pub(super) fn limits(&self) -> &DeviceLimits {
        &self.inner.limits
    }

    pub(super) fn coeffs(&self) -> &CoeffsSource {
        &self.inner.coeffs
    }

    /// The layout of a tensor's bind group.
    pub(super) fn tensor_layout(&self, master: bool) -> Result<&wgpu::BindGroupLayout, Error> {
        Ok(&self.layout(master)?.tensor)
    }

    fn layout(&self, master: bool) -> Result<&Layout, Error> {
        let [without, with] = &self.inner.layouts;
        match if master { with } else { without } {
            Some(layout) => Ok(layout),
            None => Err(self.inner.limits.missing_copy()),
        }
    }

    /// The pipelines for these types, compiled now if they never were.
    pub(super) fn stage(&self, variant: Variant, kind: Kind) -> Result<&Stage, Error> {
        let compiled = &self.inner.compiled[variant.index()];
        let stage = &compiled.kinds[kind as usize];
        match stage.get() {
            Some(stage) => Ok(stage),
            // Two threads may compile the same; the first to end is kept.
            None => {
                let made = self.compile(variant, kind)?;
                Ok(stage.get_or_init(|| made))
            }
        }
    }

    fn compile(&self, variant: Variant, kind: Kind) -> Result<Stage, Error> {
        let Inner { device, coeffs, compiled, .. } = &*self.inner;
        let layout = &self.layout(variant.has_master())?.pipeline;
        let text = shaders::text(variant, coeffs.is_immediate());
        let module = &compiled[variant.index()].module;
        let module = match module.get() {
            Some(module) => module,
            None => {
                let made = capture(device, "create_shader_module", None, || {
                    device.create_shader_module(wgpu::ShaderModuleDescriptor {
                        label: Some(variant.name()),
                        source: wgpu::ShaderSource::Wgsl(text.into()),
                    })
                })?;
                module.get_or_init(|| made)
            }
        };
        let pipeline = |entry_point: &str| {
            device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(variant.name()),
                layout: Some(layout),
                module,
                entry_point: Some(entry_point),
                compilation_options: wgpu::PipelineCompilationOptions::default(),
                cache: None,
            })
        };
        let [dual_adam, adam] = match kind {
            Kind::Quads => QUADS,
            Kind::Tail => TAILS,
        };
        capture(device, "create_compute_pipeline", None, || Stage {
            dual_adam: pipeline(dual_adam),
            adam: pipeline(adam),
            set_masters: variant.has_master().then(|| pipeline(SET_MASTERS[kind as usize])),
        })
    }
}

impl Layout {
    fn new(device: &wgpu::Device, coeffs: &CoeffsSource, master: bool) -> Self {
        let label = Some("dualadam");
        let entries: Vec<_> = (0..ROLES.len() as u32 - u32::from(!master))
            .map(|binding| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Storage { read_only: false },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            })
            .collect();
        let tensor = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let (groups, immediate_size) = match coeffs {
            CoeffsSource::Immediate => (vec![Some(&tensor)], COEFFS_BYTES),
            CoeffsSource::Uniform(coeffs) => (vec![Some(&tensor), Some(coeffs)], 0),
        };
        let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &groups,
            immediate_size,
        });
        Self { tensor, pipeline }
    }
}

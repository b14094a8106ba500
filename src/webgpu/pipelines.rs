//! The shaders on a device: compiled at their first use, and shared by all lists.

use std::sync::{Arc, OnceLock};

use crate::tensor::{Role, Variant};

use super::coeffs::CoeffsSource;
use super::device::{capture, check_not_lost};
use super::error::WebGpuError;
use super::layout::{COEFFS_BYTES, QUADS, ROLES, SET_MASTERS, SYNC_MASTERS, TAILS};
use super::limits::DeviceLimits;
use super::shaders;

/// The pipelines on a device of the caller. A clone shares them and is cheap.
///
/// [`new`](Self::new) compiles nothing. A new [`TensorList`](super::TensorList) compiles the
/// shaders for its formats, once for all clones. Encoding compiles nothing.
///
/// # Examples
///
/// ```
/// use dualadam::webgpu::{Pipelines, required_limits, wgpu};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
/// let adapter = instance.request_adapter(&Default::default()).await?;
/// let required_limits = required_limits();
/// let descriptor = wgpu::DeviceDescriptor { required_limits, ..Default::default() };
/// let (device, queue) = adapter.request_device(&descriptor).await?;
/// let pipelines = Pipelines::new(&device)?;
/// # Ok(())
/// # }
/// # let _found = testkit::webgpu_or_return!();
/// # pollster::block_on(example())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
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
    /// The layout without masters, and the one with masters if the device can bind them.
    layouts: Vec<Layout>,
    /// For parameters and masters alone.
    sync_layout: Layout,
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
    /// Bring masters up to date, for variants with masters.
    syncs: [OnceLock<wgpu::ComputePipeline>; 2],
}

/// Which of a tensor's elements a pipeline serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The whole quads.
    Quads,
    /// The last one to three elements.
    Tail,
}

/// The pipelines for one kind of elements.
#[derive(Debug, Clone)]
pub(super) struct Stage {
    pub(super) dual_adam: wgpu::ComputePipeline,
    pub(super) adam: wgpu::ComputePipeline,
    /// Sets masters from the parameters, for variants with masters.
    pub(super) set_masters: Option<wgpu::ComputePipeline>,
}

impl Pipelines {
    /// The pipelines on this device. Compiles nothing.
    ///
    /// # Errors
    ///
    /// - [`WebGpuError::Limit`] for a device with a limit that is too small for every step. The
    ///   limits in [`required_limits`](super::required_limits) are enough.
    /// - [`WebGpuError::Wgpu`] for anything else that wgpu reports, such as a lost device.
    pub fn new(device: &wgpu::Device) -> Result<Self, WebGpuError> {
        let limits = DeviceLimits::of(&device.limits())?;
        check_not_lost(device)?;
        let (coeffs, layouts, sync_layout) = capture(device, "create_pipeline_layout", None, || {
            let coeffs = CoeffsSource::new(device);
            let all = ROLES.len() as u32;
            let counts = if limits.check_masters().is_ok() { &[all - 1, all][..] } else { &[all - 1] };
            let layouts = counts.iter().map(|&count| Layout::new(device, 0..count, Some(&coeffs))).collect();
            let sync_layout = Layout::new(device, [Role::Param, Role::Master].map(|role| role as u32), None);
            (coeffs, layouts, sync_layout)
        })?;
        let inner =
            Inner { device: device.clone(), limits, coeffs, layouts, sync_layout, compiled: Default::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The device of the pipelines.
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

    /// The layout of the bind group for tensors of a variant.
    pub(super) fn tensor_layout(&self, variant: Variant) -> Result<&wgpu::BindGroupLayout, WebGpuError> {
        Ok(&self.layout(variant)?.tensor)
    }

    fn layout(&self, variant: Variant) -> Result<&Layout, WebGpuError> {
        let masters = has_masters(variant);
        if masters {
            self.inner.limits.check_masters()?;
        }
        Ok(&self.inner.layouts[usize::from(masters)])
    }

    /// The pipelines of a variant, compiled now if they were not.
    pub(super) fn stage(&self, variant: Variant, kind: Kind) -> Result<&Stage, WebGpuError> {
        let compiled = &self.inner.compiled[variant.index()];
        let stage = &compiled.kinds[kind as usize];
        match stage.get() {
            Some(stage) => Ok(stage),
            // Two threads may compile the same pipelines; the first ones are kept.
            None => {
                let made = self.compile(variant, kind)?;
                Ok(stage.get_or_init(|| made))
            }
        }
    }

    fn compile(&self, variant: Variant, kind: Kind) -> Result<Stage, WebGpuError> {
        let (layout, module) = (&self.layout(variant)?.pipeline, self.module(variant)?);
        let pipeline = |entry_point: &str| self.pipeline(variant, layout, module, entry_point);
        let [dual_adam, adam] = match kind {
            Kind::Quads => QUADS,
            Kind::Tail => TAILS,
        };
        capture(self.device(), "create_compute_pipeline", None, || Stage {
            dual_adam: pipeline(dual_adam),
            adam: pipeline(adam),
            set_masters: has_masters(variant).then(|| pipeline(SET_MASTERS[kind as usize])),
        })
    }

    /// The layout of the bind group for parameters and masters alone.
    pub(super) fn sync_layout(&self) -> &wgpu::BindGroupLayout {
        &self.inner.sync_layout.tensor
    }

    /// The pipeline that brings masters up to date, of a variant with masters. Compiled now if it
    /// was not.
    pub(super) fn sync(&self, variant: Variant, kind: Kind) -> Result<&wgpu::ComputePipeline, WebGpuError> {
        let sync = &self.inner.compiled[variant.index()].syncs[kind as usize];
        if let Some(sync) = sync.get() {
            return Ok(sync);
        }
        let (layout, module) = (&self.inner.sync_layout.pipeline, self.module(variant)?);
        let made = capture(self.device(), "create_compute_pipeline", None, || {
            self.pipeline(variant, layout, module, SYNC_MASTERS[kind as usize])
        })?;
        Ok(sync.get_or_init(|| made))
    }

    /// The shaders of a variant, compiled now if they were not.
    fn module(&self, variant: Variant) -> Result<&wgpu::ShaderModule, WebGpuError> {
        let Inner { device, coeffs, compiled, .. } = &*self.inner;
        let module = &compiled[variant.index()].module;
        if let Some(module) = module.get() {
            return Ok(module);
        }
        let text = shaders::text(variant, coeffs.is_immediate());
        let made = capture(device, "create_shader_module", None, || {
            device.create_shader_module(wgpu::ShaderModuleDescriptor {
                label: Some(variant.name()),
                source: wgpu::ShaderSource::Wgsl(text.into()),
            })
        })?;
        Ok(module.get_or_init(|| made))
    }

    fn pipeline(
        &self,
        variant: Variant,
        layout: &wgpu::PipelineLayout,
        module: &wgpu::ShaderModule,
        entry_point: &str,
    ) -> wgpu::ComputePipeline {
        self.device().create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(variant.name()),
            layout: Some(layout),
            module,
            entry_point: Some(entry_point),
            compilation_options: wgpu::PipelineCompilationOptions::default(),
            cache: None,
        })
    }
}

impl Layout {
    /// For the buffers with these numbers and, in steps, coefficients.
    fn new(device: &wgpu::Device, bindings: impl IntoIterator<Item = u32>, coeffs: Option<&CoeffsSource>) -> Self {
        let label = Some("dualadam");
        let entries: Vec<_> = bindings
            .into_iter()
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
            Some(CoeffsSource::Immediate) => (vec![Some(&tensor)], COEFFS_BYTES),
            Some(CoeffsSource::Uniform(coeffs)) => (vec![Some(&tensor), Some(coeffs)], 0),
            None => (vec![Some(&tensor)], 0),
        };
        let pipeline = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &groups,
            immediate_size,
        });
        Self { tensor, pipeline }
    }
}

fn has_masters(variant: Variant) -> bool {
    variant.formats().master.is_some()
}

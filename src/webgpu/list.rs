//! Lists of tensors: bound once, stepped in the caller's pass.

use std::ptr;

use crate::rule::StepCoeffs;
use crate::tensor::{Dtype, Formats, Role, TensorError, Variant, check_coeffs_index, check_count, check_fixed};

use super::checks::{bound_bytes, check_all};
use super::coeffs::PreparedCoeffs;
use super::device::{capture, check_not_lost};
use super::error::WebGpuError;
use super::layout::TENSOR_GROUP;
use super::limits::DeviceLimits;
use super::pipelines::{Kind, Pipelines, Stage};
use super::tensor::{Binding, Tensor};

/// A list of tensors that are stepped together, of any sizes and formats, each with its own
/// coefficients.
///
/// The buffers are bound once; when some change, only their tensors are bound again. The list keeps
/// its buffers alive. Tensors may be empty, and so may the list. A tensor without a gradient is
/// skipped, and its other buffers are not looked at.
///
/// # Example
///
/// ```no_run
/// use dualadam::webgpu::{Binding, Pipelines, Tensor, TensorList, wgpu};
/// use dualadam::{DualAdamConfig, Dtype};
///
/// # fn example(
/// #     device: &wgpu::Device,
/// #     queue: &wgpu::Queue,
/// #     buffers: [wgpu::Buffer; 4],
/// # ) -> Result<(), dualadam::Error> {
/// let bindings = buffers.each_ref().map(|buffer| Binding::new(buffer, Dtype::F32));
/// let [param, grad, exp_avg, exp_avg_sq] = bindings;
/// let tensor = Tensor::new(1000, param, Some(grad), exp_avg, exp_avg_sq);
/// let list = TensorList::new(&Pipelines::new(device)?, &[tensor])?;
///
/// let mut encoder = device.create_command_encoder(&Default::default());
/// let mut pass = encoder.begin_compute_pass(&Default::default());
/// let config = DualAdamConfig::default();
/// for step in 1..=3 {
///     list.encode(&mut pass, &[config.coeffs(step)?])?;
/// }
/// drop(pass);
/// queue.submit([encoder.finish()]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TensorList {
    pipelines: Pipelines,
    tensors: Vec<Bound>,
    plan: Plan,
}

/// A tensor with its bind groups.
#[derive(Debug)]
struct Bound {
    /// None if nothing is done.
    variant: Option<Variant>,
    formats: Formats,
    len: u64,
    coeffs_index: usize,
    /// What is bound, in the order of [`Role::ALL`].
    places: [Option<Place>; Role::COUNT],
    windows: Vec<wgpu::BindGroup>,
}

/// A binding that keeps its buffer alive.
#[derive(Debug)]
struct Place {
    buffer: wgpu::Buffer,
    offset: u64,
    dtype: Dtype,
    slice: Option<(u64, u64)>,
}

impl Place {
    fn of(Binding { buffer, offset, dtype, slice }: Binding<'_>) -> Self {
        Self { buffer: buffer.clone(), offset, dtype, slice }
    }

    fn binding(&self) -> Binding<'_> {
        let &Self { ref buffer, offset, dtype, slice } = self;
        Binding { buffer, offset, dtype, slice }
    }
}

/// The dispatches of a step, ordered so that the pipeline changes rarely.
#[derive(Debug)]
struct Plan {
    stages: Vec<Stage>,
    dispatches: Vec<Dispatch>,
}

#[derive(Debug, Clone, Copy)]
struct Dispatch {
    stage: usize,
    tensor: usize,
    window: usize,
    grid: [u32; 2],
}

impl TensorList {
    /// Checks and binds these tensors, and compiles the shaders for their formats if that was not
    /// done before.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::Formats`](crate::TensorProblem::Formats) for formats without a shader.
    /// - [`WebGpuError::Binding`] for a buffer that cannot be bound.
    /// - [`TensorProblem::Overlap`](crate::TensorProblem::Overlap) for two that share bytes, unless
    ///   both are gradients.
    /// - [`WebGpuError::Limit`] for masters on a device that cannot bind five buffers.
    /// - [`WebGpuError::Wgpu`] for what wgpu reports, such as a buffer that was destroyed or is
    ///   another device's.
    pub fn new(pipelines: &Pipelines, tensors: &[Tensor<'_>]) -> Result<Self, WebGpuError> {
        check_all(pipelines.limits(), tensors)?;
        check_not_lost(pipelines.device())?;
        let plan = Plan::new(pipelines, tensors)?;
        let bound = tensors.iter().enumerate().map(|(index, tensor)| Bound::new(pipelines, index, tensor));
        let tensors = bound.collect::<Result<_, _>>()?;
        Ok(Self { pipelines: pipelines.clone(), tensors, plan })
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there is no tensor.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Takes over other buffers, offsets and coefficient indices of the same tensors.
    ///
    /// Only tensors of which a buffer or an offset changed are bound again; where none did, the
    /// call only compares. A gradient may come, go, or change its format. What was encoded before
    /// is not touched.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`](crate::ListError::Count) for another number of tensors.
    /// - [`TensorProblem::FixedLength`](crate::TensorProblem::FixedLength) or
    ///   [`TensorProblem::FixedFormats`](crate::TensorProblem::FixedFormats) for another length, or
    ///   other formats of any role but the gradients.
    /// - What [`new`](Self::new) refuses.
    ///
    /// The list stays as it was then.
    ///
    /// # Example
    ///
    /// ```no_run
    /// # use dualadam::webgpu::{Binding, Tensor, TensorList, WebGpuError};
    /// # fn example(
    /// #     list: &mut TensorList,
    /// #     tensor: Tensor<'_>,
    /// #     grad: Binding<'_>,
    /// # ) -> Result<(), WebGpuError> {
    /// list.update(&[tensor.with_grad(Some(grad))])?; // the next backward pass wrote elsewhere
    /// # Ok(())
    /// # }
    /// ```
    pub fn update(&mut self, tensors: &[Tensor<'_>]) -> Result<(), WebGpuError> {
        check_count("tensors", self.tensors.len(), tensors.len())?;
        let (mut changed, mut replan) = (vec![], false);
        for (index, (old, new)) in self.tensors.iter().zip(tensors).enumerate() {
            old.check_fixed(index, new)?;
            let variant = new.variant(index)?;
            replan |= variant != old.variant;
            if variant != old.variant || (variant.is_some() && !old.binds(new)) {
                changed.push(index);
            }
        }
        if !changed.is_empty() {
            check_all(self.pipelines.limits(), tensors)?;
            check_not_lost(self.pipelines.device())?;
        }
        let plan = if replan { Some(Plan::new(&self.pipelines, tensors)?) } else { None };
        let bound = changed.iter().map(|&index| Bound::new(&self.pipelines, index, &tensors[index]));
        let bound: Vec<_> = bound.collect::<Result<_, _>>()?;

        if let Some(plan) = plan {
            self.plan = plan;
        }
        for (index, bound) in changed.into_iter().zip(bound) {
            self.tensors[index] = bound;
        }
        for (old, new) in self.tensors.iter_mut().zip(tensors) {
            old.coeffs_index = new.coeffs_index;
        }
        Ok(())
    }

    /// Whether these are tensors that [`update`](Self::update) can take over, but for their
    /// buffers.
    pub(super) fn has_formats_of(&self, tensors: &[Tensor<'_>]) -> bool {
        let same = |(index, (old, new)): (usize, (&Bound, _))| old.check_fixed(index, new).is_ok();
        self.tensors.len() == tensors.len() && self.tensors.iter().zip(tensors).enumerate().all(same)
    }

    /// Encodes one DualAdam step of every tensor that has a gradient, with the coefficients
    /// `coeffs[tensor.coeffs_index]`, into `pass`.
    ///
    /// The coefficients are kept as they are now, so that many steps can share a pass or a submit.
    /// Where [`StepCoeffs::is_adam`] holds, the specialised pipeline runs. Nothing is submitted or
    /// waited for. Where the device has no immediates, a uniform buffer for the coefficients is
    /// made; nothing else is. The pass is left with another pipeline and other bind groups 0 and 1,
    /// or immediates.
    ///
    /// wgpu reports what it finds only later, to the caller: a pass of another device when the pass
    /// ends; a buffer that is mapped, or has been destroyed since it was bound, with the submit.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::CoeffsIndex`](crate::TensorProblem::CoeffsIndex) for a tensor whose
    ///   coefficients are not there.
    /// - [`ListError::TooMany`](crate::ListError::TooMany) for more coefficients than fit in a
    ///   buffer.
    /// - [`WebGpuError::Wgpu`] if the uniform buffer cannot be made, such as on a lost device.
    ///
    /// Nothing is encoded then.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, coeffs: &[StepCoeffs]) -> Result<(), WebGpuError> {
        self.encode_setting_masters(pass, coeffs, &[])
    }

    /// [`encode`](Self::encode), after the masters of the tensors `unset`, in rising order, are set
    /// from their parameters.
    pub(super) fn encode_setting_masters(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        coeffs: &[StepCoeffs],
        unset: &[usize],
    ) -> Result<(), WebGpuError> {
        for (index, tensor) in self.tensors.iter().enumerate() {
            check_coeffs_index(index, tensor.coeffs_index, coeffs.len())?;
        }
        if self.plan.dispatches.is_empty() {
            return Ok(());
        }
        let prepared = self.pipelines.coeffs().prepare(self.pipelines.device(), self.pipelines.limits(), coeffs)?;

        let mut encoder = Encoder { list: self, pass, coeffs: prepared, pipeline: None, coeffs_index: None };
        if !unset.is_empty() {
            let is_unset = |dispatch: &&Dispatch| unset.binary_search(&dispatch.tensor).is_ok();
            for dispatch in self.plan.dispatches.iter().filter(is_unset) {
                if let Some(set_masters) = &self.plan.stages[dispatch.stage].set_masters {
                    encoder.dispatch(dispatch, set_masters);
                }
            }
        }
        for dispatch in &self.plan.dispatches {
            let Stage { dual_adam, adam, .. } = &self.plan.stages[dispatch.stage];
            let is_adam = coeffs[self.tensors[dispatch.tensor].coeffs_index].is_adam();
            encoder.dispatch(dispatch, if is_adam { adam } else { dual_adam });
        }
        Ok(())
    }
}

/// A pass, and what is set in it.
struct Encoder<'a, 'b> {
    list: &'a TensorList,
    pass: &'a mut wgpu::ComputePass<'b>,
    coeffs: PreparedCoeffs<'a>,
    pipeline: Option<&'a wgpu::ComputePipeline>,
    coeffs_index: Option<usize>,
}

impl<'a> Encoder<'a, '_> {
    fn dispatch(&mut self, dispatch: &Dispatch, pipeline: &'a wgpu::ComputePipeline) {
        let &Dispatch { tensor, window, grid: [columns, rows], .. } = dispatch;
        let Bound { coeffs_index, windows, .. } = &self.list.tensors[tensor];
        if !self.pipeline.is_some_and(|current| ptr::eq(current, pipeline)) {
            self.pass.set_pipeline(pipeline);
            // With another layout a driver may forget the immediates.
            (self.pipeline, self.coeffs_index) = (Some(pipeline), None);
        }
        if self.coeffs_index != Some(*coeffs_index) {
            self.coeffs.bind(self.pass, *coeffs_index);
            self.coeffs_index = Some(*coeffs_index);
        }
        self.pass.set_bind_group(TENSOR_GROUP, &windows[window], &[]);
        self.pass.dispatch_workgroups(columns, rows, 1);
    }
}

impl Bound {
    fn new(pipelines: &Pipelines, index: usize, tensor: &Tensor<'_>) -> Result<Self, WebGpuError> {
        let variant = tensor.variant(index)?;
        let (formats, &Tensor { len, coeffs_index, .. }) = (tensor.formats(), tensor);
        let Some(some) = variant else {
            let places = [const { None }; Role::COUNT];
            return Ok(Self { variant, formats, len, coeffs_index, places, windows: vec![] });
        };
        let layout = pipelines.tensor_layout(some)?;
        let bind = |window| bind(pipelines.device(), layout, index, tensor, window);
        let windows = pipelines.limits().windows(len).map(bind).collect::<Result<_, _>>()?;
        let places = tensor.bindings().map(|binding| binding.map(Place::of));
        Ok(Self { variant, formats, len, coeffs_index, places, windows })
    }

    /// Whether these are the buffers that are bound.
    fn binds(&self, tensor: &Tensor<'_>) -> bool {
        self.places.each_ref().map(|place| place.as_ref().map(Place::binding)) == tensor.bindings()
    }

    /// Fails if a tensor has another length than this one, or other formats but for the gradients.
    fn check_fixed(&self, index: usize, new: &Tensor<'_>) -> Result<(), TensorError> {
        let formats = new.formats();
        let kept = Formats { grad: formats.grad, ..self.formats };
        check_fixed(index, (self.len, kept), (new.len, formats))
    }
}

/// Binds a window, from an element on so many, of a tensor's buffers.
fn bind<'a>(
    device: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    index: usize,
    tensor: &Tensor<'a>,
    (start, elements): (u64, u64),
) -> Result<wgpu::BindGroup, WebGpuError> {
    let entry = |(number, binding): (u32, Option<Binding<'a>>)| {
        let Binding { buffer, offset, dtype, .. } = binding?;
        let (size, offset) = (dtype.size(), offset + start * dtype.size() as u64);
        let size = wgpu::BufferSize::new(bound_bytes(elements, size));
        let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
        Some(wgpu::BindGroupEntry { binding: number, resource })
    };
    let entries: Vec<_> = (0..).zip(tensor.bindings()).filter_map(entry).collect();
    capture(device, "create_bind_group", Some(index), || {
        device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("dualadam"), layout, entries: &entries })
    })
}

impl Plan {
    fn new(pipelines: &Pipelines, tensors: &[Tensor<'_>]) -> Result<Self, WebGpuError> {
        let limits = pipelines.limits();
        let mut found = vec![];
        for (index, tensor) in tensors.iter().enumerate() {
            let Some(variant) = tensor.variant(index)? else { continue };
            for (window, (_, elements)) in limits.windows(tensor.len).enumerate() {
                let dispatch = |grid| Dispatch { stage: 0, tensor: index, window, grid };
                if let Some(grid) = limits.grid(elements) {
                    found.push(((variant, Kind::Quads), dispatch(grid)));
                }
                if DeviceLimits::has_tail(elements) {
                    found.push(((variant, Kind::Tail), dispatch([1, 1])));
                }
            }
        }
        found.sort_by_key(|(key, _)| *key);

        let mut plan = Self { stages: vec![], dispatches: Vec::with_capacity(found.len()) };
        let mut last = None;
        for (key @ (variant, kind), dispatch) in found {
            if last != Some(key) {
                plan.stages.push(pipelines.stage(variant, kind)?.clone());
                last = Some(key);
            }
            plan.dispatches.push(Dispatch { stage: plan.stages.len() - 1, ..dispatch });
        }
        Ok(plan)
    }
}

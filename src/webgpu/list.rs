//! Lists of tensors: bound once, and stepped in passes of the caller.

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

/// Tensors in wgpu buffers that one call steps together: any sizes and formats, each with its own
/// coefficients.
///
/// [`new`](Self::new) binds the buffers, and the list keeps them alive. A list may be empty, and so
/// may a tensor. A tensor without a gradient is skipped, and its other buffers are not looked at.
///
/// # Examples
///
/// ```
/// use dualadam::webgpu::{Binding, Pipelines, Tensor, TensorList};
/// use dualadam::{DualAdamConfig, Dtype};
///
/// # let (device, queue) = testkit::webgpu_or_return!();
/// # let buffers = [1.0_f32, 0.5, 0.0, 0.0].map(|value| testkit::webgpu_buffer!(device, [value; 1000]));
/// // `buffers` has the parameters, the gradients and both moments.
/// let bindings = buffers.each_ref().map(|buffer| Binding::new(buffer, Dtype::F32));
/// let [param, grad, exp_avg, exp_avg_sq] = bindings;
/// let tensor = Tensor::new(1000, param, Some(grad), exp_avg, exp_avg_sq);
/// let list = TensorList::new(&Pipelines::new(&device)?, &[tensor])?;
///
/// let mut encoder = device.create_command_encoder(&Default::default());
/// let mut pass = encoder.begin_compute_pass(&Default::default());
/// let config = DualAdamConfig::default();
/// for step in 1..=3 {
///     list.encode(&mut pass, &[config.coeffs(step)?])?;
/// }
/// drop(pass);
/// queue.submit([encoder.finish()]);
/// # Ok::<(), dualadam::Error>(())
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
    /// `None` if a step skips the tensor or the tensor is empty.
    variant: Option<Variant>,
    formats: Formats,
    len: u64,
    coeffs_index: usize,
    /// The bound buffers, in the order of [`Role::ALL`].
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

/// The dispatches of a step, in an order in which the pipeline changes rarely.
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
    /// Checks and binds these tensors. Compiles the shaders for their formats, unless a list has
    /// done so before.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::Formats`](crate::TensorProblem::Formats) for formats without a shader.
    /// - [`WebGpuError::Binding`] for a buffer that cannot be bound, with a
    ///   [`BindingProblem`](super::BindingProblem).
    /// - [`TensorProblem::Overlap`](crate::TensorProblem::Overlap) for two bindings that overlap,
    ///   unless both are gradients.
    /// - [`WebGpuError::Limit`] for masters on a device that cannot bind five buffers.
    /// - [`WebGpuError::Wgpu`] for anything else that wgpu reports, such as a buffer that was
    ///   destroyed or belongs to another device.
    pub fn new(pipelines: &Pipelines, tensors: &[Tensor<'_>]) -> Result<Self, WebGpuError> {
        check_all(pipelines.limits(), tensors)?;
        check_not_lost(pipelines.device())?;
        let plan = Plan::new(pipelines, tensors)?;
        let bound = tensors.iter().enumerate().map(|(index, tensor)| Bound::new(pipelines, index, tensor));
        let tensors = bound.collect::<Result<_, _>>()?;
        Ok(Self { pipelines: pipelines.clone(), tensors, plan })
    }

    /// The number of tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Replaces buffers, offsets and coefficient indices of the same tensors.
    ///
    /// Only tensors with a changed buffer or offset are bound again; if there are none, the call
    /// only compares. A gradient may come, go, or change its format. Steps that are encoded already
    /// do not change.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`](crate::ListError::Count) for another number of tensors.
    /// - [`TensorProblem::FixedLength`](crate::TensorProblem::FixedLength) or
    ///   [`TensorProblem::FixedFormats`](crate::TensorProblem::FixedFormats) for another length, or
    ///   other formats of a role that is not the gradient.
    /// - The errors of [`new`](Self::new).
    ///
    /// After an error the list is as it was.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::Dtype;
    /// # use dualadam::webgpu::{Binding, Pipelines, Tensor, TensorList};
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// # let buffers = [0.0_f32; 5].map(|value| testkit::webgpu_buffer!(device, [value; 8]));
    /// # let bindings = buffers.each_ref().map(|buffer| Binding::new(buffer, Dtype::F32));
    /// # let [param, grad, exp_avg, exp_avg_sq, other] = bindings;
    /// # let tensor = Tensor::new(8, param, Some(grad), exp_avg, exp_avg_sq);
    /// # let mut list = TensorList::new(&Pipelines::new(&device)?, &[tensor])?;
    /// list.update(&[tensor.with_grad(Some(other))])?; // the next backward pass wrote elsewhere
    /// list.update(&[tensor.with_grad(None)])?; // and then there was no gradient
    /// # Ok::<(), dualadam::Error>(())
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

    /// Whether [`update`](Self::update) accepts the lengths and formats of these tensors.
    pub(super) fn has_formats_of(&self, tensors: &[Tensor<'_>]) -> bool {
        let same = |(index, (old, new)): (usize, (&Bound, _))| old.check_fixed(index, new).is_ok();
        self.tensors.len() == tensors.len() && self.tensors.iter().zip(tensors).enumerate().all(same)
    }

    /// Encodes one DualAdam step of every tensor that has a gradient into `pass`, with the
    /// coefficients `coeffs[tensor.coeffs_index]`.
    ///
    /// - Nothing is submitted or waited for.
    /// - The coefficients are copied, so many steps can share a pass or a submit. On a device
    ///   without immediates the call creates a uniform buffer for them.
    /// - Where [`StepCoeffs::is_adam`] holds, the specialised pipeline for plain Adam runs.
    /// - The call changes the pass's pipeline, its bind group 0, and its bind group 1 or
    ///   immediates.
    ///
    /// wgpu reports some errors only later, to the device's error scope or handler: a pass of
    /// another device when the pass ends, and a buffer that is mapped or was destroyed at the
    /// submit.
    ///
    /// # Errors
    ///
    /// - [`TensorProblem::CoeffsIndex`](crate::TensorProblem::CoeffsIndex) for a tensor whose index
    ///   is not below the length of `coeffs`.
    /// - [`ListError::TooMany`](crate::ListError::TooMany) for more coefficients than a uniform
    ///   buffer can hold.
    /// - [`WebGpuError::Wgpu`] if the uniform buffer cannot be created, such as on a lost device.
    ///
    /// Nothing is encoded then.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, coeffs: &[StepCoeffs]) -> Result<(), WebGpuError> {
        self.encode_setting_masters(pass, coeffs, &[])
    }

    /// [`encode`](Self::encode) that first sets the masters of the tensors `unset` from their
    /// parameters. `unset` is in rising order.
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

/// A pass, with the pipeline and coefficients that are set in it.
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
            // Another layout may invalidate the immediates.
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
        let bind = |window| bind(pipelines.device(), layout, index, tensor.bindings(), window);
        let windows = pipelines.limits().windows(len).map(bind).collect::<Result<_, _>>()?;
        let places = tensor.bindings().map(|binding| binding.map(Place::of));
        Ok(Self { variant, formats, len, coeffs_index, places, windows })
    }

    /// Whether the tensor's buffers are the bound ones.
    fn binds(&self, tensor: &Tensor<'_>) -> bool {
        self.places.each_ref().map(|place| place.as_ref().map(Place::binding)) == tensor.bindings()
    }

    /// Fails if a tensor has another length than this one, or another format in a role that is not
    /// the gradient.
    fn check_fixed(&self, index: usize, new: &Tensor<'_>) -> Result<(), TensorError> {
        let formats = new.formats();
        let kept = Formats { grad: formats.grad, ..self.formats };
        check_fixed(index, (self.len, kept), (new.len, formats))
    }
}

/// Binds a window of a tensor's buffers: `elements` elements from `start` on.
pub(super) fn bind<'a>(
    device: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    index: usize,
    bindings: [Option<Binding<'a>>; Role::COUNT],
    (start, elements): (u64, u64),
) -> Result<wgpu::BindGroup, WebGpuError> {
    let entry = |(number, binding): (u32, Option<Binding<'a>>)| {
        let Binding { buffer, offset, dtype, .. } = binding?;
        let (size, offset) = (dtype.size(), offset + start * dtype.size() as u64);
        let size = wgpu::BufferSize::new(bound_bytes(elements, size));
        let resource = wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size });
        Some(wgpu::BindGroupEntry { binding: number, resource })
    };
    let entries: Vec<_> = (0..).zip(bindings).filter_map(entry).collect();
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

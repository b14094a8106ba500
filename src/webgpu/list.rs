//! Lists of tensors: bound once, stepped in the caller's pass.

use std::ptr;

use crate::combination::Variant;
use crate::{Dtype, Error, StepCoeffs};

use super::capture::capture;
use super::checks::{bound_bytes, check_all};
use super::coeffs::{CoeffsSets, check_not_lost};
use super::layout::TENSOR_GROUP;
use super::limits::DeviceLimits;
use super::pipelines::{Kind, Pipelines, Stage};
use super::tensor::{BufferView, Tensor};

/// A list of tensors that are stepped together, of any sizes and type combinations, each with its own coefficient set.
///
/// The buffers are bound once; when some change, only their tensors' bindings are made anew. The list keeps its buffers alive.
/// Tensors may be empty, and so may the list. One without a gradient is left alone, and its other buffers are not looked at.
///
/// # Example
///
/// ```no_run
/// use dualadam::webgpu::{BufferView, Moment, Pipelines, Tensor, TensorList, wgpu};
/// use dualadam::{DualAdamConfig, Dtype};
///
/// # fn example(device: &wgpu::Device, queue: &wgpu::Queue, buffers: [wgpu::Buffer; 4]) -> Result<(), dualadam::Error> {
/// let [params, grads, exp_avg, exp_avg_sq] = buffers; // of 1,000 f32 each
/// let list = TensorList::new(&Pipelines::new(device)?, &[Tensor {
///     params: BufferView::new(&params, Dtype::F32),
///     grads: Some(BufferView::new(&grads, Dtype::F32)),
///     exp_avg: Moment::new(&exp_avg),
///     exp_avg_sq: Moment::new(&exp_avg_sq),
///     copy: None,
///     len: 1000,
///     set: 0,
/// }])?;
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
    params: Dtype,
    copy: Option<Dtype>,
    len: u64,
    set: usize,
    /// What is bound, and from which byte on; in the order of `Tensor::views`.
    places: [Option<(wgpu::Buffer, u64)>; 5],
    windows: Vec<wgpu::BindGroup>,
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
    /// Checks and binds these tensors, and compiles the shaders for their types if that was not done before.
    ///
    /// # Errors
    ///
    /// [`Error::Types`] for a type combination without a shader; [`Error::Usage`], [`Error::Offset`] or [`Error::BufferSize`] for a
    /// buffer that cannot be bound; [`Error::Overlap`] for two that share bytes, unless both are gradients; [`Error::Limit`] for a copy
    /// on a device that cannot bind five buffers; [`Error::Wgpu`] for what wgpu reports, such as a buffer that was destroyed or is
    /// another device's.
    pub fn new(pipelines: &Pipelines, tensors: &[Tensor<'_>]) -> Result<Self, Error> {
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

    /// Takes over other buffers, offsets and sets of the same tensors.
    ///
    /// Bindings are made only for tensors of which a buffer or an offset changed; where none did, the call only compares. A gradient may
    /// come, go, or change its type. What was encoded before is not touched.
    ///
    /// # Errors
    ///
    /// [`Error::Count`] for another number of tensors, [`Error::Fixed`] for another length or another type of parameters or copy, and
    /// what [`new`](Self::new) refuses. The list stays as it was then.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use dualadam::webgpu::{BufferView, Tensor, TensorList};
    ///
    /// # fn example(list: &mut TensorList, tensor: Tensor<'_>, grads: BufferView<'_>) -> Result<(), dualadam::Error> {
    /// list.update(&[Tensor { grads: Some(grads), ..tensor }])?; // the next backward pass wrote elsewhere
    /// # Ok(())
    /// # }
    /// ```
    pub fn update(&mut self, tensors: &[Tensor<'_>]) -> Result<(), Error> {
        let (expected, actual) = (self.tensors.len(), tensors.len());
        if actual != expected {
            return Err(Error::Count { list: "tensors", expected, actual });
        }
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
            old.set = new.set;
        }
        Ok(())
    }

    /// Encodes one DualAdam step of every tensor that has a gradient, with the coefficients `sets[tensor.set]`, into `pass`.
    ///
    /// The coefficients are kept as they are now, so that many steps can share a pass or a submit. Where [`StepCoeffs::is_adam`] holds,
    /// the specialised pipeline runs. Nothing is submitted or waited for. Where the device has no immediates, a uniform buffer for the
    /// coefficients is made; nothing else is. The pass is left with another pipeline and other bind groups 0 and 1, or immediates.
    ///
    /// wgpu reports what it finds only later, to the caller: a pass of another device when the pass ends, and a buffer that has been
    /// destroyed since it was bound, or is mapped, with the submit.
    ///
    /// # Errors
    ///
    /// [`Error::Index`] for a tensor whose set is not there, [`Error::TooMany`] for more sets than fit in a buffer, [`Error::Wgpu`] if
    /// the uniform buffer cannot be made, such as on a lost device. Nothing is encoded then.
    pub fn encode(&self, pass: &mut wgpu::ComputePass<'_>, sets: &[StepCoeffs]) -> Result<(), Error> {
        self.encode_from_copies(pass, sets, &[])
    }

    /// [`encode`](Self::encode), after the masters of the tensors `fresh`, in rising order, are set from their copies.
    pub(super) fn encode_from_copies(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        sets: &[StepCoeffs],
        fresh: &[usize],
    ) -> Result<(), Error> {
        let mut indices = self.tensors.iter().map(|tensor| tensor.set).enumerate();
        if let Some((tensor, value)) = indices.find(|&(_, set)| set >= sets.len()) {
            return Err(Error::Index { tensor, index: "set", len: sets.len(), value });
        }
        if self.plan.dispatches.is_empty() {
            return Ok(());
        }
        let coeffs = self.pipelines.coeffs().sets(self.pipelines.device(), self.pipelines.limits(), sets)?;

        let mut encoder = Encoder { list: self, pass, coeffs, pipeline: None, set: None };
        if !fresh.is_empty() {
            let is_fresh = |dispatch: &&Dispatch| fresh.binary_search(&dispatch.tensor).is_ok();
            for dispatch in self.plan.dispatches.iter().filter(is_fresh) {
                if let Some(set_masters) = &self.plan.stages[dispatch.stage].set_masters {
                    encoder.dispatch(dispatch, set_masters);
                }
            }
        }
        for dispatch in &self.plan.dispatches {
            let Stage { dual_adam, adam, .. } = &self.plan.stages[dispatch.stage];
            let is_adam = sets[self.tensors[dispatch.tensor].set].is_adam();
            encoder.dispatch(dispatch, if is_adam { adam } else { dual_adam });
        }
        Ok(())
    }
}

/// A pass, and what is set in it.
struct Encoder<'a, 'b> {
    list: &'a TensorList,
    pass: &'a mut wgpu::ComputePass<'b>,
    coeffs: CoeffsSets<'a>,
    pipeline: Option<&'a wgpu::ComputePipeline>,
    set: Option<usize>,
}

impl<'a> Encoder<'a, '_> {
    fn dispatch(&mut self, dispatch: &Dispatch, pipeline: &'a wgpu::ComputePipeline) {
        let &Dispatch { tensor, window, grid: [columns, rows], .. } = dispatch;
        let Bound { set, windows, .. } = &self.list.tensors[tensor];
        if !self.pipeline.is_some_and(|current| ptr::eq(current, pipeline)) {
            self.pass.set_pipeline(pipeline);
            // With another layout a driver may forget the immediates.
            (self.pipeline, self.set) = (Some(pipeline), None);
        }
        if self.set != Some(*set) {
            self.coeffs.bind(self.pass, *set);
            self.set = Some(*set);
        }
        self.pass.set_bind_group(TENSOR_GROUP, &windows[window], &[]);
        self.pass.dispatch_workgroups(columns, rows, 1);
    }
}

impl Bound {
    fn new(pipelines: &Pipelines, index: usize, tensor: &Tensor<'_>) -> Result<Self, Error> {
        let variant = tensor.variant(index)?;
        let mut places = [const { None }; 5];
        let mut windows = vec![];
        if let Some(variant) = variant {
            let views = tensor.views();
            places = views.map(|view| view.map(|view| (view.buffer.clone(), view.offset)));
            let layout = pipelines.tensor_layout(variant.has_master())?;
            let bind = |window| bind(pipelines.device(), layout, index, tensor.by_role(), window);
            windows = pipelines.limits().windows(tensor.len).map(bind).collect::<Result<_, _>>()?;
        }
        let &Tensor { params, copy, len, set, .. } = tensor;
        Ok(Self { variant, params: params.dtype, copy: copy.map(|copy| copy.dtype), len, set, places, windows })
    }

    /// Whether these buffers and offsets are bound.
    fn binds(&self, tensor: &Tensor<'_>) -> bool {
        let same = |(place, view): (&Option<(wgpu::Buffer, u64)>, Option<BufferView<'_>>)| match (place, view) {
            (Some((buffer, offset)), Some(view)) => buffer == view.buffer && *offset == view.offset,
            (place, view) => place.is_none() && view.is_none(),
        };
        self.places.iter().zip(tensor.views()).all(same)
    }

    fn check_fixed(&self, tensor: usize, new: &Tensor<'_>) -> Result<(), Error> {
        let name = |copy: Option<Dtype>| copy.map_or("absent".to_owned(), |dtype| dtype.to_string());
        let copy = new.copy.map(|copy| copy.dtype);
        let (what, expected, actual) = if self.len != new.len {
            ("the length", self.len.to_string(), new.len.to_string())
        } else if self.params != new.params.dtype {
            ("the type of params", self.params.to_string(), new.params.dtype.to_string())
        } else if self.copy != copy {
            ("the type of copy", name(self.copy), name(copy))
        } else {
            return Ok(());
        };
        Err(Error::Fixed { tensor, what, expected, actual })
    }
}

/// Binds a window, from an element on so many, of a tensor's buffers.
fn bind<'a>(
    device: &wgpu::Device,
    layout: &wgpu::BindGroupLayout,
    tensor: usize,
    by_role: [Option<BufferView<'a>>; 5],
    (start, elements): (u64, u64),
) -> Result<wgpu::BindGroup, Error> {
    let resource = |BufferView { buffer, offset, dtype }: BufferView<'a>| {
        let size = dtype.size();
        let (offset, size) = (offset + start * size as u64, wgpu::BufferSize::new(bound_bytes(elements, size)));
        wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size })
    };
    let entry = |(binding, view): (u32, Option<BufferView<'a>>)| {
        Some(wgpu::BindGroupEntry { binding, resource: resource(view?) })
    };
    let entries: Vec<_> = (0..).zip(by_role).filter_map(entry).collect();
    capture(device, "create_bind_group", Some(tensor), || {
        device.create_bind_group(&wgpu::BindGroupDescriptor { label: Some("dualadam"), layout, entries: &entries })
    })
}

impl Plan {
    fn new(pipelines: &Pipelines, tensors: &[Tensor<'_>]) -> Result<Self, Error> {
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

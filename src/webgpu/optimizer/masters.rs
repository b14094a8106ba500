//! Bringing masters up to date with parameters that other code has written.

use super::DualAdam;
use crate::tensor::{Dtype, TensorError, TensorProblem, Variant};
use crate::webgpu::checks::check_param;
use crate::webgpu::device::check_not_lost;
use crate::webgpu::error::WebGpuError;
use crate::webgpu::layout::TENSOR_GROUP;
use crate::webgpu::limits::DeviceLimits;
use crate::webgpu::list::bind;
use crate::webgpu::pipelines::Kind;
use crate::webgpu::tensor::Binding;

/// A dispatch with all that it needs.
struct Dispatch<'a> {
    pipeline: &'a wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    grid: [u32; 2],
}

impl DualAdam {
    /// Encodes into `pass` that the masters take over what other code wrote into their parameters
    /// since the last step.
    ///
    /// Without this call, the next step overwrites such changes: a clamp, a pruning mask, loaded
    /// weights. [`cpu::sync_master`](crate::cpu::sync_master) states what happens to each element.
    /// The shaders compare and write in integers, so the masters have its bits on every device.
    ///
    /// `params` has an entry for each tensor, in the optimizer's order; they are only read. Tensors
    /// without masters are passed over. So are tensors before their first update, which sets the
    /// masters from the parameters.
    ///
    /// Nothing is submitted or waited for. The first call compiles the shaders for its formats. The
    /// call changes the pass's pipeline and its bind group 0.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`](crate::ListError::Count) if `params` does not have an entry for each
    ///   tensor.
    /// - [`TensorProblem::MasterFormats`] for parameters that have masters and are not bf16 or f16.
    /// - [`WebGpuError::Binding`] for a buffer that cannot be bound.
    /// - [`WebGpuError::Wgpu`] for anything else that wgpu reports.
    ///
    /// Nothing is encoded then. The buffers of tensors that are passed over are not looked at.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::webgpu::{Binding, DualAdam, Pipelines};
    /// use dualadam::{Dtype, DualAdamConfig, TensorSpec};
    ///
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// # let [w, grad] = [0x3f80_3f80_u32; 2].map(|word| testkit::webgpu_buffer!(device, [word]));
    /// // `w` and `grad` hold two bf16 of value 1.
    /// let specs = [TensorSpec::new(2).with_master()];
    /// let mut optimizer = DualAdam::with_groups(&Pipelines::new(&device)?, &[DualAdamConfig::adam()], &specs)?;
    /// let (param, grad) = (Binding::new(&w, Dtype::Bf16), Binding::new(&grad, Dtype::Bf16));
    /// let mut encoder = device.create_command_encoder(&Default::default());
    /// optimizer.step(&mut encoder.begin_compute_pass(&Default::default()), [param], [Some(grad)])?;
    /// encoder.clear_buffer(&w, 0, None); // other code writes the parameters
    /// optimizer.sync_masters(&mut encoder.begin_compute_pass(&Default::default()), [param])?;
    /// queue.submit([encoder.finish()]);
    /// assert_eq!(optimizer.state(&queue)?.arrays[0].master, Some(vec![0.0; 2]));
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn sync_masters<'a>(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        params: impl IntoIterator<Item = Binding<'a>>,
    ) -> Result<(), WebGpuError> {
        let mut bindings = vec![];
        self.ledger.collect("params", params, &mut bindings)?;
        let dispatches = self.sync_dispatches(&bindings).map_err(|error| error.named(&self.ledger))?;
        for Dispatch { pipeline, group, grid: [columns, rows] } in &dispatches {
            pass.set_pipeline(pipeline);
            pass.set_bind_group(TENSOR_GROUP, group, &[]);
            pass.dispatch_workgroups(*columns, *rows, 1);
        }
        Ok(())
    }

    /// Checks the parameters, and binds those whose masters are set beside the masters.
    fn sync_dispatches(&self, params: &[Binding<'_>]) -> Result<Vec<Dispatch<'_>>, WebGpuError> {
        let Self { ledger, places, arenas, pipelines, .. } = self;
        let (limits, device, layout) = (pipelines.limits(), pipelines.device(), pipelines.sync_layout());
        let mut pairs = vec![];
        for (tensor, (&param, (spec, places))) in params.iter().zip(ledger.specs().zip(places)).enumerate() {
            if let Some(master) = places.master.filter(|_| !ledger.sets_master(tensor)) {
                let variant = variant_of(tensor, param.dtype)?;
                let len = spec.len as u64;
                if len > 0 {
                    check_param(limits, tensor, param, len)?;
                    pairs.push((tensor, variant, len, [Some(param), None, None, None, Some(arenas.binding(master))]));
                }
            }
        }
        check_not_lost(device)?;
        let mut dispatches = vec![];
        for (tensor, variant, len, bindings) in pairs {
            for window in limits.windows(len) {
                let group = bind(device, layout, tensor, bindings, window)?;
                let mut dispatch = |kind, grid| -> Result<(), WebGpuError> {
                    let pipeline = pipelines.sync(variant, kind)?;
                    dispatches.push(Dispatch { pipeline, group: group.clone(), grid });
                    Ok(())
                };
                if let Some(grid) = limits.grid(window.1) {
                    dispatch(Kind::Quads, grid)?;
                }
                if DeviceLimits::has_tail(window.1) {
                    dispatch(Kind::Tail, [1, 1])?;
                }
            }
        }
        Ok(dispatches)
    }
}

/// A variant with parameters of this format and f32 masters: all have the same shaders for them.
fn variant_of(tensor: usize, param: Dtype) -> Result<Variant, TensorError> {
    let problem = TensorProblem::MasterFormats { param, master: Dtype::F32 };
    Variant::with_master(param, Dtype::F32).next().ok_or_else(|| TensorError::of_tensor(tensor, problem))
}

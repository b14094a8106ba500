//! The optimizer that owns its moments, in buffers of its own, and counts its tensors' steps.

mod state;

use crate::ledger::{CoeffsTable, Ledger, TensorSpec};
use crate::rule::{DualAdamConfig, check_grad_multiplier};
use crate::tensor::{ArgumentError, ListError, Role};

use super::arenas::{Arenas, Place, Plan};
use super::error::WebGpuError;
use super::list::TensorList;
use super::pipelines::Pipelines;
use super::tensor::{Binding, Tensor};

/// DualAdam over a model's tensors in wgpu buffers: owns the moments, steps and masters, in buffers
/// of its own, and borrows parameters and gradients for each step.
///
/// Each tensor counts its own updates: one without a gradient is skipped, moments, step and all. A
/// step is encoded into a pass of the caller's, and **counted when it is encoded**: submit every
/// pass once, in the order of encoding. Methods and files are those of
/// [`cpu::DualAdam`](crate::cpu::DualAdam); results are within the [backend's bound](super) of its
/// results.
///
/// # Queues
///
/// A `queue` that a method takes must be that of the pipelines' device, which wgpu does not let the
/// library check. wgpu reports another device's queue to the handler of that device's errors, which
/// panics unless the program has set one. If the handler returns, what was to be written is lost,
/// and what is read is zeros.
///
/// # Example
///
/// ```no_run
/// use dualadam::webgpu::{Binding, DualAdam, Pipelines, wgpu};
/// use dualadam::{Dtype, DualAdamConfig};
///
/// # fn example(
/// #     device: wgpu::Device,
/// #     queue: wgpu::Queue,
/// #     w: wgpu::Buffer,
/// #     w_grad: wgpu::Buffer,
/// # ) -> Result<(), dualadam::Error> {
/// let pipelines = Pipelines::new(&device)?;
/// let mut optimizer = DualAdam::new(&pipelines, DualAdamConfig::default(), &[1000])?;
/// let (w, w_grad) = (Binding::new(&w, Dtype::F32), Binding::new(&w_grad, Dtype::F32));
/// for _ in 0..200 {
///     let mut encoder = device.create_command_encoder(&Default::default());
///     // … the backward pass, and then:
///     let mut pass = encoder.begin_compute_pass(&Default::default());
///     optimizer.step(&mut pass, [w], [Some(w_grad)])?;
///     drop(pass);
///     queue.submit([encoder.finish()]);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct DualAdam {
    ledger: Ledger,
    /// The memory of each tensor.
    places: Vec<Places>,
    arenas: Arenas,
    /// The tensors as their last step had them.
    list: Option<TensorList>,
    table: CoeffsTable,
    /// The tensors whose masters the step under way sets.
    unset: Vec<usize>,
    pipelines: Pipelines,
}

/// Where a tensor's arrays are.
#[derive(Debug)]
struct Places {
    exp_avg: Place,
    exp_avg_sq: Place,
    master: Option<Place>,
}

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these lengths.
    ///
    /// # Errors
    ///
    /// As [`with_groups`](Self::with_groups).
    pub fn new(pipelines: &Pipelines, config: DualAdamConfig, lens: &[usize]) -> Result<Self, WebGpuError> {
        let specs: Vec<_> = lens.iter().map(|&len| TensorSpec::new(len)).collect();
        Self::with_groups(pipelines, &[config], &specs)
    }

    /// An optimizer with several parameter groups, with f32 masters, or with names for its tensors.
    ///
    /// Moments and masters of several tensors share a buffer of up to 256 MiB. A larger array has a
    /// buffer of its own, up to the device's `max_buffer_size`.
    ///
    /// # Errors
    ///
    /// - What [`Ledger::new`] refuses.
    /// - [`WebGpuError::Limit`] for masters on a device that cannot bind five buffers.
    /// - [`BindingProblem::ArraySize`](super::BindingProblem::ArraySize) for a tensor whose moments
    ///   fit in no buffer of the device.
    /// - [`WebGpuError::Wgpu`] if the device lacks the memory, or is lost.
    pub fn with_groups(
        pipelines: &Pipelines,
        groups: &[DualAdamConfig],
        specs: &[TensorSpec],
    ) -> Result<Self, WebGpuError> {
        Self::with_ledger(pipelines, Ledger::new(groups, specs)?)
    }

    /// The optimizer of a ledger, with moments and masters of 0.
    fn with_ledger(pipelines: &Pipelines, ledger: Ledger) -> Result<Self, WebGpuError> {
        let limits = pipelines.limits();
        if ledger.specs().any(|spec| spec.has_master) {
            limits.check_masters()?;
        }
        let mut plan = Plan::new(limits);
        let places = ledger.specs().enumerate().map(|(index, spec)| {
            let mut place = |role| plan.place(index, role, spec.len).map_err(|error| error.named(&ledger));
            Ok(Places {
                exp_avg: place(Role::ExpAvg)?,
                exp_avg_sq: place(Role::ExpAvgSq)?,
                master: if spec.has_master { Some(place(Role::Master)?) } else { None },
            })
        });
        let places = places.collect::<Result<_, WebGpuError>>()?;
        let arenas = plan.allocate(pipelines.device())?;
        let (table, pipelines) = (CoeffsTable::default(), pipelines.clone());
        Ok(Self { ledger, places, arenas, list: None, table, unset: vec![], pipelines })
    }

    /// Encodes one step of every tensor that has a gradient into `pass`; the others stay as they
    /// are.
    ///
    /// Nothing is submitted or waited for, and the step is counted now. The pass is left as
    /// [`TensorList::encode`] leaves it.
    ///
    /// `params` and `grads` are in the order of the optimizer's tensors, and of their lengths. Only
    /// the format of a parameter is looked at where there is no gradient. A tensor with masters
    /// takes 16-bit parameters; its masters are set from them, in the same pass, before its first
    /// update and rule from then on. Buffers are bound again where they are others than in the step
    /// before.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`] for another number of parameters or gradients than tensors.
    /// - What [`TensorList::new`] refuses of buffers.
    /// - [`TensorProblem::StepOverflow`](crate::TensorProblem::StepOverflow) for a tensor whose
    ///   step cannot grow further.
    ///
    /// Nothing is encoded then, and no step is counted.
    pub fn step<'a>(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        params: impl IntoIterator<Item = Binding<'a>>,
        grads: impl IntoIterator<Item = Option<Binding<'a>>>,
    ) -> Result<(), WebGpuError> {
        self.step_scaled(pass, params, grads, 1.0)
    }

    /// [`step`](Self::step) with every gradient first multiplied by `grad_multiplier`: a clip
    /// factor, the inverse of a loss scale, or their product, as [`Steering`](crate::Steering)
    /// forms it.
    ///
    /// # Errors
    ///
    /// - As [`step`](Self::step).
    /// - [`ConfigError::Value`](crate::ConfigError::Value) for a multiplier that
    ///   [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses.
    pub fn step_scaled<'a>(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        params: impl IntoIterator<Item = Binding<'a>>,
        grads: impl IntoIterator<Item = Option<Binding<'a>>>,
        grad_multiplier: f64,
    ) -> Result<(), WebGpuError> {
        let (mut param_bindings, mut grad_bindings) = (vec![], vec![]);
        self.ledger.collect("params", params, &mut param_bindings)?;
        self.ledger.collect("grads", grads, &mut grad_bindings)?;
        check_grad_multiplier(grad_multiplier)?;
        let encoded = self.encode(pass, &param_bindings, &grad_bindings, grad_multiplier);
        encoded.map_err(|error| error.named(&self.ledger))?;
        for (tensor, _) in grad_bindings.iter().enumerate().filter(|(_, grad)| grad.is_some()) {
            self.ledger.count(tensor);
        }
        Ok(())
    }

    /// Checks everything, brings the list up to date and encodes the step, without counting it.
    fn encode(
        &mut self,
        pass: &mut wgpu::ComputePass<'_>,
        params: &[Binding<'_>],
        grads: &[Option<Binding<'_>>],
        grad_multiplier: f64,
    ) -> Result<(), WebGpuError> {
        let Self { ledger, places, arenas, list, table, unset, pipelines } = self;
        table.clear();
        unset.clear();
        let mut tensors = Vec::with_capacity(ledger.len());
        for (index, (spec, places)) in ledger.specs().zip(places).enumerate() {
            let mut tensor = places.tensor(arenas, spec.len as u64, params[index], grads[index]);
            tensor.variant(index)?;
            if tensor.grad.is_some() {
                tensor.coeffs_index = ledger.coeffs_index(table, index, grad_multiplier)?;
                if ledger.sets_master(index) {
                    unset.push(index);
                }
            }
            tensors.push(tensor);
        }
        if table.coeffs().is_empty() {
            return Ok(());
        }
        let list = match list {
            Some(list) if list.has_formats_of(&tensors) => {
                list.update(&tensors)?;
                list
            }
            list => list.insert(TensorList::new(pipelines, &tensors)?),
        };
        list.encode_setting_masters(pass, table.coeffs(), unset)
    }

    /// Sets the learning rate of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// As [`set_config`](Self::set_config).
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), ArgumentError> {
        self.ledger.set_lr(group, lr)
    }

    /// Sets the whole config of a group, from its next step on.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    /// - [`ConfigError`](crate::ConfigError) if the config is not valid.
    pub fn set_config(&mut self, group: usize, config: DualAdamConfig) -> Result<(), ArgumentError> {
        self.ledger.set_config(group, config)
    }

    /// The config of a group.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such group.
    pub fn config(&self, group: usize) -> Result<DualAdamConfig, ListError> {
        self.ledger.config(group)
    }

    /// The updates that a tensor has had, of steps that were encoded.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn step_of(&self, tensor: usize) -> Result<u64, ListError> {
        self.ledger.step(tensor)
    }
}

impl Places {
    /// The tensor as a list has it, but for its coefficients.
    fn tensor<'a>(&self, arenas: &'a Arenas, len: u64, param: Binding<'a>, grad: Option<Binding<'a>>) -> Tensor<'a> {
        let (exp_avg, exp_avg_sq) = (arenas.binding(self.exp_avg), arenas.binding(self.exp_avg_sq));
        let master = self.master.map(|master| arenas.binding(master));
        Tensor { master, ..Tensor::new(len, param, grad, exp_avg, exp_avg_sq) }
    }

    /// The arrays that there are.
    fn all(&self) -> impl Iterator<Item = Place> {
        [Some(self.exp_avg), Some(self.exp_avg_sq), self.master].into_iter().flatten()
    }
}

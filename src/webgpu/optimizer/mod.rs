//! The optimizer that owns its moments and counts the steps of its tensors.

mod masters;
mod state;

use crate::ledger::{CoeffsTable, Ledger, TensorSpec};
use crate::rule::{DualAdamConfig, check_grad_multiplier};
use crate::tensor::{ArgumentError, ListError, Role};

use super::arenas::{Arenas, Place, Plan};
use super::error::WebGpuError;
use super::list::TensorList;
use super::pipelines::Pipelines;
use super::tensor::{Binding, Tensor};

/// DualAdam for the tensors of a model in wgpu buffers. It owns moments and masters, in buffers of
/// its own, counts the steps, and borrows parameters and gradients for each step.
///
/// The optimizer has the methods and the files of [`cpu::DualAdam`](crate::cpu::DualAdam). Its
/// results are within the [backend's bound](super#accuracy).
///
/// - A step is encoded into a pass of the caller and **counted when it is encoded**. Submit every
///   pass once, in the order of encoding.
/// - Each tensor counts its own updates. A step skips a tensor without a gradient: parameters,
///   moments and step stay as they are.
/// - The first update of a tensor with masters sets them from the parameters, on the device.
///
/// # Queues
///
/// A `queue` that a method takes must be that of the pipelines' device. The library cannot check
/// this. wgpu reports another device's queue to the error handler of that device, which panics
/// unless the program has set another handler. If the handler returns, writes are lost and reads
/// give zeros.
///
/// # Examples
///
/// ```
/// use dualadam::webgpu::{Binding, DualAdam, Pipelines};
/// use dualadam::{Dtype, DualAdamConfig};
///
/// # let (device, queue) = testkit::webgpu_or_return!();
/// # let w = testkit::webgpu_buffer!(device, [1.0_f32; 1000]);
/// # let w_grad = testkit::webgpu_buffer!(device, [0.5_f32; 1000]);
/// let pipelines = Pipelines::new(&device)?;
/// let mut optimizer = DualAdam::new(&pipelines, DualAdamConfig::default(), &[1000])?;
/// let (w, w_grad) = (Binding::new(&w, Dtype::F32), Binding::new(&w_grad, Dtype::F32));
/// for _ in 0..20 {
///     let mut encoder = device.create_command_encoder(&Default::default());
///     // The backward pass would be encoded here.
///     let mut pass = encoder.begin_compute_pass(&Default::default());
///     optimizer.step(&mut pass, [w], [Some(w_grad)])?;
///     drop(pass);
///     queue.submit([encoder.finish()]);
/// }
/// assert_eq!(optimizer.step_of(0)?, 20);
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug)]
pub struct DualAdam {
    ledger: Ledger,
    /// The places of each tensor's arrays.
    places: Vec<Places>,
    arenas: Arenas,
    /// The tensors as of the last step.
    list: Option<TensorList>,
    table: CoeffsTable,
    /// The tensors with masters that the current step sets.
    unset: Vec<usize>,
    pipelines: Pipelines,
}

/// The places of a tensor's arrays.
#[derive(Debug)]
struct Places {
    exp_avg: Place,
    exp_avg_sq: Place,
    master: Option<Place>,
}

impl DualAdam {
    /// An optimizer with one parameter group, for tensors of these lengths in elements.
    ///
    /// # Errors
    ///
    /// - The errors of [`with_groups`](Self::with_groups).
    pub fn new(pipelines: &Pipelines, config: DualAdamConfig, lens: &[usize]) -> Result<Self, WebGpuError> {
        let specs: Vec<_> = lens.iter().map(|&len| TensorSpec::new(len)).collect();
        Self::with_groups(pipelines, &[config], &specs)
    }

    /// An optimizer with several parameter groups, with f32 masters, or with names for its tensors.
    ///
    /// The moments take 8 bytes an element of device memory, and masters 4 more. Arrays share
    /// buffers of up to 256 MiB. A larger array has a buffer of its own, up to the device's
    /// `max_buffer_size`.
    ///
    /// # Errors
    ///
    /// - The errors of [`Ledger::new`].
    /// - [`WebGpuError::Limit`] for masters on a device that cannot bind five buffers.
    /// - [`BindingProblem::ArraySize`](super::BindingProblem::ArraySize) for a moment or master
    ///   that is larger than a buffer of the device can be.
    /// - [`WebGpuError::Wgpu`] if the device is out of memory or lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::webgpu::{DualAdam, Pipelines};
    /// use dualadam::{DualAdamConfig, TensorSpec};
    ///
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// let groups = [DualAdamConfig::adamw(0.1), DualAdamConfig::default()];
    /// let specs = [TensorSpec::new(1024).with_master().with_name("weight"), TensorSpec::new(32).in_group(1)];
    /// let optimizer = DualAdam::with_groups(&Pipelines::new(&device)?, &groups, &specs)?;
    /// # Ok::<(), dualadam::Error>(())
    /// ```
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

    /// Encodes one step of every tensor that has a gradient into `pass`, and counts it. The others
    /// stay as they are.
    ///
    /// `params` and `grads` have an entry for each tensor, in the optimizer's order and of the
    /// tensors' lengths. A tensor with masters takes 16-bit parameters. If a tensor has no
    /// gradient, only the format of its parameters is looked at. Tensors with other buffers than in
    /// the last step are bound again.
    ///
    /// Nothing is submitted or waited for. The pass is left as [`TensorList::encode`] leaves it.
    ///
    /// # Errors
    ///
    /// - [`ListError::Count`] if `params` or `grads` does not have an entry for each tensor.
    /// - The errors of [`TensorList::new`].
    /// - [`TensorProblem::StepOverflow`](crate::TensorProblem::StepOverflow) for a tensor with
    ///   2⁶⁴ - 1 updates.
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

    /// [`step`](Self::step) with gradients that are first multiplied by `grad_multiplier`: a clip
    /// factor, the inverse of a loss scale, or their product, as in [`Steering`](crate::Steering).
    ///
    /// # Errors
    ///
    /// - The errors of [`step`](Self::step).
    /// - [`ConfigError::Value`](crate::ConfigError::Value) for a multiplier that
    ///   [`coeffs_scaled`](DualAdamConfig::coeffs_scaled) refuses.
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::webgpu::{Binding, DualAdam, Pipelines};
    /// # use dualadam::{Dtype, DualAdamConfig};
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// # let buffers = [1.0_f32, 512.0].map(|value| testkit::webgpu_buffer!(device, [value; 4]));
    /// # let [w, scaled] = buffers.each_ref().map(|buffer| Binding::new(buffer, Dtype::F32));
    /// # let mut optimizer = DualAdam::new(&Pipelines::new(&device)?, DualAdamConfig::adam(), &[4])?;
    /// # let mut encoder = device.create_command_encoder(&Default::default());
    /// let mut pass = encoder.begin_compute_pass(&Default::default());
    /// // The gradients are those of 1024 times the loss.
    /// optimizer.step_scaled(&mut pass, [w], [Some(scaled)], 1.0 / 1024.0)?;
    /// # drop(pass);
    /// # queue.submit([encoder.finish()]);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
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

    /// Checks the arguments, updates the list and encodes the step, but does not count it.
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

    /// Sets the learning rate of a group for steps that are encoded later.
    ///
    /// # Errors
    ///
    /// - The errors of [`set_config`](Self::set_config).
    ///
    /// # Examples
    ///
    /// ```
    /// # use dualadam::DualAdamConfig;
    /// # use dualadam::webgpu::{DualAdam, Pipelines};
    /// # let (device, queue) = testkit::webgpu_or_return!();
    /// # let mut optimizer = DualAdam::new(&Pipelines::new(&device)?, DualAdamConfig::adam(), &[2])?;
    /// optimizer.set_lr(0, 3e-4)?;
    /// assert_eq!(optimizer.config(0)?.lr, 3e-4);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn set_lr(&mut self, group: usize, lr: f64) -> Result<(), ArgumentError> {
        self.ledger.set_lr(group, lr)
    }

    /// Sets the config of a group for steps that are encoded later.
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

    /// The number of updates of a tensor that were encoded.
    ///
    /// # Errors
    ///
    /// - [`ListError::Position`] if there is no such tensor.
    pub fn step_of(&self, tensor: usize) -> Result<u64, ListError> {
        self.ledger.step(tensor)
    }
}

impl Places {
    /// The tensor for a list, without the index of its coefficients.
    fn tensor<'a>(&self, arenas: &'a Arenas, len: u64, param: Binding<'a>, grad: Option<Binding<'a>>) -> Tensor<'a> {
        let (exp_avg, exp_avg_sq) = (arenas.binding(self.exp_avg), arenas.binding(self.exp_avg_sq));
        let master = self.master.map(|master| arenas.binding(master));
        Tensor { master, ..Tensor::new(len, param, grad, exp_avg, exp_avg_sq) }
    }

    /// The places of the arrays that exist.
    fn all(&self) -> impl Iterator<Item = Place> {
        [Some(self.exp_avg), Some(self.exp_avg_sq), self.master].into_iter().flatten()
    }
}

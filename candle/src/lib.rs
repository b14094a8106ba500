#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(test),
    warn(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::print_stdout,
        clippy::print_stderr,
        clippy::dbg_macro
    )
)]

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use std::collections::HashMap;
use std::ops::Range;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Layout, Result, Storage, Tensor, Var, bail};
use candle_nn::Optimizer;
use dualadam::{CoeffsTable, DualAdamConfig, Ledger, TensorProblem, TensorSpec};

/// The DualAdam optimizer over the variables of a model. It owns the moments, counts the steps, and
/// updates the variables in place.
///
/// In step `t` of a variable `θ`, with `m̂` and `v̂` the corrected moments and α the weight that
/// the schedule gives (Algorithm 1 of arXiv 2603.07122):
///
/// ```text
/// θ = θ - lr·(α·m̂·√v̂ + (1-α)·m̂/(√v̂ + ε))
/// ```
///
/// [`StepCoeffs`](dualadam::StepCoeffs) states the operations and their roundings.
///
/// - All variables are on one device: the CPU or, with the feature `cuda`, a CUDA device.
/// - They are contiguous, and f32, bf16 or f16. Gradients have their variable's type and shape. The
///   moments are f32.
/// - One call of the library steps all variables.
/// - A variable without a gradient is skipped: its moments and its step count stay as they are.
/// - Variables of integers are left out, as by candle's own optimizers.
///
/// # Locks
///
/// A step locks all variables that it writes until it returns; on a CUDA device, until its work is
/// enqueued. Meanwhile, another thread may use them only in operations that take one of them. An
/// operation that takes two of them can deadlock with the step.
///
/// # Example
///
/// ```
/// use candle_core::{Device, Var};
/// use candle_nn::Optimizer;
/// use dualadam::{DualAdamConfig, SwitchSchedule};
/// use dualadam_candle::DualAdam;
///
/// let x = Var::new(&[3.0_f32, -4.0], &Device::Cpu)?;
/// let config = DualAdamConfig::default().with_lr(0.1).with_schedule(SwitchSchedule::linear_until(20));
/// let mut optimizer = DualAdam::new(vec![x.clone()], config)?;
/// for _ in 0..200 {
///     optimizer.backward_step(&x.sqr()?.sum_all()?)?;
/// }
/// assert!(x.to_vec1::<f32>()?.iter().all(|x| x.abs() < 1e-2));
/// # Ok::<(), candle_core::Error>(())
/// ```
pub struct DualAdam {
    /// The next step sets this in the ledger: candle's setter cannot fail, and the ledger's can.
    lr: f64,
    ledger: Ledger,
    table: CoeffsTable,
    vars: Vec<Var>,
    /// The position of the variable that has each storage.
    owners: HashMap<usize, usize>,
    moments: Moments,
}

/// The moments of all variables, where the variables are.
enum Moments {
    Cpu(Vec<cpu::Moments>),
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Moments>),
}

/// The update of one variable in a step.
#[derive(Clone, Copy)]
struct Update<'a> {
    /// The variable's position.
    index: usize,
    var: &'a Var,
    grad: &'a Tensor,
    /// The index of the coefficients in the step's table.
    coeffs_index: usize,
}

impl Update<'_> {
    /// The variable's name in errors.
    fn name(&self) -> String {
        name(self.index, self.var)
    }

    /// The gradient's name in errors.
    fn grad_name(&self) -> String {
        grad_name(self.index, self.var)
    }
}

impl Optimizer for DualAdam {
    type Config = DualAdamConfig;

    /// Makes an optimizer for these variables, with moments of 0, before their first step.
    ///
    /// # Errors
    ///
    /// Errors about a variable name it by its position among the variables that are not of
    /// integers:
    ///
    /// - The config is not valid, as [`DualAdamConfig::validate`] says.
    /// - A variable has a type other than f32, bf16 and f16.
    /// - A variable is not contiguous.
    /// - A variable is on another device than the first one.
    /// - The device is not supported.
    /// - A variable shares memory with another.
    /// - The CUDA driver fails.
    fn new(vars: Vec<Var>, config: DualAdamConfig) -> Result<Self> {
        let vars: Vec<_> = vars.into_iter().filter(|var| !var.dtype().is_int()).collect();
        let spec = |(index, var): (usize, &Var)| TensorSpec::new(var.elem_count()).with_name(name(index, var));
        let specs: Vec<_> = vars.iter().enumerate().map(spec).collect();
        let ledger = Ledger::new(&[config], &specs).map_err(candle_core::Error::wrap)?;
        let device = vars.first().map_or(Device::Cpu, |var| var.device().clone());
        let mut owners = HashMap::new();
        for (index, var) in vars.iter().enumerate() {
            check_var(index, var, &device)?;
            if let Some(other) = owners.insert(storage_of(var), index) {
                bail!("{} must have memory of its own, and shares that of variable {other}", name(index, var));
            }
        }
        let moments = match &device {
            Device::Cpu => Moments::Cpu(vars.iter().map(|var| cpu::Moments::zeros(var.elem_count())).collect()),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => Moments::Cuda(Box::new(cuda::Moments::zeros(device, &vars)?)),
            other => {
                // The others are on the same device.
                let first = vars.first().map(|var| name(0, var)).unwrap_or_default();
                let places = if cfg!(feature = "cuda") { "the CPU or a CUDA device" } else { "the CPU" };
                bail!("{first} must be on {places}, and is on {:?}", other.location())
            }
        };
        Ok(Self { lr: config.lr, ledger, table: CoeffsTable::default(), vars, owners, moments })
    }

    /// Makes one step of every variable that has a gradient.
    ///
    /// # Errors
    ///
    /// Errors about a gradient name its variable. Nothing was written and no step was counted,
    /// unless the CUDA driver failed:
    ///
    /// - The learning rate is not valid.
    /// - A gradient has another type or shape than its variable, or is on another device.
    /// - A gradient is not contiguous.
    /// - A gradient has the memory of a variable.
    /// - The CUDA driver fails. Some variables may have been written then.
    fn step(&mut self, grads: &GradStore) -> Result<()> {
        let grads: Vec<_> = self.vars.iter().map(|var| grads.get(var)).collect();
        self.check_grads(&grads)?;
        self.ledger.set_lr(0, self.lr).map_err(candle_core::Error::wrap)?;
        self.table.clear();
        let updates = updates(&self.ledger, &mut self.table, &self.vars, &grads)?;
        match &mut self.moments {
            Moments::Cpu(moments) => cpu::step(&updates, moments, self.table.coeffs())?,
            #[cfg(feature = "cuda")]
            Moments::Cuda(moments) => moments.step(&updates, self.table.coeffs())?,
        }
        let stepped = grads.iter().enumerate().filter(|(_, grad)| grad.is_some());
        stepped.for_each(|(index, _)| self.ledger.count(index));
        Ok(())
    }

    /// The learning rate of the next step.
    fn learning_rate(&self) -> f64 {
        self.lr
    }

    /// Sets the learning rate for the next step and those after it. A step fails if the rate is not
    /// valid.
    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }
}

impl DualAdam {
    fn check_grads(&self, grads: &[Option<&Tensor>]) -> Result<()> {
        for (index, (var, grad)) in self.vars.iter().zip(grads).enumerate() {
            let Some(grad) = grad else { continue };
            let name = || grad_name(index, var);
            if (grad.dtype(), grad.shape()) != (var.dtype(), var.shape()) {
                bail!("{} must have its type and shape, and has {:?} {:?}", name(), grad.dtype(), grad.shape());
            }
            if !grad.device().same_device(var.device()) {
                let (own, place) = (var.device().location(), grad.device().location());
                bail!("{} must be on its device, {own:?}, and is on {place:?}", name());
            }
            elements(grad.layout(), name)?;
            if let Some(other) = self.owners.get(&storage_of(grad)) {
                bail!("{} must have memory of its own, and has that of variable {other}", name());
            }
        }
        Ok(())
    }
}

/// The update of each variable that has a gradient. Its coefficients go into the table.
fn updates<'a>(
    ledger: &Ledger,
    table: &mut CoeffsTable,
    vars: &'a [Var],
    grads: &[Option<&'a Tensor>],
) -> Result<Vec<Option<Update<'a>>>> {
    let update = |(index, (var, &grad)): (usize, (&'a Var, &Option<&'a Tensor>))| {
        let Some(grad) = grad else { return Ok(None) };
        let coeffs_index = ledger.coeffs_index(table, index, 1.0).map_err(candle_core::Error::wrap)?;
        Ok(Some(Update { index, var, grad, coeffs_index }))
    };
    vars.iter().zip(grads).enumerate().map(update).collect()
}

fn check_var(index: usize, var: &Var, device: &Device) -> Result<()> {
    if !matches!(var.dtype(), DType::F32 | DType::BF16 | DType::F16) {
        return wrong_dtype(name(index, var), var.dtype());
    }
    elements(var.layout(), || name(index, var))?;
    if !var.device().same_device(device) {
        let (own, first) = (var.device().location(), device.location());
        bail!("{} must be on the first variable's device, {first:?}, and is on {own:?}", name(index, var));
    }
    Ok(())
}

/// A variable's name in errors: its position among the variables that are not of integers, its type
/// and its shape.
fn name(index: usize, var: &Var) -> String {
    format!("variable {index} ({:?} {:?})", var.dtype(), var.shape())
}

fn grad_name(index: usize, var: &Var) -> String {
    format!("the gradient of {}", name(index, var))
}

fn wrong_dtype<T>(what: String, dtype: DType) -> Result<T> {
    bail!("{what} must be f32, bf16 or f16, and is {dtype:?}")
}

/// An error of the library's step, with the variable that it is about. `update` finds the variable
/// by the position among the call's tensors.
fn named<'a>(error: impl Into<dualadam::Error>, update: impl Fn(usize) -> Option<Update<'a>>) -> candle_core::Error {
    let mut error = error.into();
    if let dualadam::Error::Tensor(error) = &mut error {
        if let TensorProblem::Overlap { other_tensor, .. } = &mut error.problem
            && let Some(other) = update(*other_tensor)
        {
            *other_tensor = other.index;
        }
        if let Some(update) = update(error.tensor) {
            (error.tensor, error.name) = (update.index, Some(update.name().into()));
        }
    }
    candle_core::Error::wrap(error)
}

/// The address of a tensor's storage object, which tensors over the same memory share.
fn storage_of(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

/// The range of a tensor's elements in its storage. Fails if they are not contiguous, with `name`
/// as the tensor's name.
fn elements(layout: &Layout, name: impl FnOnce() -> String) -> Result<Range<usize>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("{} must be contiguous, and has strides {:?}", name(), layout.stride());
    };
    Ok(start..end)
}

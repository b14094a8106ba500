#![doc = include_str!("../README.md")]

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use std::collections::HashMap;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Layout, Result, Storage, Tensor, Var, bail};
use candle_nn::Optimizer;
use dualadam::{CoeffsTable, DualAdamConfig, Ledger, TensorSpec};

/// DualAdam over a model's variables: owns the moments, counts the steps, and writes the variables
/// where they are.
///
/// All variables are on one device, the CPU or a CUDA device, and are f32, bf16 or f16; their
/// moments are f32. A step is one call of the library for all of them. One without a gradient is
/// skipped, moments, step and all. Variables of integers are left out, as by candle's own
/// optimizers.
///
/// A step locks all variables that it writes until it has returned, or until it is enqueued on a
/// CUDA device. Another thread may compute with them meanwhile only in operations that take one of
/// them at a time: two that wait for each other's would wait forever.
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
    /// What the next step has to set in the ledger; candle asks for a setter that cannot fail.
    lr: f64,
    ledger: Ledger,
    table: CoeffsTable,
    vars: Vec<Var>,
    /// The variable that each storage is of.
    owners: HashMap<usize, usize>,
    moments: Moments,
}

/// The moments of all variables, where the variables are.
enum Moments {
    Cpu(Vec<cpu::Moments>),
    #[cfg(feature = "cuda")]
    Cuda(Box<cuda::Moments>),
}

/// What a step does to one variable.
#[derive(Clone, Copy)]
struct Update<'a> {
    var: &'a Var,
    grad: &'a Tensor,
    /// The index of the coefficients in the step's table.
    coeffs_index: usize,
}

impl Optimizer for DualAdam {
    type Config = DualAdamConfig;

    /// An optimizer for these variables, at their first step.
    ///
    /// # Errors
    ///
    /// For a config that is not valid; and, naming the variable, for a type other than f32, bf16
    /// and f16, a layout that is not contiguous, a device other than the CPU and CUDA or than the
    /// first variable's, and memory that another variable has already.
    fn new(vars: Vec<Var>, config: DualAdamConfig) -> Result<Self> {
        let vars: Vec<_> = vars.into_iter().filter(|var| !var.dtype().is_int()).collect();
        let specs: Vec<_> = vars.iter().map(|var| TensorSpec::new(var.elem_count())).collect();
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
            other => bail!("the variables must be on the CPU or a CUDA device, and are on {:?}", other.location()),
        };
        Ok(Self { lr: config.lr, ledger, table: CoeffsTable::default(), vars, owners, moments })
    }

    /// One step of every variable that has a gradient.
    ///
    /// # Errors
    ///
    /// For a learning rate that is not valid; and, naming the variable, for a gradient of another
    /// type, shape or device, one that is not contiguous, and one in a variable's memory. Nothing
    /// is written then, and no step is counted. For what the CUDA driver reports: part of the
    /// variables may have been written then.
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

    fn learning_rate(&self) -> f64 {
        self.lr
    }

    /// Sets the learning rate from the next step on, which fails if it is not valid.
    fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }
}

impl DualAdam {
    fn check_grads(&self, grads: &[Option<&Tensor>]) -> Result<()> {
        for (index, (var, grads)) in self.vars.iter().zip(grads).enumerate() {
            let Some(grads) = grads else { continue };
            if (grads.dtype(), grads.shape()) != (var.dtype(), var.shape()) {
                let (name, dtype, shape) = (name(index, var), grads.dtype(), grads.shape());
                bail!("the gradient of {name} must have its type and shape, and has {dtype:?} {shape:?}");
            }
            if !grads.device().same_device(var.device()) {
                let (name, place) = (name(index, var), grads.device().location());
                bail!("the gradient of {name} must be on its device, and is on {place:?}");
            }
            if !grads.is_contiguous() {
                let (name, strides) = (name(index, var), grads.stride());
                bail!("the gradient of {name} must be contiguous, and has strides {strides:?}");
            }
            if let Some(other) = self.owners.get(&storage_of(grads)) {
                bail!(
                    "the gradient of {} must have memory of its own, and has that of variable {other}",
                    name(index, var)
                );
            }
        }
        Ok(())
    }
}

/// What is to be done to each variable, with its coefficients in the table.
fn updates<'a>(
    ledger: &Ledger,
    table: &mut CoeffsTable,
    vars: &'a [Var],
    grads: &[Option<&'a Tensor>],
) -> Result<Vec<Option<Update<'a>>>> {
    let update = |(index, (var, &grad)): (usize, (&'a Var, &Option<&'a Tensor>))| {
        let Some(grad) = grad else { return Ok(None) };
        let coeffs_index = ledger.coeffs_index(table, index, 1.0).map_err(candle_core::Error::wrap)?;
        Ok(Some(Update { var, grad, coeffs_index }))
    };
    vars.iter().zip(grads).enumerate().map(update).collect()
}

fn check_var(index: usize, var: &Var, device: &Device) -> Result<()> {
    if !matches!(var.dtype(), DType::F32 | DType::BF16 | DType::F16) {
        bail!("{} must be f32, bf16 or f16", name(index, var));
    }
    if !var.is_contiguous() {
        bail!("{} must be contiguous, and has strides {:?}", name(index, var), var.stride());
    }
    if !var.device().same_device(device) {
        let (own, first) = (var.device().location(), device.location());
        bail!("{} must be on the first variable's device, {first:?}, and is on {own:?}", name(index, var));
    }
    Ok(())
}

/// What an error calls a variable, which has no name: its position among those that are not
/// integers, type and shape.
fn name(index: usize, var: &Var) -> String {
    format!("variable {index} ({:?} {:?})", var.dtype(), var.shape())
}

/// The address of a tensor's storage on the host, which tensors over the same memory share.
fn storage_of(tensor: &Tensor) -> usize {
    let (storage, _) = tensor.storage_and_layout();
    std::ptr::from_ref::<Storage>(&storage).addr()
}

/// The elements of the storage that a tensor has, which must be contiguous.
fn elements(layout: &Layout) -> Result<std::ops::Range<usize>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("a layout must be contiguous, and is {layout:?}");
    };
    Ok(start..end)
}

//! Steps of variables on the CPU.
//!
//! candle lends a tensor's memory for writing only inside an operation: here [`InplaceOp2`], with
//! the gradient as the other operand. So the operation of each variable runs inside the operation
//! of the variable before it. The innermost operation has borrowed the memory of all variables, and
//! steps them. This needs no unsafe code.

use std::cell::Cell;
use std::vec;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};
use dualadam::StepCoeffs;
use dualadam::cpu::{Buffer, BufferMut, Tensor, step_list};

use crate::{Update, elements, named, wrong_dtype};

/// The moments of one variable.
pub(crate) struct Moments {
    exp_avg: Vec<f32>,
    exp_avg_sq: Vec<f32>,
}

impl Moments {
    pub(crate) fn zeros(len: usize) -> Self {
        Self { exp_avg: vec![0.0; len], exp_avg_sq: vec![0.0; len] }
    }
}

/// What the operations of a step share.
#[derive(Clone, Copy)]
struct Step<'a> {
    updates: &'a [Option<Update<'a>>],
    coeffs: &'a [StepCoeffs],
}

/// Steps the variables that have an update. The caller has checked them.
pub(crate) fn step(updates: &[Option<Update<'_>>], moments: &mut [Moments], coeffs: &[StepCoeffs]) -> Result<()> {
    let left = updates.iter().zip(moments).filter_map(|(&update, moments)| Some((update?, moments)));
    let left: Vec<_> = left.collect();
    let tensors = Vec::with_capacity(left.len());
    borrow_next(Step { updates, coeffs }, left.into_iter(), tensors)
}

type Updates<'a> = vec::IntoIter<(Update<'a>, &'a mut Moments)>;

/// Borrows the memory of the next variable, or steps all if none is left.
fn borrow_next<'a>(step: Step<'a>, mut left: Updates<'a>, mut tensors: Vec<Tensor<'a>>) -> Result<()> {
    let Some((update, moments)) = left.next() else {
        let stepped = |tensor| step.updates.iter().flatten().nth(tensor).copied();
        return step_list(&mut tensors, step.coeffs).map_err(|error| named(error, stepped));
    };
    let borrow = Borrow { update, rest: Cell::new(Some(Rest { step, moments, left, tensors })) };
    update.var.inplace_op2(update.grad, &borrow)
}

/// The operation that borrows one variable, and runs the operation of the next one.
struct Borrow<'a> {
    update: Update<'a>,
    /// Taken by the operation, which runs once.
    rest: Cell<Option<Rest<'a>>>,
}

struct Rest<'a> {
    step: Step<'a>,
    moments: &'a mut Moments,
    left: Updates<'a>,
    tensors: Vec<Tensor<'a>>,
}

impl InplaceOp2 for Borrow<'_> {
    fn name(&self) -> &'static str {
        "dualadam"
    }

    fn cpu_fwd(&self, param: &mut CpuStorage, param_l: &Layout, grad: &CpuStorage, grad_l: &Layout) -> Result<()> {
        let update = &self.update;
        let Some(Rest { step, moments, left, mut tensors }) = self.rest.take() else {
            bail!("{} must be stepped once by a call, and is stepped again", update.name());
        };
        let (param, grad) = (param_mut(param, param_l, update)?, grad_of(grad, grad_l, update)?);
        let tensor = Tensor::new(param, grad, &mut moments.exp_avg, &mut moments.exp_avg_sq);
        tensors.push(tensor.with_coeffs_index(update.coeffs_index));
        borrow_next(step, left, tensors)
    }
}

fn param_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout, update: &Update<'_>) -> Result<BufferMut<'a>> {
    let elements = elements(layout, || update.name())?;
    Ok(match storage {
        CpuStorage::F32(buffer) => (&mut buffer[elements]).into(),
        CpuStorage::BF16(buffer) => (&mut buffer[elements]).into(),
        CpuStorage::F16(buffer) => (&mut buffer[elements]).into(),
        other => return wrong_dtype(update.name(), other.dtype()),
    })
}

fn grad_of<'a>(storage: &'a CpuStorage, layout: &Layout, update: &Update<'_>) -> Result<Buffer<'a>> {
    let elements = elements(layout, || update.grad_name())?;
    Ok(match storage {
        CpuStorage::F32(buffer) => (&buffer[elements]).into(),
        CpuStorage::BF16(buffer) => (&buffer[elements]).into(),
        CpuStorage::F16(buffer) => (&buffer[elements]).into(),
        other => return wrong_dtype(update.grad_name(), other.dtype()),
    })
}

//! Steps of variables on the CPU.
//!
//! candle lends a tensor's memory for writing only inside an operation, [`InplaceOp2`] with the
//! gradient as the other operand. So the operation of each variable runs inside that of the one
//! before, and the innermost has them all, each locked by candle: there is nothing unsafe in it.

use std::cell::Cell;
use std::ops::Range;
use std::vec;

use candle_core::{CpuStorage, InplaceOp2, Layout, Result, bail};
use dualadam::StepCoeffs;
use dualadam::cpu::{Buffer, BufferMut, Tensor, step_list};

use crate::{Update, elements};

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

/// One step of the variables that have an update, which have been checked.
pub(crate) fn step(updates: &[Option<Update<'_>>], moments: &mut [Moments], coeffs: &[StepCoeffs]) -> Result<()> {
    let updates = updates.iter().zip(moments).filter_map(|(&update, moments)| Some((update?, moments)));
    let updates: Vec<_> = updates.collect();
    let tensors = Vec::with_capacity(updates.len());
    borrow_next(updates.into_iter(), tensors, coeffs)
}

type Updates<'a> = vec::IntoIter<(Update<'a>, &'a mut Moments)>;

/// Borrows the memory of the next variable, or steps all where there is none left.
fn borrow_next<'a>(mut left: Updates<'a>, mut tensors: Vec<Tensor<'a>>, coeffs: &'a [StepCoeffs]) -> Result<()> {
    let Some((update, moments)) = left.next() else {
        return step_list(&mut tensors, coeffs).map_err(candle_core::Error::wrap);
    };
    let borrow =
        Borrow { coeffs_index: update.coeffs_index, rest: Cell::new(Some(Rest { moments, left, tensors, coeffs })) };
    update.var.inplace_op2(update.grad, &borrow)
}

/// The operation that borrows one variable, and then the next ones.
struct Borrow<'a> {
    coeffs_index: usize,
    /// Taken when the operation runs, which is once.
    rest: Cell<Option<Rest<'a>>>,
}

struct Rest<'a> {
    moments: &'a mut Moments,
    left: Updates<'a>,
    tensors: Vec<Tensor<'a>>,
    coeffs: &'a [StepCoeffs],
}

impl InplaceOp2 for Borrow<'_> {
    fn name(&self) -> &'static str {
        "dualadam"
    }

    fn cpu_fwd(&self, param: &mut CpuStorage, param_l: &Layout, grad: &CpuStorage, grad_l: &Layout) -> Result<()> {
        let Some(Rest { moments, left, mut tensors, coeffs }) = self.rest.take() else {
            bail!("the operation {} runs once", self.name());
        };
        let (param, grad) = (param_mut(param, elements(param_l)?)?, grad_of(grad, elements(grad_l)?)?);
        let tensor = Tensor::new(param, grad, &mut moments.exp_avg, &mut moments.exp_avg_sq);
        tensors.push(tensor.with_coeffs_index(self.coeffs_index));
        borrow_next(left, tensors, coeffs)
    }
}

fn param_mut(storage: &mut CpuStorage, elements: Range<usize>) -> Result<BufferMut<'_>> {
    Ok(match storage {
        CpuStorage::F32(buffer) => (&mut buffer[elements]).into(),
        CpuStorage::BF16(buffer) => (&mut buffer[elements]).into(),
        CpuStorage::F16(buffer) => (&mut buffer[elements]).into(),
        _ => bail!("parameters must be f32, bf16 or f16"),
    })
}

fn grad_of(storage: &CpuStorage, elements: Range<usize>) -> Result<Buffer<'_>> {
    Ok(match storage {
        CpuStorage::F32(buffer) => (&buffer[elements]).into(),
        CpuStorage::BF16(buffer) => (&buffer[elements]).into(),
        CpuStorage::F16(buffer) => (&buffer[elements]).into(),
        _ => bail!("gradients must be f32, bf16 or f16"),
    })
}

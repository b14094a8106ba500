//! The part that both optimizers share: the ledger, the moments, and the list of tensors.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::CudaStream;

use crate::checkpoint::{Arrays, State, check_moments};
use crate::cuda::buffer::{Buffer, BufferMut};
use crate::cuda::driver::{Current, Held};
use crate::cuda::error::CudaError;
use crate::cuda::event::LastUse;
use crate::cuda::kernels::Kernels;
use crate::cuda::list::TensorList;
use crate::cuda::stream::{check_context, raw, refuse_capture};
use crate::ledger::Ledger;
use crate::tensor::{RawBuffer, RawTensor, TensorError};

use super::moments::Moments;
use super::views::Views;

/// The handle of the per-thread default stream, `CU_STREAM_PER_THREAD`.
const PER_THREAD: usize = 2;

/// An optimizer without the counting of its steps. All of its work is on one stream.
#[derive(Debug)]
pub(super) struct Shared {
    /// The tensors as of the last step. The first field, so that it is dropped before the memory
    /// that it names.
    pub(super) list: Option<TensorList>,
    /// The tensors as of the current step.
    pub(super) next: Vec<RawTensor>,
    pub(super) ledger: Ledger,
    pub(super) moments: Moments,
    pub(super) kernels: Kernels,
    pub(super) stream: Held<CudaStream>,
    /// The last use of all memory above.
    pub(super) last_use: Arc<LastUse>,
}

impl Shared {
    /// A new optimizer, with moments and masters of 0.
    pub(super) fn new(kernels: &Kernels, stream: &Arc<CudaStream>, ledger: Ledger) -> Result<Self, CudaError> {
        let stream = Held::new(stream.clone());
        check_context(kernels.context(), &stream)?;
        if stream.cu_stream().addr() == PER_THREAD {
            return Err(CudaError::PerThreadStream);
        }
        let last_use = {
            let _current = kernels.enter()?;
            LastUse::new(kernels.context())?
        };
        let moments = Moments::new(kernels.pool(), &last_use, ledger.specs())?;
        Ok(Self { list: None, next: vec![], ledger, moments, kernels: kernels.clone(), stream, last_use })
    }

    /// An optimizer that continues from a state.
    pub(super) fn from_state(kernels: &Kernels, stream: &Arc<CudaStream>, state: &State) -> Result<Self, CudaError> {
        state.validate()?;
        let mut made = Self::new(kernels, stream, state.ledger.clone())?;
        made.moments.fill(&state.arrays)?;
        Ok(made)
    }

    pub(super) fn raw_stream(&self) -> *mut c_void {
        raw(&self.stream)
    }

    /// Checks the buffers that a step was given.
    pub(super) fn views<'a>(
        &self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
    ) -> Result<Views<'a>, CudaError> {
        Views::new(params, grads, &self.ledger, &self.kernels, &self.stream)
    }

    /// Fills `next` for the current step, except for the `coeffs_index` of tensors with a gradient.
    pub(super) fn describe(&mut self, params: &[RawBuffer], grads: &[Option<RawBuffer>]) -> Result<(), TensorError> {
        if self.next.is_empty() {
            let skipped = |(index, param): (usize, &RawBuffer)| self.moments.describe_skipped(index, param.dtype);
            self.next = params.iter().enumerate().map(skipped).collect();
        }
        for (index, (next, grad)) in self.next.iter_mut().zip(grads).enumerate() {
            match *grad {
                Some(grad) => {
                    let described = self.moments.describe(index, params[index], grad);
                    *next = described.map_err(|error| self.ledger.named(error))?;
                }
                // A skipped tensor keeps the formats that it has in the list, so that the list is
                // not rebuilt. `next` may have formats of a step that was refused.
                None => {
                    *next = self.list.as_ref().map_or(*next, |list| list.checked().tensors()[index]);
                    (next.grad.address, next.coeffs_index) = (0, 0);
                }
            }
        }
        Ok(())
    }

    /// Updates the list to the tensors in `next`, or builds a new one if formats have changed.
    pub(super) fn update_list(&mut self) -> Result<(), CudaError> {
        match &mut self.list {
            Some(list) if list.checked().has_formats_of(&self.next) => {
                list.update(&self.next).map_err(|error| CudaError::from(error).named(&self.ledger))
            }
            list => {
                let _current = self.kernels.enter()?;
                let what = "an optimizer's first step, or one with new formats,";
                // SAFETY: the stream is live as long as the optimizer, and its context is current.
                unsafe { refuse_capture(raw(&self.stream), what) }?;
                let made = TensorList::with_last_use(&self.kernels, &self.next, &self.last_use);
                *list = Some(made.map_err(|error| error.named(&self.ledger))?);
                Ok(())
            }
        }
    }

    /// Makes the context current for a read of the state. Fails if the stream is being captured.
    pub(super) fn begin_read(&self) -> Result<Current, CudaError> {
        let current = self.kernels.enter()?;
        // SAFETY: the stream is live as long as the optimizer, and its context is current.
        unsafe { refuse_capture(self.raw_stream(), "reading the state") }?;
        Ok(current)
    }

    /// Reads the moments and masters, after [`begin_read`](Self::begin_read).
    pub(super) fn read_arrays(&self, _current: &Current) -> Result<Vec<Arrays>, CudaError> {
        // SAFETY: the stream is live as long as the optimizer and has all of its work. Its context
        // is current as long as `_current` is borrowed.
        unsafe { self.moments.read(self.raw_stream()) }
    }

    /// Replaces a tensor's moments, but not its step.
    pub(super) fn set_moments(&self, tensor: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) -> Result<(), CudaError> {
        let len = self.ledger.spec(tensor)?.len;
        check_moments(tensor, len, exp_avg, exp_avg_sq).map_err(|error| self.ledger.named(error))?;
        let _current = self.kernels.enter()?;
        let stream = self.raw_stream();
        // SAFETY: the stream is live as long as the optimizer and has all of its work, and its
        // context is current. The moments have the tensor's length (checked above).
        unsafe {
            refuse_capture(stream, "new moments")?;
            let written = self.moments.write(tensor, exp_avg, exp_avg_sq, stream);
            self.last_use.note(stream);
            written
        }
    }
}

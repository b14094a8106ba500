//! What both optimizers have: the ledger, the moments, and the list that steps the tensors.

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

/// What an optimizer has beside the counting of its steps. All its work is on one stream.
#[derive(Debug)]
pub(super) struct Shared {
    /// The tensors as their last step had them. Dropped before the memory that it names.
    pub(super) list: Option<TensorList>,
    /// The same tensors as the step under way has them.
    pub(super) next: Vec<RawTensor>,
    pub(super) ledger: Ledger,
    moments: Moments,
    pub(super) kernels: Kernels,
    pub(super) stream: Held<CudaStream>,
    /// That of all the memory above.
    pub(super) last_use: Arc<LastUse>,
}

impl Shared {
    /// Moments and masters of 0.
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

    /// What goes on from a state.
    pub(super) fn from_state(kernels: &Kernels, stream: &Arc<CudaStream>, state: &State) -> Result<Self, CudaError> {
        state.validate()?;
        let mut made = Self::new(kernels, stream, state.ledger.clone())?;
        made.moments.fill(&state.arrays)?;
        Ok(made)
    }

    pub(super) fn raw_stream(&self) -> *mut c_void {
        raw(&self.stream)
    }

    /// Checks what a step was given.
    pub(super) fn views<'a>(
        &self,
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
    ) -> Result<Views<'a>, CudaError> {
        Views::new(params, grads, &self.ledger, &self.kernels, &self.stream)
    }

    /// Describes the tensors as the step under way has them, except for the `coeffs_index` of those
    /// that have a gradient.
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
                // What is skipped keeps the list's formats, so that the list need not be rebuilt.
                // `next` may have those of a step that was refused.
                None => {
                    *next = self.list.as_ref().map_or(*next, |list| list.checked().tensors()[index]);
                    (next.grad.address, next.coeffs_index) = (0, 0);
                }
            }
        }
        Ok(())
    }

    /// Makes the list that of the tensors as they are described.
    pub(super) fn update_list(&mut self) -> Result<(), CudaError> {
        match &mut self.list {
            Some(list) if list.checked().has_formats_of(&self.next) => {
                list.update(&self.next).map_err(|error| CudaError::from(error).named(&self.ledger))
            }
            list => {
                let _current = self.kernels.enter()?;
                let what = "an optimizer's first step, or one with new formats,";
                // SAFETY: the stream lives as long as the optimizer, and its context is current.
                unsafe { refuse_capture(raw(&self.stream), what) }?;
                let made = TensorList::with_last_use(&self.kernels, &self.next, &self.last_use);
                *list = Some(made.map_err(|error| error.named(&self.ledger))?);
                Ok(())
            }
        }
    }

    /// Makes the context current for reading the state. Fails if the stream is being captured.
    pub(super) fn begin_read(&self) -> Result<Current, CudaError> {
        let current = self.kernels.enter()?;
        // SAFETY: the stream lives as long as the optimizer, and its context is current.
        unsafe { refuse_capture(self.raw_stream(), "reading the state") }?;
        Ok(current)
    }

    /// Reads the moments and masters, after [`begin_read`](Self::begin_read).
    pub(super) fn read_arrays(&self, _current: &Current) -> Result<Vec<Arrays>, CudaError> {
        // SAFETY: the stream lives as long as the optimizer, whose work is all there. Its context
        // is current for as long as `_current` lives.
        unsafe { self.moments.read(self.raw_stream()) }
    }

    /// Takes over a tensor's moments, but not its step.
    pub(super) fn set_moments(&self, tensor: usize, exp_avg: &[f32], exp_avg_sq: &[f32]) -> Result<(), CudaError> {
        let len = self.ledger.spec(tensor)?.len;
        check_moments(tensor, len, exp_avg, exp_avg_sq).map_err(|error| self.ledger.named(error))?;
        let _current = self.kernels.enter()?;
        let stream = self.raw_stream();
        // SAFETY: the stream lives as long as the optimizer, whose work is all there, and its
        // context is current. The moments have the tensor's length.
        unsafe {
            refuse_capture(stream, "new moments")?;
            let written = self.moments.write(tensor, exp_avg, exp_avg_sq, stream);
            self.last_use.note(stream);
            written
        }
    }
}

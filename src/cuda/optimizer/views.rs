//! The parameters and gradients that a step is given, as cudarc's views.

use cudarc::driver::{CudaStream, SyncOnDrop};

use crate::cuda::buffer::{Buffer, BufferMut};
use crate::cuda::driver;
use crate::cuda::error::{CudaArgument, CudaError};
use crate::cuda::kernels::Kernels;
use crate::cuda::stream::check_buffer;
use crate::ledger::Ledger;
use crate::tensor::{RawBuffer, Role};

/// The parameters and gradients of a step, one of each for a tensor.
#[derive(Debug)]
pub(super) struct Views<'a> {
    params: Vec<BufferMut<'a>>,
    grads: Vec<Option<Buffer<'a>>>,
}

/// The same by address, for work on one stream. Drop it after the work is enqueued: cudarc then
/// records what later uses of the buffers must wait for.
pub(super) struct Addresses<'a> {
    pub(super) params: Vec<RawBuffer>,
    pub(super) grads: Vec<Option<RawBuffer>>,
    _guards: Vec<SyncOnDrop<'a>>,
}

impl<'a> Views<'a> {
    /// Fails unless numbers and lengths are those of the ledger's tensors, and cudarc orders uses
    /// of the buffers with the work of `stream`.
    pub(super) fn new(
        params: impl IntoIterator<Item = BufferMut<'a>>,
        grads: impl IntoIterator<Item = Option<Buffer<'a>>>,
        ledger: &Ledger,
        kernels: &Kernels,
        stream: &CudaStream,
    ) -> Result<Self, CudaError> {
        let mut views = Self { params: vec![], grads: vec![] };
        ledger.collect("params", params, &mut views.params)?;
        ledger.collect("grads", grads, &mut views.grads)?;
        for (tensor, (param, grad)) in views.params.iter().zip(&views.grads).enumerate() {
            let check = |buffer, len, own: &CudaStream| {
                ledger.check_len(tensor, buffer, len)?;
                let checked = check_buffer(kernels.context(), stream, own, CudaArgument::of_buffer(tensor, buffer));
                checked.map_err(|error| error.named(ledger))
            };
            check(Role::Param, param.len(), param.own_stream())?;
            if let Some(grad) = grad {
                check(Role::Grad, grad.len(), grad.own_stream())?;
            }
        }
        Ok(views)
    }

    /// The addresses for work on `stream`, ordered after earlier uses of the buffers. The kernels'
    /// context must be current.
    pub(super) fn addresses<'s>(&'s mut self, stream: &'s CudaStream) -> Result<Addresses<'s>, CudaError> {
        let count = self.params.len();
        let (mut params, mut grads) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut guards = Vec::with_capacity(2 * count);
        for (param, grad) in self.params.iter_mut().zip(&self.grads) {
            let Some(grad) = grad else {
                // The step skips the tensor, so there is nothing to order.
                params.push(RawBuffer::new(0, param.dtype()));
                grads.push(None);
                continue;
            };
            let (param, guard) = param.raw(stream);
            guards.push(guard);
            let (grad, guard) = grad.raw(stream);
            guards.push(guard);
            params.push(param);
            grads.push(Some(grad));
        }
        // cudarc returns no error from the calls above if it cannot order the work; it keeps the
        // error.
        stream.context().check_err().map_err(|error| driver::failed("cuStreamWaitEvent", error))?;
        Ok(Addresses { params, grads, _guards: guards })
    }
}

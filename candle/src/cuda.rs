//! Steps of variables on a CUDA device, in its context and on its stream.
//!
//! The memory is borrowed as on the CPU, each variable's operation inside that of the one before,
//! so that the whole list is locked while its work is enqueued. What goes to the library is
//! addresses and candle's stream, as plain numbers and a pointer: candle's cudarc may be another
//! version than the library's.

use std::cell::Cell;
use std::vec;

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, DType, InplaceOp2, Layout, Result, Var, bail};
use dualadam::cuda::{Kernels, TensorList};
use dualadam::{Dtype, RawBuffer, RawTensor, StepCoeffs};

use crate::{Update, elements, name, named, wrong_dtype};

/// The moments of all variables, and the list of them that the device reads.
pub(crate) struct Moments {
    device: CudaDevice,
    kernels: Kernels,
    /// `exp_avg` and `exp_avg_sq` of each variable, in memory of candle's stream.
    slices: Vec<[CudaSlice<f32>; 2]>,
    /// What the list was last told; a gradient at address 0 is one that is missing.
    tensors: Vec<RawTensor>,
    /// Made by the first step, which knows the addresses.
    list: Option<TensorList>,
}

impl Moments {
    pub(crate) fn zeros(device: &CudaDevice, vars: &[Var]) -> Result<Self> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        // SAFETY: the context that is current now is candle's, the primary one of its device, which
        // the kernels retain.
        let kernels = unsafe { Kernels::in_current_context() }.map_err(candle_core::Error::wrap)?;
        let mut moments = Self { device: device.clone(), kernels, slices: Vec::new(), tensors: Vec::new(), list: None };
        for (index, var) in vars.iter().enumerate() {
            let Some(dtype) = dtype_of(var.dtype()) else { return wrong_dtype(name(index, var), var.dtype()) };
            let slices = [device.alloc_zeros::<f32>(var.elem_count())?, device.alloc_zeros::<f32>(var.elem_count())?];
            let absent = RawBuffer::new(0, dtype);
            // Work on the stream alone uses the moments, so that cudarc has nothing to order.
            let [exp_avg, exp_avg_sq] = slices.each_ref().map(|slice| RawBuffer::f32(slice.device_ptr(&stream).0));
            let len = var.elem_count() as u64;
            moments.tensors.push(RawTensor::new(len, absent, absent, exp_avg, exp_avg_sq));
            moments.slices.push(slices);
        }
        Ok(moments)
    }

    /// One step of the variables that have an update, which have been checked, enqueued on candle's
    /// stream.
    pub(crate) fn step(&mut self, updates: &[Option<Update<'_>>], coeffs: &[StepCoeffs]) -> Result<()> {
        let left: Vec<_> = updates.iter().copied().flatten().collect();
        if left.is_empty() {
            return Ok(());
        }
        for tensor in &mut self.tensors {
            // The coefficients too, since those that it had may not be there now.
            (tensor.grad.address, tensor.coeffs_index) = (0, 0);
        }
        let stream = self.device.cuda_stream();
        let uses = Vec::with_capacity(2 * left.len());
        borrow_next(Step { updates, coeffs, stream: &stream }, self, left.into_iter(), uses)
    }

    /// Enqueues the step of the tensors, whose memory is locked.
    fn enqueue(&mut self, Step { updates, coeffs, stream }: Step<'_>) -> Result<()> {
        // What cudarc could not order is only noted there.
        stream.context().check_err().w()?;
        // The list has all variables.
        let update = |tensor| updates.get(tensor).copied().flatten();
        let list = match &mut self.list {
            Some(list) => {
                list.update(&self.tensors).map_err(|error| named(error, update))?;
                list
            }
            none => none.insert(TensorList::new(&self.kernels, &self.tensors).map_err(|error| named(error, update))?),
        };
        // SAFETY: the stream is live. The tensors with a gradient have addresses in memory of the
        // kernels' context, which is the stream's, with at least their lengths: the windows of the
        // slices that `Borrow` was lent in this step, and the moments' slices, which live as long
        // as `self`. The caller holds what tells cudarc of the use, so that work on other streams
        // and the end of the slices come after it; all of candle's work on this device, and the
        // moments' end, is on this stream.
        unsafe { list.step_raw(coeffs, stream.cu_stream().cast()) }.map_err(|error| named(error, update))
    }
}

/// What the operations of a step share.
#[derive(Clone, Copy)]
struct Step<'a> {
    updates: &'a [Option<Update<'a>>],
    coeffs: &'a [StepCoeffs],
    stream: &'a CudaStream,
}

type Updates<'a> = vec::IntoIter<Update<'a>>;

/// Borrows the memory of the next variable, or steps all where there is none left. When `uses` is
/// dropped, cudarc records that the work has been enqueued.
fn borrow_next<'a>(
    step: Step<'a>,
    moments: &'a mut Moments,
    mut left: Updates<'a>,
    uses: Vec<SyncOnDrop<'a>>,
) -> Result<()> {
    let Some(update) = left.next() else {
        return moments.enqueue(step);
    };
    moments.tensors[update.index].coeffs_index = update.coeffs_index;
    let borrow = Borrow { update, rest: Cell::new(Some(Rest { step, moments, left, uses })) };
    update.var.inplace_op2(update.grad, &borrow)
}

/// The operation that borrows one variable, and then the next ones.
struct Borrow<'a> {
    update: Update<'a>,
    /// Taken when the operation runs, which is once.
    rest: Cell<Option<Rest<'a>>>,
}

struct Rest<'a> {
    step: Step<'a>,
    moments: &'a mut Moments,
    left: Updates<'a>,
    uses: Vec<SyncOnDrop<'a>>,
}

impl InplaceOp2 for Borrow<'_> {
    fn name(&self) -> &'static str {
        "dualadam"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("{} must be on the CUDA device of its moments, and is on the CPU", self.update.name())
    }

    fn cuda_fwd(&self, param: &mut CudaStorage, param_l: &Layout, grad: &CudaStorage, grad_l: &Layout) -> Result<()> {
        let update = &self.update;
        let Some(Rest { step, moments, left, mut uses }) = self.rest.take() else {
            bail!("{} must be stepped once by a call, and is stepped again", update.name());
        };
        let (param, param_use) = address_mut(param, param_l, step.stream, || update.name())?;
        let (grad, grad_use) = address(grad, grad_l, step.stream, || update.grad_name())?;
        let tensor = &mut moments.tensors[update.index];
        (tensor.param, tensor.grad) = (param, grad);
        uses.extend([param_use, grad_use]);
        borrow_next(step, moments, left, uses)
    }
}

fn dtype_of(dtype: DType) -> Option<Dtype> {
    match dtype {
        DType::F32 => Some(Dtype::F32),
        DType::BF16 => Some(Dtype::Bf16),
        DType::F16 => Some(Dtype::F16),
        _ => None,
    }
}

/// The window of a storage that a layout has as an address, and what tells cudarc when it is
/// dropped that the work has been enqueued.
macro_rules! window {
    ($storage:expr, $slice:expr, $pointer:ident, $layout:expr, $stream:expr, $name:expr) => {{
        let (dtype, start) = ($storage.dtype(), elements($layout, &$name)?.start);
        let (dtype, (address, used)) = match $slice {
            CudaStorageSlice::F32(slice) => (Dtype::F32, slice.$pointer($stream)),
            CudaStorageSlice::BF16(slice) => (Dtype::Bf16, slice.$pointer($stream)),
            CudaStorageSlice::F16(slice) => (Dtype::F16, slice.$pointer($stream)),
            _ => return wrong_dtype($name(), dtype),
        };
        Ok((RawBuffer::new(address + (start * dtype.size()) as u64, dtype), used))
    }};
}

fn address_mut<'a>(
    storage: &'a mut CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
    name: impl Fn() -> String,
) -> Result<(RawBuffer, SyncOnDrop<'a>)> {
    window!(storage, &mut storage.slice, device_ptr_mut, layout, stream, name)
}

fn address<'a>(
    storage: &'a CudaStorage,
    layout: &Layout,
    stream: &'a CudaStream,
    name: impl Fn() -> String,
) -> Result<(RawBuffer, SyncOnDrop<'a>)> {
    window!(storage, &storage.slice, device_ptr, layout, stream, name)
}

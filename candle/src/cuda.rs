//! Steps of variables on a CUDA device, in its context and on its stream.
//!
//! The memory is borrowed as on the CPU: the operation of each variable runs inside the operation
//! of the variable before it, so that all variables are locked while the work is enqueued. The
//! library gets addresses as numbers and candle's stream as a pointer, since candle may use another
//! version of cudarc than the library.

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
    /// The tensors as the list has them. A gradient at address 0 is missing.
    tensors: Vec<RawTensor>,
    /// Made by the first step, when the addresses are known.
    list: Option<TensorList>,
}

impl Moments {
    pub(crate) fn zeros(device: &CudaDevice, vars: &[Var]) -> Result<Self> {
        let stream = device.cuda_stream();
        stream.context().bind_to_thread().w()?;
        // SAFETY: the current context is candle's. It is the primary one of its device, which the
        // kernels retain (so the function's requirement on other contexts does not apply).
        let kernels = unsafe { Kernels::in_current_context() }.map_err(candle_core::Error::wrap)?;
        let mut moments = Self { device: device.clone(), kernels, slices: Vec::new(), tensors: Vec::new(), list: None };
        for (index, var) in vars.iter().enumerate() {
            let Some(dtype) = dtype_of(var.dtype()) else { return wrong_dtype(name(index, var), var.dtype()) };
            let slices = [device.alloc_zeros::<f32>(var.elem_count())?, device.alloc_zeros::<f32>(var.elem_count())?];
            let absent = RawBuffer::new(0, dtype);
            // Only work on this stream uses the moments, so cudarc has nothing to order.
            let [exp_avg, exp_avg_sq] = slices.each_ref().map(|slice| RawBuffer::f32(slice.device_ptr(&stream).0));
            let len = var.elem_count() as u64;
            moments.tensors.push(RawTensor::new(len, absent, absent, exp_avg, exp_avg_sq));
            moments.slices.push(slices);
        }
        Ok(moments)
    }

    /// Enqueues a step of the variables that have an update on candle's stream. The caller has
    /// checked them.
    pub(crate) fn step(&mut self, updates: &[Option<Update<'_>>], coeffs: &[StepCoeffs]) -> Result<()> {
        let left: Vec<_> = updates.iter().copied().flatten().collect();
        if left.is_empty() {
            return Ok(());
        }
        for tensor in &mut self.tensors {
            // The index too: the table of this step may be shorter than the last one.
            (tensor.grad.address, tensor.coeffs_index) = (0, 0);
        }
        let stream = self.device.cuda_stream();
        let uses = Vec::with_capacity(2 * left.len());
        borrow_next(Step { updates, coeffs, stream: &stream }, self, left.into_iter(), uses)
    }

    /// Enqueues the step of the tensors. Their memory is locked.
    fn enqueue(&mut self, Step { updates, coeffs, stream }: Step<'_>) -> Result<()> {
        // cudarc records failures of its ordering here, and returns them nowhere else.
        stream.context().check_err().w()?;
        // Positions in the list are positions of variables.
        let update = |tensor| updates.get(tensor).copied().flatten();
        let list = match &mut self.list {
            Some(list) => {
                list.update(&self.tensors).map_err(|error| named(error, update))?;
                list
            }
            none => none.insert(TensorList::new(&self.kernels, &self.tensors).map_err(|error| named(error, update))?),
        };
        // SAFETY:
        // - The stream is live: candle's device has it.
        // - The tensors with a gradient have memory of the kernels' context, which is the stream's,
        //   of at least their lengths: the windows of the slices that `Borrow` was lent in this
        //   step, and the slices of the moments, which live as long as `self`.
        // - The caller holds cudarc's guards of these slices, so that cudarc orders work on other
        //   streams, and the freeing of the slices, after this work. All of candle's work on this
        //   device, and the freeing of the moments, is on this stream.
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

/// Borrows the memory of the next variable, or steps all if none is left. When `uses` is dropped,
/// cudarc records that the work was enqueued.
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

/// The window of a storage that a layout has, by address, and cudarc's guard of the use. When the
/// guard is dropped, cudarc records that the work was enqueued.
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

//! Steps of variables on a CUDA device, in its context and on its stream.
//!
//! The memory is borrowed as on the CPU, each variable's operation inside that of the one before,
//! so that the whole list is locked while its work is enqueued. What goes to the library is
//! addresses and candle's stream, as plain numbers and a pointer: candle's cudarc may be another
//! version than the library's.

use std::cell::Cell;
use std::ops::Range;
use std::vec;

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
use candle_core::{CpuStorage, CudaDevice, CudaStorage, DType, InplaceOp2, Layout, Result, Var, bail};
use dualadam::cuda::{Kernels, TensorList};
use dualadam::{Dtype, RawBuffer, RawTensor, StepCoeffs};

use crate::{Update, elements};

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
        for var in vars {
            let slices = [device.alloc_zeros::<f32>(var.elem_count())?, device.alloc_zeros::<f32>(var.elem_count())?];
            let absent = RawBuffer::new(0, dtype(var.dtype())?);
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
        let updates = updates.iter().enumerate().filter_map(|(index, &update)| Some((index, update?)));
        let updates: Vec<_> = updates.collect();
        if updates.is_empty() {
            return Ok(());
        }
        for tensor in &mut self.tensors {
            // The coefficients too, since those that it had may not be there now.
            (tensor.grad.address, tensor.coeffs_index) = (0, 0);
        }
        let stream = self.device.cuda_stream();
        let uses = Vec::with_capacity(2 * updates.len());
        borrow_next(self, updates.into_iter(), uses, &stream, coeffs)
    }

    /// Enqueues the step of the tensors, whose memory is locked.
    fn enqueue(&mut self, stream: &CudaStream, coeffs: &[StepCoeffs]) -> Result<()> {
        // What cudarc could not order is only noted there.
        stream.context().check_err().w()?;
        let list = match &mut self.list {
            Some(list) => {
                list.update(&self.tensors).map_err(candle_core::Error::wrap)?;
                list
            }
            none => none.insert(TensorList::new(&self.kernels, &self.tensors).map_err(candle_core::Error::wrap)?),
        };
        // SAFETY: the stream is live. The tensors with a gradient have addresses in memory of the
        // kernels' context, which is the stream's, with at least their lengths: the windows of the
        // slices that `Borrow` was lent in this step, and the moments' slices, which live as long
        // as `self`. The caller holds what tells cudarc of the use, so that work on other streams
        // and the end of the slices come after it; all of candle's work on this device, and the
        // moments' end, is on this stream.
        unsafe { list.step_raw(coeffs, stream.cu_stream().cast()) }.map_err(candle_core::Error::wrap)
    }
}

type Updates<'a> = vec::IntoIter<(usize, Update<'a>)>;

/// Borrows the memory of the next variable, or steps all where there is none left. When `uses` is
/// dropped, cudarc records that the work has been enqueued.
fn borrow_next<'a>(
    moments: &'a mut Moments,
    mut left: Updates<'a>,
    uses: Vec<SyncOnDrop<'a>>,
    stream: &'a CudaStream,
    coeffs: &'a [StepCoeffs],
) -> Result<()> {
    let Some((index, update)) = left.next() else {
        return moments.enqueue(stream, coeffs);
    };
    moments.tensors[index].coeffs_index = update.coeffs_index;
    let borrow = Borrow { index, rest: Cell::new(Some(Rest { moments, left, uses, stream, coeffs })) };
    update.var.inplace_op2(update.grad, &borrow)
}

/// The operation that borrows one variable, and then the next ones.
struct Borrow<'a> {
    index: usize,
    /// Taken when the operation runs, which is once.
    rest: Cell<Option<Rest<'a>>>,
}

struct Rest<'a> {
    moments: &'a mut Moments,
    left: Updates<'a>,
    uses: Vec<SyncOnDrop<'a>>,
    stream: &'a CudaStream,
    coeffs: &'a [StepCoeffs],
}

impl InplaceOp2 for Borrow<'_> {
    fn name(&self) -> &'static str {
        "dualadam"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<()> {
        bail!("the variable is not on the CUDA device of its moments")
    }

    fn cuda_fwd(&self, param: &mut CudaStorage, param_l: &Layout, grad: &CudaStorage, grad_l: &Layout) -> Result<()> {
        let Some(Rest { moments, left, mut uses, stream, coeffs }) = self.rest.take() else {
            bail!("the operation {} runs once", self.name());
        };
        let tensor = &mut moments.tensors[self.index];
        let (param, param_use) = address_mut(param, elements(param_l)?, stream)?;
        let (grad, grad_use) = address(grad, elements(grad_l)?, stream)?;
        (tensor.param, tensor.grad) = (param, grad);
        uses.extend([param_use, grad_use]);
        borrow_next(moments, left, uses, stream, coeffs)
    }
}

fn dtype(dtype: DType) -> Result<Dtype> {
    Ok(match dtype {
        DType::F32 => Dtype::F32,
        DType::BF16 => Dtype::Bf16,
        DType::F16 => Dtype::F16,
        other => bail!("the type must be f32, bf16 or f16, and is {other:?}"),
    })
}

/// The window of a slice as an address, and what tells cudarc when it is dropped that the work has
/// been enqueued.
macro_rules! window {
    ($storage:expr, $elements:expr, $stream:expr, $pointer:ident) => {
        match $storage {
            CudaStorageSlice::F32(slice) => window!($elements, slice.$pointer($stream), Dtype::F32),
            CudaStorageSlice::BF16(slice) => window!($elements, slice.$pointer($stream), Dtype::Bf16),
            CudaStorageSlice::F16(slice) => window!($elements, slice.$pointer($stream), Dtype::F16),
            _ => bail!("parameters and gradients must be f32, bf16 or f16"),
        }
    };
    ($elements:expr, $pointer:expr, $dtype:expr) => {{
        let (address, used) = $pointer;
        (RawBuffer::new(address + ($elements.start * $dtype.size()) as u64, $dtype), used)
    }};
}

fn address_mut<'a>(
    storage: &'a mut CudaStorage,
    elements: Range<usize>,
    stream: &'a CudaStream,
) -> Result<(RawBuffer, SyncOnDrop<'a>)> {
    Ok(window!(&mut storage.slice, elements, stream, device_ptr_mut))
}

fn address<'a>(
    storage: &'a CudaStorage,
    elements: Range<usize>,
    stream: &'a CudaStream,
) -> Result<(RawBuffer, SyncOnDrop<'a>)> {
    Ok(window!(&storage.slice, elements, stream, device_ptr))
}

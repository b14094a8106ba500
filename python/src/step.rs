//! `step`: one step of one tensor whose arrays come through DLPack.

use dualadam::{Dtype, RawBuffer, RawTensor, cpu};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::config::Config;
use crate::device;
use crate::dlpack::{self, CPU, CUDA, Device, Imported};
use crate::errors::plain;
use crate::layout::{is_dense, is_same, strides_of};
use crate::threads::Workers;

/// DLPack's number for CUDA's legacy default stream, whose handle is null.
const LEGACY_STREAM: i64 = 1;

/// Make one DualAdam step of one tensor, in place, in one pass through memory.
///
/// With t = `step`, the step is Algorithm 1 of arXiv 2603.07122:
///
///     g = ±grad_multiplier·grad (+ weight_decay·p for L2)
///     m = β1·m + (1-β1)·g
///     v = β2·v + (1-β2)·g²
///     m̂ = m/(1-β1^t),  v̂ = v/(1-β2^t),  α = schedule.alpha(t)
///     p = p - lr·((1-α)·m̂/(√v̂ + ε) + α·m̂·√v̂) (- lr·weight_decay·p if decoupled)
///
/// Each array is an object with `__dlpack__`, such as one of NumPy, PyTorch, JAX or CuPy. All
/// arrays have the same shape and strides, without gaps, and are on the same device: the CPU or
/// CUDA.
///
/// Args:
///     param (array): p; float32, bfloat16 or float16. Written.
///     grad (array): the gradient; float32, or of `param`'s type. Beside a float32 `param` also
///         bfloat16 or float16.
///     exp_avg (array): m, the first moment; float32, zeros before step 1. Written.
///     exp_avg_sq (array): v, the second moment; float32, zeros before step 1. Written.
///     config (Config): the hyperparameters.
///     step (int): t, the number of this update of the tensor, from 1.
///     master (array or None): the float32 master of a bfloat16 or float16 `param`. The step
///         updates the master, and `param` gets its values, rounded to nearest even. The caller
///         fills it from `param` before step 1. Written. Default None.
///     grad_multiplier (float): what the gradient is multiplied by first, such as a clip factor or
///         the inverse of a loss scale; finite, at least 0. Default 1.
///     stream (int or None): for CUDA, the handle of a live stream; None is the legacy default one.
///         For the CPU, it must be None. Default None.
///
/// On the CPU, the step is done when the call returns. Above 32,768 elements it uses the threads
/// that the package has already. If it has none, it starts as many as RAYON_NUM_THREADS says, or
/// else as there are processors. On CUDA, the call enqueues the step on `stream`, after the work of
/// the arrays' producers that DLPack orders before it.
///
/// Until the step is done, the arrays must keep their memory, and no other thread or stream may use
/// them.
///
/// Raises:
///     TypeError: an object has no `__dlpack__`, or has a type that does not fit.
///     ValueError: an array has another shape, other strides or another device than `param`, has
///         gaps, is read-only or overlaps another; or `step` is 0, or `grad_multiplier` is out of
///         range, or `stream` is given for the CPU.
///     OverflowError: `step` is negative or above 2^64 - 1.
///     BufferError: an array cannot be exported.
///     RuntimeError: the CUDA driver is missing or failed, or no threads could be started.
///
/// If an exception is raised, nothing was written.
///
/// Example:
///     >>> import numpy as np
///     >>> import dualadam
///     >>> schedule = dualadam.Schedule.linear_until(160)
///     >>> config = dualadam.Config(1e-3, (0.9, 0.999), 1e-8, 0.01, schedule)
///     >>> param = np.ones(3, np.float32)
///     >>> exp_avg, exp_avg_sq = np.zeros_like(param), np.zeros_like(param)
///     >>> for step in range(1, 11):
///     ...     grad = 2 * param
///     ...     dualadam.step(param, grad, exp_avg, exp_avg_sq, config=config, step=step)
///     >>> bool((param < 1).all())
///     True
#[pyfunction]
#[pyo3(signature = (param, grad, exp_avg, exp_avg_sq, *, config, step, master = None, grad_multiplier = 1.0, stream = None))]
#[expect(clippy::too_many_arguments, reason = "they are the caller's keywords")]
pub(crate) fn step(
    py: Python<'_>,
    param: &Bound<'_, PyAny>,
    grad: &Bound<'_, PyAny>,
    exp_avg: &Bound<'_, PyAny>,
    exp_avg_sq: &Bound<'_, PyAny>,
    config: &Config,
    step: u64,
    master: Option<&Bound<'_, PyAny>>,
    grad_multiplier: f64,
    stream: Option<usize>,
) -> PyResult<()> {
    let coeffs = config.inner.coeffs_scaled(step, grad_multiplier).map_err(plain)?;
    let device = device_of(param)?;
    let consumer = match (device.kind, stream) {
        (CPU, None) => None,
        (CUDA, None | Some(0)) => Some(LEGACY_STREAM),
        (CUDA, Some(handle)) => Some(handle as i64),
        (CPU, Some(handle)) => {
            let text = format!("stream must be None for arrays on the CPU, got {handle}");
            return Err(PyValueError::new_err(text));
        }
        _ => return Err(PyValueError::new_err(format!("param must be on the CPU or on CUDA, it is on {device}"))),
    };
    let import = |object, name| dlpack::import(object, name, consumer).map(|imported| (name, imported));
    let param = import(param, "param")?;
    let grad = import(grad, "grad")?;
    let exp_avg = import(exp_avg, "exp_avg")?;
    let exp_avg_sq = import(exp_avg_sq, "exp_avg_sq")?;
    let master = master.map(|master| import(master, "master")).transpose()?;
    for array in [&param, &grad, &exp_avg, &exp_avg_sq].into_iter().chain(&master) {
        check_like(array, &param.1, device)?;
    }
    for (name, array) in [&param, &exp_avg, &exp_avg_sq].into_iter().chain(&master) {
        if array.is_read_only {
            return Err(PyValueError::new_err(format!("{name} must be writable, it is read-only")));
        }
    }
    for (name, array) in [&exp_avg, &exp_avg_sq].into_iter().chain(&master) {
        if !array.tensor.is_of(Dtype::F32) {
            let text = format!("{name} must be float32, it is {}", array.tensor.dtype_name());
            return Err(PyTypeError::new_err(text));
        }
    }
    let (len, moments) = (param.1.tensor.len(), (buffer(&exp_avg)?, buffer(&exp_avg_sq)?));
    let mut tensor = RawTensor::new(len, buffer(&param)?, buffer(&grad)?, moments.0, moments.1);
    tensor.master = master.as_ref().map(buffer).transpose()?;
    if device.kind == CPU {
        let workers = Workers::of(py, len, || Ok(None))?;
        // SAFETY: the imported capsules keep the arrays alive. The arrays have these types and
        // lengths, and those that are written are writable. Until the step is done, they keep their
        // memory and nothing else uses it (required in this function's documentation).
        return workers.run(py, || unsafe { cpu::step_raw(&tensor, &coeffs) }).map_err(plain);
    }
    let kernels = device::kernels(device.id)?;
    py.detach(|| {
        let stream = device::stream(stream.unwrap_or(0));
        // SAFETY: the producers say that this is memory of the device, of these types and lengths.
        // `stream` is the handle of a live stream. Until the step is done, the arrays keep their
        // memory and nothing else uses it (required in this function's documentation).
        unsafe { kernels.step_raw(&tensor, &coeffs, stream) }
    })
    .map_err(plain)
}

type Named<'py> = (&'static str, Imported<'py>);

fn device_of(object: &Bound<'_, PyAny>) -> PyResult<Device> {
    let missing = |_| PyTypeError::new_err(format!("param must have __dlpack_device__, got {}", object.get_type()));
    let device = object.getattr("__dlpack_device__").map_err(missing)?.call0()?;
    let text = || format!("param.__dlpack_device__() must give two integers, it gave {device:?}");
    let (kind, id) = device.extract().map_err(|_| PyTypeError::new_err(text()))?;
    Ok(Device { kind, id })
}

/// Fails unless an array has the parameter's device, shape and strides, without gaps.
fn check_like((name, array): &Named<'_>, param: &Imported<'_>, device: Device) -> PyResult<()> {
    let (array, param) = (&array.tensor, &param.tensor);
    if array.device != device {
        return Err(PyValueError::new_err(format!("{name} must be on {device}, it is on {}", array.device)));
    }
    if array.shape() != param.shape() {
        let text = format!("{name} must have param's shape {:?}, it has {:?}", param.shape(), array.shape());
        return Err(PyValueError::new_err(text));
    }
    if !is_dense(array) {
        let strides = strides_of(array);
        let text = format!("{name} must fill its memory without gaps or overlap, its strides are {strides:?}");
        return Err(PyValueError::new_err(text));
    }
    if !is_same(array, param) {
        let (expected, actual) = (strides_of(param), strides_of(array));
        let text = format!("{name} must have param's strides {expected:?}, it has {actual:?}");
        return Err(PyValueError::new_err(text));
    }
    Ok(())
}

fn buffer((name, array): &Named<'_>) -> PyResult<RawBuffer> {
    array.tensor.buffer().ok_or_else(|| {
        let text = format!("{name} must be float32, bfloat16 or float16, it is {}", array.tensor.dtype_name());
        PyTypeError::new_err(text)
    })
}

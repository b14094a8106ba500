//! One step of one tensor that came through DLPack.

use dualadam::{Dtype, RawBuffer, RawTensor, cpu};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

use crate::config::Config;
use crate::device;
use crate::dlpack::{self, CPU, CUDA, Device, Imported};
use crate::errors::plain;
use crate::layout::{is_dense, is_same};

/// DLPack's number for CUDA's legacy default stream, whose handle is null.
const LEGACY_STREAM: i64 = 1;

/// One DualAdam step of one tensor, in place, in one pass over its memory.
///
/// Each array is an object with `__dlpack__`, such as one of NumPy, PyTorch, JAX or CuPy. The
/// caller counts `step` from 1. With `t` = `step`, the step is Algorithm 1 of arXiv 2603.07122:
///
///     g = ±grad_multiplier·grad (+ weight_decay·p for L2)
///     m = β1·m + (1-β1)·g
///     v = β2·v + (1-β2)·g²
///     m̂ = m/(1-β1^t),  v̂ = v/(1-β2^t),  α = schedule(t)
///     p = p - lr·((1-α)·m̂/(√v̂ + ε) + α·m̂·√v̂) (- lr·weight_decay·p)
///
/// `param` is float32, bfloat16 or float16. `grad` is float32 or of `param`'s type; beside a
/// float32 `param`, it is of any of the three types. `exp_avg` (m) and `exp_avg_sq` (v) are
/// float32.
///
/// `master` is a float32 array of which a bfloat16 or float16 `param` is a copy. With it, the step
/// updates `master`, and `param` gets the new values, rounded.
///
/// All arrays have one shape, one device and the same strides, without gaps.
///
/// On the CPU, the step is done when the call returns. On a CUDA device, the call enqueues the step
/// on `stream`, a CUDA stream's handle as an integer; None is the legacy default stream. The
/// producers of the arrays order their own work before it.
///
/// The arrays must keep their memory until the step is done, and no other thread or stream may use
/// them until then.
///
/// Raises, before anything is written:
///
/// - TypeError or ValueError for arrays that do not fit, are read-only or overlap;
/// - BufferError for arrays that cannot be exported;
/// - RuntimeError for failures of the CUDA driver.
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
        // SAFETY: the imported capsules keep the arrays alive. They have these types and lengths,
        // and those that are written are writable. The caller sees to it that they keep their
        // memory and that nothing else uses it meanwhile (this function's documentation).
        return py.detach(|| unsafe { cpu::step_raw(&tensor, &coeffs) }).map_err(plain);
    }
    let kernels = device::kernels(device.id)?;
    py.detach(|| {
        let stream = device::stream(stream.unwrap_or(0));
        // SAFETY: the producers say that this is memory of the device, of these types and lengths.
        // The caller gives a live stream, and sees to it that the arrays keep their memory and that
        // nothing else uses it until the step has run (this function's documentation).
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
        let text =
            format!("{name} must fill its memory without gaps or overlap, its strides are {:?}", array.strides());
        return Err(PyValueError::new_err(text));
    }
    if !is_same(array, param) {
        let (expected, actual) = (param.strides(), array.strides());
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

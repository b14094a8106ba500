//! DLPack: its structs, and looks at tensors through them.
//!
//! The crates for DLPack wrap whole exchanges, with owners on both sides. This module only looks at
//! tensors. Mostly it does so through the table of functions that a type may have
//! (`__dlpack_c_exchange_api__`): a look costs a call in C and makes no object.

use std::ffi::{CStr, c_int, c_void};
use std::{ptr, slice};

use dualadam::{Dtype, RawBuffer};
use pyo3::exceptions::{PyBufferError, PyRuntimeError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

/// The major version of DLPack that has these structs.
const MAJOR: u32 = 1;
/// `DLPACK_FLAG_BITMASK_READ_ONLY`.
const READ_ONLY: u64 = 1;

/// No system gives programs memory below this address.
const NO_MEMORY_BELOW: usize = 1 << 16;

/// `DLDeviceType`: the two kinds of memory that the library has kernels for.
pub(crate) const CPU: i32 = 1;
pub(crate) const CUDA: i32 = 2;

/// `DLDevice`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) kind: i32,
    pub(crate) id: i32,
}

impl Device {
    pub(crate) const HOST: Self = Self { kind: CPU, id: 0 };
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            CPU => f.write_str("cpu"),
            CUDA => write!(f, "cuda:{}", self.id),
            kind => write!(f, "DLPack device type {kind}"),
        }
    }
}

/// `DLDataType`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

impl DataType {
    const fn scalar(code: u8, bits: u8) -> Self {
        Self { code, bits, lanes: 1 }
    }
}

/// `DLTensor`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tensor {
    data: *mut c_void,
    pub(crate) device: Device,
    ndim: i32,
    dtype: DataType,
    shape: *const i64,
    strides: *const i64,
    byte_offset: u64,
}

impl Tensor {
    pub(crate) const EMPTY: Self = Self {
        data: ptr::null_mut(),
        device: Device::HOST,
        ndim: 0,
        dtype: DataType::scalar(0, 0),
        shape: ptr::null(),
        strides: ptr::null(),
        byte_offset: 0,
    };

    /// The address of the first element, or 0 if the memory is gone.
    ///
    /// torch adds the tensor's offset to a null pointer then. The answer is 0 if that is small.
    pub(crate) fn address(&self) -> u64 {
        if self.data.addr() < NO_MEMORY_BELOW {
            0
        } else {
            (self.data.expose_provenance() as u64).wrapping_add(self.byte_offset)
        }
    }

    /// The element type, if the library has kernels for it.
    #[inline]
    pub(crate) fn dtype(&self) -> Option<Dtype> {
        match (self.dtype.code, self.dtype.bits, self.dtype.lanes) {
            (2, 32, 1) => Some(Dtype::F32),
            (4, 16, 1) => Some(Dtype::Bf16),
            (2, 16, 1) => Some(Dtype::F16),
            _ => None,
        }
    }

    /// The memory as the library takes it, if there are kernels for the element type.
    #[inline]
    pub(crate) fn buffer(&self) -> Option<RawBuffer> {
        self.dtype().map(|dtype| RawBuffer::new(self.address(), dtype))
    }

    #[inline]
    pub(crate) fn is_of(&self, dtype: Dtype) -> bool {
        self.dtype() == Some(dtype)
    }

    #[inline]
    pub(crate) fn is_f64(&self) -> bool {
        self.dtype == DataType::scalar(2, 64)
    }

    #[inline]
    pub(crate) fn is_i64(&self) -> bool {
        self.dtype == DataType::scalar(0, 64)
    }

    /// The name of the element type, also of one without kernels.
    pub(crate) fn dtype_name(&self) -> String {
        let kind = match self.dtype.code {
            0 => "int",
            1 => "uint",
            2 => "float",
            4 => "bfloat",
            5 => "complex",
            6 => "bool",
            code => return format!("DLPack type {code} of {} bits", self.dtype.bits),
        };
        let lanes = if self.dtype.lanes == 1 { String::new() } else { format!("x{}", self.dtype.lanes) };
        format!("{kind}{}{lanes}", self.dtype.bits)
    }

    pub(crate) fn shape(&self) -> &[i64] {
        // SAFETY: the producer gave `ndim` extents, which live as long as its tensor keeps them. An
        // `Imported` has the tensor's capsule. Whoever looked at a tensor object reads them before
        // it can change (`Exchange::look`'s second requirement).
        unsafe { entries(self.shape, self.ndim) }
    }

    /// The strides, in elements. A producer may leave them out for a tensor in row-major order.
    pub(crate) fn strides(&self) -> Option<&[i64]> {
        // SAFETY: as for `shape`, of which there are as many.
        (self.ndim == 0 || !self.strides.is_null()).then(|| unsafe { entries(self.strides, self.ndim) })
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> u64 {
        self.shape().iter().fold(1, |len: u64, &extent| len.saturating_mul(extent.max(0) as u64))
    }
}

/// # Safety
///
/// - `first` is null, or there are `count` entries from there on, which live as long as `'a`.
unsafe fn entries<'a>(first: *const i64, count: i32) -> &'a [i64] {
    // SAFETY: there are `count` entries (this function's requirement).
    if count <= 0 || first.is_null() { &[] } else { unsafe { slice::from_raw_parts(first, count as usize) } }
}

#[repr(C)]
struct Version {
    major: u32,
    minor: u32,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
struct Managed {
    version: Version,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
    flags: u64,
    tensor: Tensor,
}

/// `DLManagedTensor`, from before there were versions.
#[repr(C)]
struct Unversioned {
    tensor: Tensor,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Unversioned)>,
}

/// `DLPackExchangeAPI`.
#[repr(C)]
struct Functions {
    version: Version,
    previous: *const c_void,
    allocate: *const c_void,
    managed_from_object: Option<unsafe extern "C" fn(*mut c_void, *mut *mut Managed) -> c_int>,
    managed_to_object: *const c_void,
    tensor_from_object: Option<unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int>,
    current_stream: Option<unsafe extern "C" fn(i32, i32, *mut *mut c_void) -> c_int>,
}

/// Holds a tensor's memory.
pub(crate) struct Held(ptr::NonNull<Managed>);

// SAFETY: DLPack lets any thread call the deleter.
unsafe impl Send for Held {}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: `hold` got this pointer from a producer, and this is the only call of its
        // deleter. A deleter needs the interpreter attached. It is: only Python objects, and calls
        // from Python, own a `Held`.
        unsafe {
            if let Some(deleter) = self.0.as_ref().deleter {
                deleter(self.0.as_ptr());
            }
        }
    }
}

/// The table of functions through which the tensors of one type are seen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exchange {
    managed_from_object: unsafe extern "C" fn(*mut c_void, *mut *mut Managed) -> c_int,
    tensor_from_object: unsafe extern "C" fn(*mut c_void, *mut Tensor) -> c_int,
    current_stream: unsafe extern "C" fn(i32, i32, *mut *mut c_void) -> c_int,
}

impl Exchange {
    /// The table of a type of tensors.
    pub(crate) fn of(kind: &Bound<'_, PyAny>) -> PyResult<Self> {
        const NAME: &CStr = c"dlpack_exchange_api";
        let missing = |_| {
            PyTypeError::new_err(format!(
                "{kind} must have DLPack's __dlpack_c_exchange_api__; torch has it from 2.10 on"
            ))
        };
        let capsule = kind.getattr("__dlpack_c_exchange_api__").map_err(missing)?;
        // SAFETY: `capsule` is a live object. The call returns null unless it is a capsule of this
        // name.
        let functions = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), NAME.as_ptr()) } as *const Functions;
        if functions.is_null() {
            let error = PyErr::fetch(kind.py());
            let text = format!("{kind}'s __dlpack_c_exchange_api__ must be a capsule of the name {NAME:?}, got");
            return Err(PyTypeError::new_err(format!("{text} {capsule}: {error}")));
        }
        // SAFETY: DLPack says that a capsule of this name points to such a table, which lives until
        // the process ends, and that the tables of all versions begin with `version` and
        // `previous`.
        let functions = unsafe {
            if (*functions).version.major != MAJOR {
                let text =
                    format!("DLPack's table of {kind} must be of version 1, it is of {}", (*functions).version.major);
                return Err(PyTypeError::new_err(text));
            }
            &*functions
        };
        let lacks = |name: &str| PyTypeError::new_err(format!("DLPack's table of {kind} must have {name}, got null"));
        Ok(Self {
            managed_from_object: functions.managed_from_object.ok_or_else(|| lacks("managed_from_object"))?,
            tensor_from_object: functions.tensor_from_object.ok_or_else(|| lacks("tensor_from_object"))?,
            current_stream: functions.current_stream.ok_or_else(|| lacks("current_stream"))?,
        })
    }

    /// A tensor object as it is at this moment. None if DLPack cannot describe it, such as a sparse
    /// tensor. The reason is dropped.
    ///
    /// # Safety
    ///
    /// - `object` is a live object of the type that the table is of.
    /// - The answer's shape and strides are only read while the tensor lives and keeps them: before
    ///   other code can run, which could change the tensor.
    pub(crate) unsafe fn look(&self, object: *mut ffi::PyObject) -> Option<Tensor> {
        let mut tensor = Tensor::EMPTY;
        // SAFETY: `object` is live and of this type, and the caller reads the answer in time (this
        // function's two requirements).
        unsafe { self.look_into(object, &mut tensor) }.then_some(tensor)
    }

    /// [`look`](Self::look) into a place that is used again. Returns whether the tensor could be
    /// seen.
    ///
    /// # Safety
    ///
    /// - As for [`look`](Self::look).
    #[inline]
    pub(crate) unsafe fn look_into(&self, object: *mut ffi::PyObject, out: &mut Tensor) -> bool {
        // SAFETY: `object` is live and of the table's type (`look`'s first requirement), and `out`
        // is a place for the answer.
        if unsafe { (self.tensor_from_object)(object.cast(), out) } == 0 {
            return true;
        }
        // SAFETY: the interpreter is attached: the caller has a live object.
        unsafe { ffi::PyErr_Clear() };
        false
    }

    /// Holds the memory that a tensor has at this moment.
    ///
    /// # Safety
    ///
    /// - `object` is a live object of the type that the table is of.
    pub(crate) unsafe fn hold(&self, object: *mut ffi::PyObject) -> Option<Held> {
        let mut managed = ptr::null_mut();
        // SAFETY: `object` is live and of the table's type (this function's requirement), and
        // `managed` is a place for the answer.
        if unsafe { (self.managed_from_object)(object.cast(), &mut managed) } == 0 {
            return ptr::NonNull::new(managed).map(Held);
        }
        // SAFETY: the interpreter is attached: the caller has a live object.
        unsafe { ffi::PyErr_Clear() };
        None
    }

    /// The framework's current stream.
    pub(crate) fn current_stream(&self, py: Python<'_>, device: Device) -> PyResult<*mut c_void> {
        let mut stream = ptr::null_mut();
        // SAFETY: the table's function takes any device, and `stream` is a place for the answer.
        if unsafe { (self.current_stream)(device.kind, device.id, &mut stream) } == 0 {
            return Ok(stream);
        }
        let text = || format!("DLPack's table must know the current stream of {device}, it gives none");
        Err(PyErr::take(py).unwrap_or_else(|| PyRuntimeError::new_err(text())))
    }
}

/// A tensor that its producer handed over in a capsule.
pub(crate) struct Imported<'py> {
    /// Keeps the tensor alive.
    _capsule: Bound<'py, PyCapsule>,
    pub(crate) tensor: Tensor,
    /// False for capsules without a version, which do not say it.
    pub(crate) is_read_only: bool,
}

/// The tensor that `object.__dlpack__()` gives. `what` is the object's name in errors.
///
/// `stream` is the stream on which the consumer will work, by DLPack's number. The producer orders
/// its own work before that stream's.
pub(crate) fn import<'py>(object: &Bound<'py, PyAny>, what: &str, stream: Option<i64>) -> PyResult<Imported<'py>> {
    let py = object.py();
    let method = object
        .getattr("__dlpack__")
        .map_err(|_| PyTypeError::new_err(format!("{what} must have __dlpack__, got {}", object.get_type())))?;
    let keywords = PyDict::new(py);
    if let Some(stream) = stream {
        keywords.set_item("stream", stream)?;
    }
    let newest = keywords.copy()?;
    newest.set_item("max_version", (MAJOR, 0))?;
    newest.set_item("copy", false)?;
    let capsule = match method.call((), Some(&newest)) {
        // A producer from before DLPack had versions does not know these keywords.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => method.call((), Some(&keywords))?,
        answer => answer?,
    };
    let capsule: Bound<'py, PyCapsule> = capsule.cast_into().map_err(|error| {
        let kind = error.into_inner().get_type();
        PyTypeError::new_err(format!("{what}.__dlpack__() must give a capsule, it gave {kind}"))
    })?;
    // The capsule keeps its name and so its tensor, which it frees when it is freed.
    // SAFETY: `capsule` is live, and no other code runs in this block. DLPack says what capsules of
    // these two names point to, and that all major versions have `version` at the same place.
    unsafe {
        let pointer = capsule.as_ptr();
        if ffi::PyCapsule_IsValid(pointer, c"dltensor_versioned".as_ptr()) != 0 {
            let managed = ffi::PyCapsule_GetPointer(pointer, c"dltensor_versioned".as_ptr()) as *const Managed;
            let major = (*managed).version.major;
            if major != MAJOR {
                return Err(PyBufferError::new_err(format!("{what} must come as DLPack 1, it came as DLPack {major}")));
            }
            let (tensor, is_read_only) = ((*managed).tensor, (*managed).flags & READ_ONLY != 0);
            return Ok(Imported { _capsule: capsule, tensor, is_read_only });
        }
        if ffi::PyCapsule_IsValid(pointer, c"dltensor".as_ptr()) != 0 {
            let managed = ffi::PyCapsule_GetPointer(pointer, c"dltensor".as_ptr()) as *const Unversioned;
            return Ok(Imported { _capsule: capsule, tensor: (*managed).tensor, is_read_only: false });
        }
    }
    let text = format!("{what}.__dlpack__() must give a capsule of a DLPack tensor, it gave {capsule}");
    Err(PyTypeError::new_err(text))
}

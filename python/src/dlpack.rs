//! DLPack: the layout of its structs, and tensors seen through them.
//!
//! The crates for DLPack wrap whole exchanges, with owners on both sides. Here tensors are only looked at, by their addresses, and mostly
//! through the table of functions that a type may have (`__dlpack_c_exchange_api__`), which costs a call in C and makes no object.

use std::ffi::{CStr, c_int, c_void};
use std::{ptr, slice};

use dualadam::Dtype;
use pyo3::exceptions::{PyBufferError, PyRuntimeError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyDict};

/// The major version whose structs these are.
const MAJOR: u32 = 1;
const READ_ONLY: u64 = 1;

/// No system gives memory to programs below this address.
const NO_MEMORY_BELOW: usize = 1 << 16;

/// `DLDeviceType`: the two kinds of memory that kernels are for.
pub(crate) const CPU: i32 = 1;
pub(crate) const CUDA: i32 = 2;

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

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
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
        dtype: DataType { code: 0, bits: 0, lanes: 0 },
        shape: ptr::null(),
        strides: ptr::null(),
        byte_offset: 0,
    };

    /// 0 for a tensor whose memory is gone, at least where it was not far from that memory's beginning: torch adds an offset to null.
    pub(crate) fn address(&self) -> u64 {
        if self.data.addr() < NO_MEMORY_BELOW { 0 } else { (self.data.addr() as u64).wrapping_add(self.byte_offset) }
    }

    /// The element type, if it is one that kernels are for.
    pub(crate) fn dtype(&self) -> Option<Dtype> {
        match (self.dtype.code, self.dtype.bits, self.dtype.lanes) {
            (2, 32, 1) => Some(Dtype::F32),
            (4, 16, 1) => Some(Dtype::Bf16),
            (2, 16, 1) => Some(Dtype::F16),
            _ => None,
        }
    }

    #[inline]
    pub(crate) fn is_of(&self, dtype: Dtype) -> bool {
        let (code, bits) = match dtype {
            Dtype::F32 => (2, 32),
            Dtype::Bf16 => (4, 16),
            Dtype::F16 => (2, 16),
        };
        self.dtype == DataType { code, bits, lanes: 1 }
    }

    pub(crate) fn is_f64(&self) -> bool {
        self.dtype == DataType { code: 2, bits: 64, lanes: 1 }
    }

    pub(crate) fn is_i64(&self) -> bool {
        self.dtype == DataType { code: 0, bits: 64, lanes: 1 }
    }

    /// The element type's name, whatever it is.
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
        format!("{kind}{}", self.dtype.bits)
    }

    pub(crate) fn shape(&self) -> &[i64] {
        // SAFETY: a tensor has `ndim` of them, as long as it lives.
        unsafe { entries(self.shape, self.ndim) }
    }

    /// The strides, in elements; none where the tensor is in row-major order without saying so.
    pub(crate) fn strides(&self) -> Option<&[i64]> {
        // SAFETY: as for the shape.
        (self.ndim == 0 || !self.strides.is_null()).then(|| unsafe { entries(self.strides, self.ndim) })
    }

    pub(crate) fn len(&self) -> u64 {
        self.shape().iter().fold(1, |len: u64, &extent| len.saturating_mul(extent.max(0) as u64))
    }
}

/// # Safety
///
/// Unless `count` is 0, there must be so many entries.
unsafe fn entries<'a>(first: *const i64, count: i32) -> &'a [i64] {
    // SAFETY: as this function requires.
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

/// A tensor's memory, held.
pub(crate) struct Held(ptr::NonNull<Managed>);

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: it is dropped once, with what its maker gave for that.
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
    /// The table of a type.
    pub(crate) fn of(kind: &Bound<'_, PyAny>) -> PyResult<Self> {
        const NAME: &CStr = c"dlpack_exchange_api";
        let missing = |_| {
            PyTypeError::new_err(format!(
                "{kind} must have DLPack's __dlpack_c_exchange_api__; torch has it from 2.10 on"
            ))
        };
        let capsule = kind.getattr("__dlpack_c_exchange_api__").map_err(missing)?;
        // SAFETY: a live object; the name is checked.
        let functions = unsafe { ffi::PyCapsule_GetPointer(capsule.as_ptr(), NAME.as_ptr()) } as *const Functions;
        if functions.is_null() {
            return Err(PyErr::fetch(kind.py()));
        }
        // SAFETY: that is what a capsule of this name points to, until the process ends; its first fields are those of all versions.
        let functions = unsafe {
            if (*functions).version.major != MAJOR {
                let text =
                    format!("DLPack's table must be of version 1, {kind}'s is of {}", (*functions).version.major);
                return Err(PyTypeError::new_err(text));
            }
            &*functions
        };
        match (functions.managed_from_object, functions.tensor_from_object, functions.current_stream) {
            (Some(managed_from_object), Some(tensor_from_object), Some(current_stream)) => {
                Ok(Self { managed_from_object, tensor_from_object, current_stream })
            }
            _ => Err(PyTypeError::new_err(format!("DLPack's table of {kind} lacks a function"))),
        }
    }

    /// What a tensor object is at this moment. None for one that cannot be seen so, such as a sparse one; the reason is dropped.
    ///
    /// # Safety
    ///
    /// `object` is a live object of the type that the table is of. The answer's shape and strides live as long as the tensor does and stays
    /// as it is.
    pub(crate) unsafe fn look(&self, object: *mut ffi::PyObject) -> Option<Tensor> {
        let mut tensor = Tensor::EMPTY;
        // SAFETY: as this function requires.
        unsafe { self.look_into(object, &mut tensor) }.then_some(tensor)
    }

    /// [`look`](Self::look) into a place that is used again; whether it could be seen.
    ///
    /// # Safety
    ///
    /// As for [`look`](Self::look).
    #[inline]
    pub(crate) unsafe fn look_into(&self, object: *mut ffi::PyObject, out: &mut Tensor) -> bool {
        // SAFETY: as this function requires, and a place for the answer.
        if unsafe { (self.tensor_from_object)(object.cast(), out) } == 0 {
            return true;
        }
        // SAFETY: the interpreter is attached, as the caller has objects.
        unsafe { ffi::PyErr_Clear() };
        false
    }

    /// A tensor's memory as it is at this moment, which stays there as long as the answer does.
    ///
    /// # Safety
    ///
    /// `object` is a live object of the type that the table is of.
    pub(crate) unsafe fn hold(&self, object: *mut ffi::PyObject) -> Option<Held> {
        let mut managed = ptr::null_mut();
        // SAFETY: as this function requires, and a place for the answer.
        if unsafe { (self.managed_from_object)(object.cast(), &mut managed) } == 0 {
            return ptr::NonNull::new(managed).map(Held);
        }
        // SAFETY: the interpreter is attached, as the caller has objects.
        unsafe { ffi::PyErr_Clear() };
        None
    }

    /// The stream on which the framework works at this moment.
    pub(crate) fn current_stream(&self, py: Python<'_>, device: Device) -> PyResult<*mut c_void> {
        let mut stream = ptr::null_mut();
        // SAFETY: a place for the answer.
        if unsafe { (self.current_stream)(device.kind, device.id, &mut stream) } == 0 {
            return Ok(stream);
        }
        Err(PyErr::take(py).unwrap_or_else(|| PyRuntimeError::new_err(format!("{device} has no current stream"))))
    }
}

/// A tensor that was handed over in a capsule, which keeps it alive.
pub(crate) struct Imported<'py> {
    _capsule: Bound<'py, PyCapsule>,
    pub(crate) tensor: Tensor,
    /// Unknown, and so false, where the capsule has no version.
    pub(crate) is_read_only: bool,
}

/// What `object` is, through `object.__dlpack__()`; `what` is its name for errors.
///
/// `stream` is the stream that the consumer will work on, as DLPack has it: the producer orders its own work before it.
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
        // A producer from before versions knows no such keywords.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => method.call((), Some(&keywords))?,
        answer => answer?,
    };
    let capsule: Bound<'py, PyCapsule> =
        capsule.cast_into().map_err(|_| PyTypeError::new_err(format!("{what}.__dlpack__() must give a capsule")))?;
    // The capsule keeps its name, so that it frees the tensor when it goes: nothing is taken over.
    // SAFETY: live capsules; the pointers are what capsules of these names hold.
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
    Err(PyTypeError::new_err(format!("{what}.__dlpack__() must give a capsule of a DLPack tensor")))
}

//! How torch's tensor objects are seen, at the cost of a call in C each.

use std::ffi::c_void;

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use crate::dlpack::{Device, Exchange, Held, Tensor};

/// The flag of C functions that take no argument.
const NO_ARGUMENTS: i32 = 4;

/// Looks at tensor objects.
pub(super) struct Tensors {
    pub(super) exchange: Exchange,
    /// Types whose objects are what they seem: no subclass with a meaning of its own.
    plain: Vec<Py<PyType>>,
    /// Gives the plain tensor behind any other object, or None.
    unwrap: Py<PyAny>,
    /// The attribute `grad` of plain tensors, and what reads it.
    grad: Py<PyAny>,
    grad_getter: Option<ffi::descrgetfunc>,
    /// The method `data_ptr` of plain tensors, if it is a function in C.
    data_ptr: Option<ffi::PyCFunction>,
    /// What tensors were unwrapped into, alive until the step is done.
    kept: Vec<Py<PyAny>>,
}

impl Tensors {
    pub(super) fn new(py: Python<'_>, plain: Vec<Py<PyType>>, unwrap: Py<PyAny>) -> PyResult<Self> {
        let first = plain.first().ok_or_else(|| PyValueError::new_err("plain must name a type"))?;
        let exchange = Exchange::of(first.bind(py))?;
        let grad = first.bind(py).getattr("grad")?;
        // SAFETY: a live type; a slot of this number has this type.
        let grad_getter = unsafe {
            let slot = ffi::PyType_GetSlot(ffi::Py_TYPE(grad.as_ptr()), ffi::Py_tp_descr_get);
            std::mem::transmute::<*mut c_void, Option<ffi::descrgetfunc>>(slot)
        };
        Ok(Self { exchange, plain, unwrap, grad: grad.unbind(), grad_getter, data_ptr: None, kept: Vec::new() })
    }

    /// Finds `data_ptr`, of any plain tensor.
    pub(super) fn learn(&mut self, tensor: &Bound<'_, PyAny>) {
        if self.data_ptr.is_some() || !self.is_plain(tensor.as_ptr()) {
            return;
        }
        let Ok(method) = tensor.getattr("data_ptr") else { return };
        // SAFETY: a live object; the flags and the function are asked for only of a function in C.
        unsafe {
            if ffi::PyCFunction_Check(method.as_ptr()) != 0 && ffi::PyCFunction_GetFlags(method.as_ptr()) == NO_ARGUMENTS {
                self.data_ptr = ffi::PyCFunction_GetFunction(method.as_ptr());
            }
        }
    }

    pub(super) fn is_plain(&self, object: *mut ffi::PyObject) -> bool {
        // SAFETY: a live object.
        let kind = unsafe { ffi::Py_TYPE(object) };
        self.plain.iter().any(|plain| plain.as_ptr() == kind.cast())
    }

    /// The gradient of a parameter, or None.
    pub(super) fn grad_of<'py>(&self, param: &Bound<'py, PyAny>, name: &Bound<'py, PyString>) -> PyResult<Bound<'py, PyAny>> {
        match self.grad_getter {
            // What the attribute's lookup ends in, where no subclass can have its own.
            Some(getter) if self.is_plain(param.as_ptr()) => {
                // SAFETY: a descriptor's getter, with the descriptor, an object and its type; it gives a new reference, or null with
                // an exception.
                unsafe {
                    let grad = getter(self.grad.as_ptr(), param.as_ptr(), ffi::Py_TYPE(param.as_ptr()).cast());
                    Bound::from_owned_ptr_or_err(param.py(), grad)
                }
            }
            _ => param.getattr(name),
        }
    }

    /// What a tensor object is at this moment; None for what is none, or cannot be seen.
    pub(super) fn look(&mut self, py: Python<'_>, object: *mut ffi::PyObject) -> PyResult<Option<Tensor>> {
        if self.is_plain(object) {
            // SAFETY: the callers have a reference, and the tensor is not changed before the step is made.
            return Ok(unsafe { self.exchange.look(object) });
        }
        // SAFETY: a live object.
        let unwrapped = self.unwrap.bind(py).call1((unsafe { Bound::from_borrowed_ptr(py, object) },))?;
        // SAFETY: as above; what is unwrapped is a tensor.
        let tensor = if unwrapped.is_none() { None } else { unsafe { self.exchange.look(unwrapped.as_ptr()) } };
        self.keep(unwrapped.unbind());
        Ok(tensor)
    }

    /// Where a plain tensor's memory begins at this moment; None where that takes a look.
    #[inline]
    pub(super) fn address(&self, object: *mut ffi::PyObject) -> Option<u64> {
        let data_ptr = self.data_ptr?;
        // SAFETY: the method, of an object of its type; it gives a new reference to a number, or null with an exception.
        unsafe {
            let number = data_ptr(object, std::ptr::null_mut());
            if number.is_null() {
                ffi::PyErr_Clear();
                return None;
            }
            let address = ffi::PyLong_AsUnsignedLongLong(number);
            ffi::Py_DecRef(number);
            Some(address)
        }
    }

    /// The memory of a plain tensor on the host, which stays there as long as the answer does.
    pub(super) fn hold(&self, object: *mut ffi::PyObject) -> Option<Held> {
        // SAFETY: a live tensor of a type that the table is of.
        let held = if self.is_plain(object) { unsafe { self.exchange.hold(object) } } else { None };
        held.filter(|held| held.tensor().device == Device::HOST)
    }

    /// Keeps an object alive until [`release`](Self::release).
    pub(super) fn keep(&mut self, object: Py<PyAny>) {
        self.kept.push(object);
    }

    pub(super) fn release(&mut self) {
        self.kept.clear();
    }
}

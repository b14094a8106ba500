//! How torch's tensor objects are seen, at the cost of a call in C each.

use std::ffi::c_void;

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use crate::dlpack::{Exchange, Held, Tensor};

/// Looks at tensor objects.
pub(super) struct Tensors {
    pub(super) exchange: Exchange,
    /// Types whose objects are what they seem: no subclass with a meaning of its own.
    plain: Vec<Py<PyType>>,
    /// Gives the plain tensor behind any other object, or None.
    unwrap: Py<PyAny>,
    /// Gives the plain tensor behind a parameter's gradient, laid out on the processes as the parameter is, or None.
    unwrap_grad: Py<PyAny>,
    /// The attribute `grad` of plain tensors, and what reads it.
    grad: Py<PyAny>,
    grad_getter: Option<ffi::descrgetfunc>,
    /// What tensors were unwrapped into, alive until the step is done.
    kept: Vec<Py<PyAny>>,
}

impl Tensors {
    pub(super) fn new(
        py: Python<'_>,
        plain: Vec<Py<PyType>>,
        unwrap: Py<PyAny>,
        unwrap_grad: Py<PyAny>,
    ) -> PyResult<Self> {
        let first = plain.first().ok_or_else(|| PyValueError::new_err("plain must name a type"))?;
        let exchange = Exchange::of(first.bind(py))?;
        let grad = first.bind(py).getattr("grad")?;
        // SAFETY: a live type; a slot of this number has this type.
        let grad_getter = unsafe {
            let slot = ffi::PyType_GetSlot(ffi::Py_TYPE(grad.as_ptr()), ffi::Py_tp_descr_get);
            std::mem::transmute::<*mut c_void, Option<ffi::descrgetfunc>>(slot)
        };
        Ok(Self { exchange, plain, unwrap, unwrap_grad, grad: grad.unbind(), grad_getter, kept: Vec::new() })
    }

    pub(super) fn is_plain(&self, object: *mut ffi::PyObject) -> bool {
        // SAFETY: a live object.
        let kind = unsafe { ffi::Py_TYPE(object) };
        self.plain.iter().any(|plain| plain.as_ptr() == kind.cast())
    }

    /// The gradient of a parameter that is a plain tensor; None if it has none.
    #[inline]
    pub(super) fn grad_of_plain<'py>(
        &self,
        py: Python<'py>,
        param: *mut ffi::PyObject,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(getter) = self.grad_getter else { return Ok(None) };
        // SAFETY: a descriptor's getter, with the descriptor, an object and its type; it gives a new reference, or null with an exception.
        let grad = unsafe {
            let grad = getter(self.grad.as_ptr(), param, ffi::Py_TYPE(param).cast());
            Bound::from_owned_ptr_or_err(py, grad)
        }?;
        Ok((!grad.is_none()).then_some(grad))
    }

    /// The gradient of a parameter, or None.
    pub(super) fn grad_of<'py>(
        &self,
        param: &Bound<'py, PyAny>,
        name: &Bound<'py, PyString>,
    ) -> PyResult<Bound<'py, PyAny>> {
        param.getattr(name)
    }

    /// What a tensor object is at this moment; None for what is none, or cannot be seen.
    pub(super) fn look(&mut self, py: Python<'_>, object: *mut ffi::PyObject) -> PyResult<Option<Tensor>> {
        if self.is_plain(object) {
            let mut tensor = Tensor::EMPTY;
            return Ok(self.look_at_plain(object, &mut tensor).map(|()| tensor));
        }
        // SAFETY: a live object.
        let unwrapped = self.unwrap.bind(py).call1((unsafe { Bound::from_borrowed_ptr(py, object) },))?;
        Ok(self.look_at_unwrapped(unwrapped))
    }

    /// What a parameter's gradient is at this moment, where it lies as the parameter does.
    pub(super) fn look_at_grad(
        &mut self,
        py: Python<'_>,
        param: &Bound<'_, PyAny>,
        grad: &Bound<'_, PyAny>,
    ) -> PyResult<Option<Tensor>> {
        if self.is_plain(param.as_ptr()) && self.is_plain(grad.as_ptr()) {
            return self.look(py, grad.as_ptr());
        }
        let unwrapped = self.unwrap_grad.bind(py).call1((param, grad))?;
        Ok(self.look_at_unwrapped(unwrapped))
    }

    fn look_at_unwrapped(&mut self, unwrapped: Bound<'_, PyAny>) -> Option<Tensor> {
        // SAFETY: what is unwrapped is a tensor, or None.
        let tensor = if unwrapped.is_none() { None } else { unsafe { self.exchange.look(unwrapped.as_ptr()) } };
        self.keep(unwrapped.unbind());
        tensor
    }

    /// Puts what a plain tensor is at this moment into `out`. Fails for any other object.
    #[inline]
    pub(super) fn look_at_plain(&self, object: *mut ffi::PyObject, out: &mut Tensor) -> Option<()> {
        // SAFETY: the callers have a reference, and the tensor is not changed before the step is made.
        (self.is_plain(object) && unsafe { self.exchange.look_into(object, out) }).then_some(())
    }

    /// A plain tensor's memory as it is, which stays there as long as the answer does; None for any other object.
    pub(super) fn hold(&self, object: *mut ffi::PyObject) -> Option<Held> {
        // SAFETY: a live tensor of a type that the table is of.
        if self.is_plain(object) { unsafe { self.exchange.hold(object) } } else { None }
    }

    /// Keeps an object alive until [`release`](Self::release).
    pub(super) fn keep(&mut self, object: Py<PyAny>) {
        self.kept.push(object);
    }

    pub(super) fn release(&mut self) {
        self.kept.clear();
    }
}

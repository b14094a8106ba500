//! Looks at torch's tensor objects, at the cost of a call in C each.

use std::ffi::c_void;

use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use crate::dlpack::{Exchange, Held, Tensor};

/// Looks at tensor objects.
pub(super) struct Tensors {
    pub(super) exchange: Exchange,
    /// The types of plain tensors. A subclass may give its objects another meaning.
    plain: Vec<Py<PyType>>,
    /// Gives the plain tensor behind any other object, or None.
    unwrap: Py<PyAny>,
    /// Gives the plain tensor behind a parameter's gradient, with the parameter's placements, or
    /// None.
    unwrap_grad: Py<PyAny>,
    /// The descriptor of the attribute `grad` of plain tensors, and its getter.
    grad: Py<PyAny>,
    grad_getter: Option<ffi::descrgetfunc>,
    grad_name: Py<PyString>,
    /// What stays alive until the step is done.
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
        // SAFETY: the type of a live object is alive, and what its slot `tp_descr_get` has is null
        // or a function of this type.
        let grad_getter = unsafe {
            let slot = ffi::PyType_GetSlot(ffi::Py_TYPE(grad.as_ptr()), ffi::Py_tp_descr_get);
            std::mem::transmute::<*mut c_void, Option<ffi::descrgetfunc>>(slot)
        };
        let (grad, grad_name) = (grad.unbind(), PyString::intern(py, "grad").unbind());
        Ok(Self { exchange, plain, unwrap, unwrap_grad, grad, grad_getter, grad_name, kept: Vec::new() })
    }

    /// Whether a live object is a plain tensor.
    fn is_plain(&self, object: *mut ffi::PyObject) -> bool {
        // SAFETY: the callers have a reference to `object`.
        let kind = unsafe { ffi::Py_TYPE(object) };
        self.plain.iter().any(|plain| plain.as_ptr() == kind.cast())
    }

    /// The gradient of a parameter that is a plain tensor, or None.
    #[inline]
    pub(super) fn grad_of_plain<'py>(
        &self,
        py: Python<'py>,
        param: *mut ffi::PyObject,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(getter) = self.grad_getter else { return Ok(None) };
        // SAFETY: `getter` is that of the descriptor `self.grad`. `param` is alive: the caller's
        // list lends it. The getter returns a new reference, or null with an exception set.
        let grad = unsafe {
            let grad = getter(self.grad.as_ptr(), param, ffi::Py_TYPE(param).cast());
            Bound::from_owned_ptr_or_err(py, grad)
        }?;
        Ok((!grad.is_none()).then_some(grad))
    }

    /// The gradient of a parameter, or Python's None.
    pub(super) fn grad_of<'py>(&self, param: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        param.getattr(self.grad_name.bind(param.py()))
    }

    /// What a live object is at this moment, if it is a tensor that can be seen.
    pub(super) fn look(&mut self, py: Python<'_>, object: *mut ffi::PyObject) -> PyResult<Option<Tensor>> {
        if self.is_plain(object) {
            let mut tensor = Tensor::EMPTY;
            return Ok(self.look_at_plain(object, &mut tensor).map(|()| tensor));
        }
        // SAFETY: the callers have a reference to `object`.
        let object = unsafe { Bound::from_borrowed_ptr(py, object) };
        let unwrapped = self.unwrap.bind(py).call1((object,))?;
        Ok(self.look_at_unwrapped(unwrapped))
    }

    /// What a parameter's gradient is at this moment, if it can have the parameter's placements.
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
        // SAFETY: `unwrapped` is alive, and a tensor of torch's: `unwrap` and `unwrap_grad` return
        // nothing else but None.
        let tensor = if unwrapped.is_none() { None } else { unsafe { self.exchange.look(unwrapped.as_ptr()) } };
        self.keep(unwrapped.unbind());
        tensor
    }

    /// Puts what a live object is at this moment into `out`. None if it is no plain tensor.
    #[inline]
    pub(super) fn look_at_plain(&self, object: *mut ffi::PyObject, out: &mut Tensor) -> Option<()> {
        // SAFETY: the callers have a reference to `object`, which is a plain tensor, and use `out`
        // only while that has the same shape.
        (self.is_plain(object) && unsafe { self.exchange.look_into(object, out) }).then_some(())
    }

    /// Holds the memory that a live object has at this moment. None if it is no plain tensor.
    pub(super) fn hold(&self, object: *mut ffi::PyObject) -> Option<Held> {
        // SAFETY: the callers have a reference to `object`, which is a plain tensor.
        if self.is_plain(object) { unsafe { self.exchange.hold(object) } } else { None }
    }

    /// Keeps an object alive until [`release`](Self::release).
    pub(super) fn keep(&mut self, object: Py<PyAny>) {
        self.kept.push(object);
    }

    /// Lets go of what was kept for the step.
    pub(super) fn release(&mut self) {
        self.kept.clear();
    }
}

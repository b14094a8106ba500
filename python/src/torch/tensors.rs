//! Looks at torch's tensor objects. A look is one call in C.

use std::ffi::c_void;

use pyo3::exceptions::{PyRuntimeError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use crate::dlpack::{Exchange, Held, Tensor};

use super::ahead;
use super::masters::Version;

/// Looks at tensor objects.
pub(super) struct Tensors {
    pub(super) exchange: Exchange,
    /// The types of plain tensors: the type of `exchange`, and others below it. Any other subclass
    /// may give its objects another meaning.
    plain: Vec<Py<PyType>>,
    /// Returns the plain tensor behind any other object, or None.
    unwrap: Py<PyAny>,
    /// Returns the plain tensor behind a parameter's gradient, with the parameter's placements, or
    /// None.
    unwrap_grad: Py<PyAny>,
    /// The descriptor of the attribute `grad` of plain tensors, and its getter.
    grad: Py<PyAny>,
    grad_getter: Option<ffi::descrgetfunc>,
    grad_name: Py<PyString>,
    /// The descriptor of the attribute `_version` of plain tensors, and its getter.
    version: Py<PyAny>,
    version_getter: Option<ffi::descrgetfunc>,
    pub(super) layout: Option<ahead::Layout>,
    /// Objects that stay alive until the step is done.
    kept: Vec<Py<PyAny>>,
}

/// A tensor with memory of its own, whose type is that of [`Tensors::exchange`] or below it.
pub(super) struct Plain<'py>(Bound<'py, PyAny>);

impl<'py> Plain<'py> {
    pub(super) fn object(&self) -> &Bound<'py, PyAny> {
        &self.0
    }
}

impl Tensors {
    pub(super) fn new(
        py: Python<'_>,
        plain: Vec<Py<PyType>>,
        unwrap: Py<PyAny>,
        unwrap_grad: Py<PyAny>,
    ) -> PyResult<Self> {
        let text = "plain must have at least one type, got none";
        let first = plain.first().ok_or_else(|| PyValueError::new_err(text))?.bind(py);
        let other = plain.iter().map(|kind| kind.bind(py)).find(|kind| !is_below(kind, first));
        if let Some(other) = other {
            let text = format!("plain must have {first} and types below it, got {other}");
            return Err(PyTypeError::new_err(text));
        }
        let exchange = Exchange::of(first)?;
        let (grad, version) = (first.getattr("grad")?, first.getattr("_version")?);
        let (grad_getter, version_getter) = (getter_of(&grad), getter_of(&version));
        let (grad, version) = (grad.unbind(), version.unbind());
        let (grad_name, layout, kept) = (PyString::intern(py, "grad").unbind(), ahead::Layout::of(first), Vec::new());
        Ok(Self {
            exchange,
            plain,
            unwrap,
            unwrap_grad,
            grad,
            grad_getter,
            grad_name,
            version,
            version_getter,
            layout,
            kept,
        })
    }

    /// Whether an object has one of the types of plain tensors.
    pub(super) fn is_plain(&self, object: &Bound<'_, PyAny>) -> bool {
        let kind = object.get_type_ptr();
        self.plain.iter().any(|plain| plain.as_ptr() == kind.cast())
    }

    /// The gradient of a parameter that is a plain tensor, or None.
    #[inline]
    pub(super) fn grad_of_plain<'py>(&self, param: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(getter) = self.grad_getter else { return Ok(None) };
        // SAFETY: `getter` is that of the descriptor `self.grad`, an attribute of the first type of
        // plain tensors. The parameter has one of their types.
        let grad = unsafe { get(getter, &self.grad, param) }?;
        Ok((!grad.is_none()).then_some(grad))
    }

    /// The counts of changes in place of a parameter and of the plain tensor behind it. torch
    /// counts an operation on a DTensor only in the DTensor itself. Under a `TorchFunctionMode`,
    /// Python code runs.
    #[inline]
    pub(super) fn version_of(&self, param: &Bound<'_, PyAny>, plain: &Plain<'_>) -> PyResult<Version> {
        let of_plain = self.count_of(plain.object())?;
        let of_param = if param.is(plain.object()) { of_plain } else { self.count_of(param)? };
        Ok(of_param.zip(of_plain))
    }

    /// [`version_of`](Self::version_of) a parameter that is a plain tensor itself.
    #[inline]
    pub(super) fn version_of_plain(&self, param: &Bound<'_, PyAny>) -> PyResult<Version> {
        Ok(self.count_of(param)?.map(|count| (count, count)))
    }

    /// How often torch's operations have changed a tensor in place. None of an inference tensor.
    #[inline]
    fn count_of(&self, tensor: &Bound<'_, PyAny>) -> PyResult<Option<u64>> {
        let Some(getter) = self.version_getter.filter(|_| self.is_tensor(tensor)) else { return Ok(None) };
        // SAFETY: `getter` is that of the descriptor `self.version`, an attribute of the first type
        // of plain tensors. The tensor has that type or one below it.
        match unsafe { get(getter, &self.version, tensor) } {
            Ok(count) => count.extract().map(Some),
            // torch's own exception. Python code may raise others.
            Err(error) if error.get_type(tensor.py()).is(tensor.py().get_type::<PyRuntimeError>()) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether an object is a tensor, of any subclass.
    pub(super) fn is_tensor(&self, object: &Bound<'_, PyAny>) -> bool {
        self.is_plain(object)
            || self.plain.first().is_some_and(|first| is_below(&object.get_type(), first.bind(object.py())))
    }

    /// The gradient of a parameter, or Python's None.
    pub(super) fn grad_of<'py>(&self, param: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        param.getattr(self.grad_name.bind(param.py()))
    }

    /// The plain tensor behind an object, or None. It is kept until the step is done.
    pub(super) fn plain<'py>(&mut self, object: &Bound<'py, PyAny>) -> PyResult<Option<Plain<'py>>> {
        let plain = match self.is_plain(object) {
            true => object.clone(),
            false => self.unwrap.bind(object.py()).call1((object,))?,
        };
        self.checked("unwrap", plain)
    }

    /// The plain tensor behind a parameter's gradient, or None if it cannot have the parameter's
    /// placements. It is kept until the step is done.
    pub(super) fn plain_grad<'py>(
        &mut self,
        param: &Bound<'py, PyAny>,
        grad: &Bound<'py, PyAny>,
    ) -> PyResult<Option<Plain<'py>>> {
        let plain = match self.is_plain(param) && self.is_plain(grad) {
            true => grad.clone(),
            false => self.unwrap_grad.bind(grad.py()).call1((param, grad))?,
        };
        self.checked("unwrap_grad", plain)
    }

    /// The result of `what`, which is kept until the step is done.
    fn checked<'py>(&mut self, what: &str, plain: Bound<'py, PyAny>) -> PyResult<Option<Plain<'py>>> {
        if plain.is_none() {
            return Ok(None);
        }
        if !self.is_tensor(&plain) {
            let text = format!("{what} must return a tensor or None, got {}", plain.get_type());
            return Err(PyTypeError::new_err(text));
        }
        self.keep(plain.clone().unbind());
        Ok(Some(Plain(plain)))
    }

    /// What a tensor is at this moment, if it can be seen: its answer must be read before Python
    /// code can run, which could change the tensor's shape. No Python code runs.
    pub(super) fn look(&self, plain: &Plain<'_>) -> Option<Tensor> {
        // SAFETY: the object is alive, and of the table's type or one below it (`Plain`). The
        // callers read the answer before other code can run.
        unsafe { self.exchange.look(plain.0.as_ptr()) }
    }

    /// [`look`](Self::look) at an object into a place that is used again. None if it has none of
    /// the types of plain tensors.
    #[inline]
    pub(super) fn look_at_plain(&self, object: &Bound<'_, PyAny>, out: &mut Tensor) -> Option<()> {
        // SAFETY: `object` is alive, and of the table's type or one below it, as all types in
        // `plain`. The callers read `out` before other code can run.
        (self.is_plain(object) && unsafe { self.exchange.look_into(object.as_ptr(), out) }).then_some(())
    }

    /// Holds a tensor through DLPack. None if it has none of the types of plain tensors.
    pub(super) fn hold(&self, object: &Bound<'_, PyAny>) -> Option<Held> {
        // SAFETY: `object` is alive, and of the table's type or one below it, as all types in
        // `plain`.
        if self.is_plain(object) { unsafe { self.exchange.hold(object.as_ptr()) } } else { None }
    }

    /// Keeps an object alive until [`release`](Self::release).
    pub(super) fn keep(&mut self, object: Py<PyAny>) {
        self.kept.push(object);
    }

    /// Drops the objects that were kept for the step.
    pub(super) fn release(&mut self) {
        self.kept.clear();
    }
}

/// The function with which a descriptor gets an attribute.
fn getter_of(descriptor: &Bound<'_, PyAny>) -> Option<ffi::descrgetfunc> {
    // SAFETY: the type of a live object is alive, and what its slot `tp_descr_get` has is null or a
    // function of this type.
    unsafe {
        let slot = ffi::PyType_GetSlot(ffi::Py_TYPE(descriptor.as_ptr()), ffi::Py_tp_descr_get);
        std::mem::transmute::<*mut c_void, Option<ffi::descrgetfunc>>(slot)
    }
}

/// The attribute of an object that a descriptor stands for.
///
/// # Safety
///
/// - `getter` is that of the descriptor. The object has the type whose attribute the descriptor is,
///   or one below it.
#[inline]
unsafe fn get<'py>(
    getter: ffi::descrgetfunc,
    descriptor: &Py<PyAny>,
    object: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: `getter` is given its descriptor (this function's requirement) and a live object. It
    // returns a new reference, or null with an exception set.
    unsafe {
        let value = getter(descriptor.as_ptr(), object.as_ptr(), object.get_type_ptr().cast());
        Bound::from_owned_ptr_or_err(object.py(), value)
    }
}

/// Whether a type is another type or inherits from it. No Python code can change the answer.
fn is_below(kind: &Bound<'_, PyType>, above: &Bound<'_, PyType>) -> bool {
    // SAFETY: both are live types.
    unsafe { ffi::PyType_IsSubtype(kind.as_type_ptr(), above.as_type_ptr()) != 0 }
}

//! `Stepper`: the class that the Python optimizer calls.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use pyo3::exceptions::PyRuntimeError;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyType};

use crate::openmp::OpenMp;

use super::Place;
use super::group::{Group, Scalars};
use super::known::Known;
use super::list::List;
use super::masters::{Masters, Pair};
use super::state::Names;
use super::tensors::Tensors;

/// The steps of one `dualadam.torch.DualAdam`, which calls this.
#[pyclass(frozen, module = "dualadam._dualadam")]
pub(crate) struct Stepper {
    steps: Mutex<Steps>,
    /// The next step must first forget what is known of the tensors.
    must_forget: AtomicBool,
    /// Something was stepped since the last call of `step` began.
    has_begun: AtomicBool,
}

/// The part of a [`Stepper`] that one thread uses at a time.
pub(super) struct Steps {
    pub(super) tensors: Tensors,
    pub(super) names: Names,
    /// Returns the number of threads of a step on the CPU.
    pub(super) threads: Py<PyAny>,
    pub(super) openmp: Option<OpenMp>,
    /// Returns the name of a parameter, of its group, the group's index and its position there.
    pub(super) name_of: Py<PyAny>,
    pub(super) lists: Vec<List>,
    /// What is known of each parameter from the step before.
    pub(super) known: Vec<Option<Known>>,
    pub(super) masters: Masters,
}

#[pymethods]
impl Stepper {
    #[new]
    #[pyo3(signature = (*, plain, unwrap, unwrap_grad, weak_storage, has_expired, name_of, threads, parallel))]
    #[expect(clippy::too_many_arguments, reason = "each is a function of torch's, given by its name")]
    fn new(
        py: Python<'_>,
        plain: Vec<Py<PyType>>,
        unwrap: Py<PyAny>,
        unwrap_grad: Py<PyAny>,
        weak_storage: Py<PyAny>,
        has_expired: Py<PyAny>,
        name_of: Py<PyAny>,
        threads: Py<PyAny>,
        parallel: usize,
    ) -> PyResult<Self> {
        // SAFETY: `dualadam.torch` gives the function's address in the library that torch has
        // loaded and uses, or 0.
        let openmp = unsafe { OpenMp::at(parallel) };
        let (tensors, names) = (Tensors::new(py, plain, unwrap, unwrap_grad)?, Names::new(py));
        let masters = Masters::new(weak_storage, has_expired);
        let (lists, known) = (Vec::new(), Vec::new());
        let steps = Mutex::new(Steps { tensors, names, name_of, threads, openmp, lists, known, masters });
        Ok(Self { steps, must_forget: AtomicBool::new(false), has_begun: AtomicBool::new(false) })
    }

    /// Make one step of every parameter that has a gradient.
    ///
    /// Args:
    ///     state: the optimizer's state.
    ///     groups: per group: the parameters, the group itself, the config, whether there are
    ///         masters, and the lr if it is a tensor on a CUDA device.
    ///     grads: gradients that replace those of parameters, by the parameter's id, or None.
    ///     multiplier: what the gradients on the CPU are multiplied by.
    ///     is_controlled: whether the CUDA devices form the coefficients and count the steps.
    ///     scalars: per CUDA device: its number, the loss scale and found-inf, each a float32
    ///         tensor on that device or None.
    ///
    /// Returns:
    ///     None if the step was made. Otherwise the places (group, position) of parameters whose
    ///     tensors the step cannot take as they are. Nothing was changed then.
    #[pyo3(signature = (state, groups, grads, multiplier, is_controlled, scalars))]
    #[expect(clippy::too_many_arguments, reason = "one call per step, and each is looked at once")]
    fn step(
        &self,
        py: Python<'_>,
        state: &Bound<'_, PyDict>,
        groups: Vec<Group<'_>>,
        grads: Option<&Bound<'_, PyDict>>,
        multiplier: f64,
        is_controlled: bool,
        scalars: Vec<Scalars<'_>>,
    ) -> PyResult<Option<Vec<Place>>> {
        let mut steps = self.lock()?;
        if self.must_forget.swap(false, Ordering::Relaxed) {
            steps.known.clear();
        }
        self.has_begun.store(false, Ordering::Relaxed);
        let outcome = steps.gather(state, &groups, grads, is_controlled).and_then(|odd| {
            if odd.is_empty() {
                steps.run(py, &groups, multiplier, is_controlled, &scalars, &self.has_begun).map(|()| None)
            } else {
                Ok(Some(odd))
            }
        });
        steps.tensors.release();
        steps.masters.end();
        outcome
    }

    /// Whether the last call of `step` stepped something, also if it ended by an exception.
    fn has_begun(&self) -> bool {
        self.has_begun.load(Ordering::Relaxed)
    }

    /// Drop all references to tensors. If a step is being made, the next one does it first.
    fn forget(&self) {
        self.must_forget.store(true, Ordering::Relaxed);
        if let Some(mut steps) = self.try_lock() {
            steps.known.clear();
        }
    }

    /// Drop all references to tensors, and what is known of masters: the next step brings them up
    /// to date.
    fn restart(&self) -> PyResult<()> {
        let mut steps = self.lock()?;
        steps.known.clear();
        steps.masters.clear();
        Ok(())
    }

    /// Take over into masters what other code wrote into their parameters.
    ///
    /// Args:
    ///     pairs: parameters, after their positions among those of all groups, and the masters
    ///         that fit them.
    fn sync_masters(&self, py: Python<'_>, pairs: Vec<Pair<'_>>) -> PyResult<()> {
        let mut steps = self.lock()?;
        let outcome = steps.sync_pairs(py, &pairs);
        steps.tensors.release();
        outcome
    }

    /// The garbage collector sees the references to tensors, unless a step is being made.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(steps) = self.try_lock() else { return Ok(()) };
        steps.known.iter().flatten().try_for_each(|known| known.traverse(&visit))
    }

    fn __clear__(&self) {
        self.forget();
    }
}

impl Stepper {
    /// Fails if another thread is in a step.
    fn lock(&self) -> PyResult<MutexGuard<'_, Steps>> {
        let text = "a DualAdam must be stepped by one thread at a time, another call of step has not returned yet";
        self.try_lock().ok_or_else(|| PyRuntimeError::new_err(text))
    }

    /// None if another thread is in a step.
    fn try_lock(&self) -> Option<MutexGuard<'_, Steps>> {
        match self.steps.try_lock() {
            Ok(steps) => Some(steps),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

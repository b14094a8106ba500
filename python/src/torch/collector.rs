//! What a stepper does for Python's garbage collector.
//!
//! A parameter may refer to its optimizer, by a hook or an attribute. The collector frees such a
//! cycle only if it sees all references to its objects. It cannot see those of a [`Known`]. To show
//! them would not suffice: while C++ code holds a tensor, as `Known` does for speed, torch has a
//! reference to the tensor's object that it does not show.
//!
//! So every stepper forgets its tensors before a collection. The next step looks at them as at new
//! ones.
//!
//! [`Known`]: super::known::Known

use std::sync::{Arc, Mutex, PoisonError, Weak};

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

use super::stepper::Shared;

/// All steppers that live.
///
/// The lock is only taken while the interpreter's lock is held, and no Python code runs under it.
/// `os.fork` holds the interpreter's lock too, so in a child this lock is never one that a thread
/// of the parent has taken.
static STEPPERS: Mutex<Vec<Weak<Shared>>> = Mutex::new(Vec::new());

/// Lets a stepper forget its tensors before each collection.
pub(super) fn enlist(py: Python<'_>, stepper: &Arc<Shared>) -> PyResult<()> {
    static CALLBACK: PyOnceLock<()> = PyOnceLock::new();
    CALLBACK.get_or_try_init(py, || {
        let callbacks = py.import("gc")?.getattr("callbacks")?;
        callbacks.call_method1("append", (wrap_pyfunction!(before_collection, py)?,)).map(drop)
    })?;
    let mut steppers = STEPPERS.lock().unwrap_or_else(PoisonError::into_inner);
    steppers.retain(|stepper| stepper.strong_count() > 0);
    steppers.push(Arc::downgrade(stepper));
    Ok(())
}

/// Python calls this at the start and at the end of each collection.
///
/// Collections of generation 0 are frequent. What they leave, a later one finds.
#[pyfunction]
fn before_collection(phase: &str, info: &Bound<'_, PyDict>) -> PyResult<()> {
    let generation: Option<i64> = info.get_item("generation")?.map(|generation| generation.extract()).transpose()?;
    if phase == "start" && generation != Some(0) {
        let steppers = STEPPERS.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // Objects that are freed here may run Python code, which may make steppers.
        steppers.iter().filter_map(Weak::upgrade).for_each(|stepper| stepper.forget());
    }
    Ok(())
}

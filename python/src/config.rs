//! Schedules and hyperparameters: the library's, with its checks.

use dualadam::{DualAdamConfig, InverseTerm, SwitchSchedule, WeightDecay};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::errors::plain;

/// How the weight α of the inverse branch falls from 1 to 0 as a tensor is updated.
///
/// t is the tensor's own step and counts from 1. The arithmetic is float64. `Schedule.linear` is
/// line 8 of Algorithm 1 in arXiv 2603.07122. A schedule is an immutable value: it compares,
/// hashes, copies and pickles.
#[pyclass(frozen, eq, module = "dualadam")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Schedule {
    pub(crate) inner: SwitchSchedule,
}

impl Schedule {
    fn checked(inner: SwitchSchedule) -> PyResult<Self> {
        inner.validate().map_err(plain)?;
        Ok(Self { inner })
    }
}

#[pymethods]
impl Schedule {
    /// α = max(0, 1 - t·ξ): the paper's schedule. `switching_rate` is ξ, from 0 to 1. With 0, the
    /// optimizer stays inverse Adam. With 1, it is Adam from the first step.
    #[staticmethod]
    fn linear(switching_rate: f64) -> PyResult<Self> {
        Self::checked(SwitchSchedule::Linear { switching_rate })
    }

    /// The linear schedule whose α reaches 0 at step `step`, which is at least 1: ξ = 1/step. The
    /// paper takes about 16% of the run.
    #[staticmethod]
    fn linear_until(step: u64) -> PyResult<Self> {
        if step == 0 {
            return Err(PyValueError::new_err("step must be at least 1, got 0"));
        }
        Self::checked(SwitchSchedule::linear_until(step))
    }

    /// α = 1 - t·ξ as long as that is at least ξ, then 0: what the authors' published code does.
    #[staticmethod]
    fn linear_early_drop(switching_rate: f64) -> PyResult<Self> {
        Self::checked(SwitchSchedule::LinearEarlyDrop { switching_rate })
    }

    /// α = base^⌊(t-1)/period⌋, and 0 once that is below `cutoff`. `base` and `cutoff` are from 0
    /// to 1, and `period` is at least 1.
    #[staticmethod]
    fn exponential(base: f64, period: u64, cutoff: f64) -> PyResult<Self> {
        Self::checked(SwitchSchedule::Exponential { base, period, cutoff })
    }

    /// α = 1 up to and including `switching_step`, then 0. With 0, it is Adam from the first step.
    #[staticmethod]
    fn fixed(switching_step: u64) -> PyResult<Self> {
        Self::checked(SwitchSchedule::Fixed { switching_step })
    }

    /// The schedule whose `as_tuple` is `parts`, a tuple or a list.
    #[staticmethod]
    fn from_tuple(parts: &Bound<'_, PyAny>) -> PyResult<Self> {
        let inner = schedule_of(parts).ok_or_else(|| {
            let text = "schedule must be a dualadam.Schedule, or what its as_tuple gives, such as ('linear', 0.00625)";
            PyValueError::new_err(format!("{text}; got {parts:?}"))
        })?;
        Self::checked(inner)
    }

    /// The schedule as plain values: its kind, then its numbers.
    fn as_tuple<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        match self.inner {
            SwitchSchedule::Linear { switching_rate } => ("linear", switching_rate).into_pyobject(py),
            SwitchSchedule::LinearEarlyDrop { switching_rate } => {
                ("linear_early_drop", switching_rate).into_pyobject(py)
            }
            SwitchSchedule::Exponential { base, period, cutoff } => {
                ("exponential", base, period, cutoff).into_pyobject(py)
            }
            SwitchSchedule::Fixed { switching_step } => ("fixed", switching_step).into_pyobject(py),
            other => Err(PyValueError::new_err(format!(
                "the schedule must be one of Schedule.linear, linear_early_drop, exponential and fixed, got {other:?}"
            ))),
        }
    }

    /// α at a tensor's `step`-th update.
    fn alpha(&self, step: u64) -> f64 {
        self.inner.alpha(step)
    }

    /// The first step whose α is 0, or None. From that step on, the update is plain Adam.
    fn first_adam_step(&self) -> Option<u64> {
        self.inner.first_adam_step()
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        self.as_tuple(py)?.hash()
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let parts = self.as_tuple(py)?;
        let arguments: Vec<String> = parts.iter().skip(1).map(|part| part.to_string()).collect();
        Ok(format!("Schedule.{}({})", parts.get_item(0)?, arguments.join(", ")))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let make = py.get_type::<Self>().getattr("from_tuple")?;
        Ok((make, PyTuple::new(py, [self.as_tuple(py)?])?))
    }
}

/// The schedule that has these plain values, if there is one.
fn schedule_of(parts: &Bound<'_, PyAny>) -> Option<SwitchSchedule> {
    let part = |index: usize| parts.get_item(index).ok();
    let number = |index: usize| part(index)?.extract::<f64>().ok();
    let steps = |index: usize| part(index)?.extract::<u64>().ok();
    let kind: String = part(0)?.extract().ok()?;
    Some(match (kind.as_str(), parts.len().ok()?) {
        ("linear", 2) => SwitchSchedule::Linear { switching_rate: number(1)? },
        ("linear_early_drop", 2) => SwitchSchedule::LinearEarlyDrop { switching_rate: number(1)? },
        ("exponential", 4) => SwitchSchedule::Exponential { base: number(1)?, period: steps(2)?, cutoff: number(3)? },
        ("fixed", 2) => SwitchSchedule::Fixed { switching_step: steps(1)? },
        _ => return None,
    })
}

/// Checked hyperparameters of one parameter group.
///
/// `decoupled` chooses AdamW's weight decay instead of L2's. `inverse_term` is "paper" (line 10 of
/// Algorithm 1) or "with_eps" (the authors' published code, which multiplies by √v̂ + ε).
#[pyclass(frozen, eq, module = "dualadam")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Config {
    pub(crate) inner: DualAdamConfig,
}

#[pymethods]
impl Config {
    #[new]
    #[pyo3(signature = (lr, betas, eps, weight_decay, schedule, *, decoupled = true, inverse_term = "paper", maximize = false))]
    #[expect(clippy::too_many_arguments, reason = "they are the caller's keywords")]
    fn new(
        lr: f64,
        betas: (f64, f64),
        eps: f64,
        weight_decay: f64,
        schedule: &Schedule,
        decoupled: bool,
        inverse_term: &str,
        maximize: bool,
    ) -> PyResult<Self> {
        let inverse_term = match inverse_term {
            "paper" => InverseTerm::Paper,
            "with_eps" => InverseTerm::WithEps,
            other => {
                let text = format!("inverse_term must be 'paper' or 'with_eps', got '{other}'");
                return Err(PyValueError::new_err(text));
            }
        };
        let weight_decay = if decoupled { WeightDecay::Decoupled(weight_decay) } else { WeightDecay::L2(weight_decay) };
        let inner = DualAdamConfig::default()
            .with_lr(lr)
            .with_betas(betas.0, betas.1)
            .with_eps(eps)
            .with_weight_decay(weight_decay)
            .with_schedule(schedule.inner)
            .with_inverse_term(inverse_term)
            .with_maximize(maximize);
        inner.validate().map_err(plain)?;
        Ok(Self { inner })
    }

    /// The scalars of a tensor's `step`-th update by name, formed in float64 and rounded once to
    /// float32.
    #[pyo3(signature = (step, grad_multiplier = 1.0))]
    fn coeffs<'py>(&self, py: Python<'py>, step: u64, grad_multiplier: f64) -> PyResult<Bound<'py, PyDict>> {
        let coeffs = self.inner.coeffs_scaled(step, grad_multiplier).map_err(plain)?;
        let named = PyDict::new(py);
        for (name, value) in [
            ("one_minus_beta1", coeffs.one_minus_beta1),
            ("one_minus_beta2", coeffs.one_minus_beta2),
            ("inv_sqrt_bc2", coeffs.inv_sqrt_bc2),
            ("eps", coeffs.eps),
            ("inverse_eps", coeffs.inverse_eps),
            ("inverse_scale", coeffs.inverse_scale),
            ("adam_scale", coeffs.adam_scale),
            ("decay", coeffs.decay),
            ("l2", coeffs.l2),
            ("grad_scale", coeffs.grad_scale),
        ] {
            named.set_item(name, value)?;
        }
        Ok(named)
    }
}

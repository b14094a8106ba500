//! `Schedule` and `Config`: the library's schedules and hyperparameters, with its checks.

use dualadam::{DualAdamConfig, InverseTerm, SwitchSchedule, WeightDecay};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::errors::plain;

/// When DualAdam becomes Adam: how α, the weight of the inverse update, falls from 1 to 0.
///
/// A schedule gives α for each step t of a tensor. t counts the updates of that tensor, from 1.
/// With α = 0, the update is plain Adam. The arithmetic is float64. Five static methods make
/// schedules:
///
/// - `linear_until(step)`: linear, and 0 from step `step` on. The paper takes 16% of the run.
/// - `linear(switching_rate)`: the same, by its rate ξ. Line 8 of Algorithm 1 in arXiv 2603.07122.
/// - `linear_early_drop(switching_rate)`: as in the authors' published code.
/// - `exponential(base, period, cutoff)`: a factor per period.
/// - `fixed(switching_step)`: 1, then 0.
///
/// A schedule is immutable. It can be compared, hashed, copied and pickled.
///
/// Example:
///     >>> import dualadam
///     >>> schedule = dualadam.Schedule.linear_until(160)  # of a run of 1,000 steps
///     >>> schedule
///     Schedule.linear(0.00625)
///     >>> schedule.alpha(40)
///     0.75
///     >>> schedule.first_adam_step()
///     160
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
    /// α = max(0, 1 - t·ξ), and 0 below 1e-12: line 8 of Algorithm 1 in arXiv 2603.07122.
    ///
    /// Args:
    ///     switching_rate (float): ξ per step, from 0 to 1. With 1/n, step n is the first step of
    ///         plain Adam. With 1, every step is. With 0, α stays 1. The paper's is 8e-5.
    ///
    /// Raises:
    ///     ValueError: `switching_rate` is NaN or out of range.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> dualadam.Schedule.linear(8e-5).first_adam_step()
    ///     12500
    #[staticmethod]
    fn linear(switching_rate: f64) -> PyResult<Self> {
        Self::checked(SwitchSchedule::Linear { switching_rate })
    }

    /// The linear schedule whose α is 0 from step `step` on: ξ = 1/step.
    ///
    /// Args:
    ///     step (int): the first step of plain Adam, at least 1. The paper takes 16% of the run.
    ///
    /// Raises:
    ///     ValueError: `step` is 0.
    ///     OverflowError: `step` is negative or above 2^64 - 1.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> dualadam.Schedule.linear_until(100).alpha(25)
    ///     0.75
    #[staticmethod]
    fn linear_until(step: u64) -> PyResult<Self> {
        if step == 0 {
            return Err(PyValueError::new_err("step must be at least 1, got 0"));
        }
        Self::checked(SwitchSchedule::linear_until(step))
    }

    /// α = 1 - t·ξ while that is at least ξ, then 0: as in the authors' published code.
    ///
    /// Args:
    ///     switching_rate (float): ξ per step, from 0 to 1.
    ///
    /// Raises:
    ///     ValueError: `switching_rate` is NaN or out of range.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> dualadam.Schedule.linear_early_drop(0.1).first_adam_step()
    ///     9
    #[staticmethod]
    fn linear_early_drop(switching_rate: f64) -> PyResult<Self> {
        Self::checked(SwitchSchedule::LinearEarlyDrop { switching_rate })
    }

    /// α = base^⌊(t-1)/period⌋ while that is at least `cutoff`, then 0.
    ///
    /// Args:
    ///     base (float): the factor per period, from 0 to 1.
    ///     period (int): steps per period, at least 1.
    ///     cutoff (float): the smallest α that is used, from 0 to 1.
    ///
    /// Raises:
    ///     ValueError: an argument is NaN or out of range.
    ///     OverflowError: `period` is negative or above 2^64 - 1.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> schedule = dualadam.Schedule.exponential(0.5, 10, 0.25)
    ///     >>> [schedule.alpha(t) for t in (1, 11, 21, 31)]
    ///     [1.0, 0.5, 0.25, 0.0]
    #[staticmethod]
    fn exponential(base: f64, period: u64, cutoff: f64) -> PyResult<Self> {
        Self::checked(SwitchSchedule::Exponential { base, period, cutoff })
    }

    /// α = 1 up to and including step `switching_step`, then 0.
    ///
    /// Args:
    ///     switching_step (int): the last step with α = 1. With 0, every step is plain Adam.
    ///
    /// Raises:
    ///     OverflowError: `switching_step` is negative or above 2^64 - 1.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> dualadam.Schedule.fixed(20).first_adam_step()
    ///     21
    #[staticmethod]
    fn fixed(switching_step: u64) -> PyResult<Self> {
        Self::checked(SwitchSchedule::Fixed { switching_step })
    }

    /// The schedule of plain values, as `as_tuple` gives them.
    ///
    /// Args:
    ///     parts (tuple or list): a name and numbers, such as ("linear", 0.00625).
    ///
    /// Raises:
    ///     ValueError: `parts` is not of a schedule, or a number is out of range.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> dualadam.Schedule.from_tuple(["fixed", 20])
    ///     Schedule.fixed(20)
    #[staticmethod]
    fn from_tuple(parts: &Bound<'_, PyAny>) -> PyResult<Self> {
        let inner = schedule_of(parts).ok_or_else(|| {
            let text = "schedule must be a dualadam.Schedule, or what its as_tuple gives, such as ('linear', 0.00625)";
            PyValueError::new_err(format!("{text}; got {parts:?}"))
        })?;
        Self::checked(inner)
    }

    /// The schedule as plain values, which every kind of checkpoint can store.
    ///
    /// Returns:
    ///     tuple[str | float, ...]: the name of the static method, then its arguments.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> dualadam.Schedule.linear_until(160).as_tuple()
    ///     ('linear', 0.00625)
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

    /// α in the `step`-th update of a tensor.
    ///
    /// Args:
    ///     step (int): the number of the update, from 1. 0 stands for the time before the first.
    ///
    /// Returns:
    ///     float: α, from 0 to 1.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> dualadam.Schedule.fixed(20).alpha(20)
    ///     1.0
    fn alpha(&self, step: u64) -> f64 {
        self.inner.alpha(step)
    }

    /// The first step whose α is 0. From that step on, the update is plain Adam.
    ///
    /// Returns:
    ///     int | None: the step, or None if α never becomes 0.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> dualadam.Schedule.linear(0.01).first_adam_step()
    ///     100
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

/// The schedule of these plain values, or None if they are not those of a schedule.
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

/// The hyperparameters of `dualadam.step`, checked. Immutable; can be compared.
///
/// Args:
///     lr (float): the learning rate; finite, at least 0.
///     betas (tuple[float, float]): β1 and β2, the decays of the two moments; each at least 0 and
///         below 1.
///     eps (float): ε; finite and above 0, also after rounding to float32.
///     weight_decay (float): λ; finite, at least 0.
///     schedule (Schedule): α, the weight of the inverse update, for each step.
///     decoupled (bool): True for AdamW's decoupled weight decay, False for Adam's (L2).
///         Default True.
///     inverse_term (str): "paper" for an inverse update of m̂·√v̂ (line 10 of Algorithm 1 in
///         arXiv 2603.07122), "with_eps" for m̂·(√v̂ + ε), as in the authors' published code.
///         Default "paper".
///     maximize (bool): True to maximise. Default False.
///
/// Raises:
///     ValueError: a number is out of range, or `inverse_term` is unknown. Also if
///         lr/(1-β1)·(1/ε + ε) or lr·λ overflows as a float32.
///     TypeError: an argument has the wrong type.
///
/// Example:
///     >>> import dualadam
///     >>> schedule = dualadam.Schedule.linear_until(160)
///     >>> config = dualadam.Config(1e-3, (0.9, 0.999), 1e-8, 0.01, schedule)
///     >>> config == dualadam.Config(1e-3, (0.9, 0.999), 1e-8, 0.01, schedule, decoupled=False)
///     False
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

    /// The coefficients of the `step`-th update of a tensor, as the kernels take them.
    ///
    /// With bc1 = 1-β1^t, bc2 = 1-β2^t and t = `step`, they are formed in float64 and rounded once
    /// to float32:
    ///
    /// - one_minus_beta1 = 1-β1, one_minus_beta2 = 1-β2, inv_sqrt_bc2 = 1/√bc2, eps = ε
    /// - inverse_scale = lr·α/bc1, adam_scale = lr·(1-α)/bc1
    /// - inverse_eps = ε for "with_eps", else 0
    /// - decay = lr·λ for decoupled weight decay, else 0
    /// - l2 = λ for L2, else 0
    /// - grad_scale = `grad_multiplier`, negative if `maximize` is True
    ///
    /// Args:
    ///     step (int): t, from 1.
    ///     grad_multiplier (float): what the gradients are multiplied by first, such as a clip
    ///         factor or the inverse of a loss scale; finite, at least 0. Default 1.
    ///
    /// Returns:
    ///     dict[str, float]: the coefficients by name.
    ///
    /// Raises:
    ///     ValueError: `step` is 0, or `grad_multiplier` is NaN, infinite or negative, or is above
    ///         0 and rounds to 0 or infinity as a float32.
    ///     OverflowError: `step` is negative or above 2^64 - 1.
    ///
    /// Example:
    ///     >>> import dualadam
    ///     >>> adam = dualadam.Schedule.fixed(0)
    ///     >>> config = dualadam.Config(0.5, (0.5, 0.75), 2**-10, 0.25, adam)
    ///     >>> coeffs = config.coeffs(1, grad_multiplier=0.125)
    ///     >>> coeffs["adam_scale"], coeffs["inverse_scale"], coeffs["grad_scale"]
    ///     (1.0, 0.0, 0.125)
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

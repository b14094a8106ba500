//! The hyperparameters and their validation.

use super::error::{ConfigError, finite_and_not_negative, require};
use super::float_env::in_standard_env;
use super::schedule::SwitchSchedule;

/// The form of weight decay, with its rate.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, WeightDecay};
///
/// let coeffs = DualAdamConfig::default().with_lr(0.5).with_weight_decay(WeightDecay::Decoupled(0.25)).coeffs(1)?;
/// assert_eq!((coeffs.decay, coeffs.l2), (0.125, 0.0));
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "files", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum WeightDecay {
    /// No decay.
    None,
    /// Decoupled decay, as in AdamW: each step also subtracts `lr·weight_decay·θ` from the
    /// parameter θ. The rate is finite and at least 0.
    Decoupled(f64),
    /// L2 regularisation, as in Adam: each step first adds `weight_decay·θ` to the gradient. The
    /// rate is finite and at least 0.
    L2(f64),
}

/// The form of the inverse branch.
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, InverseTerm};
///
/// let coeffs = DualAdamConfig::default().with_inverse_term(InverseTerm::WithEps).coeffs(1)?;
/// assert_eq!(coeffs.inverse_eps, coeffs.eps);
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "files", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum InverseTerm {
    /// `m̂·√v̂`, line 10 of Algorithm 1 in arXiv 2603.07122.
    Paper,
    /// `m̂·(√v̂ + ε)`: the authors' published code.
    WithEps,
}

/// The hyperparameters of one parameter group.
///
/// They define the `t`-th update of a parameter θ by Algorithm 1 of
/// [arXiv 2603.07122](https://arxiv.org/abs/2603.07122). With `m̂ = m/(1-β1^t)`, `v̂ = v/(1-β2^t)`
/// and `α = schedule.alpha(t)`:
///
/// ```text
/// θ = θ - lr·(α·m̂·√v̂ + (1-α)·m̂/(√v̂ + ε))
/// ```
///
/// Start from [`default`](Self::default) or from a preset ([`adam`](Self::adam),
/// [`adamw`](Self::adamw), [`inv_adam`](Self::inv_adam), [`authors_code`](Self::authors_code)), and
/// set what differs. Every function that takes a config validates it first, apart from
/// [`reference::step`](crate::reference::step).
///
/// # Examples
///
/// ```
/// use dualadam::{DualAdamConfig, SwitchSchedule, WeightDecay};
///
/// let config = DualAdamConfig::default()
///     .with_lr(3e-4)
///     .with_weight_decay(WeightDecay::Decoupled(0.01))
///     .with_schedule(SwitchSchedule::linear_until(1_600));
/// config.validate()?;
/// # Ok::<(), dualadam::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(feature = "files", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct DualAdamConfig {
    /// The learning rate. Finite and at least 0. Default 1e-3.
    pub lr: f64,
    /// β1, the decay rate of the first moment. At least 0 and below 1. Default 0.9.
    pub beta1: f64,
    /// β2, the decay rate of the second moment. At least 0 and below 1. Default 0.999.
    pub beta2: f64,
    /// ε, added to the root of the second moment. Finite and above 0, also as an f32. Default 1e-8.
    pub eps: f64,
    /// The weight decay. Default none.
    pub weight_decay: WeightDecay,
    /// How α falls from 1 to 0. Default linear with the paper's rate, ξ = 8e-5: α reaches 0 at step
    /// 12,500.
    pub schedule: SwitchSchedule,
    /// The form of the inverse branch. Default [`InverseTerm::Paper`].
    pub inverse_term: InverseTerm,
    /// Whether to maximise instead of minimise: the gradients are negated. Default false.
    pub maximize: bool,
}

impl Default for DualAdamConfig {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: WeightDecay::None,
            schedule: SwitchSchedule::Linear { switching_rate: 8e-5 },
            inverse_term: InverseTerm::Paper,
            maximize: false,
        }
    }
}

impl DualAdamConfig {
    /// Plain Adam: ξ = 1, so that α is 0 from the first step on.
    ///
    /// # Examples
    ///
    /// ```
    /// assert!(dualadam::DualAdamConfig::adam().coeffs(1)?.is_adam());
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    #[must_use]
    pub fn adam() -> Self {
        Self::default().with_schedule(SwitchSchedule::Linear { switching_rate: 1.0 })
    }

    /// AdamW: plain Adam with decoupled decay of this rate.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, WeightDecay};
    ///
    /// let config = DualAdamConfig::adamw(0.01);
    /// assert_eq!(config.weight_decay, WeightDecay::Decoupled(0.01));
    /// assert!(config.coeffs(1)?.is_adam());
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    #[must_use]
    pub fn adamw(weight_decay: f64) -> Self {
        Self::adam().with_weight_decay(WeightDecay::Decoupled(weight_decay))
    }

    /// Inverse Adam alone: ξ = 0, so that α stays 1.
    ///
    /// # Examples
    ///
    /// ```
    /// assert_eq!(dualadam::DualAdamConfig::inv_adam().coeffs(1_000_000)?.adam_scale, 0.0);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    #[must_use]
    pub fn inv_adam() -> Self {
        Self::default().with_schedule(SwitchSchedule::Linear { switching_rate: 0.0 })
    }

    /// The behaviour of the authors' published code: ε in the inverse branch, too, and the early
    /// drop of α.
    ///
    /// # Examples
    ///
    /// ```
    /// let config = dualadam::DualAdamConfig::authors_code();
    /// assert_eq!(config.inverse_term, dualadam::InverseTerm::WithEps);
    /// ```
    #[must_use]
    pub fn authors_code() -> Self {
        Self {
            schedule: SwitchSchedule::LinearEarlyDrop { switching_rate: 8e-5 },
            inverse_term: InverseTerm::WithEps,
            ..Self::default()
        }
    }

    /// Sets [`lr`](Self::lr).
    #[must_use]
    pub fn with_lr(self, lr: f64) -> Self {
        Self { lr, ..self }
    }

    /// Sets [`beta1`](Self::beta1) and [`beta2`](Self::beta2).
    #[must_use]
    pub fn with_betas(self, beta1: f64, beta2: f64) -> Self {
        Self { beta1, beta2, ..self }
    }

    /// Sets [`eps`](Self::eps).
    #[must_use]
    pub fn with_eps(self, eps: f64) -> Self {
        Self { eps, ..self }
    }

    /// Sets [`weight_decay`](Self::weight_decay).
    #[must_use]
    pub fn with_weight_decay(self, weight_decay: WeightDecay) -> Self {
        Self { weight_decay, ..self }
    }

    /// Sets [`schedule`](Self::schedule).
    #[must_use]
    pub fn with_schedule(self, schedule: SwitchSchedule) -> Self {
        Self { schedule, ..self }
    }

    /// Sets [`inverse_term`](Self::inverse_term).
    #[must_use]
    pub fn with_inverse_term(self, inverse_term: InverseTerm) -> Self {
        Self { inverse_term, ..self }
    }

    /// Sets [`maximize`](Self::maximize).
    #[must_use]
    pub fn with_maximize(self, maximize: bool) -> Self {
        Self { maximize, ..self }
    }

    /// Checks every field, as an f64 and after rounding to f32. A valid config has valid
    /// coefficients at every step.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] for the first field that is not valid:
    ///
    /// - a number that is NaN or out of the range that its field states;
    /// - an `eps` that rounds to 0 as an f32, or an `lr` with which `lr/(1-beta1)·(1/eps + eps)`
    ///   overflows an f32. With either, a parameter whose gradient is 0 would become NaN;
    /// - a `weight_decay` with which `lr·weight_decay` overflows an f32;
    /// - a parameter of the schedule, as [`SwitchSchedule::validate`] defines it.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::DualAdamConfig;
    ///
    /// assert!(DualAdamConfig::default().validate().is_ok());
    /// let error = DualAdamConfig::default().with_betas(0.9, 1.0).validate().unwrap_err();
    /// assert_eq!(error.to_string(), "beta2 must be at least 0 and below 1, got 1.0");
    /// ```
    pub fn validate(&self) -> Result<(), ConfigError> {
        in_standard_env(*self, |config| config.validate_in_env())
    }

    fn validate_in_env(&self) -> Result<(), ConfigError> {
        finite_and_not_negative("lr", self.lr)?;
        beta("beta1", self.beta1)?;
        beta("beta2", self.beta2)?;
        let eps = self.eps as f32;
        require("eps", "be finite and above 0 as an f32", self.eps, eps > 0.0 && eps.is_finite())?;
        // 1-β1 is the smallest bias correction, so this is the largest scale of any step.
        let largest_scale = (self.lr / (1.0 - self.beta1)) as f32;
        let largest_factor = (largest_scale / eps) + largest_scale * eps;
        require("lr", "keep lr/(1-beta1)·(1/eps + eps) finite as an f32", self.lr, largest_factor.is_finite())?;
        match self.weight_decay {
            WeightDecay::None => {}
            WeightDecay::Decoupled(weight_decay) => {
                finite_and_not_negative("weight_decay", weight_decay)?;
                let decay = (self.lr * weight_decay) as f32;
                require("weight_decay", "keep lr·weight_decay finite as an f32", weight_decay, decay.is_finite())?;
            }
            WeightDecay::L2(weight_decay) => finite_and_not_negative("weight_decay", weight_decay)?,
        }
        self.schedule.validate()
    }
}

fn beta(name: &'static str, value: f64) -> Result<(), ConfigError> {
    require(name, "be at least 0 and below 1", value, (0.0..1.0).contains(&value))
}

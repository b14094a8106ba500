//! The errors of hyperparameters and of the scalars of a step.

/// A hyperparameter, a step or a gradient multiplier is not valid.
///
/// # Examples
///
/// ```
/// use dualadam::DualAdamConfig;
///
/// let error = DualAdamConfig::default().with_lr(-0.1).validate().unwrap_err();
/// assert_eq!(error.to_string(), "lr must be finite and at least 0, got -0.1");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number is out of its range, as an f64 or after rounding to f32.
    #[error("{name} must {requirement}, got {value:?}")]
    Value {
        /// The name of the hyperparameter or argument.
        name: &'static str,
        /// The requirement that the value does not meet.
        requirement: &'static str,
        /// The value that was given.
        value: f64,
    },
    /// The step is 0. Steps count from 1: step `t` is a tensor's `t`-th update.
    #[error("step must be at least 1, got 0")]
    StepZero,
}

/// Returns an error unless `holds`.
pub(super) fn require(
    name: &'static str,
    requirement: &'static str,
    value: f64,
    holds: bool,
) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::Value { name, requirement, value }) }
}

pub(super) fn finite_and_not_negative(name: &'static str, value: f64) -> Result<(), ConfigError> {
    require(name, "be finite and at least 0", value, value >= 0.0 && value.is_finite())?;
    require(name, "be finite as an f32", value, (value as f32).is_finite())
}

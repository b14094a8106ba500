//! What can be wrong with hyperparameters.

/// A hyperparameter, or a scalar of a step, is not valid.
///
/// # Example
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
    /// A number is outside the range that its name allows, as an f64 or after rounding to f32.
    #[error("{name} must {requirement}, got {value:?}")]
    Value {
        /// The argument.
        name: &'static str,
        /// The requirement that failed.
        requirement: &'static str,
        /// The value that was given.
        value: f64,
    },
    /// Steps count from 1: step `t` is a tensor's `t`-th update.
    #[error("step must be at least 1, got 0")]
    StepZero,
}

/// Fails unless a requirement holds.
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

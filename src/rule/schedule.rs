//! The switch from inverse Adam to Adam: α as a function of the step.

use super::error::{ConfigError, require};
use super::float_env::in_standard_env;

/// A residue of the rounded product below this is the 0 that exact arithmetic gives at `t = 1/ξ`.
const RESIDUE: f64 = 1e-12;

/// How the weight α of the inverse branch falls from 1 to 0 as a tensor is updated.
///
/// `t` is the tensor's own step and counts from 1. All of it is f64 arithmetic. The linear form is
/// line 8 of Algorithm 1 in arXiv 2603.07122; the early drop is what the authors' published code
/// does.
///
/// # Example
///
/// ```
/// use dualadam::SwitchSchedule;
///
/// // 1,000 steps, of which the first 160 blend.
/// let schedule = SwitchSchedule::linear_until(160);
/// assert_eq!(schedule.alpha(40), 0.75);
/// assert_eq!(schedule.alpha(160), 0.0);
/// assert_eq!(schedule.first_adam_step(), Some(160));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "files",
    derive(serde::Serialize, serde::Deserialize),
    serde(tag = "kind", rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum SwitchSchedule {
    /// `α = max(0, 1 - t·ξ)`; below 1e-12 it is 0.
    Linear {
        /// ξ in 0..=1, per step. 0 never leaves inverse Adam, 1 is Adam from the first step.
        switching_rate: f64,
    },
    /// `1 - t·ξ` as long as that is at least ξ, then 0. At ξ = 1/k the rounding decides whether it
    /// is one step before [`SwitchSchedule::Linear`] or at the same step.
    LinearEarlyDrop {
        /// ξ in 0..=1, per step.
        switching_rate: f64,
    },
    /// `base^⌊(t-1)/period⌋`, 0 once that is below `cutoff`.
    Exponential {
        /// Factor per period, in 0..=1.
        base: f64,
        /// Steps per period, at least 1.
        period: u64,
        /// The smallest α that is used, in 0..=1.
        cutoff: f64,
    },
    /// 1 up to and including `switching_step`, then 0.
    Fixed {
        /// The last step of inverse Adam. 0 is Adam from the first step.
        switching_step: u64,
    },
}

impl SwitchSchedule {
    /// The linear schedule whose α reaches 0 at step `step`: `ξ = 1/step`.
    ///
    /// The paper switches at about 16% of the run. A `step` of 0 gives a schedule that
    /// [`validate`](Self::validate) refuses.
    #[must_use]
    pub fn linear_until(step: u64) -> Self {
        Self::Linear { switching_rate: in_standard_env(step, |step| 1.0 / step as f64) }
    }

    /// α at a tensor's `step`-th update, in 0..=1. Step 0 gives the value before the first update.
    #[must_use]
    pub fn alpha(&self, step: u64) -> f64 {
        in_standard_env((*self, step), |(schedule, step)| schedule.alpha_in_env(step))
    }

    /// [`alpha`](Self::alpha) in the thread's floating-point environment.
    fn alpha_in_env(&self, step: u64) -> f64 {
        let t = step as f64;
        match *self {
            Self::Linear { switching_rate } => {
                let alpha = 1.0 - t * switching_rate;
                if alpha < RESIDUE { 0.0 } else { alpha }
            }
            Self::LinearEarlyDrop { switching_rate } => {
                let alpha = f64::max(0.0, 1.0 - t * switching_rate);
                if alpha < switching_rate { 0.0 } else { alpha }
            }
            Self::Exponential { base, period, cutoff } => {
                let alpha = integer_power(base, step.saturating_sub(1) / period.max(1));
                if alpha < cutoff { 0.0 } else { alpha }
            }
            Self::Fixed { switching_step } => {
                if step <= switching_step {
                    1.0
                } else {
                    0.0
                }
            }
        }
    }

    /// The first step whose α is 0, from which on the update is plain Adam; `None` if there is
    /// none.
    #[must_use]
    pub fn first_adam_step(&self) -> Option<u64> {
        in_standard_env(*self, |schedule| schedule.first_adam_step_in_env())
    }

    fn first_adam_step_in_env(&self) -> Option<u64> {
        if self.alpha_in_env(u64::MAX) > 0.0 {
            return None;
        }
        // α never rises (a base within 1e-8 of 1 apart, whose powers may waver by a rounding), so
        // bisect: it is above 0 before `low` and 0 at `high`.
        let (mut low, mut high) = (1, u64::MAX);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.alpha_in_env(middle) > 0.0 {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Some(low)
    }

    /// Checks every parameter of the schedule.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Value`] for a parameter that is NaN or out of its range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let in_unit_range = |name, value: f64| require(name, "lie in 0..=1", value, (0.0..=1.0).contains(&value));
        in_standard_env(*self, |schedule| match schedule {
            Self::Linear { switching_rate } | Self::LinearEarlyDrop { switching_rate } => {
                in_unit_range("switching_rate", switching_rate)
            }
            Self::Exponential { base, period, cutoff } => {
                in_unit_range("base", base)?;
                in_unit_range("cutoff", cutoff)?;
                require("period", "be at least 1", period as f64, period > 0)
            }
            Self::Fixed { .. } => Ok(()),
        })
    }
}

/// `base^exponent` by squaring: the same multiplications everywhere, so that every backend forms
/// the same bits.
pub(super) fn integer_power(base: f64, exponent: u64) -> f64 {
    let (mut power, mut square, mut rest) = (1.0, base, exponent);
    while rest > 0 {
        if rest & 1 == 1 {
            power *= square;
        }
        square *= square;
        rest >>= 1;
    }
    power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_is_zero_from_one_over_xi_on_and_not_before() {
        for k in 1..=if cfg!(miri) { 100 } else { 100_000 } {
            let schedule = SwitchSchedule::linear_until(k);
            assert_eq!(schedule.alpha(k), 0.0, "k = {k}");
            assert_eq!(schedule.alpha(k + 1), 0.0, "k = {k}");
            if k > 1 {
                let last = schedule.alpha(k - 1);
                assert!((last * k as f64 - 1.0).abs() < 1e-9, "k = {k}: {last}");
            }
            assert_eq!(schedule.first_adam_step(), Some(k), "k = {k}");
        }
    }

    #[test]
    fn first_step_of_linear_is_one_minus_xi() {
        let schedule = SwitchSchedule::Linear { switching_rate: 8e-5 };
        assert_eq!(schedule.alpha(1), 1.0 - 8e-5);
        assert_eq!(schedule.alpha(0), 1.0);
        assert_eq!(schedule.first_adam_step(), Some(12_500));
    }

    #[test]
    fn early_drop_leaves_below_xi() {
        let early = SwitchSchedule::LinearEarlyDrop { switching_rate: 0.1 };
        // 1 - 9·0.1 rounds to just below 0.1.
        assert_eq!(early.alpha(8), 1.0 - 8.0 * 0.1);
        assert_eq!(early.alpha(9), 0.0);
        assert_eq!(early.first_adam_step(), Some(9));
        // 1 - 99·0.01 rounds to just above 0.01.
        assert_eq!(SwitchSchedule::LinearEarlyDrop { switching_rate: 0.01 }.first_adam_step(), Some(100));
        let never = SwitchSchedule::LinearEarlyDrop { switching_rate: 0.0 };
        assert_eq!(never.first_adam_step(), None);
    }

    #[test]
    fn exponential_falls_once_a_period_until_the_cutoff() {
        let schedule = SwitchSchedule::Exponential { base: 0.5, period: 10, cutoff: 0.25 };
        assert_eq!([1, 10, 11, 20, 21, 30, 31].map(|t| schedule.alpha(t)), [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.0]);
        assert_eq!(schedule.first_adam_step(), Some(31));
        let constant = SwitchSchedule::Exponential { base: 1.0, period: 1, cutoff: 1.0 };
        assert_eq!(constant.first_adam_step(), None);
    }

    #[test]
    fn fixed_includes_its_switching_step() {
        let schedule = SwitchSchedule::Fixed { switching_step: 20 };
        assert_eq!([1, 20, 21].map(|t| schedule.alpha(t)), [1.0, 1.0, 0.0]);
        assert_eq!(schedule.first_adam_step(), Some(21));
        assert_eq!(SwitchSchedule::Fixed { switching_step: 0 }.first_adam_step(), Some(1));
        assert_eq!(SwitchSchedule::Fixed { switching_step: u64::MAX }.first_adam_step(), None);
    }

    #[test]
    fn integer_power_is_close_to_powi_and_exact_for_exact_products() {
        assert_eq!(integer_power(0.5, 1000), 0.5_f64.powi(1000));
        assert_eq!(integer_power(0.0, 0), 1.0);
        assert_eq!(integer_power(0.0, u64::MAX), 0.0);
        for t in 1..if cfg!(miri) { 100 } else { 20_000 } {
            let (ours, libm) = (integer_power(0.9999, t), 0.9999_f64.powf(t as f64));
            assert!((ours - libm).abs() <= 1e-11 * libm, "t = {t}");
        }
    }
}

//! The schedules by which α, the weight of inverse Adam, falls from 1 to 0.

use super::error::{ConfigError, require};
use super::float_env::in_standard_env;

/// An α below this counts as 0. At `t = 1/ξ`, where exact arithmetic gives 0, the rounded product
/// can leave a residue.
const RESIDUE: f64 = 1e-12;

/// How α, the weight of the inverse branch, falls from 1 to 0 during training.
///
/// α is a function of the tensor's own step `t`, which counts its updates from 1, and is formed in
/// f64. ξ is the paper's switching rate, per step.
///
/// # Examples
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
    /// `α = max(0, 1 - t·ξ)`: line 8 of Algorithm 1 in arXiv 2603.07122. A value below 1e-12 counts
    /// as 0.
    Linear {
        /// ξ, from 0 to 1. With 0, α stays 1: inverse Adam alone. With 1, α is 0 from the first
        /// step on: Adam alone.
        switching_rate: f64,
    },
    /// `α = 1 - t·ξ` while that is at least ξ, then 0: the authors' published code.
    ///
    /// For ξ = 1/k, α reaches 0 at step k or k - 1, depending on how `1 - t·ξ` rounds;
    /// [`Linear`](Self::Linear) reaches it at step k.
    LinearEarlyDrop {
        /// ξ, from 0 to 1.
        switching_rate: f64,
    },
    /// `α = base^⌊(t-1)/period⌋` while that is at least `cutoff`, then 0.
    Exponential {
        /// The factor of each period, from 0 to 1.
        base: f64,
        /// The steps of a period, at least 1.
        period: u64,
        /// The smallest α that is used, from 0 to 1.
        cutoff: f64,
    },
    /// `α = 1` up to and including `switching_step`, then 0.
    Fixed {
        /// The last step of inverse Adam. With 0, Adam alone.
        switching_step: u64,
    },
}

impl SwitchSchedule {
    /// The linear schedule whose α reaches 0 at `step`: `ξ = 1/step`.
    ///
    /// The paper switches after about 16% of a run. A `step` of 0 gives a schedule that
    /// [`validate`](Self::validate) refuses.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::SwitchSchedule;
    ///
    /// let steps = 100_000;
    /// let schedule = SwitchSchedule::linear_until(steps * 16 / 100);
    /// assert_eq!(schedule, SwitchSchedule::Linear { switching_rate: 1.0 / 16_000.0 });
    /// ```
    #[must_use]
    pub fn linear_until(step: u64) -> Self {
        Self::Linear { switching_rate: in_standard_env(step, |step| 1.0 / step as f64) }
    }

    /// α at a tensor's `step`-th update, from 0 to 1.
    ///
    /// Step 0 gives the value that the formula has before the first update.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::SwitchSchedule;
    ///
    /// let schedule = SwitchSchedule::Exponential { base: 0.5, period: 10, cutoff: 0.25 };
    /// assert_eq!([1, 10, 11, 21, 31].map(|step| schedule.alpha(step)), [1.0, 1.0, 0.5, 0.25, 0.0]);
    /// ```
    #[must_use]
    pub fn alpha(&self, step: u64) -> f64 {
        in_standard_env((*self, step), |(schedule, step)| schedule.alpha_in_env(step))
    }

    /// [`alpha`](Self::alpha) under the thread's control word, which the caller has made standard.
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

    /// The first step whose α is 0. From this step on the update is plain Adam. `None` if α never
    /// reaches 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::SwitchSchedule;
    ///
    /// assert_eq!(SwitchSchedule::Linear { switching_rate: 8e-5 }.first_adam_step(), Some(12_500));
    /// assert_eq!(SwitchSchedule::Linear { switching_rate: 0.0 }.first_adam_step(), None);
    /// ```
    #[must_use]
    pub fn first_adam_step(&self) -> Option<u64> {
        in_standard_env(*self, |schedule| schedule.first_adam_step_in_env())
    }

    fn first_adam_step_in_env(&self) -> Option<u64> {
        if self.alpha_in_env(u64::MAX) > 0.0 {
            return None;
        }
        // α never rises, so bisect: it is above 0 before `low` and 0 at `high`. (Powers of a base
        // within 1e-8 of 1 may rise by a rounding.)
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
    /// - [`ConfigError::Value`] for a parameter that is NaN or out of its range.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::SwitchSchedule;
    ///
    /// let error = SwitchSchedule::Linear { switching_rate: 2.0 }.validate().unwrap_err();
    /// assert_eq!(error.to_string(), "switching_rate must lie in 0..=1, got 2.0");
    /// ```
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

/// `base^exponent` by squaring. `kernels/control.cuh` makes the same multiplications in the same
/// order, so that the bits are the same.
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

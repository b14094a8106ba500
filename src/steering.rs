//! Whether a step is made, and what the gradients are multiplied by: what `kernels/control.cuh`
//! does, on the host.

use crate::rule::{check_grad_multiplier, in_standard_env};

/// The scalars that steer a step, as mixed-precision training has them.
///
/// The device-controlled steps of the `cuda` backend read the same scalars from device memory.
///
/// # Example
///
/// ```
/// use dualadam::{SkipReason, Steering};
///
/// let steering = Steering::default().with_loss_scale(1024.0).with_clip_factor(0.5);
/// assert_eq!(steering.multiplier(), Ok(0.5 / 1024.0));
/// assert_eq!(steering.with_found_inf(1.0).multiplier(), Err(SkipReason::FoundInf));
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Steering {
    /// What the loss was multiplied by, a divisor of the gradients: finite and above 0. Default 1.
    pub loss_scale: f32,
    /// What the gradients are multiplied by after that: finite, at least 0. Default 1.
    pub clip_factor: f32,
    /// Anything but 0, NaN too, skips the step. Default 0.
    pub found_inf: f32,
}

impl Default for Steering {
    fn default() -> Self {
        Self { loss_scale: 1.0, clip_factor: 1.0, found_inf: 0.0 }
    }
}

impl Steering {
    /// Sets [`loss_scale`](Self::loss_scale).
    #[must_use]
    pub const fn with_loss_scale(self, loss_scale: f32) -> Self {
        Self { loss_scale, ..self }
    }

    /// Sets [`clip_factor`](Self::clip_factor).
    #[must_use]
    pub const fn with_clip_factor(self, clip_factor: f32) -> Self {
        Self { clip_factor, ..self }
    }

    /// Sets [`found_inf`](Self::found_inf).
    #[must_use]
    pub const fn with_found_inf(self, found_inf: f32) -> Self {
        Self { found_inf, ..self }
    }

    /// Clip factor / loss scale, formed in f64: the multiplier of the gradients that
    /// [`coeffs_scaled`](crate::DualAdamConfig::coeffs_scaled) takes.
    ///
    /// # Errors
    ///
    /// - The reason why the step must be skipped; if there are several, the first in the order of
    ///   [`SkipReason`].
    pub fn multiplier(&self) -> Result<f64, SkipReason> {
        in_standard_env(*self, |scalars| scalars.multiplier_in_env())
    }

    fn multiplier_in_env(&self) -> Result<f64, SkipReason> {
        // NaN fails each of these.
        if self.found_inf != 0.0 {
            return Err(SkipReason::FoundInf);
        }
        if !(self.loss_scale > 0.0 && self.loss_scale.is_finite()) {
            return Err(SkipReason::LossScale);
        }
        if !(self.clip_factor >= 0.0 && self.clip_factor.is_finite()) {
            return Err(SkipReason::ClipFactor);
        }
        let multiplier = f64::from(self.clip_factor) / f64::from(self.loss_scale);
        check_grad_multiplier(multiplier).map_err(|_| SkipReason::Multiplier)?;
        Ok(multiplier)
    }
}

/// Why a step was skipped. If there are several reasons, it is the first of this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// Found-inf was not 0.
    FoundInf,
    /// The loss scale was NaN, infinite, 0 or negative.
    LossScale,
    /// The clip factor was NaN, infinite or negative.
    ClipFactor,
    /// Clip factor / loss scale was infinite as an f32, or above 0 and rounded to 0.
    Multiplier,
    /// lr was NaN, infinite or negative, or too large: see
    /// [`DualAdamConfig::validate`](crate::DualAdamConfig::validate).
    Lr,
    /// The step counter was `u64::MAX`.
    Step,
}

impl SkipReason {
    /// All of them, in their order. The kernels number them from 1.
    pub const ALL: &'static [Self] =
        &[Self::FoundInf, Self::LossScale, Self::ClipFactor, Self::Multiplier, Self::Lr, Self::Step];
}

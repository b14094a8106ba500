//! Whether a step is made, and the multiplier of its gradients. `kernels/control.cuh` decides the
//! same on the device.

use crate::rule::{check_grad_multiplier, in_standard_env};

/// The scalars of mixed-precision training that steer a step: loss scale, clip factor, found-inf.
///
/// They give the multiplier of the gradients, or the reason to skip the step. The device-controlled
/// steps of the `cuda` backend read the same scalars from device memory and decide the same.
///
/// # Examples
///
/// The loss was multiplied by 1,024, and clipping halves the gradients:
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
    /// The factor that the loss was multiplied by. The gradients are divided by it. It is finite
    /// and above 0. Default 1.
    pub loss_scale: f32,
    /// The factor of gradient clipping. The gradients are multiplied by it. Finite and at least 0.
    /// Default 1.
    pub clip_factor: f32,
    /// Whether some gradient is infinite or NaN, as torch's `GradScaler` reports it. Every value
    /// but 0 skips the step, NaN included. Default 0.
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

    /// The multiplier of the gradients, `clip_factor / loss_scale`, formed in f64.
    ///
    /// [`DualAdamConfig::coeffs_scaled`](crate::DualAdamConfig::coeffs_scaled) and
    /// [`cpu::DualAdam::step_scaled`](crate::cpu::DualAdam::step_scaled) take it.
    ///
    /// # Errors
    ///
    /// The step must be skipped. The first of these that holds is returned:
    ///
    /// - [`SkipReason::FoundInf`] if `found_inf` is not 0.
    /// - [`SkipReason::LossScale`] if `loss_scale` is NaN, infinite, 0 or negative.
    /// - [`SkipReason::ClipFactor`] if `clip_factor` is NaN, infinite or negative.
    /// - [`SkipReason::Multiplier`] if the quotient is infinite as an f32, or is above 0 and rounds
    ///   to 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{SkipReason, Steering};
    ///
    /// assert_eq!(Steering::default().with_clip_factor(0.25).multiplier(), Ok(0.25));
    /// assert_eq!(Steering::default().with_loss_scale(0.0).multiplier(), Err(SkipReason::LossScale));
    /// ```
    pub fn multiplier(&self) -> Result<f64, SkipReason> {
        in_standard_env(*self, |scalars| scalars.multiplier_in_env())
    }

    fn multiplier_in_env(&self) -> Result<f64, SkipReason> {
        // Each condition is written so that NaN is refused.
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

/// Why a step is skipped. If there are several reasons, the first in the order of the variants.
///
/// [`Steering::multiplier`] returns the first four. The device-controlled steps of the `cuda`
/// backend report all of them.
///
/// # Examples
///
/// ```
/// use dualadam::SkipReason;
///
/// assert_eq!(SkipReason::ALL.first(), Some(&SkipReason::FoundInf));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum SkipReason {
    /// `found_inf` was not 0.
    FoundInf,
    /// The loss scale was NaN, infinite, 0 or negative.
    LossScale,
    /// The clip factor was NaN, infinite or negative.
    ClipFactor,
    /// `clip_factor / loss_scale` was infinite as an f32, or was above 0 and rounded to 0.
    Multiplier,
    /// `lr` was not valid, as [`DualAdamConfig::validate`](crate::DualAdamConfig::validate) defines
    /// it.
    Lr,
    /// The step counter was `u64::MAX`.
    Step,
}

impl SkipReason {
    /// All reasons, in their order. The CUDA kernels number them from 1.
    pub const ALL: &'static [Self] =
        &[Self::FoundInf, Self::LossScale, Self::ClipFactor, Self::Multiplier, Self::Lr, Self::Step];
}

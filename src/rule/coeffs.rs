//! The coefficients of one step, formed in f64 and rounded once to f32. `kernels/control.cuh` forms
//! the same on the device.

use bytemuck::{Pod, Zeroable};

use super::config::{DualAdamConfig, InverseTerm, WeightDecay};
use super::error::{ConfigError, finite_and_not_negative, require};
use super::float_env::in_standard_env;
use super::schedule::integer_power;

/// The coefficients of one step: all scalars that the update of an element takes.
///
/// [`DualAdamConfig::coeffs`] forms them in f64 and rounds each once to f32. Each element's
/// parameter `p`, gradient `grad` and moments `m` and `v` are then updated in f32, with these
/// operations in this order:
///
/// ```text
/// g = grad_scale * grad
/// g = l2 == 0 ? g : fma(l2, p, g)
/// m = fma(one_minus_beta1, g - m, m)
/// v = saturate(fma(one_minus_beta2, fma(g, g, -v), v))
/// s = sqrt(v) * inv_sqrt_bc2
/// q = adam_scale / (s + eps)
/// w = inverse_scale == 0 ? q : fma(inverse_scale, s + inverse_eps, q)
/// u = decay == 0 ? m * w : fma(m, w, decay * p)
/// p = p - u
/// ```
///
/// - `fma(a, b, c)` is `a·b + c`, rounded once. Every other operation rounds once as well. All
///   rounding is to nearest even.
/// - `saturate(x)` is `f32::MAX` where `x` is above it, and `x` elsewhere. NaN stays NaN.
/// - 16-bit gradients and parameters are widened to f32 first, which is exact. A new 16-bit
///   parameter is narrowed once, to nearest even. With masters, `p` is the master.
/// - A term whose coefficient is 0 is left out, not multiplied by 0, since 0·inf is NaN.
///
/// The CPU and CUDA backends make exactly these operations. WGSL leaves drivers more freedom; the
/// documentation of the module `webgpu` states the error that this allows.
///
/// # Layout
///
/// The struct is the argument of the kernels: ten f32 in this version, without padding. A field
/// that is set by hand is used as it is. Code that sets all fields starts from
/// [`Zeroable::zeroed`].
///
/// # Examples
///
/// ```
/// let coeffs = dualadam::DualAdamConfig::default().coeffs(1)?;
/// let bytes: &[u8] = bytemuck::bytes_of(&coeffs);
/// assert_eq!(bytes.len(), 40);
/// # Ok::<(), dualadam::Error>(())
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[non_exhaustive]
pub struct StepCoeffs {
    /// `1-β1`, formed in f64, since `1 - 0.999f32` has a relative error of 1.3e-5.
    pub one_minus_beta1: f32,
    /// `1-β2`, formed in f64.
    pub one_minus_beta2: f32,
    /// `1/√bc2`, with `bc2 = 1-β2^t`.
    pub inv_sqrt_bc2: f32,
    /// ε.
    pub eps: f32,
    /// The ε of the inverse branch: 0 for [`InverseTerm::Paper`], ε for [`InverseTerm::WithEps`].
    pub inverse_eps: f32,
    /// `lr·α/bc1`, with `bc1 = 1-β1^t`. With 0, the update is plain Adam.
    pub inverse_scale: f32,
    /// `lr·(1-α)/bc1`, with `bc1 = 1-β1^t`.
    pub adam_scale: f32,
    /// `lr·weight_decay` for decoupled decay, else 0.
    pub decay: f32,
    /// `weight_decay` for L2 decay, else 0.
    pub l2: f32,
    /// The multiplier of the gradient, negated to maximise.
    pub grad_scale: f32,
}

impl StepCoeffs {
    /// The config must be valid and the step at least 1. [`DualAdamConfig::coeffs_scaled`] checks
    /// both.
    fn new(config: &DualAdamConfig, step: u64, grad_multiplier: f64) -> Self {
        let alpha = config.schedule.alpha(step);
        let bc1 = 1.0 - integer_power(config.beta1, step);
        let bc2 = 1.0 - integer_power(config.beta2, step);
        let (decay, l2) = match config.weight_decay {
            WeightDecay::None => (0.0, 0.0),
            WeightDecay::Decoupled(weight_decay) => (config.lr * weight_decay, 0.0),
            WeightDecay::L2(weight_decay) => (0.0, weight_decay),
        };
        let inverse_eps = match config.inverse_term {
            InverseTerm::Paper => 0.0,
            InverseTerm::WithEps => config.eps,
        };
        Self {
            one_minus_beta1: (1.0 - config.beta1) as f32,
            one_minus_beta2: (1.0 - config.beta2) as f32,
            inv_sqrt_bc2: (1.0 / bc2.sqrt()) as f32,
            eps: config.eps as f32,
            inverse_eps: inverse_eps as f32,
            inverse_scale: (config.lr * alpha / bc1) as f32,
            adam_scale: (config.lr * (1.0 - alpha) / bc1) as f32,
            decay: decay as f32,
            l2: l2 as f32,
            grad_scale: if config.maximize { -grad_multiplier } else { grad_multiplier } as f32,
        }
    }

    /// Whether the update is plain Adam: `inverse_scale` is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// use dualadam::{DualAdamConfig, SwitchSchedule};
    ///
    /// let config = DualAdamConfig::default().with_schedule(SwitchSchedule::linear_until(160));
    /// assert!(!config.coeffs(159)?.is_adam());
    /// assert!(config.coeffs(160)?.is_adam());
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    #[must_use]
    pub fn is_adam(&self) -> bool {
        // By its bits: where the thread treats subnormals as 0, `== 0.0` is true of them.
        self.inverse_scale.to_bits() << 1 == 0
    }
}

impl DualAdamConfig {
    /// The coefficients of a tensor's `step`-th update. Steps count from 1.
    ///
    /// # Errors
    ///
    /// - [`ConfigError::Value`] if [`validate`](Self::validate) refuses the config.
    /// - [`ConfigError::StepZero`] if `step` is 0.
    ///
    /// # Examples
    ///
    /// ```
    /// let coeffs = dualadam::DualAdamConfig::adam().coeffs(1)?;
    /// assert_eq!(coeffs.inverse_scale, 0.0);
    /// assert_eq!(coeffs.adam_scale, (1e-3 / (1.0 - 0.9)) as f32);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn coeffs(&self, step: u64) -> Result<StepCoeffs, ConfigError> {
        self.coeffs_scaled(step, 1.0)
    }

    /// [`coeffs`](Self::coeffs) for gradients that are first multiplied by `grad_multiplier`.
    ///
    /// The multiplier is a clip factor, the inverse of a loss scale, or their product.
    /// [`Steering::multiplier`](crate::Steering::multiplier) forms it.
    ///
    /// # Errors
    ///
    /// - As [`coeffs`](Self::coeffs).
    /// - [`ConfigError::Value`] if the multiplier is NaN, infinite or negative, if it is infinite
    ///   as an f32, or if it is above 0 and rounds to 0 as an f32.
    ///
    /// # Examples
    ///
    /// ```
    /// let coeffs = dualadam::DualAdamConfig::default().with_maximize(true).coeffs_scaled(1, 0.25)?;
    /// assert_eq!(coeffs.grad_scale, -0.25);
    /// # Ok::<(), dualadam::Error>(())
    /// ```
    pub fn coeffs_scaled(&self, step: u64, grad_multiplier: f64) -> Result<StepCoeffs, ConfigError> {
        in_standard_env((*self, grad_multiplier), |(config, grad_multiplier)| {
            config.validate()?;
            check_grad_multiplier(grad_multiplier)?;
            if step == 0 {
                return Err(ConfigError::StepZero);
            }
            Ok(StepCoeffs::new(&config, step, grad_multiplier))
        })
    }
}

pub(crate) fn check_grad_multiplier(grad_multiplier: f64) -> Result<(), ConfigError> {
    in_standard_env(grad_multiplier, |grad_multiplier| {
        finite_and_not_negative("grad_multiplier", grad_multiplier)?;
        let vanished = grad_multiplier > 0.0 && grad_multiplier as f32 == 0.0;
        require("grad_multiplier", "be 0 or representable above 0 as an f32", grad_multiplier, !vanished)
    })
}

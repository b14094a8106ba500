//! The scalars of the update rule: hyperparameters, schedules and the coefficients of a step, and
//! the oracle. Nothing here depends on buffers.

mod coeffs;
mod config;
mod error;
mod float_env;
pub mod reference;
mod schedule;

pub use coeffs::StepCoeffs;
pub(crate) use coeffs::check_grad_multiplier;
pub use config::{DualAdamConfig, InverseTerm, WeightDecay};
pub use error::ConfigError;
pub(crate) use float_env::{FloatEnv, in_standard_env};
pub use schedule::SwitchSchedule;

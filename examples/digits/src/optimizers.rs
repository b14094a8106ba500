//! The optimizers that are compared.

use dualadam::{DualAdamConfig, SwitchSchedule};

/// One of the optimizers that are compared.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) config: DualAdamConfig,
    /// Multiplies the learning rate by t/steps up to this step.
    pub(crate) warm_up: Option<u64>,
}

impl Contender {
    /// The learning rate of step `t`.
    pub(crate) fn lr(&self, t: u64) -> f64 {
        match self.warm_up {
            Some(steps) if t < steps => self.config.lr * (t as f64 / steps as f64),
            _ => self.config.lr,
        }
    }
}

/// Positions in [`contenders`] that the report compares.
pub(crate) const ADAM: usize = 0;
pub(crate) const INV_ADAM: usize = 2;
pub(crate) const DUAL_LINEAR: usize = 3;
pub(crate) const WARM_UP: usize = 6;

/// Of `steps` in the run, those after which all schedules have left inverse Adam: the paper's 16%.
pub(crate) fn switch_step(steps: u64) -> u64 {
    (steps * 16).div_ceil(100)
}

/// All optimizers at this learning rate; the schedules end at step `switch`.
pub(crate) fn contenders(lr: f64, switch: u64) -> Vec<Contender> {
    let contender = |name, config: DualAdamConfig| Contender { name, config: config.with_lr(lr), warm_up: None };
    let dual = |name, schedule| contender(name, DualAdamConfig::default().with_schedule(schedule));
    vec![
        contender("Adam", DualAdamConfig::adam()),
        contender("AdamW", DualAdamConfig::adamw(0.01)),
        contender("InvAdam alone", DualAdamConfig::inv_adam()),
        dual("DualAdam, linear", SwitchSchedule::linear_until(switch)),
        dual("DualAdam, exponential", exponential_until(switch)),
        dual("DualAdam, fixed", SwitchSchedule::Fixed { switching_step: switch }),
        // Not one of the six, but what the linear schedule must be told apart from.
        Contender { warm_up: Some(switch), ..contender("Adam, linear warm-up", DualAdamConfig::adam()) },
    ]
}

/// The schedule whose α falls by the same factor in each step, and from about 1% at step `switch`
/// to 0.
fn exponential_until(switch: u64) -> SwitchSchedule {
    let cutoff = 0.01_f64;
    // The half step keeps both the last value above the cutoff and the next one below it clear of
    // rounding.
    let base = cutoff.powf(1.0 / (switch as f64 - 0.5));
    SwitchSchedule::Exponential { base, period: 1, cutoff }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_end_at_the_switch() {
        for switch in (1..2_000).chain([115_200, 1_920_000]) {
            let contenders = contenders(1e-3, switch);
            let first_adam_step = |index: usize| contenders[index].config.schedule.first_adam_step();
            assert_eq!(first_adam_step(ADAM), Some(1));
            assert_eq!(first_adam_step(INV_ADAM), None);
            assert_eq!(first_adam_step(DUAL_LINEAR), Some(switch));
            assert_eq!(first_adam_step(4), Some(switch + 1), "switch {switch}");
            assert_eq!(first_adam_step(5), Some(switch + 1));
        }
    }

    /// The control is the linear schedule without its inverse branch: lr·(1-α).
    #[test]
    fn warm_up_is_the_adam_share_of_the_linear_schedule() {
        let contenders = contenders(1e-3, 116);
        let linear = contenders[DUAL_LINEAR].config;
        for t in 1..=200 {
            let share = linear.lr * (1.0 - linear.schedule.alpha(t));
            assert!((contenders[WARM_UP].lr(t) - share).abs() < 1e-18, "step {t}");
            assert_eq!(contenders[ADAM].lr(t), 1e-3);
        }
    }
}

//! The layout of a control in device memory. `kernels/control.cuh` has the same.

use bytemuck::{Pod, Zeroable};

use crate::rule::{DualAdamConfig, InverseTerm, StepCoeffs, SwitchSchedule, WeightDecay};

use super::args::RawLr;

/// A group as `kernels/control.cuh` reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct DeviceGroup {
    beta1: f64,
    beta2: f64,
    eps: f64,
    inverse_eps: f64,
    weight_decay: f64,
    rate: f64,
    cutoff: f64,
    pub(super) own_lr: f64,
    period: u64,
    lr: u64,
    schedule: u32,
    decay: u32,
    maximize: u32,
    lr_is_f32: u32,
}

impl DeviceGroup {
    pub(super) fn new(config: &DualAdamConfig, lr: RawLr) -> Self {
        let (decay, weight_decay) = match config.weight_decay {
            WeightDecay::None => (0, 0.0),
            WeightDecay::Decoupled(weight_decay) => (1, weight_decay),
            WeightDecay::L2(weight_decay) => (2, weight_decay),
        };
        let (schedule, rate, cutoff, period) = match config.schedule {
            SwitchSchedule::Linear { switching_rate } => (0, switching_rate, 0.0, 0),
            SwitchSchedule::LinearEarlyDrop { switching_rate } => (1, switching_rate, 0.0, 0),
            SwitchSchedule::Exponential { base, period, cutoff } => (2, base, cutoff, period),
            SwitchSchedule::Fixed { switching_step } => (3, 0.0, 0.0, switching_step),
        };
        let (lr, lr_is_f32) = match lr {
            RawLr::F32(address) => (address, 1),
            RawLr::F64(address) => (address, 0),
        };
        Self {
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            inverse_eps: match config.inverse_term {
                InverseTerm::Paper => 0.0,
                InverseTerm::WithEps => config.eps,
            },
            weight_decay,
            rate,
            cutoff,
            own_lr: config.lr,
            period,
            lr,
            schedule,
            decay,
            maximize: config.maximize.into(),
            lr_is_f32,
        }
    }
}

/// A set as `kernels/control.cuh` reads it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub(super) struct DeviceSet {
    /// The address of the counter.
    pub(super) step: u64,
    pub(super) group: u32,
    pub(super) active: u32,
}

/// What `kernels/control.cuh` records about a set.
#[repr(C)]
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
pub(super) struct DeviceState {
    pub(super) skipped: u64,
    pub(super) last_skip: u32,
    pub(super) masters: u32,
}

/// The masters must be set from the parameters before their next update. Other numbers mean that
/// they are set.
const MASTERS_UNSET: u32 = 1;

impl DeviceState {
    /// The state of a set before its first step here.
    pub(super) fn new(masters_are_set: bool) -> Self {
        Self { skipped: 0, last_skip: 0, masters: if masters_are_set { 0 } else { MASTERS_UNSET } }
    }

    pub(super) fn masters_are_set(&self) -> bool {
        self.masters != MASTERS_UNSET
    }
}

/// The offsets of the parts of a control, in bytes from the start of its memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    pub(super) steps: u64,
    pub(super) groups: u64,
    pub(super) sets: u64,
    pub(super) states: u64,
    pub(super) coeffs: u64,
    pub(super) skips: u64,
    pub(super) bytes: usize,
}

impl Places {
    pub(super) fn new(groups: usize, sets: usize) -> Self {
        let mut bytes = 0;
        let mut place = |size: usize, count: usize| {
            let start = bytes;
            bytes += (size * count).next_multiple_of(16);
            start as u64
        };
        let steps = place(size_of::<u64>(), sets);
        let groups = place(size_of::<DeviceGroup>(), groups);
        let states = place(size_of::<DeviceState>(), sets);
        let coeffs = place(size_of::<StepCoeffs>(), sets);
        let skips = place(size_of::<u32>(), sets);
        let sets = place(size_of::<DeviceSet>(), sets);
        Self { steps, groups, sets, states, coeffs, skips, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernels and the host must agree on these.
    #[test]
    fn layouts_and_numbers_are_those_of_the_kernels() {
        assert_eq!((size_of::<DeviceGroup>(), size_of::<DeviceSet>(), size_of::<DeviceState>()), (96, 16, 16));
        let source = include_str!("../../../kernels/control.cuh");
        for line in [
            "enum Schedule : u32 { LINEAR = 0, LINEAR_EARLY_DROP = 1, EXPONENTIAL = 2, FIXED = 3 };",
            "enum Decay : u32 { NO_DECAY = 0, DECOUPLED = 1, L2 = 2 };",
            "SETTING_MASTERS = 8,",
            "enum Masters : u32 { MASTERS_SET = 0, MASTERS_UNSET = 1, MASTERS_BEING_SET = 2 };",
        ] {
            assert_eq!(source.matches(line).count(), 1, "{line}");
        }
    }
}

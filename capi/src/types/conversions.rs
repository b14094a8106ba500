//! Structs of the C interface from and to those of the library.

use std::fmt::Debug;

use bytemuck::Zeroable;
use dualadam::cuda::{ControlGroup, ControlSet, RawLr, RawScalars, SetReport};
use dualadam::{Dtype, DualAdamConfig, InverseTerm, RawBuffer, RawTensor, SkipReason, StepCoeffs};
use dualadam::{SwitchSchedule, TensorSpec, WeightDecay};

use super::numbers::*;
use super::structs::*;
use crate::arguments::{Argument, Place, read};
use crate::results::Answer;
use crate::status::Failure;

/// The address that a pointer has in C, of host or device memory.
fn address_of<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// A number that stands for yes or no.
pub(crate) fn flag(place: Place, field: &'static str, value: u32) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Failure::Enum { place, field, known: "0 or 1", value }),
    }
}

/// What the library's enums may get before C has a number for it.
fn no_number<T>(value: impl Debug) -> Result<T, Failure> {
    Err(Failure::NoNumber(format!("{value:?}")))
}

impl Answer<DualAdamConfig> for dualadam_config {
    fn of(config: DualAdamConfig) -> Result<Self, Failure> {
        let DualAdamConfig { lr, beta1, beta2, eps, .. } = config;
        let (size, maximize) = (size_of::<Self>(), config.maximize.into());
        let mut c = Self { size, lr, beta1, beta2, eps, maximize, ..Self::zeroed() };
        (c.weight_decay_kind, c.weight_decay) = match config.weight_decay {
            WeightDecay::None => (DUALADAM_DECAY_NONE, 0.0),
            WeightDecay::Decoupled(weight_decay) => (DUALADAM_DECAY_DECOUPLED, weight_decay),
            WeightDecay::L2(weight_decay) => (DUALADAM_DECAY_L2, weight_decay),
            other => return no_number(other),
        };
        c.inverse_term = match config.inverse_term {
            InverseTerm::Paper => DUALADAM_INVERSE_TERM_PAPER,
            InverseTerm::WithEps => DUALADAM_INVERSE_TERM_WITH_EPS,
            other => return no_number(other),
        };
        match config.schedule {
            SwitchSchedule::Linear { switching_rate } => {
                (c.schedule, c.switching_rate) = (DUALADAM_SCHEDULE_LINEAR, switching_rate);
            }
            SwitchSchedule::LinearEarlyDrop { switching_rate } => {
                (c.schedule, c.switching_rate) = (DUALADAM_SCHEDULE_LINEAR_EARLY_DROP, switching_rate);
            }
            SwitchSchedule::Exponential { base, period, cutoff } => {
                (c.schedule, c.base, c.period, c.cutoff) = (DUALADAM_SCHEDULE_EXPONENTIAL, base, period, cutoff);
            }
            SwitchSchedule::Fixed { switching_step } => {
                (c.schedule, c.switching_step) = (DUALADAM_SCHEDULE_FIXED, switching_step);
            }
            other => return no_number(other),
        }
        Ok(c)
    }
}

impl Argument for dualadam_config {
    type Meaning = DualAdamConfig;

    unsafe fn convert(self, place: Place) -> Result<DualAdamConfig, Failure> {
        let unknown = |field, known, value| Failure::Enum { place, field, known, value };
        let Self { lr, beta1, beta2, eps, weight_decay, .. } = self;
        let weight_decay = match self.weight_decay_kind {
            DUALADAM_DECAY_NONE if weight_decay == 0.0 => WeightDecay::None,
            DUALADAM_DECAY_NONE => {
                let requirement = "be 0 where weight_decay_kind is DUALADAM_DECAY_NONE";
                return Err(Failure::Value { place, field: "weight_decay", requirement, value: weight_decay });
            }
            DUALADAM_DECAY_DECOUPLED => WeightDecay::Decoupled(weight_decay),
            DUALADAM_DECAY_L2 => WeightDecay::L2(weight_decay),
            value => return Err(unknown("weight_decay_kind", "a DUALADAM_DECAY_ number, 0 to 2", value)),
        };
        let inverse_term = match self.inverse_term {
            DUALADAM_INVERSE_TERM_PAPER => InverseTerm::Paper,
            DUALADAM_INVERSE_TERM_WITH_EPS => InverseTerm::WithEps,
            value => return Err(unknown("inverse_term", "a DUALADAM_INVERSE_TERM_ number, 0 or 1", value)),
        };
        let Self { switching_rate, base, period, cutoff, switching_step, .. } = self;
        let schedule = match self.schedule {
            DUALADAM_SCHEDULE_LINEAR => SwitchSchedule::Linear { switching_rate },
            DUALADAM_SCHEDULE_LINEAR_EARLY_DROP => SwitchSchedule::LinearEarlyDrop { switching_rate },
            DUALADAM_SCHEDULE_EXPONENTIAL => SwitchSchedule::Exponential { base, period, cutoff },
            DUALADAM_SCHEDULE_FIXED => SwitchSchedule::Fixed { switching_step },
            value => return Err(unknown("schedule", "a DUALADAM_SCHEDULE_ number, 0 to 3", value)),
        };
        let config = DualAdamConfig::default().with_lr(lr).with_betas(beta1, beta2).with_eps(eps);
        let config = config.with_weight_decay(weight_decay).with_inverse_term(inverse_term).with_schedule(schedule);
        Ok(config.with_maximize(flag(place, "maximize", self.maximize)?))
    }
}

/// Copies coefficients, whose fields have the same names in C and in Rust.
macro_rules! copy_coeffs {
    ($from:ident to $to:ident) => {
        copy_coeffs!($from to $to: one_minus_beta1 one_minus_beta2 inv_sqrt_bc2 eps inverse_eps inverse_scale
            adam_scale decay l2 grad_scale)
    };
    ($from:ident to $to:ident: $($field:ident)+) => {{ $($to.$field = $from.$field;)+ }};
}

impl From<&StepCoeffs> for dualadam_coeffs {
    fn from(coeffs: &StepCoeffs) -> Self {
        let mut c = Self { size: size_of::<Self>(), ..Self::zeroed() };
        copy_coeffs!(coeffs to c);
        c
    }
}

/// The coefficients of a set's last step.
impl Answer<SetReport> for dualadam_coeffs {
    fn of(report: SetReport) -> Result<Self, Failure> {
        Ok(Self::from(&report.coeffs))
    }
}

impl Argument for dualadam_coeffs {
    type Meaning = StepCoeffs;

    unsafe fn convert(self, _: Place) -> Result<StepCoeffs, Failure> {
        let mut coeffs = StepCoeffs::zeroed();
        copy_coeffs!(self to coeffs);
        Ok(coeffs)
    }
}

impl Argument for dualadam_tensor {
    type Meaning = RawTensor;

    unsafe fn convert(self, place: Place) -> Result<RawTensor, Failure> {
        let buffer = |address, field, value| match value {
            DUALADAM_DTYPE_F32 => Ok(RawBuffer::f32(address)),
            DUALADAM_DTYPE_BF16 => Ok(RawBuffer::new(address, Dtype::Bf16)),
            DUALADAM_DTYPE_F16 => Ok(RawBuffer::new(address, Dtype::F16)),
            _ => Err(Failure::Enum { place, field, known: "a DUALADAM_DTYPE_ number, 1 to 3", value }),
        };
        let param = buffer(address_of(self.param), "param_dtype", self.param_dtype)?;
        let grad = buffer(address_of(self.grad), "grad_dtype", self.grad_dtype)?;
        let [exp_avg, exp_avg_sq] = [self.exp_avg, self.exp_avg_sq].map(|moment| RawBuffer::f32(address_of(moment)));
        let tensor = RawTensor::new(self.len, param, grad, exp_avg, exp_avg_sq);
        let tensor = tensor.with_coeffs_index(self.coeffs_index as usize);
        if self.master_dtype == DUALADAM_DTYPE_NONE && self.master.is_null() {
            return Ok(tensor);
        }
        Ok(tensor.with_master(buffer(address_of(self.master), "master_dtype", self.master_dtype)?))
    }
}

/// The parameters and the masters of an argument `tensor`, which must have masters.
pub(crate) fn param_and_master(tensor: &RawTensor) -> Result<(RawBuffer, RawBuffer), Failure> {
    let (place, field, value) = ("tensor".into(), "master_dtype", DUALADAM_DTYPE_NONE);
    let without = Failure::Enum { place, field, known: "DUALADAM_DTYPE_F32", value };
    Ok((tensor.param, tensor.master.ok_or(without)?))
}

impl Argument for dualadam_tensor_spec {
    type Meaning = TensorSpec;

    unsafe fn convert(self, place: Place) -> Result<TensorSpec, Failure> {
        // No memory has as many elements as the largest `usize`.
        let len = usize::try_from(self.len).unwrap_or(usize::MAX);
        let spec = TensorSpec::new(len).in_group(self.group as usize);
        Ok(if flag(place, "has_master", self.has_master)? { spec.with_master() } else { spec })
    }
}

impl Argument for dualadam_cuda_control_group {
    type Meaning = ControlGroup;

    unsafe fn convert(self, place: Place) -> Result<ControlGroup, Failure> {
        // SAFETY: the config can be read for its size (this function's requirement).
        let group = ControlGroup::new(unsafe { read(place.field("config"), self.config) }?);
        match (address_of(self.lr_f32), address_of(self.lr_f64)) {
            (0, 0) => Ok(group),
            (lr, 0) => Ok(group.with_lr(RawLr::F32(lr))),
            (0, lr) => Ok(group.with_lr(RawLr::F64(lr))),
            (_, address) => Err(Failure::TwoLrs { place, address }),
        }
    }
}

impl Argument for dualadam_cuda_control_set {
    type Meaning = ControlSet;

    unsafe fn convert(self, _: Place) -> Result<ControlSet, Failure> {
        let set = ControlSet::new(self.group);
        Ok(if self.step.is_null() { set } else { set.with_step(address_of(self.step)) })
    }
}

impl Argument for dualadam_cuda_scalars {
    type Meaning = RawScalars;

    unsafe fn convert(self, _: Place) -> Result<RawScalars, Failure> {
        let scalars = RawScalars::default().with_loss_scale(address_of(self.loss_scale));
        Ok(scalars.with_clip_factor(address_of(self.clip_factor)).with_found_inf(address_of(self.found_inf)))
    }
}

impl Answer<SetReport> for dualadam_cuda_set_report {
    fn of(report: SetReport) -> Result<Self, Failure> {
        let last_skip = match report.last_skip {
            None => DUALADAM_SKIP_NONE,
            Some(SkipReason::FoundInf) => DUALADAM_SKIP_FOUND_INF,
            Some(SkipReason::LossScale) => DUALADAM_SKIP_LOSS_SCALE,
            Some(SkipReason::ClipFactor) => DUALADAM_SKIP_CLIP_FACTOR,
            Some(SkipReason::Multiplier) => DUALADAM_SKIP_MULTIPLIER,
            Some(SkipReason::Lr) => DUALADAM_SKIP_LR,
            Some(SkipReason::Step) => DUALADAM_SKIP_STEP,
            Some(other) => return no_number(other),
        };
        let SetReport { step, skipped, .. } = report;
        Ok(Self { size: size_of::<Self>(), step, skipped, last_skip, reserved: 0 })
    }
}

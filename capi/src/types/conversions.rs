//! Structs of the C interface from and to those of the library.

use dualadam::cuda::{ControlSet, RawScalars, SetReport, SkipReason};
use dualadam::{Dtype, DualAdamConfig, Error, InverseTerm, RawBuffer, RawTensor, StepCoeffs};
use dualadam::{SwitchSchedule, TensorLayout, WeightDecay};

use super::numbers::*;
use super::structs::*;
use crate::arguments::Place;
use crate::status::Failure;

/// The address that a pointer has in C, of host or device memory.
pub(crate) fn address_of<T>(pointer: *const T) -> u64 {
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

impl From<&DualAdamConfig> for dualadam_config {
    fn from(config: &DualAdamConfig) -> Self {
        let (weight_decay_kind, weight_decay) = match config.weight_decay {
            WeightDecay::None => (DUALADAM_DECAY_NONE, 0.0),
            WeightDecay::Decoupled(weight_decay) => (DUALADAM_DECAY_DECOUPLED, weight_decay),
            WeightDecay::L2(weight_decay) => (DUALADAM_DECAY_L2, weight_decay),
        };
        let inverse_term = match config.inverse_term {
            InverseTerm::Paper => DUALADAM_INVERSE_TERM_PAPER,
            InverseTerm::WithEps => DUALADAM_INVERSE_TERM_WITH_EPS,
        };
        let (schedule, switching_rate, base, period, cutoff, switching_step) = match config.schedule {
            SwitchSchedule::Linear { switching_rate } => (DUALADAM_SCHEDULE_LINEAR, switching_rate, 0.0, 0, 0.0, 0),
            SwitchSchedule::LinearEarlyDrop { switching_rate } => {
                (DUALADAM_SCHEDULE_LINEAR_EARLY_DROP, switching_rate, 0.0, 0, 0.0, 0)
            }
            SwitchSchedule::Exponential { base, period, cutoff } => {
                (DUALADAM_SCHEDULE_EXPONENTIAL, 0.0, base, period, cutoff, 0)
            }
            SwitchSchedule::Fixed { switching_step } => (DUALADAM_SCHEDULE_FIXED, 0.0, 0.0, 0, 0.0, switching_step),
        };
        Self {
            size: size_of::<Self>(),
            lr: config.lr,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            weight_decay,
            weight_decay_kind,
            inverse_term,
            maximize: config.maximize.into(),
            schedule,
            switching_rate,
            base,
            period,
            cutoff,
            switching_step,
        }
    }
}

impl dualadam_config {
    /// The config. Its numbered choices are known; the rest is for its own validation.
    pub(crate) fn convert(&self, place: Place) -> Result<DualAdamConfig, Failure> {
        let unknown = |field, known, value| Failure::Enum { place, field, known, value };
        let Self { lr, beta1, beta2, eps, weight_decay, .. } = *self;
        let weight_decay = match self.weight_decay_kind {
            DUALADAM_DECAY_NONE if weight_decay == 0.0 => WeightDecay::None,
            DUALADAM_DECAY_NONE => {
                let requirement = "be 0 where weight_decay_kind is DUALADAM_DECAY_NONE";
                return Err(Error::Value { name: "weight_decay", requirement, value: weight_decay }.into());
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
        let Self { switching_rate, base, period, cutoff, switching_step, .. } = *self;
        let schedule = match self.schedule {
            DUALADAM_SCHEDULE_LINEAR => SwitchSchedule::Linear { switching_rate },
            DUALADAM_SCHEDULE_LINEAR_EARLY_DROP => SwitchSchedule::LinearEarlyDrop { switching_rate },
            DUALADAM_SCHEDULE_EXPONENTIAL => SwitchSchedule::Exponential { base, period, cutoff },
            DUALADAM_SCHEDULE_FIXED => SwitchSchedule::Fixed { switching_step },
            value => return Err(unknown("schedule", "a DUALADAM_SCHEDULE_ number, 0 to 3", value)),
        };
        let maximize = flag(place, "maximize", self.maximize)?;
        Ok(DualAdamConfig { lr, beta1, beta2, eps, weight_decay, schedule, inverse_term, maximize })
    }
}

/// Copies the fields of coefficients, which have the same names in C and in Rust.
macro_rules! copied {
    ($to:ident from $coeffs:ident $(, $($more:tt)+)?) => {
        $to {
            one_minus_beta1: $coeffs.one_minus_beta1,
            one_minus_beta2: $coeffs.one_minus_beta2,
            inv_sqrt_bc2: $coeffs.inv_sqrt_bc2,
            eps: $coeffs.eps,
            inverse_eps: $coeffs.inverse_eps,
            inverse_scale: $coeffs.inverse_scale,
            adam_scale: $coeffs.adam_scale,
            decay: $coeffs.decay,
            l2: $coeffs.l2,
            grad_scale: $coeffs.grad_scale,
            $($($more)+)?
        }
    };
}

/// The coefficients of a set's last step.
impl From<&SetReport> for dualadam_coeffs {
    fn from(report: &SetReport) -> Self {
        Self::from(&report.coeffs)
    }
}

impl From<&StepCoeffs> for dualadam_coeffs {
    fn from(coeffs: &StepCoeffs) -> Self {
        copied!(dualadam_coeffs from coeffs, size: size_of::<Self>())
    }
}

impl From<dualadam_coeffs> for StepCoeffs {
    fn from(coeffs: dualadam_coeffs) -> Self {
        copied!(StepCoeffs from coeffs)
    }
}

impl dualadam_tensor {
    /// The types of the parameters, the gradients and the copy.
    pub(crate) fn types(&self, place: Place) -> Result<(Dtype, Dtype, Option<Dtype>), Failure> {
        let dtype = |field, value| match value {
            DUALADAM_DTYPE_F32 => Ok(Dtype::F32),
            DUALADAM_DTYPE_BF16 => Ok(Dtype::Bf16),
            DUALADAM_DTYPE_F16 => Ok(Dtype::F16),
            _ => Err(Failure::Enum { place, field, known: "a DUALADAM_DTYPE_ number, 1 to 3", value }),
        };
        let copy = if self.copy_dtype == DUALADAM_DTYPE_NONE && self.copy.is_null() {
            None
        } else {
            Some(dtype("copy_dtype", self.copy_dtype)?)
        };
        Ok((dtype("params_dtype", self.params_dtype)?, dtype("grads_dtype", self.grads_dtype)?, copy))
    }

    pub(crate) fn raw(&self, place: Place) -> Result<RawTensor, Failure> {
        let (params, grads, copy) = self.types(place)?;
        Ok(RawTensor {
            params: RawBuffer { address: address_of(self.params), dtype: params },
            grads: RawBuffer { address: address_of(self.grads), dtype: grads },
            exp_avg: address_of(self.exp_avg),
            exp_avg_sq: address_of(self.exp_avg_sq),
            copy: copy.map(|dtype| RawBuffer { address: address_of(self.copy), dtype }),
            len: self.len,
            set: self.set as usize,
        })
    }
}

impl dualadam_tensor_layout {
    pub(crate) fn convert(&self, tensor: usize, place: Place) -> Result<TensorLayout, Failure> {
        let master = flag(place, "has_master", self.has_master)?;
        // No memory has more elements than a pointer can address.
        let len = usize::try_from(self.len);
        let len = len.map_err(|_| Error::Memory { tensor, elements: usize::MAX })?;
        Ok(TensorLayout { len, group: self.group as usize, master })
    }
}

impl From<dualadam_cuda_control_set> for ControlSet {
    fn from(set: dualadam_cuda_control_set) -> Self {
        let step = (!set.step.is_null()).then(|| address_of(set.step));
        Self { group: set.group, step }
    }
}

impl From<dualadam_cuda_scalars> for RawScalars {
    fn from(scalars: dualadam_cuda_scalars) -> Self {
        let dualadam_cuda_scalars { loss_scale, clip_factor, found_inf, .. } = scalars;
        let [loss_scale, clip_factor, found_inf] = [loss_scale, clip_factor, found_inf].map(address_of);
        Self { loss_scale, clip_factor, found_inf }
    }
}

impl From<&SetReport> for dualadam_cuda_set_report {
    fn from(report: &SetReport) -> Self {
        let last_skip = match report.last_skip {
            None => DUALADAM_SKIP_NONE,
            Some(SkipReason::FoundInf) => DUALADAM_SKIP_FOUND_INF,
            Some(SkipReason::LossScale) => DUALADAM_SKIP_LOSS_SCALE,
            Some(SkipReason::ClipFactor) => DUALADAM_SKIP_CLIP_FACTOR,
            Some(SkipReason::Multiplier) => DUALADAM_SKIP_MULTIPLIER,
            Some(SkipReason::Lr) => DUALADAM_SKIP_LR,
            Some(SkipReason::Step) => DUALADAM_SKIP_STEP,
            // The enum may grow. The panic ends at the border as the bug that it is.
            Some(reason) => unreachable!("{reason:?} has no number"),
        };
        Self { size: size_of::<Self>(), step: report.step, skipped: report.skipped, last_skip, reserved: 0 }
    }
}

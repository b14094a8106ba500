//! The structs and numbers of the C interface, and what they mean in Rust.

use std::ffi::c_void;

use crate::{Dtype, DualAdamConfig, InverseTerm, StepCoeffs, SwitchSchedule, TensorLayout, WeightDecay};

use super::arguments::{Place, Versioned};
use super::status::Failure;

/// No buffer: the type of a copy that is not there.
pub const DUALADAM_DTYPE_NONE: u32 = 0;
/// IEEE 754 binary32, `float`.
pub const DUALADAM_DTYPE_F32: u32 = 1;
/// The upper half of binary32, 2 bytes.
pub const DUALADAM_DTYPE_BF16: u32 = 2;
/// IEEE 754 binary16, 2 bytes.
pub const DUALADAM_DTYPE_F16: u32 = 3;

/// No decay; `weight_decay` must be 0.
pub const DUALADAM_DECAY_NONE: u32 = 0;
/// AdamW's: a parameter loses `lr * weight_decay` of itself in each step, beside the update.
pub const DUALADAM_DECAY_DECOUPLED: u32 = 1;
/// L2 regularisation: the gradient gains `weight_decay` times the parameter.
pub const DUALADAM_DECAY_L2: u32 = 2;

/// The inverse branch is m^ * sqrt(v^), line 10 of Algorithm 1 in arXiv 2603.07122.
pub const DUALADAM_INVERSE_TERM_PAPER: u32 = 0;
/// The inverse branch is m^ * (sqrt(v^) + eps), as in the authors' published code.
pub const DUALADAM_INVERSE_TERM_WITH_EPS: u32 = 1;

/// alpha = max(0, 1 - t * switching_rate); below 1e-12 it is 0. A rate of 1/n makes step n the first of plain Adam, 1 is Adam from the
/// first step, 0 never leaves inverse Adam.
pub const DUALADAM_SCHEDULE_LINEAR: u32 = 0;
/// alpha = 1 - t * switching_rate as long as that is at least switching_rate, then 0.
pub const DUALADAM_SCHEDULE_LINEAR_EARLY_DROP: u32 = 1;
/// alpha = base^floor((t - 1) / period), 0 once that is below `cutoff`.
pub const DUALADAM_SCHEDULE_EXPONENTIAL: u32 = 2;
/// alpha = 1 up to and including `switching_step`, then 0.
pub const DUALADAM_SCHEDULE_FIXED: u32 = 3;

/// No step of the set was skipped.
pub const DUALADAM_SKIP_NONE: u32 = 0;
/// `found_inf` was not 0.
pub const DUALADAM_SKIP_FOUND_INF: u32 = 1;
/// `loss_scale` was NaN, infinite, 0 or negative.
pub const DUALADAM_SKIP_LOSS_SCALE: u32 = 2;
/// `clip_factor` was NaN, infinite or negative.
pub const DUALADAM_SKIP_CLIP_FACTOR: u32 = 3;
/// clip_factor / loss_scale was infinite as a float, or above 0 and rounded to 0.
pub const DUALADAM_SKIP_MULTIPLIER: u32 = 4;
/// lr was NaN, infinite or negative, or so large that lr / (1 - beta1) / eps, lr / (1 - beta1) * eps or lr * weight_decay overflows.
pub const DUALADAM_SKIP_LR: u32 = 5;
/// The step counter was at its end, 2^64 - 1.
pub const DUALADAM_SKIP_STEP: u32 = 6;

/// The hyperparameters of one parameter group. `dualadam_config_init` fills in the defaults.
///
/// The schedule is how the weight alpha of the inverse branch falls from 1 to 0 with a tensor's step t. Only the fields that its kind
/// names are looked at.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_config {
    /// sizeof(dualadam_config)
    pub size: usize,
    /// Learning rate; finite, at least 0. Default 1e-3.
    pub lr: f64,
    /// Decay of the first moment, at least 0 and below 1. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment, at least 0 and below 1. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; above 0 also as a float. Default 1e-8.
    pub eps: f64,
    /// Weight decay; finite, at least 0. Default 0.
    pub weight_decay: f64,
    /// How weights decay: a DUALADAM_DECAY_ number. Default none.
    pub weight_decay_kind: u32,
    /// The form of the inverse branch: a DUALADAM_INVERSE_TERM_ number. Default the paper's.
    pub inverse_term: u32,
    /// 1 to ascend, 0 to descend. Default 0.
    pub maximize: u32,
    /// The kind of schedule: a DUALADAM_SCHEDULE_ number. Default linear.
    pub schedule: u32,
    /// Per step, in 0..1. Default 8e-5, the paper's: 12,500 steps.
    pub switching_rate: f64,
    /// Factor per period, in 0..1. Default 0.
    pub base: f64,
    /// Steps per period, at least 1. Default 0, which an exponential schedule refuses.
    pub period: u64,
    /// The smallest alpha that is used, in 0..1. Default 0.
    pub cutoff: f64,
    /// The last step of inverse Adam. Default 0.
    pub switching_step: u64,
}

/// The scalars of one update of one tensor, as the kernels use them. `dualadam_config_coeffs` makes valid ones; values that were set by
/// hand are used as they are.
///
/// With bc1 = 1 - beta1^t and bc2 = 1 - beta2^t, each element is stepped in this order, each fma fused and everything else rounded to
/// nearest even:
///
/// ```text
/// g = grad_scale * grad
/// g = l2 == 0 ? g : fma(l2, p, g)
/// m = fma(one_minus_beta1, g - m, m)
/// v = fma(one_minus_beta2, fma(g, g, -v), v)
/// s = sqrt(v) * inv_sqrt_bc2
/// q = adam_scale / (s + eps)
/// w = inverse_scale == 0 ? q : fma(inverse_scale, s + inverse_eps, q)
/// u = decay == 0 ? m * w : fma(m, w, decay * p)
/// p = p - u
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_coeffs {
    /// sizeof(dualadam_coeffs)
    pub size: usize,
    /// 1 - beta1
    pub one_minus_beta1: f32,
    /// 1 - beta2
    pub one_minus_beta2: f32,
    /// 1 / sqrt(bc2)
    pub inv_sqrt_bc2: f32,
    /// eps
    pub eps: f32,
    /// The eps of the inverse branch: 0 or eps.
    pub inverse_eps: f32,
    /// lr * alpha / bc1; 0 makes the update plain Adam.
    pub inverse_scale: f32,
    /// lr * (1 - alpha) / bc1
    pub adam_scale: f32,
    /// lr * weight_decay for decoupled decay, else 0.
    pub decay: f32,
    /// weight_decay for L2 decay, else 0.
    pub l2: f32,
    /// The multiplier of the gradient, negative when maximising.
    pub grad_scale: f32,
}

/// One tensor's buffers, contiguous and all of `len` elements: in the host's memory for `dualadam_cpu_` functions, in the device's for
/// `dualadam_cuda_` functions. They stay the caller's. `dualadam_tensor_init` fills in zeros and `float` types.
///
/// Parameters that are F32 take gradients of any type, BF16 and F16 parameters take gradients of their own type or F32. A copy is BF16 or
/// F16, beside F32 parameters whose gradients are F32 or of the copy's type. Each buffer is aligned to its elements. None overlaps
/// another, of this or another tensor; only gradients may share memory.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_tensor {
    /// sizeof(dualadam_tensor)
    pub size: usize,
    /// The parameters, read and written; the masters, where there is a copy.
    pub params: *mut c_void,
    /// The gradients, only read. In a list, null leaves the tensor alone.
    pub grads: *const c_void,
    /// The first moment, read and written. It starts as zeros.
    pub exp_avg: *mut f32,
    /// The second moment, read and written. It starts as zeros.
    pub exp_avg_sq: *mut f32,
    /// Null, or where each new parameter is written in 16 bits as well. Never read.
    pub copy: *mut c_void,
    /// Elements; 0 is fine, and the buffers are not looked at then.
    pub len: u64,
    /// A DUALADAM_DTYPE_ number.
    pub params_dtype: u32,
    /// A DUALADAM_DTYPE_ number.
    pub grads_dtype: u32,
    /// A DUALADAM_DTYPE_ number; DUALADAM_DTYPE_NONE where `copy` is null.
    pub copy_dtype: u32,
    /// Which coefficients of a list's the tensor uses, from 0; 0 where there is one tensor only.
    pub set: u32,
}

/// What a state must know of a tensor beforehand. `dualadam_tensor_layout_init` fills in zeros.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_tensor_layout {
    /// sizeof(dualadam_tensor_layout)
    pub size: usize,
    /// Elements.
    pub len: u64,
    /// Number of the tensor's parameter group, from 0.
    pub group: u32,
    /// 1 if the state has F32 masters of the tensor's 16-bit parameters, else 0.
    pub has_master: u32,
}

/// A tensor's part of a state. `dualadam_state_tensor` fills it in.
///
/// The arrays have `len` elements each. They are the state's: read and write them, but not after the state was freed, and not while
/// another thread uses the tensor, or saves the state.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_tensor_state {
    /// sizeof(dualadam_tensor_state)
    pub size: usize,
    /// Elements.
    pub len: u64,
    /// Updates that the tensor has had.
    pub step: u64,
    /// The first moment.
    pub exp_avg: *mut f32,
    /// The second moment; nowhere negative when the state is saved.
    pub exp_avg_sq: *mut f32,
    /// The masters, or null.
    pub master: *mut f32,
    /// Number of the tensor's parameter group.
    pub group: u32,
    /// 1 if the masters hold the parameters, 0 if they are still to be set from the 16-bit ones.
    pub master_is_set: u32,
}

/// A parameter group of a control. `dualadam_cuda_control_group_init` fills in nulls.
///
/// With both pointers to an lr null, the control keeps that of the config in its own device memory. Otherwise the config's is not used, but
/// must be valid; the value in device memory is read in each step and never written, and a step with one that is not valid is skipped.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_cuda_control_group {
    /// sizeof(dualadam_cuda_control_group)
    pub size: usize,
    /// The hyperparameters, in the host's memory; they are copied. Never null.
    pub config: *const dualadam_config,
    /// Null, or the address of the learning rate in the caller's device memory, as a float. It stays the caller's.
    pub lr_f32: *const f32,
    /// Null, or the address of the learning rate in the caller's device memory, as a double. It stays the caller's.
    pub lr_f64: *const f64,
}

/// A coefficient set of a control: tensors of one group that are updated together. `dualadam_cuda_control_set_init` fills in group 0 and
/// null.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_cuda_control_set {
    /// sizeof(dualadam_cuda_control_set)
    pub size: usize,
    /// Number of the group, from 0.
    pub group: usize,
    /// The address of the step counter in the caller's device memory, read and written; it stays the caller's. Null for one in the
    /// control's memory that begins at 0.
    pub step: *mut u64,
}

/// Scalars in device memory that steer one step: addresses, null for what is not there. They stay the caller's. `dualadam_cuda_scalars_init`
/// fills in nulls.
///
/// Gradients are multiplied by clip_factor / loss_scale, formed in double and rounded once.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_cuda_scalars {
    /// sizeof(dualadam_cuda_scalars)
    pub size: usize,
    /// What the loss was multiplied by, a divisor of the gradients: finite and above 0. PyTorch calls it grad_scale.
    pub loss_scale: *const f32,
    /// What the gradients are multiplied by after that: finite, at least 0.
    pub clip_factor: *const f32,
    /// Anything but 0, NaN too, skips the step.
    pub found_inf: *const f32,
}

/// What became of a set's steps. `dualadam_cuda_control_report` fills it in.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct dualadam_cuda_set_report {
    /// sizeof(dualadam_cuda_set_report)
    pub size: usize,
    /// Updates that the set's tensors have had: the step counter.
    pub step: u64,
    /// Steps that were skipped.
    pub skipped: u64,
    /// Why the last of them was: a DUALADAM_SKIP_ number, where there are several reasons the smallest. DUALADAM_SKIP_NONE if there was
    /// none.
    pub last_skip: u32,
    /// 0
    pub reserved: u32,
}

// SAFETY: these are repr(C) and have numbers and pointers only; there is no older version yet.
unsafe impl Versioned for dualadam_config {
    const SIZES: &[usize] = &[size_of::<Self>()];
}
// SAFETY: as above.
unsafe impl Versioned for dualadam_coeffs {
    const SIZES: &[usize] = &[size_of::<Self>()];
}
// SAFETY: as above.
unsafe impl Versioned for dualadam_tensor {
    const SIZES: &[usize] = &[size_of::<Self>()];
}
// SAFETY: as above.
unsafe impl Versioned for dualadam_tensor_layout {
    const SIZES: &[usize] = &[size_of::<Self>()];
}
// SAFETY: as above.
unsafe impl Versioned for dualadam_tensor_state {
    const SIZES: &[usize] = &[size_of::<Self>()];
}
// SAFETY: as above.
unsafe impl Versioned for dualadam_cuda_control_group {
    const SIZES: &[usize] = &[size_of::<Self>()];
}
// SAFETY: as above.
unsafe impl Versioned for dualadam_cuda_control_set {
    const SIZES: &[usize] = &[size_of::<Self>()];
}
// SAFETY: as above.
unsafe impl Versioned for dualadam_cuda_scalars {
    const SIZES: &[usize] = &[size_of::<Self>()];
}
// SAFETY: as above.
unsafe impl Versioned for dualadam_cuda_set_report {
    const SIZES: &[usize] = &[size_of::<Self>()];
}

/// A number that stands for yes or no.
pub(super) fn flag(place: Place, field: &'static str, value: u32) -> Result<bool, Failure> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Failure::Enum { place, field, known: "0 or 1", value }),
    }
}

impl dualadam_config {
    pub(super) fn new(size: usize, config: &DualAdamConfig) -> Self {
        let (weight_decay_kind, weight_decay) = match config.weight_decay {
            WeightDecay::None => (DUALADAM_DECAY_NONE, 0.0),
            WeightDecay::Decoupled(weight_decay) => (DUALADAM_DECAY_DECOUPLED, weight_decay),
            WeightDecay::L2(weight_decay) => (DUALADAM_DECAY_L2, weight_decay),
        };
        let inverse_term = match config.inverse_term {
            InverseTerm::Paper => DUALADAM_INVERSE_TERM_PAPER,
            InverseTerm::WithEps => DUALADAM_INVERSE_TERM_WITH_EPS,
        };
        let mut made = Self {
            size,
            lr: config.lr,
            beta1: config.beta1,
            beta2: config.beta2,
            eps: config.eps,
            weight_decay,
            weight_decay_kind,
            inverse_term,
            maximize: config.maximize.into(),
            schedule: DUALADAM_SCHEDULE_LINEAR,
            switching_rate: 0.0,
            base: 0.0,
            period: 0,
            cutoff: 0.0,
            switching_step: 0,
        };
        match config.schedule {
            SwitchSchedule::Linear { switching_rate } => made.switching_rate = switching_rate,
            SwitchSchedule::LinearEarlyDrop { switching_rate } => {
                made = Self { schedule: DUALADAM_SCHEDULE_LINEAR_EARLY_DROP, switching_rate, ..made };
            }
            SwitchSchedule::Exponential { base, period, cutoff } => {
                made = Self { schedule: DUALADAM_SCHEDULE_EXPONENTIAL, base, period, cutoff, ..made };
            }
            SwitchSchedule::Fixed { switching_step } => {
                made = Self { schedule: DUALADAM_SCHEDULE_FIXED, switching_step, ..made };
            }
        }
        made
    }

    /// The config, of which the numbered choices are known; the rest is for its own validation.
    pub(super) fn convert(&self, place: Place) -> Result<DualAdamConfig, Failure> {
        let unknown = |field, known, value| Failure::Enum { place, field, known, value };
        let Self { lr, beta1, beta2, eps, weight_decay, .. } = *self;
        let weight_decay = match self.weight_decay_kind {
            DUALADAM_DECAY_NONE if weight_decay == 0.0 => WeightDecay::None,
            DUALADAM_DECAY_NONE => {
                let requirement = "be 0 where weight_decay_kind is DUALADAM_DECAY_NONE";
                return Err(crate::Error::Value { name: "weight_decay", requirement, value: weight_decay }.into());
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

impl dualadam_coeffs {
    pub(super) fn new(size: usize, coeffs: &StepCoeffs) -> Self {
        let StepCoeffs { one_minus_beta1, one_minus_beta2, inv_sqrt_bc2, eps, inverse_eps, .. } = *coeffs;
        let StepCoeffs { inverse_scale, adam_scale, decay, l2, grad_scale, .. } = *coeffs;
        Self {
            size,
            one_minus_beta1,
            one_minus_beta2,
            inv_sqrt_bc2,
            eps,
            inverse_eps,
            inverse_scale,
            adam_scale,
            decay,
            l2,
            grad_scale,
        }
    }
}

impl From<dualadam_coeffs> for StepCoeffs {
    fn from(coeffs: dualadam_coeffs) -> Self {
        let dualadam_coeffs { one_minus_beta1, one_minus_beta2, inv_sqrt_bc2, eps, inverse_eps, .. } = coeffs;
        let dualadam_coeffs { inverse_scale, adam_scale, decay, l2, grad_scale, .. } = coeffs;
        Self {
            one_minus_beta1,
            one_minus_beta2,
            inv_sqrt_bc2,
            eps,
            inverse_eps,
            inverse_scale,
            adam_scale,
            decay,
            l2,
            grad_scale,
        }
    }
}

/// The element types of a tensor's parameters, gradients and copy.
pub(super) type Types = (Dtype, Dtype, Option<Dtype>);

impl dualadam_tensor {
    pub(super) fn types(&self, place: Place) -> Result<Types, Failure> {
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
}

impl dualadam_tensor_layout {
    pub(super) fn convert(&self, tensor: usize, place: Place) -> Result<TensorLayout, Failure> {
        let master = flag(place, "has_master", self.has_master)?;
        // What no pointer can address, no memory is there for either.
        let len = usize::try_from(self.len);
        let len = len.map_err(|_| crate::Error::Memory { tensor, elements: usize::MAX })?;
        Ok(TensorLayout { len, group: self.group as usize, master })
    }
}

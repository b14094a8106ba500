//! The structs of the C interface.

use std::ffi::c_void;

use bytemuck::Zeroable;

use crate::arguments::Versioned;

/// The hyperparameters of one parameter group. `dualadam_config_init` fills in the defaults.
///
/// With t the number of a tensor's update, from 1, m^ = m / (1 - beta1^t) and
/// v^ = v / (1 - beta2^t), one step without decay is (Algorithm 1 of arXiv 2603.07122):
///
/// ```text
/// p = p - lr * (alpha * m^ * sqrt(v^) + (1 - alpha) * m^ / (sqrt(v^) + eps))
/// ```
///
/// The schedule gives alpha, the weight of the inverse update, for each t. The library reads only
/// the schedule fields that belong to the number in `schedule`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_config {
    /// sizeof(dualadam_config)
    pub size: usize,
    /// Learning rate; finite, at least 0. Default 1e-3.
    pub lr: f64,
    /// Decay of the first moment, at least 0 and below 1. Default 0.9.
    pub beta1: f64,
    /// Decay of the second moment, at least 0 and below 1. Default 0.999.
    pub beta2: f64,
    /// Added to the root of the second moment; above 0, also after rounding to float. Default 1e-8.
    pub eps: f64,
    /// Weight decay; finite, at least 0; 0 where `weight_decay_kind` is DUALADAM_DECAY_NONE.
    /// Default 0.
    pub weight_decay: f64,
    /// How weights decay: a DUALADAM_DECAY_ number. Default DUALADAM_DECAY_NONE.
    pub weight_decay_kind: u32,
    /// The form of the inverse update: a DUALADAM_INVERSE_TERM_ number. Default
    /// DUALADAM_INVERSE_TERM_PAPER.
    pub inverse_term: u32,
    /// 1 to maximise the loss, 0 to minimise it. Default 0.
    pub maximize: u32,
    /// How alpha falls: a DUALADAM_SCHEDULE_ number. Default DUALADAM_SCHEDULE_LINEAR.
    pub schedule: u32,
    /// Of both linear schedules: what alpha loses per step, from 0 to 1. Default 8e-5, the paper's,
    /// with which alpha is 0 from step 12,500 on.
    pub switching_rate: f64,
    /// Of the exponential schedule: the factor per period, from 0 to 1. Default 0.
    pub base: f64,
    /// Of the exponential schedule: steps per period, at least 1. Default 0, which that schedule
    /// does not allow.
    pub period: u64,
    /// Of the exponential schedule: the smallest alpha that is used, from 0 to 1. Default 0.
    pub cutoff: f64,
    /// Of the fixed schedule: the last step with alpha 1. Default 0.
    pub switching_step: u64,
}

/// The coefficients of one update of one tensor. `dualadam_config_coeffs` forms them in double and
/// rounds each once to float. The kernels use values that the caller sets as they are.
///
/// With bc1 = 1 - beta1^t and bc2 = 1 - beta2^t, a step does this for each element, in this order.
/// Each fma is fused. Every other operation rounds to nearest even.
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
/// The gradient and the parameter p (the master, where there is one) are first widened to float,
/// which is exact. The new parameter is rounded once to its own type, to nearest even.
/// saturate(x) is FLT_MAX where x is above FLT_MAX, and NaN where x is NaN. A term whose
/// coefficient is 0 is absent, not multiplied by 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
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
    /// The eps of the inverse update: 0 for DUALADAM_INVERSE_TERM_PAPER, else eps.
    pub inverse_eps: f32,
    /// lr * alpha / bc1. With 0, the update is plain Adam.
    pub inverse_scale: f32,
    /// lr * (1 - alpha) / bc1
    pub adam_scale: f32,
    /// lr * weight_decay for DUALADAM_DECAY_DECOUPLED, else 0.
    pub decay: f32,
    /// weight_decay for DUALADAM_DECAY_L2, else 0.
    pub l2: f32,
    /// The multiplier of the gradient; negative where `maximize` is 1.
    pub grad_scale: f32,
}

/// The buffers of one tensor. `dualadam_tensor_init` fills in zeros and float types.
///
/// - The caller owns the buffers. They lie in the host's memory for `dualadam_cpu_` functions, and
///   in the device's memory for `dualadam_cuda_` functions.
/// - Each buffer is contiguous, has `len` elements, and is aligned to its element type.
/// - No buffer overlaps another, of this or of another tensor of a list. But gradients may share
///   memory with other gradients.
/// - F32 parameters take gradients of any type. BF16 and F16 parameters take gradients of their own
///   type or F32, and may have F32 masters.
///
/// A step of a tensor with 0 elements checks the types and does nothing.
///
/// BF16 parameters and gradients with F32 masters:
///
/// ```c
/// dualadam_tensor tensor;
/// dualadam_tensor_init(&tensor, sizeof tensor);
/// tensor.param = param;
/// tensor.grad = grad;
/// tensor.exp_avg = exp_avg;
/// tensor.exp_avg_sq = exp_avg_sq;
/// tensor.master = master;
/// tensor.len = len;
/// tensor.param_dtype = DUALADAM_DTYPE_BF16;
/// tensor.grad_dtype = DUALADAM_DTYPE_BF16;
/// tensor.master_dtype = DUALADAM_DTYPE_F32;
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_tensor {
    /// sizeof(dualadam_tensor)
    pub size: usize,
    /// The model's parameters. Written; read only where `master` is null.
    pub param: *mut c_void,
    /// The gradients. Read. A list skips a tensor whose `grad` is null; a step of one tensor does
    /// not allow null.
    pub grad: *const c_void,
    /// The first moment, F32. Read and written. Zeros before the first step.
    pub exp_avg: *mut c_void,
    /// The second moment, F32. Read and written. Zeros before the first step.
    pub exp_avg_sq: *mut c_void,
    /// The F32 masters of BF16 or F16 parameters, or null. Read and written: the step updates the
    /// masters, and writes their values, rounded, to `param`. The caller fills them from `param`
    /// before the first step.
    pub master: *mut c_void,
    /// Elements of each buffer. With 0, the pointers are not looked at.
    pub len: u64,
    /// The type of `param`: a DUALADAM_DTYPE_ number.
    pub param_dtype: u32,
    /// The type of `grad`: a DUALADAM_DTYPE_ number.
    pub grad_dtype: u32,
    /// DUALADAM_DTYPE_F32, or DUALADAM_DTYPE_NONE where `master` is null.
    pub master_dtype: u32,
    /// The coefficient set of the tensor: an index into the `coeffs` of a list's step, or into the
    /// sets of a control. 0 for a step of one tensor.
    pub coeffs_index: u32,
}

/// What `dualadam_state_new` needs to know of a tensor. `dualadam_tensor_spec_init` fills in zeros.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_tensor_spec {
    /// sizeof(dualadam_tensor_spec)
    pub size: usize,
    /// Elements.
    pub len: u64,
    /// Number of the tensor's parameter group, from 0.
    pub group: u32,
    /// 1 if the state is to have F32 masters of the tensor's BF16 or F16 parameters, else 0.
    pub has_master: u32,
}

/// A tensor's part of a state. `dualadam_state_tensor` fills it in.
///
/// The state owns the arrays, which have `len` elements each. The caller may read and write them
/// until the state is freed, but not while another thread uses them, or saves or resumes the state.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_tensor_state {
    /// sizeof(dualadam_tensor_state)
    pub size: usize,
    /// Elements.
    pub len: u64,
    /// Updates that the tensor has had.
    pub step: u64,
    /// The first moment.
    pub exp_avg: *mut f32,
    /// The second moment. No element may be negative when the state is saved.
    pub exp_avg_sq: *mut f32,
    /// The masters, or null for a tensor without masters.
    pub master: *mut f32,
    /// Number of the tensor's parameter group, from 0.
    pub group: u32,
    /// 1 if the masters are set. 0 if they must still be filled from the parameters, or if the
    /// tensor has no masters.
    pub master_is_set: u32,
}

/// A parameter group of a control. `dualadam_cuda_control_group_init` fills in nulls.
///
/// If `lr_f32` and `lr_f64` are null, the control keeps the config's lr in its own device memory.
/// If one of them is set, each step reads the learning rate there, and is skipped if the rate is
/// not valid. The config's own lr is then not used, but must still be valid.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_cuda_control_group {
    /// sizeof(dualadam_cuda_control_group)
    pub size: usize,
    /// The hyperparameters, in the host's memory. The library copies them. Never null.
    pub config: *const dualadam_config,
    /// The address of the learning rate, a float in the caller's device memory, or null.
    pub lr_f32: *const f32,
    /// The address of the learning rate, a double in the caller's device memory, or null.
    pub lr_f64: *const f64,
}

/// A coefficient set of a control: tensors of one group that are always updated together, and so
/// have one step counter. `dualadam_cuda_control_set_init` fills in group 0 and null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_cuda_control_set {
    /// sizeof(dualadam_cuda_control_set)
    pub size: usize,
    /// Number of the set's group, from 0.
    pub group: usize,
    /// The address of the step counter, in the caller's device memory. Read and written. If null,
    /// the control has the counter in its own device memory, and it begins at 0.
    pub step: *mut u64,
}

/// Addresses of floats in the caller's device memory that steer one controlled step.
/// `dualadam_cuda_scalars_init` fills in nulls.
///
/// The step multiplies the gradients by clip_factor / loss_scale, which the device forms in double
/// and rounds once to float.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_cuda_scalars {
    /// sizeof(dualadam_cuda_scalars)
    pub size: usize,
    /// The factor that the loss was multiplied by; finite and above 0. PyTorch calls it grad_scale.
    /// Null means 1.
    pub loss_scale: *const f32,
    /// The factor of gradient clipping; finite, at least 0. Null means 1.
    pub clip_factor: *const f32,
    /// If this is not 0 (NaN is not 0), the step is skipped. Null means 0.
    pub found_inf: *const f32,
}

/// How many steps of a control's set were made and skipped. `dualadam_cuda_control_report` fills it
/// in.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_cuda_set_report {
    /// sizeof(dualadam_cuda_set_report)
    pub size: usize,
    /// The step counter: updates that the set's tensors have had.
    pub step: u64,
    /// Steps that the device skipped.
    pub skipped: u64,
    /// Why the last skipped step was skipped: a DUALADAM_SKIP_ number, the smallest of several.
    /// DUALADAM_SKIP_NONE if no step was skipped.
    pub last_skip: u32,
    /// Always 0.
    pub reserved: u32,
}

macro_rules! versioned {
    ($($name:ident)+) => {
        // SAFETY: the struct is repr(C), begins with its size, and has only numbers and pointers,
        // which any bits are values of. It has no older version.
        $(unsafe impl Versioned for $name {})+
    };
}
versioned! {
    dualadam_config dualadam_coeffs dualadam_tensor dualadam_tensor_spec dualadam_tensor_state
    dualadam_cuda_control_group dualadam_cuda_control_set dualadam_cuda_scalars
    dualadam_cuda_set_report
}

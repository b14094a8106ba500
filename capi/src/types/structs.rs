//! The structs of the C interface.

use std::ffi::c_void;

use bytemuck::Zeroable;

use crate::arguments::Versioned;

/// The hyperparameters of one parameter group. `dualadam_config_init` fills in the defaults.
///
/// The schedule is how the weight alpha of the inverse branch falls from 1 to 0 with a tensor's
/// step t. The library reads only those of its fields that its kind names.
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

/// The scalars of one update of one tensor, as the kernels use them. `dualadam_config_coeffs` makes
/// valid ones; values that were set by hand are used as they are.
///
/// With bc1 = 1 - beta1^t and bc2 = 1 - beta2^t, each element is stepped in this order, each fma
/// fused and everything else rounded to nearest even:
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
/// saturate(x) is FLT_MAX where x is above that, and NaN where x is NaN. A term whose coefficient
/// is 0 is absent, not multiplied by 0.
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

/// One tensor's buffers, contiguous and all of `len` elements: in the host's memory for
/// `dualadam_cpu_` functions, in the device's for `dualadam_cuda_` functions. The caller owns them.
/// `dualadam_tensor_init` fills in zeros and `float` types.
///
/// F32 parameters take gradients of any type; BF16 and F16 parameters take gradients of their own
/// type or F32, and may have masters. A step of 0 elements tells whether there is a kernel, and
/// does nothing. Each buffer is aligned to its elements. No buffer overlaps another, of this or
/// another tensor; only gradients may share memory.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_tensor {
    /// sizeof(dualadam_tensor)
    pub size: usize,
    /// The parameters, as the model has them. Written; read where there is no master.
    pub param: *mut c_void,
    /// The gradients, only read. A list skips a tensor whose gradients are null.
    pub grad: *const c_void,
    /// The first moment, of type F32, read and written. It starts as zeros.
    pub exp_avg: *mut c_void,
    /// The second moment, of type F32, read and written. It starts as zeros.
    pub exp_avg_sq: *mut c_void,
    /// Null, or the masters of BF16 or F16 parameters, read and written: they are what is updated,
    /// and `param` gets their rounding. The caller fills them from `param` before the first step.
    pub master: *mut c_void,
    /// Elements. With 0, nothing is read of the buffers' pointers.
    pub len: u64,
    /// A DUALADAM_DTYPE_ number.
    pub param_dtype: u32,
    /// A DUALADAM_DTYPE_ number.
    pub grad_dtype: u32,
    /// DUALADAM_DTYPE_F32, or DUALADAM_DTYPE_NONE where `master` is null.
    pub master_dtype: u32,
    /// Index of the tensor's coefficients in those of a list; 0 for a step of one tensor.
    pub coeffs_index: u32,
}

/// What a state must know of a tensor beforehand. `dualadam_tensor_spec_init` fills in zeros.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_tensor_spec {
    /// sizeof(dualadam_tensor_spec)
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
/// The arrays have `len` elements each. The state owns them. The caller may read and write them
/// until the state is freed, but not while another thread uses the tensor or saves the state.
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
/// With both pointers to an lr null, the control keeps the config's lr in its own device memory.
/// Otherwise each step reads the lr in the caller's memory, and is skipped if that is not valid.
/// The config's lr is not used then, but must be valid.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_cuda_control_group {
    /// sizeof(dualadam_cuda_control_group)
    pub size: usize,
    /// The hyperparameters, in the host's memory; they are copied. Never null.
    pub config: *const dualadam_config,
    /// Null, or the address of the learning rate in the caller's device memory, as a float.
    pub lr_f32: *const f32,
    /// Null, or the address of the learning rate in the caller's device memory, as a double.
    pub lr_f64: *const f64,
}

/// A coefficient set of a control: tensors of one group that are updated together.
/// `dualadam_cuda_control_set_init` fills in group 0 and null.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_cuda_control_set {
    /// sizeof(dualadam_cuda_control_set)
    pub size: usize,
    /// Number of the group, from 0.
    pub group: usize,
    /// The address of the step counter in the caller's device memory, read and written. Null for a
    /// counter in the control's memory, which begins at 0.
    pub step: *mut u64,
}

/// Scalars in the caller's device memory that steer one step: addresses, null for what is not
/// there. `dualadam_cuda_scalars_init` fills in nulls.
///
/// Gradients are multiplied by clip_factor / loss_scale, formed in double and rounded once.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_cuda_scalars {
    /// sizeof(dualadam_cuda_scalars)
    pub size: usize,
    /// What the loss was multiplied by, a divisor of the gradients: finite and above 0. PyTorch
    /// calls it grad_scale.
    pub loss_scale: *const f32,
    /// What the gradients are multiplied by after that: finite, at least 0.
    pub clip_factor: *const f32,
    /// Anything but 0, NaN too, skips the step.
    pub found_inf: *const f32,
}

/// What became of a set's steps. `dualadam_cuda_control_report` fills it in.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
pub struct dualadam_cuda_set_report {
    /// sizeof(dualadam_cuda_set_report)
    pub size: usize,
    /// Updates that the set's tensors have had: the step counter.
    pub step: u64,
    /// Steps that were skipped.
    pub skipped: u64,
    /// Why the last of them was skipped: a DUALADAM_SKIP_ number, the smallest where there were
    /// several reasons. DUALADAM_SKIP_NONE if none was skipped.
    pub last_skip: u32,
    /// 0
    pub reserved: u32,
}

macro_rules! versioned {
    ($($name:ident)+) => {
        // SAFETY: these are repr(C), and have only numbers and pointers. There are no older
        // versions.
        $(unsafe impl Versioned for $name {})+
    };
}
versioned! {
    dualadam_config dualadam_coeffs dualadam_tensor dualadam_tensor_spec dualadam_tensor_state
    dualadam_cuda_control_group dualadam_cuda_control_set dualadam_cuda_scalars
    dualadam_cuda_set_report
}

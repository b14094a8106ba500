//! The named numbers of the C interface, other than the statuses.

/// No buffer: `master_dtype` of a tensor without masters.
pub const DUALADAM_DTYPE_NONE: u32 = 0;
/// IEEE 754 binary32: `float`, 4 bytes.
pub const DUALADAM_DTYPE_F32: u32 = 1;
/// bfloat16: the upper half of a binary32, 2 bytes.
pub const DUALADAM_DTYPE_BF16: u32 = 2;
/// IEEE 754 binary16: half precision, 2 bytes.
pub const DUALADAM_DTYPE_F16: u32 = 3;

/// No weight decay. `weight_decay` must be 0.
pub const DUALADAM_DECAY_NONE: u32 = 0;
/// Decoupled, as in AdamW: each step subtracts lr * weight_decay * p from a parameter p, beside the
/// update.
pub const DUALADAM_DECAY_DECOUPLED: u32 = 1;
/// L2 regularisation, as in Adam: each step adds weight_decay * p to the gradient of a parameter p.
pub const DUALADAM_DECAY_L2: u32 = 2;

/// The inverse update is m^ * sqrt(v^): line 10 of Algorithm 1 in arXiv 2603.07122.
pub const DUALADAM_INVERSE_TERM_PAPER: u32 = 0;
/// The inverse update is m^ * (sqrt(v^) + eps), as in the authors' published code.
pub const DUALADAM_INVERSE_TERM_WITH_EPS: u32 = 1;

/// alpha = max(0, 1 - t * switching_rate), and 0 where that is below 1e-12: line 8 of Algorithm 1
/// in arXiv 2603.07122. With a rate of 1/n, step n is the first step of plain Adam. With a rate of
/// 1, every step is. With a rate of 0, alpha stays 1.
pub const DUALADAM_SCHEDULE_LINEAR: u32 = 0;
/// alpha = 1 - t * switching_rate while that is at least switching_rate, then 0: as in the authors'
/// published code.
pub const DUALADAM_SCHEDULE_LINEAR_EARLY_DROP: u32 = 1;
/// alpha = base^floor((t - 1) / period) while that is at least `cutoff`, then 0.
pub const DUALADAM_SCHEDULE_EXPONENTIAL: u32 = 2;
/// alpha = 1 up to and including step `switching_step`, then 0.
pub const DUALADAM_SCHEDULE_FIXED: u32 = 3;

/// The device skipped no step of the set.
pub const DUALADAM_SKIP_NONE: u32 = 0;
/// `found_inf` was not 0.
pub const DUALADAM_SKIP_FOUND_INF: u32 = 1;
/// `loss_scale` was NaN, infinite, 0 or negative.
pub const DUALADAM_SKIP_LOSS_SCALE: u32 = 2;
/// `clip_factor` was NaN, infinite or negative.
pub const DUALADAM_SKIP_CLIP_FACTOR: u32 = 3;
/// clip_factor / loss_scale, rounded to float, was infinite; or it was 0 although clip_factor was
/// above 0.
pub const DUALADAM_SKIP_MULTIPLIER: u32 = 4;
/// The learning rate was NaN, infinite or negative, or so large that lr / (1 - beta1) / eps,
/// lr / (1 - beta1) * eps or lr * weight_decay overflows as a float.
pub const DUALADAM_SKIP_LR: u32 = 5;
/// The step counter was at its largest value, 2^64 - 1.
pub const DUALADAM_SKIP_STEP: u32 = 6;

//! The named numbers of the C interface, other than the statuses.

/// No buffer: the type of masters that are not there.
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

/// alpha = max(0, 1 - t * switching_rate); below 1e-12 it is 0. A rate of 1/n makes step n the
/// first of plain Adam, 1 is Adam from the first step, 0 never leaves inverse Adam.
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
/// lr was NaN, infinite or negative, or so large that lr / (1 - beta1) / eps,
/// lr / (1 - beta1) * eps or lr * weight_decay overflows.
pub const DUALADAM_SKIP_LR: u32 = 5;
/// The step counter was at its end, 2^64 - 1.
pub const DUALADAM_SKIP_STEP: u32 = 6;

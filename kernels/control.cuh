// Forms the coefficients of a step on the device, and decides whether the step is made. The same
// operations as in coeffs.rs, schedule.rs and the checks of config.rs in src/rule, and in
// src/steering.rs.
//
// Everything is in f64, with every operation named and one rounding to f32 at the end. So the bits
// are those of the host.

#pragma once

#include "pack.cuh"
#include "update.cuh"

// The layouts and numbers mirror src/cuda/control/layout.rs. step.cuh uses the numbers that
// prepare_sets writes for lists.

enum Schedule : u32 { LINEAR = 0, LINEAR_EARLY_DROP = 1, EXPONENTIAL = 2, FIXED = 3 };

enum Decay : u32 { NO_DECAY = 0, DECOUPLED = 1, L2 = 2 };

// Whether a set's tensors are skipped, and why.
enum Skip : u32 {
    NOT_SKIPPED = 0,
    SKIP_FOUND_INF = 1,
    SKIP_LOSS_SCALE = 2,
    SKIP_CLIP_FACTOR = 3,
    SKIP_MULTIPLIER = 4,
    SKIP_LR = 5,
    SKIP_STEP = 6,
    WITHOUT_GRADIENT = 7, // not counted as a skip
    SETTING_MASTERS = 8,  // not skipped: the step sets the masters from their parameters
};

// Whether the masters are set, or must be set from their parameters: in the set's next update, or
// in this one.
enum Masters : u32 { MASTERS_SET = 0, MASTERS_UNSET = 1, MASTERS_BEING_SET = 2 };

// The hyperparameters of a group. The host has checked all but the learning rate, which may change
// on the device at any time.
struct ControlGroup {
    double beta1;
    double beta2;
    double eps;
    double inverse_eps;
    double weight_decay;
    double rate; // the switching rate, or the base of the exponential
    double cutoff;
    double own_lr; // lr points here, unless the caller keeps the learning rate
    u64 period;    // or the switching step
    u64 lr;        // address of a double or a float
    u32 schedule;
    u32 decay;
    u32 maximize;
    u32 lr_is_f32;
};

// Tensors that always step together: one group, one step counter.
struct ControlSet {
    u64 step; // address
    u32 group;
    u32 active; // 0: none of its tensors has a gradient
};

// What the device records about a set.
struct ControlState {
    u64 skipped;
    u32 last_skip;
    u32 masters;
};

// The scalars that steer all sets.
struct Scalars {
    float loss_scale;
    float clip_factor;
    float found_inf;
};

// The scalar at an address, or `otherwise` if the address is null.
__device__ __forceinline__ float scalar_or(const float *address, float otherwise) { return address != nullptr ? *address : otherwise; }

__device__ __forceinline__ bool is_finite(float not_negative) { return not_negative <= 3.402823466e38f; }

// base^exponent by squaring.
__device__ __forceinline__ double integer_power(double base, u64 exponent) {
    double power = 1.0;
    double square = base;
#pragma unroll 1
    for (u64 rest = exponent; rest > 0; rest >>= 1) {
        if (rest & 1) power = __dmul_rn(power, square);
        square = __dmul_rn(square, square);
    }
    return power;
}

// The weight of the inverse branch at a set's step.
__device__ __forceinline__ double alpha_of(const ControlGroup &group, u64 step) {
    if (group.schedule == EXPONENTIAL) {
        const double alpha = integer_power(group.rate, (step - 1) / group.period);
        return alpha < group.cutoff ? 0.0 : alpha;
    }
    if (group.schedule == FIXED) return step <= group.period ? 1.0 : 0.0;
    const double alpha = __dsub_rn(1.0, __dmul_rn(__ull2double_rn(step), group.rate));
    const double residue = group.schedule == LINEAR ? 1e-12 : group.rate;
    return alpha < residue || alpha < 0.0 ? 0.0 : alpha;
}

__device__ __forceinline__ double lr_of(const ControlGroup &group) {
    if (group.lr_is_f32) return double(*load_address<const float>(&group.lr));
    return *load_address<const double>(&group.lr);
}

// The checks of lr in DualAdamConfig::validate. The comparisons are written so that NaN fails.
__device__ __forceinline__ bool is_valid_lr(const ControlGroup &group, double lr) {
    const float eps = __double2float_rn(group.eps);
    const float largest_scale = __double2float_rn(__ddiv_rn(lr, __dsub_rn(1.0, group.beta1)));
    const float largest_factor = __fadd_rn(__fdiv_rn(largest_scale, eps), __fmul_rn(largest_scale, eps));
    const float decay = group.decay == DECOUPLED ? __double2float_rn(__dmul_rn(lr, group.weight_decay)) : 0.0f;
    return lr >= 0.0 && is_finite(__double2float_rn(lr)) && is_finite(largest_factor) && is_finite(decay);
}

// The clip factor over the loss scale, or why the step is skipped.
__device__ __forceinline__ Skip multiplier_of(const Scalars &scalars, double &multiplier) {
    if (!(scalars.found_inf == 0.0f)) return SKIP_FOUND_INF;
    if (!(scalars.loss_scale > 0.0f && is_finite(scalars.loss_scale))) return SKIP_LOSS_SCALE;
    if (!(scalars.clip_factor >= 0.0f && is_finite(scalars.clip_factor))) return SKIP_CLIP_FACTOR;
    multiplier = __ddiv_rn(double(scalars.clip_factor), double(scalars.loss_scale));
    const float rounded = __double2float_rn(multiplier);
    const bool vanished = multiplier > 0.0 && rounded == 0.0f;
    return !is_finite(rounded) || vanished ? SKIP_MULTIPLIER : NOT_SKIPPED;
}

// The same as StepCoeffs::new.
__device__ __forceinline__ StepCoeffs coeffs_of(const ControlGroup &group, u64 step, double lr, double multiplier) {
    const double alpha = alpha_of(group, step);
    const double bc1 = __dsub_rn(1.0, integer_power(group.beta1, step));
    const double bc2 = __dsub_rn(1.0, integer_power(group.beta2, step));
    const double decay = group.decay == DECOUPLED ? __dmul_rn(lr, group.weight_decay) : 0.0;
    const double l2 = group.decay == L2 ? group.weight_decay : 0.0;

    StepCoeffs coeffs;
    coeffs.one_minus_beta1 = __double2float_rn(__dsub_rn(1.0, group.beta1));
    coeffs.one_minus_beta2 = __double2float_rn(__dsub_rn(1.0, group.beta2));
    coeffs.inv_sqrt_bc2 = __double2float_rn(__ddiv_rn(1.0, __dsqrt_rn(bc2)));
    coeffs.eps = __double2float_rn(group.eps);
    coeffs.inverse_eps = __double2float_rn(group.inverse_eps);
    coeffs.inverse_scale = __double2float_rn(__ddiv_rn(__dmul_rn(lr, alpha), bc1));
    coeffs.adam_scale = __double2float_rn(__ddiv_rn(__dmul_rn(lr, __dsub_rn(1.0, alpha)), bc1));
    coeffs.decay = __double2float_rn(decay);
    coeffs.l2 = __double2float_rn(l2);
    coeffs.grad_scale = __double2float_rn(group.maximize ? -multiplier : multiplier);
    return coeffs;
}

// One set for each thread. Forms its coefficients and advances its counter, or records why its
// tensors are skipped. The group is copied, so that its loads are issued together and wait for
// memory once.
__device__ __forceinline__ void prepare_set(const ControlGroup *groups, const ControlSet &set, const Scalars scalars,
                                            ControlState &state, StepCoeffs &coeffs, u32 &skip_word) {
    // The last step has set them.
    u32 masters = state.masters == MASTERS_BEING_SET ? MASTERS_SET : state.masters;
    u32 skip = WITHOUT_GRADIENT;
    if (set.active) {
        u64 *const counter = load_address<u64>(&set.step);
        const ControlGroup group = groups[set.group];
        const u64 step = *counter + 1;
        // Not from the copy: the compiler would treat the address in it as generic.
        const double lr = lr_of(groups[set.group]);
        double multiplier = 1.0;
        skip = multiplier_of(scalars, multiplier);
        if (skip == NOT_SKIPPED && !is_valid_lr(group, lr)) skip = SKIP_LR;
        if (skip == NOT_SKIPPED && step == 0) skip = SKIP_STEP; // the counter was at its maximum
        if (skip == NOT_SKIPPED) {
            coeffs = coeffs_of(group, step, lr, multiplier);
            *counter = step;
            if (masters == MASTERS_UNSET) masters = MASTERS_BEING_SET;
        } else {
            ++state.skipped;
            state.last_skip = skip;
        }
    }
    state.masters = masters;
    skip_word = skip == NOT_SKIPPED && masters == MASTERS_BEING_SET ? u32(SETTING_MASTERS) : skip;
}

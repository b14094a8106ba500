// The entry points: for each combination of types a flat DualAdam step, a flat plain-Adam step, and a DualAdam step over a list of
// tensors. <params>_<grads> or, with a 16-bit copy of the new parameters, <params>_<grads>_<copy>.
// And what runs before lists whose steps are controlled on the device.

#include "step.cuh"

// Every flat entry takes the address of a copy, used or not, so that all are launched alike.
#define FLAT_ENTRY(NAME, DUAL, P, G, C)                                                                                          \
    extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS_PER_SM)                                                           \
        NAME(P *param, const G *grad, float *exp_avg, float *exp_avg_sq, C *copy, u64 len, StepCoeffs coeffs) {                  \
        step_flat<DUAL, P, G, C>({param, grad, exp_avg, exp_avg_sq, copy, len}, coeffs);                                         \
    }

// The sets are read from device memory if sets_device is not null, else from the argument, in place in the constant bank.
// skips is null where no device control says which sets to leave alone.
#define LIST_ENTRY(NAME, P, G, C)                                                                                                \
    extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS_PER_SM)                                                           \
        NAME(const u64 *table, u32 tensors, const StepCoeffs *sets_device, const u32 *skips,                                     \
             const __grid_constant__ StepSets sets) {                                                                            \
        step_list<P, G, C>(table, tensors, sets_device, skips, sets);                                                            \
    }

#define ENTRIES(TYPES, P, G, C)                                                                                                  \
    FLAT_ENTRY(dual_adam_##TYPES, true, P, G, C)                                                                                 \
    FLAT_ENTRY(adam_##TYPES, false, P, G, C)                                                                                     \
    LIST_ENTRY(list_##TYPES, P, G, C)

ENTRIES(f32_f32, float, float, NoCopy)
ENTRIES(f32_bf16, float, Bf16, NoCopy)
ENTRIES(f32_f16, float, F16, NoCopy)
ENTRIES(bf16_bf16, Bf16, Bf16, NoCopy)
ENTRIES(bf16_f32, Bf16, float, NoCopy)
ENTRIES(f16_f16, F16, F16, NoCopy)
ENTRIES(f16_f32, F16, float, NoCopy)
ENTRIES(f32_f32_bf16, float, float, Bf16)
ENTRIES(f32_bf16_bf16, float, Bf16, Bf16)
ENTRIES(f32_f32_f16, float, float, F16)
ENTRIES(f32_f16_f16, float, F16, F16)

extern "C" __global__ void __launch_bounds__(BLOCK)
    prepare_sets(const ControlGroup *groups, const ControlSet *sets, ControlState *states, StepCoeffs *coeffs, u32 *skips, u32 count,
                 const float *loss_scale, const float *clip_factor, const float *found_inf) {
    const u32 set = blockIdx.x * BLOCK + threadIdx.x;
    if (set < count) {
        const Scalars scalars = {scalar_or(loss_scale, 1.0f), scalar_or(clip_factor, 1.0f), scalar_or(found_inf, 0.0f)};
        prepare_set(groups, sets[set], scalars, states[set], coeffs[set], skips[set]);
    }
}

#define SET_MASTERS_ENTRY(NAME, C)                                                                                               \
    extern "C" __global__ void __launch_bounds__(BLOCK) NAME(const u64 *table, u32 tensors, const ControlState *states) {        \
        set_masters<C>(table, tensors, states);                                                                                  \
    }

SET_MASTERS_ENTRY(set_masters_bf16, Bf16)
SET_MASTERS_ENTRY(set_masters_f16, F16)

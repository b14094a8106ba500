// The entry points: for each combination of types a flat DualAdam step, a flat plain-Adam step, and a DualAdam step over a list of
// tensors. <params>_<grads> or, with a 16-bit copy of the new parameters, <params>_<grads>_<copy>.

#include "step.cuh"

// Every flat entry takes the address of a copy, used or not, so that all are launched alike.
#define FLAT_ENTRY(NAME, DUAL, P, G, C)                                                                                          \
    extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS_PER_SM)                                                           \
        NAME(P *param, const G *grad, float *exp_avg, float *exp_avg_sq, C *copy, u64 len, StepCoeffs coeffs) {                  \
        step_flat<DUAL, P, G, C>({param, grad, exp_avg, exp_avg_sq, copy, len}, coeffs);                                         \
    }

// The sets are read from device memory if sets_device is not null, else from the argument, in place in the constant bank.
#define LIST_ENTRY(NAME, P, G, C)                                                                                                \
    extern "C" __global__ void __launch_bounds__(BLOCK, BLOCKS_PER_SM)                                                           \
        NAME(const u64 *table, u32 tensors, const StepCoeffs *sets_device, const __grid_constant__ StepSets sets) {              \
        step_list<P, G, C>(table, tensors, sets_device, sets);                                                                   \
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

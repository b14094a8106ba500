// The entry points of one variant, a combination of types: a flat DualAdam step, a flat plain-Adam step, and a DualAdam step over a list
// of tensors. The build compiles this once a variant, with these defines:
//
//   VARIANT  its name: <params>_<grads> or, with a 16-bit copy of the new parameters, <params>_<grads>_<copy>
//   PARAM, GRAD, COPY  the types float, Bf16, F16, and NoCopy
//
// So a program loads, and a driver compiles, only what it steps.

#include "step.cuh"

#define JOIN_EXPANDED(kind, variant) kind##_##variant
#define JOIN(kind, variant) JOIN_EXPANDED(kind, variant)

// Every flat entry takes the address of a copy, used or not, so that all are launched alike.
extern "C" __global__ void __launch_bounds__(BLOCK, FLAT_BLOCKS_PER_SM)
    JOIN(dual_adam, VARIANT)(PARAM *param, const GRAD *grad, float *exp_avg, float *exp_avg_sq, COPY *copy, u64 len, StepCoeffs coeffs) {
    step_flat<true, PARAM, GRAD, COPY>({param, grad, exp_avg, exp_avg_sq, copy, len, false}, coeffs);
}

extern "C" __global__ void __launch_bounds__(BLOCK, FLAT_BLOCKS_PER_SM)
    JOIN(adam, VARIANT)(PARAM *param, const GRAD *grad, float *exp_avg, float *exp_avg_sq, COPY *copy, u64 len, StepCoeffs coeffs) {
    step_flat<false, PARAM, GRAD, COPY>({param, grad, exp_avg, exp_avg_sq, copy, len, false}, coeffs);
}

// The sets are read from device memory if sets_device is not null, else from the argument, in place in the constant bank.
// skips is null where no device control says which sets to leave alone.
extern "C" __global__ void __launch_bounds__(BLOCK, LIST_BLOCKS_PER_SM)
    JOIN(list, VARIANT)(const Record *table, u32 tensors, const StepCoeffs *sets_device, const u32 *skips,
                        const __grid_constant__ StepSets sets) {
    step_list<PARAM, GRAD, COPY>(table, tensors, sets_device, skips, sets);
}

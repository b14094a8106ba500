// The entry points of one variant: a flat DualAdam step, a flat step of plain Adam, and a DualAdam
// step over a list of tensors. The build compiles this file once for each line of variants.txt,
// with these defines:
//
//   VARIANT  its name
//   PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MASTER  the format of each role: float, Bf16 or F16, and
//   NoMaster where the variant has none
//
// So a driver compiles only the variants that a program uses.

#include "step.cuh"

#define JOIN_EXPANDED(kind, variant) kind##_##variant
#define JOIN(kind, variant) JOIN_EXPANDED(kind, variant)

using Variant = Formats<PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MASTER>;

// Every flat entry takes the address of a master, used or not, so that all have the same arguments.
extern "C" __global__ void __launch_bounds__(BLOCK, FLAT_BLOCKS_PER_SM)
    JOIN(dual_adam, VARIANT)(PARAM *param, const GRAD *grad, EXP_AVG *exp_avg, EXP_AVG_SQ *exp_avg_sq, MASTER *master, u64 len,
                             StepCoeffs coeffs) {
    step_flat<true, Variant>({param, grad, exp_avg, exp_avg_sq, master, len, false}, coeffs);
}

extern "C" __global__ void __launch_bounds__(BLOCK, FLAT_BLOCKS_PER_SM)
    JOIN(adam, VARIANT)(PARAM *param, const GRAD *grad, EXP_AVG *exp_avg, EXP_AVG_SQ *exp_avg_sq, MASTER *master, u64 len,
                        StepCoeffs coeffs) {
    step_flat<false, Variant>({param, grad, exp_avg, exp_avg_sq, master, len, false}, coeffs);
}

// The coefficients are read from device memory if coeffs_on_device is not null. Otherwise they are
// read from the argument, in place in the constant bank. skips is null unless the step is
// controlled; it then says which coefficients' tensors to skip.
extern "C" __global__ void __launch_bounds__(BLOCK, LIST_BLOCKS_PER_SM)
    JOIN(list, VARIANT)(const Record *table, u32 tensors, const StepCoeffs *coeffs_on_device, const u32 *skips,
                        const __grid_constant__ StepCoeffsArray coeffs_by_value) {
    step_list<Variant>(table, tensors, coeffs_on_device, skips, coeffs_by_value);
}

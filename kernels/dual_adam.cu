// The entry points of one variant: a flat DualAdam step, a flat plain-Adam step, a DualAdam step
// over a list of tensors, and, with masters, one that brings them up to date. The build compiles
// this once for each line of variants.txt, with these defines:
//
//   VARIANT  its name
//   PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MASTER  the format of each role: float, Bf16 or F16, and
//   NoMaster where the variant has none
//   WITH_MASTER  only where the variant has masters
//
// So a program loads only the variants that it steps, and the driver compiles only those.

#include "sync.cuh"

#define JOIN_EXPANDED(kind, variant) kind##_##variant
#define JOIN(kind, variant) JOIN_EXPANDED(kind, variant)

using Variant = Formats<PARAM, GRAD, EXP_AVG, EXP_AVG_SQ, MASTER>;

// Every flat entry takes the address of a master, used or not, so that all are launched alike.
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

// The coefficients are read from device memory if coeffs_on_device is not null, else from the
// argument, in place in the constant bank. skips has a word for each coefficient set, which says
// whether to skip its tensors; it is null without device control.
extern "C" __global__ void __launch_bounds__(BLOCK, LIST_BLOCKS_PER_SM)
    JOIN(list, VARIANT)(const Record *table, u32 tensors, const StepCoeffs *coeffs_on_device, const u32 *skips,
                        const __grid_constant__ StepCoeffsArray coeffs_by_value) {
    step_list<Variant>(table, tensors, coeffs_on_device, skips, coeffs_by_value);
}

#ifdef WITH_MASTER
// `masters` says whether the masters are set, one of the Masters; it is null where the host knows
// that they are.
extern "C" __global__ void __launch_bounds__(BLOCK)
    JOIN(sync_master, VARIANT)(const PARAM *param, MASTER *master, u64 len, const u32 *masters) {
    if (masters == nullptr || *masters != MASTERS_UNSET) sync_flat(param, master, len);
}
#endif

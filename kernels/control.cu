// The kernel that runs before the list kernels of a controlled step: a thread for each set of the
// control.

#include "control.cuh"

enum : u32 {
    // Threads in a block. No GPU has confirmed the number.
    CONTROL_BLOCK = 256,
};

extern "C" __global__ void __launch_bounds__(CONTROL_BLOCK)
    prepare_sets(const ControlGroup *groups, const ControlSet *sets, ControlState *states, StepCoeffs *coeffs, u32 *skips, u32 count,
                 const float *loss_scale, const float *clip_factor, const float *found_inf) {
    const u32 set = blockIdx.x * CONTROL_BLOCK + threadIdx.x;
    if (set < count) {
        const Scalars scalars = {scalar_or(loss_scale, 1.0f), scalar_or(clip_factor, 1.0f), scalar_or(found_inf, 0.0f)};
        prepare_set(groups, sets[set], scalars, states[set], coeffs[set], skips[set]);
    }
}

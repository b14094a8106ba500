/* Steps two weights on the CPU. */

#include <dualadam.h>

#include <stdio.h>

int main(void)
{
    float weights[2] = {0.5f, -0.5f}, grads[2], exp_avg[2] = {0}, exp_avg_sq[2] = {0};
    dualadam_config config;
    dualadam_tensor tensor;
    dualadam_coeffs coeffs;

    dualadam_config_init(&config, sizeof config); /* each call returns a status */
    config.switching_rate = 1.0 / 160; /* plain Adam from step 160 of 1,000 on */
    dualadam_tensor_init(&tensor, sizeof tensor);
    tensor.len = 2, tensor.param = weights, tensor.grad = grads;
    tensor.exp_avg = exp_avg, tensor.exp_avg_sq = exp_avg_sq;
    for (int step = 1; step <= 1000; step++) {
        grads[0] = weights[0], grads[1] = weights[1]; /* from your backward pass */
        dualadam_config_coeffs(&config, (uint64_t)step, 1.0, &coeffs, sizeof coeffs);
        if (dualadam_cpu_step(&tensor, &coeffs) != DUALADAM_STATUS_OK)
            return 1;
    }
    printf("the first weight: %g\n", weights[0]);
    return 0;
}

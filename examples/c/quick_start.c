#include <dualadam.h>
#include <stdio.h>
int main(void) {
    float w[2] = {0.5f, -0.5f}, grad[2], exp_avg[2] = {0}, exp_avg_sq[2] = {0}; /* yours */
    dualadam_config config; dualadam_tensor tensor; dualadam_coeffs coeffs;
    dualadam_config_init(&config, sizeof config); dualadam_tensor_init(&tensor, sizeof tensor);
    tensor.len = 2; tensor.param = w; tensor.grad = grad;
    tensor.exp_avg = exp_avg; tensor.exp_avg_sq = exp_avg_sq;
    for (int step = 1; step <= 1000; step++) {
        grad[0] = w[0]; grad[1] = w[1]; /* from your backward pass */
        dualadam_config_coeffs(&config, step, 1.0, &coeffs, sizeof coeffs);
        if (dualadam_cpu_step(&tensor, &coeffs) != DUALADAM_STATUS_OK) return 1;
    }
    printf("the first weight: %g\n", w[0]);
}

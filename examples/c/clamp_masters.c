/* Trains bf16 parameters that have f32 masters, and clamps the parameters after each step. Without
 * dualadam_cpu_sync_master, the next step would overwrite a clamped parameter from its master.
 *
 * Build it with:
 *
 *     cc -std=c11 clamp_masters.c $(pkg-config --cflags --libs dualadam) -o clamp_masters
 */

#include <dualadam.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEN = 3, STEPS = 100 };

/* Prints the last error and exits, if the call failed. */
static void check(dualadam_status status, const char *call)
{
    char text[512];
    if (status == DUALADAM_STATUS_OK)
        return;
    dualadam_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s: %s: %s\n", call, dualadam_status_name(status), text);
    exit(1);
}
#define CHECK(call) check((call), #call)

/* A bf16 is the upper half of a float. */
static float widened(uint16_t bf16)
{
    uint32_t bits = (uint32_t)bf16 << 16;
    float wide;
    memcpy(&wide, &bits, sizeof wide);
    return wide;
}

int main(void)
{
    const uint16_t one = 0x3f80, half = 0x3f00;
    uint16_t param[LEN];
    float master[LEN], grad[LEN], exp_avg[LEN] = {0}, exp_avg_sq[LEN] = {0};
    const float target[LEN] = {0.9f, 0.1f, -2.0f};
    dualadam_config config;
    dualadam_tensor tensor;
    dualadam_coeffs coeffs;

    for (int i = 0; i < LEN; i++) {
        param[i] = one;
        master[i] = widened(one);
    }
    CHECK(dualadam_config_init(&config, sizeof config));
    config.lr = 1e-2;
    config.switching_rate = 1.0;
    CHECK(dualadam_tensor_init(&tensor, sizeof tensor));
    tensor.param = param;
    tensor.param_dtype = DUALADAM_DTYPE_BF16;
    tensor.grad = grad;
    tensor.exp_avg = exp_avg;
    tensor.exp_avg_sq = exp_avg_sq;
    tensor.master = master;
    tensor.master_dtype = DUALADAM_DTYPE_F32;
    tensor.len = LEN;
    for (uint64_t step = 1; step <= STEPS; step++) {
        for (int i = 0; i < LEN; i++)
            grad[i] = widened(param[i]) - target[i];
        CHECK(dualadam_config_coeffs(&config, step, 1.0, &coeffs, sizeof coeffs));
        CHECK(dualadam_cpu_step(&tensor, &coeffs));
        for (int i = 0; i < LEN; i++) {
            if (widened(param[i]) < widened(half))
                param[i] = half;
        }
        CHECK(dualadam_cpu_sync_master(&tensor));
        for (int i = 0; i < LEN; i++) {
            /* A parameter that was not clamped keeps the low bits of its master. */
            if (param[i] == half && master[i] < 0.498f) {
                fprintf(stderr, "step %d: master %d is %f\n", (int)step, i, master[i]);
                return 1;
            }
        }
    }
    printf("parameters %f %f %f, masters %f %f %f\n", widened(param[0]), widened(param[1]), widened(param[2]),
           master[0], master[1], master[2]);
    if (param[1] != half || param[2] != half || master[1] != 0.5f || master[2] != 0.5f) {
        fprintf(stderr, "two of the parameters must be clamped\n");
        return 1;
    }
    if (!(master[0] > 0.85f && master[0] < 0.95f) || master[0] == widened(param[0])) {
        fprintf(stderr, "the other must follow its target, and its master must have low bits\n");
        return 1;
    }
    return 0;
}

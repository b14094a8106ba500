/* Fits a line to points on the CPU. The first half of the steps blends inverse Adam with Adam, the
 * second half is plain Adam. The program saves the state in the middle, and checks that a run which
 * resumes from there ends with the same bits.
 *
 * Build it with:
 *
 *     cc -std=c11 train_cpu.c $(pkg-config --cflags --libs dualadam) -o train_cpu
 */

#include <dualadam.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POINTS = 64, STEPS = 2000, SAVED = STEPS / 2 };
static const char *const FILE_NAME = "train_cpu.safetensors";

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

/* The loss (1/2) mean((slope x + offset - y)^2) over points of the line y = 2 x - 1, and its
 * gradients with respect to slope and offset. */
static double loss_and_grads(const float line[2], float grads[2])
{
    double loss = 0.0, slope = 0.0, offset = 0.0;
    for (int i = 0; i < POINTS; i++) {
        double x = 2.0 * i / (POINTS - 1) - 1.0;
        double error = line[0] * x + line[1] - (2.0 * x - 1.0);
        loss += 0.5 * error * error / POINTS;
        slope += error * x / POINTS;
        offset += error / POINTS;
    }
    grads[0] = (float)slope;
    grads[1] = (float)offset;
    return loss;
}

/* Steps `line` up to and including step `last`. Returns the loss before that step. */
static double train(dualadam_state state, float line[2], uint64_t last)
{
    dualadam_config config;
    dualadam_tensor_state values;
    dualadam_tensor tensor;
    dualadam_coeffs coeffs;
    float grads[2];
    double loss = 0.0;

    CHECK(dualadam_state_config(state, 0, &config, sizeof config));
    CHECK(dualadam_state_tensor(state, 0, &values, sizeof values));
    CHECK(dualadam_tensor_init(&tensor, sizeof tensor));
    tensor.param = line;
    tensor.grad = grads;
    tensor.exp_avg = values.exp_avg; /* the step updates the arrays of the state */
    tensor.exp_avg_sq = values.exp_avg_sq;
    tensor.len = values.len;
    for (uint64_t step = values.step + 1; step <= last; step++) {
        loss = loss_and_grads(line, grads);
        CHECK(dualadam_config_coeffs(&config, step, 1.0, &coeffs, sizeof coeffs));
        CHECK(dualadam_cpu_step(&tensor, &coeffs));
        CHECK(dualadam_state_set_step(state, 0, step, 0));
    }
    return loss;
}

int main(void)
{
    dualadam_config config;
    dualadam_tensor_spec spec;
    dualadam_state state, resumed;
    float line[2] = {0.0f, 0.0f}, saved[2];
    uint64_t first_adam_step;
    uint32_t exists;
    double loss;

    printf("dualadam %s\n", dualadam_version());
    CHECK(dualadam_config_init(&config, sizeof config));
    config.lr = 1e-2;
    config.switching_rate = 1.0 / SAVED;
    CHECK(dualadam_config_first_adam_step(&config, &first_adam_step, &exists));
    printf("plain Adam from step %" PRIu64 " on\n", first_adam_step);
    CHECK(dualadam_tensor_spec_init(&spec, sizeof spec));
    spec.len = 2;
    CHECK(dualadam_state_new(&config, 1, &spec, 1, &state));

    loss = train(state, line, SAVED);
    printf("step %d: y = %.4f x %+.4f, loss %.1e\n", SAVED, line[0], line[1], loss);
    CHECK(dualadam_state_save(state, FILE_NAME));
    memcpy(saved, line, sizeof saved);

    loss = train(state, line, STEPS);
    printf("step %d: y = %.4f x %+.4f, loss %.1e\n", STEPS, line[0], line[1], loss);
    CHECK(dualadam_state_free(state));

    CHECK(dualadam_state_load(FILE_NAME, &resumed));
    train(resumed, saved, STEPS);
    CHECK(dualadam_state_free(resumed));
    remove(FILE_NAME);

    if (first_adam_step != SAVED || exists != 1 || !(loss < 1e-6)) {
        fprintf(stderr, "the line is not y = 2 x - 1\n");
        return 1;
    }
    if (memcmp(line, saved, sizeof line) != 0) {
        fprintf(stderr, "the resumed run ended elsewhere\n");
        return 1;
    }
    if (dualadam_state_free(state) != DUALADAM_STATUS_STALE_HANDLE) {
        fprintf(stderr, "a handle could be freed twice\n");
        return 1;
    }
    printf("the resumed run has the same bits\n");
    return 0;
}

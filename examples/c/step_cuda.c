/* Steps tensors in device memory that the program owns, on its own stream, and compares the result
 * with that of the CPU, bit for bit. The first steps have coefficients from the host. Then the
 * device counts the steps, and reads the learning rate and the found-inf flag from its own memory.
 *
 * Build it with:
 *
 *     cc -std=c11 step_cuda.c $(pkg-config --cflags --libs dualadam) -lcuda -o step_cuda
 *
 * A CUDA program includes cuda.h instead of the declarations below. */

#include <dualadam.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef __cplusplus
extern "C" {
#endif
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef unsigned long long CUdeviceptr;
int cuInit(unsigned int flags);
int cuDeviceGet(int *device, int ordinal);
int cuDevicePrimaryCtxRetain(CUcontext *context, int device);
int cuDevicePrimaryCtxRelease_v2(int device);
int cuCtxSetCurrent(CUcontext context);
int cuStreamCreate(CUstream *stream, unsigned int flags);
int cuStreamSynchronize(CUstream stream);
int cuStreamDestroy_v2(CUstream stream);
int cuMemAlloc_v2(CUdeviceptr *address, size_t bytes);
int cuMemFree_v2(CUdeviceptr address);
int cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream);
int cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream);
#ifdef __cplusplus
}
#endif

enum { TENSORS = 2, BUFFERS = 4, STEPS = 10, CONTROLLED = 4, SKIPPED = 2, NON_BLOCKING = 1 };
static const size_t LENS[TENSORS] = {1000, 37};

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

static void check_driver(int code, const char *call)
{
    if (code == 0)
        return;
    fprintf(stderr, "%s: the driver's error %d\n", call, code);
    exit(1);
}
#define CHECK_DRIVER(call) check_driver((call), #call)

/* Parameters, gradients, first and second moments, in device memory and in the host's memory. */
struct buffers {
    CUdeviceptr device[BUFFERS];
    float *host[BUFFERS];
};

static void make_buffers(struct buffers *buffers, size_t len, CUstream stream)
{
    for (int b = 0; b < BUFFERS; b++) {
        size_t bytes = len * sizeof(float);
        buffers->host[b] = (float *)calloc(len, sizeof(float));
        if (buffers->host[b] == NULL)
            exit(1);
        for (size_t i = 0; b < 2 && i < len; i++) /* the moments begin at zero */
            buffers->host[b][i] = (float)((i * 37 + (size_t)b * 11) % 101) / 50.0f - 1.0f;
        CHECK_DRIVER(cuMemAlloc_v2(&buffers->device[b], bytes));
        CHECK_DRIVER(cuMemcpyHtoDAsync_v2(buffers->device[b], buffers->host[b], bytes, stream));
    }
}

static dualadam_tensor describe(void *const addresses[BUFFERS], size_t len, uint32_t coeffs_index)
{
    dualadam_tensor tensor;
    CHECK(dualadam_tensor_init(&tensor, sizeof tensor));
    tensor.param = addresses[0];
    tensor.grad = addresses[1];
    tensor.exp_avg = addresses[2];
    tensor.exp_avg_sq = addresses[3];
    tensor.len = len;
    tensor.coeffs_index = coeffs_index;
    return tensor;
}

static dualadam_tensor on_device(const struct buffers *buffers, size_t len, uint32_t coeffs_index)
{
    void *addresses[BUFFERS];
    for (int b = 0; b < BUFFERS; b++)
        addresses[b] = (void *)(uintptr_t)buffers->device[b];
    return describe(addresses, len, coeffs_index);
}

static dualadam_tensor on_host(const struct buffers *buffers, size_t len, uint32_t coeffs_index)
{
    void *addresses[BUFFERS];
    for (int b = 0; b < BUFFERS; b++)
        addresses[b] = buffers->host[b];
    return describe(addresses, len, coeffs_index);
}

/* Makes more steps of the list, which the device counts on from `steps`. The learning rate of the
 * second tensor and the flag that skips a step are in device memory. A CUDA graph could capture
 * such a step, and its launches would count on. */
static void step_controlled(dualadam_cuda_kernels kernels, dualadam_cuda_list list, const dualadam_tensor *host_tensors,
                            dualadam_config *configs, uint64_t *steps, CUstream stream)
{
    CUdeviceptr lr, found_inf;
    dualadam_cuda_control_group groups[TENSORS];
    dualadam_cuda_control_set control_sets[TENSORS];
    dualadam_cuda_scalars scalars;
    dualadam_cuda_set_report reports[TENSORS];
    dualadam_coeffs coeffs[TENSORS];
    dualadam_cuda_control control;

    CHECK_DRIVER(cuMemAlloc_v2(&lr, sizeof(float)));
    CHECK_DRIVER(cuMemAlloc_v2(&found_inf, sizeof(float)));
    for (size_t t = 0; t < TENSORS; t++) {
        CHECK(dualadam_cuda_control_group_init(&groups[t], sizeof groups[t]));
        CHECK(dualadam_cuda_control_set_init(&control_sets[t], sizeof control_sets[t]));
        groups[t].config = &configs[t];
        control_sets[t].group = t;
    }
    groups[1].lr_f32 = (const float *)(uintptr_t)lr;
    CHECK(dualadam_cuda_control_new(kernels, groups, TENSORS, control_sets, TENSORS, &control));
    CHECK(dualadam_cuda_control_set_steps(control, steps, TENSORS, stream));
    CHECK(dualadam_cuda_scalars_init(&scalars, sizeof scalars));
    scalars.found_inf = (const float *)(uintptr_t)found_inf;

    for (int round = 0; round < CONTROLLED; round++) {
        float rate = 0.01f / (float)(round + 1);
        float flag = round == SKIPPED ? 1.0f : 0.0f; /* a training program computes it on the device */
        CHECK_DRIVER(cuMemcpyHtoDAsync_v2(lr, &rate, sizeof rate, stream));
        CHECK_DRIVER(cuMemcpyHtoDAsync_v2(found_inf, &flag, sizeof flag, stream));
        CHECK(dualadam_cuda_list_step_controlled(list, control, &scalars, stream));
        if (round == SKIPPED)
            continue;
        configs[1].lr = rate;
        for (int t = 0; t < TENSORS; t++)
            CHECK(dualadam_config_coeffs(&configs[t], ++steps[t], 1.0, &coeffs[t], sizeof coeffs[t]));
        CHECK(dualadam_cpu_step_list(host_tensors, TENSORS, coeffs, TENSORS));
    }

    CHECK(dualadam_cuda_control_report(control, reports, sizeof reports[0], TENSORS, stream));
    for (int t = 0; t < TENSORS; t++) {
        printf("tensor %d: %llu steps, %llu skipped\n", t, (unsigned long long)reports[t].step,
               (unsigned long long)reports[t].skipped);
        if (reports[t].step != steps[t] || reports[t].skipped != 1 || reports[t].last_skip != DUALADAM_SKIP_FOUND_INF)
            exit(1);
    }
    CHECK(dualadam_cuda_control_free(control));
    CHECK_DRIVER(cuMemFree_v2(lr));
    CHECK_DRIVER(cuMemFree_v2(found_inf));
}

int main(void)
{
    int device, different = 0;
    uint64_t steps[TENSORS] = {STEPS, STEPS - 1};
    CUcontext context;
    CUstream stream;
    struct buffers buffers[TENSORS];
    dualadam_tensor device_tensors[TENSORS], host_tensors[TENSORS], single;
    dualadam_config configs[TENSORS];
    dualadam_coeffs coeffs[TENSORS];
    dualadam_cuda_kernels kernels;
    dualadam_cuda_list list;

    CHECK_DRIVER(cuInit(0));
    CHECK_DRIVER(cuDeviceGet(&device, 0));
    CHECK_DRIVER(cuDevicePrimaryCtxRetain(&context, device));
    CHECK_DRIVER(cuCtxSetCurrent(context));
    CHECK_DRIVER(cuStreamCreate(&stream, NON_BLOCKING));
    for (uint32_t t = 0; t < TENSORS; t++) {
        make_buffers(&buffers[t], LENS[t], stream);
        device_tensors[t] = on_device(&buffers[t], LENS[t], t);
        host_tensors[t] = on_host(&buffers[t], LENS[t], t);
        CHECK(dualadam_config_init(&configs[t], sizeof configs[t]));
        configs[t].switching_rate = 1.0 / (STEPS / 2);
    }
    configs[1].weight_decay_kind = DUALADAM_DECAY_DECOUPLED;
    configs[1].weight_decay = 0.1;

    /* Step both tensors in one launch. */
    CHECK(dualadam_cuda_kernels_in_current_context(&kernels));
    CHECK(dualadam_cuda_list_new(kernels, device_tensors, TENSORS, &list));
    for (uint64_t step = 1; step < STEPS; step++) {
        for (int t = 0; t < TENSORS; t++)
            CHECK(dualadam_config_coeffs(&configs[t], step, 1.0, &coeffs[t], sizeof coeffs[t]));
        CHECK(dualadam_cuda_list_step(list, coeffs, TENSORS, stream));
        CHECK(dualadam_cpu_step_list(host_tensors, TENSORS, coeffs, TENSORS));
    }

    /* Step one tensor alone, without a list. */
    single = on_device(&buffers[0], LENS[0], 0);
    CHECK(dualadam_config_coeffs(&configs[0], STEPS, 1.0, &coeffs[0], sizeof coeffs[0]));
    CHECK(dualadam_cuda_step(kernels, &single, &coeffs[0], stream));
    CHECK(dualadam_cpu_step(&host_tensors[0], &coeffs[0]));
    step_controlled(kernels, list, host_tensors, configs, steps, stream);

    for (int t = 0; t < TENSORS; t++) {
        for (int b = 0; b < BUFFERS; b++) {
            size_t bytes = LENS[t] * sizeof(float);
            void *result = malloc(bytes);
            if (result == NULL)
                return 1;
            CHECK_DRIVER(cuMemcpyDtoHAsync_v2(result, buffers[t].device[b], bytes, stream));
            CHECK_DRIVER(cuStreamSynchronize(stream));
            different += memcmp(result, buffers[t].host[b], bytes) != 0;
            free(result);
        }
    }
    printf("parameters after %d steps: %.6f %.6f %.6f ...\n", (int)steps[0], buffers[0].host[0][0], buffers[0].host[0][1],
           buffers[0].host[0][2]);

    CHECK(dualadam_cuda_list_free(list));
    CHECK(dualadam_cuda_kernels_free(kernels));
    for (int t = 0; t < TENSORS; t++) {
        for (int b = 0; b < BUFFERS; b++) {
            CHECK_DRIVER(cuMemFree_v2(buffers[t].device[b]));
            free(buffers[t].host[b]);
        }
    }
    CHECK_DRIVER(cuStreamDestroy_v2(stream));
    CHECK_DRIVER(cuDevicePrimaryCtxRelease_v2(device));
    if (different != 0) {
        fprintf(stderr, "%d buffers differ from the CPU's\n", different);
        return 1;
    }
    printf("the device has the CPU's bits\n");
    return 0;
}

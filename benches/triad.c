// What a step must move, with next to no arithmetic: reads p, g, m and v, writes p, m and v.
#include <stddef.h>

void triad(float *restrict p, const float *restrict g, float *restrict m, float *restrict v, size_t len, int threads) {
#pragma omp parallel for simd num_threads(threads) schedule(static)
    for (size_t i = 0; i < len; ++i) {
        const float scaled = 1e-30f * g[i];
        p[i] += scaled;
        m[i] += scaled;
        v[i] += scaled;
    }
}

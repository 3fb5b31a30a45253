// The kernel: theta <- decay * theta + sum_k c_k z'(key_k) over the span of one thread block. Numbers: docs/noise_spec.md.
#pragma once

#include "elements.hpp"

namespace zokern {
namespace {

/// x[0..3] += c z' of block q.
template <bool kMask>
__device__ __forceinline__ void add_block(float* x, uint32_t q, const Schedule& s, float c, uint32_t keep_threshold) {
    float z[4];
    normals(z, q, s);
    if (kMask) drop(z, q, mask_of(s), keep_threshold);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = __fmaf_rn(c, z[i], x[i]);
}

/// kTerms = 0: n_terms of them, from memory.
template <class T, int kTerms, bool kDecay, bool kMask>
__global__ void __launch_bounds__(kThreads) add_noise_kernel(const __grid_constant__ AddNoise p) {
    const Span span = p.spans[blockIdx.x];
    const uint32_t group = span.group, keep_threshold = span.keep_threshold;
    const uint32_t now = p.clock ? *p.clock : 0, n_terms = kTerms ? kTerms : p.n_terms;
    const float* const coefficients = p.coefficients + group;
    const float decay = kDecay && p.decay ? p.decay[group] : 1.0f;

    float c[kTerms + 1];  // read here, since the compiler cannot know that theta lies elsewhere
#pragma unroll
    for (int k = 0; k < kTerms; ++k) c[k] = coefficients[k * p.groups];
    const auto coefficient = [&](uint32_t k) { return kTerms ? c[k] : coefficients[k * p.groups]; };
    const auto schedule_of = [&](uint32_t k, uint32_t high) {
        if constexpr (kTerms > 0) {
            return p.first_keys.schedule(k, now, high);
        } else {
            Key key = p.keys[k];
            key.step += now;
            return schedule(key, high);
        }
    };

    over_span<T, kDecay>(span, decay, [&](auto& x, uint32_t q, uint32_t high) {
        constexpr int rows = sizeof x / sizeof x[0], n = sizeof x[0] / sizeof(float);
#pragma unroll(kTerms ? kTerms : 1)
        for (uint32_t k = 0; k < n_terms; ++k) {
            const Schedule s = schedule_of(k, high);
            const float c = coefficient(k);
#pragma unroll
            for (int v = 0; v < rows; ++v)
#pragma unroll
                for (int b = 0; b < n / 4; ++b) add_block<kMask>(x[v] + 4 * b, block_of<n>(q, v, b), s, c, keep_threshold);
        }
    });
}

}  // namespace
}  // namespace zokern

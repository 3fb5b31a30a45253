// The kernel: many passes of add_noise over the span of one thread block, in which an element stays in a register, and is rounded to its
// storage type there after each pass. Numbers: docs/noise_spec.md.
#pragma once

#include "elements.hpp"

namespace zokern {
inline namespace cuda {

/// kGeneral: masks and lines, where the span asks for them.
template <class T, bool kSigns, bool kGeneral>
__global__ void __launch_bounds__(kThreads) replay_kernel(const __grid_constant__ Replay p) {
    const Span span = p.spans[blockIdx.x];
    const uint32_t group = span.group, keep_threshold = span.keep_threshold, now = p.clock ? *p.clock : 0, one = p.one;
    const float* const values = p.values + group;

    const auto on = [&](auto& x, const auto& place) {
        constexpr int rows = sizeof x / sizeof x[0], n = sizeof x[0] / sizeof(float);
        float z[rows][n] = {};
        const auto each = [&](const auto& operation) {
#pragma unroll
            for (int v = 0; v < rows; ++v)
#pragma unroll
                for (int i = 0; i < n; ++i) x[v][i] = operation(x[v][i], z[v][i]);
        };
        uint32_t next = 0;
#pragma unroll 1
        for (uint32_t i = 0; i < p.n_instructions; ++i) {
            const uint8_t instruction = p.instructions[i];
            const float value = values[i * p.groups];
            if (instruction & kNextKey) {
                const uint32_t k = next++;
                const Schedule s = p.schedule(k, now, high_of<kSigns>(place.high));
                const auto mask = [&] { return mask_of(kSigns ? p.schedule(k, now, place.high) : s); };
                each_z<kSigns, kGeneral, rows, n>(place.q, place.high, s, mask, keep_threshold, one,
                                                  [&](int v, int i, float value) { z[v][i] = value; });
            }
            if (instruction & kDecay)
                each([&](float x, float) { return value * x; });
            else
                each([&](float x, float z) { return __fmaf_rn(value, z, x); });
            if (instruction & kRound) each([](float x, float) { return rounded(x, T()); });
        }
    };
    over_span<T, T, kSigns, kGeneral, kVector<T>, kTile / (kThreads * kVector<T>)>(span, true, [&](uint32_t) { return on; }, Nearest());
}

template <class T, bool kSigns>
auto kernel_of(const Replay& pass) {
    return pass.masked || pass.pitched ? replay_kernel<T, kSigns, true> : replay_kernel<T, kSigns, false>;
}

template <class T>
auto kernel_of(const Replay& pass) {
    return pass.signs ? kernel_of<T, true>(pass) : kernel_of<T, false>(pass);
}

}  // namespace cuda
}  // namespace zokern

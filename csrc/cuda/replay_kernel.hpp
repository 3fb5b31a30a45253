// The kernel: many passes of add_noise over the span of one thread block, in which an element stays in a register, and is rounded to its
// storage type there after each pass. Numbers: docs/noise_spec.md.
#pragma once

#include "elements.hpp"

namespace zokern {
namespace {

template <class T, bool kMask>
__global__ void __launch_bounds__(kThreads) replay_kernel(const __grid_constant__ Replay p) {
    const Span span = p.spans[blockIdx.x];
    const uint32_t group = span.group, keep_threshold = span.keep_threshold, now = p.clock ? *p.clock : 0;
    const float* const values = p.values + group;

    over_span<T, false>(span, 1.0f, [&](auto& x, uint32_t q, uint32_t high) {
        constexpr int rows = sizeof x / sizeof x[0], n = sizeof x[0] / sizeof(float);
        float z[rows][n] = {};
        const auto each = [&](const auto& operation) {
#pragma unroll
            for (int v = 0; v < rows; ++v)
#pragma unroll
                for (int i = 0; i < n; ++i) x[v][i] = operation(x[v][i], z[v][i]);
        };
        const Key* next = p.keys;
#pragma unroll 1
        for (uint32_t i = 0; i < p.n_instructions; ++i) {
            const uint8_t instruction = p.instructions[i];
            const float value = values[i * p.groups];
            if (instruction & kNextKey) {
                Key key = *next++;
                key.step += now;
                const Schedule s = schedule(key, high);
#pragma unroll
                for (int v = 0; v < rows; ++v)
#pragma unroll
                    for (int b = 0; b < n / 4; ++b) {
                        float(&block)[4] = reinterpret_cast<float(&)[4]>(z[v][4 * b]);
                        normals(block, block_of<n>(q, v, b), s);
                        if (kMask) drop(block, block_of<n>(q, v, b), mask_of(s), keep_threshold);
                    }
            }
            if (instruction & kDecay)
                each([&](float x, float) { return value * x; });
            else
                each([&](float x, float z) { return __fmaf_rn(value, z, x); });
            if (instruction & kRound) each([](float x, float) { return rounded(x, T()); });
        }
    });
}

}  // namespace
}  // namespace zokern

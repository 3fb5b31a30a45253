// out <- decay * theta + sum_k c_k z(key_k) over the lanes of one instruction set.
#pragma once

#include "tiles.hpp"

namespace zokern {
namespace {

template <bool signs, bool masked, class T, class Out>
ZK_HD void add_noise_to_tile(const T* theta, Out* out, const Tile& tile, const Run& run, const float* coefficients) {
    const bool at_random = sizeof(Out) == 2 && run.random;
    if (run.n_keys == 1 && !run.decay && !at_random) {  // nearly always: no register need hold theta while the noise is made
        const Pair z = noise<T, signs, masked>(tile, run, 0);
        const Float c = splat<Float>(coefficients[0]);
        Pair x;
#pragma GCC unroll 8
        for (int i = 0; i < kRegisters; ++i) {
            load(theta + 2 * kLanes * i, x, i);
            add(c, z, x, i);
            store<T>(out + 2 * kLanes * i, x, i);
        }
        return;
    }
    Pair x = load_tile(theta);
    if (run.decay) x = {splat<Float>(*run.decay) * x.lo, splat<Float>(*run.decay) * x.hi};
    for (size_t k = 0; k < run.n_keys; ++k) {
        const Pair z = noise<T, signs, masked>(tile, run, k);
        const Float c = splat<Float>(coefficients[k]);
        x = {fma(c, z.lo, x.lo), fma(c, z.hi, x.hi)};
    }
    if constexpr (sizeof(Out) == 2)
        if (at_random) return store_at_random<T>(out, x, run.random + tile.at);
    store_tile<T>(out, x);
}

template <class T, class Out, bool signs, bool masked>
void add_noise(const T* theta, void* out, const Run& run, const float* coefficients) {
    over_tiles(theta, static_cast<Out*>(out), run, [=](const T* from, Out* to, const Tile& tile) __attribute__((always_inline)) {
        add_noise_to_tile<signs, masked>(from, to, tile, run, coefficients);
    });
}

}  // namespace
}  // namespace zokern

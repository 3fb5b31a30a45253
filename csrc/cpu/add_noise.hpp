// theta <- decay * theta + sum_k c_k z(key_k) over the lanes of one instruction set.
#pragma once

#include "tiles.hpp"

namespace zokern {
namespace {

template <bool masked, class T>
ZK_HD void add_noise_to_tile(T* theta, const Product& products, const Run& run, const float* coefficients) {
    // Before theta is loaded: with one term, as nearly always, no register need hold theta while the noise is made.
    Pair z;
    if (run.n_keys) z = noise<T, masked>(products, run.schedules[0], run.mask, 0);
    Pair x = load_tile(theta);
    if (run.decay) {
        x.lo = splat<Float>(*run.decay) * x.lo;
        x.hi = splat<Float>(*run.decay) * x.hi;
    }
    for (size_t k = 0; k < run.n_keys; ++k) {
        if (k) z = noise<T, masked>(products, run.schedules[k], run.mask, k);
        const Float c = splat<Float>(coefficients[k]);
        x.lo = fma(c, z.lo, x.lo);
        x.hi = fma(c, z.hi, x.hi);
    }
    store_tile(theta, x);
}

template <class T, bool masked>
void add_noise(T* theta, const Run& run, const float* coefficients) {
    in_tiles(theta, run.first, run.count, [=](T* tile, const Product& products) __attribute__((always_inline)) {
        add_noise_to_tile<masked>(tile, products, run, coefficients);
    });
}

}  // namespace
}  // namespace zokern

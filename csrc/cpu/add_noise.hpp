// theta <- decay * theta + sum_k c_k z(key_k) over the lanes of one instruction set.
#pragma once

#include "tiles.hpp"

namespace zokern {
namespace {

template <bool masked, class T>
ZK_HD void add_noise_to_tile(T* theta, const Product& products, const Term* terms, size_t n_terms, const float* decay, const Mask* mask) {
    // Before theta is loaded: with one term, as nearly always, no register need hold theta while the noise is made.
    Pair z;
    if (n_terms) z = noise<T, masked>(products, terms->schedule, mask, 0);
    Pair x = load_tile(theta);
    if (decay) {
        x.lo = splat<Float>(*decay) * x.lo;
        x.hi = splat<Float>(*decay) * x.hi;
    }
    for (const Term* term = terms; n_terms--; ++term) {
        const Float c = splat<Float>(term->coefficient);
        x.lo = fma(c, z.lo, x.lo);
        x.hi = fma(c, z.hi, x.hi);
        if (n_terms) z = noise<T, masked>(products, term[1].schedule, mask, term + 1 - terms);
    }
    store_tile(theta, x);
}

template <class T, bool masked>
void add_noise(T* theta, uint64_t first, size_t count, const Term* terms, size_t n_terms, const float* decay, const Mask* mask) {
    in_tiles(theta, first, count, [=](T* tile, const Product& products) __attribute__((always_inline)) {
        add_noise_to_tile<masked>(tile, products, terms, n_terms, decay, mask);
    });
}

}  // namespace
}  // namespace zokern

// What an update does with g, over any lane type. Numbers: docs/noise_spec.md, "The passes"; zokern/ops/update.py names n and s.
//
// Beside what normal.hpp asks of Float: /, sqrt(a), both rounded as IEEE says, and where_greater(a, b, yes, no): a > b ? yes : no.
#pragma once

#include "philox.hpp"

namespace zokern {

/// x <- x + n0 sign(g)
struct Sign {
    static constexpr int slots = 0, numbers = 1;
    template <class Float>
    ZK_HD static void step(Float& x, const Float& g, Float*, const float* n) {
        const Float zero = splat<Float>(0.0f), lr = splat<Float>(n[0]);
        x = where_greater(g, zero, x + lr, where_greater(zero, g, x - lr, x));
    }
};

/// m <- beta m + g;  x <- x + n0 m
struct Momentum {
    static constexpr int slots = 1, numbers = 2;
    template <class Float>
    ZK_HD static void step(Float& x, const Float& g, Float* s, const float* n) {
        s[0] = fma(splat<Float>(n[1]), s[0], g);
        x = fma(splat<Float>(n[0]), s[0], x);
    }
};

/// m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  x <- x + n0 m / (sqrt(v) n5 + delta), with the greatest v so far or the last one
template <bool greatest>
struct AdamLike {
    static constexpr int slots = greatest ? 3 : 2, numbers = 7;
    template <class Float>
    ZK_HD static void step(Float& x, const Float& g, Float* s, const float* n) {
        s[0] = fma(splat<Float>(n[1]), s[0], splat<Float>(n[2]) * g);
        s[1] = fma(splat<Float>(n[3]), s[1], (splat<Float>(n[4]) * g) * g);
        if (greatest) s[slots - 1] = where_greater(s[1], s[slots - 1], s[1], s[slots - 1]);
        const Float divisor = fma(sqrt(s[slots - 1]), splat<Float>(n[5]), splat<Float>(n[6]));
        x = fma(splat<Float>(n[0]), s[0] / divisor, x);
    }
};
using Adam = AdamLike<false>;
using Amsgrad = AdamLike<true>;

}  // namespace zokern

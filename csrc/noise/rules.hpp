// What an update does with g, over any lane type. Numbers: docs/noise_spec.md, "The passes"; zokern/ops/update.py names n and s.
//
// Beside what normal.hpp asks of Float: /, sqrt(a), both rounded as IEEE says, and where_greater(a, b, yes, no): a > b ? yes : no.
#pragma once

#include "philox.hpp"

namespace zokern {

/// What most rules sum of the noise: g, with one number b for each key.
struct Gradient {
    static constexpr int sums = 1, of_key = 1;
    template <class Float>
    ZK_HD static void add(Float* sum, const Float& z, const float* b) {
        sum[0] = fma(splat<Float>(b[0]), z, sum[0]);
    }
};

/// x <- x + n0 sign(g)
struct Sign {
    using Sums = Gradient;
    static constexpr int slots = 0, numbers = 1;
    template <class Float>
    ZK_HD static void step(Float& x, const Float* sum, Float*, const float* n) {
        const Float zero = splat<Float>(0.0f), lr = splat<Float>(n[0]), g = sum[0];
        x = where_greater(g, zero, x + lr, where_greater(zero, g, x - lr, x));
    }
};

/// m <- beta m + g;  x <- x + n0 m
struct Momentum {
    using Sums = Gradient;
    static constexpr int slots = 1, numbers = 2;
    template <class Float>
    ZK_HD static void step(Float& x, const Float* sum, Float* s, const float* n) {
        s[0] = fma(splat<Float>(n[1]), s[0], sum[0]);
        x = fma(splat<Float>(n[0]), s[0], x);
    }
};

/// x <- x + n0 m / (sqrt(v) n1 + n2)
template <class Float>
ZK_HD void adam_move(Float& x, const Float& m, const Float& v, float n0, float n1, float n2) {
    x = fma(splat<Float>(n0), m / fma(sqrt(v), splat<Float>(n1), splat<Float>(n2)), x);
}

/// m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  x <- x + n0 m / (sqrt(v) n5 + delta), with the greatest v so far or the last one
template <bool greatest>
struct AdamLike {
    using Sums = Gradient;
    static constexpr int slots = greatest ? 3 : 2, numbers = 7;
    template <class Float>
    ZK_HD static void step(Float& x, const Float* sum, Float* s, const float* n) {
        const Float g = sum[0];
        s[0] = fma(splat<Float>(n[1]), s[0], splat<Float>(n[2]) * g);
        s[1] = fma(splat<Float>(n[3]), s[1], (splat<Float>(n[4]) * g) * g);
        if (greatest) s[slots - 1] = where_greater(s[1], s[slots - 1], s[1], s[slots - 1]);
        adam_move(x, s[0], s[slots - 1], n[0], n[5], n[6]);
    }
};
using Adam = AdamLike<false>;
using Amsgrad = AdamLike<true>;

/// Of several steps, whose keys follow each other: g of the last one, and m and v of all. A key's numbers b: its coefficient in g; what it
/// keeps of g so far, 0 where a step begins; the weights of g in m and of g^2 in v, 0 where a step does not end.
struct Moments {
    static constexpr int sums = 3, of_key = 4;
    template <class Float>
    ZK_HD static void add(Float* sum, const Float& z, const float* b) {
        sum[0] = fma(splat<Float>(b[0]), z, splat<Float>(b[1]) * sum[0]);
        sum[1] = fma(splat<Float>(b[2]), sum[0], sum[1]);
        sum[2] = fma(splat<Float>(b[3]) * sum[0], sum[0], sum[2]);
    }
};

/// Adam without state
struct WindowedAdam {
    using Sums = Moments;
    static constexpr int slots = 0, numbers = 3;
    template <class Float>
    ZK_HD static void step(Float& x, const Float* sum, Float*, const float* n) {
        adam_move(x, sum[1], sum[2], n[0], n[1], n[2]);
    }
};

}  // namespace zokern

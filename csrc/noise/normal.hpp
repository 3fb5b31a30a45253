// From two uint32 words to two standard normals, over any lane type. Numbers: docs/noise_spec.md.
//
// Bits is a vector of 32-bit words with + - (and with a uint32_t), & |, << >>; Float one of floats with + - * and fma(a, b, c);
// as_float, as_bits and to_float(Bits read as int32) go between them; splat<Float>(bits) is a constant.
#pragma once

#include "philox.hpp"

namespace zokern {

constexpr uint32_t kQ[] = {0x4215F11D, 0xC0E2D182, 0x40ECFA7A, 0xC091CB97, 0x3FE0CF3F, 0xBEC34BD7, 0x3D11E18F};
constexpr uint32_t kP[] = {0x401CF931, 0xC045421E, 0x4014A49E, 0xBF31B09B};
constexpr uint32_t kC[] = {0x3F7FFFFF, 0xBF9DE9D3, 0x3E81DE83, 0xBCAA7B0D, 0x3A60F833};
constexpr uint32_t kS[] = {0x3FC90FAE, 0xBF25593C, 0x3DA2AE79, 0xBB8DFCA5};

/// Polynomial with coefficients in ascending powers, one fma each.
template <class Float, int n>
ZK_HD Float horner(const uint32_t (&c)[n], const Float& x) {
    Float value = splat<Float>(c[n - 1]);
#pragma GCC unroll 8
    for (int i = n - 2; i >= 0; --i) value = fma(value, x, splat<Float>(c[i]));
    return value;
}

template <class Float>
struct Normals {
    Float even, odd;
};

template <class Float, class Bits>
ZK_HD Normals<Float> box_muller(const Bits& a, const Bits& b) {
    const Float u = as_float((a >> 9) + 0x0C800000u) + splat<Float>(0x8C7FFFFFu);
    const Float e = to_float(as_bits(u));
    const Float m = as_float(with_exponent_of_one(as_bits(u)));
    const Float y = fma(e, splat<Float>(0xB4317218u), horner(kQ, m));  // -2 ln(uniform)
    const Float s = as_float(minus_from(0x5F200000u, as_bits(y) >> 1) ^ (b << 31));  // the lowest bit of b is the sign
    const Float t = y * s;
    const Float r = t * horner(kP, t * s);  // +-sqrt(y)
    const Float x = as_float((b >> 9) + 0x40000000u) - splat<Float>(0x40400000u);
    const Float x2 = x * x;
    return {r * horner(kC, x2), (r * x) * horner(kS, x2)};
}

}  // namespace zokern

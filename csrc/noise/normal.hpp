// From two uint32 words to two standard normals, over any lane type. Numbers: docs/noise_spec.md.
//
// Bits is a vector of 32-bit words with >> and + uint32_t; Float one of floats with + - * and fma(a, b, c); as_float, as_bits and
// to_float(Bits read as int32) go between them; splat<Float>(bits) is a constant. with_exponent_of_one and rsqrt_guess have names
// of their own because each instruction set has its own way to do them in few instructions.
#pragma once

#include "philox.hpp"

namespace zokern {

/// Coefficients in ascending powers. (In a function, because CUDA's device code reads no constexpr array of a namespace.)
template <uint32_t... coefficients>
struct Polynomial {
    static constexpr int degree = sizeof...(coefficients) - 1;
    ZK_HD static constexpr uint32_t at(int i) {
        constexpr uint32_t c[] = {coefficients...};
        return c[i];
    }
};
using Q = Polynomial<0x4215F11D, 0xC0E2D182, 0x40ECFA7A, 0xC091CB97, 0x3FE0CF3F, 0xBEC34BD7, 0x3D11E18F>;
using P = Polynomial<0x401CF931, 0xC045421E, 0x4014A49E, 0xBF31B09B>;
using C = Polynomial<0x3F7FFFFF, 0xBF9DE9D3, 0x3E81DE83, 0xBCAA7B0D, 0x3A60F833>;
using S = Polynomial<0x3FC90FAE, 0xBF25593C, 0x3DA2AE79, 0xBB8DFCA5>;

/// One fma a power.
template <class Coefficients, class Float>
ZK_HD Float horner(const Float& x) {
    Float value = splat<Float>(Coefficients::at(Coefficients::degree));
    ZK_UNROLL
    for (int i = Coefficients::degree - 1; i >= 0; --i) value = fma(value, x, splat<Float>(Coefficients::at(i)));
    return value;
}

template <class Float>
struct Normals {
    Float even, odd;
};

/// ``one``: what with_exponent_of_one of the lane asks for beside the bits, if anything.
template <class Float, class Bits, class... One>
ZK_HD Normals<Float> box_muller(const Bits& a, const Bits& b, One... one) {
    const Float u = as_float((a >> 9) + 0x0C800000u) + splat<Float>(0x8C7FFFFFu);
    const Float e = to_float(as_bits(u));
    const Float m = as_float(with_exponent_of_one(as_bits(u), one...));
    const Float y = fma(e, splat<Float>(0xB4317218u), horner<Q>(m));  // -2 ln(uniform)
    const Float s = as_float(rsqrt_guess(as_bits(y), b));  // 0x5F200000 - (y >> 1), and the lowest bit of b as its sign
    const Float t = y * s;
    const Float r = t * horner<P>(t * s);  // +-sqrt(y)
    const Float x = as_float((b >> 9) + 0x40000000u) - splat<Float>(0x40400000u);
    const Float x2 = x * x;
    return {r * horner<C>(x2), (r * x) * horner<S>(x2)};
}

}  // namespace zokern

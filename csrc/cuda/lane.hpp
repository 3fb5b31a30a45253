// A CUDA thread as a lane of csrc/noise: one 32-bit word, one float. To be included before normal.hpp.
#pragma once

#include "../noise/philox.hpp"

namespace zokern {

struct Word { uint32_t r; };
struct Product { uint64_t r; };
struct Bits { uint32_t r; };
struct Float { float r; };

__device__ __forceinline__ Product mul(uint32_t m, Word x) { return {static_cast<uint64_t>(m) * x.r}; }
__device__ __forceinline__ Word high(Product x) { return {static_cast<uint32_t>(x.r >> 32)}; }
__device__ __forceinline__ Word low(Product x) { return {static_cast<uint32_t>(x.r)}; }
__device__ __forceinline__ Word operator^(Word a, uint32_t b) { return {a.r ^ b}; }
__device__ __forceinline__ Word xor3(Word a, Word b, uint32_t c) { return {a.r ^ b.r ^ c}; }

__device__ __forceinline__ Bits operator>>(Bits a, int n) { return {a.r >> n}; }
__device__ __forceinline__ Bits operator+(Bits a, uint32_t b) { return {a.r + b}; }
__device__ __forceinline__ Bits rsqrt_guess(Bits y, Bits sign) { return {0x5F200000u - __funnelshift_r(y.r, sign.r, 1)}; }
/// one: the bits of 1.0f, as a value that the compiler does not know, because an instruction takes only one literal.
__device__ __forceinline__ Bits with_exponent_of_one(Bits a, uint32_t one) { return {(a.r & 0x007FFFFFu) | one}; }

__device__ __forceinline__ Float as_float(Bits a) { return {__uint_as_float(a.r)}; }
__device__ __forceinline__ Bits as_bits(Float a) { return {__float_as_uint(a.r)}; }
__device__ __forceinline__ Float to_float(Bits a) { return {static_cast<float>(static_cast<int32_t>(a.r))}; }
__device__ __forceinline__ Float operator+(Float a, Float b) { return {a.r + b.r}; }
__device__ __forceinline__ Float operator-(Float a, Float b) { return {a.r - b.r}; }
__device__ __forceinline__ Float operator*(Float a, Float b) { return {a.r * b.r}; }
__device__ __forceinline__ Float operator/(Float a, Float b) { return {__fdiv_rn(a.r, b.r)}; }
__device__ __forceinline__ Float sqrt(Float a) { return {__fsqrt_rn(a.r)}; }
__device__ __forceinline__ Float where_greater(Float a, Float b, Float yes, Float no) { return a.r > b.r ? yes : no; }
__device__ __forceinline__ Float fma(Float a, Float b, Float c) { return {__fmaf_rn(a.r, b.r, c.r)}; }
template <class>
__device__ __forceinline__ Float splat(uint32_t bits) {
    return {__uint_as_float(bits)};
}
template <class>
__device__ __forceinline__ Float splat(float value) {
    return {value};
}

}  // namespace zokern

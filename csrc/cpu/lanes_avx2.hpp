// AVX2 with FMA and F16C: eight floats a register, four counters a register, one in each 64-bit lane so that vpmuludq needs no
// shuffles. The high half of a Word's lanes is anything: vpmuludq does not read it.
#pragma once

#include "backend.hpp"

namespace zokern {
namespace {

constexpr int kRegisters = 4;  // Sapphire Rapids, data in L2, fp32: 4.0, 3.5, 3.3 cycles an element with 2, 3, 4
constexpr int kLanes = 8;

struct Word { __m256i r[kRegisters]; };
using Product = Word;
struct Bits { __m256i r[kRegisters]; };
struct Float { __m256 r[kRegisters]; };
struct Pair { Float lo, hi; };

template <class Out, class Operation>
ZK_HD Out each(Operation operation) {
    Out out;
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) out.r[i] = operation(i);
    return out;
}

ZK_HD __m256i all(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }

ZK_HD Product mul(uint32_t m, const Word& x) { return each<Product>([&](int i) { return _mm256_mul_epu32(x.r[i], all(m)); }); }
ZK_HD Word high(const Product& x) { return each<Word>([&](int i) { return _mm256_srli_epi64(x.r[i], 32); }); }
ZK_HD Word low(const Product& x) { return x; }
ZK_HD Word operator^(const Word& a, uint32_t b) { return each<Word>([&](int i) { return _mm256_xor_si256(a.r[i], all(b)); }); }
ZK_HD Word xor3(const Word& a, const Word& b, uint32_t c) {
    return each<Word>([&](int i) { return _mm256_xor_si256(_mm256_xor_si256(a.r[i], all(c)), b.r[i]); });
}

// unpacklo and unpackhi below work in 128-bit lanes; this order of the counters makes their output the elements' order.
ZK_HD Product first_products(uint32_t low_word) {
    return each<Product>([&](int i) {
        const __m256i low = _mm256_add_epi64(_mm256_set1_epi64x(low_word + uint64_t{4} * i), _mm256_setr_epi64x(0, 2, 1, 3));
        return _mm256_mul_epu32(low, all(kMultiplier0));
    });
}
ZK_HD Product next_products(const Product& p) {
    return each<Product>([&](int i) { return _mm256_add_epi64(p.r[i], _mm256_set1_epi64x(uint64_t{kMultiplier0} * 4 * kRegisters)); });
}

ZK_HD Bits pack(const Word& even, const Word& odd) {
    return each<Bits>([&](int i) { return _mm256_blend_epi32(even.r[i], _mm256_slli_epi64(odd.r[i], 32), 0xAA); });
}
ZK_HD Pair interleave(const Float& even, const Float& odd) {
    return {each<Float>([&](int i) { return _mm256_unpacklo_ps(even.r[i], odd.r[i]); }),
            each<Float>([&](int i) { return _mm256_unpackhi_ps(even.r[i], odd.r[i]); })};
}

ZK_HD Bits operator>>(const Bits& a, int n) { return each<Bits>([&](int i) { return _mm256_srli_epi32(a.r[i], n); }); }
ZK_HD Bits operator<<(const Bits& a, int n) { return each<Bits>([&](int i) { return _mm256_slli_epi32(a.r[i], n); }); }
ZK_HD Bits operator+(const Bits& a, uint32_t b) { return each<Bits>([&](int i) { return _mm256_add_epi32(a.r[i], all(b)); }); }
ZK_HD Bits minus_from(uint32_t a, const Bits& b) { return each<Bits>([&](int i) { return _mm256_sub_epi32(all(a), b.r[i]); }); }
ZK_HD Bits operator^(const Bits& a, const Bits& b) { return each<Bits>([&](int i) { return _mm256_xor_si256(a.r[i], b.r[i]); }); }
ZK_HD Bits with_exponent_of_one(const Bits& a) {
    return each<Bits>([&](int i) { return _mm256_or_si256(_mm256_and_si256(a.r[i], all(0x007FFFFF)), all(0x3F800000)); });
}

ZK_HD Float as_float(const Bits& a) { return each<Float>([&](int i) { return _mm256_castsi256_ps(a.r[i]); }); }
ZK_HD Bits as_bits(const Float& a) { return each<Bits>([&](int i) { return _mm256_castps_si256(a.r[i]); }); }
ZK_HD Float to_float(const Bits& a) { return each<Float>([&](int i) { return _mm256_cvtepi32_ps(a.r[i]); }); }
ZK_HD Float operator+(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm256_add_ps(a.r[i], b.r[i]); }); }
ZK_HD Float operator-(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm256_sub_ps(a.r[i], b.r[i]); }); }
ZK_HD Float operator*(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm256_mul_ps(a.r[i], b.r[i]); }); }
ZK_HD Float fma(const Float& a, const Float& b, const Float& c) {
    return each<Float>([&](int i) { return _mm256_fmadd_ps(a.r[i], b.r[i], c.r[i]); });
}
template <class>
ZK_HD Float splat(uint32_t bits) {
    return each<Float>([&](int) { return _mm256_castsi256_ps(all(bits)); });
}
template <class>
ZK_HD Float splat(float x) {
    return each<Float>([&](int) { return _mm256_set1_ps(x); });
}

ZK_HD void load(const float* p, Float& x, int i) { x.r[i] = _mm256_loadu_ps(p); }
ZK_HD void store(float* p, const Float& x, int i) { _mm256_storeu_ps(p, x.r[i]); }

ZK_HD void load(const bfloat16* p, Float& x, int i) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    x.r[i] = _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
// Nearest even, in integers. A NaN stays one.
ZK_HD void store(bfloat16* p, const Float& x, int i) {
    const __m256i u = _mm256_castps_si256(x.r[i]);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), all(1));
    const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(u, all(0x7FFF)), odd);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.r[i], x.r[i], _CMP_UNORD_Q));
    const __m256i bits = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, _mm256_or_si256(u, all(0x00400000)), nan), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
}

ZK_HD void load(const float16* p, Float& x, int i) { x.r[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ZK_HD void store(float16* p, const Float& x, int i) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.r[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

}  // namespace
}  // namespace zokern

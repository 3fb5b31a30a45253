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

// Of two bfloat16 in one 32-bit lane, the even element is the lower half: a Pair of them holds the even elements and the odd ones,
// as the noise comes. Of the other types it holds eight elements and the next eight; unpacklo and unpackhi, which work in 128-bit
// lanes, put the noise in that order if the counters are in this one.
template <class T>
ZK_HD Product first_products(uint32_t low_word) {
    const __m256i order = is_bfloat16<T> ? _mm256_setr_epi64x(0, 1, 2, 3) : _mm256_setr_epi64x(0, 2, 1, 3);
    return each<Product>([&](int i) {
        return _mm256_mul_epu32(_mm256_add_epi64(_mm256_set1_epi64x(low_word + uint64_t{4} * i), order), all(kMultiplier0));
    });
}
template <class T>
ZK_HD Pair arrange(const Float& even, const Float& odd) {
    if (is_bfloat16<T>) return {even, odd};
    return {each<Float>([&](int i) { return _mm256_unpacklo_ps(even.r[i], odd.r[i]); }),
            each<Float>([&](int i) { return _mm256_unpackhi_ps(even.r[i], odd.r[i]); })};
}
template <class T>
ZK_HD Pair apart(const Pair& x) {
    if (is_bfloat16<T>) return x;
    return {each<Float>([&](int i) { return _mm256_shuffle_ps(x.lo.r[i], x.hi.r[i], 0x88); }),
            each<Float>([&](int i) { return _mm256_shuffle_ps(x.lo.r[i], x.hi.r[i], 0xDD); })};
}
ZK_HD Product next_products(const Product& p) {
    return each<Product>([&](int i) { return _mm256_add_epi64(p.r[i], _mm256_set1_epi64x(uint64_t{kMultiplier0} * 4 * kRegisters)); });
}

ZK_HD Bits pack(const Word& even, const Word& odd) {
    return each<Bits>([&](int i) { return _mm256_blend_epi32(even.r[i], _mm256_slli_epi64(odd.r[i], 32), 0xAA); });
}

ZK_HD Bits pack_high(const Product& even, const Product& odd) {
    return each<Bits>([&](int i) { return _mm256_blend_epi32(_mm256_srli_epi64(even.r[i], 32), odd.r[i], 0xAA); });
}
ZK_HD Bits xor3(const Bits& a, const Bits& b, uint32_t even, uint32_t odd) {
    const __m256i c = _mm256_set1_epi64x(static_cast<int64_t>(uint64_t{odd} << 32 | even));
    return each<Bits>([&](int i) { return _mm256_xor_si256(_mm256_xor_si256(a.r[i], c), b.r[i]); });
}

ZK_HD Bits operator>>(const Bits& a, int n) { return each<Bits>([&](int i) { return _mm256_srli_epi32(a.r[i], n); }); }
ZK_HD Bits operator+(const Bits& a, uint32_t b) { return each<Bits>([&](int i) { return _mm256_add_epi32(a.r[i], all(b)); }); }
ZK_HD Bits rsqrt_guess(const Bits& y, const Bits& sign) {
    return each<Bits>([&](int i) {
        const auto guess = _mm256_sub_epi32(all(0x5F200000), _mm256_srli_epi32(y.r[i], 1));
        return _mm256_xor_si256(guess, _mm256_slli_epi32(sign.r[i], 31));
    });
}
ZK_HD Bits with_exponent_of_one(const Bits& a) {
    return each<Bits>([&](int i) { return _mm256_or_si256(_mm256_and_si256(a.r[i], all(0x007FFFFF)), all(0x3F800000)); });
}

ZK_HD Float as_float(const Bits& a) { return each<Float>([&](int i) { return _mm256_castsi256_ps(a.r[i]); }); }
ZK_HD Bits as_bits(const Float& a) { return each<Bits>([&](int i) { return _mm256_castps_si256(a.r[i]); }); }
ZK_HD Float to_float(const Bits& a) { return each<Float>([&](int i) { return _mm256_cvtepi32_ps(a.r[i]); }); }
ZK_HD Float operator+(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm256_add_ps(a.r[i], b.r[i]); }); }
ZK_HD Float operator-(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm256_sub_ps(a.r[i], b.r[i]); }); }
ZK_HD Float operator*(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm256_mul_ps(a.r[i], b.r[i]); }); }
ZK_HD Float operator/(const Float& a, const Float& b) { return each<Float>([&](int i) { return _mm256_div_ps(a.r[i], b.r[i]); }); }
ZK_HD Float sqrt(const Float& a) { return each<Float>([&](int i) { return _mm256_sqrt_ps(a.r[i]); }); }
ZK_HD Float where_greater(const Float& a, const Float& b, const Float& yes, const Float& no) {
    return each<Float>([&](int i) { return _mm256_blendv_ps(no.r[i], yes.r[i], _mm256_cmp_ps(a.r[i], b.r[i], _CMP_GT_OQ)); });
}
ZK_HD Float kept(const Float& z, const Bits& word, uint32_t keep_threshold) {
    return each<Float>([&](int i) {
        const __m256i at_most = _mm256_cmpeq_epi32(_mm256_min_epu32(word.r[i], all(keep_threshold)), word.r[i]);
        return _mm256_and_ps(z.r[i], _mm256_castsi256_ps(at_most));
    });
}
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

ZK_HD void load(const float* p, Pair& x, int i) { x.lo.r[i] = _mm256_loadu_ps(p), x.hi.r[i] = _mm256_loadu_ps(p + kLanes); }
ZK_HD void store(float* p, const Pair& x, int i) { _mm256_storeu_ps(p, x.lo.r[i]), _mm256_storeu_ps(p + kLanes, x.hi.r[i]); }

ZK_HD void load(const bfloat16* p, Pair& x, int i) {
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    x.lo.r[i] = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    x.hi.r[i] = _mm256_castsi256_ps(_mm256_and_si256(both, all(0xFFFF0000)));
}
// To the upper half of each lane, the lower being anything. Nearest even, in integers.
ZK_HD __m256i nearest_bfloat16(const __m256i& u) {
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), all(1));
    return _mm256_add_epi32(_mm256_add_epi32(u, all(0x7FFF)), odd);
}
ZK_HD __m256i rounded_to_bfloat16(const __m256& x) {  // a NaN stays one
    const __m256i u = _mm256_castps_si256(x), nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(nearest_bfloat16(u), _mm256_or_si256(u, all(0x00400000)), nan);
}
ZK_HD void store(bfloat16* p, const Pair& x, int i) {
    const __m256i lo = _mm256_srli_epi32(rounded_to_bfloat16(x.lo.r[i]), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_blend_epi16(lo, rounded_to_bfloat16(x.hi.r[i]), 0xAA));
}

ZK_HD __m256 load(const float16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ZK_HD void load(const float16* p, Pair& x, int i) { x.lo.r[i] = load(p), x.hi.r[i] = load(p + kLanes); }
ZK_HD void store(float16* p, const __m256& x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
ZK_HD void store(float16* p, const Pair& x, int i) { store(p, x.lo.r[i]), store(p + kLanes, x.hi.r[i]); }

// One register, its elements in a row.
ZK_HD __m256 load(const float* p) { return _mm256_loadu_ps(p); }
ZK_HD void store(float* p, const __m256& x) { _mm256_storeu_ps(p, x); }
ZK_HD __m256i load(const uint16_t* p) { return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
ZK_HD __m256 load(const bfloat16* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(load(&p->bits), 16)); }
ZK_HD void store_upper(bfloat16* p, const __m256i& x) {
    const __m256i upper = _mm256_srli_epi32(x, 16);
    const __m128i both = _mm_packus_epi32(_mm256_castsi256_si128(upper), _mm256_extracti128_si256(upper, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), both);
}
ZK_HD void store(bfloat16* p, const __m256& x) { store_upper(p, rounded_to_bfloat16(x)); }
ZK_HD void store(bfloat16* p, const __m256& x, const uint16_t* random) {
    const __m256i u = _mm256_castps_si256(x), up = _mm256_add_epi32(u, load(random));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    store_upper(p, _mm256_blendv_epi8(up, _mm256_or_si256(u, all(0x00400000)), nan));
}

ZK_HD void put(uint16_t* p, const Bits& w02, const Bits& w13) {
    const auto to = [&](int i) { return reinterpret_cast<__m256i*>(p + 2 * kLanes * i); };
#pragma GCC unroll 8
    for (int i = 0; i < kRegisters; ++i) {
        _mm256_storeu_si256(to(2 * i), _mm256_unpacklo_epi32(w02.r[i], w13.r[i]));
        _mm256_storeu_si256(to(2 * i + 1), _mm256_unpackhi_epi32(w02.r[i], w13.r[i]));
    }
}

ZK_HD Float rounded(const Float& x, float) { return x; }
ZK_HD Float rounded(const Float& x, bfloat16) {
    return each<Float>([&](int i) { return _mm256_castsi256_ps(_mm256_and_si256(nearest_bfloat16(_mm256_castps_si256(x.r[i])), all(0xFFFF0000))); });
}
ZK_HD Float rounded(const Float& x, float16) {
    return each<Float>([&](int i) { return _mm256_cvtph_ps(_mm256_cvtps_ph(x.r[i], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); });
}

}  // namespace
}  // namespace zokern

#include "registers.hpp"
